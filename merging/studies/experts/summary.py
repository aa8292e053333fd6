"""The summary of the study's results, and the tables of its page."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from scipy.stats import spearmanr

from merging.studies.markdown import markdown_table

Record = dict[str, Any]
BANKS = {"all": "all experts", "left_out": "all experts but the domain's own"}
ROWS = {
    "first": "first by competence (top-1)",
    "second": "second",
    "third": "third",
    "ensemble": "ensemble of the top k",
    "merged": "merged expert of the top k",
    "merged_all": "merged expert of all",
    "mean_expert": "an expert at random (mean over the bank)",
    "by_validation": "best on validation labels",
    "own": "the domain's own expert",
    "untrained": "untrained",
    "features": "features alone",
}
COMPARED = (
    "second",
    "third",
    "ensemble",
    "merged",
    "merged_all",
    "mean_expert",
    "by_validation",
    "own",
    "untrained",
)


def summarise_experts(
    measured: Mapping[str, Mapping[str, Record]], controls: Mapping[str, Record]
) -> Record:
    """Summarise the measurements of all variants, by bank ("all" experts, or the domain's expert
    "left_out") and variant.

    Args:
        measured: by variant, seed and domain (`merging.studies.experts.study.measure_bank`).
        controls: probes of untrained encoders, by seed and domain.

    Returns:
        {bank: {variant: {"rows", "against_first", "rank_correlation", ...}}}
    """
    return {
        bank: {variant: _summary(bank, by_seed, controls) for variant, by_seed in measured.items()}
        for bank in BANKS
    }


def _summary(bank: str, by_seed: Mapping[str, Record], controls: Mapping[str, Record]) -> Record:
    cases = {
        (seed, domain): _tests(domain, bank, record, controls[seed][domain])
        for seed, domains in by_seed.items()
        for domain, record in domains.items()
    }
    routed = [
        (domain, record[bank], record)
        for domains in by_seed.values()
        for domain, record in domains.items()
    ]
    return {
        "rows": {row: _row(row, cases) for row in ROWS},
        "against_first": {row: _against_first(row, cases) for row in COMPARED},
        "rank_correlation": mean(
            _rank_correlation(routing["ranked"], record) for _, routing, record in routed
        ),
        "largest_alpha": mean(max(routing["alpha"]) for _, routing, _ in routed),
        "own_is_first": sum(routing["ranked"][0] == domain for domain, routing, _ in routed),
        "cases": len(routed),
        "relative_error": {
            name: _spread(
                [
                    mean(record[bank]["relative_error"][name] for record in domains.values())
                    for domains in by_seed.values()
                ]
            )
            for name in ("merged", "merged_all")
        },
    }


def _tests(domain: str, bank: str, record: Record, control: Record) -> dict[str, float]:
    """The test score of every row, in one domain with one seed."""
    experts, routing = record["experts"], record[bank]
    ranked = routing["ranked"]
    tests = {
        row: experts[name]["test"]
        for row, name in zip(("first", "second", "third"), ranked, strict=False)
    }
    tests |= {name: score["test"] for name, score in (*routing["probes"].items(), *control.items())}
    chosen = max(ranked, key=lambda name: float(experts[name]["valid"]))
    return tests | {
        "mean_expert": mean(experts[name]["test"] for name in ranked),
        "by_validation": experts[chosen]["test"],
        "own": experts[domain]["test"],
    }


def _row(row: str, cases: Mapping[tuple[str, str], dict[str, float]]) -> Record:
    seeds, domains = (list(dict.fromkeys(key[k] for key in cases)) for k in (0, 1))
    by_domain = {
        domain: _spread([cases[seed, domain][row] for seed in seeds]) for domain in domains
    }
    return {
        "by_domain": by_domain,
        "average": _spread(
            [mean(cases[seed, domain][row] for domain in domains) for seed in seeds]
        ),
    }


def _against_first(row: str, cases: Mapping[tuple[str, str], dict[str, float]]) -> Record:
    """The numbers of cases (a domain with a seed) in which a row is better or worse than top-1, and
    the mean difference."""
    differences = [tests[row] - tests["first"] for tests in cases.values()]
    return {
        "better": sum(difference > 0 for difference in differences),
        "worse": sum(difference < 0 for difference in differences),
        "mean_difference": mean(differences),
    }


def _rank_correlation(names: Sequence[str], record: Record) -> float:
    """Spearman's rank correlation of competence and test score over the experts of a bank; 0 where
    all score the same."""
    psi = [record["competence"][name] for name in names]
    tests = [record["experts"][name]["test"] for name in names]
    return float(spearmanr(psi, tests).statistic) if len(set(tests)) > 1 else 0.0


def _spread(values: list[float]) -> Record:
    std = stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean(values), "std": std, "values": values}


def expert_tables(content: Record) -> str:
    """Format the content of the results file as Markdown tables: scores of untied experts, variants
    of training, rows compared with top-1, and cost."""
    return "\n\n".join(
        (
            *(_score_table(content, bank) for bank in BANKS),
            _variant_table(content),
            _finding_table(content),
            _cost_table(content),
        )
    )


def _score_table(content: Record, bank: str) -> str:
    plain = next(iter(content[bank]))
    rows = content[bank][plain]["rows"]
    domains = list(rows["first"]["by_domain"])
    lines = [
        [
            label,
            *(_percent(rows[row]["by_domain"][domain]) for domain in domains),
            _percent(rows[row]["average"]),
        ]
        for row, label in ROWS.items()
    ]
    return f"Variant `{plain}`, {BANKS[bank]}:\n\n" + markdown_table(
        ["encoder", *domains, "average"], lines
    )


def _variant_table(content: Record) -> str:
    columns = {
        "first": "top-1",
        "ensemble": "ensemble",
        "merged": "merged",
        "merged_all": "merged of all",
        "own": "own",
    }
    errors = {"merged": "merged", "merged_all": "merged of all"}
    titles = [*columns.values(), *(f"relative error, {title}" for title in errors.values())]
    lines = []
    for bank in BANKS:
        for variant, summary in content[bank].items():
            rows, error = summary["rows"], summary["relative_error"]
            scores = [_percent(rows[row]["average"]) for row in columns]
            distances = [f"{error[name]['mean']:.4f}" for name in errors]
            lines.append([f"`{variant}`", bank.replace("_", " "), *scores, *distances])
    return "Variants of training, averages over the domains:\n\n" + markdown_table(
        ["variant", "bank", *titles], lines
    )


def _finding_table(content: Record) -> str:
    compared = [row for row in COMPARED if row not in ("merged_all", "own")]
    titles = [ROWS[row].split(" (")[0] for row in compared]
    header = ["variant", "bank", *titles, "rank correlation", "largest alpha"]
    lines = []
    for bank in BANKS:
        for variant, summary in content[bank].items():
            against = [summary["against_first"][row] for row in compared]
            figures = [
                f"{row['better']}/{summary['cases']} ({100 * row['mean_difference']:+.1f})"
                for row in against
            ]
            figures.append(f"{summary['rank_correlation']:+.2f}")
            figures.append(f"{summary['largest_alpha']:.2f}")
            lines.append([f"`{variant}`", bank.replace("_", " "), *figures])
    return (
        "Better than top-1 in how many cases (a domain with a seed), and by how many points on"
        " average:\n\n" + markdown_table(header, lines)
    )


def _cost_table(content: Record) -> str:
    ways = ("ensemble", "merged", "merged_kept", "merge", "competence")
    header = [
        "request",
        "nodes",
        "top-1, ms",
        "ensemble",
        "merging and one forward",
        "one forward, merged before",
        "merging alone",
        "competence of all",
    ]
    lines = []
    for name, cost in content["cost"].items():
        ratios = [f"{cost[way] / cost['top1']:.2f}" for way in ways]
        top1 = f"{1000 * cost['top1']:.2f}"
        lines.append([name.replace("_", " "), str(cost["nodes"]), top1, *ratios])
    return (
        "Time, as a multiple of top-1's in the same process with one thread:\n\n"
        + markdown_table(header, lines)
    )


def _percent(spread: Record) -> str:
    return f"{100 * spread['mean']:.1f}" + (
        f" ± {100 * spread['std']:.1f}" if len(spread["values"]) > 1 else ""
    )
