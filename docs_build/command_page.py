"""The page of the command line, from its parsers."""

import argparse
import textwrap
from collections.abc import Iterator

from docs_build.tables import code, table
from gmerging.cli.main import EXIT_CODES, make_parser

_INTRODUCTION = """# Command line

`gmerging <command> --help` shows what stands here. `gmerging-serve`, or `python -m service`, runs
the service with [settings](settings.md) from the environment alone.

A command that has further exit statuses says so.

"""
_Parser = argparse.ArgumentParser


def command_page() -> str:
    """Return the page, in Markdown."""
    statuses = table(("exit status", "meaning"), [(str(k), v) for k, v in EXIT_CODES.items()])
    return _INTRODUCTION + statuses + "".join(map(_command, leaves_of(make_parser())))


def commands_of(parser: _Parser) -> dict[str, _Parser]:
    """Return the commands of a parser by name; empty if it has none."""
    return {
        name: command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, command in action.choices.items()
    }


def leaves_of(parser: _Parser) -> Iterator[_Parser]:
    """Yield the parsers of all commands, and of the commands of groups such as `study`."""
    below = commands_of(parser)
    if not below:
        yield parser
    for command in below.values():
        yield from leaves_of(command)


def _command(parser: _Parser) -> str:
    text = f"## `{parser.prog}`\n\n{parser.description or ''}\n\n"
    heading, _, examples = (parser.epilog or "").partition("\n")
    if examples:
        text += f"{heading.capitalize()}\n\n```sh\n{textwrap.dedent(examples).strip()}\n```\n\n"
    rows = [_option(action) for action in parser._actions if not _is_frame(action)]
    return text + (table(("option", "default", "meaning"), rows) if rows else "")


def _is_frame(action: argparse.Action) -> bool:
    return isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def _option(action: argparse.Action) -> tuple[str, str, str]:
    names = ", ".join(map(code, action.option_strings or [str(action.metavar or action.dest)]))
    shown = "" if action.default in (None, False, argparse.SUPPRESS, []) else code(action.default)
    optional = not action.required or action.nargs in ("*", "?")  # argparse calls `*` required
    default = shown if optional else "required"
    about = action.help or ""
    if action.choices is not None and "%(choices)" not in about:
        about += f" ({', '.join(map(code, action.choices))})"
    values = {key: value for key, value in vars(action).items() if value is not argparse.SUPPRESS}
    return names, default, about % (values | {"prog": "gmerging"})
