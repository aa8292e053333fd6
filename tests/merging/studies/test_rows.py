"""The comparison, from a configuration to files and figures, by the commands that a user types."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gmerging.cli.main import main
from merging.run.run import Run
from merging.studies.markdown import percent
from merging.studies.report import summarise_seeds
from merging.studies.rows import candidates, chosen_merger, table_rows
from tests.merging.conftest import write_pico
from tests.merging.run.test_stages import command

ROWS = {
    "finetuned",
    "multitask",
    "ecfp4_random_forest",
    "ecfp4_random_forest_neutral",
    "weight_average",
    "task_arithmetic",
    "regmean",
    "emr",
    "residual",
    "gmerging_own",
    "gmerging_moe",
    "one_pass",
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds compared. Shared by this file: what a test adds to it does not touch what another
    reads."""
    folder = tmp_path_factory.mktemp("compared")
    write_pico(folder)
    assert (
        command(folder, "compare", "--seeds", "0", "1", "--results", str(folder / "results")) == 0
    )
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_comparison_writes_seeds_summary_table_and_figures(compared: Path) -> None:
    folder = compared / "results/pico"
    seeds, summary = (
        [read(folder / f"seed{seed}.json") for seed in (0, 1)],
        read(folder / "summary.json"),
    )
    assert summary["methods"].keys() == ROWS
    for name, method in summary["methods"].items():
        for kind in set(method) & {"stored", "batch"}:
            values = [seed["methods"][name][kind]["roc_auc"]["other"] for seed in seeds]
            assert method[kind]["mean"]["other"] == pytest.approx(sum(values) / 2, abs=1e-5)
            assert method[kind]["std"]["other"] == pytest.approx(
                abs(values[0] - values[1]) / 2**0.5, abs=1e-5
            )
            assert method[kind]["average"] == pytest.approx(
                sum(method[kind]["mean"].values()) / 2, abs=1e-4
            )
    assert {name for name, method in summary["methods"].items() if "batch" in method} == ROWS - {
        "multitask",
        "ecfp4_random_forest",
        "ecfp4_random_forest_neutral",
        "regmean",
        "emr",
        "residual",
        "one_pass",
    }
    table = (folder / "table.md").read_text()
    own = summary["methods"]["gmerging_own"]["stored"]
    assert percent(own["average"], own["average_std"]) in table
    assert {"recovery.svg", "expert_weights.svg", "swap_matrix.svg"} <= {
        path.name for path in folder.glob("*.svg")
    }


def test_matrices_and_accounting(compared: Path) -> None:
    results = read(compared / "results/pico/seed0.json")
    for task in ("nitrogen", "other"):
        assert (
            results["swap_matrix"][task][task]
            == results["methods"]["finetuned"]["stored"]["roc_auc"][task]
        )
        assert sum(results["expert_weights"][task].values()) == pytest.approx(1, abs=1e-3)
    parameters = results["accounting"]["parameters"]
    assert parameters["adapter_site"] == 2 * 16 * 4
    assert parameters["merged_total"] == parameters["backbone"] + 2 * (
        4 * 128 + parameters["statistics_per_task"]
    ) + sum(parameters["heads"].values())
    assert parameters["one_pass_adapter"] == 2 * 16 * 4
    assert parameters["one_pass_total"] == parameters["backbone"] + parameters[
        "statistics_per_task"
    ] + 2 * 128 + sum(parameters["heads"].values())
    seconds = {"finetuning", "merging", "adapters", "one_pass"}
    assert set(results["accounting"]["seconds"]) == seconds
    # Rank 3 saves numbers of matrices and of the tables of atom types and bond types.
    whole = 3 * 16 + 3 * (3 + 1 + 2) * 16
    low_rank = 3 * (3 * 32 + 136 + 3 * 22)
    assert results["methods"]["residual"]["numbers_per_task"] == whole + low_rank


def test_one_pass_is_a_row_where_it_is_configured(compared: Path, pico_run: Run) -> None:
    table = (compared / "results/pico/table.md").read_text()
    assert "| One pass (joint alignment) |" in table
    assert "| Average with low-rank residuals |" in table
    names = [row.name for row in table_rows(pico_run)]
    assert names[-1] == "one_pass"
    without = pico_run.config.model_copy(update={"one_pass": None})
    assert [row.name for row in table_rows(replace(pico_run, config=without))] == names[:-1]


def test_another_seed_joins_those_that_are_there(compared: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (compared / "work/pieces").rglob("*.*")}
    shutil.copytree(compared / "results", tmp_path / "results")
    assert command(compared, "compare", "--seeds", "2", "--results", str(tmp_path / "results")) == 0
    assert read(tmp_path / "results/pico/summary.json")["seeds"] == [0, 1, 2]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_ablations_and_sweeps(compared: Path) -> None:
    before = {path.name for path in (compared / "work/pieces").glob("multitask*")}
    assert command(compared, "ablate", "--results", str(compared / "results")) == 0
    content = read(compared / "results/pico/ablations.json")
    groups = content["groups"]
    assert content["tasks"] == ["other"]
    assert all(
        set(row["stored"]["roc_auc"]) == {"other"}
        for rows in groups.values()
        for row in rows.values()
    )
    assert {name: list(rows) for name, rows in groups.items()} == {
        "ablations": ["full", "without_l1", "without_merging"],
        "rank": ["full", "2"],
        "top_k": ["full", "1", "2"],
    }
    assert groups["ablations"]["full"] == groups["rank"]["full"]
    # the one nearest expert is the own
    assert groups["top_k"]["1"]["stored"]["roc_auc"] == groups["rank"]["full"]["stored"]["roc_auc"]
    # ablations train no reference
    assert {path.name for path in (compared / "work/pieces").glob("multitask*")} == before
    assert {"ablations.svg", "rank.svg", "top_k.svg"} <= {
        path.name for path in (compared / "results/pico").glob("*.svg")
    }


def test_results_of_another_kind_are_named(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(compared / "results", tmp_path / "results")
    (tmp_path / "results/pico/seed7.json").write_text('{"tasks": {}}')
    assert main(["figures", "--results", str(tmp_path / "results")]) == 1
    assert (
        "seed7.json without `methods`, expected results of `gmerging compare`"
        in capsys.readouterr().err
    )
    for content in ("[]", "{}"):
        (tmp_path / "results/pico/summary.json").write_text(content)
        assert main(["figures", "--results", str(tmp_path / "results")]) == 1
        assert "summary.json without `methods`, expected results" in capsys.readouterr().err


def test_figures_are_the_same_bytes_when_drawn_again(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (compared / "results").rglob("*.svg")}
    for path in before:
        path.unlink()
    assert main(["figures", "--results", str(compared / "results")]) == 0
    assert {path: path.read_bytes() for path in (compared / "results").rglob("*.svg")} == before
    assert main(["figures", "--results", str(compared / "absent")]) == 1
    assert "expected the results of `gmerging compare`" in capsys.readouterr().err


def test_the_candidate_with_the_best_validation_average_is_chosen(pico_run: Run) -> None:
    rows = candidates(pico_run, "task_arithmetic")
    scores = {
        row.run.config.merge.options["scaling"]: row.task_scores()["stored"]["valid_average"]
        for row in rows
    }
    chosen = chosen_merger(pico_run, "task_arithmetic").run.config.merge.options["scaling"]
    assert scores[chosen] == max(scores.values())


def scores(average: float) -> dict[str, Any]:
    return {"stored": {"roc_auc": {"a": average}, "average": average, "valid_average": average}}


def test_summary_by_hand() -> None:
    def seed(number: int, **methods: float) -> dict[str, Any]:
        return {
            "setting": "s",
            "seed": number,
            "methods": {name: {"title": name, **scores(value)} for name, value in methods.items()},
        }

    summary = summarise_seeds(
        [
            seed(0, finetuned=0.8, weight_average=0.6, ours=0.7),
            seed(1, finetuned=0.9, weight_average=0.7),
        ]
    )["methods"]
    assert summary["finetuned"]["stored"]["average"] == pytest.approx(0.85)
    assert summary["finetuned"]["stored"]["average_std"] == pytest.approx(0.07071, abs=1e-5)
    assert summary["ours"]["seeds"] == 1
    assert summary["ours"]["stored"]["average_std"] is None
    # its one seed
    assert summary["ours"]["stored"]["recovery"] == pytest.approx(
        (0.7 - 0.6) / (0.8 - 0.6), abs=1e-4
    )
