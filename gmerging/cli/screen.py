"""`gmerging screen-shard` and `gmerging screen plan | run | status`: libraries in many files."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmerging.cli.predict import (
    AS_JSON,
    DEVICE,
    EXPERTS,
    MODEL,
    ROUTING,
    SMILES_COLUMN,
    THREADS,
    comma_names,
    model_folder,
    positive,
)
from merging.cli.parser import Row, option
from models.errors import InvalidInputError

if TYPE_CHECKING:
    from service.shards.plan import Plan, PlannedModel
    from service.shards.request import ScreenRequest
    from service.shards.runner import Progress

_OUTPUT = option("-o", "--output", required=True, help="folder, or address, of the outputs")
_ASKED = (
    MODEL,
    option("--tasks", type=comma_names, help="tasks whose labels are written; all if left out"),
    option(
        "--labels",
        type=comma_names,
        default=[],
        help="labels to write, task.label, with commas between them",
    ),
    ROUTING,
    EXPERTS,
    option(
        "--floats",
        choices=("float32", "float16"),
        default="float32",
        help="of the columns; with float16 those that are no probabilities stay float32",
    ),
    option(
        "--keep",
        action="append",
        default=[],
        metavar="CONDITION",
        help="write only rows for which this is true, such as 'herg.blocker<0.3'; several: all",
    ),
    option("--top", type=positive, metavar="N", help="write the N best rows of a shard, by --by"),
    option("--by", metavar="LABEL", help="label of --top; the highest values are the best"),
    option("--lowest", action="store_true", help="the lowest values are the best"),
    option("--without-smiles", action="store_true", help="write no canonical SMILES"),
    SMILES_COLUMN,
    option("--id-field", help="column of ids; id or name if left out, else file:row"),
    option(
        "--input-format",
        choices=("csv", "tsv", "smi", "sdf", "parquet"),
        help="of the shards; by the endings of their names if left out",
    ),
)
_RUN = (
    THREADS,
    DEVICE,
    option(
        "--replace",
        action="store_true",
        help="replace outputs that are of another model or of other settings",
    ),
    AS_JSON,
)
SHARD_OPTIONS = (
    option("input", help="a file of molecules: path or address, as s3://bucket/key"),
    _OUTPUT,
    option("--root", help="folder of the library: the output's name is the path below it"),
    *_ASKED,
    *_RUN,
)
PLAN_OPTIONS = (
    option("inputs", nargs="+", help="files and folders of molecules: paths or addresses"),
    _OUTPUT,
    option("--plan", type=Path, default=Path("screen.json"), help="the plan file"),
    option("--parts", type=positive, help="parts; one for each shard, at most 1000, if left out"),
    *_ASKED,
)
_PLAN_FILE = option("plan", type=Path, help="the plan file")
RUN_OPTIONS = (
    _PLAN_FILE,
    option("--part", metavar="I/N", help="screen part I, from 0, of the plan's N; all if left out"),
    option(
        "--processes",
        type=positive,
        help="processes, each with a model of its own; 1 if left out, with ray its CPUs",
    ),
    option(
        "--engine",
        choices=("local", "ray", "slurm"),
        default="local",
        help="local: on this machine; ray: in the cluster of RAY_ADDRESS, or one that is started; "
        "slurm: write the script of a job array, and submit it",
    ),
    option(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="with slurm: an option for the script, such as --sbatch=--time=08:00:00",
    ),
    *_RUN,
)
STATUS_OPTIONS = (_PLAN_FILE, option("--json", action="store_true", help="print JSON"))


def screen_shard(arguments: argparse.Namespace) -> int:
    """Predict for the molecules of one shard of a library: a file in, a Parquet file out.

    The output has a row for every row of the input, in order, or those that --keep and --top leave;
    it appears when it is whole. A shard whose output is there and whose input has not changed is
    not screened again.

    Exit status: 0 if the output is there, also if molecules have errors in it.

    Examples:
        gmerging screen-shard library/part-0.smi.gz --output screened --tasks herg,bbb_martins
        gmerging screen-shard part-7.parquet -o hits --labels dili.toxic --keep "herg.blocker<0.3"
        gmerging screen-shard s3://library/part-0.csv.gz -o s3://results/run-1 --floats float16
    """
    from service.core.memory import limit_malloc_arenas
    from service.shards.made import Shard, output_of
    from service.shards.plan import shard_name
    from service.shards.request import ScreenModel
    from service.shards.shard import Screener

    limit_malloc_arenas()
    artifact, request = _asked(arguments)
    model = ScreenModel(artifact, None, request, arguments.device, arguments.threads)
    name = shard_name(arguments.input, arguments.root)
    shard = Shard(name, _address(arguments.input), output_of(_address(arguments.output), name))
    screener = Screener(model, replace=arguments.replace)
    with _row_bar(shown=not arguments.json) as report:
        made = screener(shard, report)
    if arguments.json:
        found = {"output": shard.output, "skipped": made.skipped, **made.about}
        print(json.dumps(found), file=sys.stderr)
    else:
        done = "was done before" if made.skipped else "done"
        counts = _counts(made.rows, made.kept, made.failed)
        print(f"gmerging: {shard.output} {done}: {counts}", file=sys.stderr)
    return 0


def plan(arguments: argparse.Namespace) -> None:
    """Write the plan of a screening: its shards, what is asked, and a fixed number of parts.

    Every file is a shard; folders are searched for files of molecules.

    Examples:
        gmerging screen plan library --output screened --tasks herg,bbb_martins --plan herg.json
        gmerging screen plan library -o best --top 1000 --by bbb_martins.penetrates --parts 100
    """
    from service.shards.plan import MOST_PARTS, Plan, find_shards, write_plan

    artifact, request = _asked(arguments)
    given = [_address(one) for one in arguments.inputs]
    shards, ignored = find_shards(given, any_name=arguments.input_format is not None)
    made = Plan(
        model=_planned_model(artifact),
        request=request,
        output=_address(arguments.output),
        parts=arguments.parts or min(len(shards), MOST_PARTS),
        shards=tuple(shards),
    )
    write_plan(arguments.plan, made)
    if ignored:
        some = ", ".join(ignored[:5]) + (", ..." if len(ignored) > 5 else "")
        print(f"gmerging: {len(ignored)} files are no shards: {some}", file=sys.stderr)
    size = sum(shard.size for shard in shards) / 1e6
    print(f"{arguments.plan}: {len(shards)} shards, {size:.1f} MB, {made.parts} parts")


def run(arguments: argparse.Namespace) -> int:
    """Screen the shards of a plan, or of one part of it, that are not done.

    A process that dies is replaced, and its shard tried again, three times at most.

    Exit status: 0 if the outputs of all shards are there, also if molecules have errors in them; 1
    if some are missing, and then the same command tries those again.

    Examples:
        gmerging screen run herg.json --processes 8
        gmerging screen run herg.json --part 3/100
        gmerging screen run herg.json --engine ray
        gmerging screen run herg.json --engine slurm --processes 16 --sbatch=--time=08:00:00
    """
    from service.shards.plan import read_plan

    read = read_plan(arguments.plan)
    if arguments.engine == "slurm":
        return _run_slurm(arguments, read)
    if arguments.sbatch:
        raise InvalidInputError("got --sbatch, expected it with --engine slurm")
    progress = _run(arguments, read)
    missing = progress.shards - progress.done
    if arguments.json:
        shown = asdict(progress) | {"missing": missing, "rows_per_second": round(progress.rate, 1)}
        print(json.dumps(shown), file=sys.stderr)
    else:
        for name, why in progress.failed.items():
            print(f"gmerging: {name}: {why}", file=sys.stderr)
        counts = _counts(progress.rows, progress.kept, progress.errors)
        before = f" ({progress.skipped} before)" if progress.skipped else ""
        said = f"{progress.done} of {progress.shards} shards done{before}, {missing} missing"
        print(f"gmerging: {said}; {counts}, {progress.rate:.0f} rows/s", file=sys.stderr)
    return 1 if missing else 0


def _run(arguments: argparse.Namespace, read: "Plan") -> "Progress":
    from models.released import find_artifact
    from service.shards.ray_tasks import RayCluster
    from service.shards.request import ScreenModel
    from service.shards.runner import ProcessWorker, Run, unfinished

    shards = read.part(_part(arguments.part, read.parts))
    left = unfinished(shards, read.model.digest, read.request)
    planned, device, threads = read.model, arguments.device, arguments.threads
    model = ScreenModel(Path(planned.artifact), planned.digest, read.request, device, threads)
    with _shard_bar(len(shards), shown=not arguments.json) as report:
        if arguments.engine == "ray":
            with RayCluster((model, arguments.replace)) as cluster:
                processes = arguments.processes or cluster.processes
                return Run(shards, left, cluster.worker, report)(processes)
        order = replace(model, artifact=find_artifact(planned.artifact)), arguments.replace
        return Run(shards, left, partial(ProcessWorker, order), report)(arguments.processes or 1)


def _run_slurm(arguments: argparse.Namespace, read: "Plan") -> int:
    from service.shards.slurm import check_array_size, script, submit

    given = {
        "--part": arguments.part,
        "--threads": arguments.threads,
        "--device": arguments.device,
        "--replace": arguments.replace or None,
        "--json": arguments.json or None,
    }
    if names := [name for name, value in given.items() if value is not None]:
        got = f"got {', '.join(names)} with --engine slurm"
        raise InvalidInputError(f"{got}, expected --processes and --sbatch only")
    check_array_size(read)
    path = arguments.plan.with_suffix(".sbatch")
    processes = arguments.processes or 1
    path.write_text(script(read, arguments.plan, processes, arguments.sbatch))
    said = submit(path)
    print(f"{path}: {said or 'written; there is no sbatch here, submit it where there is'}")
    return 0


def status(arguments: argparse.Namespace) -> None:
    """Print how far a screening is, wherever it runs: from its outputs and notes.

    Examples:
        gmerging screen status herg.json
        gmerging screen status herg.json --json
    """
    from service.shards.plan import read_plan
    from service.shards.status import status_of

    found = status_of(read_plan(arguments.plan))
    if arguments.json:
        print(json.dumps(asdict(found), indent=2))
        return
    states = ", ".join(f"{count} {state}" for state, count in found.shards.items() if count)
    print(f"{sum(found.shards.values())} shards: {states}")
    print(f"{_counts(found.rows, found.kept, found.errors)}; {found.rows_under_way} under way")
    if found.rate:
        left = found.seconds_left
        shown = "unknown" if left is None else f"{left / 3600:.1f} h"
        print(f"{found.rate:.0f} rows/s, time left {shown}")
    for name, why in found.failed.items():
        print(f"{name}: {why}")


def rows() -> list[Row]:
    """The commands of `gmerging screen`."""
    return [
        ("plan", plan, PLAN_OPTIONS),
        ("run", run, RUN_OPTIONS),
        ("status", status, STATUS_OPTIONS),
    ]


def _part(text: str | None, parts: int) -> int | None:
    """Read `i/n` of a plan with n parts."""
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(count) == parts > int(index)):
        expected = f"expected one from 0/{parts} to {parts - 1}/{parts}, as the plan has them"
        raise InvalidInputError(f"got part {text!a}, {expected}")
    return int(index)


def _address(given: str) -> str:
    """Return a local path as an absolute one, and an address as it is."""
    from service.shards.places import is_remote

    return given if is_remote(given) else os.path.abspath(given)


def _asked(arguments: argparse.Namespace) -> tuple[Path, "ScreenRequest"]:
    """Return the model's folder, and what the options ask of it."""
    from models.artifact import read_manifest
    from models.experts.combination import expert_choice
    from service.settings import load_settings
    from service.shards.request import Limits, ScreenRequest, Top, chosen_labels, condition

    if (arguments.top is None) != (arguments.by is None) or (
        arguments.lowest and arguments.top is None
    ):
        raise InvalidInputError("got one of --top, --by, --lowest, expected --top with --by")
    settings = load_settings()
    artifact = model_folder(arguments.model, settings)
    infos = read_manifest(artifact)[0].tasks
    used = [condition(text).label for text in arguments.keep]
    used += [] if arguments.by is None else [arguments.by]
    tasks, labels = chosen_labels(infos, arguments.tasks, arguments.labels, used)
    top = None
    if arguments.top is not None:
        top = Top(count=arguments.top, label=arguments.by, lowest=arguments.lowest)
    request = ScreenRequest(
        tasks=tasks,
        labels=labels,
        routing=arguments.routing,
        experts=None if arguments.experts is None else expert_choice(arguments.experts),
        floats=arguments.floats,
        keep=tuple(arguments.keep),
        top=top,
        smiles=not arguments.without_smiles,
        smiles_column=arguments.smiles_column,
        id_field=arguments.id_field,
        input_format=arguments.input_format,
        limits=Limits(
            max_atoms=settings.max_atoms,
            max_smiles_length=settings.max_smiles_length,
            max_batch_cost=settings.max_batch_cost,
        ),
    )
    return artifact, request


def _planned_model(artifact: Path) -> "PlannedModel":
    """Describe the model for a plan: a released one by its name, which other machines know too."""
    from models.artifact import read_manifest
    from models.released import released
    from service.shards.plan import PlannedModel

    manifest, digest = read_manifest(artifact)
    names = {path: name for name, path in released().items()}
    return PlannedModel(
        artifact=names.get(artifact, str(artifact.absolute())),
        name=manifest.name,
        version=manifest.version,
        digest=digest,
    )


def _counts(rows: int, kept: int, errors: Mapping[str, int]) -> str:
    failed = sum(errors.values())
    listed = ", ".join(f"{code} {count}" for code, count in Counter(errors).most_common())
    parts = [f"{rows} rows", f"{failed} with an error" + (f" ({listed})" if listed else "")]
    return ", ".join([*parts, f"{kept} written"])


@contextmanager
def _row_bar(*, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show the rows that are answered, on a terminal where there is tqdm."""
    with _bar(shown=shown, unit="row") as bar:
        yield (lambda rows: None) if bar is None else lambda rows: bar.update(rows - bar.n)


@contextmanager
def _shard_bar(count: int, *, shown: bool) -> "Iterator[Callable[[Progress], None]]":
    """Show the shards that are done, with rows and their rate."""
    with _bar(shown=shown, unit="shard", total=count) as bar:

        def show(progress: "Progress") -> None:
            if bar is not None:
                rate = f"{progress.rate:.0f}/s"
                bar.set_postfix(rows=progress.rows, rate=rate, failed=len(progress.failed))
                bar.update(progress.done - bar.n)

        yield show


@contextmanager
def _bar(*, shown: bool, **options: Any) -> Iterator[Any]:
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield None
        return
    with tqdm(**options) as bar:
        yield bar
