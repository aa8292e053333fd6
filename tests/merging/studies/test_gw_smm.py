"""The study of GW-SMM on a pico run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from merging.planning.plan import PUBLISHED_MERGE
from merging.run.config import load_config
from merging.run.models import merged_model, without_adapters
from merging.run.run import Run
from merging.run.scores import evaluate, unified_forward
from merging.run.stages import finetuned_network
from merging.studies.gw_smm import finetuned_stage, measured_pairs, on_samples, run_study, study
from merging.studies.gw_smm_analysis import gw_smm_tables
from models.errors import ConfigError
from tests.merging.conftest import molecules, write_csv, write_pico


@pytest.fixture(scope="module")
def pico_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One for all tests here: what is fine-tuned once is read back."""
    folder = tmp_path_factory.mktemp("pico")
    return Run(
        load_config(write_pico(folder)), 0, folder / "data", folder / "work", torch.device("cpu")
    )


@pytest.fixture(scope="module")
def content(pico_run: Run) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merging.studies.gw_smm.SIZES", (16,))
        return json.loads(json.dumps(study([pico_run], [0])))  # type: ignore[no-any-return]


class TestStudy:
    def test_scores_are_those_of_the_pipeline(self, pico_run: Run, content: dict[str, Any]) -> None:
        """The pico sets are smaller than the samples, so they are measured whole."""
        run = pico_run.with_changes(merge=PUBLISHED_MERGE.model_dump())
        scores = {
            task: evaluate(run, unified_forward(run, merged_model(run, task), task), task)
            for task in run.tasks
        }
        single = {
            task: evaluate(
                run,
                unified_forward(
                    run, without_adapters(run, finetuned_network(run, task), task), task
                ),
                task,
            )
            for task in run.tasks
        }
        found = content["by_seed"]["0"]
        for subset in ("valid", "test"):
            areas, before = (
                [measures[subset]["roc_auc"] for measures in by_task.values()]
                for by_task in (scores, single)
            )
            assert found["references"]["one_group"][subset] == pytest.approx(
                np.mean(areas), abs=1e-5
            )
            loss = np.mean(np.array(before) - np.array(areas))
            assert found["losses"][f"ties_{subset}"][0][1] == pytest.approx(loss, abs=1e-4)

    def test_the_only_plan_is_as_good_as_itself(self, content: dict[str, Any]) -> None:
        plan = content["by_seed"]["0"]["plans"]["2"]["gw"]
        assert plan["groups"] == [["nitrogen", "other"]]
        assert (
            plan["test"]["value"]
            == plan["test"]["mean"]
            == content["by_seed"]["0"]["references"]["one_group"]["test"]
        )
        assert (plan["test"]["beaten"], plan["test"]["ways"]) == (0.5, 1)

    def test_tables_can_be_made_of_it(self, content: dict[str, Any]) -> None:
        made = gw_smm_tables(content)
        assert made.keys() == {
            "correlation",
            "agreement",
            "groups",
            "references",
            "value",
            "variants",
            "sizes",
        }
        assert all(
            len({line.count("|") for line in table.split("\n")}) == 1 for table in made.values()
        )

    @pytest.mark.parametrize("most", [2, 6, 1000])
    def test_samples_keep_positives_and_others(
        self, pico_run: Run, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("merging.studies.gw_smm.SUBSET_MOLECULES", most)
        monkeypatch.setattr("merging.studies.gw_smm.LABELS", 1)
        whole, small = pico_run.dataset("other"), on_samples(pico_run, 10).dataset("other")
        assert len(small.split.train) == 10
        assert small.labels[:, 1].isnan().all()
        torch.testing.assert_close(small.labels[:, 0], whole.labels[:, 0])
        for rows, chosen in (
            (whole.split.valid, small.split.valid),
            (whole.split.test, small.split.test),
        ):
            assert set(chosen.tolist()) <= set(rows.tolist())
            assert len(set(chosen.tolist())) == len(chosen) == min(most, len(rows))
            positives = int((whole.labels[rows, 0] == 1).sum())
            kept = min(positives, most - min(len(rows) - positives, most // 2))
            assert (whole.labels[chosen, 0] == 1).sum() == kept
            assert 0 < kept < len(chosen)

    def test_a_part_of_one_label_is_refused(self, pico_run: Run) -> None:
        small = on_samples(pico_run, 10)
        small.dataset("other").labels.fill_(1.0)
        stage = finetuned_stage(pico_run, small, "other")
        with pytest.raises(ConfigError, match="got one label for all valid molecules of other"):
            stage.make(Path())


def with_a_regression(folder: Path, target: str) -> Run:
    """The pico run with a third task, the length of the SMILES."""
    file = write_pico(folder)
    rows = [(molecule, str(len(molecule))) for molecule in molecules()]
    write_csv(folder / "data/length.csv", "smiles", ("length",), rows)
    values = yaml.safe_load(file.read_text())
    values["tasks"].append("length")
    values["datasets"]["length"] = {"file": "length.csv", "target": target}
    file.write_text(yaml.safe_dump(values))
    return Run(load_config(file), 0, folder / "data", folder / "work", torch.device("cpu"))


def test_drawn_pairs_and_a_regression(tmp_path: Path) -> None:
    run = with_a_regression(tmp_path, "regression")
    found = json.loads(json.dumps(study([run], [], ways=1)))
    (pair,) = measured_pairs(run, 1)
    table = np.array(found["by_seed"]["0"]["losses"]["ties_test"], dtype=float)
    rows = sorted(run.tasks.index(task) for task in pair)
    assert np.argwhere(~np.isnan(np.triu(table, 1)) & (np.triu(table, 1) != 0)).tolist() in (
        [rows],
        [],  # Nothing was lost.
    )
    assert np.isnan(table).sum() == 4
    assert found["settings"]["pairs"] == found["by_seed"]["0"]["plans"]["2"]["gw"]["test"]["ways"]
    alone = found["by_seed"]["0"]["by_task"]["finetuned"]["length"]["test"]
    assert 0 <= alone <= 1
    assert not gw_smm_tables(found).keys() & {"variants", "sizes"}
    assert found["correlation"].keys() == {"gw", "cka", "cosine"}


def test_classes_and_no_ways_are_refused(tmp_path: Path, pico_run: Run) -> None:
    with pytest.raises(ConfigError, match="got tasks with classes, length"):
        run_study([with_a_regression(tmp_path, "multiclass")], [], tmp_path)
    with pytest.raises(ConfigError, match="--ways: got 0, expected at least 1"):
        run_study([pico_run], [], tmp_path, ways=0)
