"""Routing among up to 1024 experts: all of them, or only the nearest few (`models.screening`).

    python -m benchmarks.many_experts [--counts 8 64] [--rounds 1]

The experts are synthetic. "families": copies of the eight released experts with noise of 5, 10, 20
and 50 % of the standard deviation of their weights, so that every task has similar experts.
"unrelated": random adapters of the same standard deviation, of which none are similar: the hard
case.
"""

import argparse
import itertools
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import RESULTS, in_turns, machine, summary
from benchmarks.molecules import fixed_molecules
from merging.data.files import write_json
from models.artifact import ArtifactComponents, load_artifact, load_components, save_artifact
from models.compiled.model import CompiledModel
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, collate
from models.data.smiles import featurize
from models.experts.expert import Expert
from models.experts.unified import UnifiedModel
from models.manifest import Manifest, make_manifest
from models.screening import ScreenedModel, candidate_experts, nearest_experts
from models.task import TaskInfo

_NOISE = 0.05, 0.1, 0.2, 0.5
_CANDIDATES = 8, 16, 32, 64, 128
# an original, and relatives with noise of 10, 5 and 50 %; or the first four originals
_ASKED = 0, 9, 34, 27
_TOP_K = 4
_MOLECULES, _SCREENED_WITH = 64, 200
_PROBABILITY = 1e-3


def synthetic(artifact: ArtifactComponents, count: int, kind: str) -> ArtifactComponents:
    """Build an artifact with the given one's backbone and `count` experts of one label; see the
    module.
    """
    generator, experts = torch.Generator().manual_seed(0), {}
    for k, (family, original) in zip(
        range(count), itertools.cycle(artifact.experts.items()), strict=False
    ):
        expert = experts[f"{family}-{k}"] = Expert(
            artifact.manifest.backbone, artifact.manifest.rank, ["label"]
        )
        expert.adapters.load_state_dict(original.adapters.state_dict())
        with torch.no_grad():
            expert.head.weight.copy_(original.head.weight[:1])
            expert.head.bias.copy_(original.head.bias[:1])
            for value in expert.adapters.sites.parameters():
                noise = torch.randn(value.shape, generator=generator) * value.std()
                if kind == "unrelated":
                    value.copy_(noise)
                elif k >= len(artifact.experts):
                    value.add_(noise, alpha=_NOISE[k // len(artifact.experts) % len(_NOISE)])
    router = artifact.manifest.router.model_copy(update={"top_k": _TOP_K, "candidates": None})
    tasks = {task: TaskInfo(labels=("label",)) for task in experts}
    manifest = make_manifest(
        "many", "0", artifact.manifest.backbone, artifact.manifest.rank, router, tasks
    )
    return ArtifactComponents(manifest, artifact.backbone, experts, "")


def screened(
    manifest: Manifest, nearest: Mapping[str, tuple[str, ...]], candidates: int
) -> Manifest:
    """Add the nearest experts to a manifest. Tasks that are not requested get some names, so that
    the file is as long as a real one.
    """
    tasks = tuple(manifest.tasks)
    others = {
        task: nearest.get(
            task,
            tuple(other for other in tasks[: max(_CANDIDATES) + 1] if other != task)[
                : max(_CANDIDATES)
            ],
        )
        for task in tasks
    }
    return manifest.model_copy(
        update={
            "nearest": others,
            "router": manifest.router.model_copy(update={"candidates": candidates}),
        }
    )


def agreement(
    full: Mapping[str, tuple[Tensor, Tensor]], model: ScreenedModel, batch: GraphBatch
) -> dict[str, Any]:
    """Compare routing among candidates with routing among all experts.

    Returns:
        Shares of (molecule, task) with the same experts of weight at every site, and with a
        probability within `_PROBABILITY`; and the largest difference.
    """
    same, near, most = [], [], 0.0
    for task, (probabilities, weights) in full.items():
        output = model(batch, [task], "moe")
        difference = (output.probabilities[task] - probabilities).abs()
        same.append(((output.routing_weights[task] > 0) == (weights > 0)).all(-1).all(-1))
        near.append((difference <= _PROBABILITY).all(-1))
        most = max(most, float(difference.max()))
    shares = [round(float(torch.cat(hits).float().mean()), 4) for hits in (same, near)]
    by_task = [round(float(hits.float().mean()), 4) for hits in same]
    return {
        "same_experts": shares[0],
        "by_asked_task": by_task,
        "same_probability": shares[1],
        "largest_difference": round(most, 6),
    }


def measure(
    artifact: ArtifactComponents, batch: GraphBatch, unlabelled: list[MolGraph], rounds: int
) -> dict[str, Any]:
    """Measure one number of experts: seconds per molecule of one requested task, and how far the
    answers agree.
    """
    manifest, tasks = artifact.manifest, tuple(artifact.experts)
    requested = [tasks[k] for k in (_ASKED if len(tasks) > max(_ASKED) else range(len(_ASKED)))]
    full = CompiledModel(UnifiedModel(artifact.backbone, artifact.experts, manifest.router))
    answers = {task: full(batch, [task], "moe") for task in requested}
    expected = {
        task: (answer.probabilities[task], answer.routing_weights[task])
        for task, answer in answers.items()
    }
    began = time.process_time()
    nearest = nearest_experts(
        artifact.backbone,
        artifact.experts,
        manifest.router,
        unlabelled,
        max(_CANDIDATES),
        requested,
    )
    found: dict[str, Any] = {
        "experts": len(tasks),
        "screening_cpu_seconds_per_task": round((time.process_time() - began) / len(requested), 4),
    }
    few: dict[str, dict[str, Any]] = {}
    cases: dict[str, CompiledModel | ScreenedModel] = {"full": full}
    for candidates in (count for count in _CANDIDATES if len(tasks) > count + 1):
        model = ScreenedModel(
            ArtifactComponents(
                screened(manifest, nearest, candidates), artifact.backbone, artifact.experts, ""
            )
        )
        began = time.process_time()
        model(batch, requested[:1], "moe")
        first = time.process_time() - began
        few[str(candidates)] = agreement(expected, model, batch) | {
            "first_call_cpu_seconds": round(first, 4)
        }
        cases[str(candidates)] = model
    timings = in_turns(
        {name: partial(model, batch, requested[:1], "moe") for name, model in cases.items()}, rounds
    )
    for name, seconds in timings.items():
        row = few.setdefault(name, {})
        row["cpu_ms_per_molecule"] = summary(
            [1000 * value / batch.num_graphs for value in seconds], 4
        )
    return found | {"full_model_mbytes": round(full.num_bytes / 2**20, 1), "candidates": few}


def loading(artifact: ArtifactComponents, rounds: int) -> dict[str, Any]:
    """Measure seconds to load the candidates of one task, all experts, and all of them as one
    model.
    """
    candidates, task = 16, next(iter(artifact.experts))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "many"
        manifest = save_artifact(
            folder, screened(artifact.manifest, {}, candidates), artifact.backbone, artifact.experts
        )
        cases = {
            "lazily": partial(load_artifact, folder, tasks=candidate_experts(manifest, task)),
            "all_parts": partial(load_components, folder),
            "as_a_model": partial(load_artifact, folder),
        }
        timings = in_turns(cases, rounds)
        return {"experts": len(artifact.experts)} | {
            name: summary(seconds, 4) for name, seconds in timings.items()
        }


def slopes(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Fit the log-log slope of time over the number of experts, from 64 on, for each model."""
    found = {}
    for name in ("full", *map(str, _CANDIDATES)):
        large = [row for row in rows if row["experts"] >= 64 and name in row["candidates"]]
        points = [
            (row["experts"], row["candidates"][name]["cpu_ms_per_molecule"]["median"])
            for row in large
        ]
        if len(points) > 1:
            found[name] = round(float(np.polyfit(*np.log(points).T, 1)[0]), 3)
    return found


def main() -> None:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--artifact",
        type=Path,
        default=Path("models/releases/moleculenet-gcn"),
        help="of rank 10: at rank 30 the tables of 1024 experts take 19 GB",
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "many_experts.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    artifact = load_components(arguments.artifact)
    graphs = [featurize(text).graph for text in fixed_molecules(_MOLECULES + _SCREENED_WITH)]
    batch, unlabelled = collate(graphs[:_MOLECULES]), graphs[_MOLECULES:]
    content: dict[str, Any] = {
        "machine": machine(1),
        "rank": artifact.manifest.rank,
        "top_k": _TOP_K,
        "molecules": _MOLECULES,
    }
    content |= {
        "asked_tasks": len(_ASKED),
        "molecules_screened_with": _SCREENED_WITH,
        "near_probability": _PROBABILITY,
    }
    for kind in ("families", "unrelated"):
        rows = []
        for count in arguments.counts:
            rows.append(
                measure(synthetic(artifact, count, kind), batch, unlabelled, arguments.rounds)
            )
            print(kind, rows[-1], flush=True)
        content[kind] = {"slopes": slopes(rows), "points": rows}
    content["loading"] = [
        loading(synthetic(artifact, count, "families"), arguments.rounds)
        for count in arguments.counts
    ]
    print(content["loading"])
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
