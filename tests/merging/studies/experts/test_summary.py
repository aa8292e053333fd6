"""The summary of the experts' study on a case that is worked out by hand."""

import pytest

from merging.studies.experts.summary import expert_tables, summarise_experts


def score(test: float, valid: float = 0.0) -> dict[str, float]:
    return {"valid": valid, "test": test}


def routing(ranked: list[str], ensemble: float) -> dict[str, object]:
    probes = {name: score(ensemble) for name in ("ensemble", "merged", "merged_all")}
    return {
        "ranked": ranked,
        "alpha": [0.75, 0.25, 0.0],
        "relative_error": {"merged": 0.5, "merged_all": 1.0},
        "probes": probes,
    }


def record(ensemble: float) -> dict[str, object]:
    """Domain a with experts a to d: competence and test scores in opposite order."""
    return {
        "competence": {"a": -1.0, "b": -2.0, "c": -3.0, "d": -4.0},
        "experts": {
            "a": score(0.6, 0.5),
            "b": score(0.7, 0.9),
            "c": score(0.8, 0.1),
            "d": score(0.9, 0.2),
        },
        "all": routing(["a", "b", "c", "d"], ensemble),
        "left_out": routing(["b", "c", "d"], ensemble),
    }


MEASURED = {"none": {"0": {"a": record(0.65)}, "1": {"a": record(0.55)}}}
CONTROLS = {seed: {"a": {"untrained": score(0.5), "features": score(0.4)}} for seed in ("0", "1")}


def test_rows_are_spread_over_seeds() -> None:
    rows = summarise_experts(MEASURED, CONTROLS)["all"]["none"]["rows"]
    expected = {
        "first": 0.6,
        "second": 0.7,
        "third": 0.8,
        "mean_expert": 0.75,
        "by_validation": 0.7,
        "own": 0.6,
        "untrained": 0.5,
        "features": 0.4,
    }
    for row, value in expected.items():
        assert rows[row]["average"]["mean"] == pytest.approx(value)
        assert rows[row]["average"]["std"] == 0
    assert rows["ensemble"]["average"] == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.0707107),
        "values": [0.65, 0.55],
    }


def test_rows_are_counted_against_the_first_case_by_case() -> None:
    summary = summarise_experts(MEASURED, CONTROLS)["all"]["none"]
    assert summary["cases"] == 2
    ensemble, second = (summary["against_first"][row] for row in ("ensemble", "second"))
    assert (ensemble["better"], ensemble["worse"]) == (1, 1)
    assert ensemble["mean_difference"] == pytest.approx(0)
    assert (second["better"], second["worse"]) == (2, 0)
    assert second["mean_difference"] == pytest.approx(0.1)


def test_competence_is_correlated_with_the_score() -> None:
    summary = summarise_experts(MEASURED, CONTROLS)
    assert summary["all"]["none"]["rank_correlation"] == pytest.approx(-1)
    assert summary["all"]["none"]["largest_alpha"] == 0.75
    assert summary["all"]["none"]["own_is_first"] == 2
    assert summary["left_out"]["none"]["own_is_first"] == 0
    assert summary["all"]["none"]["relative_error"]["merged_all"]["mean"] == 1


def test_without_the_domains_expert_the_next_ones_are_ranked() -> None:
    rows = summarise_experts(MEASURED, CONTROLS)["left_out"]["none"]["rows"]
    assert rows["first"]["average"]["mean"] == pytest.approx(0.7)
    assert rows["mean_expert"]["average"]["mean"] == pytest.approx(0.8)
    assert rows["own"]["average"]["mean"] == pytest.approx(0.6)


def test_tables_show_percent_and_multiples() -> None:
    cost = {"one": {"nodes": 9, "top1": 0.002, "ensemble": 0.005, "merged": 0.003}}
    cost["one"] |= {"merged_kept": 0.002, "merge": 0.001, "competence": 0.012}
    text = expert_tables({**summarise_experts(MEASURED, CONTROLS), "cost": cost})
    assert "| ensemble of the top k | 60.0 ± 7.1 | 60.0 ± 7.1 |" in text
    assert "| one | 9 | 2.00 | 2.50 | 1.50 | 1.00 | 0.50 | 6.00 |" in text
