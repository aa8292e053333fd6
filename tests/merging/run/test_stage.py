"""Stages: keys follow from settings and inputs, and a build makes every stage once."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from merging.config.base import Setting
from merging.run.build import build
from merging.run.stage import Stage
from merging.run.store import ResultStore, StageResult
from models.errors import TrainingError


def add(numbers: list[Stage], store: ResultStore, log: Path, name: str, _: Path) -> StageResult:
    """Add 1 to the sum of the inputs' results, and append the stage's name and process to a log."""
    with log.open("a") as stream:
        stream.write(f"{name} {os.getpid()}\n")
    total = sum(float(stage.result(store).tensors["sum"]) for stage in numbers)
    return StageResult({"sum": torch.tensor(total + 1)}, {"made": name})


class House:
    """Stages over one store, and the order in which they were made."""

    def __init__(self, folder: Path) -> None:
        self.store, self.log = ResultStore(folder / "store"), folder / "log"

    def stage(
        self, name: str, *inputs: Stage, size: int = 0, settings: tuple[Setting, ...] = ()
    ) -> Stage:
        make = partial(add, list(inputs), self.store, self.log, name)
        return Stage(name, 0, settings, inputs, make, size)

    @property
    def made(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [line.split()[0] for line in lines]

    @property
    def processes(self) -> set[str]:
        return {line.split()[1] for line in self.log.read_text().splitlines()}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def diamond(house: House) -> Stage:
    below = house.stage("below")
    sides = house.stage("left", below, size=1), house.stage("right", below, size=2)
    return house.stage("top", *sides)


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


def test_keys_change_with_name_seed_settings_and_inputs_alone(house: House) -> None:
    below = house.stage("below")
    base = house.stage("one", below, settings=("a", 1))
    same = house.stage("one", house.stage("below"), size=7, settings=("a", 1))
    assert base.key == same.key
    others = [
        house.stage("two", below, settings=("a", 1)),
        house.stage("one", below, settings=("a", 2)),
        house.stage("one", settings=("a", 1)),
        house.stage("one", house.stage("below", settings=(0,)), settings=("a", 1)),
        house.stage("one", below, below, settings=("a", 1)),
        Stage("one", 1, ("a", 1), (below,), base.make),
    ]
    assert len({base.key, *(stage.key for stage in others)}) == 1 + len(others)


def test_a_stage_that_reads_what_it_does_not_name_is_refused(house: House) -> None:
    """Its key would not change with the result that it reads."""
    secret, named = house.stage("secret"), house.stage("named")
    make = partial(add, [named, secret], house.store, house.log, "top")
    with pytest.raises(
        RuntimeError, match=r"got secret read by a stage, expected it among its inputs"
    ):
        Stage("top", 0, (), (named,), make).result(house.store)
    above = house.stage("above", named)
    make = partial(add, [above, named], house.store, house.log, "top")
    made = Stage("top", 0, (), (above,), make).result(house.store)  # what inputs stand on may be
    assert float(made.tensors["sum"]) == 1 + 1 + 2
    assert not list(house.store.folder.glob("secret*safetensors"))


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


def test_what_is_only_measured_is_readable_json(house: House) -> None:
    stage = Stage("scores/a", 3, (), (), lambda _: StageResult(record={"valid": 0.5}))
    assert stage.result(house.store).record == {"valid": 0.5}
    (path,) = (house.store.folder / "scores").glob("*.json")
    assert path.name == f"a-seed3-{stage.key}.json"
    assert stage.result(house.store) == StageResult(record={"valid": 0.5})


def test_tensors_are_found_under_their_names() -> None:
    result = StageResult({"heads/a/w": torch.ones(1), "heads/ab/w": torch.zeros(1)})
    assert result.under("heads/a/") == {"w": torch.ones(1)}
    assert result.under("body/") == {}
