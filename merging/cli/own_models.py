"""The commands of `gmerging` for models that were trained elsewhere. Docstrings are the help
texts."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from merging.cli import options
from merging.cli.parser import Option, option
from merging.imports.check import check_models, check_record, check_table
from merging.imports.config import METHODS, ImportConfig, load_import_config, make_import_config
from merging.imports.formats import format_of
from merging.imports.importing import import_models
from models.errors import ConfigError
from models.networks.hu2020 import BackboneKind


def check(arguments: argparse.Namespace) -> None:
    """Read models that were trained elsewhere, and compare their weights with the network that they
    were fine-tuned from: which can be merged? Writes nothing.

    Examples:
        gmerging check-models herg=herg/model.pt logp=logp/ --base chemeleon.pt --json
    """
    config = _config(arguments)
    chosen = format_of(config)
    models, base = chosen.models(config), chosen.base(config)
    checked = check_models(models, base)
    if arguments.json:
        print(json.dumps([check_record(found) for found in checked], indent=2))
        return
    rows = check_table(checked)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    if base is None:
        print(f"no --base: cosines are with {next(iter(models))}")
    for task, model in models.items():
        for note in model.notes:
            print(f"{task}: {note}")


def bring(arguments: argparse.Namespace) -> None:
    r"""Read models that were trained elsewhere, merge them, and write the artifact that the service
    loads. No labels are needed.

    Examples:
        gmerging import-models herg=herg/model.pt logp=logp/ --base chemeleon.pt \
            --molecules library.smi --output my-models/mine
    """
    if arguments.threads < 1:
        raise ConfigError(f"--threads: got {arguments.threads}, expected at least 1")
    torch.set_num_threads(arguments.threads)
    config, folder = _config(arguments), arguments.output
    work = arguments.work / "imports" / config.release.name
    made = import_models(config, folder, work, arguments.replace)
    for note in made.notes:
        print(note)
    for task, difference in made.difference.items():
        print(f"{task}: differs from its own model by {difference:.3f} standard deviations")
    if config.method != "separate" and not made.difference:
        print("the difference from the own models was not measured: no --molecules")
    rank = f", rank {made.rank}" if made.rank else ""
    count = len(made.manifest.tasks)
    print(f"{made.manifest.name} {made.manifest.version}: {count} tasks{rank} in {folder}")


_BY_TASK: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "labels": ("TASK=NAME,NAME,...", lambda names: names.split(",")),
    "targets": ("TASK=TARGET", str),
}
"""Options with a value by task: the form of an entry, and how its value is read."""


def _config(arguments: argparse.Namespace) -> ImportConfig:
    """Return the request, from the YAML file or from the options."""
    given = {
        key: value
        for key, value in vars(arguments).items()
        if key in {*ImportConfig.model_fields, "name", "version", *_BY_TASK}
        and value not in (None, [], {})
    }
    if arguments.config is not None:
        if given:
            names = ", ".join(f"--{key.replace('_', '-')}" for key in given)
            raise ConfigError(f"got --config and {names}, expected one of them")
        return load_import_config(arguments.config)
    if not arguments.models:
        raise ConfigError("got no models, expected TASK=PATH ... or --config")
    models: dict[str, dict[str, Any]] = {}
    for text in given.pop("models"):
        task, path = _pair(text, "TASK=PATH")
        if task in models:
            raise ConfigError(f"{text}: got task {task} twice, expected different names")
        models[task] = {"path": path}
    for key, (form, read) in _BY_TASK.items():
        for text in given.pop(key, []):
            task, value = _pair(text, form)
            if task not in models:
                known = ", ".join(models)
                raise ConfigError(f"--{key} {text}: got task {task}, expected one of {known}")
            models[task]["target" if key == "targets" else key] = read(value)
    release = {key: given.pop(key) for key in ("name", "version") if key in given}
    values: Mapping[str, Any] = {"models": models, **given}
    if release:
        values = {**values, "release": {"name": "imported", **release}}
    return make_import_config(values, "options")


def _pair(text: str, form: str) -> tuple[str, str]:
    task, equals, rest = text.partition("=")
    if not (equals and task and rest):
        raise ConfigError(f"got {text!r}, expected {form}")
    return task, rest


def rows() -> Sequence[tuple[str, Any, tuple[Option, ...]]]:
    """The rows of these commands in the table of `merging.cli.table`."""
    models = option(
        "models",
        nargs="*",
        metavar="TASK=PATH",
        help="a model by task: a .pt or .ckpt file, or the folder of a run (its members are one"
        " model, their mean)",
    )
    config = option("--config", type=Path, help="a YAML file in place of the other options")
    base = option("--base", metavar="PATH", help="the network that the models were fine-tuned from")
    labels = option(
        "--labels",
        nargs="+",
        metavar="TASK=NAMES",
        help="names of the outputs, with commas, for files that do not say them",
    )
    targets = option(
        "--targets",
        nargs="+",
        metavar="TASK=TARGET",
        help="multilabel, multiclass or regression, for files that do not say it",
    )
    layers = option(
        "--layers",
        choices=get_args(BackboneKind),
        help="kind of layers of networks in Hu et al.'s layout, where files do not show it",
    )
    about = models, config, base, labels, targets, layers
    merging = (
        option(
            "--method",
            choices=METHODS,
            help="how they are merged (default: residual, which networks in Hu et al.'s layout do"
            " not have)",
        ),
        option("--rank", type=int, help="of the corrections (default: 30; one-pass 100)"),
        option(
            "--max-difference",
            type=float,
            metavar="D",
            help="of residual: the smallest rank whose predictions differ from the own models' by"
            " at most so many standard deviations",
        ),
        option(
            "--molecules", metavar="FILE", help="unlabelled molecules like those to be predicted"
        ),
        option("--most-molecules", type=int, help="how many of them are used (default: 10000)"),
        option("--epochs", type=int, help="of adapters (default: 10) and one-pass (default: 18)"),
        option("--reading", choices=("as_written", "canonical"), help="how SMILES are featurised"),
        option("--seed", type=int, help="seed of all random numbers (default: 0)"),
        option("--name", help="of the artifact (default: imported)"),
        option("--version", help="of the artifact (default: 0.1.0)"),
    )
    output = option("--output", type=Path, required=True, help="the artifact's folder")
    return [
        ("check-models", check, (*about, options.as_json)),
        ("import-models", bring, (*about, *merging, output, options.replace, *_place())),
    ]


def _place() -> tuple[Option, ...]:
    return (
        option("--threads", type=int, default=1, help="torch threads"),
        option("--work", type=Path, default=Path("work"), help="folder of stopped trainings"),
    )
