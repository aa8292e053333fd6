"""D-MPNNs beside the formulas of their papers, bond by bond, and beside what a batch must not
change."""

from itertools import product
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models.data.batch import GraphBatch
from models.data.bond_graph import BondGraph, collate_bonds
from models.networks.dmpnn import ACTIVATIONS, DmpnnConfig, MessagePassing, MessagePassingShape

ATOM, BOND, WIDTH = 5, 3, 7
RING = BondGraph(
    torch.randn(4, ATOM, generator=torch.Generator().manual_seed(0)),
    torch.tensor([[0, 1, 1, 2, 2, 0, 2, 3], [1, 0, 2, 1, 0, 2, 3, 2]]),
    torch.randn(4, BOND, generator=torch.Generator().manual_seed(1)).repeat_interleave(2, 0),
)
ATOM_ALONE = BondGraph(torch.ones(1, ATOM), torch.empty(2, 0).long(), torch.empty(0, BOND))
PAIR = BondGraph(
    torch.arange(10.0).view(2, ATOM) / 10, torch.tensor([[0, 1], [1, 0]]), torch.ones(2, BOND)
)
SHAPES = [
    MessagePassingShape(
        hidden_dim=WIDTH,
        depth=depth,
        bias=depth != 2,
        activation=activation,
        messages=messages,
        undirected=undirected,
        aggregation=aggregation,
        norm=30,
    )
    for (messages, undirected), (depth, activation, aggregation) in product(
        product(("bonds", "atoms"), (False, True)),
        ((1, "relu", "mean"), (2, "prelu", "norm"), (4, "tanh", "sum"), (3, "leakyrelu", "mean")),
    )
]


def network_of(shape: MessagePassingShape) -> MessagePassing:
    torch.manual_seed(3)
    return MessagePassing(shape, ATOM, BOND).requires_grad_(False).double()


def double(batch: GraphBatch) -> GraphBatch:
    graph = batch.edge_index, batch.edge_attr.double(), batch.batch, batch.num_graphs
    return GraphBatch(batch.x.double(), *graph)


def by_hand(network: MessagePassing, graph: BondGraph) -> Tensor:
    """The molecule's vector by sums over single bonds."""
    shape, x, e = network.shape, graph.x.double(), graph.edge_attr.double()
    bonds = list(zip(*graph.edge_index.tolist(), strict=True))
    act: Any = network.activation
    of_bonds = shape.messages == "bonds"
    first = {
        (v, w): network.W_i(torch.cat((x[v], e[k])) if of_bonds else x[v])
        for k, (v, w) in enumerate(bonds)
    }
    h = {bond: act(value) for bond, value in first.items()}
    for _ in range(1, shape.depth):
        if shape.undirected:
            h = {(v, w): (h[v, w] + h[w, v]) / 2 for v, w in h}
        sent = {}
        for v, w in bonds:
            if of_bonds:
                into = [h[u, t] for u, t in bonds if t == v and u != w]
                message = sum(into, torch.zeros(WIDTH).double())
            else:
                into = [torch.cat((h[u, t], e[k])) for k, (u, t) in enumerate(bonds) if t == v]
                message = sum(into, torch.zeros(WIDTH + BOND).double())
            sent[v, w] = act(first[v, w] + network.W_h(message))
        h = sent
    atoms = []
    for v in range(len(x)):
        arrived = sum((h[u, t] for u, t in bonds if t == v), torch.zeros(WIDTH).double())
        atoms.append(act(network.W_o(torch.cat((x[v], arrived)))))
    total = torch.stack(atoms).sum(0)
    return total / {"mean": len(x), "sum": 1, "norm": shape.norm}[shape.aggregation]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_formula_of_the_paper(shape: MessagePassingShape) -> None:
    network = network_of(shape)
    batch = double(collate_bonds([RING, ATOM_ALONE, PAIR]))
    expected = torch.stack([by_hand(network, graph) for graph in (RING, ATOM_ALONE, PAIR)])
    torch.testing.assert_close(network(batch), expected)


def test_molecules_without_any_bond_are_answered() -> None:
    network = network_of(SHAPES[0])
    found = network(double(collate_bonds([ATOM_ALONE, ATOM_ALONE])))
    torch.testing.assert_close(found[0], by_hand(network, ATOM_ALONE))


@pytest.mark.parametrize("messages", ["bonds", "atoms"])
def test_every_site_is_corrected_once_and_before_the_activation(messages: str) -> None:
    shape = MessagePassingShape(hidden_dim=WIDTH, depth=3, messages=messages)
    network, batch = network_of(shape), double(collate_bonds([RING, PAIR]))
    seen: list[tuple[int, tuple[int, ...], bool]] = []

    def correct(site: int, h: Tensor) -> Tensor:
        seen.append((site, tuple(h.shape), bool((h < 0).any())))
        return h

    torch.testing.assert_close(network(batch, correct), network(batch))
    rows = 10 if messages == "bonds" else 6
    states = [(rows, WIDTH)] * 3 + [(6, WIDTH), (2, WIDTH)]
    assert [site for site, *_ in seen] == list(range(network.num_sites))
    assert [size for _, size, _ in seen] == states
    assert all(negative for *_, negative in seen[:-1])  # relu would leave none

    def doubled(site: int, h: Tensor) -> Tensor:
        return 2 * h if site == network.num_sites - 1 else h

    torch.testing.assert_close(network(batch, doubled), 2 * network(batch))


def test_the_widths_of_features_are_read_from_the_weights() -> None:
    for messages in ("bonds", "atoms"):
        network = network_of(MessagePassingShape(hidden_dim=WIDTH, messages=messages))
        assert (network.atom_dim, network.bond_dim) == (ATOM, BOND)


def test_activations_are_those_of_chemprop() -> None:
    x = torch.tensor([-2.0, 3.0])
    found = {name: make()(x).tolist() for name, make in ACTIVATIONS.items()}
    assert found["relu"] == [0, 3]
    assert found["leakyrelu"] == pytest.approx([-0.2, 3])
    assert found["prelu"] == pytest.approx([-0.5, 3])
    assert found["tanh"] == pytest.approx([-0.964028, 0.995055], abs=1e-6)
    assert found["elu"] == pytest.approx([-0.864665, 3], abs=1e-6)
    assert isinstance(ACTIVATIONS["prelu"](), nn.PReLU)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"depth": 0}, "depth"),
        ({"norm": 0.0}, "norm"),
        ({"norm": float("inf")}, "norm"),
        ({"activation": "selu"}, "activation"),
        ({"dropout": 0.1}, "dropout"),
        ({"heads": {"a": {"own": {}, "correction": "residual"}}}, "with networks of its own"),
    ],
)
def test_shapes_that_cannot_be_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DmpnnConfig.model_validate({"atom_dim": ATOM, "bond_dim": BOND} | change)


def test_a_network_is_shared_unless_every_task_brings_its_own() -> None:
    def shared(*own: bool) -> bool:
        heads = {str(k): {"own": {} if mine else None} for k, mine in enumerate(own)}
        values = {"atom_dim": ATOM, "bond_dim": BOND, "heads": heads}
        return DmpnnConfig.model_validate(values).is_shared

    assert [shared(), shared(False), shared(True, False), shared(True, True)] == [
        True,
        True,
        True,
        False,
    ]
    assert DmpnnConfig(atom_dim=1, bond_dim=1, depth=4, hidden_dim=9).size == (4, 9)
