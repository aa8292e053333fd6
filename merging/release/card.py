"""merging.release.release.card"""

from dataclasses import dataclass
from typing import Any

from merging.graphs.evaluation import Metric
from merging.studies.markdown import markdown_table, percent
from merging.studies.report import data_table
from merging.studies.results import AUTHORS_BATCH_SIZE
from models.experts.unified import DEFAULT_ROUTING
from models.manifest import Manifest
from models.networks.hu2020 import BackboneConfig

CALIBRATION = """\
Probabilities are calibrated by a temperature per label, fitted on the validation part and folded
into the heads (ROC-AUC does not change). On the test part, expected calibration error (15 bins) and
Brier score:"""
_CHEMISTRY = (
    "Trained on drug-like molecules and environmental chemicals; answers for other chemistry "
    "(polymers, metals, very large molecules) are extrapolations."
)


@dataclass(frozen=True)
class Measured:
    """What the model card shows: scores of the main methods by name, and of each task's
    probabilities before and after calibration."""

    methods: dict[str, Any]
    calibration: dict[str, dict[str, float]]


def results_table(methods: dict[str, Any], statistics: str) -> str:
    """Markdown: test ROC-AUC in percent, a row per method."""
    tasks = list(methods["finetuned"][statistics]["roc_auc"])
    rows = []
    for method in methods.values():
        if statistics not in method:  # a merger that is measured only as it is served
            continue
        values = method[statistics]
        rows.append(
            [
                method["title"],
                *(percent(values["roc_auc"][task]) for task in tasks),
                percent(values["average"]),
            ]
        )
    return markdown_table(["method", *tasks, "average"], rows)


def calibration_table(scores: dict[str, dict[str, float]]) -> str:
    """Markdown: calibration errors on the test part, a row per task."""
    names = ("ece_before", "ece_after", "brier_before", "brier_after")
    rows = [[task, *(f"{each[name]:.3f}" for name in names)] for task, each in scores.items()]
    return markdown_table(["task", "ECE before", "after", "Brier score before", "after"], rows)


def _limits(manifest: Manifest) -> str:
    """What the tasks' data allow to say: those of MoleculeNet are known, others are their
    owner's."""
    described = manifest.provenance["config"]["datasets"]
    own = [task for task in manifest.tasks if described.get(task, {}).get("file")]
    published = [task for task in manifest.tasks if task not in own]
    lines = []
    if published:
        terms = "; SIDER's terms are share-alike and non-commercial" if "sider" in published else ""
        lines = [_CHEMISTRY, f"Data of {', '.join(published)}: MoleculeNet{terms}."]
    if own:
        lines += [
            f"Data of {', '.join(own)}: the files in the table above, under their owner's terms."
        ]
        lines += ["Answers for molecules that are unlike those of the files are extrapolations."]
    return "\n".join(lines)


def model_card(manifest: Manifest, measured: Measured) -> str:
    """The README.md of an artifact."""
    rows = [
        [f"`{task}`", info.description, str(len(info.labels))]
        for task, info in manifest.tasks.items()
    ]
    ours = {
        name: method["title"]
        for name, method in measured.methods.items()
        if name.startswith("gmerging")
    }
    recovered = ", ".join(
        f"{title} {manifest.metrics['recovery'][name]}" for name, title in ours.items()
    )
    config, shape = manifest.provenance["config"], manifest.backbone
    assert isinstance(shape, BackboneConfig)  # as `release` makes it
    return f"""# {manifest.name} {manifest.version}

One {shape.kind.upper()} backbone ({shape.num_layers} layers x {shape.hidden_dim})
merged from {len(manifest.tasks)} fine-tuned models,
with adapters of rank {manifest.rank} at {shape.num_layers + 1} sites for each task.

{markdown_table(["task", "what", "labels"], rows)}

An answer is the probability that a label is 1, as the data set defines it.
Without another wish it is given with routing `{DEFAULT_ROUTING}`.

## Data

{data_table(manifest.provenance["data"])}

## Test ROC-AUC (percent), seed {manifest.provenance["seed"]}

BatchNorm with stored statistics, as the service answers:

{results_table(measured.methods, "stored")}

Recovery (method - weight average) / (fine-tuned - weight average): {recovered}.

BatchNorm with the statistics of test batches of {AUTHORS_BATCH_SIZE},
as the G-Merging authors evaluate
(for comparison; a served answer never depends on its batch):

{results_table(measured.methods, "batch")}

## Calibration

{CALIBRATION}

{calibration_table(measured.calibration)}

## How it was made

Setting `{config["setting"]}`: {config["description"]}.
Merged by {config["merge"]["method"]}, options {config["merge"]["options"] or "as published"}.
The whole configuration, library versions and checksums of weights and data are in `manifest.json`.

## Limits

{_limits(manifest)}
Pre-trained weights: {manifest.provenance["pretrained_source"]}.
For research: no answer of this model is a statement on the safety of a substance.
"""


METRIC_TITLES: dict[Metric, str] = {
    "accuracy": "accuracy",
    "roc_auc": "ROC-AUC",
    "mae": "mean absolute error",
}
