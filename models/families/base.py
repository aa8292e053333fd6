"""The interface of a family of models.

A family is an object without state that builds the networks of one kind, reads their inputs and
computes their answers. Artifacts and the service work through this interface and never ask of what
kind a model is. `models.families.table` lists all families.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from models.data.schema import InputSchema
from models.experts.router import RouterConfig
from models.experts.unified import Routing
from models.families.inputs import Batch, Graph, GraphFields, SizeLimits, TextReader
from models.networks.base import NetworkShape
from models.task import Target, TaskInfo, answers


class ServedModel(Protocol):
    """A merged model that answers requests."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the experts."""
        ...

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites where experts may be mixed; () for a model that mixes nothing."""
        ...


@dataclass(frozen=True)
class TaskOutput:
    """One task's answers for a batch of G graphs with N nodes in total.

    Attributes:
        logits: output of the head, (G, C), or (N, C) for a task at level "node". Of a force field
            the energies, (G, 1) float64 in eV.
        target: what the numbers are.
        routing_weights: (G, sites, K); the K weights of a graph and site sum to 1.
        forces: of a force field, (N, 3) in eV / Angstrom; otherwise None.
    """

    logits: Tensor
    target: Target
    routing_weights: Tensor
    forces: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """Probabilities, or for regressions and force fields the predicted values; of the shape of
        `logits`."""
        return answers(self.logits, self.target)

    @property
    def is_finite(self) -> bool:
        """Whether all logits and forces are finite. Probabilities would not tell: the sigmoid of an
        infinite logit is 1."""
        numbers = [self.logits] if self.forces is None else [self.logits, self.forces]
        return all(bool(values.isfinite().all()) for values in numbers)


class ModelFamily(Protocol):
    """One kind of model.

    Parameters of type `Any` are of the family's own types: an instance of `shape` or `schema`, or
    what the family's `network`, `expert`, `model`, `served`, `read` or `collate` returned.
    """

    @property
    def kinds(self) -> tuple[str, ...]:
        """Values of the manifest's `backbone.kind` that belong to this family."""
        ...

    @property
    def shape(self) -> type[NetworkShape]:
        """Type of the manifest's `backbone`."""
        ...

    @property
    def schema(self) -> type[InputSchema]:
        """Type of the manifest's `input`."""
        ...

    @property
    def targets(self) -> tuple[Target, ...]:
        """Targets that its experts can predict."""
        ...

    @property
    def fields(self) -> GraphFields:
        """The fields of a request's graph."""
        ...

    @property
    def read_texts(self) -> TextReader | None:
        """Reader of molecules as text; None if the inputs cannot be written as text."""
        ...

    @property
    def inputs_overflow(self) -> bool:
        """Whether a valid input can have numbers so large that the answer is not finite. False if
        inputs are looked up in embedding tables."""
        ...

    # --- what an artifact is made of ---

    def network(self, shape: Any) -> nn.Module:
        """Build a network; its weights are loaded afterwards. Raises RuntimeError or MemoryError:
        the sizes are too large."""
        ...

    def expert(self, shape: Any, rank: int, info: TaskInfo, schema: Any, task: str) -> nn.Module:
        """Build the module of one task (adapters, head, ...); its weights are loaded afterwards."""
        ...

    def check_expert(self, expert: Any, schema: Any, task: str) -> None:
        """Check the loaded weights of a task. Raises ArtifactError: they are unusable, or do not
        agree with the schema."""
        ...

    def model(self, network: Any, experts: Mapping[str, Any], router: RouterConfig) -> Any:
        """Build the merged model, an `nn.Module`, from a network and its experts by task."""
        ...

    def served(self, model: Any) -> ServedModel:
        """The fastest implementation of a merged model on its device; it gives the same answers."""
        ...

    def answer(
        self, model: Any, batch: Any, tasks: Sequence[str], routing: Routing
    ) -> dict[str, TaskOutput]:
        """Predict tasks for a batch.

        Args:
            model: from `model` or `served`.
            batch: from `collate`, on the model's device.
            tasks: names, in the order of the answers.
            routing: how experts are mixed.

        Raises:
            UnknownTaskError: the model has no such task.
            InvalidInputError: the model has no such routing, or a task cannot take the batch.
        """
        ...

    # --- what it takes ---

    def check(self, fields: Mapping[str, Any], limits: SizeLimits) -> None:
        """Check names and lengths of a graph's fields, which takes no time.

        Raises:
            InvalidInputError: not the fields of `fields`.
            MoleculeError: the graph is too large.
        """
        ...

    def read(self, fields: Mapping[str, Any], shape: Any, schema: Any, limits: SizeLimits) -> Graph:
        """Convert the fields of a graph, which passed `check`, to tensors.

        Raises:
            InvalidInputError: a value is invalid, or a task of the schema does not take the graph.
            MoleculeError: the graph turns out to be too large.
        """
        ...

    def collate(self, graphs: Sequence[Any]) -> Batch:
        """Put graphs into one batch, in their order. Raises InvalidInputError: there are none."""
        ...

    def smallest(self, shape: Any, schema: Any, task: str) -> Graph:
        """A small valid input of a task that uses every layer of the network."""
        ...

    # --- what it costs and counts ---

    def cost(self, graph: Any) -> int:
        """Cost of predicting one task for a graph, where an atom of a molecule costs 1 (about 6 us
        of a CPU)."""
        ...

    def estimate(self, fields: Mapping[str, Any], limits: SizeLimits) -> int:
        """Estimate `cost` from the lengths of a graph's fields; at least 1, whatever is given."""
        ...

    def atom_types(self, graph: Any) -> Tensor | None:
        """Atom types (atomic number - 1) of a molecule, (N,), for statistics; None for inputs that
        are not molecules."""
        ...
