"""Makes a golden artifact, once per format version: `python -m tests.golden.make [streams]`. Never
to make a failing test pass."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch

from models.artifact import load_artifact, save_artifact
from models.data.molecule import collate
from models.data.smiles import featurize
from models.experts.expert import TaskExpert, shared_streams
from models.experts.router import RouterConfig
from models.experts.unified import Routing
from models.manifest import Manifest, StreamInfo, make_manifest
from models.task import TaskInfo
from tests.conftest import SMILES, pico_config, random_backbone, random_experts, sharing_experts

FOLDER = Path(__file__).parent
ROUTER = RouterConfig(temperature=0.3, graph_temperature=0.3, top_k=2)


def main() -> None:
    """Make the artifact of format version 1."""
    experts = random_experts(pico_config())
    tasks = {
        task: TaskInfo(labels=expert.label_names, description=f"made-up task {task}")
        for task, expert in experts.items()
    }
    manifest = make_manifest(
        "pico", "1.0.0", pico_config(), 4, ROUTER, tasks, {"seed": 0}, {"own": {"average": 0.5}}
    )
    write("artifact", "answers", manifest, experts, ("moe", "own"))


def with_streams() -> None:
    """Make the artifact of format version 2: two shared streams, one with node adapters, and a task
    with a stream of its own."""
    experts = sharing_experts("several", pico_config())
    streams = {
        name: StreamInfo(
            tasks=tuple(task for task, expert in experts.items() if expert.stream is stream),
            rank=stream.rank,
            graph_rank=graph_rank,
        )
        for (name, stream), graph_rank in zip(shared_streams(experts).items(), (6, 4), strict=True)
    }
    tasks = {task: TaskInfo(labels=expert.label_names) for task, expert in experts.items()}
    manifest = make_manifest("pico", "2.0.0", pico_config(), 4, ROUTER, tasks, streams=streams)
    write("streams", "answers-streams", manifest, experts, get_args(Routing))


def write(
    folder: str,
    answers: str,
    manifest: Manifest,
    experts: Mapping[str, TaskExpert],
    routings: Sequence[Routing],
) -> None:
    """Write an artifact, and its answers beside it."""
    save_artifact(FOLDER / folder, manifest, random_backbone(pico_config()), experts)
    artifact = load_artifact(FOLDER / folder)
    batch = collate([featurize(smiles).graph for smiles in SMILES])
    found = {
        routing: {
            task: values.tolist()
            for task, values in artifact.model(batch, routing=routing).probabilities.items()
        }
        for routing in routings
    }
    content = {"smiles": SMILES, "digest": artifact.digest, "probabilities": found}
    (FOLDER / f"{answers}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with_streams() if sys.argv[1:] == ["streams"] else main()
