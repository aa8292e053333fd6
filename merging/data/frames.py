"""Frames of molecular dynamics with energies and forces: MD17 (molecules) and LiPS20 (solids), with
neighbour lists computed once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merging.config.base import Count, Section
from merging.data.files import sha256
from merging.data.split import Split, Subset
from merging.data.task_data import Step, summary_of
from models.data.atoms import Atoms, AtomsBatch, Neighbours, join, neighbours
from models.errors import DataError
from models.task import TaskInfo

SPLIT_SEED = 0
_MD17_FILES = ("train", "val", "test")
_LIPS20_NUMBERS = {"Li": 3, "P": 15, "S": 16}


@dataclass(frozen=True)
class Labels:
    """Energies (G,) float64 in eV and forces (N, 3) float32 in eV / Angstrom of G structures with N
    atoms together, as labels or as predictions."""

    energy: Tensor
    forces: Tensor

    def to(self, device: torch.device | str) -> "Labels":
        """Return the labels on another device."""
        return Labels(self.energy.to(device), self.forces.to(device))


@dataclass(frozen=True)
class FrameDataset:
    """One system's frames, all of the same n atoms.

    Attributes:
        task: its name.
        structures: F frames.
        lists: the neighbours within the cutoff, by frame.
        energy: (F,) float64, in eV.
        forces: (F, n, 3) float32, in eV / Angstrom.
        split: row numbers of the subsets.
        sources: sha256 of the files, by name.
        about: a line about the task.
    """

    task: str
    structures: tuple[Atoms, ...]
    lists: tuple[Neighbours, ...]
    energy: Tensor
    forces: Tensor
    split: Split
    sources: dict[str, str] = field(default_factory=dict)
    about: str = ""
    record: ClassVar[dict[str, Any]] = {}
    outputs: ClassVar[int] = 1

    @property
    def info(self) -> TaskInfo:
        """The task: the energy of a structure, and the forces on its atoms."""
        return TaskInfo(labels=("energy",), description=self.about, target="energy_and_forces")

    @property
    def size(self) -> int:
        """Number of atoms in all frames."""
        return self.forces.shape[0] * self.forces.shape[1]

    @property
    def summary(self) -> str:
        """A line that describes the task and the files that it was read from."""
        return summary_of(self.info, self.sources)

    def select(self, rows: Tensor) -> AtomsBatch:
        """Collate the frames at `rows` (G,), in that order, into one batch."""
        chosen = rows.tolist()
        return join([self.structures[row] for row in chosen], [self.lists[row] for row in chosen])

    def labels(self, rows: Tensor) -> Labels:
        """Return energies and forces of the frames at `rows` (G,), in that order."""
        return Labels(self.energy[rows], self.forces[rows].flatten(0, 1))

    def steps(self, subset: Subset, batch_size: int, shuffle: bool = False) -> list[Step]:
        """Return the steps of one pass over a subset, `batch_size` frames per step."""
        rows: Tensor = getattr(self.split, subset)
        rows = rows[torch.randperm(len(rows))] if shuffle else rows
        return [
            Step(partial(self.select, chosen), self.labels(chosen))
            for chosen in rows.split(batch_size)
        ]

    def calibration(
        self, count: int, batch_size: int, seed: int
    ) -> tuple[tuple[AtomsBatch, ...], tuple[Tensor, ...]]:
        """Return batches of the first `count` training frames for mergers, without labels."""
        groups = self.split.train[:count].split(batch_size)
        return tuple(self.select(rows) for rows in groups), ()

    def first(self, count: int) -> Self:
        """Return the task with its first `count` training frames only."""
        return replace(self, split=replace(self.split, train=self.split.train[:count]))

    def with_answers(self, answers: Mapping[Subset, Labels]) -> Self:
        """Return the task with a model's answers in place of the labels of the given subsets; all
        other frames have no label (NaN)."""
        energy, forces = (
            torch.full_like(values, torch.nan) for values in (self.energy, self.forces)
        )
        for subset, given in answers.items():
            rows: Tensor = getattr(self.split, subset)
            energy[rows] = given.energy
            forces[rows] = given.forces.unflatten(0, (len(rows), -1))
        return replace(self, energy=energy, forces=forces)


def _dataset(
    folder: Path,
    numbers: NDArray[Any],
    positions: NDArray[Any],
    cells: NDArray[Any] | None,
    energy: NDArray[Any],
    forces: NDArray[Any],
    split: Split,
    cutoff: float,
) -> FrameDataset:
    frames = len(positions)
    if (
        positions.shape != (frames, len(numbers), 3)
        or forces.shape != positions.shape
        or energy.shape != (frames,)
    ):
        shapes = f"{positions.shape}, {forces.shape} and {energy.shape} for {len(numbers)} atoms"
        raise DataError(
            f"got positions, forces and energies of shapes {shapes} in {folder}, expected (F, N,"
            " 3), (F, N, 3) and (F,)"
        )
    if not all(np.isfinite(array).all() for array in (positions, forces, energy)):
        raise DataError(f"got a number that is not finite in {folder}, expected finite ones")
    elements, coordinates = torch.from_numpy(numbers).long(), torch.from_numpy(positions).float()
    boxes = [None] * frames if cells is None else list(torch.from_numpy(cells).float())
    structures = tuple(
        Atoms(elements, xyz, box).validate() for xyz, box in zip(coordinates, boxes, strict=True)
    )
    lists = tuple(neighbours(atoms, cutoff) for atoms in structures)
    return FrameDataset(
        folder.name,
        structures,
        lists,
        torch.from_numpy(energy).double(),
        torch.from_numpy(forces).float(),
        split,
        {path.name: sha256(path) for path in sorted(folder.glob("*.*")) if path.is_file()},
    )


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    stored = _array(path)
    if missing := [name for name in names if name not in stored]:
        raise DataError(f"got {path} without {', '.join(missing)}, expected a file of MD17")
    return {name: stored[name] for name in names}


def _array(path: Path) -> Any:
    """An array or an archive of arrays; a pickle is refused."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"got no readable array at {path} ({error}), expected a file of numpy"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise DataError(f"got no file at {path}, expected the kinds of atoms") from error


def _check_frames(path: Path, found: int, needed: int) -> None:
    if found < needed:
        raise DataError(f"got {found} frames at {path}, expected at least {needed}")


class FramesConfig(Section):
    """Numbers of training, validation and test frames of every system. Where the data have no
    split, frames are drawn with `SPLIT_SEED`, never with the seed of a run."""

    train: Count
    valid: Count
    test: Count


def read_md17(folder: Path, frames: FramesConfig, cutoff: float) -> FrameDataset:
    """Read a molecule of MD17 (Chmiela et al. 2017) in the split of its folder: the first frames of
    `train.npz`, `val.npz` and `test.npz`.

    Args:
        folder: holds the three files.
        frames: how many frames of every file.
        cutoff: of the neighbour lists, in Angstrom.

    Raises:
        DataError: a file is absent, lacks an array or has too few frames, or the shapes differ.
    """
    counts = dict(zip(_MD17_FILES, (frames.train, frames.valid, frames.test), strict=True))
    arrays = {
        subset: _arrays(folder / f"{subset}.npz", ("pos", "energy", "forces", "atomic_numbers"))
        for subset in _MD17_FILES
    }
    for subset, count in counts.items():
        _check_frames(folder / f"{subset}.npz", len(arrays[subset]["pos"]), count)
    positions, energy, forces = (
        np.concatenate([arrays[subset][key][:count] for subset, count in counts.items()])
        for key in ("pos", "energy", "forces")
    )
    rows = torch.arange(len(positions)).split(list(counts.values()))
    return _dataset(
        folder,
        arrays["train"]["atomic_numbers"],
        positions,
        None,
        energy.reshape(-1),
        forces,
        Split(*rows),
        cutoff,
    )


def read_lips20(folder: Path, frames: FramesConfig, cutoff: float) -> FrameDataset:
    """Read a solid of LiPS20 (in DeePMD's raw format); frames are drawn at random, the same ones in
    every run.

    Args:
        folder: holds the arrays and the kinds of atoms.
        frames: how many frames of every subset.
        cutoff: of the neighbour lists, in Angstrom.

    Raises:
        DataError: a file is absent, has an unknown element or too few frames, or the shapes differ.
    """
    arrays = {name: _array(folder / f"{name}.npy") for name in ("coord", "energy", "force", "box")}
    kinds, names = ((_text(folder / name)).split() for name in ("type.raw", "type_map.raw"))
    if unknown := set(names) - _LIPS20_NUMBERS.keys():
        raise DataError(
            f"got elements {sorted(unknown)} in {folder / 'type_map.raw'}, expected"
            f" {', '.join(_LIPS20_NUMBERS)}"
        )
    numbers = np.array([_LIPS20_NUMBERS[names[int(kind)]] for kind in kinds])
    counts = [frames.train, frames.valid, frames.test]
    _check_frames(folder, len(arrays["energy"]), sum(counts))
    drawn = torch.randperm(
        len(arrays["energy"]), generator=torch.Generator().manual_seed(SPLIT_SEED)
    )[: sum(counts)].numpy()
    positions, forces = (
        arrays[name][drawn].reshape(len(drawn), -1, 3) for name in ("coord", "force")
    )
    split = Split(*torch.arange(len(drawn)).split(counts))
    return _dataset(
        folder,
        numbers,
        positions,
        arrays["box"][drawn].reshape(-1, 3, 3),
        arrays["energy"][drawn],
        forces,
        split,
        cutoff,
    )
