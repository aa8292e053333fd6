"""The command line: help, examples, exit codes, completion; without packages for training too."""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from gmerging.cli import main as command_line
from gmerging.cli import screen
from gmerging.cli.main import EXIT_CODES, front_rows, main, make_parser
from merging.cli.parser import examples_of, option
from merging.cli.table import command_rows, study_rows
from models.errors import ArtifactError
from models.extras import EXTRAS

ROOT = Path(__file__).parents[3]
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from gmerging.cli.main import main
sys.exit(main({words!r}))
"""
TRAINING = set(EXTRAS["merging"])


def run(*words: str, blocked: set[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that cannot import some packages."""
    code = BLOCKER.format(blocked=blocked, words=list(words))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_without_the_extra_it_says_what_to_install() -> None:
    done = run("inspect", "--help", blocked=TRAINING)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gmerging: got no package ")
    assert 'pip install "g-merging[merging]"' in line


def test_without_the_extra_help_lists_the_other_commands_and_says_what_it_adds() -> None:
    done = run("--help", blocked=TRAINING)
    assert done.returncode == 0
    assert all(re.search(rf"^  {name} ", done.stdout, re.MULTILINE) for name, *_ in front_rows())
    assert "The extra `merging` adds commands that train" in done.stdout
    assert 'pip install "g-merging[merging]"' in done.stdout
    assert "finetune" not in done.stdout


def test_a_front_command_without_its_extra_names_that_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def needs_pandas(_: argparse.Namespace) -> None:
        """Need pandas."""
        raise ModuleNotFoundError("No module named 'pandas'", name="pandas")

    monkeypatch.setattr(command_line, "front_rows", lambda: [("needs", needs_pandas, ())])
    assert main(["needs"]) == 1
    assert "got no package pandas, expected the extra `predict`: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [name for name, *_ in front_rows()])
def test_help_of_a_front_command_imports_neither_torch_nor_training(command: str) -> None:
    heavy = {"torch", "numba", "rdkit", "scipy", "uvicorn", "fastapi"}
    done = run(command, "--help", blocked=TRAINING | heavy)
    assert done.returncode == 0, done.stderr
    assert f"usage: gmerging {command}" in done.stdout


def test_other_missing_modules_are_not_explained_away() -> None:
    done = run("inspect", "--help", blocked={"scipy"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_command_is_this_one_and_the_packages_are_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["gmerging"] == "gmerging.__main__:main"
    for extra, packages in EXTRAS.items():
        listed = project["optional-dependencies"][extra]
        assert {name.partition(">")[0] for name in listed} == set(packages.values())


def test_who_stops_reading_ends_the_command_quietly() -> None:
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{sys.executable} -m gmerging models --json | true; echo ${{PIPESTATUS[0]}}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("141\n", "")


def parsers() -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands and studies."""
    waiting = [make_parser()]
    while waiting:
        parser = waiting.pop()
        below = [
            action.choices.values()
            for action in parser._actions
            if isinstance(action, argparse._SubParsersAction)
        ]
        waiting += [child for children in below for child in children]
        if not below:
            yield parser


COMMANDS = {parser.prog: parser for parser in parsers()}


@pytest.mark.parametrize("prog", COMMANDS)
def test_every_command_has_examples_that_parse(prog: str) -> None:
    examples = examples_of(COMMANDS[prog])
    assert examples
    for example in examples:
        assert example.startswith(f"{prog} ") or example == prog
        words = shlex.split(example)[1:]
        assert make_parser(words).parse_args(words).command is COMMANDS[prog].get_default("command")


def test_examples_are_printed_as_they_are_written() -> None:
    text = COMMANDS["gmerging serve"].format_help()
    assert "\nexamples:\n    gmerging serve\n    gmerging serve --port 8080" in text


def test_help_lists_every_command_in_its_group_and_the_exit_codes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    groups = dict(re.findall(r"^([a-z ]+):\n((?:  .*\n)+)", capsys.readouterr().out, re.MULTILINE))
    expected = {
        "use models": [name for name, *_ in front_rows()],
        "screen libraries": [f"screen {name}" for name, *_ in screen.rows()],
        "make models": [name for name, *_ in command_rows()],
        "studies": [f"study {name}" for name, *_ in study_rows()],
        "exit status": [str(code) for code in EXIT_CODES],
    }
    for title, names in expected.items():
        listed = re.findall(r"^  (\S+(?: [a-z]\S*)?)(?:  |$)", groups[title], re.MULTILINE)
        assert listed == names


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"gmerging {version('g-merging')}\n"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (None, 0),
        (ArtifactError("broken"), 1),
        (FileNotFoundError("gone"), 1),
        (MemoryError(), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_are_those_of_the_help(
    raised: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(_: argparse.Namespace) -> None:
        """Do it."""
        if raised is not None:
            raise raised

    monkeypatch.setattr(command_line, "front_rows", lambda: [("do", command, ())])
    assert main(["do"]) == code
    assert code in EXIT_CODES


def test_a_command_may_have_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("do", lambda arguments: arguments.code, (option("code", type=int),))]
    monkeypatch.setattr(command_line, "front_rows", lambda: rows)
    assert main(["do", "3"]) == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gmerging models --j", {"--json"}),
        ("gmerging serve --device c", {"cpu", "cuda"}),
        ("gmerging fin", {"finetune"}),
        ("gmerging study gff", {"gffmerge", "gffmerge-pretrained"}),
    ],
)
def test_the_shell_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    answers = tmp_path / "answers"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    words = [sys.executable, "-m", "gmerging"]
    subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert set(answers.read_text().split()) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["graphs", "--output", "a"], "got 'graphs', expected `gmerging release`, which does"),
        (["release-graphs"], "got 'release-graphs', expected `gmerging release`, which does"),
        (["compare-graphs"], "got 'compare-graphs', expected `gmerging compare`, which does"),
        (["compare-force-fields"], "expected `gmerging study gffmerge`, which does its work now"),
        (["gw-smm"], "got 'gw-smm', expected `gmerging study gw-smm`, which does its work now"),
        (["relase"], "models, doctor, screen, pretrain, finetune, "),
        (["relase"], "did you mean 'release'?"),
        (["study", "experst"], "did you mean 'experts'?"),
        (["ablate", "--seeds", "1"], "usage: gmerging ablate [-h]"),
        (["ablate", "--seeds", "1"], "got --seeds 1, expected the options of `gmerging ablate`"),
    ],
)
def test_a_wrong_command_or_option_is_answered_with_the_right_one(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_help_says_no_default_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    studies = [["study", name] for name, *_ in study_rows()]
    for arguments in [*([name] for name, *_ in command_rows()), *studies]:
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "(default: None)" not in said
        assert "(default: False)" not in said
        assert ("--seed SEED seed of all random numbers (default: 0)" in said) == (
            "--seed SEED" in said
        )
