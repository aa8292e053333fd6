"""Every figure of a setting, drawn from its results files alone: small SVG, the same bytes for the
same numbers."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from merging.data.files import check_results, read_json, read_seeds
from merging.families.molecule_config import BASE_VARIANT
from models.errors import DataError
from models.files import write_atomically

STYLE: Any = {
    "svg.hashsalt": "g-merging",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
OURS, OTHERS = "#1b6ca8", "#9aa5b1"


def draw_figures(folder: Path) -> list[Path]:
    """Draw what the files in `results/<setting>` allow: recovery bars, expert weights, backbone
    swaps, ablations, sweeps.

    Raises:
        DataError: the folder has no `summary.json`, or results that are none of `compare`.
    """
    summary = read_json(folder / "summary.json")
    if summary is None:
        raise DataError(
            f"got no summary.json in {folder}, expected the results of `gmerging compare`"
        )
    check_results(folder / "summary.json", summary)
    seeds = read_seeds(folder)
    figures = {
        "recovery": _recovery_bars(summary),
        "expert_weights": heatmap(
            _mean_matrix(seeds, "expert_weights"), "asked task", "expert", "mean routing weight", 1
        ),
        "swap_matrix": heatmap(
            _mean_matrix(seeds, "swap_matrix"),
            "backbone fine-tuned on",
            "task (its head and test set)",
            "test ROC-AUC, percent",
            100,
        ),
    }
    ablations = read_json(folder / "ablations.json")
    if ablations is not None:
        for group, rows in ablations["groups"].items():
            figures[group] = (
                _ablation_bars(rows) if group == "ablations" else _sweep_line(group, rows)
            )
    return [save_figure(figure, folder / f"{name}.svg") for name, figure in figures.items()]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write an SVG without a date, so that the same figures give the same file; returns the
    path."""
    with mpl.rc_context(STYLE):
        write_atomically(
            path,
            lambda temporary: figure.savefig(
                temporary, format="svg", bbox_inches="tight", metadata={"Date": None}
            ),
        )
    return path


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, in the style of all."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        return figure, figure.add_subplot()


def _recovery_bars(summary: dict[str, Any]) -> Figure:
    """Average test ROC-AUC of every method with its standard deviation; lines at what merging
    starts from and aims at."""
    methods = summary["methods"]
    figure, axes = new_axes(7, 0.3 * len(methods) + 1)
    for k, (name, method) in enumerate(reversed(methods.items())):
        values = method["stored"]
        recovered = values["recovery"]
        axes.barh(
            k,
            100 * values["average"],
            xerr=100 * (values["average_std"] or 0),
            color=OURS if name.startswith("gmerging") else OTHERS,
        )
        axes.text(
            100 * values["average"] + 100 * (values["average_std"] or 0) + 0.2,
            k,
            "" if recovered is None else f"{recovered:.2f}",
            va="center",
        )
    for name in ("weight_average", "finetuned"):
        if name in methods:
            axes.axvline(
                100 * methods[name]["stored"]["average"],
                color="black",
                linewidth=0.8,
                linestyle=":",
            )
    axes.set_yticks(
        range(len(methods)),
        [method["title"].replace("`", "") for method in reversed(methods.values())],
    )
    averages = [100 * method["stored"]["average"] for method in methods.values()]
    axes.set_xlim(min(averages) - 3, max(averages) + 3)
    axes.set_xlabel(
        f"average test ROC-AUC, percent, {len(summary['seeds'])} seeds; at the bar's end the"
        " recovery of (fine-tuned - weight average)"
    )
    return figure


def _mean_matrix(seeds: list[dict[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """A matrix {row: {column: value}} averaged over the seeds."""
    first = seeds[0][name]
    return {
        row: {
            column: sum(each[name][row][column] for each in seeds) / len(seeds)
            for column in columns
        }
        for row, columns in first.items()
    }


def heatmap(
    matrix: dict[str, dict[str, float]], rows: str, columns: str, title: str, scale: float
) -> Figure:
    """A table of numbers by row and column, each times `scale` and written into its cell."""
    figure, axes = new_axes(0.62 * len(matrix) + 1.6, 0.45 * len(matrix) + 1.4)
    values = [[scale * value for value in row.values()] for row in matrix.values()]
    axes.imshow(values, cmap="Blues", aspect="auto")
    middle = (min(map(min, values)) + max(map(max, values))) / 2
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(
                j,
                i,
                f"{value:.{2 if scale == 1 else 1}f}",
                ha="center",
                va="center",
                color="white" if value > middle else "black",
                fontsize=8,
            )
    axes.set_xticks(range(len(matrix)), list(next(iter(matrix.values()))), rotation=45, ha="right")
    axes.set_yticks(range(len(matrix)), list(matrix))
    axes.set(xlabel=columns, ylabel=rows, title=title)
    return figure


def _ablation_bars(rows: dict[str, Any]) -> Figure:
    """Each variant's average, test and validation."""
    figure, axes = new_axes(6, 0.4 * len(rows) + 1)
    for k, values in enumerate(each["stored"] for each in reversed(rows.values())):
        axes.barh(
            k + 0.18, 100 * values["average"], 0.34, color=OURS, label="test" if k == 0 else None
        )
        axes.barh(
            k - 0.18,
            100 * values["valid_average"],
            0.34,
            color=OTHERS,
            label="validation" if k == 0 else None,
        )
    averages = [
        100 * each["stored"][part]
        for each in rows.values()
        for part in ("average", "valid_average")
    ]
    axes.set_xlim(min(averages) - 2, max(averages) + 1)
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in reversed(rows)])
    axes.set_xlabel("average ROC-AUC, percent")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def _sweep_line(group: str, rows: dict[str, Any]) -> Figure:
    """Averages along a sweep, in the order of the configuration; the base is not part of the
    line."""
    variants = {name: each["stored"] for name, each in rows.items() if name != BASE_VARIANT}
    figure, axes = new_axes(4.2, 2.8)
    for part, title, color in (("average", "test", OURS), ("valid_average", "validation", OTHERS)):
        axes.plot(
            range(len(variants)),
            [100 * each[part] for each in variants.values()],
            marker="o",
            color=color,
            label=title,
        )
    axes.set_xticks(range(len(variants)), list(variants))
    axes.set(xlabel=group.replace("_", " "), ylabel="average ROC-AUC, percent")
    axes.legend(fontsize=8)
    return figure
