"""Tensors of chemprop's models: their names and shapes, checks, and our names for them."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.imports.chemprop_layout import Predictor, Section
from merging.imports.safe_reading import shown
from merging.mergers.task_vector import State
from models.errors import CheckpointError
from models.networks.dmpnn import DmpnnConfig, DmpnnHead

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Our name and the shape of tensors, by their names in a file."""
PREFIX = "message_passing."
_TRAINING_ONLY = ("metrics.", "predictor.criterion.")
_MOST_NAMED = 5


def network_layout(shape: DmpnnConfig, prefix: str = PREFIX) -> Layout:
    """Name the tensors of message passing. The names are the file's without its prefix."""
    hidden, atom, bond = shape.hidden_dim, shape.atom_dim, shape.bond_dim
    on_bonds = shape.messages == "bonds"
    shapes = {
        "W_i.weight": (hidden, atom + bond if on_bonds else atom),
        "W_h.weight": (hidden, hidden if on_bonds else hidden + bond),
        "W_o.weight": (hidden, atom + hidden),
        "W_o.bias": (hidden,),
    }
    if shape.bias:
        shapes |= {"W_i.bias": (hidden,), "W_h.bias": (hidden,)}
    layout: Layout = {f"{prefix}{name}": (name, sizes) for name, sizes in shapes.items()}
    if shape.activation == "prelu":
        layout[f"{prefix}tau.weight"] = "activation.weight", (1,)
    return layout


def head_layout(width: int, head: DmpnnHead, predictor: Predictor) -> Layout:
    """Name the tensors of a head.

    Args:
        width: of the molecule's vector.
        head: its shape.
        predictor: number of outputs, and whether they are unscaled.
    """
    layout: Layout = {}
    if head.batch_norm:
        names = "weight", "bias", "running_mean", "running_var"
        layout = {f"bn.{name}": (f"batch_norm.{name}", (width,)) for name in names}
    widths = width, *head.hidden, predictor.width
    for i, (columns, rows) in enumerate(pairwise(widths)):
        block = f"predictor.ffn.{i}.{2 if i else 0}"
        layout[f"{block}.weight"] = f"layers.{i}.weight", (rows, columns)
        layout[f"{block}.bias"] = f"layers.{i}.bias", (rows,)
        if i and head.activation == "prelu":  # one module, listed once per layer
            layout[f"predictor.ffn.{i}.0.weight"] = "activation.weight", (1,)
    if predictor.unscaled:
        for name in ("mean", "scale"):
            layout[f"predictor.output_transform.{name}"] = name, (1, predictor.tasks)
    return layout


def check_inputs(state: dict[str, Any], shape: DmpnnConfig, predictor: Section) -> None:
    """Raise CheckpointError if a predictor takes more than a molecule's vector."""
    weight, stated = state.get("predictor.ffn.0.0.weight"), predictor.values.get("input_dim", 0)
    widths = [stated] if isinstance(stated, int) else []
    if isinstance(weight, Tensor) and weight.dim() == 2:
        widths.append(weight.shape[1])
    if widths and max(widths) > shape.hidden_dim:
        because = "extra descriptors of molecules are not in the file"
        raise predictor.error(
            "input_dim", shown(max(widths)), f"{shape.hidden_dim}, the molecule's vector: {because}"
        )


def unused_names(state: Iterable[str], batch_norm: bool) -> set[str]:
    """Name the tensors of a model that its predictions do not depend on: weights of losses and
    metrics, and a counter of batches."""
    counter = ("bn.num_batches_tracked",) if batch_norm else ()
    return {key for key in state if key.startswith(_TRAINING_ONLY) or key in counter}


def checked(
    file: Path, state: dict[str, Any], layout: Layout, unused: set[str]
) -> tuple[State, tuple[str, ...]]:
    """Check that a state dict has exactly the tensors of a layout.

    Args:
        file: where it is from.
        state: what the file has.
        layout: what is expected.
        unused: names that may be there.

    Returns:
        Copies as float32 by the file's names, and sentences on what was converted.

    Raises:
        CheckpointError: names the first tensors that are missing, surplus, of another shape or
            kind, or not finite.
    """
    problems = [
        f"got no {key}, expected {sizes}" for key, (_, sizes) in layout.items() if key not in state
    ]
    problems += [
        f"got {shown(key)}, expected no such tensor"
        for key in state
        if key not in layout and key not in unused
    ]
    found, converted = {}, set()
    for key in layout.keys() & state.keys():
        problem = _problem(state[key], layout[key][1])
        if problem:
            problems.append(f"{key}: {problem}")
            continue
        value = state[key].detach()
        if value.dtype != torch.float32:
            converted.add(str(value.dtype).removeprefix("torch."))
        found[key] = value.to(torch.float32, copy=True).contiguous()
        if not bool(found[key].isfinite().all()):
            problems.append(f"{key}: got numbers that are not finite in float32, expected finite")
    if problems:
        more = len(problems) - _MOST_NAMED
        rest = f"; and {more} more" if more > 0 else ""
        raise CheckpointError(f"{file}: {'; '.join(sorted(problems)[:_MOST_NAMED])}{rest}")
    note = f"Weights of {' and '.join(sorted(converted))} are converted to float32."
    return found, (note,) if converted else ()


def renamed(tensors: State, layout: Layout) -> State:
    """Return the tensors of a layout under our names."""
    return {name: tensors[key] for key, (name, _) in layout.items()}


def folded(file: Path, state: State, predictor: Predictor) -> State:
    """Reduce the last layer of a head to one output per predicted number, in the units of the
    labels: (W z + b) * scale + mean, computed in float64.

    Raises:
        CheckpointError: the products are not finite in float32.
    """
    mean, scale = (state.pop(name, None) for name in ("mean", "scale"))
    last = f"layers.{len(predictor.head.hidden)}."
    rows, blocks = predictor.width // predictor.outputs.per_task, predictor.outputs.per_task
    if blocks == 1 and mean is None:
        return state
    weight, bias = (
        _taken(state[last + name].double(), rows, predictor.outputs.averaged)
        for name in ("weight", "bias")
    )
    if mean is not None and scale is not None:
        weight, bias = (
            weight * scale[0, :, None].double(),
            bias * scale[0].double() + mean[0].double(),
        )
    state |= {f"{last}weight": weight.float(), f"{last}bias": bias.float()}
    if not all(bool(state[last + name].isfinite().all()) for name in ("weight", "bias")):
        raise CheckpointError(
            f"{file}: got outputs whose scale is not finite in float32, expected finite ones"
        )
    return state


def _taken(values: Tensor, rows: int, averaged: bool) -> Tensor:
    return (values[:rows] + values[rows : 2 * rows]) / 2 if averaged else values[:rows]


def _problem(value: object, sizes: tuple[int, ...]) -> str:
    """Return what is wrong with a tensor of a file; empty if nothing is."""
    if not isinstance(value, Tensor):
        return f"got {shown(value)}, expected a tensor"
    if tuple(value.shape) != sizes:
        return f"got shape {tuple(value.shape)}, expected {sizes}"
    if not value.is_floating_point():
        return f"got {value.dtype}, expected floating-point numbers"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "got a view that repeats numbers, expected every number to be stored"
    return ""
