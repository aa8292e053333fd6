"""GNNMerge against earlier mergers: in one domain, across domains and for different tasks, from the
same and from different initial weights.

`python -m merging.graphs.study run` measures one cell (setting, layers, seed) after the other and
keeps each, so it may be stopped at any time; `molecules` measures merged backbones of MoleculeNet;
`write` puts what there is into `results/neighbours/gnnmerge.json`.
"""

import argparse
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

from merging.data.encoders import svd_encoder
from merging.data.files import read_json, write_json
from merging.data.links import LinkSpec
from merging.data.planetoid import PlanetoidName, PlanetoidSpec, load_planetoid
from merging.data.task_data import Part
from merging.families.graphs import GraphRunConfig, TaskData, load_task
from merging.graphs.evaluation import evaluate
from merging.graphs.pipeline import GraphRun, calibration, joint, metrics, separate
from merging.graphs.training import fitted_model, initial_network
from merging.mergers.base import MergeInputs, MergeResult
from merging.mergers.registry import merge
from merging.run.config import ReleaseConfig
from merging.run.store import Piece, PieceStore
from merging.studies.gnnmerge_molecules import measure_molecules, molecule_run
from merging.studies.markdown import markdown_table, over_seeds, percent
from merging.studies.results import environment
from merging.training.settings import GraphTrainingConfig
from models.data.feature_graph import FeatureGraph
from models.networks.pyg import GraphNetworkConfig, GraphNetworkKind

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


class _Started(GraphRun):
    """A run whose first model starts from the same weights in either case, so that it is trained
    once."""

    def initial_seed(self, task: str) -> int:
        """Of the weights that a task's network starts from."""
        return self.seed + (
            1000 * list(self.config.tasks).index(task)
            if self.config.initialisation == "different"
            else 0
        )


@dataclass(frozen=True)
class Cell:
    """What is measured at once: all mergers on the models of one setting, one kind of layers and
    one seed."""

    setting: str
    kind: GraphNetworkKind
    seed: int

    def run(self, data: Path, work: Path, shared: bool) -> GraphRun:
        """Its models, from the same or from different initial weights."""
        network = GraphNetworkConfig(kind=self.kind, in_dim=WIDTH, num_layers=2, hidden_dim=WIDTH)
        config = GraphRunConfig(
            setting=self.setting,
            network=network,
            encoder="svd",
            tasks=SETTINGS[self.setting],
            initialisation="shared" if shared else "different",
            training=LINK_TRAINING if self.setting.startswith("tasks") else TRAINING,
            release=ReleaseConfig(name=self.setting),
        )
        return _Started(
            config,
            self.seed,
            data,
            work,
            _loaded=encoded_tasks(self.setting, self.seed, data, work),
        )


@cache
def encoded_tasks(setting: str, seed: int, data: Path, work: Path) -> dict[str, TaskData]:
    """The tasks as `load_task` gives them, but that the encoder of a graph is found once for all
    tasks and seeds."""
    found: dict[str, TaskData] = {}
    for task, spec in SETTINGS[setting].items():
        plain = GraphNetworkConfig(
            kind="pyg_gcn", in_dim=load_planetoid(spec.graph, data).x.shape[1]
        )
        config = GraphRunConfig(
            setting=setting, network=plain, tasks={task: spec}, release=ReleaseConfig(name=setting)
        )
        raw = load_task(config, task, data, seed)
        encoder = _encoder(spec.graph, raw.graphs[0].x, work)
        found[task] = replace(
            raw,
            graphs=tuple(FeatureGraph(encoder(each.x), each.edge_index) for each in raw.graphs),
            encoder=encoder,
        )
    return found


def _encoder(graph: PlanetoidName, x: Tensor, work: Path) -> nn.Linear:
    piece = PieceStore(work / "encoders", 0).piece(
        graph, str(WIDTH), lambda _: Piece(svd_encoder(x, WIDTH).state_dict(), {})
    )
    encoder = nn.Linear(x.shape[1], WIDTH).requires_grad_(False)
    encoder.load_state_dict(piece.tensors)
    return encoder


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
    scores, seconds = ({start: each[side] for start, each in measured.items()} for side in (0, 1))
    return {"metric": metrics(runs["same"]), "scores": scores, "seconds": seconds}


def _measured(run: GraphRun, shared: bool) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    models = {task: separate(run, task) for task in run.config.tasks}
    together = joint(run)
    scores = {
        "separate": {
            task: _score(run, task, model.network, model.heads[task], "test")
            for task, model in models.items()
        },
        "joint": {
            task: _score(run, task, together.network, together.heads[task], "test")
            for task in run.config.tasks
        },
    }
    seconds = {
        "separate": sum(model.record["seconds"] for model in models.values()),
        "joint": together.record["seconds"],
    }
    initial = initial_network(run.config.network, run.seed)
    # no common start: theta_pre is 0
    start = initial if shared else {key: torch.zeros_like(value) for key, value in initial.items()}
    seen = {task: calibration(run, task) for task in run.config.tasks}
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
                inputs, calibration={task: replace(each, nodes=()) for task, each in seen.items()}
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


def _scores(
    run: GraphRun, inputs: MergeInputs, result: MergeResult, part: Part
) -> dict[str, float]:
    heads = {
        task: {**each.head, "weight": result.head_for(task, each.head["weight"])}
        for task, each in inputs.calibration.items()
    }
    return {
        task: _score(run, task, result.backbone_for(task), head, part)
        for task, head in heads.items()
    }


def _score(
    run: GraphRun, task: str, network: dict[str, Tensor], head: dict[str, Tensor], part: Part
) -> float:
    data = run.task(task)
    return round(evaluate(fitted_model(network, run.config.network, head, data), data, part), 5)


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
            by_task = {task: over_seeds([each[task] for each in scores]) for task in scores[0]}
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
                    "mean": over_seeds([fmean(each.values()) for each in scores]),
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
        (each["row"], each["kind"], each["initialisation"]): each["mean"]
        for each in content["rows"]
        if each["setting"] == setting
    }
    columns = [
        (kind, start)
        for kind in KINDS
        for start in ("same", "different")
        if ("separate", kind, start) in found
    ]
    head = ["method", *(f"{kind.removeprefix('pyg_').upper()}, {start}" for kind, start in columns)]
    rows = [
        [
            title,
            *(percent(found[name, *each]["mean"], found[name, *each]["std"]) for each in columns),
        ]
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
            found = [
                each for each in content["speed"] if each["row"] == name and each["kind"] == kind
            ]
            seconds, ratio = (
                [value for each in found for value in each[what]["values"]]
                for what in ("seconds", "ratio")
            )
            cells.append(f"{median(seconds):.4f} s, {median(ratio):.0f} x" if found else "")
        rows.append([TITLES[name], *cells])
    return markdown_table(["method", *(kind.removeprefix("pyg_").upper() for kind in KINDS)], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """`run`, `molecules` and `write`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "molecules", "write"])
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin nothing new after so many"
    )
    given = parser.parse_args(arguments)
    folder = given.work / "gnnmerge"
    torch.set_num_threads(1)
    if given.command == "run":
        run_cells(given.data, folder, given.seconds)
    elif given.command == "molecules":
        write_json(
            folder / "molecules.json", measure_molecules(molecule_run(given.data, given.work, 1))
        )
    else:
        write_results(folder, read_json(folder / "molecules.json"), RESULTS)


if __name__ == "__main__":
    main()
