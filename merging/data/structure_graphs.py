"""Graphs without features: the nodes of one large graph by their ego graphs, and collections of
small graphs. Their features come from their structure (`models.data.structural`).

Files are plain text or gzip.

| format | content |
|---|---|
| edge list | a line per edge: two names of nodes, separated by spaces |
| node labels | a line per node: its name, and a whole number |
| collection, text (Xu et al. 2019, arXiv:1810.00826) | number of graphs; per graph a line `nodes \
label`, and per node a line `tag degree neighbours`, numbered from 0; tags are not read |
| collection, JSON | by name of a graph the list of its edges, pairs of nodes numbered from 0 |
| classes of a JSON collection | a table `id,target` with a header |
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from merging.config.base import Count, Section
from merging.data.files import sha256
from merging.data.split import Split
from merging.data.task_data import AnswerTask
from models.data.feature_graph import FeatureGraph
from models.data.structural import STRUCTURAL_FEATURES, EgoGraphs, Walk, whole_graph
from models.data.tables import DAMAGED_GZIP, open_stream
from models.errors import DataError
from models.names import check_labels
from models.task import TaskInfo

FOLDS = 10
"""Folds of the stratified split, as in GCC (Qiu et al. 2020, arXiv:2006.09963)."""


class StructureSpec(Section):
    """A task on graphs that have no features.

    Attributes:
        labels: names of the classes, in ascending order of the numbers in the file.
        most: maximum number of graphs, drawn once and for all; None uses all.
        about: a line about the task.
    """

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    most: Count | None = None
    about: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_labels(self.labels)
        return self

    @property
    def info(self) -> TaskInfo:
        """What the task answers."""
        labels, about = self.labels, self.about
        return TaskInfo(labels=labels, description=about, level="graph", target="multiclass")


class EgoSpec(StructureSpec):
    """Classification of the nodes of a large graph by their ego graphs.

    Attributes:
        folder: folder in the data folder with `edgelist.txt.gz` and `nodelabel.txt.gz`.
        hops, restart: of the random walk (`models.data.structural.Walk`).
        above_median: whether the classes are "at most the median of the numbers in the file" and
            "above it", in place of the numbers.
    """

    kind: Literal["ego"] = "ego"
    folder: str
    hops: Count = 256
    restart: Annotated[float, Field(ge=0, le=1)] = 0.8
    above_median: bool = False


class CollectionSpec(StructureSpec):
    """Classification of the graphs of a collection.

    Attributes:
        file: text or JSON in the data folder.
        classes: of a JSON file, the table of its classes in the data folder.
    """

    kind: Literal["collection"] = "collection"
    file: str
    classes: str | None = None


@dataclass(frozen=True)
class Structures:
    """What the files of a task hold.

    Attributes:
        graphs: edge index (2, E) in both directions, and number of nodes, of every graph.
        numbers: (M,), by node of the one graph or by graph.
        sources: SHA-256 of the files, by name.
    """

    graphs: tuple[tuple[Tensor, int], ...]
    numbers: NDArray[np.int64]
    sources: dict[str, str]


@dataclass(frozen=True)
class LabelledGraphs:
    """The graphs of a task, with structural features, and their classes (M,), 0 to C - 1."""

    graphs: tuple[FeatureGraph, ...]
    classes: Tensor
    sources: dict[str, str]


def structure_task(spec: EgoSpec | CollectionSpec, data: Path, seed: int) -> AnswerTask:
    """Make the task of a large graph's nodes or of a collection's graphs.

    The graphs are split into ten stratified folds, the same for every seed (scikit-learn's
    StratifiedKFold, shuffled by seed 0): fold `seed` modulo 10 is the test subset, the next one the
    validation subset.

    Args:
        spec: description of the task.
        data: the data folder.
        seed: chooses the folds.

    Raises:
        DataError: a file is missing or cannot be read, its numbers are not as many as the classes'
            names, or a class has fewer than ten graphs.
    """
    found = labelled_graphs(spec, data)
    info, split = spec.info, fold_split(found.classes, seed)
    width, files = STRUCTURAL_FEATURES, found.sources
    return AnswerTask(found.graphs, width, None, info, found.classes, split, sources=files)


def fold_split(classes: Tensor, seed: int) -> Split:
    """Split rows by stratified folds (`structure_task`): (M,) classes to ascending rows.

    Raises:
        DataError: a class has fewer than ten rows.
    """
    if int(classes.bincount().min()) < FOLDS:
        got = f"got {classes.bincount().tolist()} graphs of the classes"
        raise DataError(f"{got}, expected at least {FOLDS} of each")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    rows = [torch.from_numpy(fold) for _, fold in folds.split(classes, classes)]
    test, valid = seed % FOLDS, (seed + 1) % FOLDS
    train = torch.cat([fold for k, fold in enumerate(rows) if k not in (test, valid)])
    return Split(train.sort().values, rows[valid], rows[test])


@lru_cache(maxsize=32)  # runs of several seeds share what takes seconds to compute
def labelled_graphs(spec: EgoSpec | CollectionSpec, data: Path) -> LabelledGraphs:
    """Read graphs and classes, and compute structural features. Raises DataError: see
    `structure_task`."""
    found = read_structures(spec, data)
    classes, chosen = _classes(spec, found.numbers), _chosen(len(found.numbers), spec.most)
    if spec.kind == "ego":
        egos = EgoGraphs(*found.graphs[0], Walk(spec.hops, spec.restart))
        graphs = tuple(egos[node] for node in chosen)
    else:
        graphs = tuple(whole_graph(*found.graphs[k]) for k in chosen)
    return LabelledGraphs(graphs, torch.from_numpy(classes[chosen]), found.sources)


def read_structures(spec: EgoSpec | CollectionSpec, data: Path) -> Structures:
    """Read the files of a task.

    An edge is undirected; loops and repetitions are dropped. Raises DataError: a file is missing or
    cannot be read, or its content does not fit together.
    """
    if spec.kind == "ego":
        return _read_nodes(data / spec.folder)
    if spec.classes is None:
        return _read_text(data / spec.file)
    return _read_json(data / spec.file, data / spec.classes)


def _classes(spec: EgoSpec | CollectionSpec, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    if spec.kind == "ego" and spec.above_median:
        numbers = (numbers > np.median(numbers)).astype(np.int64)
    present, classes = np.unique(numbers, return_inverse=True)
    if len(present) != len(spec.labels):
        got = f"{spec.about or spec.kind}: got the numbers {present[:9].tolist()}"
        raise DataError(f"{got}, expected one for each of the labels {list(spec.labels)}")
    return classes.astype(np.int64)


def _chosen(count: int, most: int | None) -> list[int]:
    """Draw at most `most` of `count` numbers, always the same, in ascending order."""
    drawn: list[int] = np.random.default_rng(0).permutation(count)[:most].tolist()
    return sorted(drawn)


def _read_nodes(folder: Path) -> Structures:
    """A large graph with a number per node; nodes are numbered in the order of their labels."""
    files = folder / "edgelist.txt.gz", folder / "nodelabel.txt.gz"
    edges, labels = (list(_rows(path)) for path in files)
    number_of = {name: k for k, (name, _) in enumerate(labels)}
    try:
        pairs = [(number_of[source], number_of[target]) for source, target in edges]
        numbers = np.array([int(label) for _, label in labels])
    except (KeyError, ValueError) as error:
        got = f"{folder}: got {error} in an edge or a label"
        raise DataError(f"{got}, expected two labelled nodes, or a whole number") from error
    return Structures(((_both_ways(pairs), len(numbers)),), numbers, _sources(files))


def _read_text(path: Path) -> Structures:
    """A collection in the format of Xu et al. 2019."""
    lines = iter(_lines(path))
    try:
        graphs, numbers = [], []
        for _ in range(int(next(lines))):
            nodes, label = map(int, next(lines).split())
            rows = [[int(value) for value in next(lines).split()[2:]] for _ in range(nodes)]
            graphs.append((_both_ways([(k, j) for k, row in enumerate(rows) for j in row]), nodes))
            numbers.append(label)
    except (ValueError, StopIteration) as error:
        raise DataError(f"{path}: got {error!r}, expected the text format of Xu et al.") from error
    return Structures(tuple(graphs), np.array(numbers), _sources((path,)))


def _read_json(path: Path, classes: Path) -> Structures:
    """A collection as JSON, with a table of classes."""
    try:
        by_name = json.loads("\n".join(_lines(path)))
        table = dict(line.split(",") for line in _lines(classes)[1:])
        graphs = [(_both_ways(edges), 1 + max(map(max, edges))) for edges in by_name.values()]
        numbers = np.array([int(table[name]) for name in by_name])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        got = f"{path}, {classes.name}: got {error!r}"
        raise DataError(f"{got}, expected lists of edges by name, and a class of each") from error
    return Structures(tuple(graphs), numbers, _sources((path, classes)))


def _both_ways(pairs: Sequence[Sequence[int]]) -> Tensor:
    """The edge index (2, E) of undirected edges, sorted, without loops and repetitions."""
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    edges = edges[:, edges[0] != edges[1]]
    found: Tensor = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    return found


def _rows(path: Path) -> Iterator[list[str]]:
    for number, line in enumerate(_lines(path), 1):
        if len(cells := line.split()) != 2:
            raise DataError(f"{path}: line {number}: got {line[:40]!r}, expected two values")
        yield cells


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"got no file at {path}, expected graphs or their labels")
    try:
        with open_stream(path) as stream:
            return stream.read().decode().splitlines()
    except (*DAMAGED_GZIP, UnicodeDecodeError) as error:
        raise DataError(f"{path}: got {error}, expected a text, plain or gzip") from error


def _sources(paths: Sequence[Path]) -> dict[str, str]:
    return {f"{path.parent.name}/{path.name}": sha256(path) for path in paths}
