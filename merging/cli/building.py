"""How commands make their stages: in several processes, and on several machines."""

import argparse
import functools
import re
import sys
from collections.abc import Callable, Sequence

from merging.cli.options import processes
from merging.run.build import Share
from merging.run.run import Run
from merging.run.stage import Stage

Command = Callable[[argparse.Namespace], None]


class OthersLeftError(Exception):
    """The stages of `--part` are made, and others are left to the other parts."""


def stage_options(parser: argparse.ArgumentParser) -> None:
    """Add `--processes` and `--part`."""
    processes(parser)
    about = (
        "make part I, from 0, of N parts of the stages, for job arrays; the part that finishes last"
        " writes the output"
    )
    parser.add_argument("--part", type=_share, metavar="I/N", help=about)


def _share(text: str) -> Share:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    index, count = map(int, found.groups()) if found else (0, 0)
    if index >= count:
        expected = "expected I/N with I from 0 to N - 1, such as 0/8"
        raise argparse.ArgumentTypeError(f"got {text!a}, {expected}")
    return Share(index, count)


def build_stages(
    arguments: argparse.Namespace,
    run: Run,
    stages: Sequence[Stage],
    description: str,
    more: bool = False,
) -> None:
    """Make stages as the options say.

    Args:
        arguments: with `stage_options`.
        run: of the stages.
        stages: that are needed.
        description: label of the progress bar.
        more: other stages depend on these results: all are made or waited for, whatever the part.

    Raises:
        OthersLeftError: the stages of the part are made, and others are not.
    """
    share: Share | None = None if more else getattr(arguments, "part", None)
    own = arguments.processes, arguments.threads
    left = run.build(stages, description, *own, share=share)
    if share and left:
        said = f"part {arguments.part} is made; {left} stages are left to other parts"
        remedy = "the last one writes the output; if one has died, run it again"
        raise OthersLeftError(f"{said}, {remedy}")


def in_parts(command: Command) -> Command:
    """Let a command end early where other parts of its stages are left (`OthersLeftError`)."""

    @functools.wraps(command)
    def until_others(arguments: argparse.Namespace) -> None:
        try:
            command(arguments)
        except OthersLeftError as reason:
            print(f"gmerging: {reason}", file=sys.stderr)

    return until_others
