"""Stages over one store that log who made them."""

import os
from functools import partial
from pathlib import Path

import torch

from merging.config.base import Setting
from merging.run.stage import Stage
from merging.run.store import ResultStore, StageResult


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


def diamond(house: House) -> Stage:
    below = house.stage("below")
    sides = house.stage("left", below, size=1), house.stage("right", below, size=2)
    return house.stage("top", *sides)
