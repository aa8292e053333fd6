"""Two ways to better teachers that were tried and not kept: weights interpolated towards the
pre-trained ones, and weights averaged over the run.

    python -m benchmarks.teachers pull_back --tasks bace bbbp       # reads fine-tuned models
    python -m benchmarks.teachers averaging --tasks bace clintox    # fine-tunes again

Writes `results/<setting>/teachers-seed<N>.json`: validation and test ROC-AUC of each variant.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import parser, run_of, store
from merging.mergers.task_vector import TaskVector
from merging.run.run import Run
from merging.run.stages import bare, finetuned, finetuned_alone
from merging.studies.results import both_parts, measure_task
from merging.training.losses import masked_loss
from merging.training.metrics import batches, predict
from models.classifier import GraphClassifier
from models.networks.hu2020 import make_backbone
from models.state_dict import sub_state

SCALINGS = (0.4, 0.6, 0.8, 1.0)
SPANS = (1, 3, 10)
"""Epochs over which weights are averaged (time constant of an exponential mean)."""


def pull_back(run: Run, task: str) -> dict[str, Any]:
    """Score theta_pre + s (theta_k - theta_pre) with recomputed BatchNorm statistics, beside the
    fine-tuned model with its own statistics.

    Source: WiSE-FT, Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903.
    """
    start = run.pretrained()
    vector = TaskVector.between(start, sub_state(finetuned(run, task).tensors, "backbone."))
    models = {
        str(s): bare(
            run,
            make_backbone(vector.apply(start, s), run.config.pretrained.backbone, "pulled back"),
            task,
        )
        for s in SCALINGS
    }
    return {
        name: measure_task(run, model, task, "own", "stored")
        for name, model in {"finetuned": finetuned_alone(run, task), **models}.items()
    }


def averaging(run: Run, task: str) -> dict[str, Any]:
    """Fine-tune once, as configured and seeded, and return the best epoch by validation of the
    model and of each average.
    """
    dataset, settings = run.dataset(task), run.config.finetune_for(task)
    torch.manual_seed(run.seed)
    model = GraphClassifier(
        run.config.pretrained.backbone, len(dataset.label_names), settings.dropout
    )
    model.backbone.load_state_dict(run.pretrained())
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    rows, averages = dataset.split.train, {span: copy.deepcopy(model) for span in SPANS}
    steps, best = -(-len(rows) // settings.batch_size), {}
    for epoch in range(1, settings.epochs + 1):
        torch.manual_seed(run.seed * 100_003 + epoch)
        model.train()
        for chosen, batch in batches(
            dataset.graphs, rows[torch.randperm(len(rows))], settings.batch_size
        ):
            loss = masked_loss(model(batch), dataset.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for span, average in averages.items():
                follow(average, model, 1 / (span * steps))
        for name, candidate in {
            "finetuned": model,
            **{str(span): average for span, average in averages.items()},
        }.items():
            scores = score(run, task, candidate.eval())
            if name not in best or scores["valid"] > best[name]["valid"]:
                best[name] = {"epoch": epoch, **scores}
    return best


@torch.no_grad()
def follow(average: GraphClassifier, model: GraphClassifier, share: float) -> None:
    """Move an average, BatchNorm statistics included, by a share towards the model."""
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, share)


def score(run: Run, task: str, model: GraphClassifier) -> dict[str, float]:
    """Compute ROC-AUC on validation and test."""
    dataset = run.dataset(task)
    return both_parts(dataset, lambda _, rows: predict(model, dataset.graphs, rows, run.device))


WAYS: dict[str, Callable[[Run, str], dict[str, Any]]] = {
    measure.__name__: measure for measure in (pull_back, averaging)
}


def main() -> None:
    """Run one method on each requested task; other results in the file stay."""
    options = parser(__doc__)
    options.add_argument("way", choices=list(WAYS))
    options.add_argument("--tasks", nargs="+", required=True)
    arguments = options.parse_args()
    run = run_of(arguments)
    for task in arguments.tasks:
        found = WAYS[arguments.way](run, task)
        print(arguments.way, task, found, flush=True)
        store(run, "teachers", arguments.way, {task: found})


if __name__ == "__main__":
    main()
