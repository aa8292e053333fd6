"""The engine of an artifact on a device. No other file of the service runs models, but
`service.core.splitting`, which splits their answers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.artifact import Artifact, assemble, domain_file, load_components
from models.data.fingerprint import fingerprints_of
from models.device import DeviceChoice, choose_device
from models.errors import ArtifactError, ConfigError
from models.experts.combination import ExpertChoice, ForestMember, combine
from models.experts.contributions import AnswerSum
from models.experts.unified import Routing
from models.families.base import TaskOutput
from models.families.inputs import Graph
from models.screening import ScreenedModel, is_screened
from models.task import Level
from service.core.engine import Engine, EngineInfo, PassOutput, ServedDomain, TaskAnswer
from service.core.reading import InputRequirements
from service.core.splitting import AnswerSplitter
from service.settings import PREFIX, Settings

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_COUNTS: dict[Level, str] = {"node": "num_nodes", "pair": "num_pairs"}
"""By level, what counts the rows of a graph's answer; at level "graph" it is one row."""


class ArtifactEngine:
    """Engine that runs the model of an artifact on a device."""

    def __init__(self, artifact: Artifact, device: torch.device) -> None:
        manifest = artifact.manifest
        self._device, self._family = device, manifest.family
        self._model = self._family.served(artifact.model)
        # The model itself: the served one need not compute what a node contributes.
        self._splitter = AnswerSplitter(artifact.model, self._family, device)
        self._forests = artifact.forests
        self.info = EngineInfo(
            name=manifest.name,
            version=manifest.version,
            digest=artifact.digest,
            device=str(device),
            task_infos=manifest.tasks,
            sites=self._model.site_names,
            details=manifest.model_dump(
                mode="json",
                include={
                    "created",
                    "format_version",
                    "backbone",
                    "rank",
                    "router",
                    "drugs",
                    "provenance",
                    "metrics",
                },
            ),
            requirements=InputRequirements(manifest.backbone, manifest.input),
            forests=manifest.forests,
            stream_of=manifest.stream_of,
            card=artifact.card,
            domains={
                task: ServedDomain(
                    manifest.domains[task], domain, manifest.files[domain_file(task)]
                )
                for task, domain in artifact.domains.items()
            },
            drugs=artifact.drugs,
        )

    def run(
        self,
        graphs: Sequence[Graph],
        tasks: Sequence[str],
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> PassOutput:
        """Predict tasks for graphs: see `Engine.run`. If a pass does not fit into GPU memory, the
        graphs are split in halves until it does.

        Raises:
            FloatingPointError: a prediction is not finite.
            torch.OutOfMemoryError: a single graph does not fit.
        """
        return PassOutput(
            self._in_halves(graphs, lambda some: self._pass(some, tasks, routing, experts).answers)
        )

    def split(
        self,
        graphs: Sequence[Graph],
        labels: Mapping[str, Sequence[int]],
        routing: Routing,
        experts: ExpertChoice | None = None,
    ) -> list[dict[str, AnswerSum]]:
        """Split answers into contributions: see `Engine.split`. Memory is used as by `run`."""
        members = {
            task: ForestMember(
                self._forests[task],
                self.info.forests[task],
                choice,
                self.info.task_infos[task].output_kind,
            )
            for task in labels
            if (choice := self.info.experts_for(task, experts)) != "own"
        }
        return self._in_halves(
            graphs, lambda some: self._splitter.split(some, labels, routing, members)
        )

    def _in_halves(
        self, graphs: Sequence[Graph], work: Callable[[Sequence[Graph]], list[Result]]
    ) -> list[Result]:
        """Do some work on graphs; if it does not fit into GPU memory, on halves of them."""
        try:
            return work(graphs)
        except torch.OutOfMemoryError:
            if len(graphs) == 1:
                raise
        # Outside the handler, whose traceback keeps the tensors of the failed pass alive.
        log.warning("out of memory with %d graphs, trying half of them at a time", len(graphs))
        torch.cuda.empty_cache()
        half = len(graphs) // 2
        return self._in_halves(graphs[:half], work) + self._in_halves(graphs[half:], work)

    def _pass(
        self,
        graphs: Sequence[Graph],
        tasks: Sequence[str],
        routing: Routing,
        experts: ExpertChoice | None,
    ) -> PassOutput:
        with torch.inference_mode():
            batch = self._family.collate(graphs).to(self._device)
            outputs = self._family.answer(self._model, batch, tasks, routing)
            by_task = [self._by_graph(task, outputs[task], graphs) for task in tasks]
            choices = {task: self.info.experts_for(task, experts) for task in tasks}
            if any(choice != "own" for choice in choices.values()):
                by_task = self._with_forests(graphs, choices, outputs, by_task)
        return PassOutput(
            [dict(zip(tasks, answers, strict=True)) for answers in zip(*by_task, strict=True)]
        )

    def _by_graph(self, task: str, output: TaskOutput, graphs: Sequence[Any]) -> list[TaskAnswer]:
        level = self.info.task_infos[task].level
        count = _COUNTS.get(level)
        rows = None if count is None else [getattr(graph, count) for graph in graphs]
        values = _rows(task, output.values, rows)
        routing = output.routing_weights.cpu().numpy()
        if output.forces is None:
            return [TaskAnswer(*answer) for answer in zip(values, routing, strict=True)]
        forces = _rows(task, output.forces, [graph.num_nodes for graph in graphs])
        return [TaskAnswer(*answer) for answer in zip(values, routing, forces, strict=True)]

    def _with_forests(
        self,
        graphs: Sequence[Graph],
        choices: Mapping[str, ExpertChoice],
        outputs: Mapping[str, TaskOutput],
        by_task: Sequence[list[TaskAnswer]],
    ) -> list[list[TaskAnswer]]:
        """Replace the network's answers by those of the chosen experts, for graphs that have a
        fingerprint; mark the others.

        Args:
            graphs: of the pass.
            choices: experts by task.
            outputs: of the network, by task.
            by_task: answers of the network, a list per task.
        """
        positions, rows = fingerprints_of(graphs)
        all_have_one = len(positions) == len(graphs)
        members = {
            task: ForestMember(
                self._forests[task], self.info.forests[task], choice, outputs[task].target
            )
            for task, choice in choices.items()
            if choice != "own"
        }
        own = {task: outputs[task].logits for task in members}
        if not all_have_one:
            own = {task: logits[positions] for task, logits in own.items()}
        own = {task: logits.cpu() for task, logits in own.items()}
        opinions = combine(own, rows, members)
        combined = []
        for answers, task in zip(by_task, choices, strict=True):
            if task not in members:
                combined.append(answers)
                continue
            found = opinions[task]
            changed = list(answers)
            if not all_have_one:
                changed = [replace(answer, no_fingerprint=True) for answer in answers]
            _check_finite(task, found.values)
            for row, (k, values) in enumerate(zip(positions, found.values, strict=True)):
                said = {name: values_of[row] for name, values_of in found.experts.items()}
                changed[k] = TaskAnswer(values, answers[k].routing, experts=said)
            combined.append(changed)
        return combined


def _rows(task: str, values: Tensor, sizes: Sequence[int] | None = None) -> list[NDArray[Any]]:
    """Split predictions by graph: (G, C) into rows, or with `sizes` (N, C) into blocks of these
    numbers of rows. Raises FloatingPointError if a number is not finite."""
    array = values.cpu().numpy()
    _check_finite(task, array)
    return list(array) if sizes is None else np.split(array, np.cumsum(sizes)[:-1])


def _check_finite(task: str, array: NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        raise FloatingPointError(f"got numbers that are not finite for {task}")


def load_engine(artifact: Path, settings: Settings) -> ArtifactEngine:
    """Load an artifact onto the device of the settings and warm it up.

    Raises:
        ConfigError: the settings require a GPU and there is none.
        ArtifactError: the artifact cannot be loaded, or predictions in the warm-up are not finite.
    """
    torch.set_num_threads(settings.threads)
    device = _device(settings.device)
    components = load_components(
        artifact
    )  # only once, since the folder may be replaced at any time
    screened = is_screened(components.manifest)
    if screened:
        model = ScreenedModel(components, device)
        optional = components.forests, components.card, components.domains, components.drugs
        loaded = Artifact(components.manifest, model, components.digest, *optional)
    else:
        loaded = assemble(components, device)
    engine = ArtifactEngine(loaded, device)
    try:
        warm_up(engine, engine.info.tasks[:1] if screened else None)
    except FloatingPointError as error:
        raise ArtifactError(f"{artifact}: {error} in the warm-up, expected finite ones") from error
    return engine


def warm_up(engine: Engine, tasks: Sequence[str] | None = None) -> None:
    """Run small passes of tasks (None for all) with every routing, so that kernels are compiled and
    memory is allocated before the first request."""
    info = engine.info
    names = info.tasks if tasks is None else tuple(tasks)
    # If inputs differ by task, there may be no input that all tasks accept.
    groups = [names] if info.input.by_task is None else [(task,) for task in names]
    for routing in info.routings:
        for group in groups:
            engine.run([info.requirements.smallest(group[0])], group, routing)


def _device(choice: DeviceChoice) -> torch.device:
    try:
        return choose_device(choice)
    except ConfigError as error:
        raise ConfigError(f"{PREFIX}DEVICE: {error}") from None
