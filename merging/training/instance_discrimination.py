"""Pre-training of a graph network without labels or features: instance discrimination on ego graphs
(GCC, Qiu et al. 2020, arXiv:2006.09963)."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from merging.config.base import Count, Rate, Section, Weight, fingerprint
from merging.data.checkpoints import is_finished
from merging.data.files import write_tensors
from merging.data.lease import made_once
from merging.data.structure_graphs import CollectionSpec, EgoSpec, read_structures
from merging.training.loop import ResumableTraining
from models.data.batch import mean_readout
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.structural import STRUCTURAL_FEATURES, EgoGraphs, Walk
from models.names import Name
from models.networks.pyg import GraphNetwork, GraphNetworkConfig


class InstanceConfig(Section):
    """A pre-training by instance discrimination.

    An instance is a node of a large graph, or one node of every graph of a collection, drawn once.
    A view of it is the ego graph of a random walk with restart. Two views of an instance are to be
    closer to each other than to the views of the other instances of the batch.

    Attributes:
        setting: its name, and that of the file of weights.
        description: for people.
        network: shape of the network, which takes structural features.
        graphs: the sets whose structure is used, by name; their labels are not.
        hops, restart: of the walks. GCC takes 256 hops; fewer make two views differ more.
        views: views per instance, drawn once; every epoch takes two of them at random.
        temperature: of the softmax over cosine similarities.
    """

    setting: Name
    description: str = ""
    network: GraphNetworkConfig
    graphs: Annotated[
        dict[Name, Annotated[EgoSpec | CollectionSpec, Field(discriminator="kind")]],
        Field(min_length=1),
    ]
    hops: Count = 64
    restart: Annotated[float, Field(ge=0, le=1)] = 0.8
    views: Annotated[int, Field(ge=2)] = 3
    epochs: Count = 30
    batch_size: Annotated[int, Field(ge=2)] = 128
    learning_rate: Rate = 0.005
    weight_decay: Weight = 1e-5
    temperature: Rate = 0.07

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.network.in_dim != STRUCTURAL_FEATURES:
            got = f"network.in_dim: got {self.network.in_dim}"
            raise ValueError(f"{got}, expected the structural features, {STRUCTURAL_FEATURES}")
        return self


def pretrain_network(
    config: InstanceConfig, data: Path, work: Path, seed: int, device: torch.device
) -> Path:
    """Pre-train a graph network; a stopped run resumes after its last epoch.

    The metadata of the file hold a `record` (JSON): config, SHA-256 of the files, seed, and by
    epoch loss, accuracy (the share of views whose nearest view is of the same instance) and
    seconds.

    Args:
        config: network, graphs and optimiser.
        data: the data folder.
        work: gets the weights.
        seed: of weights, views, order and pairs.
        device: where to train.

    Returns:
        The file `<work>/pretrained/<setting>-seed<seed>.safetensors`.

    Raises:
        DataError: a file is missing or cannot be read.
        TrainingError: a weight is no longer finite.
    """
    sources = {name: read_structures(spec, data).sources for name, spec in config.graphs.items()}
    settings = config.model_dump_json(exclude={"setting", "description"})
    key = fingerprint(settings, json.dumps(sources), seed)
    path = work / "pretrained" / f"{config.setting}-seed{seed}.safetensors"
    if is_finished(path, key):
        return path
    with made_once(path):
        if not is_finished(path, key):
            checkpoint = path.with_name(f"{path.stem}-{key}.resume.pt")
            network, epochs = _train(
                config, draw_views(config, data, seed), seed, device, checkpoint
            )
            record = {"config": config.model_dump(mode="json"), "sources": sources, "seed": seed}
            content = json.dumps(record | {"finished": True, "epochs": epochs})
            write_tensors(path, network.state_dict(), {"key": key, "record": content})
            checkpoint.unlink(missing_ok=True)
    return path


def draw_views(config: InstanceConfig, data: Path, seed: int) -> list[list[FeatureGraph]]:
    """Draw the views of all instances: by instance `views` ego graphs. Raises DataError: see
    `read_structures`."""
    return [
        [
            egos.drawn(node, np.random.default_rng((seed, number, view)))
            for view in range(config.views)
        ]
        for number, (egos, node) in enumerate(_instances(config, data, seed))
    ]


def _instances(config: InstanceConfig, data: Path, seed: int) -> Iterator[tuple[EgoGraphs, int]]:
    walk = Walk(config.hops, config.restart)
    generator = np.random.default_rng(seed)
    for spec in config.graphs.values():
        found = read_structures(spec, data)
        if spec.kind == "ego":
            ((edge_index, nodes),) = found.graphs
            egos = EgoGraphs(edge_index, nodes, walk)
            yield from ((egos, node) for node in generator.permutation(nodes)[: spec.most].tolist())
        else:
            for k in generator.permutation(len(found.graphs))[: spec.most].tolist():
                edge_index, nodes = found.graphs[k]
                yield EgoGraphs(edge_index, nodes, walk), int(generator.integers(nodes))


def contrast(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute InfoNCE of two views of B instances, both ways, each with the other B - 1 as
    negatives (van den Oord et al. 2018, arXiv:1807.03748).

    Args:
        first, second: (B, d) embeddings; row k of both is of instance k.
        temperature: of the softmax over cosine similarities.

    Returns:
        The loss, and the share of rows whose nearest row is that of the same instance.
    """
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    instances = torch.arange(len(first), device=first.device)
    loss = F.cross_entropy(similarity, instances) + F.cross_entropy(similarity.T, instances)
    return loss / 2, (similarity.argmax(1) == instances).double().mean()


def _train(
    config: InstanceConfig,
    views: list[list[FeatureGraph]],
    seed: int,
    device: torch.device,
    checkpoint: Path,
) -> tuple[GraphNetwork, list[dict[str, float]]]:
    torch.manual_seed(seed)
    network = GraphNetwork(config.network).to(device)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    training = ResumableTraining(network, optimizer, checkpoint, seed, device)
    for _ in training.epochs(config.epochs, f"{config.setting}: epochs"):
        start = time.perf_counter()
        scores = []
        for first, second in _pairs(views, config.batch_size):
            embedded = _embed(network, first, device), _embed(network, second, device)
            loss, accuracy = contrast(*embedded, config.temperature)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)  # as GCC does
            optimizer.step()
            scores.append((float(loss.detach()), float(accuracy)))
        means = np.mean(scores, axis=0).round(5).tolist()
        result = dict(zip(("loss", "accuracy"), means, strict=True))
        training.history.append(result["loss"])
        training.shown = dict(result)
        seconds = {"seconds": round(time.perf_counter() - start, 1)}
        training.kept.setdefault("epochs", []).append(result | seconds)
    return network, training.kept["epochs"]


def _pairs(
    views: list[list[FeatureGraph]], size: int
) -> Iterator[tuple[list[FeatureGraph], list[FeatureGraph]]]:
    """Two views of every instance, in whole batches in random order."""
    order = torch.randperm(len(views)).tolist()
    for start in range(0, len(order) - size + 1, size):
        chosen = [views[k] for k in order[start : start + size]]
        drawn = [torch.randperm(len(graphs))[:2].tolist() for graphs in chosen]
        first, second = (
            [graphs[numbers[side]] for graphs, numbers in zip(chosen, drawn, strict=True)]
            for side in range(2)
        )
        yield first, second


def _embed(network: GraphNetwork, graphs: list[FeatureGraph], device: torch.device) -> Tensor:
    batch = collate_features(graphs).to(device)
    return mean_readout(network(batch), batch)
