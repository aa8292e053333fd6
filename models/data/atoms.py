"""Atoms in space: molecules and crystals, and batches of them. The input of the force fields."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from models.errors import InvalidInputError

NUM_ELEMENTS = 119
"""Size of tables indexed by atomic number; row 0 is no element."""
MIN_DISTANCE = 0.05
"""In Angstrom; nearer atoms count as coincident, where a distance has no gradient."""
MAX_COORDINATE = 1e4
"""In Angstrom; float32 still resolves a thousandth of an Angstrom there."""
MIN_CELL_WIDTH = 0.5
"""Least distance between opposite faces of a cell, in Angstrom."""
MAX_PAIRS = 20_000_000
"""Most pairs of atoms and images in one neighbour search (about 2 GB)."""


@dataclass(frozen=True)
class Atoms:
    """One molecule, or one cell of a crystal.

    Attributes:
        numbers: (N,) int64 atomic numbers.
        positions: (N, 3) float32, in Angstrom; in a crystal any periodic image of an atom may be
            given.
        cell: (3, 3) float32, lattice vectors in rows, in Angstrom, periodic in all three; None for
            a molecule.
    """

    numbers: Tensor
    positions: Tensor
    cell: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        """Number of atoms."""
        return int(self.numbers.shape[0])

    @classmethod
    def from_lists(
        cls,
        numbers: Sequence[int],
        positions: Sequence[Sequence[float]],
        cell: Sequence[Sequence[float]] | None = None,
    ) -> Self:
        """Build atoms from plain lists and check them.

        Raises:
            InvalidInputError: see `validate`.
        """
        lattice = None if cell is None else _table(cell, "cell")
        return cls(
            torch.tensor(list(numbers), dtype=torch.int64), _table(positions, "positions"), lattice
        ).validate()

    def validate(self) -> Self:
        """Return the atoms themselves if a force field can read them.

        Raises:
            InvalidInputError: no atom, wrong shapes, a number that is no element, a coordinate that
                is not finite or beyond `MAX_COORDINATE`, a cell without volume, two atoms (or an
                atom and its own image) in one position, or more pairs than `MAX_PAIRS`.
        """
        if self.num_nodes == 0 or self.numbers.dim() != 1:
            raise InvalidInputError(
                f"numbers: got shape {tuple(self.numbers.shape)}, expected (N,) with at least one"
                " atom"
            )
        if self.positions.shape != (self.num_nodes, 3):
            raise InvalidInputError(
                f"positions: got shape {tuple(self.positions.shape)}, expected"
                f" ({self.num_nodes}, 3)"
            )
        if not 1 <= int(self.numbers.min()) <= int(self.numbers.max()) < NUM_ELEMENTS:
            got = f"{int(self.numbers.min())} to {int(self.numbers.max())}"
            raise InvalidInputError(
                f"numbers: got values from {got}, expected atomic numbers from 1 to"
                f" {NUM_ELEMENTS - 1}"
            )
        _check_coordinates(self.positions, "positions")
        if self.cell is not None:
            _check_cell(self.cell)
        if close := neighbours(self, MIN_DISTANCE).edge_index[:, :1].flatten().tolist():
            raise InvalidInputError(
                f"positions: got atoms {close[0]} and {close[1]} nearer than {MIN_DISTANCE}"
                " Angstrom, expected a place for each"
            )
        return self


def _table(rows: Sequence[Sequence[float]], name: str) -> Tensor:
    """Convert rows of three numbers to a float32 matrix; an empty list is (0, 3)."""
    if any(len(row) != 3 for row in rows):
        raise InvalidInputError(
            f"{name}: got rows of {sorted({len(row) for row in rows})} numbers, expected 3"
        )
    return torch.tensor(rows, dtype=torch.float32).view(-1, 3)


def _check_coordinates(values: Tensor, name: str) -> None:
    if not bool(values.isfinite().all()) or float(values.abs().max()) > MAX_COORDINATE:
        raise InvalidInputError(
            f"{name}: got a value that is not finite or beyond {MAX_COORDINATE:.0f} Angstrom,"
            " expected smaller ones"
        )


def _check_cell(cell: Tensor) -> None:
    if cell.shape != (3, 3):
        raise InvalidInputError(f"cell: got shape {tuple(cell.shape)}, expected (3, 3)")
    _check_coordinates(cell, "cell")
    narrowest = float(_widths(cell.double()).min())
    if not narrowest >= MIN_CELL_WIDTH:  # NaN where two lattice vectors are parallel
        raise InvalidInputError(
            f"cell: got {narrowest:.3g} Angstrom between opposite faces, expected a volume and at"
            f" least {MIN_CELL_WIDTH}"
        )


def _widths(cell: Tensor) -> Tensor:
    """Compute the distances between opposite faces, volume over area: (3,)."""
    areas = torch.linalg.cross(cell.roll(-1, 0), cell.roll(-2, 0)).norm(dim=1)
    widths: Tensor = torch.linalg.det(cell).abs() / areas
    return widths


@dataclass(frozen=True)
class Neighbours:
    """The neighbour list of a structure.

    Attributes:
        edge_index: (2, E) int64, every pair in both directions, sources in the first row; sorted by
            target.
        shift: (E, 3) float32, in Angstrom: the source is at positions[source] + shift.
        reverse: (E,) int64, the number of the same pair seen from its source.
    """

    edge_index: Tensor
    shift: Tensor
    reverse: Tensor


def neighbours(atoms: Atoms, cutoff: float) -> Neighbours:
    """Find all pairs of atoms at most `cutoff` Angstrom apart.

    Every periodic image of the source counts, and an atom is a neighbour of its own images. All
    pairs are compared, so the work is N^2 times the number of images: suited to hundreds of atoms,
    in cells of any shape and however small.

    Raises:
        InvalidInputError: more pairs than `MAX_PAIRS`.
    """
    positions, cell = atoms.positions.double(), None if atoms.cell is None else atoms.cell.double()
    if cell is None:
        images, wrap = positions.new_zeros(1, 3), torch.zeros_like(positions)
    else:
        # With every atom inside the cell, images more cells away than this are beyond the cutoff.
        reach = [
            torch.arange(-most, most + 1) for most in (cutoff / _widths(cell)).ceil().int().tolist()
        ]
        images = torch.cartesian_prod(*reach).double() @ cell
        wrap = -torch.linalg.solve(cell, positions, left=False).floor() @ cell
    if len(images) * len(positions) ** 2 > MAX_PAIRS:
        raise InvalidInputError(
            f"got {len(positions)} atoms with {len(images)} images within the cutoff, expected at"
            f" most {MAX_PAIRS} pairs"
        )
    inside = positions + wrap
    # (target, source, image)
    distance = (inside[None, :, None] + images[None, None] - inside[:, None, None]).norm(dim=-1)
    near = distance <= cutoff
    # an atom is not its own neighbour without a shift
    near.diagonal()[images.abs().sum(1) == 0] = False
    # Rounding may put the two directions of a pair on both sides of the cutoff: both count then.
    # Images are listed from the lowest to the highest, so that the opposite one is found by
    # reversing the list.
    near |= near.transpose(0, 1).flip(2).clone()
    target, source, image = near.nonzero(as_tuple=True)
    shift = images[image] + wrap[source] - wrap[target]
    # Pairs come in the order of (target, source, image), so that a pair is found by bisection.
    counts = len(positions), len(images)
    keys = (target * counts[0] + source) * counts[1] + image
    opposite = (source * counts[0] + target) * counts[1] + (counts[1] - 1 - image)
    reverse = torch.searchsorted(keys, opposite)
    return Neighbours(torch.stack([source, target]), shift.float(), reverse)


@dataclass(frozen=True)
class AtomsBatch:
    """Several structures as one, without edges between them.

    Attributes:
        numbers: (N,) int64.
        positions: (N, 3) float32, in Angstrom.
        batch: (N,) int64, structure of each atom, ascending.
        num_graphs: number of structures G.
        edge_index: (2, E) int64 into the N atoms, sources in the first row.
        shift: (E, 3) float32, in Angstrom, see `Neighbours`.
        reverse: (E,) int64, see `Neighbours`.
    """

    numbers: Tensor
    positions: Tensor
    batch: Tensor
    num_graphs: int
    edge_index: Tensor
    shift: Tensor
    reverse: Tensor

    def to(self, device: torch.device | str) -> "AtomsBatch":
        """Copy the batch to a device."""
        atoms = self.numbers.to(device), self.positions.to(device), self.batch.to(device)
        edges = self.edge_index.to(device), self.shift.to(device), self.reverse.to(device)
        return AtomsBatch(*atoms, self.num_graphs, *edges)

    def clone(self) -> "AtomsBatch":
        """Copy the batch."""
        return AtomsBatch(
            self.numbers.clone(),
            self.positions.clone(),
            self.batch.clone(),
            self.num_graphs,
            self.edge_index.clone(),
            self.shift.clone(),
            self.reverse.clone(),
        )


def join(structures: Sequence[Atoms], lists: Sequence[Neighbours]) -> AtomsBatch:
    """Join structures with known neighbours to one batch, in their order.

    Args:
        structures: at least one.
        lists: the neighbours of each.

    Raises:
        InvalidInputError: no structure.
    """
    if not structures:
        raise InvalidInputError("structures: got none, expected at least one")
    counts = torch.tensor([structure.num_nodes for structure in structures])
    offsets = counts.cumsum(0) - counts
    edges = torch.tensor([len(found.shift) for found in lists])
    edge_offsets = edges.cumsum(0) - edges
    return AtomsBatch(
        numbers=torch.cat([structure.numbers for structure in structures]),
        positions=torch.cat([structure.positions for structure in structures]),
        batch=torch.repeat_interleave(torch.arange(len(structures)), counts),
        num_graphs=len(structures),
        edge_index=torch.cat(
            [found.edge_index + offset for found, offset in zip(lists, offsets, strict=True)], dim=1
        ),
        shift=torch.cat([found.shift for found in lists]),
        reverse=torch.cat(
            [found.reverse + offset for found, offset in zip(lists, edge_offsets, strict=True)]
        ),
    )


def composition(batch: AtomsBatch) -> Tensor:
    """Count the atoms of each element in each structure: (G, 119) float64."""
    counts = torch.zeros(batch.num_graphs, NUM_ELEMENTS, dtype=torch.float64)
    return counts.index_put_((batch.batch, batch.numbers), counts.new_ones(()), accumulate=True)


def energies_of_elements(counts: Tensor, energy: Tensor) -> Tensor:
    """Fit an energy per element to total energies by least squares.

    Args:
        counts: (G, 119) atoms of each element.
        energy: (G,) in eV.

    Returns:
        (119,) in eV, the solution of minimum norm: 0 for elements that do not occur.
    """
    inverse: Tensor = torch.linalg.pinv(counts, rtol=1e-10)
    return inverse @ energy
