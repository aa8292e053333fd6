"""A run of predictions from a file to a file, without HTTP."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from typing import Any

from service.bulk.inputs import RunInput
from service.bulk.local import Described, LocalAnswering, LocalQuery, Rows, answer_file
from service.bulk.output import Output
from service.bulk.workers import Workers

Progress = Callable[[int, int], None]
"""Called with the numbers of records that are answered, and that failed, so far."""


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        model: what answered.
        rows: number of records of the input.
        failed: number of records with an error.
        codes: number of failed records by error code, the most frequent first.
        resumed: number of records that an earlier run had answered.
        seconds: of this run, without loading the model.
    """

    model: Described
    rows: int
    failed: int
    codes: dict[str, int]
    resumed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Records that this run answered per second."""
        return (self.rows - self.resumed) / self.seconds if self.seconds else 0.0


async def run(
    source: RunInput,
    output: Output,
    query: LocalQuery,
    processes: int,
    progress: Progress | None = None,
) -> Summary:
    """Answer every record of an input, from where a stopped run left it.

    Args:
        source: what to read.
        output: where rows go; it is closed in the end.
        query: model, tasks and rows.
        processes: that read, predict and write rows; 1 is this one.
        progress: called before the first and after every group.

    Raises:
        GMergingError: the model, the input or the output cannot be used.
        OSError: the output cannot be written.
    """
    answering = LocalAnswering(query) if processes == 1 else Workers(query, processes)
    try:
        if isinstance(answering, Workers):
            await answering.start()
        file = source.open()
        output.begin(answering.described.header, depends_on(source, query, answering.described))
        resumed = output.answered
        for _ in islice(file.records, resumed):
            pass
        started = time.monotonic()

        async def take(rows: Rows) -> None:
            output.append(rows)
            report()

        def report() -> None:
            if progress is not None:
                progress(output.answered, output.codes.total())

        report()
        await answer_file(file, answering, resumed, take)
        output.finish()
        seconds = time.monotonic() - started
    finally:
        output.close()
        await answering.close()
    codes = dict(output.codes.most_common())
    failed = output.codes.total()
    return Summary(answering.described, output.answered, failed, codes, resumed, seconds)


def depends_on(source: RunInput, query: LocalQuery, model: Described) -> dict[str, Any]:
    """Return all that the rows of a run depend on, by names for people."""
    settings = query.settings
    return {
        "input": source.sha256,
        "input format": source.kind,
        "smiles column": query.file.smiles_column,
        "id field": query.file.id_column,
        "columns": list(query.file.columns),
        "model": model.digest,
        "tasks": list(model.tasks),
        "routing": query.routing,
        "experts": query.experts,
        "explanations": list(query.explain),
        "output format": query.output,
        "escaped formulas": query.escape_formulas,
        "device": model.device,
        "threads": settings.threads,
        "limits": [
            settings.max_atoms,
            settings.max_smiles_length,
            settings.max_batch_cost,
            settings.parse_timeout_seconds,
        ],
        "version": version("g-merging"),
    }


def count_records(source: RunInput) -> int:
    """Return the number of records of an input; it is read once."""
    return sum(1 for _ in source.open().records)
