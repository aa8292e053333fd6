"""The figures of a plan of merging: a heat map of distances and a dendrogram."""

from pathlib import Path

from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram

from merging.drawing.figures import OTHERS, OURS, heatmap, new_axes, save_figure
from merging.planning.plan import TITLES, Plan


def draw_plan(plan: Plan, stem: Path) -> list[Path]:
    """Draw a plan's distances, with tasks in the order of the dendrogram, and its dendrogram.

    Returns:
        The files `<stem>_dendrogram.svg` and `<stem>_heatmap.svg`.
    """
    figures = {"dendrogram": _dendrogram(plan), "heatmap": _distances(plan)}
    return [
        save_figure(figure, stem.with_name(f"{stem.name}_{name}.svg"))
        for name, figure in figures.items()
    ]


def _distances(plan: Plan) -> Figure:
    leaves = (
        dendrogram(plan.grouping().linkage, no_plot=True, labels=sorted(plan.tasks))["ivl"]
        if len(plan.tasks) > 1
        else plan.tasks
    )
    index = {task: k for k, task in enumerate(plan.tasks)}
    matrix = {
        row: {column: plan.distances[index[row]][index[column]] for column in leaves}
        for row in leaves
    }
    return heatmap(matrix, "model", "model", TITLES[plan.settings.metric], 1)


def _dendrogram(plan: Plan) -> Figure:
    """Joins that formed the groups in colour, those that the group size forbids in grey."""
    figure, axes = new_axes(0.62 * len(plan.tasks) + 1.6, 3)
    grouping = plan.grouping()
    # scipy numbers the joins after the K leaves.
    first_forbidden = 2 * len(plan.tasks) - len(grouping.groups)
    if len(plan.tasks) > 1:
        dendrogram(
            grouping.linkage,
            labels=sorted(plan.tasks),
            ax=axes,
            leaf_font_size=9,
            link_color_func=lambda join: OURS if join < first_forbidden else OTHERS,
        )
    axes.tick_params(axis="x", rotation=45)
    axes.set_ylabel(f"mean {TITLES[plan.settings.metric]}")
    return figure
