"""The frame of the command line: parsers that suggest what may have been meant, rows of tables of
commands, and options."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from inspect import getdoc
from typing import Any

from models.validation import one_of

_RENAMED = {
    "graphs": "release",
    "release-graphs": "release",
    "compare-graphs": "compare",
    "force-field": "release",
    "release-force-field": "release",
    "compare-force-fields": "study gffmerge",
    "gnnmerge": "study gnnmerge",
    "gffmerge": "study gffmerge",
    "gw-smm": "study gw-smm",
    "experts": "study experts",
}
"""Commands as they were called before a configuration said which kind of model it is, and studies
without their `study`."""


Option = Callable[[argparse.ArgumentParser], Any]
"""A function that adds one or several options to a parser."""


def option(*names: str, **settings: Any) -> Option:
    """Return an option from the arguments of `ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(*names, **settings)


Row = tuple[str, Callable[[argparse.Namespace], int | None], tuple[Option, ...]]
"""A command: its name, its function, whose docstring is the help text, and its options."""


class Parser(argparse.ArgumentParser):
    """A parser that suggests the command that may have been meant, and names the command whose
    options are unknown."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            known = one_of(str(value), tuple(action.choices))
            renamed = _RENAMED.get(str(value))
            if renamed:
                known = f"`gmerging {renamed}`, which does its work now"
            raise argparse.ArgumentError(action, f"got {value!r}, expected {known}")
        super()._check_value(action, value)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, and refuse what is unknown here: with this command's usage."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"got {' '.join(unknown)}, expected the options of `{self.prog}`")
        return found, unknown


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the default of what has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required or action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def add_command(
    subparsers: "argparse._SubParsersAction[Parser]",
    name: str,
    function: Callable[[argparse.Namespace], int | None],
    added_options: Iterable[Option],
) -> None:
    """Add a command, whose help text is the docstring of its function."""
    about = getdoc(function)
    parser = subparsers.add_parser(name, help=about, description=about, formatter_class=Formatter)
    parser.set_defaults(command=function)
    for add_option in added_options:
        add_option(parser)
