"""The tables of the study of tied adapters."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from merging.studies.experts.supervised_tables import gain
from merging.studies.markdown import markdown_table, metric_cell, over_seeds

Record = Mapping[str, Any]
ROWS = {
    "none": "no adapter",
    "own": "own",
    "all_ensemble": "ensemble",
    "all_merged": "merged",
    "strangers_ensemble": "ensemble of strangers",
    "strangers_merged": "merged strangers",
}
"""Titles of the ways to answer; strangers are the adapters of other tasks."""
TITLES = {
    "none": "untied",
    "kdem": "KDEM as published",
    "ppem": "PPEM as published",
    "kdem_strong": "KDEM, strong",
    "ppem_strong": "PPEM, strong",
    "kdem_every": "KDEM, strong, every step",
    "ppem_every": "PPEM, strong, every step",
}
DRAWS = {"own": "by task", "same": "one"}


def tied_tables(content: Record) -> dict[str, str]:
    """Format the content of the results file as Markdown tables.

    Returns:
        By name: "scores", on test molecules; "gains", what merging, ensembles and ties change in
        them; "distance", how near merged experts are to ensembles; "cost".
    """
    seeds = list(content["measured"].values())
    by_variant = {name: [seed[name] for seed in seeds] for name in seeds[0]}
    return {
        "scores": _score_table(by_variant),
        "gains": _gain_table(by_variant),
        "distance": _distance_table(by_variant),
        "cost": _cost_table(by_variant),
    }


def _named(name: str) -> list[str]:
    draw, variant = name.split("/")
    return [TITLES[variant], DRAWS[draw]]


def _spread(values: list[float]) -> str:
    found = over_seeds(values)
    return metric_cell("spearman", found["mean"], found["std"])


def _score_table(by_variant: Mapping[str, list[Record]]) -> str:
    lines = []
    for name, seeds in by_variant.items():
        averages = (
            [fmean(scores[row] for scores in seed["tests"].values()) for seed in seeds]
            for row in ROWS
        )
        lines.append([*_named(name), *(_spread(values) for values in averages)])
    return markdown_table(["training", "draw", *ROWS.values()], lines)


def target_gains(seeds: list[Record], row: str, others: list[Record], other: str) -> list[float]:
    """Compute by target how far a row of a variant is above a row of another one, as mean over
    seeds.

    Args:
        seeds, others: measurements of two variants with the same seeds.
        row, other: keys of `ROWS`.
    """
    return [
        fmean(
            seed["tests"][task][row] - reference["tests"][task][other]
            for seed, reference in zip(seeds, others, strict=True)
        )
        for task in seeds[0]["tests"]
    ]


def _gain_table(by_variant: Mapping[str, list[Record]]) -> str:
    lines = []
    for name, seeds in by_variant.items():
        untied = by_variant[f"{name.split('/')[0]}/none"]
        compared = [
            gain(target_gains(seeds, f"{bank}_merged", seeds, f"{bank}_ensemble"))
            for bank in ("all", "strangers")
        ]
        compared.append(gain(target_gains(seeds, "own", seeds, "none")))
        tied = seeds is not untied
        compared += [
            gain(target_gains(seeds, row, untied, row)) if tied else ""
            for row in ("own", "all_merged")
        ]
        lines.append([*_named(name), *compared])
    head = ["training", "draw", "merged - ensemble", "the same of strangers", "own - no adapter"]
    return markdown_table([*head, "own - own untied", "merged - merged untied"], lines)


def _distance_table(by_variant: Mapping[str, list[Record]]) -> str:
    columns = {
        ("all", "own_alpha"): "own alpha",
        ("all", "subtracted"): "relative error, subtracted",
        ("all", "answers"): "answers",
        ("strangers", "largest_alpha"): "strangers: largest alpha",
        ("strangers", "subtracted"): "relative error, subtracted",
        ("strangers", "answers"): "answers",
    }
    lines = []
    for name, seeds in by_variant.items():
        found = [[seed["distance"][bank][key] for seed in seeds] for bank, key in columns]
        cells = [f"{fmean(values):.4f}" for values in found]
        lines.append([*_named(name), *cells, f"{fmean(seed['size'] for seed in seeds):.4f}"])
    return markdown_table(["training", "draw", *columns.values(), "size"], lines)


def _cost_table(by_variant: Mapping[str, list[Record]]) -> str:
    lines = []
    for name, seeds in by_variant.items():
        means = [fmean(seed["cpu_seconds"][key] for seed in seeds) for key in ("step", "kdem")]
        loss = _spread([seed["loss"] for seed in seeds])
        lines.append([*_named(name), loss, *(f"{mean:.3f}" for mean in means)])
    head = ["training", "draw", "loss of watched molecules", "CPU seconds of a step"]
    return markdown_table([*head, "of KDEM's term"], lines)
