"""Models of chemprop 2, read without chemprop.

Source: Heid et al. 2024, "Chemprop", doi:10.1021/acs.jcim.3c01250; the layout is that of versions
2.0 to 2.3.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.data.files import sha256
from merging.imports.chemprop_layout import Predictor, Section, network_shape, predictor_shape
from merging.imports.chemprop_tensors import (
    PREFIX,
    check_inputs,
    checked,
    folded,
    head_layout,
    network_layout,
    renamed,
    unused_names,
)
from merging.imports.run_folder import featurizer_options, model_files
from merging.imports.safe_reading import read_checkpoint, shown
from merging.mergers.task_vector import State
from models.data.dmpnn_features import FeaturizerOptions
from models.errors import CheckpointError
from models.networks.dmpnn import DmpnnConfig, DmpnnHead
from models.task import LabelTarget


@dataclass(frozen=True, eq=False)
class ChempropModel:
    """One network of chemprop.

    Attributes:
        path: the file.
        sha256: of the file.
        shape: message passing and aggregation; it has no heads.
        head: shape of the head, with one member.
        target: kind of prediction.
        labels: names of the head's outputs: columns, or names of classes.
        classes: number of classes of a multiclass model; None for others.
        options: how molecules are featurised.
        network: `W_i.weight`, `W_h.weight`, `W_o.weight`, `W_o.bias`; with `bias` also `W_i.bias`
            and `W_h.bias`; for PReLU `activation.weight`, (1,). float32, shapes as chemprop's.
        head_state: `batch_norm.weight`, `.bias`, `.running_mean` and `.running_var` if there is
            one; `layers.{i}.weight` and `.bias`; for PReLU `activation.weight`, (1,). The last
            layer of a regression gives the units of the labels.
        notes: sentences for the user on what was assumed or left out.
    """

    path: Path
    sha256: str
    shape: DmpnnConfig
    head: DmpnnHead
    target: LabelTarget
    labels: tuple[str, ...]
    classes: int | None
    options: FeaturizerOptions
    network: State
    head_state: State
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The members of one model, whose mean is its prediction; they differ in weights alone.

    Attributes:
        path: the file or folder that was asked for.
        members: in the order of their files' numbers.
    """

    path: Path
    members: tuple[ChempropModel, ...]

    @property
    def shape(self) -> DmpnnConfig:
        """Shape of every member's message passing and aggregation."""
        return self.members[0].shape

    @property
    def head(self) -> DmpnnHead:
        """Shape of the head of all members together."""
        return self.members[0].head.model_copy(update={"members": len(self.members)})

    @property
    def target(self) -> LabelTarget:
        """Kind of prediction."""
        return self.members[0].target

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the head's outputs."""
        return self.members[0].labels

    @property
    def options(self) -> FeaturizerOptions:
        """How molecules are featurised."""
        return self.members[0].options

    @property
    def notes(self) -> tuple[str, ...]:
        """The members' notes, each once."""
        return tuple(dict.fromkeys(note for member in self.members for note in member.notes))

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of its files, by path."""
        return {str(member.path): member.sha256 for member in self.members}

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """The weights of every member, see `flattened`."""
        return tuple(flattened(member.network) for member in self.members)

    @property
    def about(self) -> tuple[str, str]:
        """Words for the message passing, and for the features."""
        shape = self.shape
        network = f"{shape.messages}, depth {shape.depth} x {shape.hidden_dim}, {shape.aggregation}"
        return network, f"{self.options.mode} ({shape.atom_dim}, {shape.bond_dim})"


@dataclass(frozen=True, eq=False)
class Foundation:
    """The network that models were fine-tuned from. Attributes: as in `ChempropModel`."""

    path: Path
    sha256: str
    shape: DmpnnConfig
    options: FeaturizerOptions
    network: State
    notes: tuple[str, ...]

    @property
    def vector(self) -> Tensor:
        """Its weights, see `flattened`."""
        return flattened(self.network)


def flattened(network: Mapping[str, Tensor]) -> Tensor:
    """Join the weights W_i, W_h and W_o to one vector, in float64."""
    return torch.cat(
        [network[f"{name}.weight"].double().flatten() for name in ("W_i", "W_h", "W_o")]
    )


def read_chemprop(
    path: Path, labels: Sequence[str] | None = None, options: FeaturizerOptions | None = None
) -> Ensemble:
    """Read a model of chemprop 2 with all its members. Nothing in its files is executed.

    Args:
        path: a `.pt`, a Lightning `.ckpt`, or a folder (see `model_files`).
        labels: names of the predicted columns, or of the classes of a multiclass model; needed
            where the file has none, as a `.ckpt`.
        options: how molecules are featurised; by default as `config.toml` beside the model says,
            or as chemprop does by default.

    Raises:
        CheckpointError: a file cannot be read safely, holds what cannot be imported, or has
            missing, surplus, misshapen or non-finite tensors; members differ.
    """
    members = tuple(_read_model(file, labels, options) for file in model_files(path))
    first, *others = members
    for other in others:
        _check_alike(first, other)
    return Ensemble(path, members)


def read_foundation(path: Path, options: FeaturizerOptions | None = None) -> Foundation:
    """Read what models were fine-tuned from: the message passing and aggregation of a whole
    model, or a bare message passing such as CheMeleon's, whose atoms are averaged.

    Args:
        path: a file, or a run folder of one model.
        options: see `read_chemprop`.

    Raises:
        CheckpointError: as `read_chemprop`, or there are several models.
    """
    files = model_files(path)
    if len(files) > 1:
        raise CheckpointError(f"{path}: got {len(files)} models, expected one to be the base")
    (file,) = files
    values, state, _ = _content(file)
    bare = _is_bare(values)
    block = values if bare else values.section("message_passing")
    shape = network_shape(block, None if bare else values.section("agg"))
    layout = network_layout(shape, "" if bare else PREFIX)
    unused = set() if bare else {key for key in state if not key.startswith(PREFIX)}
    tensors, converted = checked(file, state, layout, unused)
    found, assumed = featurizer_options(file, (shape.atom_dim, shape.bond_dim), options)
    averaged = "The base has no aggregation: atoms are averaged, as chemprop does with CheMeleon."
    notes = *converted, *assumed, *((averaged,) if bare else ())
    return Foundation(file, sha256(file), shape, found, renamed(tensors, layout), notes)


def _read_model(
    file: Path, labels: Sequence[str] | None, options: FeaturizerOptions | None
) -> ChempropModel:
    values, state, columns = _content(file)
    _check_molecules(values)
    shape = network_shape(values.section("message_passing"), values.section("agg"))
    predictor = predictor_shape(values.section("predictor"))
    values.refuse("X_d_transform", because="extra descriptors of molecules are not in the file")
    check_inputs(state, shape, values.section("predictor"))
    head = predictor.head.model_copy(update={"batch_norm": values.flag("batch_norm")})
    of_network, of_head = network_layout(shape), head_layout(shape.hidden_dim, head, predictor)
    unused = unused_names(state, head.batch_norm)
    tensors, converted = checked(file, state, {**of_network, **of_head}, unused)
    named, naming = _labels(file, predictor, columns, labels)
    found, assumed = featurizer_options(file, (shape.atom_dim, shape.bond_dim), options)
    left_out = (predictor.outputs.note,) if predictor.outputs.note else ()
    return ChempropModel(
        path=file,
        sha256=sha256(file),
        shape=shape,
        head=head,
        target=predictor.outputs.target,
        labels=named,
        classes=predictor.classes,
        options=found,
        network=renamed(tensors, of_network),
        head_state=folded(file, renamed(tensors, of_head), predictor),
        notes=(*left_out, *naming, *converted, *assumed),
    )


def _content(file: Path) -> tuple[Section, dict[str, Any], Any]:
    """Read the hyper-parameters, the state dict and the output columns of a file."""
    content = read_checkpoint(file)
    whole = Section(file, "", content)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        expected = "tensors by name, as chemprop 2 writes them"
        raise whole.error("state_dict", shown(state), expected)
    values = whole.section("hyper_parameters").values
    return Section(file, "", values), state, content.get("output_columns")


def _is_bare(values: Section) -> bool:
    return "message_passing" not in values.values and "d_h" in values.values


def _check_molecules(values: Section) -> None:
    """Raise CheckpointError if a model does not predict properties of molecules."""
    if _is_bare(values):
        got = "a message passing without a predictor"
        raise CheckpointError(f"{values.file}: got {got}, expected a whole model; it can be a base")
    if {"atom_predictor", "bond_predictor"} & values.values.keys():
        got = "a MolAtomBondMPNN, of the properties of atoms and bonds"
        raise CheckpointError(f"{values.file}: got {got}, expected an MPNN, of molecules")


def _labels(
    file: Path, predictor: Predictor, columns: Any, labels: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name the outputs of a head: by the user's labels, or the file's columns.

    Returns:
        The names, and sentences on how classes were named.
    """
    count, what = predictor.classes or predictor.tasks, "classes" if predictor.classes else "labels"
    notes: tuple[str, ...] = ()
    if labels is not None:
        names = list(labels)
    else:
        names = _columns(file, predictor.tasks, columns)
        if predictor.classes:
            names = [f"{names[0]}_{k}" for k in range(count)]
            notes = (f"The file names no classes: they are called {names[0]} to {names[-1]}.",)
    if len(names) != count:
        raise CheckpointError(f"{file}: got {len(names)} {what}, expected {count}")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        got = f"the {what} {', '.join(map(shown, twice[:3]))} twice"
        raise CheckpointError(f"{file}: got {got}, expected names that differ; give other labels")
    return tuple(names), notes


def _columns(file: Path, count: int, columns: Any) -> list[str]:
    if columns is None:
        expected = f"expected {count}; a .ckpt never has them: give labels"
        raise CheckpointError(f"{file}: got no output_columns, {expected}")
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        expected = "expected a list of names; give labels"
        raise CheckpointError(f"{file}: output_columns: got {shown(columns)}, {expected}")
    return columns


def _check_alike(first: ChempropModel, other: ChempropModel) -> None:
    """Raise CheckpointError if two members of an ensemble differ in more than weights."""
    for name, expected in _common(first).items():
        got = _common(other)[name]
        if got != expected:
            raise CheckpointError(
                f"{other.path}: {name}: got {got}, expected {expected} as in {first.path}: the"
                " members of an ensemble differ in weights alone"
            )


def _common(model: ChempropModel) -> dict[str, object]:
    """Return what the members of an ensemble have in common."""
    groups = {"shape": model.shape, "head": model.head, "options": model.options}
    fields = {f"{group}.{name}": value for group, made in groups.items() for name, value in made}
    others = {"target": model.target, "labels": model.labels, "classes": model.classes}
    return {**fields, **others}
