"""The forests of a run: their stage, their outputs together with the network's, and the choice of
the experts that answer."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from merging.config.training import ForestKind
from merging.data.split import Subset
from merging.run.one_pass import one_pass
from merging.run.run import Run
from merging.run.scores import EVALUATIONS, Forward, predict_subset, subset_metrics, unified_forward
from merging.run.stage import Stage
from merging.run.store import StageResult
from merging.run.validation import judged_by, unseen_outputs
from merging.targets.bootstrap import paired_bootstrap
from merging.targets.calibration import temperature_scale
from merging.targets.metrics import compute_score
from merging.training.forest import KINDS, check_forest_target, fingerprint_rows, fit_forest
from merging.training.supervised import label_scale, standardised
from models.data.fingerprint import FINGERPRINT_RULE, Block
from models.experts.combination import ExpertChoice, mean_outputs
from models.experts.forest import Forest
from models.experts.layouts import make_forest
from models.experts.unified import UnifiedModel

SUBSETS: tuple[Subset, ...] = ("valid", "test")
WEIGHT = 0.5
"""Weight of the forest in the mean with the network, fixed before any score was read."""
Outputs = Mapping[ExpertChoice, Tensor]
"""Outputs (G, L) of network, forest, and of their mean."""
EXPERT_EVALUATIONS: dict[str, ExpertChoice | None] = {
    "forest": "forest",
    "one_pass_and_forest": "both",
    "one_pass_default": None,
}
"""A task's forest; its mean with the shared stream; the experts that validation data choose."""


def forest(run: Run, task: str) -> Stage:
    """Return the stage that trains a task's forest of every kind on every candidate of inputs,
    chooses the one with the best validation score, and trains it again on the training and the
    validation molecules.

    No other task has a share in a forest, so that it also learns from the test molecules of related
    tasks (`MoleculeDataset.own_split`). Its tensors are `forest/<array>`, `outputs/test` and, from
    the forest that saw no validation molecules, `outputs/valid`; its record has the `kind`, the
    `inputs`, the `library`, and `valid_scores` of all candidates.

    Raises:
        ConfigError: the task has no forests: its target is multiclass, or it is no set of
            molecules; or CatBoost is not installed.
    """
    data = run.dataset(task)
    check_forest_target(data.info.target)
    config = run.config.forest_for(task)
    libraries = (KINDS[kind].library() for kind in config.kinds)
    settings = config, FINGERPRINT_RULE, *libraries, "trained on train and valid", task
    sources = *run.family.data_settings(run.config, task), *data.sources.values()
    make = partial(_make_forest, run, task)
    return Stage(f"forest/{task}", run.seed, (*settings, *sources), (), make, data.size)


def _make_forest(run: Run, task: str, _: Path) -> StageResult:
    data, settings, start = run.dataset(task), run.config.forest_for(task), time.perf_counter()
    rows = fingerprint_rows(run.family.smiles(run.config, data, run.folders), task)
    own, scores = data.own_split or data.split, dict[str, float]()
    tried = dict[str, tuple[Any, Any, Tensor]]()

    def fit(train: Tensor, kind: ForestKind, inputs: Sequence[Block]) -> Forest:
        target = data.info.target
        return fit_forest(rows, data.labels, train, target, kind, inputs, settings, run.seed)

    def outputs(fitted: Forest, subset: Subset) -> Tensor:
        return torch.from_numpy(fitted.outputs(rows[getattr(data.split, subset).numpy()]))

    for kind, inputs in product(settings.kinds, settings.inputs):
        name, valid = f"{kind}, {'+'.join(inputs)}", outputs(fit(own.train, kind, inputs), "valid")
        scores[name] = round(_score(valid, data.labels[data.split.valid], data), 5)
        tried[name] = kind, inputs, valid
    kind, inputs, valid = tried[max(scores, key=lambda name: scores[name])]
    fitted = fit(torch.cat([own.train, own.valid]), kind, inputs)
    arrays = {name: torch.from_numpy(array) for name, array in vars(fitted).items()}
    tensors = {f"forest/{name}": array for name, array in arrays.items()}
    tensors |= {"outputs/valid": valid, "outputs/test": outputs(fitted, "test")}
    record = {"kind": kind, "inputs": list(inputs), "library": KINDS[kind].library()}
    record |= {"valid_scores": scores}
    seconds = round(time.perf_counter() - start, 1)
    return StageResult(tensors, {**record, "settings": settings.model_dump(), "seconds": seconds})


def trained_forest(result: StageResult) -> Forest:
    """Return the forest of a result of `forest`."""
    arrays = {name: tensor.numpy() for name, tensor in result.under("forest/").items()}
    return make_forest(arrays)


def network_outputs(run: Run, model: UnifiedModel, task: str) -> dict[Subset, Tensor]:
    """Return the outputs of a merged model for a task with routing `own`, by subset (G, L)."""
    return _outputs(run, unified_forward(run, model, task), task)


def _outputs(run: Run, forward: Forward, task: str) -> dict[Subset, Tensor]:
    return {subset: predict_subset(run, forward, task, subset)[0] for subset in SUBSETS}


def expert_evaluation(name: str, run: Run, task: str) -> Stage:
    """Return the stage that evaluates the forest of a task or its mean with the run's shared
    stream; its record is as that of `merging.run.scores.evaluation`.

    Args:
        name: one of `EXPERT_EVALUATIONS`.
        run: its configuration has joint alignment.
        task: the task whose data are used.
    """
    inputs: tuple[Stage, ...] = (forest(run, task),)
    if name != "forest":
        inputs = *inputs, one_pass(run), *judged_by(run, task)
    make = partial(_make_expert_evaluation, EXPERT_EVALUATIONS[name], run, task)
    return Stage(f"evaluation/{name}/{task}", run.seed, (WEIGHT, "calibrated"), inputs, make)


def _make_expert_evaluation(
    choice: ExpertChoice | None, run: Run, task: str, _: Path
) -> StageResult:
    data, trees = run.dataset(task), run.result(forest(run, task))
    labels = {subset: data.labels[getattr(data.split, subset)] for subset in SUBSETS}
    answers = {subset: trees.tensors[f"outputs/{subset}"] for subset in SUBSETS}
    if choice != "forest":
        own = _outputs(run, EVALUATIONS["one_pass"].forward(run, task, "stored"), task)
        unseen = unseen_outputs(run, task, own["valid"])
        if data.info.target == "multilabel":  # As a release is calibrated.
            scale = temperature_scale(unseen, labels["valid"])
            own, unseen = {name: values * scale for name, values in own.items()}, unseen * scale
        outputs = {subset: expert_outputs(own[subset], answers[subset]) for subset in SUBSETS}
        if choice is None:
            choice = default_experts(
                expert_outputs(unseen, answers["valid"]), labels["valid"], data
            )
        answers = {subset: outputs[subset][choice] for subset in SUBSETS}
    metrics = {
        subset: subset_metrics(run, task, answers[subset], labels[subset]) for subset in SUBSETS
    }
    return StageResult(record={"stored": metrics, "experts": choice})


def expert_outputs(own: Tensor, trees: Tensor) -> Outputs:
    """Return the outputs of network, forest, and of their mean."""
    return {"own": own, "forest": trees, "both": mean_outputs(own, trees, WEIGHT)}


def expert_scores(outputs: Outputs, labels: Tensor, data: Any) -> dict[str, float]:
    """Return the score of every choice of experts (`compute_score`), in standard deviations of the
    labels for a regression."""
    return {name: round(_score(values, labels, data), 5) for name, values in outputs.items()}


def _score(outputs: Tensor, labels: Tensor, data: Any) -> float:
    return compute_score(_scaled(outputs, data), _scaled(labels, data), data.info)


def _scaled(values: Tensor, data: Any) -> NDArray[Any]:
    scaled: NDArray[Any] = standardised(label_scale(data), values).numpy()
    return scaled


def expert_gain(
    pairs: Sequence[tuple[Tensor, Tensor]], labels: Tensor, data: Any
) -> tuple[float, float]:
    """Return the gain in score of the second outputs over the first, as the mean over pairs, and
    its standard error (`paired_bootstrap`)."""
    scaled = [(_scaled(first, data), _scaled(second, data)) for first, second in pairs]
    return paired_bootstrap(scaled, _scaled(labels, data), data.info)


def default_experts(outputs: Outputs, labels: Tensor, data: Any) -> ExpertChoice:
    """Choose the experts that answer by default, on validation data.

    `both`, unless one of them alone scores higher by more than a standard error of the difference
    (paired bootstrap): validation sets are small, and the mean of two different models is seldom
    worse than the better one.
    """
    choices: dict[ExpertChoice, float] = {}
    names: tuple[ExpertChoice, ...] = ("own", "forest")
    for name in names:
        gain, error = expert_gain([(outputs["both"], outputs[name])], labels, data)
        if gain > error:
            choices[name] = gain
    return max(choices, key=lambda name: choices[name], default="both")
