"""`gmerging doctor`: what a maintainer would ask, ready to be pasted into an issue."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from merging.cli.parser import option

if TYPE_CHECKING:
    from gmerging.diagnosis import Finding

OPTIONS = (option("--json", action="store_true", help="print a JSON object, for programs"),)


def diagnose(arguments: argparse.Namespace) -> int:
    """Check the installation: versions, processor, memory, GPU, settings, released models by their
    hashes, and a trial prediction.

    Exit status 1: a problem was found. Problems are marked with an exclamation mark; paste the
    output into an issue. It shows no keys, and the home folder as ~.

    Examples:
        gmerging doctor
        gmerging doctor --json > doctor.json
    """
    from gmerging.diagnosis import examine

    findings = examine()
    problems = [finding for finding in findings if finding.problem]
    if arguments.json:
        content = {"ok": not problems, "findings": [asdict(finding) for finding in findings]}
        print(_without_home(json.dumps(content, indent=2)))
    else:
        print(_without_home(report(findings)))
    return 1 if problems else 0


def report(findings: Iterable["Finding"]) -> str:
    """Format findings by section, and the number of problems."""
    lines, problems = [], 0
    for section, group in groupby(findings, attrgetter("section")):
        lines.append(section)
        for finding in group:
            mark, problem = ("!", f": {finding.problem}") if finding.problem else (" ", "")
            problems += bool(finding.problem)
            lines.append(f"{mark} {finding.name:20} {finding.value}{problem}")
    lines.append("no problems" if not problems else f"problems: {problems}")
    return "\n".join(lines)


def _without_home(text: str) -> str:
    home = str(Path.home())
    return text if home == "/" else text.replace(home, "~")
