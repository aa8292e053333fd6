"""Real processes, really killed."""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.data.depiction import DepictionStyle
from models.data.smiles import featurize
from service.core import parsing
from service.core.parsing import Loss, Parser, ParserStartError
from service.core.reading import (
    Depicted,
    Drawing,
    ItemFailure,
    MoleculeLimits,
    Parsed,
    Source,
    similarity_fingerprint,
)

SMILES = [
    "CCO",
    "c1ccccc1",
    "OC(=O)C",
    "[Na+].[Cl-]",
    "C[C@H](N)C(=O)O",
    "C/C=C/C",
    "[nH]1cccc1",
    "C",
]
# RDKit needs seconds for it, with the interpreter's lock in its hand.
HOSTILE = "NCC(=O)" * 8000 + "[2H]"  # an isotope, for which RDKit reads it all; more than 10 s
LIMITS = MoleculeLimits(max_atoms=500, max_smiles_length=100_000)


class Losses(list[Loss]):
    pass


@pytest.fixture
def losses() -> Losses:
    return Losses()


def started(losses: Losses, timeout_seconds: float) -> Iterator[Parser]:
    parser = Parser(LIMITS, 2, timeout_seconds, losses.append)
    asyncio.run(parser.parse(["C"]))
    losses.clear()
    yield parser
    parser.close()


@pytest.fixture
def parser(losses: Losses) -> Iterator[Parser]:
    """Patient: on a busy machine nothing here takes too long."""
    yield from started(losses, 60)


@pytest.fixture
def strict_parser(losses: Losses) -> Iterator[Parser]:
    """Gives a molecule a tenth of the time that HOSTILE takes, on a fast machine too."""
    yield from started(losses, 1)


def shown(results: list[Parsed | ItemFailure]) -> list[str | None]:
    return [result.smiles if isinstance(result, Parsed) else result.code for result in results]


def workers(parser: Parser) -> list[int]:
    return list(parser._pool._pool_manager.worker_manager.workers)


def kill_one(parser: Parser) -> None:
    for pid in workers(parser)[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_order_over_chunks(parser: Parser) -> None:
    sources: list[Source] = [
        smiles if k % 5 else "not a molecule" for k, smiles in enumerate(SMILES * 6)
    ]
    expected = [
        featurize(smiles).smiles if k % 5 else "smiles_syntax"
        for k, smiles in enumerate(SMILES * 6)
    ]
    assert shown(asyncio.run(parser.parse(sources))) == expected


def test_graphs_arrive_as_they_were_read(parser: Parser) -> None:
    for smiles, result in zip(SMILES, asyncio.run(parser.parse(SMILES)), strict=True):
        assert isinstance(result, Parsed)
        expected = featurize(smiles).graph
        assert result.graph.x.equal(expected.x)
        assert result.graph.edge_index.equal(expected.edge_index)
        assert result.graph.edge_attr.equal(expected.edge_attr)


def test_molecule_that_takes_too_long_costs_its_sender_an_error_and_nobody_else_anything(
    strict_parser: Parser, losses: Losses
) -> None:
    async def both() -> tuple[list[Parsed | ItemFailure], int]:
        hostile = asyncio.create_task(strict_parser.parse(["CCO", HOSTILE, "C"]))
        meanwhile = 0
        while not hostile.done():
            assert shown(await strict_parser.parse(["OCC"])) == ["CCO"]
            meanwhile += not hostile.done()
        return await hostile, meanwhile

    results, meanwhile = asyncio.run(both())
    assert shown(results) == ["CCO", "parse_timeout", "C"]
    assert losses == ["timeout", "timeout"]  # with its chunk, and alone
    assert meanwhile > 0  # the others went on


def test_request_full_of_them_is_given_up(strict_parser: Parser, losses: Losses) -> None:
    results = asyncio.run(strict_parser.parse([HOSTILE] * 20 + ["C"]))
    assert set(shown(results)) == {"parse_timeout"}
    assert isinstance(results[19], ItemFailure)
    assert "not tried" in results[19].message
    assert losses == ["timeout"] * 4
    assert shown(asyncio.run(strict_parser.parse(["C"]))) == ["C"]


def test_request_that_is_given_up_does_not_leave_its_molecule_behind(
    strict_parser: Parser, losses: Losses
) -> None:
    async def give_up() -> None:
        requests = [asyncio.create_task(strict_parser.parse([HOSTILE])) for _ in range(2)]
        await asyncio.sleep(0.1)
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)
        assert shown(await strict_parser.parse(["C"])) == ["C"]  # both were busy

    asyncio.run(give_up())
    assert set(losses) == {"timeout"}


def test_clock_on_the_wall_may_jump(
    parser: Parser, losses: Losses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a day at each look, where a chunk may take a minute: who goes by it gives all up."""
    now = itertools.count(time.time(), 86_400)
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    assert set(shown(asyncio.run(parser.parse(["C" * 400] * 64)))) == {"C" * 400}
    assert losses == []


def test_killed_process_is_replaced_and_nothing_is_lost(parser: Parser) -> None:
    async def while_killing() -> list[list[Parsed | ItemFailure]]:
        requests = [asyncio.create_task(parser.parse(SMILES * 8)) for _ in range(4)]
        for _ in range(2):  # a molecule is read three times: with its chunk, and twice alone
            await asyncio.sleep(0.02)
            kill_one(parser)
        return await asyncio.gather(*requests)

    expected = [featurize(smiles).smiles for smiles in SMILES * 8]
    for results in asyncio.run(while_killing()):
        assert shown(results) == expected


def test_process_killed_while_idle_is_replaced(parser: Parser) -> None:
    for _ in range(3):
        kill_one(parser)
        time.sleep(0.3)
        assert shown(asyncio.run(parser.parse(["C"]))) == ["C"]


def test_molecule_that_kills_its_process_twice_is_its_senders_trouble(
    parser: Parser, losses: Losses
) -> None:
    async def while_killing() -> list[Parsed | ItemFailure]:
        request = asyncio.create_task(parser.parse([HOSTILE]))
        while not request.done():
            await asyncio.sleep(0.1)
            kill_one(parser)
        return await request

    (result,) = asyncio.run(while_killing())
    assert isinstance(result, ItemFailure)
    assert result.code == "unreadable"
    assert "died" in losses


def test_processes_end_with_the_parser() -> None:
    parser = Parser(LIMITS, 2)
    asyncio.run(parser.parse(["C"]))
    pids = workers(parser)
    assert pids
    parser.close()
    assert not any(
        Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
        for pid in pids
    )


def test_all_processes_read_a_molecule_at_the_start(losses: Losses) -> None:
    parser = Parser(LIMITS, 3, 0.5, losses.append)
    asyncio.run(parser.start())
    pids = workers(parser)
    assert len(pids) == 3
    assert shown(asyncio.run(parser.parse(["C"]))) == ["C"]
    assert workers(parser) == pids
    parser.close()
    assert losses == []


def test_processes_that_cannot_read_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser(MoleculeLimits(max_atoms=0, max_smiles_length=10), 2)
    with pytest.raises(ParserStartError, match=r"do not work: got .* for C, expected it read"):
        asyncio.run(parser.start())
    parser.close()


def test_processes_that_die_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "_read_first", os.abort)  # by its name, which the process resolves
    parser = Parser(LIMITS, 2)
    with pytest.raises(ParserStartError, match="do not work: got "):
        asyncio.run(parser.start())
    parser.close()


def test_a_short_molecule_alone_is_read_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser(LIMITS)
    handed = []

    async def run(chunk: list[Source], _: object) -> list[Parsed | ItemFailure]:
        handed.append(chunk)
        return [ItemFailure("unreadable", "") for _ in chunk]

    monkeypatch.setattr(parser, "_run", run)
    try:
        assert shown(asyncio.run(parser.parse(["OCC"], idle=True))) == ["CCO"]
        (failure,) = asyncio.run(parser.parse(["CC(C)(C)(C)C"], idle=True))
        assert isinstance(failure, ItemFailure)
        assert failure.code == "chemistry"
        assert not handed
        others = ["C[C@H](N)O", "C" * 101, "C%12CC%12", "C1CC1" * 9, "[2H]C", HOSTILE]
        for text in others:
            asyncio.run(parser.parse([text], idle=True))
        asyncio.run(parser.parse(["OCC"]))
        asyncio.run(parser.parse(["OCC", "C"], idle=True))
        assert handed == [*([text] for text in others), ["OCC"], ["OCC", "C"]]
    finally:
        parser.close()


def test_a_molecule_that_takes_too_long_to_draw_costs_only_itself(
    strict_parser: Parser, losses: Losses
) -> None:
    drawings = [Drawing(text, DepictionStyle()) for text in ("CCO", HOSTILE, "CCN")]
    first, late, last = asyncio.run(strict_parser.depict(drawings))
    assert isinstance(first, Depicted)
    assert isinstance(last, Depicted)
    assert isinstance(late, ItemFailure)
    assert late.code == "parse_timeout"
    assert set(losses) == {"timeout"}


def test_fingerprints_are_those_of_this_process(parser: Parser) -> None:
    smiles = ["CCO", "c1ccccc1C(=O)O", "not a molecule", *["C" * k for k in range(1, 40)]]
    found = asyncio.run(parser.similarity_fingerprints(smiles))
    assert len(found) == len(smiles)
    for text, bits in zip(smiles, found, strict=True):
        expected = similarity_fingerprint(text)
        if isinstance(bits, ItemFailure):
            assert bits == expected
            assert text == "not a molecule"
        else:
            assert np.array_equal(bits, expected)
