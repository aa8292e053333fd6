"""The one table of mergers. Nothing registers itself on import."""

from dataclasses import dataclass

from merging.mergers.arithmetic import task_arithmetic, weight_average
from merging.mergers.contract import MergeInputs, Merger, MergeResult
from models.errors import ConfigError, InvalidInputError


@dataclass(frozen=True)
class MergerSpec:
    """A row of the table: the name, the paper it is from, and the function."""

    name: str
    paper: str
    merger: Merger


MERGERS = {
    spec.name: spec
    for spec in (
        MergerSpec("weight_average", "Wortsman et al. 2022, Model soups, arXiv:2203.05482", weight_average),
        MergerSpec("task_arithmetic", "Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089", task_arithmetic),
    )
}


def merge(method: str, inputs: MergeInputs) -> MergeResult:
    """Run a merger by name.

    Raises:
        ConfigError: no merger has that name.
        InvalidInputError: there is nothing to merge.
        CheckpointError: the backbones are not of one shape.
    """
    if method not in MERGERS:
        raise ConfigError(f"got merge method {method!r}, expected one of {', '.join(MERGERS)}")
    if not inputs.finetuned:
        raise InvalidInputError("finetuned: got no model, expected at least one")
    return MERGERS[method].merger(inputs)
