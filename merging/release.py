"""From a finished run to the artifact that the service answers from, with its model card, and the results file."""

import hashlib
from pathlib import Path
from typing import Any

from merging.files import write_json
from merging.pipeline import experts, merged_backbone
from merging.results import AUTHORS_BATCH_SIZE, evaluate
from merging.run import Run
from models.artifact import Manifest, TaskInfo, make_manifest, save_artifact

TITLES = {
    "finetuned": "Fine-tuned, one model per task",
    "weight_average": "Weight average",
    "task_arithmetic": "Task arithmetic",
    "gmerging_own": "G-Merging-s (`own`)",
    "gmerging_moe": "G-Merging (`moe`)",
}


def release(run: Run, folder: Path, results_folder: Path) -> Manifest:
    """Run every stage that is not done yet, write the results and the artifact.

    Args:
        run: the run.
        folder: the artifact's folder; an older artifact there is replaced in one step.
        results_folder: `<setting>/seed<N>.json` is written below it.
    """
    results = evaluate(run)
    write_json(results_folder / run.config.setting / f"seed{run.seed}.json", results)
    infos = {task: TaskInfo(labels=run.dataset(task).label_names, description=run.config.dataset_for(task).about) for task in run.config.tasks}
    section = run.config
    manifest = make_manifest(
        name=section.release.name,
        version=section.release.version,
        backbone=section.pretrained.backbone,
        rank=section.alignment.rank,
        router=section.router,
        tasks=infos,
        provenance=provenance(run, results),
        metrics={name: method["stored"] for name, method in results["methods"].items()} | {"recovery": results["recovery"]},
    )
    return save_artifact(folder, manifest, merged_backbone(run), experts(run), model_card(manifest, results))


def provenance(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Everything that the artifact was made from."""
    return {
        "config": run.config.model_dump(mode="json"),
        "seed": run.seed,
        "pretrained_sha256": hashlib.sha256(run.pretrained_path().read_bytes()).hexdigest(),
        "data_sha256": {task: run.dataset(task).source_sha256 for task in run.config.tasks},
        "environment": results["environment"],
    }


def results_table(results: dict[str, Any], statistics: str = "stored") -> str:
    """Markdown: test ROC-AUC in percent, a row per method."""
    tasks = list(results["methods"]["finetuned"]["stored"]["roc_auc"])
    lines = [" | ".join(["| method", *tasks, "average |"]), "|---" * (len(tasks) + 2) + "|"]
    for name, title in TITLES.items():
        values = results["methods"][name][statistics]
        cells = [*(values["roc_auc"][task] for task in tasks), values["average"]]
        lines.append(" | ".join([f"| {title}", *(f"{100 * value:.1f}" for value in cells)]) + " |")
    return "\n".join(lines)


def model_card(manifest: Manifest, results: dict[str, Any]) -> str:
    """The README.md of an artifact."""
    tasks = "\n".join(f"| `{task}` | {info.description} | {len(info.labels)} |" for task, info in manifest.tasks.items())
    recovered = ", ".join(f"{TITLES[name]} {value}" for name, value in results["recovery"].items())
    config, shape = manifest.provenance["config"], manifest.backbone
    return f"""# {manifest.name} {manifest.version}

One {shape.kind.upper()} backbone ({shape.num_layers} layers x {shape.hidden_dim}) merged from {len(manifest.tasks)} fine-tuned models,
with adapters of rank {manifest.rank} at {shape.num_layers + 1} sites for each task.

| task | what | labels |
|---|---|---|
{tasks}

An answer is the probability that a label is 1, as the data set defines it. Probabilities are not calibrated.

## Test ROC-AUC (percent), scaffold split 0.8 / 0.1 / 0.1, seed {manifest.provenance["seed"]}

BatchNorm with stored statistics, as the service answers:

{results_table(results)}

Recovery (method - weight average) / (fine-tuned - weight average): {recovered}.

BatchNorm with the statistics of test batches of {AUTHORS_BATCH_SIZE}, as the G-Merging authors evaluate
(for comparison; a served answer never depends on its batch):

{results_table(results, "batch")}

## How it was made

Setting `{config["setting"]}`: {config["description"]}.
Merged by {config["merge"]["method"]}, scaling {config["merge"]["scaling"]}.
The whole configuration, library versions and checksums of weights and data are in `manifest.json`.

## Limits

Trained on drug-like molecules and environmental chemicals; answers for other chemistry (polymers, metals, very large molecules) are extrapolations.
Pre-trained weights: Hu et al. 2020 (MIT). Data: MoleculeNet; SIDER's terms are share-alike and non-commercial.
For research: no answer of this model is a statement on the safety of a substance.
"""
