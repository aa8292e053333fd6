"""Pre-training of a backbone without labels, resumable after every shard: the self-supervised
objectives of Hu et al. 2020 (arXiv:1905.12265), and molecular descriptors."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor
from tqdm import tqdm

from merging.config.base import CONFIG_FOLDER, Count, Rate, Section, fingerprint
from merging.config.reading import read_config, read_values
from merging.config.training import Schedule
from merging.data.checkpoints import find_checkpoint, is_finished
from merging.data.corpus import Corpus, CorpusConfig, Shard, load_corpus
from merging.data.files import write_tensors
from merging.data.lease import made_once
from merging.targets.metrics import batches
from merging.training.descriptors import (
    DescriptorPrediction,
    DescriptorPredictionConfig,
    RegressionScores,
)
from merging.training.instance_discrimination import InstanceConfig
from merging.training.loop import ResumableTraining
from merging.training.objectives import (
    ContextPredictionConfig,
    EdgePredictionConfig,
    Objective,
    PairScores,
    make_objective,
)
from models.errors import ConfigError
from models.names import Name
from models.networks.hu2020 import Backbone, BackboneConfig, load_backbone

PRETRAIN_CONFIG_FOLDER = CONFIG_FOLDER / "pretraining"
_SAMPLE = 4096
"""Number of molecules by which descriptors are standardised."""
_WARM_UP = 200
"""Number of steps in which the learning rate of a cosine schedule rises."""


class PretrainConfig(Section):
    """A pre-training (Hu et al. 2020: 5 layers of width 300, Adam 1e-3, batch 256, no dropout).

    Attributes:
        setting: its name, and that of the file of weights.
        description: for people.
        backbone: shape of the network.
        objective: context prediction, edge prediction, or prediction of descriptors.
        corpus: the molecules.
        epochs: passes over the corpus.
        batch_size: molecules per step.
        learning_rate: of Adam.
        schedule: whether the learning rate is constant, or rises in the first steps and then falls
            to 0 along half a cosine.
    """

    setting: Name
    description: str
    backbone: BackboneConfig
    objective: Annotated[
        ContextPredictionConfig | EdgePredictionConfig | DescriptorPredictionConfig,
        Field(discriminator="kind"),
    ]
    corpus: CorpusConfig
    epochs: Count = 1
    batch_size: Annotated[int, Field(ge=2)] = 256
    learning_rate: Rate = 1e-3
    schedule: Schedule = "constant"

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a constant schedule, so that finished pre-trainings keep their keys."""
        values: dict[str, Any] = handler(self)
        if self.schedule == "constant":
            del values["schedule"]
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.objective, ContextPredictionConfig):
            inner, outer = self.objective.inner_hops, self.objective.outer_hops
            radius = self.backbone.num_layers
            if not inner < min(outer, radius):
                raise ValueError(
                    f"objective: got inner_hops {inner}, expected less than outer_hops {outer} and"
                    f" than backbone.num_layers {radius} (else context and neighbourhood share no"
                    " atom)"
                )
        return self


def load_pretrain_config(path: Path) -> PretrainConfig | InstanceConfig:
    """Read the configuration of a pre-training from a file or from those of the package; one with a
    `network` is of graphs that are no molecules. Raises ConfigError (see
    `merging.config.reading.read_config`)."""
    if "network" in read_values(path, (PRETRAIN_CONFIG_FOLDER,)):
        return read_config(path, InstanceConfig, PRETRAIN_CONFIG_FOLDER)
    return read_config(path, PretrainConfig, PRETRAIN_CONFIG_FOLDER)


def pretrain(
    config: PretrainConfig,
    data_folder: Path,
    work_folder: Path,
    seed: int,
    device: torch.device,
    workers: int = 1,
) -> Path:
    """Pre-train a backbone, and write its weights with Hu et al.'s parameter names.

    The file is written after every shard, so an interrupted run leaves the weights that it has
    reached, and the same call resumes it. Its metadata hold a `record` (JSON): config, corpus,
    seed, molecules seen, whether it is finished, and loss, accuracy and seconds by shard.

    Args:
        config: network, objective, corpus and optimiser.
        data_folder: holds the files of the corpus, and MoleculeNet's.
        work_folder: gets the featurised corpus, in `data/`, and the weights.
        seed: of weights, order and draws; every shard draws from its own seed, so that a resumed
            run equals an uninterrupted one.
        device: where to train.
        workers: processes for featurising.

    Returns:
        The file `<work_folder>/pretrained/<setting>-seed<seed>.safetensors`.

    Raises:
        DataError: a file of the corpus is absent or has no molecules.
        CheckpointError: the teacher of descriptor prediction is missing or has another shape.
        ConfigError: the smallest shard has fewer molecules than a batch.
        TrainingError: a parameter is no longer finite.
    """
    with_descriptors = isinstance(config.objective, DescriptorPredictionConfig)
    cache = work_folder / "data"
    corpus = load_corpus(config.corpus, data_folder, cache, workers, with_descriptors)
    if min(corpus.sizes) < config.batch_size:
        raise ConfigError(
            f"batch_size: got {config.batch_size}, expected at most the {min(corpus.sizes)}"
            " molecules of the smallest shard"
        )
    key = fingerprint(
        config.model_dump_json(exclude={"setting", "description"}), json.dumps(corpus.record), seed
    )
    path = work_folder / "pretrained" / f"{config.setting}-seed{seed}.safetensors"
    if is_finished(path, key):
        return path
    with made_once(path):
        if not is_finished(path, key):
            checkpoint = path.with_name(f"{path.stem}-{key}.resume.pt")
            objective = _objective(config, corpus, seed, (work_folder, data_folder)).to(device)
            for backbone, record in _train(config, objective, corpus, seed, device, checkpoint):
                metadata = {"key": key, "record": json.dumps(record)}
                write_tensors(path, backbone.state_dict(), metadata)
            checkpoint.unlink(missing_ok=True)
    return path


def _objective(
    config: PretrainConfig, corpus: Corpus, seed: int, folders: tuple[Path, Path]
) -> Objective | DescriptorPrediction:
    """Return the network of the objective, initialised from the seed.

    Args:
        config, corpus: of the pre-training.
        seed: of the weights.
        folders: the work folder and the data folder, where checkpoints are looked for.
    """
    torch.manual_seed(seed)
    settings = config.objective
    if not isinstance(settings, DescriptorPredictionConfig):
        return make_objective(config.backbone, settings)
    teacher = None
    if settings.teacher:
        checkpoint = find_checkpoint(settings.teacher, *folders)
        teacher = load_backbone(checkpoint, settings.teacher_backbone)
    objective = DescriptorPrediction(config.backbone, settings, teacher)
    shard = corpus.shard(0)
    rows = torch.arange(min(_SAMPLE, len(shard.graphs)))
    objective.fit(shard.graphs.select(rows), _descriptors(shard)[rows])
    return objective


def _descriptors(shard: Shard) -> Tensor:
    assert shard.descriptors is not None  # for the type checker: the corpus was read with them
    return shard.descriptors


def _train(
    config: PretrainConfig,
    objective: Objective | DescriptorPrediction,
    corpus: Corpus,
    seed: int,
    device: torch.device,
    checkpoint: Path,
) -> Iterator[tuple[Backbone, dict[str, Any]]]:
    """The backbone after every remaining shard, with the record of its training."""
    optimizer = torch.optim.Adam(objective.parameters(), lr=config.learning_rate, fused=True)
    training = ResumableTraining(objective, optimizer, checkpoint, seed, device)
    total = config.epochs * len(corpus.sizes)
    provenance = {"config": config.model_dump(mode="json"), "corpus": corpus.record, "seed": seed}
    for number in training.epochs(total, f"{config.setting}: shards"):
        shard = corpus.shard((number - 1) % len(corpus.sizes))
        rates = _LearningRates(config, number - 1, total, len(shard.graphs) // config.batch_size)
        result = _train_shard(objective, optimizer, shard, config.batch_size, rates, device)
        training.history.append(result["loss"])
        training.shown = {name: f"{result[name]:.4f}" for name in ("loss", "accuracy")}
        shards = training.kept.setdefault("shards", [])
        shards.append(result)
        seen = sum(shard["molecules"] for shard in shards)
        progress = {"finished": number == total, "molecules_seen": seen, "shards": shards}
        yield objective.backbone, provenance | progress


@dataclass(frozen=True)
class _LearningRates:
    """The learning rates of the steps of one shard.

    Attributes:
        config: of the pre-training.
        shard: number of the shard, counted from 0 over all epochs.
        shards: number of shards of all epochs.
        steps: number of steps of a shard.
    """

    config: PretrainConfig
    shard: int
    shards: int
    steps: int

    def __getitem__(self, step: int) -> float:
        if self.config.schedule == "constant":
            return self.config.learning_rate
        done = self.shard * self.steps + step
        factor = (1 + math.cos(math.pi * done / (self.shards * self.steps))) / 2
        return self.config.learning_rate * factor * min(1.0, (done + 1) / _WARM_UP)


def _train_shard(
    objective: Objective | DescriptorPrediction,
    optimizer: torch.optim.Optimizer,
    shard: Shard,
    size: int,
    rates: _LearningRates,
    device: torch.device,
) -> dict[str, float]:
    """Train on a shard once, in random order and in whole batches: mean loss and accuracy, number
    of molecules, seconds."""
    objective.train()
    start, sums = time.perf_counter(), torch.zeros(2, dtype=torch.float64)
    steps = len(shard.graphs) // size
    rows = torch.randperm(len(shard.graphs))[: steps * size]
    with tqdm(total=len(rows), unit="mol", leave=False) as progress:
        for step, (chosen, batch) in enumerate(batches(shard.graphs, rows, size)):
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
            more = () if shard.descriptors is None else (shard.descriptors[chosen].to(device),)
            scores: PairScores | RegressionScores = objective(batch.to(device), *more)
            loss = scores.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            measured = torch.stack([loss.detach().double(), scores.accuracy()]).cpu()
            sums += measured
            progress.update(len(chosen))
            shown = {"loss": f"{measured[0]:.4f}", "accuracy": f"{measured[1]:.4f}"}
            progress.set_postfix(shown, refresh=False)
    mean_loss, accuracy = (sums / steps).tolist()
    return {
        "loss": mean_loss,
        "accuracy": accuracy,
        "molecules": len(rows),
        "seconds": round(time.perf_counter() - start, 1),
    }
