"""Self-supervised pre-training of a backbone, resumable after every shard (Hu et al. 2020,
arXiv:1905.12265)."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from safetensors import safe_open
from tqdm import tqdm

from merging.config.base import CONFIG_FOLDER, Count, Rate, Section, fingerprint
from merging.config.reading import read_config
from merging.data.corpus import Corpus, CorpusConfig, load_corpus
from merging.data.files import made_once, reading, write_tensors
from merging.targets.metrics import batches
from merging.training.loop import ResumableTraining
from merging.training.objectives import (
    ContextPredictionConfig,
    EdgePredictionConfig,
    Objective,
    PairScores,
    make_objective,
)
from models.data.molecule import PackedGraphs
from models.errors import ConfigError
from models.names import Name
from models.networks.hu2020 import Backbone, BackboneConfig

PRETRAIN_CONFIG_FOLDER = CONFIG_FOLDER / "pretraining"


class PretrainConfig(Section):
    """A pre-training (Hu et al. 2020: 5 layers of width 300, Adam 1e-3, batch 256, no dropout).

    Attributes:
        setting: its name, and that of the file of weights.
        description: for people.
        backbone: shape of the network.
        objective: context prediction or edge prediction.
        corpus: the molecules.
        epochs: passes over the corpus.
        batch_size: molecules per step.
        learning_rate: of Adam.
    """

    setting: Name
    description: str
    backbone: BackboneConfig
    objective: Annotated[
        ContextPredictionConfig | EdgePredictionConfig, Field(discriminator="kind")
    ]
    corpus: CorpusConfig
    epochs: Count = 1
    batch_size: Annotated[int, Field(ge=2)] = 256
    learning_rate: Rate = 1e-3

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


def load_pretrain_config(path: Path) -> PretrainConfig:
    """Read the configuration of a pre-training from a file or from those of the package. Raises
    ConfigError (see `merging.config.reading.read_config`)."""
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
        ConfigError: the smallest shard has fewer molecules than a batch.
        TrainingError: a parameter is no longer finite.
    """
    corpus = load_corpus(config.corpus, data_folder, work_folder / "data", workers)
    if min(corpus.sizes) < config.batch_size:
        raise ConfigError(
            f"batch_size: got {config.batch_size}, expected at most the {min(corpus.sizes)}"
            " molecules of the smallest shard"
        )
    key = fingerprint(
        config.model_dump_json(exclude={"setting", "description"}), json.dumps(corpus.record), seed
    )
    path = work_folder / "pretrained" / f"{config.setting}-seed{seed}.safetensors"
    if _is_finished(path, key):
        return path
    with made_once(path):
        if not _is_finished(path, key):
            checkpoint = path.with_name(f"{path.stem}-{key}.resume.pt")
            for backbone, record in _train(config, corpus, seed, device, checkpoint):
                metadata = {"key": key, "record": json.dumps(record)}
                write_tensors(path, backbone.state_dict(), metadata)
            checkpoint.unlink(missing_ok=True)
    return path


def _is_finished(path: Path, key: str) -> bool:
    if not path.is_file():
        return False
    with reading(path), safe_open(path, "pt") as stream:
        metadata = stream.metadata()
    return bool(metadata["key"] == key and json.loads(metadata["record"])["finished"])


def _train(
    config: PretrainConfig, corpus: Corpus, seed: int, device: torch.device, checkpoint: Path
) -> Iterator[tuple[Backbone, dict[str, Any]]]:
    """The backbone after every remaining shard, with the record of its training."""
    torch.manual_seed(seed)
    objective = make_objective(config.backbone, config.objective).to(device)
    optimizer = torch.optim.Adam(objective.parameters(), lr=config.learning_rate, fused=True)
    training = ResumableTraining(objective, optimizer, checkpoint, seed, device)
    total = config.epochs * len(corpus.sizes)
    provenance = {"config": config.model_dump(mode="json"), "corpus": corpus.record, "seed": seed}
    for number in training.epochs(total, f"{config.setting}: shards"):
        graphs = corpus.shard((number - 1) % len(corpus.sizes))
        result = _train_shard(objective, optimizer, graphs, config.batch_size, device)
        training.history.append(result["loss"])
        training.shown = {name: f"{result[name]:.4f}" for name in ("loss", "accuracy")}
        shards = training.kept.setdefault("shards", [])
        shards.append(result)
        seen = sum(shard["molecules"] for shard in shards)
        progress = {"finished": number == total, "molecules_seen": seen, "shards": shards}
        yield objective.backbone, provenance | progress


def _train_shard(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    graphs: PackedGraphs,
    size: int,
    device: torch.device,
) -> dict[str, float]:
    """Train on a shard once, in random order and in whole batches: mean loss and accuracy, number
    of molecules, seconds."""
    objective.train()
    start, sums = time.perf_counter(), torch.zeros(2, dtype=torch.float64)
    steps = len(graphs) // size
    rows = torch.randperm(len(graphs))[: steps * size]
    with tqdm(total=len(rows), unit="mol", leave=False) as progress:
        for chosen, batch in batches(graphs, rows, size):
            scores: PairScores = objective(batch.to(device))
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
