"""The command `gmerging`, also `python -m merging`: the commands are in `merging.cli.main`, which
needs more than the service is installed with."""

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
"""The packages of the extra `merging`, by the name that is imported."""


def main(argv: Sequence[str] | None = None) -> int:
    """As `merging.cli.main.main`; where the extra `merging` is not installed, 1 and a line that
    says what to install."""
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
