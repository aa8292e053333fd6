"""Hyper-parameters of chemprop's models: our shapes from them, and refusals of what we lack."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from merging.imports.safe_reading import Inert, shown
from models.errors import CheckpointError
from models.networks.dmpnn import Activation, Aggregation, DmpnnConfig, DmpnnHead, Messages
from models.task import LabelTarget

_MESSAGES: dict[str, Messages] = {"BondMessagePassing": "bonds", "AtomMessagePassing": "atoms"}
_AGGREGATIONS: dict[str, Aggregation] = {
    "MeanAggregation": "mean",
    "SumAggregation": "sum",
    "NormAggregation": "norm",
}
_SLOPE = 0.1
"""Of chemprop's leaky ReLU; torch's default is another."""
_PARAMETERS = {"LeakyReLU": ("negative_slope", _SLOPE), "ELU": ("alpha", 1.0)}
"""By activation: its number, and the only value that networks of ours have."""
_MOST_WIDTH, _MOST_DEPTH, _MOST_LAYERS = 65536, 1000, 100
_REASONS = {
    "MABAtomMessagePassing": "models of atoms' and bonds' properties cannot be imported",
    "MABBondMessagePassing": "models of atoms' and bonds' properties cannot be imported",
    "MulticomponentMessagePassing": "models of several molecules cannot be imported",
    "AttentiveAggregation": "attention over atoms cannot be imported",
    "SpectralFFN": "spectra cannot be imported",
    "BinaryDirichletFFN": "its outputs become evidence, not log-odds",
    "MulticlassDirichletFFN": "its outputs become evidence, not log-odds",
}
"""Why classes that chemprop has are refused."""


@dataclass(frozen=True)
class Outputs:
    """What a predictor of chemprop makes of its last layer.

    Attributes:
        target: kind of prediction.
        per_task: outputs of the network per predicted number; the first block of them is taken.
        averaged: whether the mean of the first two blocks is (the bounds of a quantile).
        note: sentence on what is left out; empty if nothing is.
    """

    target: LabelTarget
    per_task: int = 1
    averaged: bool = False
    note: str = ""


_OUTPUTS = {
    "RegressionFFN": Outputs("regression"),
    "MveFFN": Outputs(
        "regression", 2, note="MveFFN: the predicted mean is taken, its variance is left out."
    ),
    "EvidentialFFN": Outputs(
        "regression",
        4,
        note="EvidentialFFN: the predicted mean is taken, its evidence is left out.",
    ),
    "QuantileFFN": Outputs(
        "regression",
        2,
        averaged=True,
        note="QuantileFFN: the middle of the interval is taken, its width is left out.",
    ),
    "BinaryClassificationFFN": Outputs("multilabel"),
    "MulticlassClassificationFFN": Outputs("multiclass"),
}


@dataclass(frozen=True)
class Predictor:
    """Shape of a predictor.

    Attributes:
        head: our shape, without `batch_norm`.
        outputs: see `Outputs`.
        tasks: number T of predicted columns.
        classes: number of classes of a multiclass column; None for other targets.
        unscaled: whether outputs are brought back to the units of the labels.
    """

    head: DmpnnHead
    outputs: Outputs
    tasks: int
    classes: int | None
    unscaled: bool

    @property
    def width(self) -> int:
        """Number of outputs of the last layer."""
        return self.tasks * (self.classes or self.outputs.per_task)


@dataclass(frozen=True)
class Section:
    """A group of hyper-parameters of a file, for errors that name both.

    Attributes:
        file: the file.
        name: name of the group; empty for the whole.
        values: by key.
    """

    file: Path
    name: str
    values: Mapping[Any, Any]

    def error(self, key: str, got: str, expected: str) -> CheckpointError:
        """Return an error about a key."""
        place = f"{self.name}.{key}" if self.name else key
        return CheckpointError(f"{self.file}: {place}: got {got}, expected {expected}")

    def section(self, key: str) -> "Section":
        """Return a group within. Raises CheckpointError: it is none."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.error(key, shown(value), "hyper-parameters of a chemprop 2 model")
        return Section(self.file, key, value)

    def count(self, key: str, default: int, most: int, least: int = 1) -> int:
        """Return a whole number. Raises CheckpointError: it is none, or out of range."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, shown(value), f"a whole number from {least} to {most}")
        return value

    def flag(self, key: str) -> bool:
        """Return a truth value, False where there is none. Raises CheckpointError: it is none."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, shown(value), "true or false")
        return value

    def choice(self, key: str, known: Mapping[str, Any]) -> str:
        """Return the name of a class among those known. Raises CheckpointError: it is another."""
        value = self.values.get(key)
        name = value.__name__ if isinstance(value, type) else ""
        if name not in known:
            reason = f" ({_REASONS[name]})" if name in _REASONS else ""
            raise self.error(key, f"{shown(value)}{reason}", " or ".join(known))
        return name

    def refuse(self, *keys: str, because: str) -> None:
        """Raise CheckpointError if one of the keys has a value that does something."""
        for key in keys:
            value = self.values.get(key)
            if value is not None and value is not False and value != 0 and not _is_identity(value):
                raise self.error(key, shown(value), f"none: {because}")


def network_shape(message_passing: Section, aggregation: Section | None) -> DmpnnConfig:
    """Read the shape of message passing and aggregation; missing values are chemprop's defaults.

    Args:
        message_passing: its hyper-parameters.
        aggregation: its hyper-parameters; None for a bare message passing, whose atoms are
            averaged, as `chemprop train --from-foundation CHEMELEON` does.

    Raises:
        CheckpointError: a class that cannot be imported, or a value that is none.
    """
    block = message_passing
    if "blocks" in block.values:
        reason = _REASONS["MulticomponentMessagePassing"]
        raise block.error("cls", f"MulticomponentMessagePassing ({reason})", " or ".join(_MESSAGES))
    bare = aggregation is None and "cls" not in block.values
    messages = "bonds" if bare else _MESSAGES[block.choice("cls", _MESSAGES)]
    extra = "extra features of atoms are not in the file"
    block.refuse("d_vd", "V_d_transform", "graph_transform", because=extra)
    config = DmpnnConfig(
        atom_dim=block.count("d_v", 72, _MOST_WIDTH),
        bond_dim=block.count("d_e", 14, _MOST_WIDTH),
        hidden_dim=block.count("d_h", 300, _MOST_WIDTH),
        depth=block.count("depth", 3, _MOST_DEPTH),
        bias=block.flag("bias"),
        activation=_activation(block),
        messages=messages,
        undirected=block.flag("undirected"),
    )
    if aggregation is None:
        return config
    name = _AGGREGATIONS[aggregation.choice("cls", _AGGREGATIONS)]
    constant = _norm(aggregation) if name == "norm" else config.norm
    return config.model_copy(update={"aggregation": name, "norm": constant})


def predictor_shape(section: Section) -> Predictor:
    """Read the shape of a predictor; missing values are chemprop's defaults.

    Raises:
        CheckpointError: a class that cannot be imported, or a value that is none.
    """
    outputs = _OUTPUTS[section.choice("cls", _OUTPUTS)]
    tasks = section.count("n_tasks", 1, _MOST_WIDTH)
    classes = None
    if outputs.target == "multiclass":
        classes = section.count("n_classes", 0, _MOST_WIDTH, least=2)
        if tasks != 1:
            expected = "1: a task of ours has one column of classes"
            raise section.error("n_tasks", str(tasks), expected)
    unscaled = section.values.get("output_transform") is not None
    if outputs.target != "regression":
        section.refuse("output_transform", because="only a regression has units")
        unscaled = False
    head = DmpnnHead(hidden=_hidden(section), activation=_activation(section))
    return Predictor(head, outputs, tasks, classes, unscaled)


def _hidden(section: Section) -> tuple[int, ...]:
    widths = section.values.get("hidden_dim", 300)
    if not isinstance(widths, list | tuple):
        number = section.count("n_layers", 1, _MOST_LAYERS, least=0)
        return (section.count("hidden_dim", 300, _MOST_WIDTH),) * number
    if len(widths) > _MOST_LAYERS:
        raise section.error("hidden_dim", f"{len(widths)} layers", f"at most {_MOST_LAYERS}")
    named = {f"hidden_dim[{k}]": width for k, width in enumerate(widths)}
    layers = Section(section.file, section.name, named)
    return tuple(layers.count(key, 0, _MOST_WIDTH) for key in named)


def _activation(section: Section) -> Activation:
    """Read an activation: a name, chemprop's `Activation`, or a module of torch."""
    value = section.values.get("activation", "relu")
    name = type(value).__name__ if isinstance(value, Inert) else value
    if name == "Activation":
        name = value.arguments[0] if len(value.arguments) == 1 else None
    known = get_args(Activation)
    if not isinstance(name, str) or name.lower() not in known:
        raise section.error("activation", shown(name), f"one of {', '.join(known)}")
    if isinstance(value, Inert) and name in _PARAMETERS:
        key, expected = _PARAMETERS[name]
        got = vars(value).get(key)
        if not isinstance(got, int | float) or got != expected:
            raise section.error("activation", f"{name} with {key} {shown(got)}", str(expected))
    return cast(Activation, name.lower())


def _norm(aggregation: Section) -> float:
    value = aggregation.values.get("norm", 100.0)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf or value > 10**12:
        raise aggregation.error("norm", shown(value), "a positive number")
    return float(value)


def _is_identity(value: object) -> bool:
    """Return whether an object of a file changes nothing: an Identity, or chemprop's transform of
    graphs by two of them, which every command writes."""
    if not isinstance(value, Inert):
        return False
    modules = vars(value).get("_modules")
    if type(value).__name__ == "GraphTransform" and isinstance(modules, dict) and modules:
        return all(type(module).__name__ == "Identity" for module in modules.values())
    return type(value).__name__ == "Identity"
