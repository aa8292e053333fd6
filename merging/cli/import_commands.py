"""Commands of `gmerging` on models that were trained elsewhere. Their docstrings are the help
texts."""

import argparse
from collections.abc import Sequence
from typing import Any

import yaml

from merging.imports.weights import check_output, merge_weights, write_merged
from merging.mergers.registry import MERGERS
from models.errors import ConfigError


def merge_state_dicts(arguments: argparse.Namespace) -> None:
    r"""Merge the weights of any networks that were fine-tuned from one base, without data; write
    one state dict.

    Examples:
        gmerging merge-weights a.pt b.pt --base base.pt --method ties --options density=0.2 \
            --output merged.safetensors
    """
    inputs = [*arguments.models, arguments.base]
    check_output(arguments.output, inputs)
    options = parse_options(arguments.options or ())
    files = arguments.models, arguments.base
    merged = merge_weights(*files, arguments.method, options, arguments.seed)
    write_merged(merged, arguments.output, inputs)
    paper, chosen = MERGERS[arguments.method].paper, merged.record["options"] or "as published"
    print(f"merged {len(arguments.models)} models by {arguments.method} ({paper}), {chosen}")
    if kept := merged.from_base:
        named = ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "")
        print(f"taken from the base: {len(kept)} counters and running statistics ({named})")
    print(f"wrote {arguments.output}: {len(merged.tensors)} tensors")


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Read words such as `scaling=0.3` as options; values are YAML. Raises ConfigError: a word is
    none, or its name comes twice."""
    options: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--options: got {word!a}, expected name=value")
        if name in options:
            raise ConfigError(f"--options: got {name} twice, expected it once")
        try:
            options[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--options: got {word!a}, expected a value in YAML") from error
    return options
