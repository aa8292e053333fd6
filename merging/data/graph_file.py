"""A user's own graphs and labels in one `.npz` file of numpy arrays, without pickles.

| array | shape | what |
|---|---|---|
| x | (sum N, F) | numbers of each node, all finite |
| edge_index | (2, sum E) | sources and targets, numbered from 0 within each graph; an undirected \
edge in both directions |
| node_counts, edge_counts | (G,) | how many nodes and edges each graph has |
| labels | (M, C) or (M,) | M = G for labels of graphs, sum N for labels of nodes: 0 / 1 / NaN, or \
numbers / NaN; or classes (M,), -1 where unknown |
| train, valid, test | (n,) | rows of `labels`; all three or none (then 80 / 10 / 10 % at random, \
by the seed) |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor
from torch.nn import functional as F

from merging.config.base import Section
from merging.data.files import read_arrays, sha256
from merging.data.molecule_dataset import MoleculeDataset
from merging.data.split import Split, random_split
from merging.data.task_data import AnswerTask
from models.data.feature_graph import FeatureGraph
from models.data.molecule import NUM_ATOM_TYPES
from models.errors import DataError, InvalidInputError
from models.files import write_atomically
from models.names import check_labels
from models.task import LabelTarget, TaskInfo, Unit, check_units


class FileSpec(Section):
    """A user's own graphs: an `.npz` file, see `merging.data.graph_file`.

    Attributes:
        file: path in the data folder, or absolute.
        level, target: of the labels (`models.task.TaskInfo`).
        labels: names of the labels or classes, in the order of the file's columns or classes.
        units: of a regression, the unit of each label.
    """

    kind: Literal["file"] = "file"
    file: str
    level: Literal["graph", "node"]
    target: LabelTarget
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    units: tuple[Unit, ...] = ()
    about: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_labels(self.labels)
        check_units(self.units, self.labels, self.target)
        return self

    @property
    def info(self) -> TaskInfo:
        """What the task answers."""
        return TaskInfo(
            labels=self.labels,
            description=self.about,
            level=self.level,
            target=self.target,
            units=self.units,
        )

    @model_serializer(mode="wrap")
    def _without_absent_units(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is trained without units keeps its fingerprint from before there were any."""
        values: dict[str, Any] = handler(self)
        if not self.units:
            values.pop("units", None)
        return values


_NEEDED = ("x", "edge_index", "node_counts", "edge_counts", "labels")
_SUBSETS = ("train", "valid", "test")


@dataclass(frozen=True)
class GraphFile:
    """The content of a graph file.

    Attributes:
        graphs: G graphs.
        labels: (M, C) float32, or (M,) int64 classes.
        split: the file's split; None if it has none.
    """

    graphs: tuple[FeatureGraph, ...]
    labels: Tensor
    split: Split | None


def read_graphs(path: Path) -> GraphFile:
    """Read graphs, labels and split from an `.npz` file, and check them.

    Raises:
        DataError: the file is absent, is no `.npz`, holds Python objects, lacks an array, or its
            arrays do not fit each other.
    """
    arrays = read_arrays(path)
    if missing := [name for name in _NEEDED if name not in arrays]:
        raise DataError(f"{path}: got arrays {sorted(arrays)}, expected also {missing}")
    try:
        graphs = _graphs(arrays)
        labels = _labels(arrays["labels"])
        split = _split(arrays, len(labels))
    except InvalidInputError as error:
        raise DataError(f"{path}: {error}") from error
    return GraphFile(graphs, labels, split)


def write_graphs(
    path: Path, graphs: Sequence[FeatureGraph], labels: Tensor, split: Split | None = None
) -> None:
    """Write a file that `read_graphs` reads; labels are (M, C) float, or (M,) int64 classes."""
    arrays = {
        "x": torch.cat([graph.x for graph in graphs]),
        "edge_index": torch.cat([graph.edge_index for graph in graphs], dim=1),
        "node_counts": torch.tensor([graph.num_nodes for graph in graphs]),
        "edge_counts": torch.tensor([graph.edge_index.shape[1] for graph in graphs]),
        "labels": labels,
        **(vars(split) if split else {}),
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **{name: value.numpy() for name, value in arrays.items()})

    write_atomically(path, write)


def write_molecules(dataset: MoleculeDataset, path: Path) -> None:
    """Write a set of molecules as a graph file, with its scaffold split.

    A node is an atom, its features are the one-hot atom type (`models.data.molecule`: 118 elements,
    one unused, one for unknown atoms); bonds have no features.
    """
    packed = dataset.graphs
    atom_types = (
        F.one_hot(packed.x[:, 0].long(), NUM_ATOM_TYPES).float().split(packed.node_counts.tolist())
    )
    bonds = packed.edge_index.long().split(packed.edge_counts.tolist(), dim=1)
    write_graphs(
        path,
        [FeatureGraph(x, edges) for x, edges in zip(atom_types, bonds, strict=True)],
        dataset.labels,
        dataset.split,
    )


def _graphs(arrays: dict[str, NDArray[Any]]) -> tuple[FeatureGraph, ...]:
    x = _tensor(arrays, "x", torch.float32, 2)
    edge_index = _tensor(arrays, "edge_index", torch.int64, 2)
    nodes, edges = (
        _tensor(arrays, name, torch.int64, 1) for name in ("node_counts", "edge_counts")
    )
    if not len(nodes) or len(nodes) != len(edges) or int(nodes.min()) < 1 or int(edges.min()) < 0:
        raise InvalidInputError(
            "node_counts and edge_counts: expected as many of both, at least one, and no graph"
            " without nodes"
        )
    if edge_index.shape[0] != 2 or (int(nodes.sum()), int(edges.sum())) != (
        len(x),
        edge_index.shape[1],
    ):
        got = f"counts of {int(nodes.sum())} nodes and {int(edges.sum())} edges"
        raise InvalidInputError(
            f"got {got} with x {tuple(x.shape)} and edge_index {tuple(edge_index.shape)}, expected"
            " so many rows and columns"
        )
    graphs = zip(x.split(nodes.tolist()), edge_index.split(edges.tolist(), dim=1), strict=True)
    return tuple(_validated(k, FeatureGraph(*graph)) for k, graph in enumerate(graphs))


def _validated(k: int, graph: FeatureGraph) -> FeatureGraph:
    try:
        return graph.validate()
    except InvalidInputError as error:
        raise InvalidInputError(f"graph {k}: {error}") from error


def _tensor(arrays: dict[str, NDArray[Any]], name: str, dtype: torch.dtype, dim: int) -> Tensor:
    array = arrays[name]
    allowed = "fiub" if dtype.is_floating_point else "iu"
    if array.ndim != dim or array.dtype.kind not in allowed:
        raise InvalidInputError(
            f"{name}: got {array.dtype} of {array.ndim} dimensions, expected"
            f" {'numbers' if 'f' in allowed else 'integers'} of {dim}"
        )
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def _labels(array: NDArray[Any]) -> Tensor:
    if array.ndim == 1 and array.dtype.kind in "iu":
        return torch.from_numpy(array).long()
    if array.ndim in (1, 2) and array.dtype.kind in "fiub":
        return torch.from_numpy(array.reshape(len(array), -1)).float()
    raise InvalidInputError(
        f"labels: got {array.dtype} of {array.ndim} dimensions, expected integers (M,) or numbers"
        " (M, C)"
    )


def _split(arrays: dict[str, NDArray[Any]], rows: int) -> Split | None:
    found = [name for name in _SUBSETS if name in arrays]
    if not found:
        return None
    if len(found) != len(_SUBSETS):
        raise InvalidInputError(f"got only {found}, expected all of {list(_SUBSETS)} or none")
    split = Split(*(_tensor(arrays, name, torch.int64, 1) for name in _SUBSETS))
    together = torch.cat([split.train, split.valid, split.test])
    outside = bool(((together < 0) | (together >= rows)).any())
    if (
        outside
        or len(together.unique()) != len(together)
        or not all(len(subset) for subset in vars(split).values())
    ):
        raise InvalidInputError(
            f"train, valid, test: expected rows of 0 to {rows - 1}, none of them twice, and at"
            " least one in each part"
        )
    return split


def file_task(spec: FileSpec, data: Path, seed: int) -> AnswerTask:
    """Make the task of a graph file in the data folder; without a split in the file it is 80 / 10 /
    10 % at random, by the seed.

    Raises:
        DataError: the file cannot be read, or its labels do not fit the level, the target or the
            names.
    """
    stored = read_graphs(data / spec.file)
    rows = (
        len(stored.graphs)
        if spec.level == "graph"
        else sum(graph.num_nodes for graph in stored.graphs)
    )
    if len(stored.labels) != rows:
        raise DataError(
            f"{spec.file}: got {len(stored.labels)} rows of labels, expected one for each"
            f" {spec.level}, {rows}"
        )
    problem = _misfit(stored.labels, spec)
    if problem:
        raise DataError(f"{spec.file}: labels: {problem}")
    split = stored.split or random_split(rows, seed, 0.8, 0.1)
    width, sources = stored.graphs[0].num_features, {Path(spec.file).name: sha256(data / spec.file)}
    return AnswerTask(stored.graphs, width, None, spec.info, stored.labels, split, sources=sources)


def _misfit(labels: Tensor, spec: FileSpec) -> str:
    """The reason why labels do not fit the target or the names; empty if they do."""
    count = len(spec.labels)
    if spec.target == "multiclass":
        if labels.dim() != 1 or not -1 <= int(labels.min()) <= int(labels.max()) < count:
            return (
                f"got {labels.dtype} {tuple(labels.shape)}, expected classes (M,) of 0 to"
                f" {count - 1}, or -1, by the names {list(spec.labels)}"
            )
        return ""
    if labels.dim() != 2 or labels.shape[1] != count:
        return (
            f"got {labels.dtype} {tuple(labels.shape)}, expected numbers (M, {count}), by the names"
            f" {list(spec.labels)}"
        )
    known = labels[~labels.isnan()]
    if spec.target == "multilabel" and not bool(((known == 0) | (known == 1)).all()):
        return "got a number other than 0 and 1, expected only these, or NaN where unknown"
    return (
        ""
        if bool(known.isfinite().all())
        else "got an infinite number, expected finite ones, or NaN where unknown"
    )
