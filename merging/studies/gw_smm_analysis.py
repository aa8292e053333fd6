"""What the measured scores of groups say of a distance: its correlation with the loss of merging,
and how good the groups are that it makes."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import rankdata

from merging.planning.distances import Matrix
from merging.planning.grouping import Group
from merging.studies.markdown import over_seeds

Scores = Mapping[Group, Mapping[str, Mapping[str, float]]]
"""By group and task of the group: ROC-AUC by part ("valid", "test"). Groups have their tasks in
order of name."""


def mantel(distances: Matrix, losses: Matrix) -> dict[str, float]:
    """Spearman's rank correlation of two tables over the pairs of K models, with how likely it is
    by chance (Mantel 1967).

    Pairs that share a model are not independent, so models are exchanged, not pairs: `p` is the
    share of all K! ways to name the models of one table for which the correlation is at least as
    high (K <= 8: every way is tried).

    Returns:
        "rho" and "p", one-sided: that far models lose more.
    """
    count = len(distances)
    upper = np.triu_indices(count, 1)
    ranks = np.zeros((count, count))
    ranks[upper] = _standard(rankdata(distances[upper].round(12)))
    ranks += ranks.T
    loss = _standard(rankdata(losses[upper].round(12)))
    orders = np.array(list(itertools.permutations(range(count))))
    every = ranks[orders[:, upper[0]], orders[:, upper[1]]] @ loss
    return {
        "rho": round(float(every[0]), 4),
        "p": round(float((every >= every[0] - 1e-9).mean()), 4),
    }


def _standard(values: Matrix) -> Matrix:
    centred = values - values.mean()
    norm = float(np.linalg.norm(centred))
    return np.asarray(centred / norm if norm > 0 else centred)


def without_task_effects(table: Matrix) -> Matrix:
    """What is left of a symmetric (K, K) table after the best m + u_i + u_k: what a pair has that
    its two models do not have with everyone.

    Every model must be in some group, so only this can tell one plan from another with groups of
    equal sizes.
    """
    count = len(table)
    first, second = np.triu_indices(count, 1)
    design = np.zeros((len(first), count))
    design[np.arange(len(first)), first] = design[np.arange(len(first)), second] = 1
    effects = np.linalg.lstsq(design, table[first, second], rcond=None)[0]
    rest = table - effects[:, None] - effects
    np.fill_diagonal(rest, 0)
    return np.asarray(rest)


def pair_losses(
    tasks: Sequence[str], scores: Scores, alone: Mapping[str, Mapping[str, float]], part: str
) -> Matrix:
    """Mean over the two tasks of (ROC-AUC alone - ROC-AUC merged) for each pair: (K, K), 0 on the
    diagonal."""
    table = np.zeros((len(tasks), len(tasks)))
    for i, k in itertools.combinations(range(len(tasks)), 2):
        pair = tuple(sorted((tasks[i], tasks[k])))
        table[i, k] = table[k, i] = fmean(
            alone[task][part] - scores[pair][task][part] for task in pair
        )
    return table


def quality(groups: Sequence[Group], scores: Scores, part: str) -> float:
    """Mean ROC-AUC over all tasks, each on the merged backbone of its group."""
    return fmean(scores[group][task][part] for group in groups for task in group)


def among(
    groups: Sequence[Group], ways: Sequence[Sequence[Group]], scores: Scores, part: str
) -> dict[str, Any]:
    """A plan beside other ways to make groups of its sizes, the plan itself maybe among them: what
    random groups give.

    Returns:
        "value", of the plan; "mean", "std", "best", "worst" of all ways; "beaten", the share of
        ways that the plan is better than (ties count half); "ways", their number.
    """
    value = quality(groups, scores, part)
    every = np.array([quality(each, scores, part) for each in ways])
    beaten = float((every < value - 1e-9).mean() + (np.abs(every - value) <= 1e-9).mean() / 2)
    found = {
        "value": value,
        "mean": every.mean(),
        "std": every.std(),
        "best": every.max(),
        "worst": every.min(),
        "beaten": beaten,
    }
    return {name: round(float(each), 5) for name, each in found.items()} | {"ways": len(every)}


def gathered(groups: Sequence[Group], score: Callable[[Group, str], Mapping[str, float]]) -> Scores:
    """Scores of groups, asked for one by one."""
    return {tuple(sorted(group)): {task: score(group, task) for task in group} for group in groups}


def correlations(distances: Sequence[Matrix], losses: Sequence[Matrix]) -> dict[str, Any]:
    """How a metric's distances go with the loss of the pairs, seed by seed and of both averaged
    over the seeds.

    Returns:
        By "whole" and "interaction" (both tables without the effects of single tasks): "rho" over
        seeds, "p" by seed, and "mean_rho" and "mean_p" of the tables averaged over the seeds.
    """
    found = {}
    for name, prepared in (("whole", np.asarray), ("interaction", without_task_effects)):
        single = [
            mantel(prepared(distance), prepared(loss))
            for distance, loss in zip(distances, losses, strict=True)
        ]
        averaged = mantel(prepared(np.mean(distances, 0)), prepared(np.mean(losses, 0)))
        found[name] = {
            "rho": over_seeds([each["rho"] for each in single]),
            "p": [each["p"] for each in single],
            "mean_rho": averaged["rho"],
            "mean_p": averaged["p"],
        }
    return found


def agreement(families: Sequence[Sequence[Matrix]]) -> dict[str, Any]:
    """Rank correlation of every two tables of a family: of the losses of several seeds, whether
    there is anything that a metric could predict."""
    pairs = [pair for tables in families for pair in itertools.combinations(tables, 2)]
    rest = [(without_task_effects(a), without_task_effects(b)) for a, b in pairs]
    return {
        name: over_seeds([mantel(a, b)["rho"] for a, b in each])
        for name, each in (("whole", pairs), ("interaction", rest))
    }


def variant_statistics(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """What each variant of Gromov-Wasserstein found for the same pairs, beside the first one's.

    Returns:
        By variant: "rho" and "rho_of_first_starts", rank correlation with the first variant's
        distances; "ratio", mean distance over the first variant's; "seconds" a start and
        "time_ratio" of them; "better_later", share of pairs for which a later start is better than
        the first; "gain" and "most_gain", mean and largest share by which the best start is below
        the first; "starts"; "converged", share of the best starts.
    """
    first = next(iter(found.values()))
    reference = [each["distance"] for each in first]
    seconds = {
        name: fmean(each["seconds"] / len(each["by_start"]) for each in pairs)
        for name, pairs in found.items()
    }
    table: dict[str, dict[str, Any]] = {}
    for name, pairs in found.items():
        distances = [each["distance"] for each in pairs]
        gains = [1 - each["distance"] / each["by_start"][0] for each in pairs]
        numbers = {
            "rho": float(_standard(rankdata(distances)) @ _standard(rankdata(reference))),
            "rho_of_first_starts": float(
                _standard(rankdata([each["by_start"][0] for each in pairs]))
                @ _standard(rankdata(reference))
            ),
            "ratio": fmean(distances) / fmean(reference),
            "seconds": seconds[name],
            "time_ratio": seconds[name] / next(iter(seconds.values())),
            "better_later": fmean(each["distance"] < each["by_start"][0] - 1e-6 for each in pairs),
            "gain": fmean(gains),
            "most_gain": max(gains),
        }
        converged = (
            None if pairs[0]["converged"] is None else fmean(each["converged"] for each in pairs)
        )
        table[name] = {key: round(value, 4) for key, value in numbers.items()} | {
            "starts": len(pairs[0]["by_start"]),
            "converged": converged,
        }
    return table
