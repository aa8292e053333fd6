import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import atoms as module
from models.data.atoms import Atoms, neighbours
from models.errors import InvalidInputError
from tests.conftest import collate_atoms

WATER = Atoms.from_lists([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
NAN, INF = float("nan"), float("inf")


def crystal(seed: int, size: float = 3.0, count: int = 3) -> Atoms:
    """Build atoms in a skewed cell, some of them outside it."""
    generator = torch.Generator().manual_seed(seed)
    cell = size * torch.eye(3) + torch.rand(3, 3, generator=generator) * size / 2
    positions = (4 * torch.rand(count, 3, generator=generator) - 2) @ cell
    return Atoms(torch.randint(1, 20, (count,), generator=generator), positions, cell)


def slow_neighbours(atoms: Atoms, cutoff: float, reach: int) -> list[tuple[int, int, float]]:
    """Find all (source, target, distance) by one loop over atoms and images."""
    found = []
    positions = atoms.positions.double().tolist()
    lattice = torch.zeros(3, 3).tolist() if atoms.cell is None else atoms.cell.double().tolist()
    images = (
        [(0, 0, 0)]
        if atoms.cell is None
        else list(itertools.product(range(-reach, reach + 1), repeat=3))
    )
    for (i, here), (j, there) in itertools.product(enumerate(positions), enumerate(positions)):
        for image in images:
            moved = [
                there[axis] + sum(image[k] * lattice[k][axis] for k in range(3))
                for axis in range(3)
            ]
            distance = math.dist(here, moved)
            if distance <= cutoff and (i != j or distance > 1e-9):
                found.append((j, i, distance))
    return sorted(found)


def found_neighbours(atoms: Atoms, cutoff: float) -> list[tuple[int, int, float]]:
    found = neighbours(atoms, cutoff)
    source, target = found.edge_index
    distances = (atoms.positions[source] + found.shift - atoms.positions[target]).norm(dim=1)
    return sorted(zip(source.tolist(), target.tolist(), distances.tolist(), strict=True))


def assert_same(
    found: list[tuple[int, int, float]], expected: list[tuple[int, int, float]]
) -> None:
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], abs=1e-4)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), size=st.floats(1.5, 4.0), cutoff=st.floats(1.0, 4.0))
def test_neighbours_in_small_skewed_cells_are_those_of_the_loop(
    seed: int, size: float, cutoff: float
) -> None:
    atoms = crystal(seed, size)
    assert_same(found_neighbours(atoms, cutoff), slow_neighbours(atoms, cutoff, reach=8))


def test_neighbours_of_a_molecule_are_those_of_the_loop() -> None:
    atoms = Atoms(
        torch.ones(12, dtype=torch.int64),
        6 * torch.rand(12, 3, generator=torch.Generator().manual_seed(1)),
    )
    expected = slow_neighbours(atoms, 3.0, reach=0)
    assert 0 < len(expected) < 12 * 11
    assert_same(found_neighbours(atoms, 3.0), expected)


def test_an_atom_alone_in_a_cell_sees_its_own_images() -> None:
    atoms = Atoms.from_lists([3], [[0.3, 0.4, 0.5]], [[2, 0, 0], [0, 2, 0], [0, 0, 2]])
    found = neighbours(atoms, 2.5)
    assert found.edge_index.tolist() == [[0] * 6, [0] * 6]
    assert found.shift.norm(dim=1).tolist() == [2.0] * 6


@pytest.mark.parametrize("move", [(1, 0, 0), (-2, 3, 0), (5, -7, 11)])
def test_which_image_of_an_atom_is_given_does_not_matter(move: tuple[int, int, int]) -> None:
    atoms = crystal(3)
    assert atoms.cell is not None
    moved = atoms.positions.clone()
    moved[1] += torch.tensor(move).float() @ atoms.cell
    assert_same(
        found_neighbours(Atoms(atoms.numbers, moved, atoms.cell), 4.0), found_neighbours(atoms, 4.0)
    )


def test_edges_come_in_both_directions_with_opposite_displacements() -> None:
    found = neighbours(crystal(5), 4.0)
    forward = sorted(
        (s, t, *shift)
        for s, t, shift in zip(
            *found.edge_index.tolist(), found.shift.round(decimals=3).tolist(), strict=True
        )
    )
    backward = sorted(
        (t, s, *(0.0 - x for x in shift))
        for s, t, shift in zip(
            *found.edge_index.tolist(), found.shift.round(decimals=3).tolist(), strict=True
        )
    )
    assert torch.tensor(forward).allclose(torch.tensor(backward), atol=2e-3)


def test_a_batch_keeps_structures_apart() -> None:
    lattice = crystal(7)
    batch = collate_atoms([WATER, lattice, WATER], 4.0)
    assert (batch.num_graphs, batch.batch.tolist()) == (3, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert batch.numbers.tolist() == [*WATER.numbers, *lattice.numbers, *WATER.numbers]
    source, target = batch.edge_index
    assert torch.equal(batch.batch[source], batch.batch[target])
    assert len(source) == sum(
        len(neighbours(structure, 4.0).shift) for structure in (WATER, lattice, WATER)
    )
    assert batch.to("cpu").shift.shape == batch.clone().shift.shape == (len(source), 3)


def test_no_structure_is_no_batch() -> None:
    with pytest.raises(InvalidInputError, match="got none"):
        collate_atoms([], 4.0)


@pytest.mark.parametrize(
    ("numbers", "positions", "cell", "message"),
    [
        ([], [], None, "at least one atom"),
        ([1], [], None, r"expected \(1, 3\)"),
        ([1], [[0.0, 0.0]], None, "expected 3"),
        ([0], [[0, 0, 0]], None, "atomic numbers from 1"),
        ([119], [[0, 0, 0]], None, "to 118"),
        ([1], [[0, 0, NAN]], None, "not finite"),
        ([1], [[0, 0, INF]], None, "not finite"),
        ([1], [[0, 0, 2e4]], None, "beyond"),
        ([1, 1], [[0, 0, 0], [0, 0, 0.01]], None, "atoms 1 and 0 nearer"),
        ([1, 1], [[0, 0, 0], [0, 0, 2.0]], [[2, 0, 0], [0, 2, 0], [0, 0, 2]], "nearer"),
        ([1], [[0, 0, 0]], [[2, 0, 0], [0, 2, 0]], r"expected \(3, 3\)"),
        ([1], [[0, 0, 0]], [[2, 0, 0], [0, 2, 0], [2, 2, 0]], "expected a volume"),
        ([1], [[0, 0, 0]], [[2, 0, 0], [2, 0, 0], [0, 0, 2]], "expected a volume"),
        ([1], [[0, 0, 0]], [[2, 0, 0], [0, 2, 0], [0, 0, 0.1]], "expected a volume"),
        ([1], [[0, 0, 0]], [[2, 0, 0], [0, 2, 0], [0, 0, NAN]], "not finite"),
    ],
)
def test_what_is_no_structure_is_refused(
    numbers: list[int], positions: list[list[float]], cell: list[list[float]] | None, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Atoms.from_lists(numbers, positions, cell)


def test_a_search_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 10)
    with pytest.raises(InvalidInputError, match="at most 10 pairs"):
        neighbours(crystal(0), 4.0)


@pytest.mark.parametrize("periodic", [False, True])
def test_every_pair_knows_its_reverse(periodic: bool) -> None:
    # a cell shorter than the cutoff: an atom is its own neighbour, in both directions
    cell = [[2.9, 0.0, 0.3], [0.7, 2.5, 0.0], [-0.4, 0.5, 3.3]] if periodic else None
    places = [[0.0, 0.0, 0.0], [1.1, 0.2, 0.4], [7.0, -3.0, 1.0]]
    atoms = Atoms.from_lists([8, 1, 6], places, cell)
    batch = collate_atoms([atoms, WATER], 4.0)
    source, target = batch.edge_index
    assert torch.equal(batch.edge_index[:, batch.reverse], torch.stack([target, source]))
    torch.testing.assert_close(batch.shift[batch.reverse], -batch.shift, atol=1e-5, rtol=0)
    numbers = torch.arange(len(source))
    assert torch.equal(batch.reverse[batch.reverse], numbers)
    assert not (batch.reverse == numbers).any()
    assert bool((source == target).any()) == periodic
    # sorted by the atom at which a pair ends, on which angles rely
    assert bool((target.diff() >= 0).all())
