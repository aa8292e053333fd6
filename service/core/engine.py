"""What answers: an artifact on a device. The only file of the service that runs torch."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.artifact import Artifact, ArtifactParts, assemble, load_parts
from models.compiled.model import CompiledModel, fastest
from models.data.atoms import join
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.molecule import MolGraph, collate
from models.data.schema import AtomsInput, FeatureInput, InputSchema, MoleculeInput
from models.device import DeviceChoice, choose_device
from models.errors import ArtifactError, ConfigError, GMergingError
from models.experts.unified import Routing, UnifiedModel
from models.networks.schnet import ForceFieldConfig, MergedForceField
from models.screening import ScreenedModel, is_screened
from models.task import TaskInfo
from service.core.limits import Graph, Structure, Wanted, restricted
from service.settings import PREFIX, Settings

log = logging.getLogger(__name__)
_CARBON = [[5, 0]]
_MOLECULES = MoleculeInput()


class UnsupportedInputError(GMergingError):
    """Files of molecules and the Open Inference Protocol are asked of a model that takes no
    molecules, or has answers of another form."""

    code = "unsupported_input"


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says about itself.

    Attributes:
        name, version, digest: of the artifact.
        device: that it runs on.
        task_infos: by task, its labels, what it is about, and what its answers are; the tasks are
            the experts.
        sites: where experts are mixed; none in a force field.
        details: the rest of the manifest.
        input: what the model takes.
        cutoff: of a force field, Angstrom.
    """

    name: str
    version: str
    digest: str
    device: str
    task_infos: dict[str, TaskInfo]
    sites: tuple[str, ...]
    details: dict[str, Any]
    input: InputSchema = _MOLECULES
    cutoff: float = 0.0

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
        """Name, version and digest."""
        return self.name, self.version, self.digest

    @property
    def routings(self) -> tuple[Routing, ...]:
        """What the model can be asked for; a force field has no experts that could be mixed."""
        return get_args(Routing) if self.sites else ("own",)

    def wanted(self, tasks: Sequence[str]) -> Wanted:
        """What some of the tasks take."""
        of_nodes = any(self.task_infos[task].level == "node" for task in tasks)
        return Wanted(restricted(self.input, tasks), self.cutoff, of_nodes)

    def check_table(self, tasks: Sequence[str]) -> None:
        """Raises UnsupportedInputError unless these tasks have one row of numbers for each
        molecule, as tables and tensors do."""
        if (why := self.wanted(tasks).no_text) is not None:
            raise UnsupportedInputError(
                f"got model {self.name} for a table of molecules, but {why} (`POST /predict`)"
            )


@dataclass(frozen=True)
class TaskAnswer:
    """The answer of one task for one molecule or graph of n nodes.

    Attributes:
        values: (labels,); of a task on nodes (n, labels); of a force field the energy, (1,) float64
            in eV.
        routing: (sites, experts), each site sums to 1.
        forces: of a force field, (n, 3) in eV / Angstrom.
    """

    values: NDArray[np.floating[Any]]
    routing: NDArray[np.float32]
    forces: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PassOutput:
    """Answers of one pass over G graphs.

    Attributes:
        answers: of each graph, by task.
    """

    answers: list[dict[str, TaskAnswer]]

    def routing(self, task: str) -> NDArray[np.float32]:
        """(G, sites, experts), each site sums to 1."""
        return np.stack([answer[task].routing for answer in self.answers])

    def __add__(self, other: "PassOutput") -> "PassOutput":
        """The answers of two passes as of one."""
        return PassOutput(self.answers + other.answers)


class Engine(Protocol):
    """Whatever can answer; tests bring their own."""

    @property
    def info(self) -> EngineInfo:
        """What it is."""
        ...

    def run(self, graphs: Sequence[Graph], tasks: Sequence[str], routing: Routing) -> PassOutput:
        """One pass over graphs of the kind that it takes; blocks. Called from one thread at a
        time."""
        ...


class ArtifactEngine:
    """An engine that answers from a loaded artifact; from its parts where it wants not all experts
    to be looked at (`models.screening`)."""

    def __init__(self, artifact: Artifact | ArtifactParts, device: torch.device) -> None:
        manifest = artifact.manifest
        self._device = device
        self._model = _model_of(artifact, device)
        self.info = EngineInfo(
            name=manifest.name,
            version=manifest.version,
            digest=artifact.digest,
            device=str(device),
            task_infos=manifest.tasks,
            sites=() if isinstance(self._model, MergedForceField) else self._model.site_names,
            details=manifest.model_dump(
                mode="json",
                include={
                    "created",
                    "format_version",
                    "backbone",
                    "rank",
                    "router",
                    "provenance",
                    "metrics",
                },
            ),
            input=manifest.input,
            cutoff=(
                manifest.backbone.cutoff if isinstance(manifest.backbone, ForceFieldConfig) else 0.0
            ),
        )

    def run(self, graphs: Sequence[Graph], tasks: Sequence[str], routing: Routing) -> PassOutput:
        """One pass over graphs; see `Engine`. Where a GPU has too little memory for it, as many
        passes as it takes.

        Raises:
            FloatingPointError: a number of the answer is not finite; better no answer than that
                one.
            torch.OutOfMemoryError: for a single graph.
        """
        try:
            return self._pass(graphs, tasks, routing)
        except torch.OutOfMemoryError:
            if len(graphs) == 1:
                raise
        # Outside of the handler: its traceback would keep the tensors that did not fit.
        log.warning("out of memory with %d graphs, trying half of them at a time", len(graphs))
        torch.cuda.empty_cache()
        half = len(graphs) // 2
        return self.run(graphs[:half], tasks, routing) + self.run(graphs[half:], tasks, routing)

    def _pass(self, graphs: Sequence[Graph], tasks: Sequence[str], routing: Routing) -> PassOutput:
        sizes = [graph.num_nodes for graph in graphs]
        if isinstance(self._model, MergedForceField):
            by_task = _force_field_answers(
                self._model, cast(Sequence[Structure], graphs), tasks, self._device, sizes
            )
        else:
            with torch.inference_mode():
                output = self._model(self._collate(graphs).to(self._device), tasks, routing)
                of_nodes = [task for task in tasks if self.info.task_infos[task].level == "node"]
                values = {
                    task: _rows(
                        task, output.probabilities[task], sizes if task in of_nodes else None
                    )
                    for task in tasks
                }
                by_task = {
                    task: [
                        TaskAnswer(*each)
                        for each in zip(
                            values[task], output.routing_weights[task].cpu().numpy(), strict=True
                        )
                    ]
                    for task in tasks
                }
        return PassOutput(
            [
                dict(zip(tasks, answers, strict=True))
                for answers in zip(*by_task.values(), strict=True)
            ]
        )

    def _collate(self, graphs: Sequence[Graph]) -> GraphBatch:
        if isinstance(self.info.input, FeatureInput):
            return collate_features(cast(Sequence[FeatureGraph], graphs))
        return collate(cast(Sequence[MolGraph], graphs))


def _model_of(
    artifact: Artifact | ArtifactParts, device: torch.device
) -> UnifiedModel | CompiledModel | ScreenedModel | MergedForceField:
    if isinstance(artifact, ArtifactParts):
        return ScreenedModel(artifact, device)
    return (
        artifact.model if isinstance(artifact.model, MergedForceField) else fastest(artifact.model)
    )


def _force_field_answers(
    model: MergedForceField,
    structures: Sequence[Structure],
    tasks: Sequence[str],
    device: torch.device,
    sizes: Sequence[int],
) -> dict[str, list[TaskAnswer]]:
    batch = join([each.atoms for each in structures], [each.neighbours for each in structures]).to(
        device
    )
    nowhere = np.empty((0, len(model.tasks)), np.float32)
    return {
        task: [
            TaskAnswer(energy, nowhere, forces)
            for energy, forces in zip(
                _rows(task, output.energy.unsqueeze(1)),
                _rows(task, output.forces, sizes),
                strict=True,
            )
        ]
        for task, output in model(batch, tasks).items()
    }


def _rows(task: str, values: Tensor, sizes: Sequence[int] | None = None) -> list[NDArray[Any]]:
    """By graph: of (G, C) a row each, of (N, C) with `sizes` as many rows as each has nodes. Raises
    FloatingPointError."""
    array = values.cpu().numpy()
    if not np.isfinite(array).all():
        raise FloatingPointError(f"got numbers that are not finite for {task}")
    return list(array) if sizes is None else np.split(array, np.cumsum(sizes)[:-1])


def load_engine(artifact: Path, settings: Settings) -> ArtifactEngine:
    """Load an artifact onto the settings' device, and have it answer once: a model that fails on
    its first molecule is no model.

    Raises:
        ConfigError: a GPU is asked for and there is none.
        ArtifactError: the artifact cannot be used.
    """
    torch.set_num_threads(settings.threads)
    device = _device(settings.device)
    parts = load_parts(artifact)  # once: the folder may be replaced at any time
    screened = is_screened(parts.manifest)
    engine = ArtifactEngine(parts if screened else assemble(parts, device), device)
    try:
        warm_up(engine, engine.info.tasks[:1] if screened else None)
    except FloatingPointError as error:
        raise ArtifactError(f"{artifact}: {error} in the warm-up, expected finite ones") from error
    return engine


def warm_up(engine: Engine, tasks: Sequence[str] | None = None) -> None:
    """The smallest passes there are, by every routing, for some tasks or all: what is slow the
    first time is so here."""
    info = engine.info
    asked = info.tasks if tasks is None else tuple(tasks)
    # What is no molecule need not be of a form that all tasks take.
    together = [asked] if info.input.kind == "molecule" else [(task,) for task in asked]
    for routing in info.routings:
        for some in together:
            engine.run([_smallest(info.input, some[0])], some, routing)


def _smallest(takes: InputSchema, task: str) -> Graph:
    """One node of a form that a task takes."""
    no_edges = torch.empty((2, 0), dtype=torch.int64)
    if isinstance(takes, FeatureInput):
        return FeatureGraph(torch.ones(1, takes.num_features[task]), no_edges)
    if isinstance(takes, AtomsInput):
        return Structure(
            torch.tensor(takes.elements[task][:1]), torch.zeros(1, 3), no_edges, torch.empty(0, 3)
        )
    return MolGraph(torch.tensor(_CARBON), no_edges, torch.empty((0, 2), dtype=torch.int64))


def gpu_memory_bytes() -> int:
    """What torch holds of this machine's GPUs."""
    return sum(torch.cuda.memory_reserved(k) for k in range(torch.cuda.device_count()))


def _device(choice: DeviceChoice) -> torch.device:
    try:
        return choose_device(choice)
    except ConfigError as error:
        raise ConfigError(f"{PREFIX}DEVICE: {error}") from None
