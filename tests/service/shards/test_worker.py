"""The process that screens what it is told, in this one."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from service.shards import worker
from service.shards.isolation import ChildStartError
from service.shards.shard import Screener
from tests.service.shards.test_shard import model, shard_of, write_table


def reports(*messages: object) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    worker.serve(io.BytesIO(b"".join(map(pickle.dumps, messages))), stream)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_it_reports_rows_and_ends(
    pico_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.shards.shard.CHUNK_ROWS", 2)
    path = write_table(tmp_path / "m.csv", [["smiles"], ["CCO"], ["C1"], ["CCN"]])
    bad = tmp_path / "m.parquet"
    bad.write_text("no parquet")
    order = model(pico_artifact), False
    ready, *found, failed = reports(order, shard_of(path), shard_of(bad))
    assert ready == {"ready": True}
    assert found == [
        {"rows": 0},
        {"rows": 2},
        {"rows": 3},
        {"done": 3, "kept": 3, "errors": {"smiles_syntax": 1}},
        {"rows": 0},
    ]
    assert failed["failed"].startswith("got no Parquet file")
    assert failed["final"]


def test_what_may_go_well_next_time_is_not_final(
    pico_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = shard_of(tmp_path / "nothing.csv")
    *_, failed = reports((model(pico_artifact), False), missing)
    assert failed["final"] is False
    assert "nothing.csv" in failed["failed"]

    def fail(*_: object) -> None:
        raise ChildStartError("got no child")

    monkeypatch.setattr(Screener, "__call__", fail)
    *_, failed = reports((model(pico_artifact), False), missing)
    assert failed == {"failed": "got no child", "final": False}


def test_a_model_that_cannot_be_used_is_refused(pico_artifact: Path) -> None:
    asked = model(pico_artifact, tasks=("nope",), labels=("nope.x",))
    (refused,) = reports((asked, False))
    assert refused["code"] == "unknown_task"
    assert "unknown task 'nope'" in refused["refused"]


def test_nobody_who_reads_reports_ends_it(pico_artifact: Path, tmp_path: Path) -> None:
    class Gone(io.BytesIO):
        written = 0

        def write(self, data: object) -> int:
            self.written += 1
            if self.written > 2:
                raise BrokenPipeError
            return 0

    path = write_table(tmp_path / "m.csv", [["smiles"], ["CCO"]])
    messages = pickle.dumps((model(pico_artifact), False)) + pickle.dumps(shard_of(path))
    with pytest.raises(BrokenPipeError):
        worker.serve(io.BytesIO(messages), Gone())
    left = [file.name for file in (tmp_path / "out").iterdir()]
    assert left == [".m.csv.parquet.note"]
