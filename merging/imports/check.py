"""Whether models that somebody brought can be merged: were they fine-tuned from one network?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from merging.imports.brought import Base, Brought
from models.errors import ConfigError

Verdict = Literal["related", "doubtful", "unrelated", "other shape"]
RELATED = 0.9
DOUBTFUL = 0.5
"""Models that were fine-tuned from one foundation have a cosine of .97 and more with it, unrelated
ones below .04."""


@dataclass(frozen=True)
class CheckedModel:
    """What was found about one model.

    Attributes:
        task: its name.
        model: the model.
        cosine: the least cosine of a member's weights with the base; None for another shape.
        verdict: see `Verdict`.
        difference: what differs from the shape of the base; empty if nothing does.
    """

    task: str
    model: Brought
    cosine: float | None
    verdict: Verdict
    difference: str = ""


def check_models(models: Mapping[str, Brought], base: Base | None = None) -> list[CheckedModel]:
    """Compare models with the network that they were fine-tuned from.

    Args:
        models: by task.
        base: that network; None compares with the first model, which is then related to itself.
    """
    first = next(iter(models.values()))
    shape = first.shape if base is None else base.shape
    reference = first.vectors[0] if base is None else base.vector
    return [_checked(task, model, shape, reference) for task, model in models.items()]


def _checked(task: str, model: Brought, shape: Any, reference: Tensor) -> CheckedModel:
    if difference := shape_difference(model.shape, shape):
        return CheckedModel(task, model, None, "other shape", difference)
    cosine = min(float(torch.cosine_similarity(own, reference, dim=0)) for own in model.vectors)
    verdict: Verdict = "related" if cosine >= RELATED else "unrelated"
    if DOUBTFUL <= cosine < RELATED:
        verdict = "doubtful"
    return CheckedModel(task, model, cosine, verdict)


def shape_difference(found: Any, expected: Any) -> str:
    """Say in what two shapes differ: "depth 5, expected 3, ..."; "" if they are one."""
    return ", ".join(
        f"{key} {getattr(found, key)}, expected {value}"
        for key, value in expected.model_dump(exclude={"heads"}).items()
        if getattr(found, key) != value
    )


def require_related(checked: list[CheckedModel]) -> list[str]:
    """Check that all models can be merged.

    Returns:
        Warnings, one per doubtful model.

    Raises:
        ConfigError: a model is unrelated to the base, or has another shape.
    """
    warnings = []
    for found in checked:
        path = f"{found.task}: got {found.model.path}"
        instead = "serve it beside the others with --method separate"
        if found.cosine is None:
            raise ConfigError(f"{path} with {found.difference}, that of the base; {instead}")
        weights = f"whose weights have a cosine of {found.cosine:.2f} with the base"
        if found.verdict == "unrelated":
            expected = f"expected {RELATED} or more: it was not fine-tuned from there"
            raise ConfigError(f"{path}, {weights}, {expected}; {instead}")
        if found.verdict == "doubtful":
            warnings.append(f"{path}, {weights}, fewer than {RELATED}: merging may cost much")
    return warnings


def check_record(found: CheckedModel) -> dict[str, Any]:
    """Return what was found about one model as JSON can hold it."""
    model, (network, features) = found.model, found.model.about
    return {
        "task": found.task,
        "networks": len(model.vectors),
        "network": network,
        "shape": model.shape.model_dump(mode="json"),
        "features": features,
        "cosine": found.cosine,
        "target": model.target,
        "labels": list(model.labels),
        "verdict": found.verdict,
        "difference": found.difference,
        "notes": list(model.notes),
    }


def check_table(checked: list[CheckedModel]) -> list[list[str]]:
    """Tabulate the models: task, networks, shape, features, cosine, outputs, verdict."""
    rows = [["task", "networks", "network", "features", "cosine", "outputs", "verdict"]]
    for found in checked:
        model, (network, features) = found.model, found.model.about
        names = ", ".join(model.labels[:3]) + (", ..." if len(model.labels) > 3 else "")
        rows.append(
            [
                found.task,
                str(len(model.vectors)),
                network,
                features,
                "-" if found.cosine is None else f"{found.cosine:.3f}",
                f"{len(model.labels)} {model.target}: {names}",
                found.verdict + (f" ({found.difference})" if found.difference else ""),
            ]
        )
    return rows
