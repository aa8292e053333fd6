"""The README: one page, whose examples give what it shows and whose numbers were measured."""

import json
import re
from typing import Any

import numpy as np

from merging.mergers.registry import MERGERS
from tests.pages import README, ROOT, blocks

TEXT = README.read_text()
EIGHT_STREAMS, ONE_STREAM = "eight tasks, eight streams", "eight tasks, one stream"


def measured(file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / file).read_text())
    return content


def rows(chapter: str) -> list[list[str]]:
    """Return the cells of a chapter's table, without its head and without bold type."""
    text = TEXT.partition(f"\n## {chapter}\n")[2].partition("\n## ")[0].replace("**", "")
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_it_is_one_page() -> None:
    lines = TEXT.splitlines()
    assert len(lines) <= 150
    assert max(len(line) for line in lines if not line.startswith(("|", "!"))) <= 120


def test_python_example_runs() -> None:
    (example,) = blocks(README, "python")
    assert len(example.text.splitlines()) <= 10
    names: dict[str, Any] = {}
    exec(compile(example.text, str(example), "exec"), names)
    answers = names["answers"]
    assert len(answers) == 3
    assert answers["error"].notna().tolist() == [False, False, True]
    labels = answers.drop(columns="error")
    assert labels.shape[1] >= 678
    assert labels.iloc[:2].notna().all(axis=None)
    assert labels.iloc[2].isna().all()


def test_results_are_those_of_the_results_files() -> None:
    methods = measured("results/gcn_supervised_contextpred/summary.json")["methods"]

    def stored(name: str) -> str:
        found = methods[name]["stored"]
        return f"{100 * found['average']:.1f} ± {100 * found['average_std']:.1f}"

    runs = measured("results/one-pass/one-pass.json")["variants"]["base"]["seeds"].values()
    scores = [run["scores"]["one_pass"] for run in runs]
    averages = 100 * np.array([score["average"] for score in scores])
    one_pass = f"{averages.mean():.1f} ± {averages.std(ddof=1):.1f}"
    with_trees = {
        task: np.mean([run["test"]["both"] for run in found["runs"]])
        for task, found in measured("results/forests.json")["tasks"].items()
    }
    own = {t: np.mean([score["roc_auc"][t] for score in scores]) for t in ("toxcast", "muv")}
    both = f"{100 * np.mean([*with_trees.values(), *own.values()]):.1f}"
    expected = [*map(stored, ("finetuned", "weight_average", "gmerging_own")), one_pass, both]
    assert [row[1] for row in rows("Results")] == expected
    routed, forests = (
        100 * methods[name]["stored"]["average"] for name in ("gmerging_moe", "ecfp4_random_forest")
    )
    assert f"({routed:.1f}); random forests alone have {forests:.1f}" in TEXT


def test_speeds_are_those_of_the_results_files() -> None:
    rates = {
        name: f"{found['median']:,.0f}"
        for name, found in measured("benchmarks/results/one_pass.json")["per_cpu_second"].items()
    }
    separate = measured("benchmarks/results/separate.json")
    peers = measured("benchmarks/results/peers.json")["ratios"]
    network, trees = (rates[f"default release, {what}"] for what in ("network", "with trees"))
    expected = [
        (rates[ONE_STREAM], rates[EIGHT_STREAMS]),
        (network, trees),
        (f"{separate['own_time_ratio']['median']:.2f}", f"{separate['memory_ratio']:.2f}"),
        (f"{peers['admet-ai']['own']['median']:.1f}",),
    ]
    for row, numbers in zip(rows("Speed"), expected, strict=True):
        assert tuple(re.findall(r"\d[\d,.]*\d", row[1])) == numbers


def test_it_counts_the_mergers_and_the_tasks_of_the_releases() -> None:
    assert f"{len(MERGERS)} mergers behind one interface" in TEXT
    for name, words in (("admet", "31 tasks"), ("moleculenet-gcn", "eight MoleculeNet tasks")):
        tasks = measured(f"models/releases/{name}/manifest.json")["tasks"]
        assert len(tasks) == {"31 tasks": 31, "eight MoleculeNet tasks": 8}[words]
        assert f"{sum(len(info['labels']) for info in tasks.values())} labels)" in TEXT
        assert words in TEXT


def test_tables_are_as_short_as_a_page_allows() -> None:
    assert [len(rows(name)) for name in ("Results", "Speed", "Which method when")] == [5, 4, 6]
