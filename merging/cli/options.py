"""Options that several commands of `gmerging` share."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from merging.cli.parser import Option, option
from merging.planning.distances import Variant
from merging.planning.plan import Metric
from models.device import choose_device


def folder_options(parser: argparse.ArgumentParser) -> None:
    """Add `--threads`, `--data` and `--work`."""
    parser.add_argument(
        "--threads",
        type=int,
        default=max(1, (os.cpu_count() or 2) // 2),
        help="torch threads per process",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("GMERGING_DATA") or "../shared/data"),
        help="data folder, also by GMERGING_DATA; missing published data sets are downloaded",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(os.environ.get("GMERGING_WORK") or "work"),
        help="work folder, also by GMERGING_WORK: finished results are reused, stopped runs resume",
    )


def config_options(default: str, folders: Iterable[Path]) -> Option:
    """Return an option that adds `--config`, whose help lists the configurations in the folders,
    and `folder_options`."""
    known = (path.name for folder in folders for path in sorted(folder.glob("*.yaml")))
    about = f"YAML file, or one that comes with the package: {', '.join(known)}"

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--config", type=Path, default=Path(default), help=about)
        folder_options(parser)

    return add


def plan_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `PlanSettings`."""
    parser.add_argument(
        "--metric",
        choices=get_args(Metric),
        default="gw",
        help="feature spaces (gw, cka) or task vectors (cosine)",
    )
    about = "solver of Gromov-Wasserstein"
    parser.add_argument("--variant", choices=get_args(Variant), default="exact", help=about)
    about = "starts of that solver per pair; the best one counts"
    parser.add_argument("--restarts", type=int, default=4, help=about)
    parser.add_argument("--group-size", type=int, default=3, help="the most models in a group")


device = option(
    "--device", type=choose_device, default="auto", help="auto (cuda if there is one), cpu or cuda"
)
seed = option("--seed", type=int, default=0, help="seed of all random numbers")
seeds = option("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one run per seed")
processes = option(
    "--processes", type=int, default=1, help="stages made at a time, one process per stage"
)
tasks = option(
    "--tasks", nargs="+", metavar="TASK", help="only these tasks, not all of the configuration"
)
plan = option("--plan", type=Path, help="plan file: each of its groups is merged on its own")
results = option(
    "--results",
    type=Path,
    default=Path("results"),
    help="folder of the results, one folder in it per setting",
)
replace = option(
    "--replace",
    action="store_true",
    help="replace an artifact of another name or of other tasks too; nothing else is replaced",
)
artifact = option(
    "--artifact",
    type=Path,
    required=True,
    help="folder of the finished artifact, or the name of a released model",
)
new_artifact = option(
    "--output", type=Path, required=True, help="folder of the new artifact; may be the same"
)
as_json = option("--json", action="store_true", help="print JSON, for programs")
