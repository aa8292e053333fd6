"""The figures of a setting, drawn from its results files: small SVG files with the same bytes for
the same numbers."""

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
_SUBSETS = (("average", "test", OURS), ("valid_average", "validation", OTHERS))
"""Keys of a row's averages with their titles and colours."""


def draw_figures(folder: Path) -> list[Path]:
    """Draw the figures of a results folder: recovery bars, routing weights and swapped backbones,
    and with an `ablations.json` also ablations and sweeps.

    Args:
        folder: `results/<setting>`; gets the figures.

    Returns:
        The SVG files.

    Raises:
        DataError: the folder has no `summary.json`, or a file that `gmerging compare` did not
            write.
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
            f"test {_measure(summary['methods'])}",
            100,
        ),
    }
    ablations = read_json(folder / "ablations.json")
    if ablations is not None:
        for group, rows in ablations["groups"].items():
            ablation = group == "ablations"
            figures[group] = _ablation_bars(rows) if ablation else _sweep_line(group, rows)
    return [save_figure(figure, folder / f"{name}.svg") for name, figure in figures.items()]


def _measure(rows: dict[str, Any]) -> str:
    """Name the scores of methods or variants: ROC-AUC if every task has it; otherwise scores, of
    which that of a regression is minus its error.
    """
    stored = next(iter(rows.values()))["stored"]
    others = {"metrics", "accuracy", "scaled_mae"} & stored.keys()
    return "score times 100 (of errors minus MAE / std)" if others else "ROC-AUC, percent"


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as SVG, without a date, so that the same figure gives the same bytes.

    Returns:
        The path.
    """
    with mpl.rc_context(STYLE):
        write_atomically(
            path,
            lambda temporary: figure.savefig(
                temporary, format="svg", bbox_inches="tight", metadata={"Date": None}
            ),
        )
    return path


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure in the common style, its size in inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        return figure, figure.add_subplot()


def _recovery_bars(summary: dict[str, Any]) -> Figure:
    """Average test score of every method with its standard deviation; lines at the weight average
    and at the fine-tuned models."""
    methods = summary["methods"]
    figure, axes = new_axes(7, 0.3 * len(methods) + 1)
    for k, (name, method) in enumerate(reversed(methods.items())):
        values = method["stored"]
        recovered = "" if values["recovery"] is None else f"{values['recovery']:.2f}"
        average, deviation = 100 * values["average"], 100 * (values["average_std"] or 0)
        color = OURS if name.startswith("gmerging") else OTHERS
        axes.barh(k, average, xerr=deviation, color=color)
        axes.text(average + deviation + 0.2, k, recovered, va="center")
    for name in ("weight_average", "finetuned"):
        if name in methods:
            average = 100 * methods[name]["stored"]["average"]
            axes.axvline(average, color="black", linewidth=0.8, linestyle=":")
    titles = [method["title"].replace("`", "") for method in reversed(methods.values())]
    axes.set_yticks(range(len(methods)), titles)
    measure = _measure(methods)
    averages = [100 * method["stored"]["average"] for method in methods.values()]
    axes.set_xlim(min(averages) - 3, max(averages) + 3)
    axes.set_xlabel(
        f"average test {measure}, {len(summary['seeds'])} seeds; at the bar's end the"
        " recovery of (fine-tuned - weight average)"
    )
    return figure


def _mean_matrix(seeds: list[dict[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """The matrix `name`, {row: {column: value}}, averaged over the seeds."""
    return {
        row: {
            column: sum(seed[name][row][column] for seed in seeds) / len(seeds)
            for column in columns
        }
        for row, columns in seeds[0][name].items()
    }


def heatmap(
    matrix: dict[str, dict[str, float]], rows: str, columns: str, title: str, scale: float
) -> Figure:
    """Draw a matrix as a heat map with its values, times `scale`, written into the cells.

    Args:
        matrix: {row: {column: value}}, with the same columns in every row, as many as rows.
        rows, columns: labels of the axes.
        title: above the figure.
        scale: 1 shows two decimals, any other scale one.
    """
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
    """Test and validation average of every variant."""
    figure, axes = new_axes(6, 0.4 * len(rows) + 1)
    variants = [row["stored"] for row in reversed(rows.values())]
    for k, values in enumerate(variants):
        for (key, title, color), offset in zip(_SUBSETS, (0.18, -0.18), strict=True):
            label = title if k == 0 else None
            axes.barh(k + offset, 100 * values[key], 0.34, color=color, label=label)
    averages = [100 * values[key] for values in variants for key, _, _ in _SUBSETS]
    axes.set_xlim(min(averages) - 2, max(averages) + 1)
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in reversed(rows)])
    axes.set_xlabel(f"average {_measure(rows)}")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def _sweep_line(group: str, rows: dict[str, Any]) -> Figure:
    """Averages along a sweep, in the order of the configuration, without the base variant."""
    variants = {name: row["stored"] for name, row in rows.items() if name != BASE_VARIANT}
    figure, axes = new_axes(4.2, 2.8)
    for key, title, color in _SUBSETS:
        averages = [100 * values[key] for values in variants.values()]
        axes.plot(range(len(variants)), averages, marker="o", color=color, label=title)
    axes.set_xticks(range(len(variants)), list(variants))
    measure = _measure(rows)
    axes.set(xlabel=group.replace("_", " "), ylabel=f"average {measure}")
    axes.legend(fontsize=8)
    return figure
