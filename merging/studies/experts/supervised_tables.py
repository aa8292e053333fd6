"""The tables of the study of supervised experts."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from merging.studies.experts.competence import correlation
from merging.studies.markdown import markdown_table

Record = Mapping[str, Any]
MEASURES = {
    "similarity": "similar molecules",
    "near_accuracy": "past errors nearby",
    "near_labels": "labels nearby",
    "fitted_head": "error of fitted heads",
    "own_head": "order of own heads",
}
"""Titles of the measures of competence; the last two run every expert."""
PLACES = ("first", "second", "third")
ROUTED = {
    **{place: f"{place} by competence" for place in PLACES},
    "ensemble": "ensemble of the first three",
    "merged": "merged expert of the first three",
}
UNROUTED = {
    "mean_expert": "an expert at random",
    "ensemble_all": "ensemble of all",
    "merged_all": "merged expert of all",
    "start": "pre-trained network, fitted head",
    "best": "best expert on test",
    "own": "the target's own expert",
}
HEADS = {
    "spearman": "fitted head, Spearman",
    "rmse": "fitted head, RMSE",
    "own_head": "own head, Spearman",
}
_ERRORS = ("rmse",)


def row_scores(target: Record, measure: str, score: str) -> dict[str, float]:
    """Return the test scores of all rows for one target, by name of the row; those that have no own
    head are left out for it.

    Args:
        target: the record of a target (`merging.studies.experts.supervised.measure_target`).
        measure: of the competence that routes.
        score: a key of `HEADS`.
    """
    routed, every = target["routed"][measure], target["all"]
    experts = {name: found[score] for name, found in target["experts"].items()}
    best = min if score in _ERRORS else max
    found = dict(zip(PLACES, (experts[name] for name in routed["ranked"]), strict=False))
    found |= {name: routed[name][score] for name in ("ensemble", "merged")}
    found |= {f"{name}_all": every[name][score] for name in ("ensemble", "merged")}
    found |= {"mean_expert": fmean(experts.values()), "best": best(experts.values())}
    alone = {name: target[name][score] for name in ("start", "own") if score in target[name]}
    return found | alone


def supervised_tables(content: Record) -> dict[str, str]:
    """Format the content of the results file as Markdown tables.

    Returns:
        By name: "spearman", "rmse" and "own_head", the scores of each head; "against_first",
        "ranking".
    """
    targets = list(content["targets"].values())
    tables = {score: _score_table(targets, score) for score in HEADS}
    return {
        **tables,
        "unrouted": _unrouted_table(targets),
        "against_first": _against_first_table(targets),
        "ranking": _ranking_table(targets),
    }


def _score_table(targets: list[Record], score: str) -> str:
    rows = []
    for row, title in ROUTED.items():
        means = (fmean(row_scores(t, measure, score)[row] for t in targets) for measure in MEASURES)
        rows.append([title, *(f"{mean:.3f}" for mean in means)])
    return markdown_table([HEADS[score], *MEASURES.values()], rows)


def _unrouted_table(targets: list[Record]) -> str:
    """Rows that do not depend on a competence."""
    rows = []
    for row, title in UNROUTED.items():
        cells = []
        for score in HEADS:
            found = [row_scores(t, "similarity", score) for t in targets]
            known = all(row in scores for scores in found)
            cells.append(f"{fmean(scores[row] for scores in found):.3f}" if known else "")
        rows.append([title, *cells])
    return markdown_table(["", *HEADS.values()], rows)


def _against_first_table(targets: list[Record]) -> str:
    """How often a row is better than the first expert, and by how much on average."""
    compared = ("second", "third", "ensemble", "merged", "mean_expert", "ensemble_all", "start")
    names = {**ROUTED, **UNROUTED}
    rows = []
    for score in ("spearman", "own_head"):
        for measure, title in MEASURES.items():
            found = [row_scores(t, measure, score) for t in targets]
            cells = [better_than_first(found, row) if row in found[0] else "" for row in compared]
            rows.append([HEADS[score], title, *cells])
    return markdown_table(["head", "routed by", *(names[row] for row in compared)], rows)


def better_than_first(found: list[dict[str, float]], row: str) -> str:
    """Return how often a row is better than the first expert, `18/30 (+0.012 ± 0.004)`: the mean
    difference with its standard error over the targets."""
    return gain([scores[row] - scores["first"] for scores in found])


def gain(differences: Sequence[float]) -> str:
    """Return how many differences are above 0, and their mean with its standard error:
    `18/30 (+0.012 ± 0.004)`."""
    better = sum(difference > 0 for difference in differences)
    error = stdev(differences) / len(differences) ** 0.5
    return f"{better}/{len(differences)} ({fmean(differences):+.3f} ± {error:.3f})"


def _ranking_table(targets: list[Record]) -> str:
    """How well a competence ranks the experts of a bank, how near the merged expert is to the
    ensemble, and what competence costs."""
    rows = []
    for measure, title in MEASURES.items():
        routed = [target["routed"][measure] for target in targets]
        cost = "asking" if measure in ("fitted_head", "own_head") else "metadata"
        share = 1 if cost == "asking" else 3  # Three measures were timed together.
        rows.append(
            [
                title,
                *(
                    f"{rank_correlation(targets, measure, s):+.2f}"
                    for s in ("spearman", "own_head")
                ),
                f"{fmean(max(found['alpha']) for found in routed):.2f}",
                f"{fmean(found['relative_error'] for found in routed):.3f}",
                *(_mean_gain(targets, measure, score) for score in ("spearman", "own_head")),
                f"{fmean(target['seconds'][cost] for target in targets) / share:.2f}",
            ]
        )
    head = ["routed by", "rank correlation, fitted head", "own head", "largest alpha"]
    head += ["relative error", "merged - ensemble, fitted head", "own head", "seconds"]
    return markdown_table(head, rows)


def _mean_gain(targets: list[Record], measure: str, score: str) -> str:
    """How far the merged expert is above the ensemble, with the standard error."""
    routed = [target["routed"][measure] for target in targets]
    gains = [found["merged"][score] - found["ensemble"][score] for found in routed]
    return f"{fmean(gains):+.3f} ± {stdev(gains) / len(gains) ** 0.5:.3f}"


def rank_correlation(targets: list[Record], measure: str, score: str) -> float:
    """Compute Spearman's rank correlation of competence and test score over the experts of a bank,
    averaged over the targets."""
    found = []
    for target in targets:
        psi, experts = target["competence"][measure], target["experts"]
        scores = np.array([experts[name][score] for name in psi])
        found.append(correlation(np.array(list(psi.values())), scores))
    return fmean(found)
