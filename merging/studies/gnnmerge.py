"""The study of GNNMerge (`gmerging study gnnmerge`): GNNMerge against earlier mergers, in one
domain, across domains and for different tasks, from equal and from different initial weights.

The result of a cell (setting, layers, seed) is kept as soon as it is measured, so that the study
can be interrupted. Merged backbones of MoleculeNet follow.
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

LAYER_KINDS: tuple[GraphNetworkKind, ...] = get_args(GraphNetworkKind)
SEEDS = (0, 1, 2)
WIDTH = 128
"""Width of the encoded features and of the two layers."""
TRAINING = GraphTrainingConfig(epochs=100, patience=10)
LINK_TRAINING = GraphTrainingConfig(epochs=100, patience=30)
"""For link prediction, whose validation score stagnates before it rises."""
SCALINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of task arithmetic and TIES; selected by the mean validation score."""
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
"""By row: merger and options. `gnnmerge_pp_all_nodes` uses all nodes of a graph for every task, not
only the training nodes."""
ROW_TITLES = {
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
_CORA = PlanetoidSpec(graph="cora", split="random")
_CITESEER = PlanetoidSpec(graph="citeseer", split="random")
SETTINGS: dict[str, dict[str, PlanetoidSpec | LinkSpec]] = {
    "in_domain_cora": {
        "cora-a": _CORA.model_copy(update={"classes": (0, 1, 2, 3)}),
        "cora-b": _CORA.model_copy(update={"classes": (4, 5, 6)}),
    },
    "cross_domain": {"cora": _CORA, "citeseer": _CITESEER},
    "tasks_cora": {"cora": _CORA, "cora-links": LinkSpec(graph="cora")},
    "in_domain_citeseer": {
        "citeseer-a": _CITESEER.model_copy(update={"classes": (0, 1, 2)}),
        "citeseer-b": _CITESEER.model_copy(update={"classes": (3, 4, 5)}),
    },
    "tasks_citeseer": {"citeseer": _CITESEER, "citeseer-links": LinkSpec(graph="citeseer")},
}
RESULTS = Path("results/neighbours/gnnmerge.json")


class StudyConfig(GraphConfig):
    """A configuration whose first model has the same initial weights with either `initialisation`,
    so that it is trained once."""

    def initial_seed(self, task: str, seed: int) -> int:
        """Return the seed of the initial weights of a task's network."""
        if self.initialisation == "shared":
            return seed
        return seed + 1000 * list(self.tasks).index(task)


@dataclass(frozen=True)
class Cell:
    """The models of a setting with one kind of layers and one seed, on which all mergers are
    measured."""

    setting: str
    kind: GraphNetworkKind
    seed: int

    def run(self, data: Path, work: Path, shared: bool) -> Run:
        """Return the run that trains the models, from equal (`shared`) or different weights."""
        network = GraphNetworkConfig(kind=self.kind, in_dim=WIDTH, num_layers=2, hidden_dim=WIDTH)
        config = StudyConfig(
            setting=self.setting,
            network=network,
            encoder="svd",
            tasks=SETTINGS[self.setting],
            initialisation="shared" if shared else "different",
            training=LINK_TRAINING if self.setting.startswith("tasks") else TRAINING,
        )
        tasks = encoded_tasks(self.setting, self.seed, data)
        return Run(config, self.seed, data, work, _datasets=dict(tasks))


@cache
def encoded_tasks(setting: str, seed: int, data: Path) -> dict[str, GraphTask]:
    """Read the tasks of a setting, with features encoded by the SVD of their whole graph."""
    tasks: dict[str, GraphTask] = {}
    for task, spec in SETTINGS[setting].items():
        width = load_planetoid(spec.graph, data).x.shape[1]
        plain_network = GraphNetworkConfig(kind="pyg_gcn", in_dim=width)
        config = GraphConfig(setting=setting, network=plain_network, tasks={task: spec})
        raw = GRAPHS.read(config, task, Folders(data, data), seed)
        tasks[task] = encode_features(raw, _encoder(spec.graph, data))
    return tasks


@cache
def _encoder(graph: PlanetoidName, data: Path) -> nn.Linear:
    return svd_encoder(load_planetoid(graph, data).x, WIDTH)


def all_cells() -> Iterator[Cell]:
    """Yield all cells, seed by seed."""
    for seed, setting, kind in product(SEEDS, SETTINGS, LAYER_KINDS):
        yield Cell(setting, kind, seed)


# --- one cell ---


def measure_cell(cell: Cell, data: Path, work: Path) -> dict[str, Any]:
    """Measure test scores and seconds of all rows in a cell.

    Returns:
        {"scores": {initialisation: {row: {task: score}}}, "seconds": {initialisation: {row:
        seconds}}, "metric": {task: name}}.
    """
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
    joint_model = trained_model(run, joint(run))
    trained_rows = {"separate": models, "joint": dict.fromkeys(run.tasks, joint_model)}
    scores = {
        row: {
            task: _score(run, task, model.network, model.heads[task], "test")
            for task, model in model_of.items()
        }
        for row, model_of in trained_rows.items()
    }
    seconds = {
        "separate": sum(model.record["seconds"] for model in models.values()),
        "joint": joint_model.record["seconds"],
    }
    initial = sub_state(run.initial_state(), "network.")
    # Models with different initial weights have no pretrained weights in common: theta_pre is 0.
    start = initial if shared else {key: torch.zeros_like(value) for key, value in initial.items()}
    networks = {task: model.network for task, model in models.items()}
    data = {task: calibration(run, task) for task in run.tasks}
    inputs = MergeInputs(start, networks, run.config.network, data, run.seed)
    for row, (method, options) in METHODS.items():
        variants, data_of = [options], data
        if method in ("task_arithmetic", "ties"):
            variants = [{**options, "scaling": scaling} for scaling in SCALINGS]
        if row.endswith("all_nodes"):
            data_of = {task: replace(graphs, nodes=()) for task, graphs in data.items()}
        results, seconds[row] = _timed(method, replace(inputs, calibration=data_of), variants)
        best = results[0]
        if len(results) > 1:
            valid = [fmean(_scores(run, inputs, result, "valid").values()) for result in results]
            best = results[valid.index(max(valid))]
        scores[row] = _scores(run, inputs, best, "test")
    return scores, seconds


def _timed(
    method: str, inputs: MergeInputs, variants: Sequence[Mapping[str, Any]]
) -> tuple[list[MergeResult], float]:
    """Merge with several options; return the results and the mean seconds of a merge."""
    start = time.perf_counter()
    results = [merge(method, inputs, options) for options in variants]
    return results, round((time.perf_counter() - start) / len(results), 5)


def _scores(run: Run, inputs: MergeInputs, result: MergeResult, subset: Subset) -> dict[str, float]:
    heads = {task: result.head_for(task, data.head) for task, data in inputs.calibration.items()}
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
    """Measure the missing cells in order, and begin none after `seconds`."""
    end = time.perf_counter() + seconds
    for cell in all_cells():
        path = _cell_path(work, cell)
        if not path.is_file() and time.perf_counter() < end:
            write_json(path, measure_cell(cell, data, work))


def _cell_path(work: Path, cell: Cell) -> Path:
    return work / "cells" / f"{cell.setting}-{cell.kind}-seed{cell.seed}.json"


# --- results ---


def summarise_cells(work: Path) -> dict[str, Any]:
    """Aggregate the measured cells over seeds, by setting, kind of layers, initialisation and row.

    Returns:
        {"rows": scores, "speed": seconds and their ratio to joint training}.
    """
    rows, speed = [], []
    for setting, kind in product(SETTINGS, LAYER_KINDS):
        paths = {seed: _cell_path(work, Cell(setting, kind, seed)) for seed in SEEDS}
        contents = {seed: content for seed, path in paths.items() if (content := read_json(path))}
        for start, name in product(("same", "different"), ROW_TITLES) if contents else ():
            scores = [content["scores"][start][name] for content in contents.values()]
            seconds = [content["seconds"][start] for content in contents.values()]
            key: dict[str, Any] = {"setting": setting, "kind": kind, "initialisation": start}
            key |= {"row": name, "seeds": list(contents)}
            means = over_seeds([fmean(by_task.values()) for by_task in scores])
            tasks = {task: over_seeds([seed[task] for seed in scores]) for task in scores[0]}
            rows.append({**key, "mean": means, "tasks": tasks})
            ratio = over_seeds([by_row["joint"] / by_row[name] for by_row in seconds])
            taken = over_seeds([by_row[name] for by_row in seconds])
            speed.append({**key, "seconds": taken, "ratio": ratio})
    return {"rows": rows, "speed": speed}


def write_results(work: Path, molecules: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """Write all measured cells and the scores of MoleculeNet to the results file; return its
    content."""
    summary = summarise_cells(work)
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
        "seeds": sorted({seed for row in summary["rows"] for seed in row["seeds"]}),
        **summary,
        "molecules": molecules,
        "environment": environment(),
    }
    write_json(path, content)
    return content


def scores_table(content: dict[str, Any], setting: str) -> str:
    """Tabulate the mean test scores of a setting's tasks in Markdown: per cent, a row per method,
    a column per kind of layers and initialisation."""
    means = {
        (row["row"], row["kind"], row["initialisation"]): row["mean"]
        for row in content["rows"]
        if row["setting"] == setting
    }
    columns = [
        (kind, start)
        for kind in LAYER_KINDS
        for start in ("same", "different")
        if ("separate", kind, start) in means
    ]
    head = ["method", *(f"{kind.removeprefix('pyg_').upper()}, {start}" for kind, start in columns)]
    rows = [
        [title, *(percent(means[name, *key]["mean"], means[name, *key]["std"]) for key in columns)]
        for name, title in ROW_TITLES.items()
    ]
    return markdown_table(head, rows)


def speed_table(content: dict[str, Any]) -> str:
    """Tabulate seconds of merging in Markdown, and how many times as long joint training from
    scratch takes: medians over settings and seeds, a column per kind of layers."""
    rows = []
    for name in METHODS:
        cells = []
        for kind in LAYER_KINDS:
            speed = [row for row in content["speed"] if (row["row"], row["kind"]) == (name, kind)]
            seconds, ratio = (
                [value for row in speed for value in row[quantity]["values"]]
                for quantity in ("seconds", "ratio")
            )
            cells.append(f"{median(seconds):.4f} s, {median(ratio):.0f} x" if speed else "")
        rows.append([ROW_TITLES[name], *cells])
    titles = [kind.removeprefix("pyg_").upper() for kind in LAYER_KINDS]
    return markdown_table(["method", *titles], rows)


def run_study(data: Path, work: Path, seconds: float, path: Path) -> dict[str, Any]:
    """Measure the missing cells, and write all results to one file.

    Args:
        data, work: folders, see `merging.run.run.Run`.
        seconds: time after which no further cell is begun.
        path: the results file.

    Returns:
        The content of the file.
    """
    folder = work / "gnnmerge"
    end = time.perf_counter() + seconds
    run_cells(data, folder, seconds)
    molecules = read_json(folder / "molecules.json")
    if molecules is None and time.perf_counter() < end:
        molecules = measure_molecules(molecule_run(data, work, 1))
        write_json(folder / "molecules.json", molecules)
    return write_results(folder, molecules, path)
