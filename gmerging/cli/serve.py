"""`gmerging serve` and `gmerging key`: the service, with its most used settings as options."""

import argparse
import os
from typing import Any, get_args

from merging.cli.parser import Option, option
from models.released import DEFAULT_RELEASE, find_artifact
from service.settings import PREFIX, Settings, load_settings

SERVED = (
    "host",
    "port",
    "artifact",
    "models",
    "device",
    "workers",
    "threads",
    "jobs",
    "api_keys_file",
    "log_format",
    "log_level",
)
"""Settings that `gmerging serve` has options for."""
KEY_OPTIONS = (option("name", help="who will hold the key; shown in logs"),)


def options() -> tuple[Option, ...]:
    """The options of `gmerging serve`: a face on the variables `GMERGING_*`."""
    return tuple(map(_option, SERVED))


def serve(arguments: argparse.Namespace) -> None:
    """Serve predictions over HTTP until Ctrl-C, from a released model if no other is named.

    An option stands for the variable GMERGING_... of its name and comes before it; settings that
    have no option are variables only. The documentation of the running service is at /docs.

    Examples:
        gmerging serve
        gmerging serve --port 8080 --artifact moleculenet-gcn
        gmerging serve --host 0.0.0.0 --workers 4 --api-keys-file keys.json
    """
    from service.__main__ import serve as run

    given = {name: getattr(arguments, name) for name in SERVED}
    if arguments.artifact is not None:
        given["artifact"] = find_artifact(arguments.artifact)
    # In the environment, so that processes which read the settings again find the same ones.
    os.environ |= {
        f"{PREFIX}{name.upper()}": str(value) for name, value in given.items() if value is not None
    }
    run(load_settings())


def make_key(arguments: argparse.Namespace) -> None:
    """Make an API key for the service. Prints the key, once, and its entry for the list of keys
    in the file of --api-keys-file.

    Examples:
        gmerging key lab-7
    """
    from service.__main__ import print_key

    print_key(arguments.name)


def _option(name: str) -> Option:
    """Return the option of a setting: name, type, choices and help are the setting's."""
    field = Settings.model_fields[name]
    kind: dict[str, Any] = {"metavar": name.rpartition("_")[2].upper()}
    if choices := [value for value in get_args(field.annotation) if isinstance(value, str)]:
        kind = {"choices": choices}
    elif field.annotation is int:
        kind |= {"type": int}
    flags, about, default = [f"--{name.replace('_', '-')}"], field.description, field.default
    if name == "artifact":
        flags.append("--model")
        about, default = f"{about}, or the name of a released model", DEFAULT_RELEASE
    known = "" if default is None else f" (default: {default})"
    return option(*flags, dest=name, help=f"{about}{known}", **kind)
