"""Networks in the layout of Hu et al. 2020, fine-tuned elsewhere: merged with adapters, or into one
network that answers all tasks in one pass. No labels are used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merging.config.joint_alignment import JointAlignmentConfig
from merging.config.training import AlignmentConfig
from merging.data.molecule_files import read_molecules
from merging.data.pool import draw, make_pool
from merging.family import SHARED_STREAM
from merging.imports.brought import Merged
from merging.imports.config import ImportConfig, Method, ModelSource
from merging.imports.difference import differences, measured_count
from merging.imports.hu2020 import FIRST, HuModel, network_vector, read_hu2020
from merging.imports.state_file import read_state
from merging.targets.metrics import compute_outputs
from merging.training.alignment import align
from merging.training.joint_alignment import SharedStream, Targets, align_jointly, linear
from merging.training.teachers import NetworkTeacher
from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs
from models.data.schema import MoleculeInput
from models.data.smiles import READING_RULE
from models.errors import CheckpointError, ConfigError, DataError
from models.experts.adapter import stream_of_backbone, trace
from models.experts.expert import Expert, SharedExpert
from models.manifest import StreamInfo
from models.networks.hu2020 import Backbone, BackboneConfig, make_backbone
from models.state_dict import load_tensors
from models.task import LabelTarget, TaskInfo, answers

CPU = torch.device("cpu")
ALIGNMENT = AlignmentConfig(epochs=10, learning_rate=3e-3, solver="exact")
"""Adapters learn as those of the releases do."""
JOINT = JointAlignmentConfig(batch_size=64)
_READING = (
    "Molecules are read from their canonical SMILES, without charges: tags of chirality and bond"
    " directions may differ from those that the model was trained with."
)


@dataclass(frozen=True, eq=False)
class HuTask:
    """A fine-tuned network in Hu et al.'s layout: see `merging.imports.brought.Brought`.

    Attributes:
        model: the network with its head.
        labels, target: as the user says; the file says neither.
        notes: sentences for the user.
    """

    model: HuModel
    labels: tuple[str, ...]
    target: LabelTarget
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file."""
        return self.model.path

    @property
    def files(self) -> dict[str, str]:
        """Its SHA-256, by path."""
        return {str(self.model.path): self.model.sha256}

    @property
    def shape(self) -> BackboneConfig:
        """Shape of the network."""
        return self.model.shape

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """Its weights, see `network_vector`."""
        return (network_vector(self.model.network),)

    @property
    def about(self) -> tuple[str, str]:
        """Words for the network, and for the features."""
        shape = self.shape
        return f"{shape.kind}, {shape.num_layers} layers x {shape.hidden_dim}", "Hu et al. 2020"

    def network(self) -> Backbone:
        """Build the network, frozen and in evaluation mode."""
        network = make_backbone(self.model.network, self.shape, str(self.path))
        return network.requires_grad_(False).eval()

    def head(self) -> nn.Linear:
        """Build the head."""
        assert self.model.head is not None
        return linear(self.model.head["weight"], self.model.head["bias"])


class HuFormat:
    """Networks in Hu et al.'s layout: see `merging.imports.formats.Format`."""

    name = "a network in Hu et al.'s layout"
    methods: Mapping[Method, int] = {"separate": 0, "adapters": 30, "one-pass": 100}

    def reads(self, path: Path) -> bool:
        """Return whether a file holds a state dict with this layout's atom embeddings."""
        try:
            return path.is_file() and any(key.endswith(FIRST) for key in read_state(path))
        except CheckpointError:
            return False

    def check(self, config: ImportConfig) -> None:
        """Refuse options of chemprop's featurisers, and several separate models."""
        if config.options is not None:
            raise ConfigError(
                f"options: got some with {self.name}, expected none: it has no choice"
            )
        if config.reading == "as_written":
            got = f"reading: got as_written with {self.name}"
            raise ConfigError(f"{got}, expected canonical: every spelling has one answer")
        if config.method == "separate" and len(config.models) > 1:
            got = f"method: got separate with {len(config.models)} models"
            expected = "expected one: import every model into a folder of GMERGING_MODELS"
            raise ConfigError(f"{got} in Hu et al.'s layout, {expected}")

    def models(self, config: ImportConfig) -> dict[str, HuTask]:
        """See `Format.models`."""
        found = {}
        for task, source in config.models.items():
            model = read_hu2020(Path(source.path), config.layers)
            found[task] = _named(task, model, source)
        return found

    def base(self, config: ImportConfig) -> HuModel | None:
        """See `Format.base`."""
        return None if config.base is None else read_hu2020(Path(config.base), config.layers)

    def schema(self, config: ImportConfig, models: Mapping[str, HuTask]) -> MoleculeInput:
        """See `Format.schema`."""
        return MoleculeInput(reading_rule=READING_RULE)

    def reading(self, config: ImportConfig) -> str:
        """See `Format.reading`."""
        return "from their canonical SMILES"

    def merge(
        self,
        config: ImportConfig,
        infos: Mapping[str, TaskInfo],
        models: Mapping[str, HuTask],
        schema: MoleculeInput,
        work: Path,
    ) -> tuple[Merged, dict[str, float]]:
        """See `Format.merge`."""
        if config.method == "separate":
            ((name, task),) = models.items()
            return _alone(name, task, infos[name]), {}
        graphs, record = _pool(config)
        rows = torch.arange(len(graphs))
        count = measured_count(len(graphs))
        rank = config.rank or self.methods[config.method]
        epochs = {"epochs": config.epochs} if config.epochs else {}
        network = _average(models)
        if config.method == "adapters":
            settings = ALIGNMENT.model_copy(update={"rank": rank, **epochs})
            place = config.seed, work
            merged = _adapters(network, models, infos, graphs, rows[count:], settings, *place)
        else:
            joint = JOINT.model_copy(update={"rank": rank, **epochs})
            rest = _Rows(graphs, rows[count:])
            merged = _one_pass(network, models, infos, rest, joint, config.seed, work)
        measured = graphs, rows[:count]
        expected = {
            name: _answered(infos[name], _teacher(task).outputs, *measured)
            for name, task in models.items()
        }
        found = {
            name: _answered(infos[name], partial(expert, merged.network), *measured)
            for name, expert in merged.experts.items()
        }
        merged.record["pool"] = record
        return merged, differences(found, expected)


def _named(task: str, model: HuModel, source: ModelSource) -> HuTask:
    """Name the outputs as the user does. Raises CheckpointError: the file is not fine-tuned, or the
    names are missing, repeated or not as many as its outputs."""
    if model.head is None:
        expected = "expected a fine-tuned network with graph_pred_linear; it can be a base"
        raise CheckpointError(f"{model.path}: got no head, {expected}")
    count, names = len(model.head["bias"]), source.labels or ()
    if len(names) != count or len(set(names)) != count:
        got = f"the labels {', '.join(names)}" if names else "no labels"
        expected = f"expected {count} names that differ, by --labels {task}=NAME,..."
        raise CheckpointError(f"{model.path}: got {got}, {expected}: the file has none")
    assumed = () if source.target else ("The file does not say its target: multilabel is assumed.",)
    notes = *model.notes, *assumed, _READING
    return HuTask(model, tuple(names), source.target or "multilabel", notes)


def _pool(config: ImportConfig) -> tuple[PackedGraphs, dict[str, Any]]:
    """Read the unlabelled molecules, in random order."""
    assert config.molecules is not None  # `ImportConfig` requires them of methods that train.
    path = Path(config.molecules)
    texts = draw(read_molecules(path), config.most_molecules, config.seed, "molecules")
    pool = make_pool({path.name: texts}, [], None, config.seed)
    if len(pool.graphs) < 2:
        got = f"{path}: got {len(pool.graphs)} readable molecules of {len(texts)}"
        raise DataError(f"{got}, expected at least 2")
    return pool.graphs, pool.record


@dataclass(frozen=True)
class _Rows:
    """Some graphs of many."""

    graphs: PackedGraphs
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Tensor) -> GraphBatch:
        """Join the graphs at `indices` of the rows to one batch."""
        return self.graphs.select(self.rows[indices])


def _average(models: Mapping[str, HuTask]) -> Backbone:
    """Average the networks of all tasks."""
    states = [task.model.network for task in models.values()]
    shape = next(iter(models.values())).shape
    averaged = {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        for key, value in states[0].items()
    }
    return make_backbone(averaged, shape, "the average").requires_grad_(False).eval()


def _alone(name: str, task: HuTask, info: TaskInfo) -> Merged:
    """Keep the only model as it is: no adapters, its own BatchNorm statistics."""
    network = task.network()
    expert = Expert(task.shape, 0, info.labels, info.level, info.output_kind)
    own = stream_of_backbone(network, SHARED_STREAM)
    expert.adapters.norm_mean.copy_(own.norm_mean)
    expert.adapters.norm_var.copy_(own.norm_var)
    load_tensors(expert.head, task.head().state_dict(), "head")
    return Merged(task.shape, 0, network, {name: expert})


def _adapters(
    network: Backbone,
    models: Mapping[str, HuTask],
    infos: Mapping[str, TaskInfo],
    graphs: PackedGraphs,
    rows: Tensor,
    settings: AlignmentConfig,
    seed: int,
    work: Path,
) -> Merged:
    """Train the adapters of every task on the average network (`merging.training.alignment`)."""
    work.mkdir(parents=True, exist_ok=True)
    experts: dict[str, nn.Module] = {}
    record: dict[str, Any] = {}
    for name, task in models.items():
        info, checkpoint = infos[name], work / f"{name}-adapters.resume.pt"
        place = seed, checkpoint, CPU, name
        trained = align(graphs, rows, task.network(), network, settings, *place)
        expert = Expert(task.shape, settings.rank, info.labels, info.level, info.output_kind)
        load_tensors(expert.adapters, trained.adapters.state_dict(), "adapters")
        load_tensors(expert.head, task.head().state_dict(), "head")
        experts[name], record[name] = expert.eval(), trained.record
    return Merged(network.config, settings.rank, network, experts, {"adapters": record})


def _one_pass(
    network: Backbone,
    models: Mapping[str, HuTask],
    infos: Mapping[str, TaskInfo],
    pool: _Rows,
    settings: JointAlignmentConfig,
    seed: int,
    work: Path,
) -> Merged:
    """Train one network, from the average, to answer like the models of all tasks
    (`merging.training.joint_alignment`)."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    teachers = {name: _teacher(task) for name, task in models.items()}
    every = torch.arange(len(pool))
    targets = {
        name: Targets.of(compute_outputs(teacher.outputs, pool, every, CPU), infos[name])
        for name, teacher in teachers.items()
    }
    heads = {name: task.head() for name, task in models.items()}
    student = SharedStream(network, heads, settings.rank).requires_grad_(True)
    place = seed, work / "one-pass.resume.pt", CPU
    aligned = align_jointly(student, pool, targets, teachers, settings, *place)
    stream = stream_of_backbone(aligned.stream.backbone, SHARED_STREAM)
    experts: dict[str, nn.Module] = {}
    for name, adapter in zip(models, aligned.stream.adapters, strict=True):
        info = infos[name]
        expert = SharedExpert(stream, settings.rank, info.labels, info.level, info.output_kind)
        load_tensors(expert.graph, adapter.state_dict(), "graph adapter")
        load_tensors(expert.head, heads[name].state_dict(), "head")
        experts[name] = expert.eval()
    backbone = aligned.stream.backbone
    described = {SHARED_STREAM: StreamInfo(tasks=tuple(models), graph_rank=settings.rank)}
    return Merged(network.config, settings.rank, backbone, experts, aligned.record, described)


def _teacher(task: HuTask) -> NetworkTeacher:
    network = task.network()
    return NetworkTeacher(task.labels, task.head(), task.shape, partial(trace, network))


def _answered(
    info: TaskInfo, forward: Callable[[GraphBatch], Tensor], graphs: PackedGraphs, rows: Tensor
) -> Tensor:
    return answers(compute_outputs(forward, graphs, rows, CPU), info.output_kind)
