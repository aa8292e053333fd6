"""Scores beside leaderboards: a board by hand, and scores of a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from gmerging.cli.main import main
from merging.run.forests import EXPERT_EVALUATIONS, expert_evaluation, forest
from merging.run.one_pass import one_pass_stream
from merging.run.run import Run
from merging.run.scores import evaluation
from merging.run.stages import merged, teacher
from merging.studies import boards
from merging.studies.boards import (
    Boards,
    Scores,
    boards_tables,
    collect_scores,
    compare_with_boards,
    read_boards,
    read_scores,
)
from merging.targets.metrics import roc_auc
from models.errors import ConfigError, DataError
from tests.merging.conftest import run_options
from tests.merging.run.test_one_pass import QUICK

BOARDS = {
    "source": "made in a test",
    "tasks": {
        "hia": {
            "metric": "AUROC",
            "note": "of another year",
            "entries": [
                ["ContextPred", 0.9, 0.01],
                ["MapLight + GNN", 0.95, 0.002],
                ["AttrMasking", 0.92, 0.02],
            ],
        },
        "ld50": {
            "metric": "MAE",
            "entries": [
                ["ContextPred", 0.6, 0.02],
                ["Winner", 0.55, 0.01],
                ["MapLight + GNN", 0.62, 0.0],
            ],
        },
        "ames": {"metric": "AUROC", "entries": [["ContextPred", 0.8, 0.0]]},
        "unmeasured": {"metric": "Spearman", "entries": [["ContextPred", 0.8, 0.1]]},
    },
}
SCORES: dict[str, Any] = {
    "metrics": {"hia": "roc_auc", "ld50": "mae", "ames": "roc_auc", "tox21": "roc_auc"},
    "methods": {
        "finetuned": {
            "hia": {"1": 0.91, "2": 0.93},
            "ld50": {"1": 0.66, "2": 0.62, "3": 0.64},
            "ames": {"1": 0.7996},
            "tox21": {"1": 0.7},
        },
        "both": {"ld50": {"1": 0.54}},
    },
}


def compared(scores: dict[str, Any] = SCORES) -> dict[str, Any]:
    return compare_with_boards(Scores.model_validate(scores), Boards.model_validate(BOARDS))


def test_wins_are_counted_at_three_digits_where_both_are_measured() -> None:
    counts = compared()["no_worse"]
    # hia: .920 of .900, .920, .950; ld50: .640 of .600, .620, the best .550; ames: .800 of .800
    assert counts["finetuned"] == {
        "ContextPred": [2, 3],
        "AttrMasking": [1, 1],
        "Chemprop-RDKit": [0, 0],
        "MapLight + GNN": [0, 2],
        "best listed": [1, 3],
    }
    assert counts["both"]["best listed"] == [1, 1]
    assert counts["both"]["MapLight + GNN"] == [1, 1]


def test_the_difference_is_in_deviations_and_positive_where_better() -> None:
    found = compared()["difference"]
    # hia: +.02 / .01; ld50: -.04 / .02; ames has no deviation
    assert found["finetuned"] == {"mean": pytest.approx(0, abs=1e-9), "tasks": 2}
    assert found["both"] == {"mean": pytest.approx(3), "tasks": 1}
    alone = {"metrics": {"ames": "roc_auc"}, "methods": {"trees": {"ames": {"1": 0.9}}}}
    assert compared(alone)["difference"]["trees"] == {"mean": None, "tasks": 0}


def test_the_table_has_means_deviations_and_seeds() -> None:
    table = boards_tables(compared())
    hia = "| hia | AUROC | 0.920 ± 0.014 (2) |  | 0.900 ± 0.010 | 0.920 ± 0.020 |  |"
    assert f"{hia} 0.950 ± 0.002 | 0.950 ± 0.002 (MapLight + GNN) |" in table
    assert "| ld50 | MAE | 0.640 ± 0.020 (3) | 0.540 (1) | 0.600 ± 0.020 |" in table
    assert "0.550 ± 0.010 (Winner) |" in table
    assert "unmeasured" not in table
    assert "tox21" not in table
    assert "| finetuned | 2 of 3 | 1 of 1 | 0 of 0 | 0 of 2 | 1 of 3 | +0.00 (2 tasks) |" in table
    assert "made in a test" in table


def test_scores_by_another_metric_or_of_other_tasks_are_refused() -> None:
    wrong = {"metrics": {"ld50": "spearman"}, "methods": {"a": {"ld50": {"1": 0.5}}}}
    with pytest.raises(DataError, match="ld50: got scores by spearman, expected mae as its board"):
        compared(wrong)
    other = {"metrics": {"tox21": "roc_auc"}, "methods": {"a": {"tox21": {"1": 0.5}}}}
    with pytest.raises(DataError, match="got scores of tox21, expected some of hia, ld50"):
        compared(other)


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"got no file .*a.json, expected Leaderboards by task"):
        read_boards(file)
    file.write_text(json.dumps({"source": "x", "tasks": {"a": {"metric": "R2", "entries": []}}}))
    with pytest.raises(DataError, match=r"a.json: tasks.a.metric: "):
        read_boards(file)
    with pytest.raises(DataError, match=r"a.json: .*unknown key"):
        read_scores(file)


def test_the_command_writes_table_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("scores", SCORES), ("boards", BOARDS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [f"--{name}={tmp_path / name}.json" for name in ("scores", "boards")]
    folder = tmp_path / "results"
    assert main(["study", "admet-boards", *files, "--results", str(folder)]) == 0
    table = (folder / "boards.md").read_text()
    assert table == boards_tables(compared())
    assert table in capsys.readouterr().out
    assert json.loads((folder / "boards.json").read_text()) == json.loads(json.dumps(compared()))


def test_scores_of_runs_are_collected_and_added(pico_run: Run, tmp_path: Path) -> None:
    file, built = tmp_path / "scores/a.json", []

    def build(stages: Any, description: str) -> None:
        built.extend(stages)

    settings = ["finetuned"], ["nitrogen"], file, build
    found = collect_scores([pico_run], *settings)
    record = pico_run.result(evaluation("finetuned", pico_run, "nitrogen")).record
    assert found.methods == {"finetuned": {"nitrogen": {0: record["stored"]["test"]["roc_auc"]}}}
    assert found.metrics == {"nitrogen": "roc_auc"}
    assert [stage.name for stage in built] == ["evaluation/finetuned/nitrogen"]
    content = json.loads(file.read_text())
    content["methods"]["trees"] = {"nitrogen": {"7": 0.5}}
    content["methods"]["finetuned"]["nitrogen"]["9"] = 0.25
    file.write_text(json.dumps(content))
    again = collect_scores([pico_run], *settings)
    assert again.methods["trees"] == {"nitrogen": {7: 0.5}}
    assert again.methods["finetuned"]["nitrogen"].keys() == {0, 9}
    assert read_scores(file) == again
    with pytest.raises(ConfigError, match=r"got method 'finetune', expected one of .*finetuned"):
        collect_scores([pico_run], ["finetune"], ["nitrogen"], file, build)


def test_forests_and_their_mean_with_the_stream_are_measured(pico_run: Run, tmp_path: Path) -> None:
    sections = {"forest": {"kinds": ["bagged"], "bagged": {"trees": 8}}, "one_pass": QUICK}
    run = pico_run.with_changes(**sections)
    methods = ["one_pass", *EXPERT_EVALUATIONS]
    found = collect_scores(
        [run], methods, ["other"], tmp_path / "scores.json", lambda stages, _: None
    )
    data, trees = run.dataset("other"), run.result(forest(run, "other")).tensors["outputs/test"]
    batch = data.graphs.select(data.split.test)
    own, labels = one_pass_stream(run)(batch).outputs["other"], data.labels[data.split.test]
    expected = {"one_pass": own, "forest": trees, "one_pass_and_forest": (own + trees) / 2}
    for method, outputs in expected.items():
        score = roc_auc(labels, outputs).mean
        assert found.methods[method]["other"][0] == pytest.approx(score, abs=1e-5)
    chosen = run.result(expert_evaluation("one_pass_default", run, "other")).record["experts"]
    name = {"own": "one_pass", "forest": "forest", "both": "one_pass_and_forest"}[chosen]
    assert found.methods["one_pass_default"]["other"] == found.methods[name]["other"]


def test_the_command_measures_a_run(pico_config_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    arguments = ["--config", str(pico_config_file), "--tasks", "other", "--results", str(file)]
    assert main(["study", "scores", *arguments, *run_options(tmp_path)]) == 0
    scores = read_scores(file)
    assert scores.metrics == {"other": "roc_auc"}
    assert 0 <= scores.methods["finetuned"]["other"][0] <= 1


def test_a_group_of_tasks_is_merged_alone(
    pico_config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fine-tuned models are those of the whole run."""
    seen: list[Run] = []

    def collect(runs: list[Run], *arguments: Any) -> Scores:
        seen.extend(runs)
        return collect_scores(runs, *arguments)

    monkeypatch.setattr(boards, "collect_scores", collect)
    file = tmp_path / "scores.json"
    arguments = ["--config", str(pico_config_file), "--tasks", "other", "--results", str(file)]
    for group in ([], ["--group", "alone"]):
        assert main(["study", "scores", *arguments, *group, *run_options(tmp_path)]) == 0
    whole, alone = seen
    assert whole.tasks == ("nitrogen", "other")
    assert alone.tasks == ("other",)
    assert alone.config.setting == f"{whole.config.setting}-alone"
    assert teacher(alone, "other").key == teacher(whole, "other").key
    assert merged(alone).key != merged(whole).key
