"""Stages: keys follow from settings and inputs, and inputs are named."""

from functools import partial
from pathlib import Path

import pytest
import torch

from merging.run.stage import Stage
from merging.run.store import StageResult
from tests.merging.run.house import House, add


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


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
