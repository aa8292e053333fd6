"""Two ways to better teachers that were tried and not kept: weights interpolated towards the
pre-trained ones, and weights averaged over the run.

    python -m benchmarks.teachers pull_back --tasks bace bbbp       # reads fine-tuned models
    python -m benchmarks.teachers averaging --tasks bace clintox    # fine-tunes again

Writes `results/<setting>/teachers-seed<N>.json`: validation and test ROC-AUC of each variant.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.common import parser, run_of, store
from merging.mergers.task_vector import TaskVector
from merging.run.models import finetuned_model, without_adapters
from merging.run.run import Run
from merging.run.scores import evaluate, unified_forward
from merging.run.stages import teacher, trained_model
from merging.targets.losses import compute_loss
from merging.targets.metrics import batches
from merging.training.supervised import MultitaskModel, initial_model
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
    start = sub_state(run.initial_state(), "network.")
    vector = TaskVector.between(start, trained_model(run, teacher(run, task)).network)
    models = {"finetuned": finetuned_model(run, task)}
    for s in SCALINGS:
        backbone = make_backbone(vector.apply(start, s), run.config.shape, "pulled back")
        models[str(s)] = without_adapters(run, backbone, task)
    return {
        name: areas(evaluate(run, unified_forward(run, model, task), task))
        for name, model in models.items()
    }


def areas(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """ROC-AUC on the validation and test rows."""
    return {subset: values["roc_auc"] for subset, values in found.items()}


def averaging(run: Run, task: str) -> dict[str, Any]:
    """The best epoch by validation of the model itself, and of each average; one fine-tuning as
    configured, seeded like the real one."""
    dataset, settings = run.dataset(task), run.config.training_for(task)
    start = run.initial_state(), run.seed, settings.dropout
    model = initial_model(run.family, run.config.shape, {task: dataset}, *start)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    rows, averages = dataset.split.train, {span: copy.deepcopy(model) for span in SPANS}
    steps, best = -(-len(rows) // settings.batch_size), {}
    for epoch in range(1, settings.epochs + 1):
        torch.manual_seed(run.seed * 100_003 + epoch)
        model.train()
        for chosen, batch in batches(
            dataset.graphs, rows[torch.randperm(len(rows))], settings.batch_size
        ):
            value = compute_loss(model(batch, task), dataset.labels[chosen], dataset.info)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            for span, average in averages.items():
                follow(average, model, 1 / (span * steps))
        for name, tried in {"finetuned": model, **averages}.items():
            scores = areas(evaluate(run, partial(tried.eval(), task=task), task))
            if str(name) not in best or scores["valid"] > best[str(name)]["valid"]:
                best[str(name)] = {"epoch": epoch, **scores}
    return best


@torch.no_grad()
def follow(average: MultitaskModel, model: MultitaskModel, share: float) -> None:
    """Move an average, BatchNorm statistics included, a share of the way to the model."""
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, share)


WAYS: dict[str, Callable[[Run, str], dict[str, Any]]] = {
    way.__name__: way for way in (pull_back, averaging)
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
