"""The command `gmerging`, also `python -m merging`. It imports `merging.cli.main`, whose packages
the service does not install.
"""

import sys
from collections.abc import Sequence

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run `merging.cli.main.main` and return its exit code; without the extra `merging`, print what
    to install and return 1."""
    try:
        from merging.cli.main import main as run

        return run(argv)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRA:
            raise
    sys.stderr.write(
        f"gmerging: got no package {EXTRA[name]}, expected the extra `merging`: "
        f'{sys.executable} -m pip install "g-merging[merging]", in a checkout -e ".[merging]"\n'
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
