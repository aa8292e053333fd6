"""Mergers in weight space for the state dicts of any networks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merging.data.files import sha256, write_tensors
from merging.imports.state_file import read_state
from merging.mergers.base import MergeInputs
from merging.mergers.registry import MERGERS, merge, merger_spec
from merging.mergers.task_vector import State, is_merged
from models.errors import CheckpointError, ConfigError
from models.validation import one_of

_MOST_NAMED = 5
_NO_MERGED_NETWORK = {"pretrained", "emr", "residual"}
"""Mergers whose result is the base itself, or a network per model."""


@dataclass(frozen=True, eq=False)
class MergedWeights:
    """The result of a merge in weight space.

    Attributes:
        tensors: by name, of the base's types.
        from_base: names of the tensors that are the base's: counters and running statistics.
        record: method, options, seed, and files with their SHA-256.
    """

    tensors: State
    from_base: tuple[str, ...]
    record: dict[str, Any]


def weight_mergers() -> tuple[str, ...]:
    """Name the mergers that make one network of any kind from weights alone."""
    return tuple(
        spec.name
        for spec in MERGERS.values()
        if not spec.calibrated and not spec.kinds and spec.name not in _NO_MERGED_NETWORK
    )


def merge_weights(
    files: Sequence[Path],
    base: Path,
    method: str,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> MergedWeights:
    """Merge state dicts that were fine-tuned from one base.

    Args:
        files: at least two (`read_state`).
        base: the state dict that they started from, with the same names and shapes.
        method: name of a merger that needs no data.
        options: its options by name.
        seed: of a merger that draws (DARE).

    Raises:
        ConfigError: there is no such merger or option, or it needs data or makes a network per
            model; or there are fewer than two models.
        CheckpointError: a file cannot be read, or differs from the base in names or shapes, or
            has numbers that are not finite.
    """
    known = weight_mergers()
    if method not in known:
        expected = f"expected {one_of(method, known)}, which make one network from weights alone"
        raise ConfigError(f"got merge method {method!r}, {expected}")
    chosen = merger_spec(method).parse(options or {}).model_dump(mode="json")
    if len(files) < 2:
        raise ConfigError(f"got {len(files)} models to merge, expected at least two")
    pretrained = read_state(base)
    _check_numbers(base, pretrained)
    finetuned = {str(k): _read_like(file, base, pretrained) for k, file in enumerate(files)}
    inputs = MergeInputs(_widened(pretrained), finetuned, config=None, seed=seed)
    result = merge(method, inputs, chosen)
    tensors = {
        key: value.to(pretrained[key].dtype).clone() for key, value in result.backbone.items()
    }
    _check_numbers(base, tensors, "the merged network")
    kept = tuple(key for key, value in tensors.items() if not is_merged(key, value))
    record = {
        "method": method,
        "options": chosen,
        "seed": seed,
        "base": _origin(base),
        "models": [_origin(file) for file in files],
        "from_base": list(kept),
    }
    return MergedWeights(tensors, kept, record)


def write_merged(merged: MergedWeights, output: Path, inputs: Sequence[Path]) -> None:
    """Write merged weights as a safetensors file whose metadata has the record, atomically.

    Args:
        merged: what to write.
        output: the file, whose name ends with `.safetensors`.
        inputs: files that are not to be replaced.

    Raises:
        ConfigError: the name ends otherwise, or the file is an input.
    """
    check_output(output, inputs)
    write_tensors(output, merged.tensors, {"format": "pt", "record": json.dumps(merged.record)})


def check_output(output: Path, inputs: Sequence[Path]) -> None:
    """Raise ConfigError if merged weights cannot be written to a file (`write_merged`)."""
    if output.suffix != ".safetensors":
        raise ConfigError(f"output: got {output}, expected a name that ends with .safetensors")
    if output.resolve() in {path.resolve() for path in inputs}:
        raise ConfigError(f"output: got {output}, which is an input, expected another file")


def _origin(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256(path)}


def _read_like(file: Path, base: Path, pretrained: State) -> State:
    """Read a state dict of the base's names and shapes."""
    state = read_state(file)
    problems = [f"no {key}" for key in pretrained if key not in state]
    problems += [f"{key}, which the base has not" for key in state if key not in pretrained]
    for key in pretrained.keys() & state.keys():
        expected, got = pretrained[key], state[key]
        if got.shape != expected.shape:
            sizes = f"{tuple(got.shape)}, not {tuple(expected.shape)}"
            problems.append(f"{key} of shape {sizes}")
        elif got.is_floating_point() != expected.is_floating_point():
            problems.append(f"{key} of {got.dtype}, not {expected.dtype}")
    if problems:
        more = len(problems) - _MOST_NAMED
        rest = f", and {more} more differences" if more > 0 else ""
        named = "; ".join(sorted(problems)[:_MOST_NAMED])
        raise CheckpointError(f"{file}: got {named}{rest}, expected the names and shapes of {base}")
    _check_numbers(file, state)
    return _widened(state)


def _check_numbers(path: Path, state: State, what: str = "") -> None:
    for key, value in state.items():
        if value.is_complex():
            raise CheckpointError(f"{path}: got complex numbers in {key}, expected real ones")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            name = f"{what}: {key}" if what else f"{path}: {key}"
            raise CheckpointError(f"{name}: got numbers that are not finite, expected finite ones")


def _widened(state: State) -> State:
    """Return half precision as float32, so that sums of small differences are not lost."""
    half = torch.float16, torch.bfloat16
    return {key: value.float() if value.dtype in half else value for key, value in state.items()}
