"""Files answered without HTTP, in this process or in several, group by group and in order.

The rows of a group depend on its records alone, not on what is answered beside it, so that a run
that was stopped goes on to the same bytes.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from models.data.smiles_parser import is_short
from models.experts.combination import ExpertChoice
from models.experts.unified import Routing
from service.bulk.flow import file_groups, in_order
from service.core.answer import Answer, Result
from service.core.artifact_engine import load_engine
from service.core.engine import PredictionQuery
from service.core.explaining import with_explanations
from service.core.explanations.alerts import alerts_of
from service.core.explanations.drugs import explain_drugs
from service.core.explanations.rows import explained_rows
from service.core.layout import lay_out, with_blocks, without_block
from service.core.local import predict_parsed
from service.core.parsing import Parser
from service.core.reading import (
    ItemFailure,
    MoleculeLimits,
    Parsed,
    Record,
    Source,
    map_guarded,
    read_all,
)
from service.formats.molecule_files import MoleculeFile
from service.formats.row_writers import RowKind, row_writer
from service.schemas import ExplanationName, RowExplanation
from service.settings import Settings

log = logging.getLogger(__name__)
GROUP_SIZE = 256
"""Records of a group: the model is as fast as with more, and a stopped run loses few."""
WINDOW = 2
"""Groups under way in a process: one is read while the other is in the model."""
Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class LocalQuery:
    """Model, tasks and rows to write; can be sent to another process.

    Attributes:
        artifact: folder of the model.
        settings: limits, device, threads.
        tasks: names; None for all.
        routing: "own", "moe" or "merged".
        experts: None for the default ones of every task.
        output: kind of the rows.
        file: what is read, without its records.
        explain: explanations of the rows.
        escape_formulas: see `ResultWriter`.
    """

    artifact: Path
    settings: Settings
    tasks: tuple[str, ...] | None
    routing: Routing
    experts: ExpertChoice | None
    output: RowKind
    file: MoleculeFile
    explain: tuple[RowExplanation, ...] = ()
    escape_formulas: bool = False


@dataclass(frozen=True)
class Described:
    """The model that answers, and the tasks that it is asked for.

    Attributes:
        name, version, digest: of the artifact.
        device: name of the torch device.
        tasks: in the order of the columns.
        header: what precedes the rows.
    """

    name: str
    version: str
    digest: str
    device: str
    tasks: tuple[str, ...]
    header: bytes


@dataclass(frozen=True)
class Rows:
    """The rows of a group.

    Attributes:
        data: the rows as they are written.
        count: number of records.
        codes: number of failed records by error code.
    """

    data: bytes
    count: int
    codes: Mapping[str, int]


Group = tuple[int, list[Record]]
"""Index of the first record in the file, and the records."""


class Answering(Protocol):
    """Answers groups of records; `window` of them may be under way at a time."""

    described: Described
    window: int

    async def __call__(self, group: Group) -> Rows:
        """Return the rows of a group."""
        ...

    async def close(self) -> None:
        """Stop the processes."""
        ...


class LocalAnswering:
    """Answers groups in this process.

    Short SMILES are read here. Other molecules, which may take RDKit seconds or end its process,
    are read by a process of their own, which starts with the first of them.
    """

    window = WINDOW

    def __init__(self, query: LocalQuery) -> None:
        """Load the model. Raises GMergingError: it, or what it is asked for, cannot be used."""
        settings, engine = query.settings, load_engine(query.artifact, query.settings)
        info = engine.info
        self._query = PredictionQuery.checked(
            info.name, engine, query.tasks, query.routing, query.experts
        )
        info.check_table(self._query.tasks)
        self._explained = explained_rows(self._query, query.explain)
        rows = query.file, info, self._query.tasks, self._explained
        self._writer = row_writer(query.output, *rows, query.escape_formulas)
        self._lays_out = query.output == "sdf"
        self._settings = settings
        self._limits = MoleculeLimits(settings.max_atoms, settings.max_smiles_length)
        self._parser: Parser | None = None
        self._model = asyncio.Lock()
        self.described = Described(
            info.name,
            info.version,
            info.digest,
            info.device,
            self._query.tasks,
            self._writer.header(),
        )

    async def __call__(self, group: Group) -> Rows:
        """Return the rows of a group; a model pass that fails is an error of all its records."""
        index, records = group
        sources = [r.source for r in records if not isinstance(r.source, ItemFailure)]
        parsed = await self._read(sources)
        async with self._model:
            results = await asyncio.to_thread(self._predict, index, parsed)
            results = await self._explain(results)
            if self._lays_out:
                missing = without_block(sources, results)
                blocks = await self._by_molecule([*missing.values()], lay_out, "draw")
                results = with_blocks(results, [*missing], blocks)
            return await asyncio.to_thread(self._rows, index, records, results)

    async def close(self) -> None:
        """Stop the process that reads molecules."""
        if self._parser is not None:
            await asyncio.to_thread(self._parser.close)

    async def _read(self, sources: Sequence[Source]) -> list[Parsed | ItemFailure]:
        here = [isinstance(source, str) and is_short(source) for source in sources]
        requirements = self._query.requirements

        async def there(others: Sequence[Source]) -> list[Parsed | ItemFailure]:
            return await self._process().parse(others, requirements)

        return await _divided(
            sources, here, lambda short: read_all(short, self._limits, requirements), there
        )

    async def _by_molecule(
        self, smiles: Sequence[str], work: Callable[[str], Found | ItemFailure], verb: str
    ) -> list[Found | ItemFailure]:
        """Apply a function to canonical SMILES: to short ones here."""

        async def there(others: Sequence[str]) -> list[Found | ItemFailure]:
            return await self._process().apply(others, work, verb)

        here = [is_short(text) for text in smiles]
        return await _divided(smiles, here, partial(map_guarded, work), there)

    def _process(self) -> Parser:
        if self._parser is None:
            self._parser = Parser(self._limits, 1, self._settings.parse_timeout_seconds)
        return self._parser

    def _predict(self, index: int, parsed: Sequence[Parsed | ItemFailure]) -> Sequence[Result]:
        try:
            return predict_parsed(self._query, parsed, self._settings.max_batch_cost)
        except Exception:
            log.exception("the model failed on %d molecules from record %d", len(parsed), index)
            message = "the model failed; standard error says more"
            return [ItemFailure("internal", message)] * len(parsed)

    async def _explain(self, results: Sequence[Result]) -> Sequence[Result]:
        """Add the explanations of rows; their molecules were read as text."""
        answers = [result for result in results if isinstance(result, Answer)]
        found: dict[ExplanationName, Sequence[Any]] = {}
        if answers and "drugs" in self._explained.names:
            asked = self._query, answers, self._explained
            found["drugs"] = await explain_drugs(*asked, math.inf)
        if answers and "alerts" in self._explained.names:
            smiles = [answer.smiles or "" for answer in answers]
            found["alerts"] = await self._by_molecule(smiles, alerts_of, "search for alerts")
        return with_explanations(results, found) if found else results

    def _rows(self, index: int, records: Sequence[Record], results: Sequence[Result]) -> Rows:
        left = iter(results)
        answered = [
            (record, record.source if isinstance(record.source, ItemFailure) else next(left))
            for record in records
        ]
        codes = Counter(r.code for _, r in answered if isinstance(r, ItemFailure))
        self._writer.answered = index
        return Rows(self._writer.rows(answered), len(records), codes)


async def _divided(
    items: Sequence[Item],
    here: Sequence[bool],
    work: Callable[[list[Item]], list[Found]],
    there: Callable[[Sequence[Item]], Awaitable[list[Found]]],
) -> list[Found]:
    """Do some work in this process and, at the same time, the rest in another one.

    Args:
        items: in the order of the results.
        here: whether an item is worked on in this process.
        work: does it in this process.
        there: does it in the other one.
    """
    others = [item for item, is_here in zip(items, here, strict=True) if not is_here]
    waiting = asyncio.ensure_future(there(others)) if others else None
    await asyncio.sleep(0)  # it begins now
    found = iter(work([item for item, is_here in zip(items, here, strict=True) if is_here]))
    found_there = iter([] if waiting is None else await waiting)
    return [next(found if is_here else found_there) for is_here in here]


def without_records(file: MoleculeFile) -> MoleculeFile:
    """Return the description of a file, which unlike its records can be sent to a process."""
    return replace(file, records=iter(()))


async def answer_file(
    file: MoleculeFile, answering: Answering, answered: int, take: Callable[[Rows], Awaitable[None]]
) -> None:
    """Answer the records of a file that are left, and hand over their rows in order.

    Args:
        file: positioned at the first record that is not answered.
        answering: answers a group.
        answered: number of records before it.
        take: called with the rows of every group.
    """

    async def indexed() -> AsyncIterator[Group]:
        index = answered
        async for records in file_groups(file, GROUP_SIZE):
            yield index, records
            index += len(records)

    async with aclosing(in_order(indexed(), answering, window=answering.window)) as found:
        async for rows in found:
            await take(rows)
