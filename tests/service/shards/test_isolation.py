"""The child that answers suspect records one by one."""

import io
import pickle
from pathlib import Path

import pytest

from service.core.reading import Record
from service.shards import isolation
from service.shards.isolation import ChildStartError, crashes
from service.shards.request import ScreenModel
from tests.service.shards.crashing import KILLS, RAISES, SPINS, write_site
from tests.service.shards.test_shard import model


def records(*smiles: str) -> list[Record]:
    return [Record(text, (text,)) for text in smiles]


def test_a_line_says_of_every_record_that_it_was_answered(
    pico_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)  # of this process
    messages = [model(pico_artifact), *records("CCO", "C1")]
    replies = io.BytesIO()
    isolation.serve(io.BytesIO(b"".join(map(pickle.dumps, messages))), replies)
    assert replies.getvalue() == b"ready\nanswered\nanswered\n"

    def fail(*_: object) -> None:
        raise RuntimeError("too\nmuch é")

    monkeypatch.setattr("service.shards.answering.predict", fail)
    replies = io.BytesIO()
    isolation.serve(io.BytesIO(b"".join(map(pickle.dumps, messages[:2]))), replies)
    assert replies.getvalue() == b"ready\nthe model failed (RuntimeError: too)\n"


def test_a_child_that_does_not_start_accuses_no_record(tmp_path: Path) -> None:
    with pytest.raises(ChildStartError, match=r"a process that loads the model \(status 1\)"):
        crashes(model(tmp_path / "nothing"), records("CCO"))


def test_no_record_needs_no_child(tmp_path: Path) -> None:
    assert crashes(model(tmp_path / "nothing"), []) == {}


class Child:
    """Dies at some records: always, or the first time."""

    def __init__(self, log: list[str], once: set[str]) -> None:
        self.log, self.once = log, once
        log.append("start")

    def answers(self, record: Record) -> str | None:
        text = str(record.source)
        self.log.append(text)
        if text in self.once:
            self.once.discard(text)
            return "killed by somebody"
        return "signal 9" if "X" in text else None

    def close(self) -> None:
        self.log.append("close")


def test_only_a_record_that_ends_two_children_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    once = {"C"}
    monkeypatch.setattr(isolation, "_Child", lambda _: Child(log, once))
    asked: ScreenModel = model(tmp_path)
    assert crashes(asked, records("A", "X", "B", "C", "X2")) == {1: "signal 9", 4: "signal 9"}
    assert " ".join(log) == (
        "start A X close start X close start B C close start C X2 close start X2 close"
    )


@pytest.mark.slow
def test_records_that_kill_spin_or_raise_are_found(
    pico_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", write_site(tmp_path / "site"))
    found = crashes(model(pico_artifact), records("CCO", KILLS, "CCN", RAISES, SPINS, "C1"))
    assert found == {
        1: "its process ended (signal 9)",
        3: "the model failed (RuntimeError: too much)",
        4: "its process ended (its CPU time was used up)",
    }
