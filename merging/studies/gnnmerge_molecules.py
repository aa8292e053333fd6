"""GNNMerge++ where G-Merging is at home: merged backbones of MoleculeNet's fine-tuned GCNs, with
each task's head, and with adapters on top."""

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
"""HIV and MUV are merged too, but not measured: 134,000 molecules for each row."""
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "task_arithmetic": ("task arithmetic", "task_arithmetic", {"scaling": 0.11}),
    "weight_average": ("weight average", "weight_average", {}),
    "regmean": ("RegMean", "regmean", {}),
    "gnnmerge_pp": ("GNNMerge++", "gnnmerge_pp", {}),
    "gnnmerge_pp_sequential": ("GNNMerge++, sequential", "gnnmerge_pp", {"inputs": "merged"}),
}
"""By row: title, merger, options."""
ADAPTED = ("task_arithmetic", "gnnmerge_pp")
"""Those that adapters are trained on: the published one, and of the two closed forms the one with
the better validation average."""
ADAPTED_TASKS = ("bace", "clintox")


def molecule_run(data: Path, work: Path, seed: int) -> Run:
    """The run whose fine-tuned models are merged."""
    config = load_config(Path("gcn_supervised_contextpred_rank10.yaml"))
    return Run(config, seed, data, work)


def measure_molecules(run: Run) -> dict[str, Any]:
    """Test ROC-AUC of merged backbones with each task's head, and of two of them with the tasks'
    own adapters on `ADAPTED_TASKS`."""
    content: dict[str, Any] = {
        "setting": run.config.setting,
        "seed": run.seed,
        "merged": {},
        "adapted": {},
    }
    for name, (_, method, options) in ROWS.items():
        row = merger_method(run, MergeConfig(method=method, options=options))
        content["merged"][name] = _areas(replace(row, only=MEASURED))
    for name in ADAPTED:
        title, method, options = ROWS[name]
        varied = run.with_changes(merge={"method": method, "options": options})
        row = adapted_method(varied, "gnnmerge_adapted", title)
        content["adapted"][name] = _areas(replace(row, only=ADAPTED_TASKS))
    return content


def _areas(row: Method) -> Any:
    return row.task_scores()["stored"]["roc_auc"]


def molecules_table(molecules: dict[str, Any]) -> str:
    """Markdown: test ROC-AUC in per cent by task, of merged backbones and then of those with
    adapters."""
    rows = []
    for group, label in (("merged", ""), ("adapted", " + adapters")):
        for name, scores in molecules[group].items():
            cells = [percent(scores[task]) if task in scores else "" for task in MEASURED]
            rows.append([ROWS[name][0] + label, *cells, percent(fmean(scores.values()))])
    return markdown_table(["backbone", *MEASURED, "mean"], rows)
