"""Plans: made from a run's models, through their file, and as runs of groups."""

from pathlib import Path

import numpy as np
import ot
import pytest
import torch

from merging.data.files import read_json, write_json
from merging.mergers.registry import MergeConfig
from merging.planning.distances import cka_distance, distance_matrix, feature_matrix
from merging.planning.plan import (
    Plan,
    PlanSettings,
    make_plan,
    plan_settings,
    planned_runs,
    read_plan,
    shared_features,
    write_plan,
)
from merging.release.release import release
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.stages import (
    calibration,
    finetuned_network,
    merged,
    merged_network,
    teacher,
    trained_model,
)
from models.artifact import load_artifact
from models.errors import ConfigError
from tests.merging.conftest import write_pico


@pytest.fixture(scope="module")
def pico_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One for all tests here: what is fine-tuned once is read back."""
    folder = tmp_path_factory.mktemp("pico")
    return Run(
        load_config(write_pico(folder)), 0, folder / "data", folder / "work", torch.device("cpu")
    )


@pytest.fixture(scope="module")
def plan(pico_run: Run) -> Plan:
    return make_plan(pico_run, PlanSettings(restarts=2, group_size=2))


class TestPlan:
    @pytest.mark.parametrize("metric", ["gw", "cka", "cosine"])
    def test_every_metric_makes_a_plan(self, pico_run: Run, metric: str) -> None:
        made = make_plan(
            pico_run,
            PlanSettings.model_validate({"metric": metric, "restarts": 1, "group_size": 2}),
        )
        assert made.groups == {"group1": ("nitrogen", "other")}
        assert made.distances[0][1] == made.distances[1][0] > 0
        assert made.distances[0][0] == 0

    def test_cka_is_of_the_same_molecules_for_both_models(self, pico_run: Run) -> None:
        features = [shared_features(pico_run, task) for task in ("nitrogen", "other")]
        batches = [
            batch for task in ("nitrogen", "other") for batch in calibration(pico_run, task).batches
        ]
        torch.testing.assert_close(
            features[0], feature_matrix(finetuned_network(pico_run, "nitrogen"), batches)
        )
        made = make_plan(pico_run, PlanSettings(metric="cka", group_size=2))
        assert made.distances[0][1] == pytest.approx(cka_distance(*features), abs=1e-9)

    def test_distance_is_that_of_the_models_own_molecules(self, pico_run: Run, plan: Plan) -> None:
        features = [
            feature_matrix(finetuned_network(pico_run, task), calibration(pico_run, task).batches)
            for task in pico_run.config.tasks
        ]
        assert features[0].shape == (len(pico_run.dataset("nitrogen").split.train), 16)
        weights = [ot.unif(len(table)) for table in features]
        by_hand = ot.gromov.gromov_wasserstein2(
            *map(distance_matrix, features), *weights, "square_loss"
        )
        assert plan.distances[0][1] <= 0.5 * np.sqrt(by_hand) + 1e-9

    def test_distances_are_kept_and_read_back(self, pico_run: Run) -> None:
        settings, folder = (
            PlanSettings(restarts=3, group_size=2),
            pico_run.work / "pieces/planning/gw",
        )
        before = set(folder.glob("nitrogen-other-seed0-*.json"))
        make_plan(pico_run, settings)
        (piece,) = set(folder.glob("nitrogen-other-seed0-*.json")) - before
        write_json(piece, {**read_json(piece), "distance": 0.123})
        assert make_plan(pico_run, settings).distances[0][1] == 0.123

    def test_file_holds_the_plan(self, plan: Plan, tmp_path: Path) -> None:
        write_plan(plan, tmp_path / "plan.json")
        assert read_plan(tmp_path / "plan.json") == plan
        before = (tmp_path / "plan.json").read_bytes()
        write_plan(read_plan(tmp_path / "plan.json"), tmp_path / "plan.json")
        assert (tmp_path / "plan.json").read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"groups": {"group1": ["nitrogen"]}}, "expected each of"),
            ({"groups": {"group1": ["nitrogen", "other"], "group2": []}}, "no group empty"),
            (
                {"groups": {"group1": ["nitrogen", "other"], "group2": ["other"]}},
                "expected each of",
            ),
            ({"groups": {"../group1": ["nitrogen", "other"]}}, "pattern"),
            ({"distances": [[0, 1], [2, 0]]}, "symmetric"),
            ({"distances": [[0, 1], [1]]}, "symmetric"),
            ({"merge": {"method": "glue"}}, "got merge method 'glue'"),
            ({"settings": {"metric": "taste"}}, "settings.metric"),
            ({"colour": "blue"}, "colour"),
            ({"format_version": 2}, "format_version"),
        ],
    )
    def test_file_that_does_not_fit(
        self, plan: Plan, tmp_path: Path, change: dict[str, object], problem: str
    ) -> None:
        path = tmp_path / "plan.json"
        write_json(path, {**plan.model_dump(mode="json"), **change})
        with pytest.raises(ConfigError, match=problem):
            read_plan(path)

    def test_settings_that_do_not_fit(self) -> None:
        with pytest.raises(ConfigError, match=r"restarts: .*; group_size"):
            plan_settings(restarts=0, group_size=0)
        assert plan_settings(metric="cka") == PlanSettings(metric="cka")

    def test_file_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="got no plan at"):
            read_plan(tmp_path / "absent.json")
        (tmp_path / "text.json").write_text("groups: none")
        with pytest.raises(ConfigError, match="JSON"):
            read_plan(tmp_path / "text.json")

    def test_group_is_merged_by_the_plans_method(self, pico_run: Run, plan: Plan) -> None:
        (run,) = planned_runs(pico_run, plan).values()
        assert run.config.tasks == pico_run.config.tasks
        assert run.result(merged(run)).record["method"] == "ties"
        assert run.result(merged(run)).record["options"] == {"density": 0.3, "scaling": 0.5}
        other = plan.model_copy(update={"merge": MergeConfig(method="weight_average")})
        (run,) = planned_runs(pico_run, other).values()
        assert run.result(merged(run)).record["method"] == "weight_average"

    def test_group_of_one_is_the_finetuned_model(self, pico_run: Run) -> None:
        plan = make_plan(pico_run, PlanSettings(restarts=1, group_size=1))
        runs = planned_runs(pico_run, plan)
        assert {name: run.config.tasks for name, run in runs.items()} == {
            "group1": ("nitrogen",),
            "group2": ("other",),
        }
        made = len(list((pico_run.work / "pieces/finetuned").iterdir()))
        for run in runs.values():
            (task,) = run.config.tasks
            expected = trained_model(pico_run, teacher(pico_run, task)).network
            got = merged_network(run).state_dict()
            for key, value in expected.items():
                if "running" not in key and "num_batches" not in key:
                    # theta_pre + (theta_k - theta_pre) in float32
                    torch.testing.assert_close(got[key], value, rtol=3e-7, atol=3e-7)
        assert len(list((pico_run.work / "pieces/finetuned").iterdir())) == made

    def test_group_keeps_what_the_configuration_says_of_its_tasks(self, pico_run: Run) -> None:
        runs = planned_runs(pico_run, make_plan(pico_run, PlanSettings(restarts=1, group_size=1)))
        nitrogen, other = (run.config for run in runs.values())
        assert other.alignment_for("other").epochs == 2
        assert nitrogen.alignment_by_task == {}
        assert nitrogen.compare.ablation_tasks == ()
        assert (nitrogen.release.name, other.release.name) == ("pico-group1", "pico-group2")

    def test_group_can_be_released(self, pico_run: Run, tmp_path: Path) -> None:
        """A group of one is an artifact like any other."""
        run = planned_runs(pico_run, make_plan(pico_run, PlanSettings(restarts=1, group_size=1)))[
            "group2"
        ]
        release(run, tmp_path / "group2")
        artifact = load_artifact(tmp_path / "group2")
        assert artifact.manifest.name == "pico-group2"
        assert artifact.model.label_names == {"other": ("has_o", "has_halogen")}
        assert artifact.manifest.provenance["config"]["merge"] == {
            "method": "ties",
            "options": {"density": 1.0, "scaling": 1.0},
        }

    def test_plan_of_other_models_is_refused(self, pico_run: Run, plan: Plan) -> None:
        with pytest.raises(ConfigError, match=r"other models than this run's for nitrogen, other"):
            planned_runs(pico_run.with_changes(finetune={"epochs": 2}), plan)
        fewer = plan.model_copy(
            update={
                "models": {"nitrogen": ""},
                "groups": {"group1": ("nitrogen",)},
                "distances": ((0.0,),),
            }
        )
        with pytest.raises(ConfigError, match="got a plan of tasks"):
            planned_runs(pico_run, fewer)
