"""Whether models that somebody brought can be merged: were they fine-tuned from one network?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from merging.imports.chemprop import Ensemble, Foundation
from models.errors import ConfigError
from models.networks.dmpnn import DmpnnConfig

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
        ensemble: the model.
        cosine: the least cosine of a member's weights with the base; None for another shape.
        verdict: see `Verdict`.
        difference: what differs from the shape of the base; empty if nothing does.
    """

    task: str
    ensemble: Ensemble
    cosine: float | None
    verdict: Verdict
    difference: str = ""


def check_models(
    models: Mapping[str, Ensemble], base: Foundation | None = None
) -> list[CheckedModel]:
    """Compare models with the network that they were fine-tuned from.

    Args:
        models: by task.
        base: that network; None compares with the first model, which is then related to itself.
    """
    first = next(iter(models.values())).members[0]
    shape = first.shape if base is None else base.shape
    reference = flattened(first.network if base is None else base.network)
    return [_checked(task, ensemble, shape, reference) for task, ensemble in models.items()]


def _checked(task: str, ensemble: Ensemble, shape: DmpnnConfig, reference: Tensor) -> CheckedModel:
    if difference := shape_difference(ensemble.shape, shape):
        return CheckedModel(task, ensemble, None, "other shape", difference)
    cosines = (
        float(torch.cosine_similarity(flattened(member.network), reference, dim=0))
        for member in ensemble.members
    )
    cosine = min(cosines)
    verdict: Verdict = "related" if cosine >= RELATED else "unrelated"
    if DOUBTFUL <= cosine < RELATED:
        verdict = "doubtful"
    return CheckedModel(task, ensemble, cosine, verdict)


def shape_difference(found: DmpnnConfig, expected: DmpnnConfig) -> str:
    """Say in what two shapes differ: "depth 5, expected 3, ..."; "" if they are one."""
    return ", ".join(
        f"{key} {getattr(found, key)}, expected {value}"
        for key, value in expected.model_dump(exclude={"heads"}).items()
        if getattr(found, key) != value
    )


def flattened(network: Mapping[str, Tensor]) -> Tensor:
    """Join the weights W_i, W_h and W_o to one vector, in float64."""
    return torch.cat(
        [network[f"{name}.weight"].double().flatten() for name in ("W_i", "W_h", "W_o")]
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
        path = f"{found.task}: got {found.ensemble.path}"
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
    ensemble, shape = found.ensemble, found.ensemble.shape
    return {
        "task": found.task,
        "networks": len(ensemble.members),
        "shape": shape.model_dump(mode="json"),
        "features": ensemble.options.model_dump(mode="json"),
        "cosine": found.cosine,
        "target": ensemble.target,
        "labels": list(ensemble.labels),
        "verdict": found.verdict,
        "difference": found.difference,
        "notes": list(ensemble.notes),
    }


def check_table(checked: list[CheckedModel]) -> list[list[str]]:
    """Tabulate the models: task, networks, shape, features, cosine, outputs, verdict."""
    rows = [["task", "networks", "message passing", "features", "cosine", "outputs", "verdict"]]
    for found in checked:
        ensemble, shape = found.ensemble, found.ensemble.shape
        size = f"{shape.messages}, depth {shape.depth} x {shape.hidden_dim}, {shape.aggregation}"
        names = ", ".join(ensemble.labels[:3]) + (", ..." if len(ensemble.labels) > 3 else "")
        rows.append(
            [
                found.task,
                str(len(ensemble.members)),
                size,
                f"{ensemble.options.mode} ({shape.atom_dim}, {shape.bond_dim})",
                "-" if found.cosine is None else f"{found.cosine:.3f}",
                f"{len(ensemble.labels)} {ensemble.target}: {names}",
                found.verdict + (f" ({found.difference})" if found.difference else ""),
            ]
        )
    return rows
