"""The frame of the command line: parsers that suggest what may have been meant, rows of tables of
commands, and options."""

import argparse
import re
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
    """Help with the default of what has one; its paragraphs are filled, indented lines stay."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required or action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = _BLOCKS.findall(text + "\n")
        return "\n".join(
            block.rstrip("\n")
            if block.startswith((" ", "\n"))
            else super(Formatter, self)._fill_text(block, width, indent)
            for block in blocks
        )


_BLOCKS = re.compile(r"(?:^ .*\n)+|(?:^[^ \n].*\n)+|^\n", re.MULTILINE)
"""Indented lines, other lines, or an empty one."""
_EXAMPLES = "\n\nExamples:\n"


def help_of(function: Callable[..., object]) -> tuple[str, str]:
    """Return the help text of a command, and the examples that its docstring ends with."""
    about, _, examples = (getdoc(function) or "").partition(_EXAMPLES)
    return about, examples


def examples_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the command lines of a command's examples, without what they are piped with."""
    lines = (parser.epilog or "").replace("\\\n", " ").splitlines()
    commands = [command.strip() for line in lines for command in re.split(r" [|<>] ", line)]
    return [" ".join(words.split()) for words in commands if words.startswith("gmerging ")]


def summary_of(text: str) -> str:
    """Return the first paragraph of a help text, on one line."""
    return " ".join(text.partition("\n\n")[0].split())


def add_command(
    subparsers: "argparse._SubParsersAction[Parser]",
    name: str,
    function: Callable[[argparse.Namespace], int | None],
    added_options: Iterable[Option],
) -> None:
    """Add a command. Its help text is the docstring of its function, which may end with a section
    `Examples:` of indented command lines."""
    about, examples = help_of(function)
    parser = subparsers.add_parser(
        name,
        help=summary_of(about),
        description=about,
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=Formatter,
    )
    parser.set_defaults(command=function)
    for add_option in added_options:
        add_option(parser)
