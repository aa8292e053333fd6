"""Do KDEM and PPEM bring the merged adapter closer to the ensemble, when the graph adapters of a
shared stream are tied together during joint alignment? (`gmerging study tied-adapters`)

The experts are the graph adapters of all tasks (`merging.studies.experts.adapters`), trained as
`ties` says, from one draw of the adapters for all tasks or a draw for each.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from merging.data.files import write_json
from merging.run.build import build
from merging.run.one_pass import one_pass, pool, settings_of, stream_of, train_stream
from merging.run.run import Run
from merging.run.scores import environment
from merging.run.stage import Stage
from merging.run.store import StageResult
from merging.studies.experts.adapters import (
    AdapterExperts,
    TiedStream,
    distillation,
    ensemble,
    share_draw,
)
from merging.studies.experts.competence import correlation
from merging.studies.experts.config import VariantConfig, load_experts_config
from merging.studies.experts.study import relative_error
from merging.studies.experts.supervised import check_tasks
from merging.targets.metrics import compute_outputs
from merging.training.joint_alignment import SharedStream
from models.data.batch import GraphBatch
from models.data.molecule import PackedGraphs

DRAWS = {
    "own": ("none", "kdem_strong"),
    "same": ("none", "kdem", "ppem", "kdem_strong", "ppem_strong", "kdem_every", "ppem_every"),
}
"""By draw of the adapters' `down` the variants of training: a draw for each task, as joint
alignment has it, or the same for all."""
BANKS = {"all": False, "strangers": True}
"""Banks of experts, and whether the task's own is left out."""
REPEATS = 5
Record = dict[str, Any]


def variant_names() -> tuple[str, ...]:
    """Return the names of all variants, `<draw>/<variant>`."""
    return tuple(f"{draw}/{variant}" for draw, variants in DRAWS.items() for variant in variants)


def ties() -> dict[str, VariantConfig]:
    """Return the variants of training: those of `six_domains.yaml`, and the strong ones in every
    step, since a term reaches three of thirty experts where it reaches three of six there."""
    found = load_experts_config(Path("six_domains.yaml")).variants
    every = {"distil_every": 1, "pull_every": 1}
    strong = {name: found[f"{name}_strong"].model_copy(update=every) for name in ("kdem", "ppem")}
    return {**found, **{f"{name}_every": tie for name, tie in strong.items()}}


def _tie(name: str) -> VariantConfig:
    return ties()[name.split("/")[1]]


def tied_stream(run: Run, name: str, seed: int) -> Stage:
    """Return the stage of joint alignment with tied adapters; its result is that of `one_pass`.

    Args:
        run: the run, whose seed is that of teachers and pool.
        name: of a variant.
        seed: of the adapters' first weights and of the order of molecules.
    """
    plain, draw = one_pass(run), name.split("/")[0]
    settings = *plain.settings, run.config.routing, draw, _tie(name)
    make = partial(_train, run, name, seed)
    return Stage(f"experts/tied/{name.replace('/', '-')}", seed, settings, plain.inputs, make)


def _train(run: Run, name: str, seed: int, checkpoint: Path) -> StageResult:
    def prepare(stream: SharedStream) -> SharedStream:
        drawn = share_draw(stream) if name.startswith("same/") else stream
        return TiedStream.of(drawn, _tie(name), run.config.routing)

    return train_stream(run, checkpoint, seed, prepare)


def measurement(run: Run, name: str, seed: int) -> Stage:
    """Return the stage that measures a trained stream; its record is that of `measure`."""
    trained = tied_stream(run, name, seed)
    make = partial(_make_measurement, run, trained)
    name = trained.name.replace("/tied/", "/tied-measured/")
    return Stage(name, seed, (run.config.routing,), (trained, pool(run)), make)


def _make_measurement(run: Run, trained: Stage, _: Path) -> StageResult:
    found = run.result(trained)
    return StageResult(record=measure(run, stream_of(run, found), found.record))


@torch.no_grad()
def measure(run: Run, stream: SharedStream, training: Record) -> Record:
    """Measure a stream's experts.

    Returns:
        "tests", Spearman's rank correlation on the test molecules by task and row (`_answers`);
        "distance", by bank how far merged expert and ensemble are apart on the watched molecules
        of the pool (`_distance`), mean over tasks; "size", the root mean square of what an expert
        subtracts, relative to that of the readout; "loss" of the watched molecules after training,
        mean over tasks; "cpu_seconds" of a training step and of KDEM's term.
    """
    experts = AdapterExperts.of(stream, run.config.routing)
    graphs = PackedGraphs(**run.result(pool(run)).tensors)
    rows = torch.arange(training["watched_molecules"])
    readout = compute_outputs(_readout(stream), graphs, rows, run.device)
    outputs = experts.outputs(readout)
    return {
        "tests": {
            task: _tests(run, stream, experts, index) for index, task in enumerate(stream.tasks)
        },
        "distance": {
            bank: _mean(
                _distance(stream, experts, readout, outputs, index, strangers)
                for index in range(len(stream.tasks))
            )
            for bank, strangers in BANKS.items()
        },
        "size": round(float((outputs.square().mean() / readout.square().mean()).sqrt()), 5),
        "loss": round(fmean(losses[-1] for losses in training["watched"].values()), 5),
        "cpu_seconds": _seconds(run, experts, readout, training),
    }


def _mean(records: Iterable[dict[str, float]]) -> dict[str, float]:
    found = list(records)
    return {key: round(fmean(record[key] for record in found), 5) for key in found[0]}


def _readout(stream: SharedStream) -> Callable[[GraphBatch], Tensor]:
    return lambda batch: stream(batch).readout


def _tests(run: Run, stream: SharedStream, experts: AdapterExperts, index: int) -> dict[str, float]:
    data = run.dataset(stream.tasks[index])
    rows = data.split.test
    readout = compute_outputs(_readout(stream), data.graphs, rows, run.device)
    labels = data.labels[rows, 0].double().numpy()
    return {
        row: round(correlation(answers[:, 0].double().numpy(), labels), 5)
        for row, answers in _answers(stream, experts, readout, index).items()
    }


def _answers(
    stream: SharedStream, experts: AdapterExperts, readout: Tensor, index: int
) -> dict[str, Tensor]:
    """A task's answers (G, C) without an adapter ("none"), with its "own", and with "ensemble" and
    "merged" expert of both banks."""
    outputs = experts.outputs(readout)
    distances = experts.distances(outputs, index)
    subtracted = {"none": torch.zeros_like(readout), "own": outputs[:, index]}
    for bank, strangers in BANKS.items():
        weights = experts.weights(distances, index, strangers)
        subtracted[f"{bank}_ensemble"] = ensemble(outputs, weights)
        subtracted[f"{bank}_merged"] = experts.merged(readout, weights)
    head = stream.heads[index]
    return {row: head(readout - found) for row, found in subtracted.items()}


def _distance(
    stream: SharedStream,
    experts: AdapterExperts,
    readout: Tensor,
    outputs: Tensor,
    index: int,
    strangers: bool,
) -> dict[str, float]:
    """The relative squared error of what the merged expert subtracts to the ensemble's
    ("subtracted"); the squared difference of the answers by the variance of the ensemble's
    ("answers"); "own_alpha" and "largest_alpha", means over the graphs."""
    weights = experts.weights(experts.distances(outputs, index), index, strangers)
    merged, averaged = experts.merged(readout, weights), ensemble(outputs, weights)
    answers, expected = (stream.heads[index](readout - found) for found in (merged, averaged))
    return {
        "subtracted": relative_error(merged, averaged),
        "answers": float((answers - expected).square().mean() / expected.var(0).mean()),
        "own_alpha": float(weights[:, index].mean()),
        "largest_alpha": float(weights.amax(-1).mean()),
    }


def _seconds(run: Run, experts: AdapterExperts, readout: Tensor, training: Record) -> Record:
    """Processor seconds of a step of training, and of KDEM's term with its gradient."""
    size = settings_of(run).batch_size
    steps = training["epochs"] * max(1, training["trained_molecules"] // size)
    leaves = AdapterExperts(
        experts.down.clone().requires_grad_(), experts.up.clone().requires_grad_(), experts.router
    )

    def kdem() -> None:
        with torch.enable_grad():
            distillation(leaves, readout[:size], 0).backward()

    return {
        "step": round(training["cpu_seconds"] / steps, 5),
        "kdem": round(median(_timed(kdem) for _ in range(REPEATS)), 5),
    }


def _timed(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def run_study(run: Run, seeds: Sequence[int], output: Path) -> Record:
    """Train and measure every variant with every seed, one seed after the other; write the results
    file after each, with the seeds that are complete. The same call resumes.

    Args:
        run: its tasks are regressions of one label; its seed is that of teachers and pool.
        seeds: of joint alignment.
        output: the JSON file.

    Returns:
        The content of the results file.

    Raises:
        ConfigError: there is no section `one_pass`, or see `check_tasks`.
    """
    check_tasks(run)
    content: Record = {
        "what": "graph adapters of a shared stream as experts, tied by KDEM and PPEM",
        "settings": {
            "configuration": run.config.setting,
            "one_pass": settings_of(run).model_dump(mode="json"),
            "router": run.config.routing.model_dump(mode="json"),
            "variants": {name: _tie(name).model_dump() for name in variant_names()},
        },
        "teachers_seed": run.seed,
        "environment": environment(),
        "measured": {},
    }
    for seed in seeds:
        stages = {name: measurement(run, name, seed) for name in variant_names()}
        build(list(stages.values()), run.store, description=f"seed {seed}: variants")
        content["measured"][str(seed)] = {
            name: run.result(stage).record for name, stage in stages.items()
        }
        write_json(output, content)
    return content
