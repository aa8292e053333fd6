"""Plans: shards, their names, and parts."""

from pathlib import Path

import pytest

from service.shards.plan import (
    Plan,
    PlanError,
    PlannedModel,
    PlannedShard,
    find_shards,
    read_plan,
    shard_name,
    write_plan,
)
from service.shards.request import ScreenRequest
from tests.service.shards.test_request import LIMITS

MODEL = PlannedModel(artifact="admet", name="admet", version="1", digest="0" * 64)
REQUEST = ScreenRequest(tasks=("herg",), labels=("herg.blocker",), limits=LIMITS)


def plan_of(count: int, parts: int, output: str = "/out") -> Plan:
    shards = tuple(
        PlannedShard(name=f"p{k}.csv", address=f"/in/p{k}.csv", size=1) for k in range(count)
    )
    return Plan(model=MODEL, request=REQUEST, output=output, parts=parts, shards=shards)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name, size in (
        ("a/part-0.csv.gz", 3),
        ("b/part-0.csv.gz", 9),
        ("b/part-0.parquet", 1),
        ("README.md", 1),
        ("_SUCCESS.csv", 1),
        (".hidden/p.csv", 1),
    ):
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return tmp_path / "library"


def test_shards_are_named_by_their_whole_relative_path_the_largest_first(library: Path) -> None:
    shards, ignored = find_shards([str(library)], any_name=False)
    assert [shard.name for shard in shards] == [
        "b/part-0.csv.gz",
        "a/part-0.csv.gz",
        "b/part-0.parquet",
    ]
    assert ignored == [".hidden/p.csv", "README.md", "_SUCCESS.csv"]
    assert shards[0].address == str(library / "b/part-0.csv.gz")
    assert "README.md" in [shard.name for shard in find_shards([str(library)], any_name=True)[0]]


def test_names_of_several_inputs_are_relative_to_the_folder_that_holds_them(library: Path) -> None:
    given = [str(library / "a"), str(library / "b" / "part-0.csv.gz")]
    shards, _ = find_shards(given, any_name=False)
    assert {shard.name for shard in shards} == {"a/part-0.csv.gz", "b/part-0.csv.gz"}
    shards, _ = find_shards([given[1]], any_name=False)
    assert [shard.name for shard in shards] == ["part-0.csv.gz"]
    assert len(find_shards([given[1], given[1]], any_name=False)[0]) == 1


def test_inputs_that_hold_no_shard_are_refused(library: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match="got no shard in"):
        find_shards([str(tmp_path / "empty")], any_name=False)
    with pytest.raises(FileNotFoundError):
        find_shards([str(tmp_path / "nothing")], any_name=False)
    with pytest.raises(PlanError, match="expected inputs on one file system"):
        find_shards([str(library), "s3://bucket/a"], any_name=False)


@pytest.mark.parametrize(("count", "parts"), [(7, 3), (3, 7), (1, 1)])
def test_every_shard_is_in_one_part(count: int, parts: int) -> None:
    plan = plan_of(count, parts)
    dealt = [shard.name for index in range(parts) for shard in plan.part(index)]
    assert sorted(dealt) == sorted(shard.name for shard in plan.part(None))
    assert len(set(dealt)) == count
    assert plan.part(None)[0].output == "/out/p0.csv.parquet"
    with pytest.raises(PlanError, match=f"got part {parts}, expected 0 to {parts - 1}"):
        plan.part(parts)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, plan_of(3, 2))
    assert read_plan(path) == plan_of(3, 2)
    path.write_text(path.read_text().replace('"parts": 2', '"parts": 0'))
    with pytest.raises(PlanError, match="got no plan: parts:"):
        read_plan(path)


def test_a_single_shard_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shard_name("a/../b/p.csv", None) == "b/p.csv"
    assert shard_name(str(tmp_path / "b/p.csv"), None) == "b/p.csv"
    assert shard_name("/elsewhere/b/p.csv", None) == "elsewhere/b/p.csv"
    assert shard_name("/elsewhere/b/p.csv", "/elsewhere") == "b/p.csv"
    assert shard_name("s3://bucket/b/p.csv", None) == "bucket/b/p.csv"
    assert shard_name("s3://bucket/b/p.csv", "s3://bucket/b/") == "p.csv"
    with pytest.raises(PlanError, match="which is not in /other"):
        shard_name("/elsewhere/p.csv", "/other")
