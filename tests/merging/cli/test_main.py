"""`gmerging` in an environment with the service's packages only."""

import subprocess
import sys
import tomllib
from pathlib import Path

from merging.__main__ import EXTRA

ROOT = Path(__file__).parents[3]
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from merging.__main__ import main
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
    assert project["scripts"]["gmerging"] == "merging.__main__:main"
    names = {
        requirement.partition(">")[0] for requirement in project["optional-dependencies"]["merging"]
    }
    assert names == set(EXTRA.values())
