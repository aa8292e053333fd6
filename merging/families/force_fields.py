"""The families of force fields, trained on the energies and forces of frames: SchNet, and CHGNet
with pre-trained weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn

from merging.config.base import Count, Section
from merging.config.training import ForceTrainingConfig, TuningConfig
from merging.data.chgnet_weights import SOURCE, licence, read_weights, weights_file
from merging.data.files import sha256
from merging.data.frames import FrameDataset, FramesConfig, Labels, read_lips20, read_md17
from merging.family import (
    Folders,
    OfflineFamily,
    RunConfig,
    ScratchRunConfig,
    StateDict,
    random_state,
)
from merging.mergers.base import MergeResult
from merging.mergers.gffmerge import Teacher, energies, match_mean_energies
from merging.mergers.registry import MergeConfig
from merging.targets.label_scores import LabelMeasures, Measure
from models.data.atoms import AtomsBatch, composition, energies_of_elements
from models.data.schema import AtomsInput
from models.families.base import TaskOutput
from models.meaning import Counted
from models.names import Name, check_distinct
from models.networks.chgnet import Chgnet, ChgnetConfig
from models.networks.force_field import (
    AtomNetwork,
    ForceFieldExpert,
    ForceFieldShape,
    MergedForceField,
    energy_and_forces,
)
from models.networks.schnet import ForceField, ForceFieldConfig
from models.state_dict import load_tensors
from models.task import TaskInfo

_ALIGNED_FRAMES = 50

Module = TypeVar("Module", bound=nn.Module)


class SystemSpec(Section):
    """Description of a task's frames.

    Attributes:
        source: the data set that the system belongs to.
        frames: numbers of frames in training, validation and test.
        cutoff: distance in Angstrom within which atoms are neighbours.
    """

    source: Literal["md17", "lips20"]
    frames: FramesConfig
    cutoff: float


class ForceFieldRunConfig(ScratchRunConfig):
    """A run on systems of one data set.

    Attributes:
        source: the data set that the systems belong to.
        tasks: names of the systems, at least two, all different.
        calibration_frames: number of a task's training frames, without labels, that a merger may
            use; 500 in the paper.
        tuning: training of the heads on the merged network, with labels; None leaves them as
            merged.
        joint_alignment: training of the merged network and of all heads, without labels, to answer
            like the tasks' own models; None leaves them as merged.
    """

    source: Literal["md17", "lips20"]
    tasks: tuple[Name, ...]
    frames: FramesConfig
    training: ForceTrainingConfig
    merge: MergeConfig = MergeConfig(method="gffmerge")
    calibration_frames: Count = 500
    tuning: TuningConfig | None = None
    joint_alignment: ForceTrainingConfig | None = None

    @model_validator(mode="after")
    def _several_tasks(self) -> Self:
        if len(self.tasks) < 2 or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks: got {list(self.tasks)}, expected two or more, each once")
        check_distinct(self.tasks)
        return self

    @model_validator(mode="after")
    def _one_training(self) -> Self:
        if self.joint_alignment and self.tuning:
            expected = "expected `tuning: null`: joint alignment trains the heads too"
            raise ValueError(f"tuning: got settings beside `joint_alignment`, {expected}")
        return self

    @property
    def head_tuning(self) -> TuningConfig | None:
        """`tuning`."""
        return self.tuning

    @property
    def imitation(self) -> ForceTrainingConfig | None:
        """`joint_alignment`."""
        return self.joint_alignment

    def dataset_for(self, task: str) -> SystemSpec:
        """Return the description of a system's frames."""
        return SystemSpec(source=self.source, frames=self.frames, cutoff=self.network.cutoff)

    def initial_seed(self, task: str, seed: int) -> int:
        """Return the seed of a task's initial network and head; its own if they are `different`."""
        if self.initialisation == "shared":
            return seed
        return 1000 * (seed + 1) + self.tasks.index(task)


class SchnetRunConfig(ForceFieldRunConfig):
    """A run of SchNet."""

    network: ForceFieldConfig


class ChgnetRunConfig(ForceFieldRunConfig):
    """A run of CHGNet.

    Attributes:
        pretrained: whether all tasks start from the released weights, not from random ones.
    """

    network: ChgnetConfig
    pretrained: bool = False

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.initialisation == "different":
            raise ValueError("initialisation: got 'different' with `pretrained`, expected 'shared'")
        return self


class ForceFields(OfflineFamily):
    """SchNet; every task has its own atom embedding, head, energy scale and element energies."""

    kinds: ClassVar[tuple[str, ...]] = ("schnet",)
    title: ClassVar[str] = "SchNet"
    config: ClassVar[type[RunConfig]] = SchnetRunConfig
    config_folder = "force_fields"
    default_mergers = (MergeConfig(method="weight_average"), MergeConfig(method="gffmerge"))
    calibration_batch: ClassVar[int] = 10
    evaluation_batch: ClassVar[int] = 25

    def read(
        self, config: ForceFieldRunConfig, task: str, folders: Folders, seed: int
    ) -> FrameDataset:
        """Read a system's frames. Raises DataError: a file is missing, is not in the published
        format, or holds too few frames."""
        read = read_md17 if config.source == "md17" else read_lips20
        folder = folders.data / config.source / task
        frames = read(folder, config.frames, config.network.cutoff)
        return replace(frames, about=f"potential energy and forces of {task}, {config.source}")

    def network(self, shape: Any, dropout: float = 0.0) -> AtomNetwork:
        """Build the network with random weights; it has no dropout."""
        return ForceField(shape)

    def head(self, shape: ForceFieldShape, data: Any) -> ForceFieldExpert:
        """Build a task's expert with random weights."""
        return ForceFieldExpert(shape)

    def initial_state(self, config: ForceFieldRunConfig, seed: int, folders: Folders) -> StateDict:
        """Return random weights of network and head, which depend on the seed alone."""
        shape = config.network
        return random_state(
            seed, network=lambda: self.network(shape), head=lambda: ForceFieldExpert(shape)
        )

    def imitated_data(
        self, data: FrameDataset, network: AtomNetwork, head: ForceFieldExpert, device: torch.device
    ) -> FrameDataset:
        """Return the frames with the energies and forces of the task's own model as labels of
        training and validation; test frames have none."""
        forward = partial(self.outputs, network, head, info=data.info, training=False)
        size = self.evaluation_batch
        return data.with_answers(
            {
                "train": self.predict(forward, data.steps("train", size), device)[0],
                "valid": self.predict(forward, data.steps("valid", size), device)[0],
            }
        )

    def calibration_graphs(self, config: ForceFieldRunConfig) -> int:
        """Return `calibration_frames`."""
        return config.calibration_frames

    def prepare_head(
        self, network: AtomNetwork, head: ForceFieldExpert, data: FrameDataset
    ) -> None:
        """Set elements, energy scale and element energies, so that mean energies are right before
        the first step."""
        fit_elements(head, data)
        head.scale.copy_(self.scale(data))
        rows = data.split.train[:_ALIGNED_FRAMES]
        batches = [data.select(some) for some in rows.split(self.calibration_batch)]
        error = data.energy[rows] - energies(network, head, batches)
        counts = torch.cat([composition(batch) for batch in batches])
        head.atom_energies += energies_of_elements(counts, error)

    def scale(self, data: FrameDataset) -> Tensor:
        """Return the unit of a head's output: the root mean square of the training forces, ()
        float64, in eV."""
        return data.forces[data.split.train].double().pow(2).mean().sqrt()

    def tuned_parameters(self, head: ForceFieldExpert) -> Iterable[nn.Parameter]:
        """Return the weights of the Linears; the embedding, an input of the network, is
        excluded."""
        return [parameter for linear in head.linears() for parameter in linear.parameters()]

    def outputs(
        self,
        network: AtomNetwork,
        head: ForceFieldExpert,
        batch: AtomsBatch,
        info: TaskInfo,
        training: bool,
    ) -> Labels:
        """Compute energies (G,) in eV and forces (N, 3) in eV / Angstrom."""
        computed = energy_and_forces(network, head, batch, differentiable=training)
        return Labels(computed.energy, computed.forces)

    def loss(
        self,
        outputs: Labels,
        labels: Labels,
        data: FrameDataset,
        head: ForceFieldExpert,
        settings: ForceTrainingConfig,
    ) -> Tensor:
        """Compute the mean squared error of the force components plus `energy_weight` times that of
        the energies, both divided by the squared scale of the task."""
        scale = head.scale
        forces = ((outputs.forces - labels.forces) / scale.to(labels.forces)).pow(2).mean()
        energy = ((outputs.energy - labels.energy) / scale).pow(2).mean()
        return forces + settings.energy_weight * energy.to(forces)

    def score(self, outputs: Labels, labels: Labels, info: TaskInfo) -> float:
        """Return minus the mean absolute error of the force components, in meV / Angstrom."""
        return -self.metrics(outputs, labels, info)["forces"]

    def metrics(self, outputs: Labels, labels: Labels, info: TaskInfo) -> dict[str, float]:
        """Compute mean absolute errors: `energy` in meV, and `forces`, over components, in
        meV / Angstrom."""
        energy = 1e3 * float((outputs.energy - labels.energy).abs().mean())
        forces = 1e3 * float((outputs.forces - labels.forces).abs().mean())
        return {"energy": energy, "forces": forces}

    def table_metrics(self, info: TaskInfo) -> tuple[str, ...]:
        """Return both metrics."""
        return "energy", "forces"

    def counted(self, info: TaskInfo) -> Counted:
        """Return "structures"."""
        return "structures"

    def label_columns(self, labels: Labels, info: TaskInfo) -> list[NDArray[Any]]:
        """Return the energies, in eV."""
        return [labels.energy.double().numpy()]

    def label_measures(
        self, predictions: Labels, labels: Labels, info: TaskInfo
    ) -> list[LabelMeasures]:
        """Return the energies, and the mean errors of the force components by frame."""
        energies, known = (values.energy.double().cpu().numpy() for values in (predictions, labels))
        errors = (predictions.forces - labels.forces).abs().double()
        of_frames = errors.reshape(len(known), -1).mean(1).cpu().numpy()
        measures = (
            Measure("mae", energies, known, "eV"),
            Measure("forces_mae", of_frames, np.zeros(len(known)), "eV/Angstrom"),
        )
        return [LabelMeasures(energies, known, measures)]

    def served(self, output: TaskOutput) -> Labels:
        """Return the energies and forces."""
        assert output.forces is not None, "a force field answers with forces"
        return Labels(output.logits[:, 0], output.forces)

    def concatenate(self, values: Sequence[Labels]) -> Labels:
        """Concatenate the energies and forces of several batches."""
        energies, forces = zip(*((value.energy, value.forces) for value in values), strict=True)
        return Labels(torch.cat(energies), torch.cat(forces))

    def merged_head(
        self,
        shape: ForceFieldShape,
        merged: MergeResult,
        task: str,
        teacher: tuple[StateDict, StateDict],
        batches: Callable[[], Sequence[AtomsBatch]],
    ) -> StateDict:
        """Return the head that the merger solved; else the task's own head, with the mean energy
        of the calibration frames as the task's own model gives it."""
        if task in merged.heads:
            return merged.heads[task]
        network = _filled(self.network(shape), merged.backbone_for(task), "merged network")
        own_network = _filled(self.network(shape), teacher[0], f"network of {task}")
        head = _head(shape, teacher[1], task)
        own_model = Teacher(own_network, head, tuple(batches()))
        model = MergedForceField(network, {task: _head(shape, teacher[1], task)})
        return match_mean_energies(model, {task: own_model}).expert(task).state_dict()

    def expert(
        self, config: ForceFieldRunConfig, data: FrameDataset, head: StateDict, adapters: StateDict
    ) -> ForceFieldExpert:
        """Build a task's frozen head."""
        return _head(config.network, head, data.task)

    def input_schema(
        self, experts: Mapping[str, ForceFieldExpert], data: Mapping[str, Any]
    ) -> AtomsInput:
        """Return the schema of structures: the elements that every task was trained on."""
        return AtomsInput(
            elements={
                task: tuple(expert.elements.nonzero().flatten().tolist())
                for task, expert in experts.items()
            }
        )

    def card_introduction(self, manifest: Any) -> str:
        """Return what was merged, what remains per task, and the units of errors."""
        return f"""\
The interaction blocks of {self.title}, merged from {len(manifest.tasks)} force fields that were
trained apart. Each task keeps its own atom embeddings, scale of energies and head,
{_last_steps(manifest)}
Errors of energies are in meV, of forces in meV / Angstrom."""

    def card_limitations(self, manifest: Any) -> str:
        """Return the limits: small networks, and structures like the training frames only."""
        return """\
Small networks, short trainings, one seed: a demonstration of merging, not a potential to simulate
with. A task answers for structures like its own frames (one molecule each); other elements are
refused, other molecules of the same elements are not, and their answers mean nothing."""


class ChgnetForceFields(ForceFields):
    """CHGNet, from its released or from random weights. The unit of every head is 1 eV, so that the
    heads of all tasks mean the same and can be merged."""

    kinds = ("chgnet",)
    config = ChgnetRunConfig
    title = "CHGNet"
    calibration_batch = 4
    evaluation_batch = 5

    def network(self, shape: Any, dropout: float = 0.0) -> AtomNetwork:
        """Build the network with random weights; it has no dropout."""
        return Chgnet(shape)

    def initial_state(self, config: Any, seed: int, folders: Folders) -> StateDict:
        """Return the released weights of network, embeddings and head if `pretrained` says so; else
        random ones. Raises CheckpointError: the package `chgnet` is not installed."""
        state = super().initial_state(config, seed, folders)
        return state | read_weights(weights_file()) if config.pretrained else state

    def initial_fingerprint(self, config: Any, folders: Folders) -> str:
        """Return the digest of the released weights, or "" for random ones."""
        return sha256(weights_file()) if config.pretrained else ""

    def provenance(self, config: Any, folders: Folders) -> dict[str, Any]:
        """Return source and digest of the released weights, where they are the start."""
        if not config.pretrained:
            return {}
        return {"pretrained_sha256": sha256(weights_file()), "pretrained_source": SOURCE}

    def card_limitations(self, manifest: Any) -> str:
        """Return the limits, and the licence of the released weights where they are the start."""
        limits = super().card_limitations(manifest)
        if "pretrained_source" not in manifest.provenance:
            return limits
        return f"""{limits}

## Licence of the start

The weights began as those of {manifest.provenance["pretrained_source"]}, whose licence asks for
this notice:

```text
{licence()}
```"""

    def scale(self, data: FrameDataset) -> Tensor:
        """Return 1 eV."""
        return torch.ones((), dtype=torch.float64)


FORCE_FIELDS = ForceFields()
CHGNET_FORCE_FIELDS = ChgnetForceFields()


def fit_elements(expert: ForceFieldExpert, data: FrameDataset) -> None:
    """Set an expert's elements and element energies (least squares, eV) from the training frames,
    in place."""
    rows = data.split.train
    expert.elements[data.structures[0].numbers.unique()] = True
    counts = composition(data.select(rows))
    expert.atom_energies.copy_(energies_of_elements(counts, data.energy[rows]))


def _last_steps(manifest: Any) -> str:
    """Return what was done after merging, as the end of a sentence of the model card."""
    config = manifest.provenance["config"]
    tuned = " and then trained for a short time" if config["tuning"] else ""
    text = f"solved{tuned} on the merged network."
    if aligned := config.get("joint_alignment"):
        text += f"""
Then network, embeddings and heads were trained together for {aligned["epochs"]} epochs, without
labels, to give the energies and forces of the separate models on training frames (joint
alignment)."""
    return text


def _head(shape: ForceFieldShape, state: StateDict, task: str) -> ForceFieldExpert:
    return _filled(ForceFieldExpert(shape), state, f"head of {task}").requires_grad_(False)


def _filled(module: Module, state: StateDict, origin: str) -> Module:
    load_tensors(module, state, origin)
    return module
