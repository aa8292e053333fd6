"""The figures of a plan."""

from pathlib import Path

from merging.drawing.plan import draw_plan
from merging.planning.plan import Plan, PlanSettings

PLAN = Plan(
    setting="pico",
    seed=0,
    settings=PlanSettings(metric="cka", group_size=2),
    models=dict.fromkeys(("far", "near_a", "near_b"), ""),
    distances=((0.0, 0.7, 0.8), (0.7, 0.0, 0.25), (0.8, 0.25, 0.0)),
    groups={"group1": ("far",), "group2": ("near_a", "near_b")},
)


def test_heatmap_and_dendrogram_show_tasks_distances_and_metric(tmp_path: Path) -> None:
    paths = draw_plan(PLAN, tmp_path / "some")
    assert sorted(path.name for path in paths) == ["some_dendrogram.svg", "some_heatmap.svg"]
    dendrogram, heatmap = (path.read_text() for path in sorted(paths))
    for text in (dendrogram, heatmap):
        assert all(f">{task}</text>" in text for task in PLAN.models)
        assert "1 - CKA" in text
    # In the heat map every pair is shown twice, to two decimals.
    assert [heatmap.count(f">{value}</text>") for value in ("0.25", "0.70", "0.80", "0.00")] == [
        2,
        2,
        2,
        3,
    ]


def test_joins_beyond_the_group_size_are_grey(tmp_path: Path) -> None:
    """Only near_a and near_b are joined within the limit of two; without it all are."""
    (path,) = (path for path in draw_plan(PLAN, tmp_path / "some") if "dendrogram" in path.name)
    limited = path.read_text()
    assert limited.count("stroke: #1b6ca8") == limited.count("stroke: #9aa5b1") == 1
    whole = PLAN.model_copy(
        update={
            "settings": PlanSettings(metric="cka", group_size=3),
            "groups": {"group1": tuple(PLAN.models)},
        }
    )
    draw_plan(whole, tmp_path / "whole")
    text = (tmp_path / "whole_dendrogram.svg").read_text()
    assert text.count("stroke: #9aa5b1") == 0
    assert text.count("stroke: #1b6ca8") >= 1


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in draw_plan(PLAN, tmp_path / "some")]
    assert [path.read_bytes() for path in draw_plan(PLAN, tmp_path / "some")] == first


def test_a_plan_of_one_model_has_figures_too(tmp_path: Path) -> None:
    single = PLAN.model_copy(
        update={"models": {"far": ""}, "groups": {"group1": ("far",)}, "distances": ((0.0,),)}
    )
    paths = draw_plan(single, tmp_path / "single")
    assert [path.is_file() for path in paths] == [True, True]
    assert ">far</text>" in (tmp_path / "single_heatmap.svg").read_text()
