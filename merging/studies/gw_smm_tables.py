"""The tables of `docs/gw-smm.md`, made from `results/neighbours/gw-smm.json` alone."""

from collections.abc import Mapping
from typing import Any

from merging.studies.markdown import markdown_table, percent

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


def tables(content: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by name: "correlation", "agreement", "groups", "references", "variants", "sizes"."""
    return {
        "correlation": _correlation(content),
        "agreement": _agreement(content),
        "groups": _groups(content),
        "references": _references(content),
        "variants": _variants(content["variants"]),
        "sizes": _sizes(content["sizes"]),
    }


def _correlation(content: Mapping[str, Any]) -> str:
    """A row per metric, merger and part: rank correlation with the loss."""
    rows = []
    for metric, title in METRICS.items():
        for loss, found in content["correlation"][metric].items():
            rows.append(
                [
                    title,
                    _loss_title(loss),
                    *(cell for each in found.values() for cell in _correlation_cells(each)),
                ]
            )
    return markdown_table(
        [
            "distance",
            "merge, part",
            "rho",
            "rho of means (p)",
            "rho without task effects",
            "the same, of means (p)",
        ],
        rows,
    )


def _loss_title(name: str) -> str:
    merger, part = name.rsplit("_", 1)
    return f"{merger.replace('_', ' ')}, {part}"


def _correlation_cells(found: Mapping[str, Any]) -> tuple[str, str]:
    rho = found["rho"]
    spread = "" if rho["std"] is None else f" ± {rho['std']:.2f}"
    return f"{rho['mean']:+.2f}{spread}", f"{found['mean_rho']:+.2f} ({found['mean_p']:.2f})"


def _agreement(content: Mapping[str, Any]) -> str:
    rows = [
        [
            name.replace("_", " "),
            *(f"{found[part]['mean']:+.2f}" for part in ("whole", "interaction")),
        ]
        for name, found in content["agreement"].items()
    ]
    return markdown_table(["loss of pairs", "rho", "rho without task effects"], rows)


def _groups(content: Mapping[str, Any]) -> str:
    """A row per limit, seed and metric: the groups among others of the same sizes."""
    rows = []
    for size in ("2", "3"):
        for seed, found in content["by_seed"].items():
            for metric, plan in found["plans"].get(size, {}).items():
                drawn, groups = plan["test"], "; ".join(" ".join(group) for group in plan["groups"])
                spread = (
                    f"{percent(drawn['mean'])} ± {percent(drawn['std'])}"
                    f" ({percent(drawn['worst'])} to {percent(drawn['best'])})"
                )
                beaten = [
                    f"{100 * plan[part]['beaten']:.0f} % of {drawn['ways']}"
                    for part in ("test", "valid")
                ]
                rows.append(
                    [size, seed, METRICS[metric], groups, percent(drawn["value"]), spread, *beaten]
                )
    head = [
        "at most",
        "seed",
        "groups by",
        "groups",
        "test",
        "others of these sizes",
        "better than (test)",
        "better than (validation)",
    ]
    return markdown_table(head, rows)


def _references(content: Mapping[str, Any]) -> str:
    seeds = content["by_seed"]
    rows = [
        [title, *(percent(found["references"][name]["test"]) for found in seeds.values())]
        for name, title in REFERENCES.items()
    ]
    return markdown_table(["", *(f"seed {seed}" for seed in seeds)], rows)


def _variants(found: Mapping[str, Any]) -> str:
    rows = []
    for name, each in found.items():
        later = (
            f"{100 * each['better_later']:.0f} %, by {100 * each['gain']:.1f} % on average,"
            f" {100 * each['most_gain']:.1f} % at most"
        )
        gain = later if each["starts"] > 1 else "not tried"
        converged = (
            "cannot tell" if each["converged"] is None else f"{100 * each['converged']:.0f} %"
        )
        seconds = f"{each['time_ratio']:.1f}"
        rows.append(
            [
                name.replace("_", "-"),
                str(each["starts"]),
                f"{each['rho']:.3f}",
                f"{each['ratio']:.2f}",
                seconds,
                gain,
                converged,
            ]
        )
    return markdown_table(
        [
            "variant",
            "starts",
            "rho with exact",
            "distance / exact",
            "time / exact",
            "a later start is better",
            "converged",
        ],
        rows,
    )


def _sizes(found: Mapping[str, Any]) -> str:
    variants, rows = list(next(iter(found.values()))), []
    for count, each in found.items():
        times = [each[name]["seconds"] / each["exact"]["seconds"] for name in variants]
        rows.append(
            [
                count,
                *(f"{each[name]['distance']:.3f}" for name in variants),
                *(f"{time:.2f}" for time in times),
            ]
        )
    names = [name.replace("_", "-") for name in variants]
    return markdown_table(
        [
            "molecules",
            *(f"distance, {name}" for name in names),
            *(f"time / exact, {name}" for name in names),
        ],
        rows,
    )
