"""Scaling of the compiled model's time with molecules, atoms, requested tasks, experts and rank,
for both routings.

    python -m benchmarks.growth [--quick]

Parsing of SMILES is not included. One thread; the points of a figure are measured in turns.
Writes `results/growth.json` and `results/growth.svg`.
"""

import argparse
import importlib.metadata
import itertools
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.molecules import fixed_molecules
from merging.data.files import write_json
from merging.drawing.figures import STYLE
from models.artifact import ArtifactComponents, load_components
from models.compiled.model import CompiledModel
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, collate
from models.data.smiles import featurize
from models.experts.expert import Expert
from models.experts.unified import Routing, UnifiedModel
from models.files import write_atomically

RESULTS = Path(__file__).parent / "results"
RELEASE = Path("models/releases/moleculenet-gcn")
ROUTINGS: tuple[Routing, ...] = ("own", "moe")
_RANK, _MOLECULES, _BINS = 10, 32, 8
_ROUNDS_SECONDS = 3.0  # for all repeats of one point

Shape = Literal["chain", "branched"]
Series = dict[str, list[tuple[float, Callable[[], Any]]]]
"""By name of a series: the value on the horizontal axis and the timed call."""


def interleaved(
    ways: Mapping[str, Callable[[], Any]], repeats: int, seconds: float = math.inf
) -> dict[str, dict[str, Any]]:
    """Time several functions in turns, without a warm-up.

    A slow one has fewer repeats, of `seconds` in total, but at least two.

    Returns:
        Median, range and number of repeats by name.
    """
    seconds_of: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats):
        for name, way in ways.items():
            if number < 2 or sum(seconds_of[name]) < seconds:
                began = time.perf_counter()
                way()
                seconds_of[name].append(time.perf_counter() - began)
    return {
        name: {
            "median_seconds": statistics.median(values),
            "range_seconds": [min(values), max(values)],
            "repeats": len(values),
        }
        for name, values in seconds_of.items()
    }


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Fit the exponent of y as a power of x by least squares on logarithms; None for fewer than two
    points.
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else None


def surroundings() -> dict[str, Any]:
    """Describe machine, threads and versions."""
    cpus = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "numpy", "numba", "scipy", "pot", "rdkit")
    }
    return {
        "cpu": cpus[0],
        "cores": len(cpus),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | versions,
    }


def synthetic(artifact: ArtifactComponents, count: int, rank: int) -> CompiledModel:
    """Build a model with the release's backbone and `count` random experts of one label, each with
    the BatchNorm statistics of a released one.
    """
    generator = torch.Generator().manual_seed(0)
    config = artifact.manifest.backbone
    released = list(artifact.experts.values())
    experts = {f"task{k}": Expert(config, rank, ["label"]) for k in range(count)}
    with torch.no_grad():
        for k, expert in enumerate(experts.values()):
            for value in expert.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * config.hidden_dim**-0.5)
            like = released[k % len(released)].adapters
            expert.adapters.norm_mean.copy_(like.norm_mean)
            expert.adapters.norm_var.copy_(like.norm_var)
    return CompiledModel(UnifiedModel(artifact.backbone, experts, artifact.manifest.router))


def tree(atoms: int, shape: Shape, rng: random.Random) -> MolGraph:
    """Draw a chain of carbon, in which almost all atoms are equivalent, or a branched tree of C, N
    and O with at most 3 bonds an atom, in which few are.
    """
    degree, bonds = [0] * atoms, []
    for atom in range(1, atoms):
        parent = (
            atom - 1
            if shape == "chain"
            else rng.choice([k for k in range(max(0, atom - 6), atom) if degree[k] < 3])
        )
        bonds.append((parent, atom, int(shape == "branched" and rng.random() < 0.2)))
        degree[parent] += 1
        degree[atom] += 1
    elements = [
        5 if shape == "chain" else rng.choices((5, 6, 7), (70, 15, 15))[0] for _ in range(atoms)
    ]
    both = [pair for i, j, _ in bonds for pair in ((i, j), (j, i))]
    return MolGraph(
        torch.tensor([(element, 0) for element in elements]),
        torch.tensor(both).T,
        torch.tensor([(kind, 0) for *_, kind in bonds for _ in "ab"]),
    )


def by_size(graphs: list[MolGraph], edges: Sequence[int]) -> list[list[MolGraph]]:
    """Group real molecules by size into calls of equal length, for each bin that has enough."""
    bins = [
        [graph for graph in graphs if low <= graph.num_nodes < high]
        for low, high in itertools.pairwise(edges)
    ]
    return [found[:_BINS] for found in bins if len(found) >= _BINS]


def ask(
    model: CompiledModel, batch: GraphBatch, routing: Routing, tasks: int | None = None
) -> None:
    """Make a call for the first `tasks` tasks."""
    model(batch, None if tasks is None else model.tasks[:tasks], routing)


class Sweeps:
    """Calls to measure, by the quantity that grows."""

    def __init__(self, graphs: list[MolGraph], quick: bool) -> None:
        """Load the released model.

        Args:
            graphs: real molecules.
            quick: use few points.
        """
        self.graphs, self.quick = graphs, quick
        self.components = load_components(RELEASE)
        self.release = CompiledModel(
            UnifiedModel(
                self.components.backbone, self.components.experts, self.components.manifest.router
            )
        )
        self.batch = collate(graphs[:_MOLECULES])

    def molecules(self) -> Series:
        """Grow the number of real molecules of a call."""
        counts = [1, 5, 20] if self.quick else [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
        batches = [(count, collate(self.graphs[:count])) for count in counts]
        return {
            routing: [
                (count, partial(ask, self.release, batch, routing)) for count, batch in batches
            ]
            for routing in ROUTINGS
        }

    def atoms(self) -> Series:
        """Grow the number of atoms per molecule."""
        rng = random.Random(0)
        sizes = [10, 30, 100] if self.quick else [10, 20, 50, 100, 200, 500]
        bins = by_size(self.graphs, (10, 14, 20, 28, 40, 56, 80, 160))
        made = {
            shape: [[tree(size, shape, rng) for _ in range(_BINS)] for size in sizes]
            for shape in ("branched", "chain")
        } | {"real": bins}
        found: Series = {}
        for routing in ROUTINGS:
            for name, calls in made.items():
                points = [
                    (statistics.mean(graph.num_nodes for graph in call), collate(call))
                    for call in calls
                ]
                found[f"{routing}, {name}"] = [
                    (size, partial(ask, self.release, batch, routing)) for size, batch in points
                ]
        return found

    def tasks(self) -> Series:
        """Grow the number of requested tasks."""
        counts = [1, 4, 8] if self.quick else range(1, 9)
        return {
            routing: [
                (count, partial(ask, self.release, self.batch, routing, count)) for count in counts
            ]
            for routing in ROUTINGS
        }

    def experts(self) -> Series:
        """Grow the number of experts, for requests of all tasks and of one."""
        models = [
            (count, synthetic(self.components, count, _RANK))
            for count in ([1, 4, 8] if self.quick else [1, 2, 4, 8, 16, 32, 64])
        ]
        requests = {"all asked": None, "1 asked": 1}
        return {
            f"{routing}, {name}": [
                (count, partial(ask, model, self.batch, routing, tasks)) for count, model in models
            ]
            for routing in ROUTINGS
            for name, tasks in requests.items()
        }

    def rank(self) -> Series:
        """Grow the rank of eight experts."""
        models = [
            (size, synthetic(self.components, 8, size))
            for size in ([4, 16] if self.quick else [4, 8, 16, 32, 64])
        ]
        return {
            routing: [(size, partial(ask, model, self.batch, routing)) for size, model in models]
            for routing in ROUTINGS
        }


def sweeps(graphs: list[MolGraph], quick: bool) -> dict[str, Callable[[], Series]]:
    """Return the panels by the quantity that grows, as functions, so that only one holds memory."""
    made = Sweeps(graphs, quick)
    panels = (made.molecules, made.atoms, made.tasks, made.experts, made.rank)
    return {panel.__name__: panel for panel in panels}


def measure(series: Series, repeats: int) -> dict[str, Any]:
    """Time all points of all series in turns, after an uncounted call of each (the first compiles).

    A point is not measured if a smaller one took a second.
    """
    for points in series.values():
        for _, call in (points[0], *points):
            began = time.perf_counter()
            call()
            if time.perf_counter() - began > 1 and call is not points[0][1]:
                break
    calls = {f"{name} {x}": call for name, points in series.items() for x, call in points}
    timings = interleaved(calls, repeats, _ROUNDS_SECONDS)
    found = {}
    for name, points in series.items():
        rows = [{"x": x} | timings[f"{name} {x}"] for x, _ in points]
        medians, half = [row["median_seconds"] for row in rows], len(rows) // 2
        x = [row["x"] for row in rows]
        found[name] = {
            "slope": slope(x, medians),
            "slope_upper_half": slope(x[half:], medians[half:]),
            "points": rows,
        }
    return found


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Plot milliseconds of a call on logarithmic axes, a panel per quantity, with slopes in the
    legends.
    """
    titles = {
        "molecules": "molecules a call",
        "atoms": f"atoms a molecule ({_BINS} molecules)",
        "tasks": f"tasks asked ({_MOLECULES} molecules)",
        "experts": f"experts K ({_MOLECULES} molecules, rank {_RANK})",
        "rank": f"rank ({_MOLECULES} molecules, K = 8)",
    }
    with mpl.rc_context(STYLE | {"font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(10.5, 6.2), layout="constrained")
        for position, (name, title) in enumerate(titles.items()):
            axes = figure.add_subplot(2, 3, position + 1)
            _draw_series(axes, found[name])
            axes.set(
                xscale="log",
                yscale="log",
                xlabel=title,
                ylabel="ms a call" if position % 3 == 0 else "",
            )
            axes.minorticks_off()
            axes.xaxis.set_major_locator(
                LogLocator(subs=(1, 2, 5) if name == "atoms" else (1,))
                if name in ("molecules", "atoms")
                else LogLocator(2)
            )
            axes.yaxis.set_major_locator(
                LogLocator(subs=(1, 2, 5) if name in ("tasks", "rank") else (1,))
            )
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.25, linewidth=0.5)
        write_atomically(
            path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None})
        )


def _draw_series(axes: Axes, found: Mapping[str, Any]) -> None:
    styles = {"branched": "-", "real": "-.", "chain": ":", "all asked": "-", "1 asked": ":"}
    for name, curve in found.items():
        routing, _, kind = name.partition(", ")
        x, y = ([point[key] for point in curve["points"]] for key in ("x", "median_seconds"))
        colour = "#1b6ca8" if routing == "own" else "#c2571a"
        axes.plot(
            x,
            [1000 * value for value in y],
            styles.get(kind, "-"),
            marker="o",
            markersize=3,
            linewidth=1.2,
            color=colour,
        )
        axes.lines[-1].set_label(f"{name}: {curve['slope']:.2f}")
    axes.legend(fontsize=7, title="slope", title_fontsize=7, frameon=False)


def main() -> None:
    """Measure everything, and write the file and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, small sizes")
    parser.add_argument(
        "--output",
        type=Path,
        help="default: benchmarks/results/growth.json, or work/growth.json where quick",
    )
    arguments = parser.parse_args()
    output = arguments.output or (Path("work") if arguments.quick else RESULTS) / "growth.json"
    torch.set_num_threads(1)
    quick, began = arguments.quick, time.perf_counter()
    graphs = [featurize(text).graph for text in fixed_molecules(200 if quick else 2000)]
    found: dict[str, Any] = {}
    for name, build in sweeps(graphs, quick).items():
        found[name] = measure(build(), 2 if quick else 7)
        print(
            f"{time.perf_counter() - began:.0f} s",
            name,
            {key: found[name][key]["slope"] for key in found[name]},
            flush=True,
        )
    write_json(
        output,
        surroundings()
        | {"router": load_components(RELEASE).manifest.router.model_dump(), "growth": found},
    )
    draw(found, output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
