"""`gmerging predict`: molecules in, predictions out, without a service."""

import argparse
import asyncio
import contextlib
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merging.cli.parser import option
from models.errors import InvalidInputError

if TYPE_CHECKING:
    from service.bulk.inputs import RunInput
    from service.bulk.run import Progress, Summary
    from service.formats.row_writers import RowKind
    from service.schemas import RowExplanation
    from service.settings import Settings

SOME_FAILED = 3
"""Exit code: all rows were written, and some of them have an error in place of predictions."""
_ENDINGS = {
    ".csv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".sdf": "sdf",
    ".sd": "sdf",
}


def positive(text: str) -> int:
    """Read a number from 1, as the type of an option."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 1")
    return int(text)


def comma_names(text: str) -> list[str]:
    """Read names with commas between them, as the type of an option."""
    return [name.strip() for name in text.split(",")]


MODEL = option(
    "-m",
    "--model",
    help="name of a released model, such as moleculenet-gcn, or an artifact's folder; the default "
    "model if left out",
)
ROUTING = option(
    "--routing", choices=("own", "moe", "merged"), default="own", help="as of /predict"
)
EXPERTS = option(
    "--experts",
    type=comma_names,
    help="own, forest or own,forest, as of /predict; each task's default if left out",
)
SMILES_COLUMN = option(
    "--smiles-column", help="column of the molecules; by name and content if left out"
)
THREADS = option("--threads", type=positive, help="torch threads of each process; 1 if left out")
DEVICE = option(
    "--device", choices=("auto", "cpu", "cuda"), help="auto, a GPU if there is one, if left out"
)
AS_JSON = option("--json", action="store_true", help="write the summary as JSON, and no progress")
OPTIONS = (
    option(
        "input",
        nargs="*",
        help="one file (CSV, TSV, SMI, CXSMILES, SDF, plain or gzip, or Parquet), `-` for standard "
        "input, or SMILES",
    ),
    option("-o", "--output", type=Path, help="file to write; standard output if left out"),
    option(
        "--format",
        choices=("csv", "ndjson", "parquet", "sdf"),
        help="of the output; by the ending of its name if left out, else CSV",
    ),
    option(
        "--input-format",
        choices=("csv", "tsv", "smi", "sdf", "parquet"),
        help="of the input; by the ending of its name, or by its content, if left out",
    ),
    MODEL,
    option(
        "--tasks",
        type=comma_names,
        help="tasks to predict, with commas between them; all if left out",
    ),
    ROUTING,
    EXPERTS,
    option(
        "--explain",
        type=comma_names,
        default=[],
        help="columns to add: drugs, the percentile of every value among approved drugs, alerts, "
        "structural alerts (PAINS, BRENK), or drugs,alerts",
    ),
    option(
        "--escape-formulas",
        action="store_true",
        help="in CSV, write an apostrophe before text that a spreadsheet would run as a formula",
    ),
    SMILES_COLUMN,
    option("--id-field", help="column, or data field of an SDF, that becomes the column id"),
    option(
        "--processes",
        type=positive,
        default=1,
        help="processes that read and predict, each with a model of its own",
    ),
    THREADS,
    DEVICE,
    option("--replace", action="store_true", help="replace an output that is there"),
    AS_JSON,
    option(
        "--help-labels",
        action="store_true",
        help="print the tasks, or those of --tasks, and what their labels mean",
    ),
)


def predict(arguments: argparse.Namespace) -> int:
    """Predict for molecules: a row for every molecule, in order, as POST /predict/file gives them.

    A molecule that cannot be read has an error in its row. A summary goes to standard error.
    Rows of a run that is stopped are kept in OUTPUT.partial: the same command goes on from there.

    Exit status: 0 if every row has predictions, 3 if some have an error, 1 if the run failed, 2 for
    wrong arguments, 130 if it was interrupted, 141 if nobody reads the output any more.

    Examples:
        gmerging predict molecules.csv -o answers.csv
        gmerging predict library.smi.gz -o answers.parquet --tasks bbb_martins,herg --processes 8
        gmerging predict "CC(=O)Oc1ccccc1C(=O)O" CCO --model moleculenet-gcn --tasks bbbp
        gmerging predict molecules.csv -o answers.csv --explain drugs,alerts
        cat molecules.smi | gmerging predict --format ndjson | head
        gmerging predict --help-labels
    """
    from service.core.explanations.rows import row_explanations
    from service.settings import load_settings

    changes = {"threads": arguments.threads, "device": arguments.device}
    settings = load_settings().model_copy(
        update={name: value for name, value in changes.items() if value is not None}
    )
    artifact = model_folder(arguments.model, settings)
    if arguments.help_labels:
        _print_labels(artifact, arguments.tasks, as_json=arguments.json)
        return 0
    try:
        kind = _output_kind(arguments)
        explain = row_explanations(arguments.explain)
        given = _given(arguments)
    except InvalidInputError as error:
        print(f"gmerging predict: {error}", file=sys.stderr)
        return 2
    try:
        summary = _run(arguments, given, kind, explain, artifact, settings)
    except KeyboardInterrupt:
        if arguments.output is not None:
            raise  # the command's own message says that it can be resumed
        print("gmerging: stopped", file=sys.stderr)
        return 130
    _print_summary(summary, as_json=arguments.json)
    return SOME_FAILED if summary.failed else 0


def model_folder(model: str | None, settings: "Settings") -> Path:
    """Return the folder of a model: the settings' default one for None, else a released one, one in
    the settings' folder of models, or any."""
    from models.released import find_artifact

    if model is None:
        return settings.artifact
    if settings.models is not None and (settings.models / model / "manifest.json").is_file():
        return settings.models / model
    return find_artifact(model)


def _output_kind(arguments: argparse.Namespace) -> "RowKind":
    if arguments.format is not None:
        kind: RowKind = arguments.format
    elif arguments.output is None:
        kind = "csv"
    else:
        ending = arguments.output.suffix.lower()
        if ending not in _ENDINGS:
            known = f"{', '.join(_ENDINGS)}, or --format"
            raise InvalidInputError(f"got output {arguments.output.name!a}, expected {known}")
        kind = _ENDINGS[ending]  # type: ignore[assignment]
    if arguments.escape_formulas and kind != "csv":
        raise InvalidInputError(f"got --escape-formulas for {kind}, expected it for csv")
    if kind == "parquet" and arguments.output is None and sys.stdout.isatty():
        raise InvalidInputError("got Parquet for a terminal, expected --output")
    return kind


def _given(arguments: argparse.Namespace) -> list[str]:
    from service.bulk.inputs import STANDARD_INPUT

    if arguments.input:
        return list(arguments.input)
    if sys.stdin.isatty():
        raise InvalidInputError("got no input, expected a file, `-` for standard input, or SMILES")
    return [STANDARD_INPUT]


def _run(
    arguments: argparse.Namespace,
    given: list[str],
    kind: "RowKind",
    explain: "tuple[RowExplanation, ...]",
    artifact: Path,
    settings: "Settings",
) -> "Summary":
    from models.experts.combination import expert_choice
    from service.bulk.inputs import run_input
    from service.bulk.local import LocalQuery, without_records
    from service.bulk.output import FileOutput, StreamOutput
    from service.bulk.run import run
    from service.core.memory import limit_malloc_arenas

    limit_malloc_arenas()
    tasks = arguments.tasks
    if tasks is not None and len(set(tasks)) != len(tasks):
        raise InvalidInputError("got a task twice in tasks, expected each once")
    experts = None if arguments.experts is None else expert_choice(arguments.experts)
    path = arguments.output
    output = (
        StreamOutput(sys.stdout.buffer, kind)
        if path is None
        else FileOutput(path, kind, replace=arguments.replace)
    )
    columns = (arguments.smiles_column, arguments.id_field)
    with run_input(given, arguments.input_format, *columns) as source:
        if source.path is not None and path is not None and _is_same(path, source.path):
            raise InvalidInputError(f"got {path} as input and output, expected two files")
        query = LocalQuery(
            artifact,
            settings,
            None if tasks is None else tuple(tasks),
            arguments.routing,
            experts,
            kind,
            without_records(source.open()),
            explain,
            arguments.escape_formulas,
        )
        with _progress(source, shown=not arguments.json) as progress:
            return asyncio.run(run(source, output, query, arguments.processes, progress))


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)


@contextlib.contextmanager
def _progress(source: "RunInput", *, shown: bool) -> "Iterator[Progress | None]":
    """Show a bar with rate and time left on a terminal, where there is tqdm."""
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield None
        return
    from service.bulk.run import count_records

    with tqdm(total=count_records(source), unit="row", smoothing=0.05) as bar:

        def show(answered: int, failed: int) -> None:
            bar.set_postfix(failed=failed, refresh=False)
            bar.update(answered - bar.n)

        yield show


def _print_summary(summary: "Summary", *, as_json: bool) -> None:
    model = summary.model
    if as_json:
        said: dict[str, Any] = {
            "rows": summary.rows,
            "failed": summary.failed,
            "errors": summary.codes,
            "resumed": summary.resumed,
            "seconds": round(summary.seconds, 3),
            "rows_per_second": round(summary.rate, 1),
            "model": {"name": model.name, "version": model.version, "digest": model.digest},
            "tasks": model.tasks,
        }
        print(json.dumps(said), file=sys.stderr)
        return
    errors = ", ".join(f"{code} {count}" for code, count in summary.codes.items())
    parts = [
        f"{summary.rows} rows",
        f"{summary.failed} failed" + (f" ({errors})" if errors else ""),
        f"{summary.rate:.0f} rows/s",
        f"model {model.name} {model.version} ({model.digest[:12]})",
    ]
    if summary.resumed:
        parts.insert(1, f"{summary.resumed} of them by the run before")
    print(f"gmerging: {', '.join(parts)}", file=sys.stderr)


def _print_labels(artifact: Path, tasks: Sequence[str] | None, *, as_json: bool) -> None:
    from models.artifact import read_manifest
    from models.task import select_tasks

    manifest, _ = read_manifest(artifact)
    names, _ = select_tasks(tuple(manifest.tasks), tasks)
    found = {name: manifest.tasks[name] for name in names}
    if as_json:
        shown = {name: info.model_dump(mode="json") for name, info in found.items()}
        print(json.dumps(shown, indent=2))
        return
    for name, info in found.items():
        print(f"{name}: {info.description or info.target}")
        if info.meaning is not None:
            print(f"  source: {info.meaning.source}\n  terms: {info.meaning.terms}")
        for label in info.labels:
            print(textwrap.indent(info.label_text(label), "    "))
