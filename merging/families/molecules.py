"""The family of molecules: backbones of Hu et al. 2020, fine-tuned from pre-trained weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from merging.config.base import Setting
from merging.config.training import FinetuneConfig, MoleculeTrainingConfig, MultitaskConfig
from merging.data.checkpoints import find_checkpoint, origin
from merging.data.files import sha256
from merging.data.molecule_dataset import (
    MoleculeDataset,
    check_dataset,
    load_dataset,
    load_molecules,
)
from merging.data.pool import Pool, make_pool
from merging.families.molecule_config import MoleculeConfig
from merging.family import Folders, OfflineFamily, StateDict
from merging.targets.losses import LabelScale, compute_loss
from merging.targets.probe import fit_probe
from models.data.smiles import READING_RULE
from models.experts.expert import Expert
from models.experts.unified import DEFAULT_ROUTING
from models.meaning import Counted
from models.networks.hu2020 import Backbone, BackboneConfig, BackboneKind, load_backbone
from models.state_dict import load_tensors
from models.task import Target, TaskInfo

_CHEMISTRY = (
    "Trained on drug-like molecules and environmental chemicals; answers for other chemistry "
    "(polymers, metals, very large molecules) are extrapolations."
)


class Molecules(OfflineFamily):
    """Backbones of Hu et al. with one linear head per task, and adapters on the merged backbone."""

    kinds = get_args(BackboneKind)
    config = MoleculeConfig
    of_molecules = True
    batch_norm = True
    pool_rule = f"reading rule {READING_RULE}"

    def read(
        self, config: MoleculeConfig, task: str, folders: Folders, seed: int
    ) -> MoleculeDataset:
        """Read a task's molecules, featurised at the first use and cached in the work folder,
        without the test molecules of related tasks. Raises DataError: a file is missing or
        invalid, or does not suffice for the task."""
        related = config.related_to(task)
        data = {name: _load(config, name, folders, seed) for name in (task, *related)}
        own = data.pop(task)
        if not data:
            return own
        rest = own.without_tests(data)
        check_dataset(rest, config.dataset_for(task), Path(rest.record["file"]))
        return rest

    def data_settings(self, config: MoleculeConfig, task: str) -> tuple[Setting, ...]:
        """Return the description of a task's table, and those of related tasks."""
        settings: list[Setting] = [config.dataset_for(task)]
        for name in config.related_to(task):
            settings += [name, config.dataset_for(name)]
        return tuple(settings)

    def counted(self, info: TaskInfo) -> Counted:
        """Return "molecules"."""
        return "molecules"

    def source_molecules(
        self, config: MoleculeConfig, data: MoleculeDataset, folders: Folders
    ) -> dict[int, str]:
        """Return the SMILES of a task as written in its source, one per graph, by line."""
        spec = config.dataset_for(data.task)
        return load_molecules(data, spec, folders.data, folders.work / "data")

    def pool_items(
        self, config: MoleculeConfig, data: MoleculeDataset, folders: Folders
    ) -> dict[str, list[str]]:
        """Return the SMILES of a task as written in its file, by subset."""
        texts = self.smiles(config, data, folders)
        return {name: [texts[k] for k in rows.tolist()] for name, rows in vars(data.split).items()}

    def make_pool(
        self,
        config: MoleculeConfig,
        sources: Mapping[str, Sequence[str]],
        left_out: Sequence[str],
        seed: int,
        workers: int,
    ) -> Pool:
        """Read the molecules of a pool: see `merging.data.pool.make_pool`."""
        size = None if config.one_pass is None else config.one_pass.pool.size
        return make_pool(sources, left_out, size, seed, workers)

    def network(self, shape: BackboneConfig, dropout: float = 0.0) -> Backbone:
        """Build a backbone with random weights."""
        return Backbone(shape, dropout)

    def initial_state(self, config: MoleculeConfig, seed: int, folders: Folders) -> StateDict:
        """Return the weights of the pre-trained checkpoint. Raises CheckpointError: it is missing
        or is not of the backbone's shape."""
        state = load_backbone(checkpoint(config, folders), config.shape).state_dict()
        return {f"network.{key}": value for key, value in state.items()}

    def initial_fingerprint(self, config: MoleculeConfig, folders: Folders) -> str:
        """Return the checkpoint's SHA-256 and the version of the rule that reads molecules."""
        return f"{sha256(checkpoint(config, folders))}, reading rule {READING_RULE}"

    def start_head(
        self, network: Backbone, head: nn.Module, data: MoleculeDataset, settings: FinetuneConfig
    ) -> None:
        """Set the head to a linear probe of the network on the training molecules, where the
        settings say so."""
        if settings.head == "random":
            return
        identity, info = nn.Identity(), data.info
        network.eval()
        with torch.no_grad():
            embeddings, labels = self.predict(
                lambda batch: self.outputs(network, identity, batch, info, False),
                data.steps("train", self.evaluation_batch),
                torch.device("cpu"),
            )
        scale = LabelScale.fit(info, [labels]) if info.target == "regression" else None
        head.load_state_dict(fit_probe(embeddings, labels, info.target, scale))

    def loss(
        self,
        outputs: Tensor,
        labels: Tensor,
        data: MoleculeDataset,
        head: nn.Module,
        settings: MoleculeTrainingConfig,
    ) -> Tensor:
        """Compute the training loss of one batch, for regressions the configured one."""
        return compute_loss(outputs, labels, data.info, settings.loss)

    def joint_data(self, data: MoleculeDataset, settings: MultitaskConfig) -> MoleculeDataset:
        """Return the data with at most `cap` training molecules per epoch."""
        return replace(data, most_per_epoch=settings.cap)

    def expert(
        self, config: MoleculeConfig, data: MoleculeDataset, head: StateDict, adapters: StateDict
    ) -> Expert:
        """Build a task's expert: its head and its adapters, whose rank is read from the tensors."""
        info, rank = data.info, adapters["sites.0.up"].shape[0]
        expert = Expert(config.shape, rank, info.labels, info.level, info.output_kind)
        load_tensors(expert.head, head, "head")
        load_tensors(expert.adapters, adapters, "adapters")
        return expert

    def provenance(self, config: MoleculeConfig, folders: Folders) -> dict[str, Any]:
        """Return the checkpoint's SHA-256 and its source."""
        path, pretrained = checkpoint(config, folders), config.pretrained
        source = pretrained.source or origin(pretrained.weights, path)
        return {"pretrained_sha256": sha256(path), "pretrained_source": source}

    def card_introduction(self, manifest: Any) -> str:
        """Return what was merged, and what an answer is by target."""
        shape = manifest.backbone
        return f"""\
One {shape.kind.upper()} backbone ({shape.num_layers} layers x {shape.hidden_dim}) merged from
{len(manifest.tasks)} fine-tuned models{_adapters(manifest)}

{_answers(manifest.tasks)}
Without another wish it is given with routing `{DEFAULT_ROUTING}`."""

    def card_limitations(self, manifest: Any) -> str:
        """Return the chemistry that the answers hold for, and the sources and terms of data and
        weights."""
        described = manifest.provenance["config"]["datasets"]
        own = [task for task in manifest.tasks if described.get(task, {}).get("file")]
        published = [task for task in manifest.tasks if task not in own]
        lines = []
        if published:
            terms = (
                "; SIDER's terms are share-alike and non-commercial" if "sider" in published else ""
            )
            lines = [_CHEMISTRY, f"Data of {', '.join(published)}: MoleculeNet{terms}."]
        if own:
            files = "the files in the table above, under their owner's terms"
            lines += [
                f"Data of {', '.join(own)}: {files}.",
                "Answers for molecules that are unlike those of the files are extrapolations.",
            ]
        lines += [
            f"Pre-trained weights: {manifest.provenance['pretrained_source']}.",
            "For research: no answer of this model is a statement on the safety of a substance.",
        ]
        return "\n".join(lines)


def _adapters(manifest: Any) -> str:
    """Describe the adapters of the tasks, and which tasks share streams."""
    own = f"adapters of rank {manifest.rank} at\n{manifest.backbone.num_layers + 1} sites"
    if not manifest.streams:
        return f", with {own} for each task."
    lines = [
        f"\nThe stream `{name}` is one pass of the network for {', '.join(stream.tasks)}.\n"
        f"These tasks have a graph adapter of rank {stream.graph_rank} each."
        for name, stream in manifest.streams.items()
    ]
    if others := [task for task in manifest.tasks if task not in manifest.stream_of]:
        lines.append(
            f"\nEvery other task ({', '.join(others)}) has a stream of its own, with {own}."
        )
    return "." + "".join(lines)


def _load(config: MoleculeConfig, task: str, folders: Folders, seed: int) -> MoleculeDataset:
    spec, cache = config.dataset_for(task), folders.work / "data"
    return load_dataset(task, spec, folders.data, cache, folders.workers, seed)


def checkpoint(config: MoleculeConfig, folders: Folders) -> Path:
    """Return the path of the pre-trained checkpoint, downloaded if it is a published one. Raises
    CheckpointError: see `find_checkpoint`."""
    return find_checkpoint(config.pretrained.weights, folders.work, folders.data)


_ANSWERS: dict[Target, str] = {
    "multilabel": "An answer is the probability that a label is 1, as the data set defines it.",
    "multiclass": "An answer is a probability for each class; these sum to 1.",
    "regression": "An answer is a number, in the unit of its label.",
}


def _answers(infos: dict[str, TaskInfo]) -> str:
    """Say what an answer is; by task where their targets differ."""
    tasks_of: dict[Target, list[str]] = {}
    for task, info in infos.items():
        tasks_of.setdefault(info.target, []).append(f"`{task}`")
    if len(tasks_of) == 1:
        return _ANSWERS[next(iter(tasks_of))]
    return "\n".join(f"{', '.join(tasks)}: {_ANSWERS[t]}" for t, tasks in tasks_of.items())


MOLECULES = Molecules()
