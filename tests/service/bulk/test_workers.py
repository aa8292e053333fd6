"""Processes that answer groups of records."""

import io
import os
import pickle
import signal
from pathlib import Path

import pytest

from models.errors import GMergingError
from service.bulk import workers
from service.bulk.local import LocalQuery, Rows
from service.bulk.workers import WorkerLostError, Workers
from service.core.reading import Record
from service.formats.molecule_files import MoleculeFile
from tests.service.doubles import settings_of

pytestmark = pytest.mark.anyio
FILE = MoleculeFile(("smiles",), iter(()), "utf-8", "smiles", None)


def query_of(artifact: Path, tasks: tuple[str, ...] = ("bbbp",)) -> LocalQuery:
    return LocalQuery(artifact, settings_of(device="cpu"), tasks, "own", None, "csv", FILE)


def group(*smiles: str) -> tuple[int, list[Record]]:
    return 0, [Record(text, (text,)) for text in smiles]


def answers_in(stream: io.BytesIO) -> list[object]:
    stream.seek(0)
    found = []
    while length := stream.read(workers._LENGTH.size):
        found.append(pickle.loads(stream.read(*workers._LENGTH.unpack(length))))
    return found


async def test_groups_are_answered_in_order_until_the_input_ends(pico_artifact: Path) -> None:
    groups = [group("C", "CC"), group("C1"), group("CCO")]
    messages = io.BytesIO(b"".join(map(pickle.dumps, [query_of(pico_artifact), *groups])))
    answers = io.BytesIO()
    await workers._serve(messages, answers)
    described, *found = answers_in(answers)
    assert described.name == "pico"  # type: ignore[attr-defined]
    assert described.header.startswith(b"smiles,gmerging_smiles,")  # type: ignore[attr-defined]
    assert all(isinstance(rows, Rows) for rows in found)
    assert [(rows.count, dict(rows.codes)) for rows in found if isinstance(rows, Rows)] == [
        (2, {}),
        (1, {"smiles_syntax": 1}),
        (1, {}),
    ]


async def test_what_cannot_be_answered_is_refused_with_its_code(pico_artifact: Path) -> None:
    answers = io.BytesIO()
    await workers._serve(io.BytesIO(pickle.dumps(query_of(pico_artifact, ("nope",)))), answers)
    (refusal,) = answers_in(answers)
    assert refusal.code == "unknown_task"  # type: ignore[attr-defined]
    several = Workers(query_of(pico_artifact, ("nope",)), 1)
    with pytest.raises(GMergingError, match="got unknown task 'nope'") as refused:
        await several.start()
    assert refused.value.code == "unknown_task"
    await several.close()


async def test_nobody_who_waits_for_answers_ends_it(pico_artifact: Path) -> None:
    class Gone(io.BytesIO):
        sent = 0

        def write(self, data: object) -> int:
            self.sent += 1
            if self.sent > 1:
                raise BrokenPipeError
            return 0

    messages = io.BytesIO(pickle.dumps(query_of(pico_artifact)) + pickle.dumps(group("C")))
    await workers._serve(messages, Gone())


async def test_process_that_is_killed_is_an_error_that_says_what_to_do(pico_artifact: Path) -> None:
    several = Workers(query_of(pico_artifact), 1)
    await several.start()
    assert (await several(group("CCO"))).count == 1
    process = several._workers[0]._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerLostError, match=r"status -9\), expected .* fewer --processes"):
        await several(group("CCO"))
    await several.close()


async def test_process_that_does_not_end_is_killed(
    pico_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_CLOSE_SECONDS", 0.05)
    several = Workers(query_of(pico_artifact), 1)
    await several.start()
    process = several._workers[0]._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    await several.close()
    assert process.returncode == -signal.SIGKILL
