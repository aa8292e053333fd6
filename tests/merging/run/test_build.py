"""Builds make every stage once, in any executor and with any number of processes."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from merging.data.files import write_tensors
from merging.data.lease import take
from merging.run.build import Share, build
from merging.run.stage import Stage
from merging.run.store import StageResult
from models.errors import TrainingError
from tests.merging.run.house import House, diamond


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_each_is_made_once_inputs_first(house: House, processes: int) -> None:
    top = diamond(house)
    build([top, top, *top.inputs], house.store, processes)
    assert sorted(house.made) == ["below", "left", "right", "top"]
    assert (house.made[0], house.made[-1]) == ("below", "top")
    assert float(top.result(house.store).tensors["sum"]) == 1 + 2 + 2
    assert (str(os.getpid()) in house.processes) == (processes == 1)
    build([top], house.store, processes)
    assert len(house.made) == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_the_largest_of_what_is_ready_is_made_first(house: House, processes: int) -> None:
    small, large, middle = (
        house.stage(name, size=size) for name, size in (("a", 1), ("b", 9), ("c", 5))
    )
    build([small, large, middle], house.store, processes)
    assert house.made == ["b", "c", "a"] if processes == 1 else house.made[0] in ("b", "c")


def test_what_a_finished_stage_stood_on_is_not_made_again(house: House) -> None:
    top = diamond(house)
    top.result(house.store)
    for path in house.store.folder.iterdir():
        if not path.name.startswith("top"):
            path.unlink()
    build([diamond(house)], house.store)
    assert house.made.count("below") == 1
    assert diamond(house).result(house.store).record == {"made": "top"}
    build([diamond(house).inputs[0]], house.store)  # but where it is wanted itself
    assert house.made.count("below") == 2


def fail(_: Path) -> StageResult:
    raise TrainingError("got no luck")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_ends_the_build_and_leaves_what_is_finished(house: House, processes: int) -> None:
    broken = Stage("broken", 0, (), (house.stage("below"),), fail)
    stages = [house.stage("above", broken), broken]
    with pytest.raises(TrainingError, match=r"^broken: got no luck$"):
        build(stages, house.store, processes)
    assert house.made == ["below"]
    assert house.store.has(house.stage("below").result_name)
    assert not house.store.has(stages[0].result_name)


# --- executors of the caller ---


def executors() -> dict[str, Callable[[], AbstractContextManager[Executor]]]:
    spawn = get_context("spawn")
    return {
        "threads": lambda: ThreadPoolExecutor(3),
        "processes": lambda: ProcessPoolExecutor(2, mp_context=spawn),
        "loky": lambda: get_reusable_executor(2),
    }


@pytest.fixture(scope="module", params=executors())
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with executors()[request.param]() as pool:
        yield pool


def test_any_executor_makes_each_once_and_is_left_open(house: House, executor: Executor) -> None:
    assert build([diamond(house)], house.store, executor=executor) == 0
    assert sorted(house.made) == ["below", "left", "right", "top"]
    assert (house.made[0], house.made[-1]) == ("below", "top")
    assert float(diamond(house).result(house.store).tensors["sum"]) == 1 + 2 + 2
    in_threads = isinstance(executor, ThreadPoolExecutor)
    assert (house.processes == {str(os.getpid())}) == in_threads
    assert executor.submit(pow, 2, 3).result(60) == 8


def fail_oddly(_: Path) -> StageResult:
    raise ValueError("got nonsense")


def test_an_error_in_any_executor_says_which_stage(house: House, executor: Executor) -> None:
    broken = Stage("finetuned/bace", 0, (), (house.stage("below"),), fail_oddly)
    with pytest.raises(ValueError, match=r"^got nonsense\nwhile making finetuned/bace$"):
        build([house.stage("above", broken)], house.store, executor=executor)
    assert house.made == ["below"]
    broken = Stage("broken", 0, (), (), fail)
    with pytest.raises(TrainingError, match=r"^broken: got no luck$") as named:
        build([broken], house.store, executor=executor)
    assert not hasattr(named.value, "__notes__")  # the message has the name
    assert not list(house.store.folder.rglob("*.lease.*"))


def die_beside(other: Path, _: Path) -> StageResult:
    """Die once another stage is being made."""
    while not other.exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def idle(begun: Path, _: Path) -> StageResult:
    """Say so, and go on until the pool ends its processes."""
    begun.touch()
    time.sleep(600)
    return StageResult()


def test_a_process_that_dies_is_said_with_what_it_made(house: House, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    deadly = Stage("deadly", 0, (), (), partial(die_beside, begun), size=5)
    other = Stage("idle", 0, (), (), partial(idle, begun))
    with pytest.raises(BrokenExecutor) as caught:
        build([deadly, other], house.store, processes=2)
    assert caught.value.__notes__ == ["while making deadly or idle"]
    with pytest.raises(TrainingError):  # the lease of who died is taken over at once
        Stage("deadly", 0, (), (), fail).result(house.store)


def count_threads(_: Path) -> StageResult:
    return StageResult(record={"threads": torch.get_num_threads()})


def test_a_worker_gets_its_threads_and_this_process_keeps_its_own(house: House) -> None:
    before = torch.get_num_threads()
    here = Stage("here", 0, (), (), count_threads)
    build([here], house.store, threads=before + 1)
    assert here.result(house.store).record["threads"] == before
    there = Stage("there", 0, (), (), count_threads)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        build([there], house.store, threads=3, executor=pool)
    assert there.result(house.store).record["threads"] == 3


def draw(meeting: threading.Barrier, _: Path) -> StageResult:
    torch.manual_seed(0)
    with suppress(threading.BrokenBarrierError):
        meeting.wait(0.3)  # a second thread would draw from the same numbers now
    return StageResult({"drawn": torch.rand(3)})


def test_threads_of_a_process_draw_the_numbers_of_one(house: House) -> None:
    meeting = threading.Barrier(2)
    stages = [Stage(f"draw{k}", 0, (), (), partial(draw, meeting)) for k in range(2)]
    with ThreadPoolExecutor(2) as pool:
        build(stages, house.store, executor=pool)
    first, second = (stage.result(house.store).tensors["drawn"] for stage in stages)
    assert meeting.broken
    assert torch.equal(first, second)


# --- several builds of one folder ---


def test_what_another_process_makes_is_left_to_it(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The largest stage is held: the others are made first, and then it is waited for."""
    held, first, second = (
        house.stage(name, size=size) for name, size in (("held", 9), ("first", 5), ("second", 1))
    )
    above = house.stage("above", held, first)
    pauses = [0.01, *[0.02] * 1000]
    monkeypatch.setattr("merging.run.build.pauses_of_waiting", lambda: iter(pauses))
    monkeypatch.setattr("merging.run.build.SPOKEN_PAUSE", pauses[0])
    lease = take(house.store.path(held.result_name), None)
    assert lease
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build, [above, held, second], house.store)
        while len(house.made) < 2 or "waiting" not in (said := capsys.readouterr().err):
            time.sleep(0.01)
        assert not building.done()
        lease.__exit__()
        assert building.result(20) == 0
    assert house.made == ["first", "second", "held", "above"]
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    assert f"waiting for stages that others make: held (by {owner})" in said


def test_a_stage_that_another_process_stores_is_not_made(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merging.run.build.pauses_of_waiting", lambda: repeat(0.02))
    stage = house.stage("held")
    lease = take(house.store.path(stage.result_name), None)
    assert lease
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build, [stage], house.store)
        time.sleep(0.2)
        write_tensors(
            house.store.folder / f"{stage.result_name}.safetensors",
            {"sum": torch.tensor(7.0)},
            {"record": "{}"},
        )
        lease.__exit__()
        building.result(20)
    assert house.made == []


def tower(house: House) -> list[Stage]:
    """As a release: six models, their merge, six adapters."""
    models = [house.stage(f"model{k}", size=k) for k in range(6)]
    merge = house.stage("merge", *models)
    return [house.stage(f"adapters{k}", merge, models[k], size=k) for k in range(6)]


def test_shares_divide_every_level(house: House) -> None:
    targets = tower(house)
    shares = [Share(index, 3).stages(targets) for index in range(3)]
    names = [name for share in shares for name in share]
    assert len(names) == len(set(names)) == 13
    for share in shares:
        kinds = Counter(name.split("-")[0].rstrip("012345") for name in share)
        assert kinds["model"] == kinds["adapters"] == 2
    targets[0].inputs[1].result(house.store)  # what is stored is dealt all the same
    assert [Share(index, 3).stages(targets) for index in range(3)] == shares
    assert Share(0, 1).stages(targets) == set(names)


def test_a_share_makes_its_own_and_what_they_stand_on(house: House) -> None:
    targets = tower(house)
    share = Share(1, 3)
    own = {name.split("-")[0] for name in share.stages(targets)}
    assert build(targets, house.store, share=share) == 4
    made = house.made
    assert set(made) == own | {f"model{k}" for k in range(6)} | {"merge"}
    assert made[:2] == sorted((name for name in own if "model" in name), reverse=True)
    assert build(targets, house.store, share=share) == 4
    assert house.made == made
    assert build(targets, house.store, share=Share(0, 3)) == 2
    assert build(targets, house.store, share=Share(2, 3)) == 0
    assert len(house.made) == len(set(house.made)) == 13
