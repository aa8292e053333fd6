"""The command line of `gmerging`: all tables of commands in one parser, and exit codes."""

import argparse
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version

from gmerging.cli import doctor, models, predict, screen, serve
from merging.cli.parser import Formatter, Parser, Row, add_command, help_of, summary_of
from models.errors import GMergingError
from models.extras import EXTRAS, how_to_install

EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "an error in a file, a setting or the data, said in one line on standard error",
    2: "invalid arguments",
    130: "interrupted",
    141: "whoever read the output has stopped, as `head` does",
}
"""What the exit status of every command means; a command that has further ones says so."""

_DESCRIPTION = "Merge fine-tuned graph neural networks into one network, and predict with it."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: one of `EXIT_CODES`, or what it documents."""
    words = _respelled(sys.argv[1:] if argv is None else list(argv))
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    try:
        arguments = make_parser(words).parse_args(words)
        return arguments.command(arguments) or 0
    except ModuleNotFoundError as error:
        extra = "predict" if words and words[0] in (*_front_words(), "screen") else "merging"
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS[extra]:
            raise
        got = f"got no package {EXTRAS[extra][name]}, expected the extra `{extra}`"
        print(f"gmerging: {got}: {how_to_install(extra)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Python flushes standard output at its end, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (GMergingError, OSError) as error:
        print(f"gmerging: {error}{_noted(error)}", file=sys.stderr)
        return 1
    except (BrokenProcessPool, MemoryError) as error:
        problem = f"a process died or got no memory ({error}){_noted(error)}"
        remedy = "try fewer --processes or --threads; the same command resumes where it stopped"
        print(f"gmerging: {problem}; {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gmerging: stopped; the same command resumes where it stopped", file=sys.stderr)
        return 130


def _noted(error: BaseException) -> str:
    """Return the notes of an error, such as the stage that was being made."""
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


def front_rows() -> list[Row]:
    """The commands that need no training packages: those who only use models have these."""
    return [
        ("predict", predict.predict, predict.OPTIONS),
        ("screen-shard", screen.screen_shard, screen.SHARD_OPTIONS),
        ("serve", serve.serve, serve.options()),
        ("key", serve.make_key, serve.KEY_OPTIONS),
        ("models", models.list_models, models.OPTIONS),
        ("doctor", doctor.diagnose, doctor.OPTIONS),
    ]


def make_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of the command line. Where the first argument is a command of
    `front_rows`, commands for training are left out: their packages take seconds to import. Where
    it is an option, such as `--help`, they may be missing."""
    parser = Parser(
        prog="gmerging",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description=_DESCRIPTION,
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action="version", version=f"gmerging {version('g-merging')}")
    # The epilog lists the commands in groups, which argparse does not know.
    added = parser.add_subparsers(
        required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog="gmerging"
    )
    front = front_rows()
    for row in front:
        add_command(added, *row)
    about = "Screen libraries that are kept in many files, on one machine or on many."
    _add_group(added, "screen", about, "STEP", screen.rows())
    if argv and argv[0] in (*_front_words(), "screen"):
        return parser
    try:
        training, studies = _add_training(added)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS["merging"] or (argv and not argv[0].startswith("-")):
            raise
        training, studies = [], []
    parser.epilog = _epilog(front, training, studies)
    return parser


def _add_training(added: "argparse._SubParsersAction[Parser]") -> tuple[list[Row], list[Row]]:
    """Add the commands for training and the studies, and return their rows."""
    from merging.cli.table import command_rows, study_rows

    commands, studies = command_rows(), study_rows()
    for row in commands:
        add_command(added, *row)
    about = "Run a study; write its results file and print its table."
    _add_group(added, "study", about, "STUDY", studies)
    return commands, studies


def _add_group(
    added: "argparse._SubParsersAction[Parser]",
    name: str,
    about: str,
    metavar: str,
    rows: Iterable[Row],
) -> None:
    """Add a command that has commands of its own."""
    group = added.add_parser(name, help=about, description=about, formatter_class=Formatter)
    commands = group.add_subparsers(required=True, metavar=metavar)
    for row in rows:
        add_command(commands, *row)


def _epilog(front: Iterable[Row], training: Iterable[Row], studies: Iterable[Row]) -> str:
    """Return the commands in groups, and the exit codes."""
    groups = [_listed("use models", front)]
    groups.append(_listed("screen libraries", screen.rows(), "screen "))
    if training:
        groups += [_listed("make models", training), _listed("studies", studies, "study ")]
    else:
        about = "The extra `merging` adds commands that train, merge, import and release models,"
        groups.append(f"make models:\n  {about}\n  and the studies: {how_to_install('merging')}")
    codes = "\n".join(f"  {code:<5}{meaning}" for code, meaning in EXIT_CODES.items())
    hint = "`gmerging COMMAND --help` has the options of a command, and examples."
    return "\n\n".join([*groups, f"exit status:\n{codes}", hint])


def _listed(title: str, rows: Iterable[Row], prefix: str = "") -> str:
    """Return the names of commands with the summaries of their help texts."""
    width, indent = max(shutil.get_terminal_size().columns - 2, 40), " " * 22
    lines = []
    for name, function, _ in rows:
        listed = f"  {prefix}{name}"
        summary = summary_of(help_of(function)[0])
        text = textwrap.fill(summary, width, initial_indent=indent, subsequent_indent=indent)
        fits = len(listed) + 2 <= len(indent)
        lines.append(listed + text[len(listed) :] if fits else f"{listed}\n{text}")
    return "\n".join([f"{title}:", *lines])


def _front_words() -> list[str]:
    return [name for name, *_ in front_rows()]


def _respelled(words: list[str]) -> list[str]:
    """Return the words of a command, with a name that it had before replaced by the one it has now.

    `screen` was `screen-experts`, which has options only; what it is now begins with a step.
    """
    second = words[1] if words[:1] == ["screen"] and len(words) > 1 else ""
    if not second.startswith("-") or second in ("-h", "--help"):
        return words
    said = "`screen` with options is called `screen-experts` now"
    print(f"gmerging: {said}; a later version will not know the old name", file=sys.stderr)
    return ["screen-experts", *words[1:]]


def _complete() -> None:
    """Answer the shell's question for completions, and exit (`register-python-argcomplete`)."""
    import argcomplete

    words = shlex.split(os.environ.get("COMP_LINE", ""))[1:]
    argcomplete.autocomplete(make_parser(words), print_suppressed=True)
