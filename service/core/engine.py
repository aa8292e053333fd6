"""What an engine is: it describes its model, and predicts for batches of graphs
(`service.core.artifact_engine` has the one that runs artifacts)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from models.data.schema import InputSchema
from models.domain.task_domain import DomainInfo, TaskDomain
from models.drugs import DrugTable
from models.errors import GMergingError
from models.experts.combination import ExpertChoice, ExpertName, ForestInfo
from models.experts.contributions import AnswerSum
from models.experts.unified import Routing
from models.families.inputs import Graph
from models.task import TaskInfo
from service.core.reading import MOLECULES, InputRequirements


class UnsupportedQueryError(GMergingError):
    """A query is for a task or routing that the model does not have, or for a table from a model
    whose predictions do not form one.

    Attributes:
        code: stable error code for clients.
        details: further fields of the error, by name.
    """

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.details = code, details


@dataclass(frozen=True)
class ServedDomain:
    """The applicability domain of a task.

    Attributes:
        info: its description.
        domain: training molecules, and what was measured.
        digest: sha256 of its file.
    """

    info: DomainInfo
    domain: TaskDomain
    digest: str


@dataclass(frozen=True)
class EngineInfo:
    """Description of an engine.

    Attributes:
        name, version, digest: of the artifact.
        device: name of the torch device.
        task_infos: descriptions by task, in the order of the experts.
        sites: names of the sites where experts can be mixed; empty for force fields.
        details: further fields of the manifest.
        requirements: inputs that the tasks accept.
        forests: descriptions by task of the forests that answer beside the network.
        stream_of: name of the shared stream by task; other tasks have a stream of their own.
        card: the artifact's model card, Markdown; empty if it has none.
        domains: applicability domains of the tasks that have one.
        drugs: answers for drugs, with which others can be compared; None if there is no table.
    """

    name: str
    version: str
    digest: str
    device: str
    task_infos: dict[str, TaskInfo]
    sites: tuple[str, ...]
    details: dict[str, Any]
    requirements: InputRequirements = MOLECULES
    forests: Mapping[str, ForestInfo] = field(default_factory=dict)
    stream_of: Mapping[str, str] = field(default_factory=dict)
    card: str = ""
    domains: Mapping[str, ServedDomain] = field(default_factory=dict)
    drugs: DrugTable | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, in the model's order."""
        return tuple(self.task_infos)

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Label names by task."""
        return {task: info.labels for task, info in self.task_infos.items()}

    @property
    def artifact(self) -> tuple[str, str, str]:
        """Name, version and digest of the artifact."""
        return self.name, self.version, self.digest

    @property
    def routings(self) -> tuple[Routing, ...]:
        """Routings that the model supports: only "own" if it has no sites."""
        return get_args(Routing) if self.sites else ("own",)

    @property
    def input(self) -> InputSchema:
        """Input schema of the manifest."""
        return self.requirements.schema

    def experts_for(self, task: str, experts: ExpertChoice | None = None) -> ExpertChoice:
        """Return the experts that answer a task where a request names these: for None the task's
        default, for a task without a forest `own`."""
        forest = self.forests.get(task)
        return "own" if forest is None else experts or forest.default

    def requirements_for(
        self, tasks: Sequence[str], experts: ExpertChoice | None = None
    ) -> InputRequirements:
        """Return the requirements of inputs that these tasks accept. Molecules are read with a
        fingerprint only if one of the tasks is answered by a forest."""
        of_nodes = any(self.task_infos[task].level != "graph" for task in tasks)
        schema = self.input.for_tasks(tasks)
        if all(self.experts_for(task, experts) == "own" for task in tasks):
            schema = schema.without_fingerprint()
        by_forest = experts in ("forest", "both")
        return InputRequirements(self.requirements.shape, schema, of_nodes, by_forest)

    def check_experts(self, tasks: Sequence[str], experts: ExpertChoice | None) -> None:
        """Raise UnsupportedQueryError if a request names the forest for a task without one."""
        without = [task for task in tasks if task not in self.forests]
        if experts in (None, "own") or not without:
            return
        got = f"got expert 'forest' for {', '.join(without)}"
        known = f", or tasks among {', '.join(self.forests)}" if self.forests else ""
        expected = f"without a forest in model {self.name}, expected experts ['own']{known}"
        raise UnsupportedQueryError("unsupported_experts", f"{got}, {expected}")

    def count_streams(self, tasks: Sequence[str]) -> int:
        """Return the number of streams that a pass for these tasks computes."""
        return len({self.stream_of.get(task, task) for task in tasks})

    def check_atoms(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Raise UnsupportedQueryError if the outputs of these labels, by task, cannot be split into
        contributions of the atoms."""
        kind = self.requirements.shape.kind
        if self.requirements.family.node_sums is None:
            got = f"got explain ['atoms'] for model {self.name}, a {kind}"
            expected = "expected a model whose outputs are sums over atoms: its head is linear"
            raise UnsupportedQueryError("unsupported_explanation", f"{got}, {expected}")
        levels = {task: self.task_infos[task].level for task in labels}
        if inside := [task for task, level in levels.items() if level != "graph"]:
            answered = f"{inside[0]}, which answers for every {levels[inside[0]]}"
            got = f"got explain ['atoms'] for {answered}"
            expected = "expected tasks that answer for the graph"
            raise UnsupportedQueryError("unsupported_explanation", f"{got}, {expected}")

    def check_table(self, tasks: Sequence[str]) -> None:
        """Raise UnsupportedQueryError if the predictions of these tasks are not one row of numbers
        per molecule read from text, as tables and tensors require."""
        if (why := self.requirements_for(tasks).no_text) is not None:
            got = f"got model {self.name} for a table of molecules, but {why} (`POST /predict`)"
            raise UnsupportedQueryError("unsupported_input", got)


@dataclass(frozen=True)
class TaskAnswer:
    """Prediction of one task for one molecule or graph of n nodes.

    Attributes:
        values: (labels,), or (n, labels) for a task at level "node", (pairs, 1) at level "pair";
            from a force field the energy, (1,) float64 in eV.
        routing: routing weights (sites, experts); the weights of a site sum to 1.
        forces: (n, 3) in eV / Angstrom, from a force field; None from other models.
        experts: (labels,) by expert, the answers of which `values` is the combination; empty if
            the network alone answered.
        no_fingerprint: True if the network alone answered because the input was a graph, which has
            no fingerprint for the forest.
    """

    values: NDArray[np.floating[Any]]
    routing: NDArray[np.float32]
    forces: NDArray[np.float32] | None = None
    experts: Mapping[ExpertName, NDArray[np.floating[Any]]] = field(default_factory=dict)
    no_fingerprint: bool = False


@dataclass(frozen=True)
class PassOutput:
    """Predictions of one pass over G graphs.

    Attributes:
        answers: one dictionary of answers by task per graph.
    """

    answers: list[dict[str, TaskAnswer]]

    def routing(self, task: str) -> NDArray[np.float32]:
        """Return the routing weights of a task, (G, sites, experts)."""
        return np.stack([answer[task].routing for answer in self.answers])

    def __add__(self, other: "PassOutput") -> "PassOutput":
        """Concatenate the answers of two passes."""
        return PassOutput(self.answers + other.answers)


class Engine(Protocol):
    """Predicts for batches of graphs."""

    @property
    def info(self) -> EngineInfo:
        """Description of the engine."""
        ...

    def run(
        self,
        graphs: Sequence[Graph],
        tasks: Sequence[str],
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> PassOutput:
        """Predict tasks for graphs, one answer per graph in their order. Blocks; called from one
        thread at a time. With `experts` None the default ones of every task answer."""
        ...

    def split(
        self,
        graphs: Sequence[Graph],
        labels: Mapping[str, Sequence[int]],
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> list[dict[str, AnswerSum]]:
        """Split the answers of `run` into contributions, by task and for the labels at some
        positions, after `EngineInfo.check_atoms`. Blocks, as `run` does."""
        ...


@dataclass(frozen=True)
class PredictionQuery:
    """Model, tasks and routing of a request. Requests with equal queries share passes.

    Attributes:
        model: name of the model.
        engine: engine of the model.
        tasks: requested tasks in the engine's order, so that queries for the same tasks are equal.
        routing: "own", "moe" or "merged".
        requirements: inputs that the tasks accept.
        experts: the experts that answer; None for the default ones of every task.
    """

    model: str
    engine: Engine
    tasks: tuple[str, ...]
    routing: Routing
    requirements: InputRequirements = field(compare=False)
    experts: ExpertChoice | None = None

    @property
    def num_streams(self) -> int:
        """Number of streams of a pass for this query."""
        return self.engine.info.count_streams(self.tasks)

    @classmethod
    def of(
        cls,
        model: str,
        engine: Engine,
        tasks: Sequence[str],
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> Self:
        """Create a query for tasks in any order; unknown tasks are left out."""
        known = tuple(task for task in engine.info.tasks if task in tasks)
        requirements = engine.info.requirements_for(known, experts)
        return cls(model, engine, known, routing, requirements, experts)

    @classmethod
    def checked(
        cls,
        model: str,
        engine: Engine,
        tasks: Sequence[str] | None,
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> Self:
        """Create a query from a client's tasks (None for all), routing and experts. Raises
        UnsupportedQueryError if the engine does not have one of them."""
        info = engine.info
        requested = info.tasks if tasks is None else tuple(tasks)
        if unknown := [task for task in requested if task not in info.tasks]:
            got = f"got unknown task {unknown[0]!a}, expected some of {', '.join(info.tasks)}"
            raise UnsupportedQueryError("unknown_task", got, known_tasks=info.tasks)
        if routing not in info.routings:
            got = f"got routing {routing!r} for a model that mixes no experts, expected 'own'"
            raise UnsupportedQueryError("invalid_request", got)
        info.check_experts(requested, experts)
        return cls.of(model, engine, requested, routing, experts)
