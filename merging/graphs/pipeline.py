"""The stages of a run on generic graphs, each kept once it is finished: separate models, the joint
model, the merged network, and their scores."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from merging.config.base import fingerprint
from merging.data.files import sha256
from merging.data.graph_file import FileSpec
from merging.data.planetoid import planetoid_files
from merging.families.graphs import GraphRunConfig, TaskData, load_task
from merging.graphs.evaluation import evaluate
from merging.graphs.training import (
    TrainResult,
    fitted_model,
    initial_network,
    label_scale,
    train,
)
from merging.mergers.base import Calibration, MergeInputs, MergeResult
from merging.mergers.registry import MergeConfig, merge, merger_spec
from merging.run.store import Piece, PieceStore
from merging.training.metrics import METRICS, Metric
from models.state_dict import sub_state

CALIBRATION_GRAPHS = 256
CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class GraphRun:
    """Where a run reads and writes, and on what it computes.

    Attributes:
        config: the setting.
        seed: of everything that is drawn.
        data, work: the data folder and the work folder; finished pieces live in its
            `graph_pieces/`.
        device: where networks are trained; they are merged and measured on the CPU.
    """

    config: GraphRunConfig
    seed: int
    data: Path
    work: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _loaded: dict[str, TaskData] = field(default_factory=dict, repr=False, compare=False)

    def task(self, name: str) -> TaskData:
        """A task's data, read once a run. Raises DataError."""
        if name not in self._loaded:
            self._loaded[name] = load_task(self.config, name, self.data, self.seed)
        return self._loaded[name]

    @property
    def store(self) -> PieceStore:
        """The finished pieces."""
        return PieceStore(self.work / "graph_pieces", self.seed)

    def initial_seed(self, task: str) -> int:
        """Of the weights that a task's network starts from."""
        own = 1000 * (1 + list(self.config.tasks).index(task))
        return self.seed + (own if self.config.initialisation == "different" else 0)

    def sources(self, task: str) -> dict[str, str]:
        """sha256 of the files that a task was read from, by name."""
        spec = self.config.tasks[task]
        paths = (
            [self.data / spec.file]
            if isinstance(spec, FileSpec)
            else planetoid_files(spec.graph, self.data)
        )
        return {path.name: sha256(path) for path in paths}


def separate(run: GraphRun, task: str) -> TrainResult:
    """A task's own model."""
    return _trained(run, f"separate/{task}", (task,), run.initial_seed(task))


def joint(run: GraphRun) -> TrainResult:
    """One network trained on all tasks, with a head for each: as many steps as all separate models
    together."""
    return _trained(run, "joint", tuple(run.config.tasks), run.seed)


def merged(run: GraphRun, how: MergeConfig | None = None) -> MergeResult:
    """The separate models' networks merged as the configuration, or `how`, says."""
    how = how or run.config.merge

    def make(_: Path) -> Piece:
        results = {task: separate(run, task) for task in run.config.tasks}
        seen = (
            {task: calibration(run, task) for task in run.config.tasks}
            if merger_spec(how.method).calibrated
            else {}
        )
        networks = {task: result.network for task, result in results.items()}
        start = time.perf_counter()
        inputs = MergeInputs(
            initial_network(run.config.network, run.seed),
            networks,
            run.config.network,
            seen,
            run.seed,
        )
        result = merge(how.method, inputs, how.options)
        seconds = round(time.perf_counter() - start, 4)
        tensors = {
            f"{task}/{key}": value
            for task, state in {"": result.backbone, **result.by_task}.items()
            for key, value in state.items()
        }
        tensors |= {f"@order/{task}": order for task, order in result.head_orders.items()}
        return Piece(
            tensors,
            {"method": how.method, "options": how.options, **result.record, "seconds": seconds},
        )

    key = fingerprint(
        how, *(_training_key(run, (task,), run.initial_seed(task)) for task in run.config.tasks)
    )
    piece = run.store.piece(f"merged/{how.method}", key, make)
    by_task = {
        task: state for task in run.config.tasks if (state := sub_state(piece.tensors, f"{task}/"))
    }
    return MergeResult(
        sub_state(piece.tensors, "/"), by_task, piece.record, sub_state(piece.tensors, "@order/")
    )


def calibration(run: GraphRun, task: str) -> Calibration:
    """What a merger may see of a task: its head, and training graphs, or nodes, without their
    labels."""
    data = run.task(task)
    batches, nodes = data.calibration(CALIBRATION_GRAPHS, CALIBRATION_BATCH)
    head = label_scale(data).unfolded(separate(run, task).heads[task])
    return Calibration(head, batches, data.level, nodes, data.target)


def head(run: GraphRun, task: str, result: MergeResult) -> dict[str, Tensor]:
    """A task's head as the merged network needs it."""
    own = separate(run, task).heads[task]
    return {**own, "weight": result.head_for(task, own["weight"])}


def measure_separate(run: GraphRun) -> dict[str, float]:
    """Test score of each task's own model."""
    return {
        task: _measure(run, task, (result := separate(run, task)).network, result.heads[task])
        for task in run.config.tasks
    }


def measure_joint(run: GraphRun) -> dict[str, float]:
    """Test score of each task in the joint model."""
    result = joint(run)
    return {
        task: _measure(run, task, result.network, result.heads[task]) for task in run.config.tasks
    }


def measure_merged(run: GraphRun, how: MergeConfig | None = None) -> dict[str, float]:
    """Test score of each task in the merged model."""
    result = merged(run, how)
    return {
        task: _measure(run, task, result.backbone_for(task), head(run, task, result))
        for task in run.config.tasks
    }


def metrics(run: GraphRun) -> dict[str, Metric]:
    """What the scores are, by task."""
    return {task: METRICS[run.task(task).target] for task in run.config.tasks}


def _measure(
    run: GraphRun, task: str, network: dict[str, Tensor], own_head: dict[str, Tensor]
) -> float:
    data = run.task(task)
    return round(
        evaluate(fitted_model(network, run.config.network, own_head, data), data, "test"), 5
    )


def _trained(run: GraphRun, name: str, tasks: tuple[str, ...], initial_seed: int) -> TrainResult:
    config = run.config

    def make(checkpoint: Path) -> Piece:
        data = {task: run.task(task) for task in tasks}
        result = train(
            data,
            initial_network(config.network, initial_seed),
            config.network,
            config.training,
            run.seed,
            checkpoint,
            run.device,
        )
        heads = {
            f"heads/{task}/{key}": value
            for task, state in result.heads.items()
            for key, value in state.items()
        }
        return Piece(
            {f"network/{key}": value for key, value in result.network.items()} | heads,
            result.record,
        )

    piece = run.store.piece(name, _training_key(run, tasks, initial_seed), make)
    return TrainResult(
        sub_state(piece.tensors, "network/"),
        {task: sub_state(piece.tensors, f"heads/{task}/") for task in tasks},
        piece.record,
    )


def _training_key(run: GraphRun, tasks: tuple[str, ...], initial_seed: int) -> str:
    """What a model trained on some tasks depends on."""
    config = run.config
    described = [
        each for task in tasks for each in (task, config.tasks[task], *run.sources(task).values())
    ]
    return fingerprint(config.network, config.encoder, config.training, initial_seed, *described)
