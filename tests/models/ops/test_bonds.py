"""Steps over directed bonds: the compiled loops against torch, and against a plain restatement."""

import pytest
import torch
from torch import Tensor

from models.ops import bonds
from models.ops.bonds import arriving_states, bond_messages, first_states, reverse_bonds

ATOMS, WIDTH = 5, 7
BONDS = [(0, 1), (1, 2), (2, 3), (3, 0), (1, 3)]  # atom 4 has none
EDGES = torch.tensor([edge for a, b in BONDS for edge in ((a, b), (b, a))]).t().contiguous()


def states(rows: int) -> Tensor:
    torch.manual_seed(rows)
    return torch.randn(rows, WIDTH)


def results(h: Tensor, of_atoms: Tensor, of_bonds: Tensor) -> tuple[Tensor, ...]:
    source, target = EDGES
    return (
        first_states(of_atoms, of_bonds, source),
        bond_messages(h, source, target, ATOMS),
        arriving_states(h, target, ATOMS),
    )


def test_every_route_gives_the_same() -> None:
    inputs = states(len(EDGES[0])), states(ATOMS), states(len(BONDS))
    compiled = results(*inputs)
    plain = results(*(value.double() for value in inputs))
    with_gradients = results(*(value.clone().requires_grad_() for value in inputs))
    assert all(value.requires_grad for value in with_gradients)
    for a, b, c in zip(compiled, plain, with_gradients, strict=True):
        torch.testing.assert_close(a, b.float())
        torch.testing.assert_close(a, c.detach())


@pytest.mark.parametrize("name", ["_first_states", "_messages", "_arriving"])
def test_the_loops_compute_the_same_without_compilation(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = states(len(EDGES[0])), states(ATOMS), states(len(BONDS))
    expected = results(*inputs)
    monkeypatch.setattr(bonds, name, getattr(bonds, name).py_func)
    for a, b in zip(results(*inputs), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_message_is_what_arrives_but_not_what_comes_back() -> None:
    source, target = EDGES.tolist()
    h = states(len(source))
    found = bond_messages(h, *EDGES, ATOMS)
    for edge, (v, w) in enumerate(zip(source, target, strict=True)):
        ends = [k for k in range(len(source)) if target[k] == v and source[k] != w]
        torch.testing.assert_close(found[edge], h[ends].sum(0))


def test_bonds_are_reversed_in_pairs() -> None:
    h = states(4)
    assert torch.equal(reverse_bonds(h), h[[1, 0, 3, 2]])


def test_molecules_without_bonds_have_no_messages() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert bond_messages(states(2)[:0], none, none, ATOMS).shape == (0, WIDTH)
    assert torch.equal(arriving_states(states(2)[:0], none, ATOMS), torch.zeros(ATOMS, WIDTH))
