"""Force fields, offline: SchNet, trained on energies and forces of frames."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from merging.config.base import Count, Section
from merging.config.training import ForceTrainingConfig, Initialisation, TuningConfig
from merging.data.frames import FrameDataset, FramesConfig, Labels, read_lips20, read_md17
from merging.family import Folders, OfflineFamily, RunConfig, StateDict
from merging.mergers.base import MergeResult
from merging.mergers.gffmerge import Teacher, match_mean_energies
from merging.mergers.registry import MergeConfig
from models.data.atoms import AtomsBatch, composition, energies_of_elements
from models.data.schema import AtomsInput
from models.names import Name, check_distinct
from models.networks.schnet import (
    ForceField,
    ForceFieldConfig,
    ForceFieldExpert,
    MergedForceField,
    energy_and_forces,
    potential,
)
from models.state_dict import load_tensors
from models.task import TaskInfo

_ALIGNED_FRAMES = 50


class SystemSpec(Section):
    """The frames of a task.

    Attributes:
        source: which data set the task is a system of.
        frames: how many are used.
        cutoff: in Angstrom; atoms within it are neighbours.
    """

    source: Literal["md17", "lips20"]
    frames: FramesConfig
    cutoff: float


class ForceFieldRunConfig(RunConfig):
    """Systems of one data set, one network for all of them.

    Attributes:
        source: which data set the tasks are systems of.
        tasks: at least two, each once.
        initialisation: whether all tasks start from the same random weights, or each from its own.
        training: of each task's own model, and of joint training, which takes as many epochs.
        calibration_frames: training frames of each task that a merger may see, without labels; the
            paper's 500.
        tuning: of the heads on the merged network, with labels; None: they stay as merged.
    """

    source: Literal["md17", "lips20"]
    tasks: tuple[Name, ...]
    network: ForceFieldConfig
    frames: FramesConfig
    initialisation: Initialisation = "shared"
    training: ForceTrainingConfig
    merge: MergeConfig = MergeConfig(method="gffmerge")
    calibration_frames: Count = 500
    tuning: TuningConfig | None = None

    @model_validator(mode="after")
    def _several_tasks(self) -> Self:
        if len(self.tasks) < 2 or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks: got {list(self.tasks)}, expected two or more, each once")
        check_distinct(self.tasks)
        return self

    @property
    def shape(self) -> ForceFieldConfig:
        """The network's."""
        return self.network

    @property
    def head_tuning(self) -> TuningConfig | None:
        """`tuning`."""
        return self.tuning

    @property
    def joint_training(self) -> ForceTrainingConfig:
        """As long as that of each task."""
        return self.training

    def dataset_for(self, task: str) -> SystemSpec:
        """Which frames, and how far neighbours are."""
        return SystemSpec(source=self.source, frames=self.frames, cutoff=self.network.cutoff)

    def training_for(self, task: str) -> ForceTrainingConfig:
        """The same for every task."""
        return self.training

    def initial_seed(self, task: str, seed: int) -> int:
        """Of the weights that a task's network and head start from."""
        if self.initialisation == "shared":
            return seed
        return 1000 * (seed + 1) + self.tasks.index(task)


class ForceFields(OfflineFamily):
    """SchNet with an embedding, a head and a scale of energies for each task."""

    kinds = ("schnet",)
    config = ForceFieldRunConfig
    config_folder = "force_fields"
    default_mergers = (MergeConfig(method="weight_average"), MergeConfig(method="gffmerge"))
    calibration_batch = 10
    evaluation_batch = 25

    def read(
        self, config: ForceFieldRunConfig, task: str, folders: Folders, seed: int
    ) -> FrameDataset:
        """A system's frames. Raises DataError: a file is absent, does not have the published form,
        or holds too few frames."""
        read = read_md17 if config.source == "md17" else read_lips20
        place = folders.data / config.source / task
        found = read(place, config.frames, config.network.cutoff)
        return replace(found, about=f"potential energy and forces of {task}, {config.source}")

    def network(self, shape: ForceFieldConfig, dropout: float = 0.0) -> ForceField:
        """With random weights; dropout is of no use to a force field."""
        return ForceField(shape)

    def head(self, shape: ForceFieldConfig, data: Any) -> ForceFieldExpert:
        """With random weights."""
        return ForceFieldExpert(shape)

    def initial_state(self, config: ForceFieldRunConfig, seed: int, folders: Folders) -> StateDict:
        """Random weights of network and head, by the seed alone."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network, head = ForceField(config.network), ForceFieldExpert(config.network)
        return {
            f"{name}.{key}": value
            for name, module in (("network", network), ("head", head))
            for key, value in module.state_dict().items()
        }

    def calibration_graphs(self, config: ForceFieldRunConfig) -> int:
        """`calibration_frames`."""
        return config.calibration_frames

    def prepare_head(self, network: ForceField, head: ForceFieldExpert, data: FrameDataset) -> None:
        """Elements, scale (root mean square of the forces) and energies of elements, such that mean
        energies are right from the first step."""
        fit_scale(head, data)
        rows = data.split.train[:_ALIGNED_FRAMES]
        batch = data.select(rows)
        with torch.no_grad():
            error = data.energy[rows] - potential(network, head, batch, batch.positions)
        head.atom_energies += energies_of_elements(composition(batch), error)

    def tuned_parameters(self, head: ForceFieldExpert) -> Iterable[nn.Parameter]:
        """The two Linears; the embedding belongs to the network's input."""
        return [*head.lin1.parameters(), *head.lin2.parameters()]

    def outputs(
        self,
        network: ForceField,
        head: ForceFieldExpert,
        batch: AtomsBatch,
        info: TaskInfo,
        training: bool,
    ) -> Labels:
        """Energies (G,) in eV and forces (N, 3) in eV / Angstrom."""
        said = energy_and_forces(network, head, batch, differentiable=training)
        return Labels(said.energy, said.forces)

    def loss(
        self,
        outputs: Labels,
        labels: Labels,
        data: FrameDataset,
        head: ForceFieldExpert,
        settings: ForceTrainingConfig,
    ) -> Tensor:
        """Mean square error of the components of the forces plus `energy_weight` times that of the
        energies, both over the task's scale squared."""
        scale = head.scale
        forces = ((outputs.forces - labels.forces) / scale.to(labels.forces)).pow(2).mean()
        energy = ((outputs.energy - labels.energy) / scale).pow(2).mean()
        return forces + settings.energy_weight * energy.to(forces)

    def score(self, outputs: Labels, labels: Labels, info: TaskInfo) -> float:
        """Minus the error of the forces."""
        return -self.metrics(outputs, labels, info)["forces"]

    def metrics(self, outputs: Labels, labels: Labels, info: TaskInfo) -> dict[str, float]:
        """Mean absolute errors: of the components of the forces in meV / Angstrom, of the energy in
        meV."""
        energy = 1e3 * float((outputs.energy - labels.energy).abs().mean())
        forces = 1e3 * float((outputs.forces - labels.forces).abs().mean())
        return {"energy": energy, "forces": forces}

    def table_metrics(self, info: TaskInfo) -> tuple[str, ...]:
        """Both."""
        return "energy", "forces"

    def concatenate(self, values: Sequence[Labels]) -> Labels:
        """Of several batches."""
        energies, forces = zip(*((one.energy, one.forces) for one in values), strict=True)
        return Labels(torch.cat(energies), torch.cat(forces))

    def merged_head(
        self,
        shape: ForceFieldConfig,
        merged: MergeResult,
        task: str,
        teacher: tuple[StateDict, StateDict],
        batches: Callable[[], Sequence[AtomsBatch]],
    ) -> StateDict:
        """The head that the merger solved; or the task's own one, its mean energy as before."""
        if task in merged.heads:
            return merged.heads[task]
        network, (own, head) = ForceField(shape), (ForceField(shape), ForceFieldExpert(shape))
        load_tensors(network, merged.backbone_for(task), "merged network")
        load_tensors(own, teacher[0], f"network of {task}")
        load_tensors(head, teacher[1], f"head of {task}")
        model = MergedForceField(network, {task: head})
        before = Teacher(own, self._copy(shape, teacher[1]), tuple(batches()))
        return match_mean_energies(model, {task: before}).expert(task).state_dict()

    def _copy(self, shape: ForceFieldConfig, head: StateDict) -> ForceFieldExpert:
        made = ForceFieldExpert(shape)
        made.load_state_dict(head)
        return made.requires_grad_(False)

    def expert(
        self, config: ForceFieldRunConfig, data: FrameDataset, head: StateDict, adapters: StateDict
    ) -> ForceFieldExpert:
        """The head."""
        return self._copy(config.network, head)

    def input_schema(
        self, experts: Mapping[str, ForceFieldExpert], data: Mapping[str, Any]
    ) -> AtomsInput:
        """The elements of each task."""
        return AtomsInput(
            elements={
                task: tuple(expert.elements.nonzero().flatten().tolist())
                for task, expert in experts.items()
            }
        )

    def card_introduction(self, manifest: Any) -> str:
        """What was merged, and what a task keeps."""
        tuned = manifest.provenance["config"]["tuning"]
        after = " and then trained for a short time" if tuned else ""
        return f"""\
The interaction blocks of SchNet, merged from {len(manifest.tasks)} force fields that were trained
apart. Each task keeps its own atom embeddings, scale of energies and head, solved{after} on the
merged network. Errors of energies are in meV, of forces in meV / Angstrom."""

    def card_limitations(self, manifest: Any) -> str:
        """That this is no potential to simulate with."""
        return """\
Small networks, short trainings, one seed: a demonstration of merging, not a potential to simulate
with. A task answers for structures like its own frames (one molecule each); other elements are
refused, other molecules of the same elements are not, and their answers mean nothing."""


FORCE_FIELDS = ForceFields()


def fit_scale(expert: ForceFieldExpert, data: FrameDataset) -> None:
    """Set what an expert takes from the training frames: elements, scale (root mean square of the
    forces) and mean energy."""
    rows = data.split.train
    expert.elements[data.structures[0].numbers.unique()] = True
    expert.scale.copy_(data.forces[rows].double().pow(2).mean().sqrt())
    counts = composition(data.select(rows))
    expert.atom_energies.copy_(energies_of_elements(counts, data.energy[rows]))
