"""The interface of a family of models.

A family is a stateless object that builds the networks of some kinds, reads their inputs and
computes their predictions. Artifacts and the service use models only through this interface; they
never branch on the kind of model. `models.families.table` lists all families.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from models.data.located import LocatedMolecule
from models.data.schema import InputSchema
from models.experts.node_sums import NodeSum
from models.experts.router import RouterConfig
from models.experts.unified import Routing
from models.families.inputs import Batch, Graph, GraphFields, SizeLimits, TextReader
from models.networks.base import NetworkShape
from models.task import OutputKind, Target, TaskInfo, answers


class ServedModel(Protocol):
    """A merged model as the service runs it."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the K tasks, in the order of the experts in routing weights."""
        ...

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites where experts can be mixed; empty if the model has no such sites."""
        ...


@dataclass(frozen=True)
class TaskOutput:
    """Output of a model for one task and a batch of G graphs with N nodes in total.

    Attributes:
        logits: output of the head, (G, C), or (N, C) for a task at level "node", (P, 1) at level
            "pair". A force field has the energies here, (G, 1) float64 in eV.
        target: what the logits are.
        routing_weights: (G, sites, K); for each graph and site the K weights sum to 1.
        forces: (N, 3) in eV / Angstrom, from a force field; None from other models.
    """

    logits: Tensor
    target: OutputKind
    routing_weights: Tensor
    forces: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """Predictions in the shape of `logits`: probabilities for classification, numbers in the
        unit of the label for regression and force fields."""
        return answers(self.logits, self.target)

    @property
    def is_finite(self) -> bool:
        """True if all logits and forces are finite. Probabilities cannot be checked instead: the
        sigmoid of an infinite logit is 1."""
        numbers = [self.logits] if self.forces is None else [self.logits, self.forces]
        return all(bool(values.isfinite().all()) for values in numbers)


class StreamModules(Protocol):
    """Builds and checks the modules of tasks that share a stream (`models.experts.adapter.Stream`).

    Parameters typed `Any` are as in `ModelFamily`.
    """

    def stream(self, shape: Any, rank: int, name: str) -> nn.Module:
        """Build a stream with node adapters of a rank, 0 for none; its weights are loaded
        afterwards."""
        ...

    def expert(self, stream: Any, graph_rank: int, info: TaskInfo) -> nn.Module:
        """Build the task-specific module of a task that reads from a stream; its weights are loaded
        afterwards."""
        ...

    def check_stream(self, stream: Any, shape: Any, schema: Any, tasks: Sequence[str]) -> None:
        """Check the loaded weights of a stream and the inputs of the tasks that read from it.

        Raises:
            ArtifactError: the weights are unusable, or the tasks take other inputs than the
                network.
        """
        ...

    def collect(self, experts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the streams that experts share, by name. Raises InvalidInputError if two have one
        name."""
        ...


class NodeSums(Protocol):
    """Writes outputs of a model as sums over nodes. Parameters typed `Any` are as in
    `ModelFamily`."""

    def split(
        self, model: Any, batch: Any, labels: Mapping[str, Sequence[int]], routing: Routing
    ) -> dict[str, NodeSum]:
        """Split outputs into contributions of the nodes.

        Args:
            model: from `ModelFamily.model`.
            batch: from `ModelFamily.collate`, on the model's device.
            labels: by task at level "graph", positions of labels.
            routing: how experts are mixed.

        Returns:
            By task, the sums of these labels.
        """
        ...

    @property
    def locate(self) -> "Locator | None":
        """Reads the canonical SMILES of an answer with its atoms in order; None if inputs are
        graphs only."""
        ...


class Locator(Protocol):
    """See `models.data.located.locate`."""

    def __call__(self, smiles: str, *, fingerprint: bool = False) -> LocatedMolecule:
        """Read a molecule."""
        ...


class ModelFamily(Protocol):
    """Builds, loads and runs the models of some kinds, and reads their inputs.

    Parameters typed `Any` have family-specific types: instances of the classes `shape` and
    `schema`, or return values of the family's other methods.
    """

    @property
    def kinds(self) -> tuple[str, ...]:
        """Values of the manifest's `backbone.kind` that select this family."""
        ...

    @property
    def shape(self) -> type[NetworkShape]:
        """Class of the manifest's `backbone`: kind and sizes of the network."""
        ...

    @property
    def schema(self) -> type[InputSchema]:
        """Class of the manifest's `input`: which inputs the tasks accept."""
        ...

    @property
    def targets(self) -> tuple[Target, ...]:
        """Prediction targets that the family supports."""
        ...

    @property
    def streams(self) -> "StreamModules | None":
        """Builds streams that tasks share; None if tasks of the family cannot share one."""
        ...

    @property
    def node_sums(self) -> "NodeSums | None":
        """Writes outputs of tasks at level "graph" as sums over nodes; None where they are no such
        sums."""
        ...

    @property
    def fields(self) -> GraphFields:
        """Names of the fields of a graph in a request, required and optional."""
        ...

    @property
    def read_texts(self) -> TextReader | None:
        """Function that reads SMILES and other text formats; None if inputs are graphs only."""
        ...

    @property
    def inputs_overflow(self) -> bool:
        """True if a valid input can hold numbers so large that the prediction is not finite. False
        if inputs are indices into embedding tables."""
        ...

    # --- building a model ---

    def network(self, shape: Any) -> nn.Module:
        """Build the merged network; its weights are loaded afterwards.

        Raises:
            RuntimeError, MemoryError: the sizes in `shape` are too large.
        """
        ...

    def expert(self, shape: Any, rank: int, info: TaskInfo, schema: Any, task: str) -> nn.Module:
        """Build the task-specific module (adapters, head, ...); its weights are loaded afterwards.

        Args:
            shape: of the network.
            rank: of the adapters.
            info: labels, level and target of the task.
            schema: inputs of all tasks.
            task: name of the task.
        """
        ...

    def check_expert(self, expert: Any, schema: Any, task: str) -> None:
        """Check the loaded weights of a task's expert, whether it shares its stream or not.

        Raises:
            ArtifactError: the weights are unusable, or contradict the schema.
        """
        ...

    def model(self, network: Any, experts: Mapping[str, Any], router: RouterConfig) -> Any:
        """Assemble the merged model, an `nn.Module`, from the network and the experts by task."""
        ...

    def served(self, model: Any) -> ServedModel:
        """Return the fastest implementation of a merged model for its device. Predictions agree
        with those of `model`."""
        ...

    def answer(
        self, model: Any, batch: Any, tasks: Sequence[str], routing: Routing
    ) -> dict[str, TaskOutput]:
        """Predict tasks for a batch.

        Args:
            model: from `model` or `served`.
            batch: from `collate`, on the model's device.
            tasks: names of the requested tasks.
            routing: how experts are mixed.

        Returns:
            Outputs by task, in the order of `tasks`.

        Raises:
            UnknownTaskError: the model does not have a task.
            InvalidInputError: the model does not support the routing, or the batch does not fit a
                task.
        """
        ...

    # --- reading inputs ---

    def check(self, fields: Mapping[str, Any], limits: SizeLimits) -> None:
        """Check the names and lengths of a graph's fields, before its values are read.

        Raises:
            InvalidInputError: a field is missing or unknown, see `fields`.
            MoleculeError: the graph is larger than the limits.
        """
        ...

    def read(self, fields: Mapping[str, Any], shape: Any, schema: Any, limits: SizeLimits) -> Graph:
        """Convert a graph from plain lists to tensors, after `check`.

        Args:
            fields: values by field name, as a request gives them.
            shape: of the network.
            schema: inputs of the requested tasks; the graph must fit all of them.
            limits: on the size of the graph.

        Raises:
            InvalidInputError: a value is invalid, or the graph does not fit a task.
            MoleculeError: the graph has more edges than the limits allow.
        """
        ...

    def collate(self, graphs: Sequence[Any]) -> Batch:
        """Join graphs into one batch, in their order. Raises InvalidInputError without graphs."""
        ...

    def smallest(self, shape: Any, schema: Any, task: str) -> Graph:
        """Return a small valid input of a task, for warm-up and trial passes; it has edges where
        the task allows, so that all layers take part."""
        ...

    # --- scheduling and statistics ---

    def cost(self, graph: Any) -> int:
        """Return the cost of one stream for a graph, by which the service forms batches.
        One atom of a molecule costs 1, about 6 us on a CPU."""
        ...

    def estimate(self, fields: Mapping[str, Any], limits: SizeLimits) -> int:
        """Estimate `cost` from the lengths of a graph's fields, before `check` and `read`.

        Returns:
            At least 1, also for invalid fields; at most the cost of a graph at the limits.
        """
        ...

    def atom_types(self, graph: Any) -> Tensor | None:
        """Return the atom types (atomic number - 1) of a molecule, (N,), for the service's drift
        statistics; None if the inputs are not molecules."""
        ...
