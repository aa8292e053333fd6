"""Distances between models against oracles and laws, groups against scipy, and plans through their
file and the pipeline."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import ot
import pytest
import torch
from scipy.cluster.hierarchy import average
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr
from torch import Tensor

from merging.data.files import read_json, write_json
from merging.drawing.plan import draw_plan
from merging.mergers.registry import MergeConfig
from merging.mergers.task_vector import TaskVector
from merging.planning.distances import (
    Matrix,
    Variant,
    cka_distance,
    cosine_distance,
    coupling_distance,
    distance_matrix,
    feasible,
    feature_matrix,
    gromov_wasserstein,
    low_rank,
)
from merging.planning.grouping import all_groupings, average_linkage
from merging.planning.plan import (
    PUBLISHED,
    Plan,
    PlanSettings,
    make_plan,
    plan_settings,
    planned_runs,
    read_plan,
    write_plan,
)
from merging.release.release import release
from merging.run.config import load_config
from merging.run.models import merged_only, without_adapters
from merging.run.run import Run
from merging.run.scores import answering, measured
from merging.run.stages import calibration, merged, merged_network, own_network, teacher, trained
from merging.studies.gw_smm import on_samples, study
from merging.studies.gw_smm_analysis import (
    Scores,
    among,
    mantel,
    pair_losses,
    variant_statistics,
    without_task_effects,
)
from merging.studies.gw_smm_tables import tables
from models.artifact import load_artifact
from models.errors import ConfigError, InvalidInputError
from tests.merging.conftest import write_pico

VARIANTS: tuple[Variant, ...] = ("exact", "sampled", "low_rank")


def points(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def space(count: int, width: int = 3, seed: int = 0) -> Matrix:
    return distance_matrix(points(count, width, seed))


def distance(
    a: Matrix, b: Matrix, variant: Variant = "exact", restarts: int = 5, seed: int = 0
) -> float:
    return gromov_wasserstein(a, b, variant, restarts, np.random.default_rng(seed)).distance


def symmetric(count: int, seed: int, levels: int | None = None) -> Matrix:
    generator = np.random.default_rng(seed)
    table = (
        generator.random((count, count))
        if levels is None
        else generator.integers(1, levels, (count, count)).astype(float)
    )
    table = np.triu(table, 1)
    return np.asarray(table + table.T)


class TestGromovWasserstein:
    def test_of_a_rotated_rescaled_shuffled_copy_is_zero(self) -> None:
        x = points(30, 4, seed=1)
        rotation = torch.linalg.qr(points(4, 4, seed=2))[0]
        copy = (
            7.5 * (x @ rotation)[torch.randperm(30, generator=torch.Generator().manual_seed(3))] + 2
        )
        found = gromov_wasserstein(
            distance_matrix(x), distance_matrix(copy), "exact", 3, np.random.default_rng(0)
        )
        assert found.distance < 1e-6
        assert found.converged

    def test_spaces_of_other_widths_and_sizes(self) -> None:
        x = points(12, 3, seed=1)
        padded = torch.cat([x, torch.zeros(12, 5)], dim=1)
        twice = torch.cat([padded, padded])
        assert distance(distance_matrix(x), distance_matrix(twice)) < 1e-4
        assert distance(space(9), space(14, width=6, seed=4)) > 0.05

    def test_is_symmetric(self) -> None:
        """Between spaces that are near each other; elsewhere the solver may get stuck on one side
        earlier than on the other."""
        for seed in range(4):
            x = points(20, 3, seed)
            a, b = distance_matrix(x), distance_matrix(x + 0.02 * points(20, 3, seed + 10))
            assert distance(a, b) == pytest.approx(distance(b, a), abs=1e-6)

    @pytest.mark.parametrize("count", [3, 4, 5, 6])
    def test_is_that_of_the_best_permutation(self, count: int) -> None:
        """By trying all permutations. A coupling that splits molecules could be better, but for
        Euclidean distances none is; of six pairs of spaces the solver may miss two by a little, as
        the problem is not convex."""
        found, best = [], []
        for seed in range(6):
            a, b = space(count, seed=seed), space(count, seed=seed + 10)
            found.append(distance(a, b, restarts=60))
            best.append(
                min(
                    0.5 * float(np.sqrt(((a - b[np.ix_(p, p)]) ** 2).mean()))
                    for p in map(list, itertools.permutations(range(count)))
                )
            )
        assert (np.array(found) >= np.array(best) - 1e-6).all()
        assert np.isclose(found, best, atol=1e-6).sum() >= 4
        assert (np.array(found) <= 1.02 * np.array(best)).all()

    def test_equals_pots_own_value(self) -> None:
        a, b = space(8), space(7, seed=5)
        loss = ot.gromov.gromov_wasserstein2(a, b, ot.unif(8), ot.unif(7), "square_loss")
        assert distance(a, b, restarts=1) == pytest.approx(0.5 * np.sqrt(loss), rel=1e-6)

    def test_more_starts_are_never_worse(self) -> None:
        a, b = space(25), space(25, seed=9)
        found = gromov_wasserstein(a, b, "exact", 12, np.random.default_rng(0))
        assert found.distance == min(found.by_start) <= found.by_start[0]
        # not convex: starts differ in where they lead
        assert len(set(np.round(found.by_start, 9))) > 1
        fewer = gromov_wasserstein(a, b, "exact", 4, np.random.default_rng(0))
        assert fewer.by_start == found.by_start[:4]

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_variant_gives_the_value_of_a_coupling(self, variant: Variant) -> None:
        """So none is below the minimum, and none above what no coupling at all (the product)
        has."""
        a, b = space(6), space(6, seed=3)
        product = coupling_distance(a, b, np.full((6, 6), 1 / 36))
        assert (
            distance(a, b, restarts=60) - 1e-9
            <= distance(a, b, variant, restarts=3)
            <= product + 1e-9
        )

    def test_value_of_a_coupling_is_the_definition(self) -> None:
        a, b = space(4), space(5, seed=3)
        plan = feasible(np.random.default_rng(0).random((4, 5)))
        value = sum(
            (a[i, k] - b[j, m]) ** 2 * plan[i, j] * plan[k, m]
            for i, j, k, m in itertools.product(range(4), range(5), range(4), range(5))
        )
        assert coupling_distance(a, b, plan) == pytest.approx(0.5 * np.sqrt(value))

    def test_feasible_plans(self) -> None:
        plan = feasible(np.random.default_rng(0).random((4, 6)))
        np.testing.assert_allclose(plan.sum(1), 1 / 4)
        np.testing.assert_allclose(plan.sum(0), 1 / 6)
        assert (plan >= 0).all()
        np.testing.assert_allclose(feasible(plan), plan)

    def test_low_rank_of_full_rank_is_the_table(self) -> None:
        table = space(12)
        left, right = low_rank(table, 12)
        np.testing.assert_allclose(left @ right.T, table, atol=1e-12)

    def test_errors_say_what_was_expected(self) -> None:
        with pytest.raises(InvalidInputError, match="not all the same"):
            distance_matrix(torch.ones(4, 2))
        with pytest.raises(InvalidInputError, match="not all the same"):
            distance_matrix(torch.full((4, 2), torch.nan))
        with pytest.raises(InvalidInputError, match=r"shape \(3, 4\)"):
            distance(np.ones((3, 4)), space(4))
        with pytest.raises(InvalidInputError, match="restarts: got 0"):
            distance(space(4), space(4), restarts=0)


class TestOtherDistances:
    def test_cka(self) -> None:
        x, y = points(40, 5, seed=1), points(40, 8, seed=2)
        rotation = torch.linalg.qr(points(5, 5, seed=3))[0]
        assert cka_distance(x, 3 * x @ rotation + 1) == pytest.approx(0, abs=1e-9)
        assert cka_distance(x, y) == pytest.approx(cka_distance(y, x))
        assert 0.3 < cka_distance(x, y) <= 1
        centred = [(each - each.mean(0)).double() for each in (x, y)]
        grams = [each @ each.T for each in centred]
        by_grams = 1 - float((grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm()))
        assert cka_distance(x, y) == pytest.approx(by_grams)
        with pytest.raises(InvalidInputError, match="40 and 39"):
            cka_distance(x, y[1:])

    def test_cosine(self) -> None:
        first = TaskVector({"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([[2.0]])})
        assert cosine_distance(
            first, TaskVector({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[6.0]])})
        ) == pytest.approx(0)
        assert cosine_distance(
            first, TaskVector({"a": torch.tensor([-1.0, 0.0]), "b": torch.tensor([[-2.0]])})
        ) == pytest.approx(2)
        assert cosine_distance(
            first, TaskVector({"a": torch.tensor([0.0, 5.0]), "b": torch.tensor([[0.0]])})
        ) == pytest.approx(1)


class TestGrouping:
    def test_without_a_limit_is_scipys_average_linkage(self) -> None:
        for seed in range(20):
            count = 2 + seed % 9
            table = symmetric(count, seed)
            found = average_linkage([f"t{k}" for k in range(count)], table, count)
            np.testing.assert_allclose(found.linkage, average(squareform(table)))
            assert len(found.groups) == 1

    @pytest.mark.parametrize("limit", [1, 2, 3, 4])
    def test_limit_is_kept_and_no_two_groups_could_be_joined(self, limit: int) -> None:
        for seed in range(10):
            names = [f"t{k}" for k in range(9)]
            found = average_linkage(names, symmetric(9, seed), limit)
            sizes = sorted(map(len, found.groups))
            assert sorted(name for group in found.groups for name in group) == names
            assert sizes[-1] <= limit
            assert len(sizes) == 1 or sizes[0] + sizes[1] > limit
            assert found.linkage.shape == (8, 4)
            assert (np.diff(found.linkage[:, 2]) >= 0).all()
            assert found.linkage[-1, 3] == 9

    def test_order_of_names_is_of_no_matter_even_with_ties(self) -> None:
        names, generator = [f"t{k}" for k in range(8)], np.random.default_rng(0)
        for seed in range(10):
            table = symmetric(8, seed, levels=4)
            order = generator.permutation(8)
            shuffled = average_linkage([names[k] for k in order], table[np.ix_(order, order)], 3)
            assert shuffled.groups == average_linkage(names, table, 3).groups

    def test_closest_are_joined(self) -> None:
        place = np.array([0.0, 0.1, 0.3, 5.0, 5.1])
        found = average_linkage(list("edcba"), np.abs(place[:, None] - place), 3)
        assert found.groups == (("a", "b"), ("c", "d", "e"))
        assert average_linkage(["alone"], np.zeros((1, 1)), 3).groups == (("alone",),)

    def test_all_groupings(self) -> None:
        found = list(all_groupings("hgfedcba", (3, 3, 2)))
        assert len(found) == len(set(found)) == 280
        assert all(
            sorted(map(len, groups)) == [2, 3, 3] and sorted(sum(groups, ())) == list("abcdefgh")
            for groups in found
        )
        assert list(all_groupings("ab", (2,))) == [(("a", "b"),)]

    def test_errors_say_what_was_expected(self) -> None:
        for names in (["a", "a"], ["a", "b", "c"]):
            with pytest.raises(
                InvalidInputError, match="expected different names and a row for each"
            ):
                average_linkage(names, np.zeros((2, 2)), 2)
        with pytest.raises(InvalidInputError, match="limit: got 0"):
            average_linkage(["a", "b"], np.zeros((2, 2)), 0)


class TestAnalysis:
    def test_plan_among_all_others(self) -> None:
        """Scores that only two right groups have; one of the three ways to pair four tasks up is
        theirs."""
        right = (("a", "b"), ("c", "d"))
        scores: Scores = {
            pair: {task: {"test": 0.9 if pair in right else 0.6} for task in pair}
            for pair in itertools.combinations("abcd", 2)
        }
        ways = list(all_groupings("abcd", (2, 2)))
        found = among(right, ways, scores, "test")
        assert (found["value"], found["best"], found["worst"], found["ways"]) == (0.9, 0.9, 0.6, 3)
        assert found["beaten"] == pytest.approx(2 / 3 + 1 / 6, abs=1e-4)
        assert among((("a", "c"), ("b", "d")), ways, scores, "test")["beaten"] == pytest.approx(
            1 / 3, abs=1e-4
        )
        losses = pair_losses("abcd", scores, {task: {"test": 1.0} for task in "abcd"}, "test")
        assert losses[0, 1] == losses[1, 0] == pytest.approx(0.1)
        assert losses[0, 2] == pytest.approx(0.4)

    def test_variants_beside_the_first(self) -> None:
        exact = [
            {"distance": d, "by_start": [d + 0.1, d], "seconds": 2.0, "converged": True}
            for d in (0.1, 0.2, 0.3)
        ]
        other = [
            {"distance": d, "by_start": [d], "seconds": 3.0, "converged": None}
            for d in (0.6, 0.4, 0.2)
        ]
        found = variant_statistics({"exact": exact, "other": other})
        assert (
            found["exact"]["rho"],
            found["exact"]["ratio"],
            found["exact"]["better_later"],
            found["exact"]["converged"],
        ) == (1, 1, 1, 1)
        assert (
            found["other"]["rho"],
            found["other"]["ratio"],
            found["other"]["time_ratio"],
            found["other"]["converged"],
        ) == (-1, 2, 3, None)
        assert found["exact"]["most_gain"] == 0.5

    def test_mantel_is_spearman_with_every_relabelling(self) -> None:
        table = symmetric(5, 0)
        loss = table + 0.3 * symmetric(5, 1)
        upper = np.triu_indices(5, 1)
        found = mantel(table, loss)
        assert found["rho"] == pytest.approx(spearmanr(table[upper], loss[upper])[0], abs=1e-4)
        shuffled = [
            spearmanr(table[np.ix_(p, p)][upper], loss[upper])[0]
            for p in map(list, itertools.permutations(range(5)))
        ]
        assert found["p"] == pytest.approx(
            np.mean(np.array(shuffled) >= found["rho"] - 1e-4), abs=1e-4
        )
        assert mantel(table, table)["rho"] == pytest.approx(1)

    def test_what_tasks_add_on_their_own_is_taken_out(self) -> None:
        effects = np.array([0.1, 0.5, 0.2, 0.9, 0.4])
        additive = effects[:, None] + effects
        upper = np.triu_indices(5, 1)
        np.testing.assert_allclose(without_task_effects(additive)[upper], 0, atol=1e-12)
        rest = without_task_effects(symmetric(5, 2))
        np.testing.assert_allclose(
            without_task_effects(rest + additive)[upper], rest[upper], atol=1e-12
        )


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


@pytest.fixture(scope="module")
def content(pico_run: Run) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("merging.studies.gw_smm.SIZES", (16,))
        return json.loads(json.dumps(study([pico_run], [0])))  # type: ignore[no-any-return]


class TestStudy:
    def test_scores_are_those_of_the_pipeline(self, pico_run: Run, content: dict[str, Any]) -> None:
        """The pico sets are smaller than the samples, so they are measured whole."""
        run = pico_run.varied(merge=PUBLISHED.model_dump())
        scores = {
            task: measured(run, answering(run, merged_only(run, task), task), task)
            for task in run.tasks
        }
        alone = {
            task: measured(
                run,
                answering(run, without_adapters(run, own_network(run, task), task), task),
                task,
            )
            for task in run.tasks
        }
        found = content["by_seed"]["0"]
        for subset in ("valid", "test"):
            areas, before = (
                [measures[subset]["roc_auc"] for measures in by_task.values()]
                for by_task in (scores, alone)
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
        made = tables(content)
        assert made.keys() == {
            "correlation",
            "agreement",
            "groups",
            "references",
            "variants",
            "sizes",
        }
        assert all(
            len({line.count("|") for line in table.split("\n")}) == 1 for table in made.values()
        )

    def test_samples_keep_every_positive(
        self, pico_run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("merging.studies.gw_smm.PART_MOLECULES", 6)
        monkeypatch.setattr("merging.studies.gw_smm.STATISTICS_MOLECULES", 10)
        monkeypatch.setattr("merging.studies.gw_smm.LABELS", 1)
        whole, small = pico_run.dataset("other"), on_samples(pico_run).dataset("other")
        assert len(small.split.train) == 10
        assert small.labels[:, 1].isnan().all()
        torch.testing.assert_close(small.labels[:, 0], whole.labels[:, 0])
        for rows, chosen in (
            (whole.split.valid, small.split.valid),
            (whole.split.test, small.split.test),
        ):
            assert set(chosen.tolist()) <= set(rows.tolist())
            assert (whole.labels[rows, 0] == 1).sum() == (whole.labels[chosen, 0] == 1).sum()
            assert len(chosen) <= max(6, int((whole.labels[rows, 0] == 1).sum()))

    def test_page_shows_the_results(self) -> None:
        root = Path(__file__).parents[3]
        page = (root / "docs/gw-smm.md").read_text()
        for table in tables(read_json(root / "results/neighbours/gw-smm.json")).values():
            assert table in page


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

    def test_distance_is_that_of_the_models_own_molecules(self, pico_run: Run, plan: Plan) -> None:
        features = [
            feature_matrix(own_network(pico_run, task), calibration(pico_run, task).batches)
            for task in pico_run.config.tasks
        ]
        assert features[0].shape == (len(pico_run.dataset("nitrogen").split.train), 16)
        weights = [ot.unif(len(each)) for each in features]
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
            expected = trained(pico_run, teacher(pico_run, task)).network
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
            planned_runs(pico_run.varied(finetune={"epochs": 2}), plan)
        fewer = plan.model_copy(
            update={
                "models": {"nitrogen": ""},
                "groups": {"group1": ("nitrogen",)},
                "distances": ((0.0,),),
            }
        )
        with pytest.raises(ConfigError, match="got a plan of tasks"):
            planned_runs(pico_run, fewer)

    def test_figures(self, plan: Plan, tmp_path: Path) -> None:
        paths = draw_plan(plan, tmp_path / "some")
        assert sorted(path.name for path in paths) == ["some_dendrogram.svg", "some_heatmap.svg"]
        first = [path.read_bytes() for path in paths]
        assert [path.read_bytes() for path in draw_plan(plan, tmp_path / "some")] == first
        assert all(b"nitrogen" in each for each in first)
        single = plan.model_copy(
            update={
                "models": {"nitrogen": ""},
                "groups": {"group1": ("nitrogen",)},
                "distances": ((0.0,),),
            }
        )
        draw_plan(single, tmp_path / "single")
