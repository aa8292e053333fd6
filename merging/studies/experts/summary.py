"""The study's pieces in a few figures, and the tables that the page shows."""

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


def summarise(
    measured: Mapping[str, Mapping[str, Record]], controls: Mapping[str, Record]
) -> Record:
    """What the results file says before the single values.

    Args:
        measured: by variant, seed and domain (`merging.studies.experts.study.measure_bank`).
        controls: by seed and domain.
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
    """The test score of each row in one domain with one seed."""
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
    """In how many cases (a domain with a seed) a row is better than top-1, and by how much on
    average."""
    differences = [tests[row] - tests["first"] for tests in cases.values()]
    return {
        "better": sum(each > 0 for each in differences),
        "worse": sum(each < 0 for each in differences),
        "mean_difference": mean(differences),
    }


def _rank_correlation(names: Sequence[str], record: Record) -> float:
    """Spearman's, of competence and test score over the experts of a bank; 0 where all score the
    same."""
    psi, tests = (
        [record["competence"][name] for name in names],
        [record["experts"][name]["test"] for name in names],
    )
    return float(spearmanr(psi, tests).statistic) if len(set(tests)) > 1 else 0.0


def _spread(values: list[float]) -> Record:
    return {
        "mean": mean(values),
        "std": stdev(values) if len(values) > 1 else 0.0,
        "values": values,
    }


def tables(content: Record) -> str:
    """The results file as Markdown: scores of the untied experts, the variants, the finding, and
    the cost."""
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
    header = [
        "variant",
        "bank",
        "top-1",
        "ensemble",
        "merged",
        "merged of all",
        "own",
        "relative error, merged",
        "relative error, merged of all",
    ]
    lines = []
    for bank in BANKS:
        for variant, summary in content[bank].items():
            rows, error = summary["rows"], summary["relative_error"]
            scores = [
                _percent(rows[row]["average"])
                for row in ("first", "ensemble", "merged", "merged_all", "own")
            ]
            lines.append(
                [
                    f"`{variant}`",
                    bank.replace("_", " "),
                    *scores,
                    *(f"{error[name]['mean']:.4f}" for name in ("merged", "merged_all")),
                ]
            )
    return "Variants of training, averages over the domains:\n\n" + markdown_table(header, lines)


def _finding_table(content: Record) -> str:
    compared = (
        "second",
        "third",
        "ensemble",
        "merged",
        "mean_expert",
        "by_validation",
        "untrained",
    )
    header = [
        "variant",
        "bank",
        *(f"{ROWS[row].split(' (')[0]}" for row in compared),
        "rank correlation",
        "largest alpha",
    ]
    lines = []
    for bank in BANKS:
        for variant, summary in content[bank].items():
            against = [summary["against_first"][row] for row in compared]
            figures = [
                f"{each['better']}/{summary['cases']} ({100 * each['mean_difference']:+.1f})"
                for each in against
            ]
            lines.append(
                [
                    f"`{variant}`",
                    bank.replace("_", " "),
                    *figures,
                    f"{summary['rank_correlation']:+.2f}",
                    f"{summary['largest_alpha']:.2f}",
                ]
            )
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
    for name, each in content["cost"].items():
        ratios = [f"{each[way] / each['top1']:.2f}" for way in ways]
        lines.append(
            [name.replace("_", " "), str(each["nodes"]), f"{1000 * each['top1']:.2f}", *ratios]
        )
    return (
        "Time, as a multiple of top-1's in the same process with one thread:\n\n"
        + markdown_table(header, lines)
    )


def _percent(spread: Record) -> str:
    return f"{100 * spread['mean']:.1f}" + (
        f" ± {100 * spread['std']:.1f}" if len(spread["values"]) > 1 else ""
    )
