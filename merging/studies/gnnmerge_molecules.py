"""GNNMerge++ on MoleculeNet: merged backbones of fine-tuned GCNs, with and without adapters."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from merging.mergers.registry import MergeConfig
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.scores import Method, adapted_method, merger_method
from merging.studies.markdown import markdown_table, percent

MEASURED = ("bace", "bbbp", "clintox", "sider", "tox21", "toxcast")
"""HIV and MUV are merged but not measured, as they have 134,000 molecules."""
MOLECULE_ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "task_arithmetic": ("task arithmetic", "task_arithmetic", {"scaling": 0.11}),
    "weight_average": ("weight average", "weight_average", {}),
    "regmean": ("RegMean", "regmean", {}),
    "gnnmerge_pp": ("GNNMerge++", "gnnmerge_pp", {}),
    "gnnmerge_pp_sequential": ("GNNMerge++, sequential", "gnnmerge_pp", {"inputs": "merged"}),
}
"""By row: title, merger, options."""
ADAPTED = ("task_arithmetic", "gnnmerge_pp")
"""The rows with adapters: the published one, and the closed form with the better validation
average."""
ADAPTED_TASKS = ("bace", "clintox")


def molecule_run(data: Path, work: Path, seed: int) -> Run:
    """Return the run whose fine-tuned models are merged."""
    config = load_config(Path("gcn_supervised_contextpred_rank10.yaml"))
    return Run(config, seed, data, work)


def measure_molecules(run: Run) -> dict[str, Any]:
    """Measure the test ROC-AUC of merged backbones with the heads of `MEASURED`, and of two of them
    with adapters on `ADAPTED_TASKS`."""
    content: dict[str, Any] = {"setting": run.config.setting, "seed": run.seed}
    content |= {"merged": {}, "adapted": {}}
    for name, (_, method, options) in MOLECULE_ROWS.items():
        row = merger_method(run, MergeConfig(method=method, options=options))
        content["merged"][name] = _areas(replace(row, only=MEASURED))
    for name in ADAPTED:
        title, method, options = MOLECULE_ROWS[name]
        varied = run.with_changes(merge={"method": method, "options": options})
        row = adapted_method(varied, "gnnmerge_adapted", title)
        content["adapted"][name] = _areas(replace(row, only=ADAPTED_TASKS))
    return content


def _areas(row: Method) -> Any:
    return row.task_scores()["stored"]["roc_auc"]


def molecules_table(molecules: dict[str, Any]) -> str:
    """Tabulate test ROC-AUC in Markdown: per cent, a row per backbone without and with adapters."""
    rows = []
    for group, label in (("merged", ""), ("adapted", " + adapters")):
        for name, scores in molecules[group].items():
            cells = [percent(scores[task]) if task in scores else "" for task in MEASURED]
            rows.append([MOLECULE_ROWS[name][0] + label, *cells, percent(fmean(scores.values()))])
    return markdown_table(["backbone", *MEASURED, "mean"], rows)
