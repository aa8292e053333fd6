"""The command line of `gmerging`: all tables of commands in one parser, and exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from gmerging.cli import predict
from merging.cli.parser import Parser, Row, add_command
from models.errors import GMergingError

EXTRA = {
    "filelock": "filelock",
    "matplotlib": "matplotlib",
    "ot": "pot",
    "pooch": "pooch",
    "requests": "requests",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}
"""Packages of the extra `merging`, by import name."""

BROKEN_PIPE = 141
"""Exit code: who reads the output has stopped, as `head` does; 128 + SIGPIPE, as of other tools."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 1 for an error of the project or of a file, 2 for
    invalid arguments, 130 for an interrupt, 141 if nobody reads the output any more; or the code
    that the command documents."""
    try:
        arguments = make_parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
        return arguments.command(arguments) or 0
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRA:
            raise
        print(
            f"gmerging: got no package {EXTRA[name]}, expected the extra `merging`: "
            f'{sys.executable} -m pip install "g-merging[merging]", in a checkout -e ".[merging]"',
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        # Python flushes standard output at its end, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except (GMergingError, OSError) as error:
        print(f"gmerging: {error}", file=sys.stderr)
        return 1
    except (BrokenProcessPool, MemoryError) as error:
        problem = f"a process died or got no memory ({error})"
        remedy = "try fewer --processes or --threads; the same command resumes where it stopped"
        print(f"gmerging: {problem}; {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gmerging: stopped; the same command resumes where it stopped", file=sys.stderr)
        return 130


def front_rows() -> list[Row]:
    """The commands that need no training packages: those who only use models have these."""
    return [("predict", predict.predict, predict.OPTIONS)]


def make_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of the command line. Where the first argument is a command of
    `front_rows`, commands for training are left out: their packages take seconds to import."""
    parser = Parser(
        prog="gmerging", description="Merge fine-tuned graph neural networks into one network."
    )
    added = parser.add_subparsers(required=True, metavar="command")
    front = front_rows()
    for row in front:
        add_command(added, *row)
    if argv and argv[0] in {name for name, *_ in front}:
        return parser
    from merging.cli.table import command_rows, study_rows

    for row in command_rows():
        add_command(added, *row)
    about = "Run a study; write its results file and print its table."
    study = added.add_parser("study", help=about, description=about)
    studies = study.add_subparsers(required=True, metavar="study")
    for row in study_rows():
        add_command(studies, *row)
    return parser
