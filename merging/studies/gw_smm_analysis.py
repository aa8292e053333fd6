"""The analysis of GW-SMM: the correlation of distances between models with the measured loss of
merging them, the quality of the groups that they give, and the tables of both."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from merging.planning.distances import Matrix, pair_table
from merging.planning.grouping import Group
from merging.studies.markdown import markdown_table, over_seeds, percent

EVERY_ORDER, DRAWN_ORDERS, SHOWN_GROUPS = 8, 9999, 8
GroupScores = Mapping[Group, Mapping[str, Mapping[str, float]]]
"""Concordance by group, task of the group, and subset ("valid", "test"). Groups have their tasks in
order of name."""


def mantel(distances: Matrix, losses: Matrix) -> dict[str, float]:
    """Compute Spearman's rank correlation of two tables over the pairs of K models, and its p-value
    (Mantel 1967).

    Pairs that share a model are not independent, so models are permuted and not pairs: `p` is the
    share of permutations of the models of one table for which the correlation is at least as high.
    Of at most eight models all K! are tried, of more the identity and `DRAWN_ORDERS` that are
    drawn.

    Args:
        distances: (K, K), symmetric.
        losses: the same, NaN for pairs that were not measured.

    Returns:
        "rho", and "p" of the one-sided hypothesis that distant models lose more.
    """
    first, second = known_pairs(losses)
    loss, orders = _ranks(losses[first, second]), _orders(len(losses))
    every = np.concatenate(
        [
            _ranks(distances[some[:, first], some[:, second]]) @ loss
            for some in np.array_split(orders, len(orders) // 1000 + 1)
        ]
    )
    return {
        "rho": round(float(every[0]), 4),
        "p": round(float((every >= every[0] - 1e-9).mean()), 4),
    }


def rank_correlation(table: Matrix, other: Matrix) -> float:
    """Compute Spearman's rank correlation of two (K, K) tables over the pairs that are known in
    `other`."""
    pairs = known_pairs(other)
    return round(float(_ranks(table[pairs]) @ _ranks(other[pairs])), 4)


def known_pairs(table: Matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns, row < column, of the numbers of a (K, K) table that are not NaN."""
    first, second = np.triu_indices(len(table), 1)
    known = ~np.isnan(table[first, second])
    return first[known], second[known]


def _orders(count: int) -> NDArray[np.int64]:
    """The permutations of `count` models that are tried, (n, count); the first is the identity."""
    if count <= EVERY_ORDER:
        return np.array(list(itertools.permutations(range(count))))
    generator, identity = np.random.default_rng(0), np.arange(count)
    drawn = [generator.permutation(count) for _ in range(DRAWN_ORDERS)]
    return np.stack([identity, *drawn])


def _ranks(values: Matrix) -> Matrix:
    """Rank the last axis; the ranks are centred and of norm 1."""
    ranks = rankdata(values.round(12), axis=-1)
    centred = ranks - ranks.mean(-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    return np.asarray(centred / np.where(norm > 0, norm, 1))


def without_task_effects(table: Matrix) -> Matrix:
    """Subtract from a symmetric (K, K) table its least-squares fit m + u_i + u_k over the pairs
    that are known; the diagonal of the result is 0.

    The rest is specific to pairs. Since every model is in some group, only this rest distinguishes
    plans with groups of equal sizes.
    """
    count = len(table)
    first, second = known_pairs(table)
    design = np.zeros((len(first), count))
    design[np.arange(len(first)), first] = design[np.arange(len(first)), second] = 1
    effects = np.linalg.lstsq(design, table[first, second], rcond=None)[0]
    rest = table - effects[:, None] - effects
    np.fill_diagonal(rest, 0)
    return np.asarray(rest)


def pair_losses(
    tasks: Sequence[str],
    scores: GroupScores,
    single: Mapping[str, Mapping[str, float]],
    subset: str,
) -> Matrix:
    """Compute the loss of merging for every pair: the mean over its two tasks of the concordance
    of the single model minus that of the merged one.

    Args:
        tasks: of the K models.
        scores: of the merged pairs.
        single: concordance of the models that are not merged, by task and subset.
        subset: "valid" or "test".

    Returns:
        (K, K), symmetric, 0 on the diagonal, NaN for pairs without scores.
    """

    def loss(*pair: str) -> float:
        if pair not in scores:
            return np.nan
        return fmean(single[task][subset] - scores[pair][task][subset] for task in pair)

    return pair_table(tasks, loss)


def mean_score(groups: Sequence[Group], scores: GroupScores, subset: str) -> float:
    """Average the concordance of all tasks, every task on the merged backbone of its group."""
    return fmean(scores[group][task][subset] for group in groups for task in group)


def plan_rank(
    groups: Sequence[Group], others: Sequence[Sequence[Group]], scores: GroupScores, subset: str
) -> dict[str, Any]:
    """Compare the groups of a plan with other partitions into groups of the same sizes, of which it
    may be one.

    Returns:
        "value", the mean score of the plan; "mean", "std", "best", "worst" of the partitions;
        "beaten", the share of partitions that the plan is better than, where ties count half;
        "ways", the number of partitions.
    """
    value = mean_score(groups, scores, subset)
    every = np.array([mean_score(partition, scores, subset) for partition in others])
    beaten = float((every < value - 1e-9).mean() + (np.abs(every - value) <= 1e-9).mean() / 2)
    found = {
        "value": value,
        "mean": every.mean(),
        "std": every.std(),
        "best": every.max(),
        "worst": every.min(),
        "beaten": beaten,
    }
    return {name: round(float(score), 5) for name, score in found.items()} | {"ways": len(every)}


def scores_of(
    groups: Sequence[Group], score: Callable[[Group, str], Mapping[str, float]]
) -> GroupScores:
    """Collect the scores of groups by calling `score` for every group and task of it."""
    return {tuple(sorted(group)): {task: score(group, task) for task in group} for group in groups}


def correlations(distances: Sequence[Matrix], losses: Sequence[Matrix]) -> dict[str, Any]:
    """Correlate a metric's distances with the losses of pairs, by seed and averaged over seeds.

    Args:
        distances, losses: (K, K) tables, one per seed.

    Returns:
        For "whole" tables, and as "interaction" for tables without the effects of single tasks:
        "rho" over seeds, "p" by seed, and "mean_rho" and "mean_p" of the tables averaged over
        seeds.
    """
    found = {}
    for name, transform in (("whole", np.asarray), ("interaction", without_task_effects)):
        by_seed = [
            mantel(transform(distance), transform(loss))
            for distance, loss in zip(distances, losses, strict=True)
        ]
        averaged = mantel(transform(np.mean(distances, 0)), transform(np.mean(losses, 0)))
        found[name] = {
            "rho": over_seeds([test["rho"] for test in by_seed]),
            "p": [test["p"] for test in by_seed],
            "mean_rho": averaged["rho"],
            "mean_p": averaged["p"],
        }
    return found


def agreement(families: Sequence[Sequence[Matrix]]) -> dict[str, Any]:
    """Compute the rank correlations between the tables of every family, such as the losses of
    several seeds: an upper limit of what a metric can predict.

    Returns:
        "rho" over all pairs of tables, for "whole" tables and for their "interaction" (without the
        effects of single tasks).
    """
    pairs = [pair for tables in families for pair in itertools.combinations(tables, 2)]
    return {
        name: over_seeds([rank_correlation(transform(a), transform(b)) for a, b in pairs])
        for name, transform in (("whole", np.asarray), ("interaction", without_task_effects))
    }


def variant_statistics(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Compare the variants of the Gromov-Wasserstein solver with the first one, on the same pairs.

    Args:
        found: by variant, the records of all pairs (`merging.planning.plan.space_distance`).

    Returns:
        By variant: "rho" and "rho_of_first_starts", rank correlation with the first variant's
        distances; "ratio", mean distance over the first variant's; "seconds" per start and
        "time_ratio", over the first variant's, None if those are too short to measure;
        "better_later", share of pairs for which a later start is better than the first; "gain" and
        "most_gain", mean and largest share by which the best start is below the first; "starts",
        their number; "converged", share of the best starts.
    """
    reference = [pair["distance"] for pair in next(iter(found.values()))]
    seconds = {
        name: fmean(pair["seconds"] / len(pair["by_start"]) for pair in pairs)
        for name, pairs in found.items()
    }
    table: dict[str, dict[str, Any]] = {}
    for name, pairs in found.items():
        distances = [pair["distance"] for pair in pairs]
        first_starts = [pair["by_start"][0] for pair in pairs]
        gains = [1 - pair["distance"] / pair["by_start"][0] for pair in pairs]
        numbers = {
            "rho": _rank_correlation(distances, reference),
            "rho_of_first_starts": _rank_correlation(first_starts, reference),
            "ratio": fmean(distances) / fmean(reference),
            "seconds": seconds[name],
            "better_later": fmean(pair["distance"] < pair["by_start"][0] - 1e-6 for pair in pairs),
            "gain": fmean(gains),
            "most_gain": max(gains),
        }
        known = pairs[0]["converged"] is not None
        table[name] = {key: round(value, 4) for key, value in numbers.items()} | {
            "time_ratio": _time_ratio(seconds[name], next(iter(seconds.values()))),
            "starts": len(pairs[0]["by_start"]),
            "converged": fmean(pair["converged"] for pair in pairs) if known else None,
        }
    return table


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    return float(_ranks(np.array(first)) @ _ranks(np.array(second)))


# --- the tables of `docs/gw-smm.md` ---


METRICS = {
    "gw": "Gromov-Wasserstein, own molecules (GW-SMM)",
    "gw_same": "Gromov-Wasserstein, same molecules",
    "gw_data": "Gromov-Wasserstein, own molecules, pre-trained model",
    "cka": "1 - CKA",
    "cosine": "1 - cosine of task vectors",
}
REFERENCES = {
    "finetuned": "Fine-tuned, as they are",
    "each_alone": "K groups, statistics recomputed",
    "each_alone_trimmed": "K groups, TIES 0.3 / 0.5 of the one model",
    "one_group": "One group, TIES 0.3 / 0.5",
    "one_group_average": "One group, weight average",
}


def gw_smm_tables(content: Mapping[str, Any]) -> dict[str, str]:
    """Format the content of the results file as Markdown tables.

    Returns:
        By name: "correlation", "agreement", "groups", "references"; "value" where the size of a
        backbone is known; "variants" and "sizes" where the solver's variants were compared.
    """
    tables = {
        "correlation": _correlation_table(content),
        "agreement": _agreement_table(content),
        "groups": _groups_table(content),
        "references": _references_table(content),
    }
    if "backbone_bytes" in content["settings"]:
        tables["value"] = _value_table(content)
    if "variants" in content:
        tables["variants"] = _variants_table(content["variants"])
        tables["sizes"] = _sizes_table(content["sizes"])
    return tables


def _correlation_table(content: Mapping[str, Any]) -> str:
    """A row per metric, merger and subset: rank correlation with the loss."""
    rows = []
    for metric, title in METRICS.items():
        for loss, found in content["correlation"].get(metric, {}).items():
            merger, subset = loss.rsplit("_", 1)
            cells = [cell for tables in found.values() for cell in _correlation_cells(tables)]
            rows.append([title, f"{merger.replace('_', ' ')}, {subset}", *cells])
    head = ["distance", "merge, part", "rho", "rho of means (p)"]
    return markdown_table([*head, "rho without task effects", "the same, of means (p)"], rows)


def _correlation_cells(found: Mapping[str, Any]) -> tuple[str, str]:
    rho = found["rho"]
    spread = "" if rho["std"] is None else f" ± {rho['std']:.2f}"
    return f"{rho['mean']:+.2f}{spread}", f"{found['mean_rho']:+.2f} ({found['mean_p']:.2f})"


def _agreement_table(content: Mapping[str, Any]) -> str:
    keys = ("whole", "interaction")
    rows = [
        [name.replace("_", " "), *(f"{rho[key]['mean']:+.2f}" for key in keys)]
        for name, rho in content["agreement"].items()
    ]
    return markdown_table(["loss of pairs", "rho", "rho without task effects"], rows)


def _groups_table(content: Mapping[str, Any]) -> str:
    """A row per group size, seed and metric: a plan among other partitions of the same sizes."""
    rows = []
    for size in ("2", "3"):
        for seed, found in content["by_seed"].items():
            for metric, plan in found["plans"].get(size, {}).items():
                drawn, groups = plan["test"], _shown(plan["groups"])
                spread = (
                    f"{percent(drawn['mean'])} ± {percent(drawn['std'])}"
                    f" ({percent(drawn['worst'])} to {percent(drawn['best'])})"
                )
                beaten = [
                    f"{100 * plan[subset]['beaten']:.0f} % of {drawn['ways']}"
                    for subset in ("test", "valid")
                ]
                rows.append(
                    [size, seed, METRICS[metric], groups, percent(drawn["value"]), spread, *beaten]
                )
    head = ["at most", "seed", "groups by", "groups", "test", "others of these sizes"]
    return markdown_table([*head, "better than (test)", "better than (validation)"], rows)


def _shown(groups: Sequence[Sequence[str]]) -> str:
    if len(groups) > SHOWN_GROUPS:
        return f"{len(groups)} groups"
    return "; ".join(" ".join(group) for group in groups)


def _value_table(content: Mapping[str, Any]) -> str:
    """A row per way to merge with the first seed: backbones, their size, the score, and the share
    kept of what the models know alone (0.5 is nothing)."""
    found = next(iter(content["by_seed"].values()))
    references, count = found["references"], len(content["tasks"])
    values = [(REFERENCES["each_alone"], count, references["each_alone"]["test"])]
    for size, plans in found["plans"].items():
        plan = plans["gw"]
        titles = {"value": "groups by GW-SMM", "mean": "drawn groups of the same sizes"}
        for name, title in titles.items():
            title = f"At most {size}: {title}"
            values.append((title, len(plan["groups"]), plan["test"][name]))
    for name in ("one_group", "one_group_average"):
        values.append((REFERENCES[name], 1, references[name]["test"]))
    size_of_one, alone = content["settings"]["backbone_bytes"], references["each_alone"]["test"]
    rows = [
        [
            title,
            str(backbones),
            f"{backbones * size_of_one / 1e6:.1f}",
            percent(score),
            f"{100 * (score - 0.5) / (alone - 0.5):.0f} %",
        ]
        for title, backbones, score in values
    ]
    return markdown_table(["merged", "backbones", "MB", "test", "kept"], rows)


def _references_table(content: Mapping[str, Any]) -> str:
    seeds = content["by_seed"]
    rows = [
        [title, *(percent(found["references"][name]["test"]) for found in seeds.values())]
        for name, title in REFERENCES.items()
    ]
    return markdown_table(["", *(f"seed {seed}" for seed in seeds)], rows)


def _time_ratio(seconds: float, reference: float) -> float | None:
    """Divide two times; None if the clock did not advance during the second one."""
    return round(seconds / reference, 4) if reference else None


def _shown_ratio(ratio: float | None, digits: int) -> str:
    return "too short to measure" if ratio is None else f"{ratio:.{digits}f}"


def _variants_table(found: Mapping[str, Any]) -> str:
    rows = []
    for name, variant in found.items():
        gain, converged = "not tried", variant["converged"]
        if variant["starts"] > 1:
            gain = (
                f"{100 * variant['better_later']:.0f} %, by {100 * variant['gain']:.1f} % on"
                f" average, {100 * variant['most_gain']:.1f} % at most"
            )
        rows.append(
            [
                name.replace("_", "-"),
                str(variant["starts"]),
                f"{variant['rho']:.3f}",
                f"{variant['ratio']:.2f}",
                _shown_ratio(variant["time_ratio"], 1),
                gain,
                "cannot tell" if converged is None else f"{100 * converged:.0f} %",
            ]
        )
    head = ["variant", "starts", "rho with exact", "distance / exact", "time / exact"]
    return markdown_table([*head, "a later start is better", "converged"], rows)


def _sizes_table(found: Mapping[str, Any]) -> str:
    variants, rows = list(next(iter(found.values()))), []
    for count, by_variant in found.items():
        distances = [f"{by_variant[name]['distance']:.3f}" for name in variants]
        exact = by_variant["exact"]["seconds"]
        ratios = [_time_ratio(by_variant[name]["seconds"], exact) for name in variants]
        times = [_shown_ratio(ratio, 2) for ratio in ratios]
        rows.append([count, *distances, *times])
    names = [name.replace("_", "-") for name in variants]
    titles = [f"{title}, {name}" for title in ("distance", "time / exact") for name in names]
    return markdown_table(["molecules", *titles], rows)
