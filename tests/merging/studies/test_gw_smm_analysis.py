"""The statistics of GW-SMM against oracles, and its tables against the page."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from merging.data.files import read_json
from merging.planning.grouping import all_groupings
from merging.studies.gw_smm_analysis import (
    GroupScores,
    agreement,
    correlations,
    gw_smm_tables,
    known_pairs,
    mantel,
    pair_losses,
    plan_rank,
    rank_correlation,
    scores_of,
    variant_statistics,
    without_task_effects,
)
from tests.merging.tables import symmetric
from tests.pages import page

RESULTS = Path(__file__).parents[3] / "results/neighbours/gw-smm.json"


class TestAnalysis:
    def test_plan_among_all_others(self) -> None:
        """Only two right groups score high; one of the three ways to pair four tasks up has
        them."""
        right = (("a", "b"), ("c", "d"))
        scores: GroupScores = {
            pair: {task: {"test": 0.9 if pair in right else 0.6} for task in pair}
            for pair in itertools.combinations("abcd", 2)
        }
        partitions = list(all_groupings("abcd", (2, 2)))
        found = plan_rank(right, partitions, scores, "test")
        assert (found["value"], found["best"], found["worst"], found["ways"]) == (0.9, 0.9, 0.6, 3)
        assert found["beaten"] == pytest.approx(2 / 3 + 1 / 6, abs=1e-4)
        wrong = plan_rank((("a", "c"), ("b", "d")), partitions, scores, "test")
        assert wrong["beaten"] == pytest.approx(1 / 3, abs=1e-4)
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

    def test_times_that_the_clock_cannot_tell_have_no_ratio(self) -> None:
        record = {"distance": 1.0, "by_start": [1.0], "seconds": 0.0, "converged": True}
        pairs = [record, {**record, "distance": 2.0}, {**record, "distance": 3.0}]
        found = variant_statistics({"exact": pairs, "other": pairs})
        assert found["other"]["time_ratio"] is None
        sizes = {"128": {"exact": record, "sampled": {**record, "seconds": 0.1}}}
        content = {**json.loads(RESULTS.read_text()), "variants": found, "sizes": sizes}
        tables = gw_smm_tables(content)
        assert tables["variants"].count("too short to measure") == 2
        assert tables["sizes"].count("too short to measure") == 2

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

    def test_pairs_that_were_not_measured_do_not_count(self) -> None:
        distances, losses = symmetric(10, 0), symmetric(10, 1)
        losses[0, 1] = losses[1, 0] = losses[4, 7] = losses[7, 4] = np.nan
        known = known_pairs(losses)
        assert len(known[0]) == 43
        found = mantel(distances, losses)
        expected = spearmanr(distances[known], losses[known])[0]
        assert found["rho"] == rank_correlation(distances, losses) == round(float(expected), 4)
        assert 0 < found["p"] < 1
        effects = np.arange(10.0)
        additive = np.where(np.isnan(losses), np.nan, effects[:, None] + effects)
        np.testing.assert_allclose(without_task_effects(additive)[known], 0, atol=1e-12)

    def test_drawn_orders_find_what_is_there(self) -> None:
        table = symmetric(12, 0)
        assert mantel(table, table + 0.3 * symmetric(12, 1))["p"] == 0.0001

    def test_what_tasks_add_on_their_own_is_taken_out(self) -> None:
        effects = np.array([0.1, 0.5, 0.2, 0.9, 0.4])
        additive = effects[:, None] + effects
        upper = np.triu_indices(5, 1)
        np.testing.assert_allclose(without_task_effects(additive)[upper], 0, atol=1e-12)
        rest = without_task_effects(symmetric(5, 2))
        np.testing.assert_allclose(
            without_task_effects(rest + additive)[upper], rest[upper], atol=1e-12
        )


def test_correlations_are_seed_by_seed_and_of_means() -> None:
    distances = [symmetric(5, seed) for seed in (0, 1)]
    losses = [
        table + 0.5 * symmetric(5, seed) for table, seed in zip(distances, (2, 3), strict=True)
    ]
    found = correlations(distances, losses)
    single = [mantel(table, loss) for table, loss in zip(distances, losses, strict=True)]
    assert found["whole"]["p"] == [test["p"] for test in single]
    assert found["whole"]["rho"]["mean"] == pytest.approx(np.mean([test["rho"] for test in single]))
    assert found["whole"]["mean_rho"] == mantel(np.mean(distances, 0), np.mean(losses, 0))["rho"]
    alike = correlations(distances, distances)
    assert alike["interaction"]["rho"]["mean"] == pytest.approx(1)


def test_agreement_is_over_all_pairs_of_a_family() -> None:
    tables = [symmetric(5, seed) for seed in range(3)]
    pairs = itertools.combinations(tables, 2)
    found = agreement([tables])
    expected = np.mean([mantel(*pair)["rho"] for pair in pairs])
    assert found["whole"]["mean"] == pytest.approx(expected, abs=1e-5)
    assert agreement([[tables[0], tables[0]]])["interaction"]["mean"] == pytest.approx(1)


def test_scores_are_kept_by_group_in_order_of_name() -> None:
    found = scores_of([("b", "a")], lambda group, task: {"test": float("".join(group).index(task))})
    assert found == {("a", "b"): {"b": {"test": 0.0}, "a": {"test": 1.0}}}


@pytest.mark.parametrize(
    "file",
    ["gw-smm.json", "many-tasks/gw-smm.json", "all-tasks/gw-smm.json", "admet-tasks/gw-smm.json"],
)
def test_page_shows_the_results(file: str) -> None:
    text = page("gw-smm.md").read_text()
    found = read_json(Path(__file__).parents[3] / "results/neighbours" / file)
    for table in gw_smm_tables(found).values():
        assert table in text
