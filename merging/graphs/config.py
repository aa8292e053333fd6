"""The configuration of a run on graphs with any numeric node features: one YAML file, unknown keys are errors."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from merging.config import Count, MergeConfig, Rate, ReleaseConfig, Weight, read_config
from merging.graphs.datasets import CLASS_NAMES, PlanetoidName
from models.graph_network import GraphNetworkConfig
from models.names import Name, check_distinct, check_labels

GRAPHS_CONFIG_FOLDER = Path(__file__).parents[1] / "configs" / "graphs"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlanetoidSpec(_Section):
    """Classes of the nodes of Cora or Citeseer.

    Attributes:
        graph: which.
        classes: numbers of the classes that the task knows; only their nodes are trained and measured on. None: all of them. Two tasks with different
            classes of one graph are a label split.
        split: `published` is Planetoid's (20 nodes of each class to train on, of 500 to validate and 1000 to test those with one of the classes),
            `random` is 60 / 20 / 20 % of the nodes, drawn by the seed alone: a node is in the same part in every task of its graph.
    """

    kind: Literal["planetoid"] = "planetoid"
    graph: PlanetoidName
    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    split: Literal["published", "random"] = "published"
    about: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = range(len(CLASS_NAMES[self.graph]))
        if self.classes is not None and (not set(self.classes) <= set(known) or len(set(self.classes)) != len(self.classes) or len(self.classes) < 2):
            raise ValueError(f"classes: got {self.classes}, expected at least two different ones of 0 to {known[-1]}")
        return self


class FileSpec(_Section):
    """A user's own graphs: an `.npz` file, see `merging.graphs.npz`.

    Attributes:
        file: path in the data folder, or absolute.
        level, target: what is answered (`models.task.TaskInfo`).
        labels: names of the answers, in the order of the file's columns or classes.
    """

    kind: Literal["file"] = "file"
    file: str
    level: Literal["graph", "node"]
    target: Literal["multilabel", "multiclass", "regression"]
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    about: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_labels(self.labels)
        return self


class LinkSpec(_Section):
    """Which nodes of Cora or Citeseer are linked. It can be trained, merged and measured, but no artifact answers it.

    Attributes:
        graph: which.
        dim: width of the linear head; a pair's score is the dot product of its two outputs (Kipf and Welling 2016, arXiv:1611.07308).
    """

    kind: Literal["link"] = "link"
    graph: PlanetoidName
    dim: Count = 64
    about: str = ""


TaskSpec = Annotated[PlanetoidSpec | FileSpec | LinkSpec, Field(discriminator="kind")]


class GraphTrainingConfig(_Section):
    """Supervised training of a network and its head (the defaults are those of Kipf and Welling 2017, arXiv:1609.02907, but for the patience).

    Attributes:
        epochs: at most so many.
        patience: training ends after so many epochs without a better validation score; the best epoch is kept.
        batch_size: graphs in a batch; a single large graph is one batch.
    """

    epochs: Count = 200
    patience: Count = 30
    batch_size: Count = 32
    learning_rate: Rate = 0.01
    weight_decay: Weight = 5e-4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


class GraphRunConfig(_Section):
    """Tasks on graphs, one network for all of them.

    Attributes:
        network: its shape; `in_dim` is the width that the tasks' features have, or are brought to.
        encoder: `none`: all tasks have features of that width. `svd`: a task with others gets a fixed linear encoder (`merging.graphs.encoder`).
        tasks: by name.
        initialisation: whether all tasks start from the same random weights, or each from its own.
    """

    setting: Name
    description: str = ""
    network: GraphNetworkConfig
    encoder: Literal["none", "svd"] = "none"
    tasks: Annotated[dict[Name, TaskSpec], Field(min_length=1)]
    initialisation: Literal["shared", "different"] = "shared"
    training: GraphTrainingConfig = GraphTrainingConfig()
    merge: MergeConfig = MergeConfig(method="weight_average")
    release: ReleaseConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_distinct(self.tasks)
        return self


def load_graph_config(path: Path) -> GraphRunConfig:
    """Read a YAML file, or one that comes with the package, by name. Raises ConfigError (see `merging.config.read_config`)."""
    return read_config(path, GraphRunConfig, GRAPHS_CONFIG_FOLDER)
