"""Planetoid's citation graphs (Yang et al. 2016, arXiv:1603.08861), read from their raw pickle
files without executing code from them."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from scipy.sparse import csr_matrix
from torch import Tensor

from merging.config.base import Section
from merging.data.files import sha256
from merging.data.split import Split, random_split
from merging.data.task_data import AnswerTask
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph
from models.errors import DataError
from models.task import TaskInfo

PlanetoidName = Literal["cora", "citeseer"]
CLASS_NAMES: dict[PlanetoidName, tuple[str, ...]] = {
    "cora": tuple(f"class_{k}" for k in range(7)),
    "citeseer": tuple(f"class_{k}" for k in range(6)),
}
"""The raw files number the classes and do not name them."""
_PICKLED = ("allx", "tx", "ally", "ty", "y", "graph")
_PUBLISHED = {"cora": (2708, 1433), "citeseer": (3327, 3703)}
_SAFE: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("scipy.sparse.csr", "csr_matrix"): csr_matrix,
    ("collections", "defaultdict"): lambda *_: {},
    ("__builtin__", "list"): list,
}
"""The names that the published pickles use: arrays, sparse matrices and a table of lists. Any other
name, and so any code, is refused."""


@dataclass(frozen=True)
class NodeDataset:
    """One graph whose nodes have classes.

    Attributes:
        name: of the set.
        x: (N, F) float32.
        edge_index: (2, E) int64, both directions, without loops and repetitions.
        labels: (N,) int64, -1 for a node without a class.
        class_names: C names.
        split: node numbers of the published split: 20 nodes of each class to train on, 500 to
            validate, 1000 to test.
        sources: sha256 of the raw files, by name.
    """

    name: str
    x: Tensor
    edge_index: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    split: Split
    sources: dict[str, str] = field(default_factory=dict)

    def batch(self) -> GraphBatch:
        """Return the whole graph as a batch of one graph."""
        nodes, edges = len(self.x), self.edge_index.shape[1]
        return GraphBatch(
            self.x,
            self.edge_index,
            torch.empty((edges, 0), dtype=torch.int64),
            torch.zeros(nodes, dtype=torch.int64),
            1,
        )


def load_planetoid(name: PlanetoidName, data: Path) -> NodeDataset:
    """Read Cora or Citeseer from `<data>/planetoid/<name>/ind.<name>.*`.

    Citeseer's test index omits 15 nodes that have no features: they are kept, with features 0 and
    the class -1.

    Raises:
        DataError: a file is absent, a pickle holds more than arrays, or the graph does not have the
            published size.
    """
    files = planetoid_files(name, data)
    *pickled, index = files
    raw = {path.suffix[1:]: _unpickle(path) for path in pickled}
    test = torch.from_numpy(np.loadtxt(index, dtype=np.int64, ndmin=1))
    known, total = raw["allx"].shape[0], max(raw["graph"]) + 1
    x = torch.zeros(total, raw["allx"].shape[1])
    one_hot = torch.zeros(total, raw["ally"].shape[1])
    for target, first, rest in (
        (x, raw["allx"].toarray(), raw["tx"].toarray()),
        (one_hot, raw["ally"], raw["ty"]),
    ):
        target[:known] = torch.from_numpy(np.asarray(first, dtype=np.float32))
        target[test] = torch.from_numpy(np.asarray(rest, dtype=np.float32))
    if tuple(x.shape) != _PUBLISHED[name]:
        raise DataError(
            f"got {tuple(x.shape)} nodes and features in {index.parent}, expected"
            f" {_PUBLISHED[name]}"
        )
    labels = torch.where(one_hot.sum(1) > 0, one_hot.argmax(1), -1)
    train = len(raw["y"])
    split = Split(torch.arange(train), torch.arange(train, train + 500), test.sort().values)
    edges, names = _edges(raw["graph"], total), CLASS_NAMES[name]
    sources = {path.name: sha256(path) for path in files}
    return NodeDataset(name, x, edges, labels, names, split, sources)


def planetoid_files(name: PlanetoidName, data: Path) -> list[Path]:
    """List the raw files of a graph: pickles, and last the test index. Raises DataError: one is
    absent."""
    endings = (*_PICKLED, "test.index")
    paths = [data / "planetoid" / name / f"ind.{name}.{ending}" for ending in endings]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"got no file at {missing[0]}, expected a raw file of Planetoid")
    return paths


def _edges(neighbours: dict[int, list[int]], nodes: int) -> Tensor:
    """The edge index (2, E), sorted, with both directions of every edge once."""
    pairs = torch.tensor(
        [(i, j) for i, others in neighbours.items() for j in others if i != j], dtype=torch.int64
    )
    codes = torch.unique(
        torch.cat([pairs[:, 0] * nodes + pairs[:, 1], pairs[:, 1] * nodes + pairs[:, 0]])
    )
    return torch.stack([codes // nodes, codes % nodes])


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the class of a name in `_SAFE`. Raises UnpicklingError for any other name."""
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"names {module}.{name}")
        return _SAFE[module, name]


def _unpickle(path: Path) -> Any:
    with path.open("rb") as stream:
        try:
            return _Unpickler(stream, encoding="latin1").load()
        except (
            pickle.UnpicklingError,
            EOFError,
            AttributeError,
            IndexError,
            TypeError,
            ValueError,
        ) as error:
            raise DataError(f"got {path}, which is no raw file of Planetoid: {error}") from error


class PlanetoidSpec(Section):
    """Node classification on Cora or Citeseer.

    Attributes:
        graph: name of the graph.
        classes: numbers of the task's classes; only nodes of these are trained and measured on.
            None for all classes. Two tasks with different classes of one graph are a label split.
        split: `published` is Planetoid's (20 training nodes per class; of 500 validation and 1000
            test nodes those with one of the classes), `random` is 60 / 20 / 20 % of the nodes,
            drawn by the seed alone, so that a node is in the same subset in every task of its
            graph.
    """

    kind: Literal["planetoid"] = "planetoid"
    graph: PlanetoidName
    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    split: Literal["published", "random"] = "published"
    about: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = range(len(CLASS_NAMES[self.graph]))
        if self.classes is not None and (
            not set(self.classes) <= set(known)
            or len(set(self.classes)) != len(self.classes)
            or len(self.classes) < 2
        ):
            raise ValueError(
                f"classes: got {self.classes}, expected at least two different ones of 0 to"
                f" {known[-1]}"
            )
        return self


def class_task(spec: PlanetoidSpec, dataset: NodeDataset, seed: int) -> AnswerTask:
    """Make the task of classifying the nodes of some classes of a graph, or of all.

    Args:
        spec: graph, classes and split.
        dataset: the graph.
        seed: of a random split.
    """
    classes = torch.tensor(
        range(len(dataset.class_names)) if spec.classes is None else spec.classes
    )
    included = torch.isin(dataset.labels, classes)
    # The last entry is indexed by -1, the class of nodes without one.
    numbers = torch.full((len(dataset.class_names) + 1,), -1)
    numbers[classes] = torch.arange(len(classes))
    split = (
        dataset.split
        if spec.split == "published"
        else random_split(len(dataset.labels), seed, 0.6, 0.2)
    )
    subsets = Split(*(rows[included[rows]] for rows in vars(split).values()))
    about = spec.about or f"class of a node of {spec.graph}"
    info = TaskInfo(
        labels=tuple(dataset.class_names[k] for k in classes),
        description=about,
        level="node",
        target="multiclass",
    )
    graph = FeatureGraph(dataset.x, dataset.edge_index)
    return AnswerTask(
        (graph,),
        graph.num_features,
        None,
        info,
        numbers[dataset.labels],
        subsets,
        some_nodes=spec.classes is not None,
        sources=dataset.sources,
    )
