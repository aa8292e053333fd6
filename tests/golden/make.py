"""Makes the golden artifact, once per format version: `python -m tests.golden.make`. Never to make
a failing test pass."""

import json
from pathlib import Path

import torch

from models.artifact import load_artifact, save_artifact
from models.data.molecule import collate
from models.data.smiles import featurize
from models.experts.router import RouterConfig
from models.manifest import make_manifest
from models.task import TaskInfo
from tests.conftest import SMILES, pico_config, random_backbone, random_experts

FOLDER = Path(__file__).parent


def main() -> None:
    config, router = pico_config(), RouterConfig(temperature=0.3, graph_temperature=0.3, top_k=2)
    experts = random_experts(config)
    tasks = {
        task: TaskInfo(labels=expert.label_names, description=f"made-up task {task}")
        for task, expert in experts.items()
    }
    manifest = make_manifest(
        "pico", "1.0.0", config, 4, router, tasks, {"seed": 0}, {"own": {"average": 0.5}}
    )
    save_artifact(FOLDER / "artifact", manifest, random_backbone(config), experts)
    artifact = load_artifact(FOLDER / "artifact")
    batch = collate([featurize(smiles).graph for smiles in SMILES])
    answers = {
        routing: {
            task: values.tolist()
            for task, values in artifact.model(batch, routing=routing).probabilities.items()
        }
        for routing in ("moe", "own")
    }
    (FOLDER / "answers.json").write_text(
        json.dumps(
            {"smiles": SMILES, "digest": artifact.digest, "probabilities": answers}, indent=1
        )
        + "\n"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
