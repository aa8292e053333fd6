"""`gmerging` in an environment with the service's packages only."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gmerging.cli.main import EXTRA, main
from merging.cli.table import command_rows, study_rows

ROOT = Path(__file__).parents[3]
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from gmerging.cli.main import main
sys.exit(main(["inspect", "--help"]))
"""


def run(*blocked: str) -> subprocess.CompletedProcess[str]:
    code = BLOCKER.format(blocked=set(blocked))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_without_the_extra_it_says_what_to_install() -> None:
    done = run(*EXTRA)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("gmerging: got no package ")
    assert 'pip install "g-merging[merging]"' in line


def test_other_missing_modules_are_not_explained_away() -> None:
    done = run("scipy")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_command_is_this_one_and_the_packages_are_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["gmerging"] == "gmerging.__main__:main"
    names = {
        requirement.partition(">")[0] for requirement in project["optional-dependencies"]["merging"]
    }
    assert names == set(EXTRA.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["graphs", "--output", "a"], "got 'graphs', expected `gmerging release`, which does"),
        (["release-graphs"], "got 'release-graphs', expected `gmerging release`, which does"),
        (["compare-graphs"], "got 'compare-graphs', expected `gmerging compare`, which does"),
        (["compare-force-fields"], "expected `gmerging study gffmerge`, which does its work now"),
        (["gw-smm"], "got 'gw-smm', expected `gmerging study gw-smm`, which does its work now"),
        (["relase"], "got 'relase', expected one of predict, pretrain"),
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
