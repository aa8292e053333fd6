"""How far a screening is."""

import os
from pathlib import Path

import pytest

from service.shards.made import Shard, made_of
from service.shards.note import SILENT_SECONDS, Note, note_of, write_note
from service.shards.places import beside
from service.shards.plan import Plan, PlannedModel, PlannedShard
from service.shards.runner import unfinished
from service.shards.shard import Screener
from service.shards.status import status_of
from tests.service.shards.test_shard import model, request, write_table

NAMES = ("done.csv", "running.csv", "stopped.csv", "failed.csv", "waiting.csv", "changed.csv")


@pytest.fixture
def plan(pico_artifact: Path, tmp_path: Path) -> Plan:
    """A plan with a shard in every state."""
    shards = []
    for name in NAMES:
        path = write_table(tmp_path / name, [["smiles"], ["CCO"], ["C1"]])
        shards.append(PlannedShard(name=name, address=str(path), size=path.stat().st_size))
    screener = Screener(model(pico_artifact))
    made = [Shard(name, str(tmp_path / name), f"{tmp_path}/out/{name}.parquet") for name in NAMES]
    digest = screener(made[0]).about["model"]["digest"]
    screener(made[5])
    (tmp_path / "changed.csv").write_text("smiles\nC\n")
    known = {"temporary": "", "started": 0.0, "updated": 0.0, "rows": 7, "host": "elsewhere"}
    for shard, changes in (
        (made[1], {}),
        (made[2], {"host": os.uname().nodename, "pid": 2**22 + 1, "chunk": 3, "suspects": (1, 3)}),
        (made[3], {"error": "no network"}),
    ):
        note = Note.model_validate({**known, "pid": 1, **changes})
        write_note(shard.output, note)
    planned = PlannedModel(artifact=str(pico_artifact), name="pico", version="1", digest=digest)
    return Plan(
        model=planned,
        request=request(),
        output=str(tmp_path / "out"),
        parts=2,
        shards=tuple(shards),
    )


def test_states_rows_and_failures(plan: Plan) -> None:
    found = status_of(plan)
    assert found.shards == {"done": 1, "running": 1, "failed": 1, "stopped": 1, "waiting": 2}
    assert (found.rows, found.kept, found.errors) == (2, 2, {"smiles_syntax": 1})
    assert found.rows_under_way == 7
    assert found.failed == {"failed.csv": "no network"}
    assert found.rate > 0
    size = plan.shards[0].size
    whole = 2 * sum(shard.size for shard in plan.shards) / size
    assert found.seconds_left == pytest.approx((whole - 2 - 7) / found.rate)


def test_what_is_unfinished_is_left(plan: Plan) -> None:
    left = unfinished(plan.part(None), plan.model.digest, plan.request)
    assert [shard.name for shard in left] == list(NAMES[1:])
    done = plan.part(None)[0].output
    theirs = Path(done).with_name(".theirs")
    for pid, is_kept in ((os.getppid(), True), (2**22 + 1, False)):
        theirs.write_bytes(b"half")
        write_note(done, Note.new(str(theirs), ()).model_copy(update={"pid": pid}))
        assert len(unfinished(plan.part(None)[:1], plan.model.digest, plan.request)) == 0
        assert theirs.exists() == is_kept
        assert (note_of(done) is not None) == is_kept
    other = request(floats="float16")
    assert len(unfinished(plan.part(None), plan.model.digest, other)) == len(NAMES)


def test_a_finished_screening_has_no_time_left(plan: Plan) -> None:
    only = plan.model_copy(update={"shards": plan.shards[:1]})
    found = status_of(only)
    assert (found.seconds_left, found.rate) == (0.0, 0.0)
    nothing = plan.model_copy(update={"output": plan.output + "/other"})
    assert status_of(nothing).seconds_left is None
    Path(plan.shards[0].address).unlink()
    assert status_of(only).shards["waiting"] == 1


def test_notes_tell_the_living_from_the_dead(tmp_path: Path) -> None:
    output = str(tmp_path / "a.parquet")
    note = Note.new("", ())
    assert not note.is_alive  # its process asks: it has begun anew
    others = note.model_copy(update={"pid": os.getppid()})
    assert others.is_alive
    assert not others.model_copy(update={"pid": 2**22 + 1}).is_alive
    assert not others.model_copy(update={"error": "x"}).is_alive
    assert not others.model_copy(update={"updated": others.updated - SILENT_SECONDS - 1}).is_alive
    assert others.model_copy(update={"host": "elsewhere", "pid": 2**22 + 1}).is_alive
    assert note.model_copy(update={"suspects": (4, 1), "chunk": 2}).all_suspects == (1, 2, 4)
    Path(beside(output, ".note")).write_text("{}")
    assert note_of(output) is None


def test_what_is_no_output_has_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert made_of(str(path)) is None
    path.write_text("x")
    made = made_of(str(path))
    assert made is not None
    assert made.about == {}
    assert made.described == "no output of a screening"
