"""GNNMerge against earlier mergers: in one domain, across domains and for different tasks, from the
same and from different initial weights: `gmerging study gnnmerge`.

One cell (setting, layers, seed) is measured after the other and kept, so that the study may be
stopped at any time; then merged backbones of MoleculeNet.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any, get_args

import torch
from torch import Tensor, nn

from merging.config.training import GraphTrainingConfig
from merging.data.encoders import svd_encoder
from merging.data.files import read_json, write_json
from merging.data.links import LinkSpec
from merging.data.planetoid import PlanetoidName, PlanetoidSpec, load_planetoid
from merging.data.split import Subset
from merging.data.task_data import GraphTask
from merging.families.graphs import GRAPHS, GraphConfig, encode_features
from merging.family import Folders
from merging.mergers.base import MergeInputs, MergeResult
from merging.mergers.registry import merge
from merging.run.run import Run
from merging.run.scores import environment, main_metric, plain_forward
from merging.run.stages import calibration, joint, teacher, trained_model
from merging.studies.gnnmerge_molecules import measure_molecules, molecule_run
from merging.studies.markdown import markdown_table, over_seeds, percent
from models.networks.pyg import GraphNetworkConfig, GraphNetworkKind
from models.state_dict import sub_state

KINDS: tuple[GraphNetworkKind, ...] = get_args(GraphNetworkKind)
SEEDS = (0, 1, 2)
WIDTH = 128
"""Of the features, brought there by an encoder for each graph, and of the two layers."""
TRAINING = GraphTrainingConfig(epochs=100, patience=10)
LINK_TRAINING = GraphTrainingConfig(epochs=100, patience=30)
"""Where links are predicted, the validation score rests for a while before it rises."""
SCALINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of task arithmetic and TIES; the best mean validation score decides."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "weight_average": ("weight_average", {}),
    "task_arithmetic": ("task_arithmetic", {}),
    "ties": ("ties", {}),
    "regmean": ("regmean", {}),
    "git_rebasin": ("git_rebasin", {}),
    "gnnmerge": ("gnnmerge", {}),
    "gnnmerge_pp": ("gnnmerge_pp", {}),
    "gnnmerge_pp_sequential": ("gnnmerge_pp", {"inputs": "merged"}),
    "gnnmerge_pp_prior_zero": ("gnnmerge_pp", {"prior": "zero"}),
    "gnnmerge_pp_all_nodes": ("gnnmerge_pp", {}),
}
"""By row: merger and options. `gnnmerge_pp_all_nodes` sees every node of a graph for each task, and
not the task's own training nodes."""
TITLES = {
    "separate": "separate models",
    "joint": "joint training",
    "weight_average": "weight average",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "regmean": "RegMean",
    "git_rebasin": "Git Re-Basin",
    "gnnmerge": "GNNMerge (Adam)",
    "gnnmerge_pp": "GNNMerge++",
    "gnnmerge_pp_sequential": "GNNMerge++, sequential",
    "gnnmerge_pp_prior_zero": "GNNMerge++, prior zero",
    "gnnmerge_pp_all_nodes": "GNNMerge++, all nodes",
}
_CORA = {"cora-a": (0, 1, 2, 3), "cora-b": (4, 5, 6)}
_CITESEER = {"citeseer-a": (0, 1, 2), "citeseer-b": (3, 4, 5)}
SETTINGS: dict[str, dict[str, PlanetoidSpec | LinkSpec]] = {
    "in_domain_cora": {
        task: PlanetoidSpec(graph="cora", classes=classes, split="random")
        for task, classes in _CORA.items()
    },
    "cross_domain": {
        "cora": PlanetoidSpec(graph="cora", split="random"),
        "citeseer": PlanetoidSpec(graph="citeseer", split="random"),
    },
    "tasks_cora": {
        "cora": PlanetoidSpec(graph="cora", split="random"),
        "cora-links": LinkSpec(graph="cora"),
    },
    "in_domain_citeseer": {
        task: PlanetoidSpec(graph="citeseer", classes=classes, split="random")
        for task, classes in _CITESEER.items()
    },
    "tasks_citeseer": {
        "citeseer": PlanetoidSpec(graph="citeseer", split="random"),
        "citeseer-links": LinkSpec(graph="citeseer"),
    },
}
RESULTS = Path("results/neighbours/gnnmerge.json")


class StudyConfig(GraphConfig):
    """One whose first model starts from the same weights in either case, so that it is trained
    once."""

    def initial_seed(self, task: str, seed: int) -> int:
        """Of the weights that a task's network starts from."""
        if self.initialisation == "shared":
            return seed
        return seed + 1000 * list(self.tasks).index(task)


@dataclass(frozen=True)
class Cell:
    """What is measured at once: all mergers on the models of one setting, one kind of layers and
    one seed."""

    setting: str
    kind: GraphNetworkKind
    seed: int

    def run(self, data: Path, work: Path, shared: bool) -> Run:
        """Its models, from the same or from different initial weights."""
        network = GraphNetworkConfig(kind=self.kind, in_dim=WIDTH, num_layers=2, hidden_dim=WIDTH)
        config = StudyConfig(
            setting=self.setting,
            network=network,
            encoder="svd",
            tasks=SETTINGS[self.setting],
            initialisation="shared" if shared else "different",
            training=LINK_TRAINING if self.setting.startswith("tasks") else TRAINING,
        )
        read = encoded_tasks(self.setting, self.seed, data)
        return Run(config, self.seed, data, work, _datasets=dict(read))


@cache
def encoded_tasks(setting: str, seed: int, data: Path) -> dict[str, GraphTask]:
    """The tasks with the encoder of a whole graph, which is found once for all tasks and seeds."""
    found: dict[str, GraphTask] = {}
    for task, spec in SETTINGS[setting].items():
        width = load_planetoid(spec.graph, data).x.shape[1]
        plain_network = GraphNetworkConfig(kind="pyg_gcn", in_dim=width)
        config = GraphConfig(setting=setting, network=plain_network, tasks={task: spec})
        raw = GRAPHS.read(config, task, Folders(data, data), seed)
        found[task] = encode_features(raw, _encoder(spec.graph, data))
    return found


@cache
def _encoder(graph: PlanetoidName, data: Path) -> nn.Linear:
    return svd_encoder(load_planetoid(graph, data).x, WIDTH)


def cells() -> Iterator[Cell]:
    """All of them, a seed at a time."""
    for seed, setting, kind in product(SEEDS, SETTINGS, KINDS):
        yield Cell(setting, kind, seed)


# --- one cell ---


def measure(cell: Cell, data: Path, work: Path) -> dict[str, Any]:
    """Test scores and seconds of every row: {"scores": {initialisation: {row: {task: score}}},
    "seconds": {initialisation: {row: s}}, "metric"}."""
    runs = {
        "same": cell.run(data, work, shared=True),
        "different": cell.run(data, work, shared=False),
    }
    measured = {start: _measured(run, start == "same") for start, run in runs.items()}
    scores, seconds = ({start: both[side] for start, both in measured.items()} for side in (0, 1))
    metric = {task: main_metric(runs["same"], task) for task in runs["same"].tasks}
    return {"metric": metric, "scores": scores, "seconds": seconds}


def _measured(run: Run, shared: bool) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    models = {task: trained_model(run, teacher(run, task)) for task in run.tasks}
    together = trained_model(run, joint(run))
    scores = {
        "separate": {
            task: _score(run, task, model.network, model.heads[task], "test")
            for task, model in models.items()
        },
        "joint": {
            task: _score(run, task, together.network, together.heads[task], "test")
            for task in run.tasks
        },
    }
    seconds = {
        "separate": sum(model.record["seconds"] for model in models.values()),
        "joint": together.record["seconds"],
    }
    initial = sub_state(run.initial_state(), "network.")
    # no common start: theta_pre is 0
    start = initial if shared else {key: torch.zeros_like(value) for key, value in initial.items()}
    seen = {task: calibration(run, task) for task in run.tasks}
    inputs = MergeInputs(
        start,
        {task: model.network for task, model in models.items()},
        run.config.network,
        seen,
        run.seed,
    )
    for row, (method, options) in METHODS.items():
        given = (
            replace(
                inputs, calibration={task: replace(own, nodes=()) for task, own in seen.items()}
            )
            if row.endswith("all_nodes")
            else inputs
        )
        variants = (
            [{**options, "scaling": scaling} for scaling in SCALINGS]
            if method in ("task_arithmetic", "ties")
            else [options]
        )
        results, seconds[row] = _timed(method, given, variants)
        best = (
            max(results, key=lambda result: fmean(_scores(run, inputs, result, "valid").values()))
            if len(results) > 1
            else results[0]
        )
        scores[row] = _scores(run, inputs, best, "test")
    return scores, seconds


def _timed(
    method: str, inputs: MergeInputs, variants: Sequence[Mapping[str, Any]]
) -> tuple[list[MergeResult], float]:
    """The merged models, and the seconds of one."""
    start = time.perf_counter()
    results = [merge(method, inputs, options) for options in variants]
    return results, round((time.perf_counter() - start) / len(results), 5)


def _scores(run: Run, inputs: MergeInputs, result: MergeResult, subset: Subset) -> dict[str, float]:
    heads = {task: result.head_for(task, own.head) for task, own in inputs.calibration.items()}
    return {
        task: _score(run, task, result.backbone_for(task), head, subset)
        for task, head in heads.items()
    }


def _score(
    run: Run, task: str, network: dict[str, Tensor], head: dict[str, Tensor], subset: Subset
) -> float:
    data, forward = run.dataset(task), plain_forward(run, task, network, head)
    answers = run.family.predict(forward, data.steps(subset, 256), run.device)
    return round(run.family.metrics(*answers, data.info)[main_metric(run, task)], 5)


def run_cells(data: Path, work: Path, seconds: float) -> None:
    """Measure cells that are not there yet, in order; begin none after so many seconds."""
    end = time.perf_counter() + seconds
    for cell in cells():
        path = _cell_path(work, cell)
        if not path.is_file() and time.perf_counter() < end:
            write_json(path, measure(cell, data, work))


def _cell_path(work: Path, cell: Cell) -> Path:
    return work / "cells" / f"{cell.setting}-{cell.kind}-seed{cell.seed}.json"


# --- results ---


def summarise(work: Path) -> dict[str, Any]:
    """What has been measured, over seeds: for each setting and kind of layers, each initialisation
    and row."""
    rows, speed = [], []
    for setting, kind in product(SETTINGS, KINDS):
        found = {
            seed: content
            for seed in SEEDS
            if (content := read_json(_cell_path(work, Cell(setting, kind, seed))))
        }
        for start, name in product(("same", "different"), TITLES) if found else ():
            scores = [content["scores"][start][name] for content in found.values()]
            by_task = {task: over_seeds([own[task] for own in scores]) for task in scores[0]}
            labels = {
                "setting": setting,
                "kind": kind,
                "initialisation": start,
                "row": name,
                "seeds": list(found),
            }
            rows.append(
                {
                    **labels,
                    "mean": over_seeds([fmean(own.values()) for own in scores]),
                    "tasks": by_task,
                }
            )
            seconds = [content["seconds"][start] for content in found.values()]
            speed.append(
                {
                    **labels,
                    "seconds": over_seeds([s[name] for s in seconds]),
                    "ratio": over_seeds([s["joint"] / s[name] for s in seconds]),
                }
            )
    return {"rows": rows, "speed": speed}


def write_results(work: Path, molecules: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """Put everything that is there into one file."""
    found = summarise(work)
    content = {
        "what": (
            "GNNMerge, GNNMerge++ and earlier mergers on Cora, Citeseer and MoleculeNet; test"
            " accuracy, ROC-AUC for links and molecules"
        ),
        "settings": {
            "tasks": {
                name: {task: spec.model_dump(mode="json") for task, spec in tasks.items()}
                for name, tasks in SETTINGS.items()
            },
            "network": {
                "layers": 2,
                "hidden_dim": WIDTH,
                "features": f"SVD of each graph's own to {WIDTH}",
            },
            "training": TRAINING.model_dump(),
            "link_training": LINK_TRAINING.model_dump(),
            "scalings": SCALINGS,
        },
        "seeds": sorted({seed for row in found["rows"] for seed in row["seeds"]}),
        **found,
        "molecules": molecules,
        "environment": environment(),
    }
    write_json(path, content)
    return content


def scores_table(content: dict[str, Any], setting: str) -> str:
    """Markdown: mean test score of the two tasks in per cent, a row for each method, columns by
    layers and by initial weights."""
    found = {
        (row["row"], row["kind"], row["initialisation"]): row["mean"]
        for row in content["rows"]
        if row["setting"] == setting
    }
    columns = [
        (kind, start)
        for kind in KINDS
        for start in ("same", "different")
        if ("separate", kind, start) in found
    ]
    head = ["method", *(f"{kind.removeprefix('pyg_').upper()}, {start}" for kind, start in columns)]
    rows = [
        [title, *(percent(found[name, *at]["mean"], found[name, *at]["std"]) for at in columns)]
        for name, title in TITLES.items()
    ]
    return markdown_table(head, rows)


def speed_table(content: dict[str, Any]) -> str:
    """Markdown: seconds of merging and how many times as long joint training from scratch takes,
    medians over all settings, by layers."""
    rows = []
    for name in METHODS:
        cells = []
        for kind in KINDS:
            found = [row for row in content["speed"] if row["row"] == name and row["kind"] == kind]
            seconds, ratio = (
                [value for row in found for value in row[what]["values"]]
                for what in ("seconds", "ratio")
            )
            cells.append(f"{median(seconds):.4f} s, {median(ratio):.0f} x" if found else "")
        rows.append([TITLES[name], *cells])
    return markdown_table(["method", *(kind.removeprefix("pyg_").upper() for kind in KINDS)], rows)


def run_study(data: Path, work: Path, seconds: float, path: Path) -> dict[str, Any]:
    """Measure what is not measured yet, and write everything into one file.

    Args:
        data, work: folders, as in `merging.run.run.Run`.
        seconds: begin nothing new after so many.
        path: the results file.

    Returns:
        Its content.
    """
    folder = work / "gnnmerge"
    end = time.perf_counter() + seconds
    run_cells(data, folder, seconds)
    molecules = read_json(folder / "molecules.json")
    if molecules is None and time.perf_counter() < end:
        molecules = measure_molecules(molecule_run(data, work, 1))
        write_json(folder / "molecules.json", molecules)
    return write_results(folder, molecules, path)
