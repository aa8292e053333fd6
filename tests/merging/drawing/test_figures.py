"""The figures of a setting: their numbers, and the same bytes for the same numbers."""

from pathlib import Path
from typing import Any

import pytest

from merging.data.files import write_json
from merging.drawing.figures import draw_figures, heatmap, new_axes, save_figure
from models.errors import DataError


def method(title: str, average: float, std: float | None, recovery: float | None) -> dict[str, Any]:
    return {
        "title": title,
        "stored": {"average": average, "average_std": std, "recovery": recovery},
    }


SUMMARY = {
    "seeds": [0, 1],
    "methods": {
        "weight_average": method("Weight average", 0.6, 0.01, None),
        "gmerging_own": method("G-Merging, `own`", 0.75, 0.02, 0.81),
        "finetuned": method("Fine-tuned", 0.8, None, None),
    },
}


def seed(shift: float) -> dict[str, Any]:
    weights = {"a": {"a": 0.9 - shift, "b": 0.1 + shift}, "b": {"a": 0.25, "b": 0.75}}
    return {"methods": {}, "expert_weights": weights, "swap_matrix": weights}


def row(test: float, valid: float) -> dict[str, Any]:
    return {"stored": {"average": test, "valid_average": valid}}


ABLATIONS = {
    "groups": {
        "ablations": {"full": row(0.7, 0.71), "without_l1": row(0.65, 0.66)},
        "rank": {"full": row(0.7, 0.71), "2": row(0.6, 0.61), "8": row(0.72, 0.73)},
    }
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_json(tmp_path / "summary.json", SUMMARY)
    write_json(tmp_path / "seed0.json", seed(0.0))
    write_json(tmp_path / "seed1.json", seed(0.2))
    return tmp_path


def texts(path: Path) -> list[str]:
    """The texts of an SVG, in the order in which they are drawn."""
    found = path.read_text().split("</text>")
    return [chunk.rsplit(">", 1)[1] for chunk in found[:-1]]


def test_without_ablations_there_are_three_figures(results: Path) -> None:
    names = [path.name for path in draw_figures(results)]
    assert names == ["recovery.svg", "expert_weights.svg", "swap_matrix.svg"]
    assert sorted(path.name for path in results.glob("*.svg")) == sorted(names)


def test_recovery_has_a_bar_for_every_method(results: Path) -> None:
    draw_figures(results)
    found = texts(results / "recovery.svg")
    assert {"Weight average", "G-Merging, own", "Fine-tuned", "0.81"} <= set(found)
    # The first method is on top, and lines mark where merging starts from and aims at.
    assert found.index("Fine-tuned") < found.index("Weight average")
    content = (results / "recovery.svg").read_text()
    assert content.count("fill: #1b6ca8") == 1
    assert content.count("fill: #9aa5b1") == 2
    assert content.count("stroke-dasharray: 0.8,1.32") == 2


def test_matrices_are_averaged_over_the_seeds(results: Path) -> None:
    draw_figures(results)
    weights = texts(results / "expert_weights.svg")
    assert [text for text in weights if "." in text] == ["0.80", "0.20", "0.25", "0.75"]
    swapped = texts(results / "swap_matrix.svg")
    assert [text for text in swapped if "." in text] == ["80.0", "20.0", "25.0", "75.0"]


def test_ablations_are_bars_and_sweeps_are_lines_without_the_base(results: Path) -> None:
    write_json(results / "ablations.json", ABLATIONS)
    assert [path.name for path in draw_figures(results)][3:] == ["ablations.svg", "rank.svg"]
    bars, line = texts(results / "ablations.svg"), texts(results / "rank.svg")
    assert {"full", "without l1", "test", "validation"} <= set(bars)
    assert {"2", "8", "test", "validation"} <= set(line)
    assert "full" not in line


def test_the_same_results_give_the_same_bytes(results: Path) -> None:
    write_json(results / "ablations.json", ABLATIONS)
    first = [path.read_bytes() for path in draw_figures(results)]
    assert [path.read_bytes() for path in draw_figures(results)] == first


def test_results_that_are_absent_or_of_another_command_are_refused(results: Path) -> None:
    write_json(results / "seed1.json", {"tasks": []})
    with pytest.raises(DataError, match=r"seed1\.json without `methods`"):
        draw_figures(results)
    (results / "summary.json").unlink()
    with pytest.raises(DataError, match=r"got no summary\.json in .*`gmerging compare`"):
        draw_figures(results)


def test_cells_of_a_heatmap_are_scaled_and_legible() -> None:
    matrix = {"a": {"x": 0.001, "y": 0.1}, "b": {"x": 0.5, "y": 0.4}}
    figure = heatmap(matrix, "rows", "columns", "title", 100)
    cells = [(text.get_text(), text.get_color()) for text in figure.axes[0].texts]
    assert cells == [("0.1", "black"), ("10.0", "black"), ("50.0", "white"), ("40.0", "white")]
    assert figure.axes[0].get_xlabel() == "columns"
    assert figure.axes[0].get_title() == "title"


def test_a_figure_has_its_size_and_no_date(tmp_path: Path) -> None:
    figure, axes = new_axes(3, 2)
    axes.plot([0, 1])
    assert figure.get_size_inches().tolist() == [3, 2]
    assert save_figure(figure, tmp_path / "a.svg") == tmp_path / "a.svg"
    assert "<dc:date>" not in (tmp_path / "a.svg").read_text()
