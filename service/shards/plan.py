"""The plan of a screening: a file that names the model, what is asked, and the shards, in a number
of parts that is fixed once, so that no scheduler's variable decides who screens what."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import ConfigError, InvalidInputError
from models.files import write_atomically
from models.validation import problems_of
from service.formats.kinds import kind_by_name
from service.shards.made import Shard, output_of
from service.shards.places import Found, files_at, is_remote
from service.shards.request import ScreenRequest

MOST_PARTS = 1000
"""Parts of a plan if no number is given, or there are fewer shards: SLURM's default limit of an
array is 1001 tasks (`MaxArraySize`)."""


class PlanError(ConfigError):
    """A plan cannot be made, or its file is no plan."""


class PlannedShard(BaseModel):
    """A shard: its relative path, its address, and its size in bytes when it was planned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    address: str
    size: int


class PlannedModel(BaseModel):
    """The model: a released name or a folder, and what identifies it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: str
    name: str
    version: str
    digest: str


class Plan(BaseModel):
    """A plan.

    Attributes:
        format: version of the file's format.
        model: that answers.
        request: what is asked.
        output: folder of the outputs.
        parts: number of parts.
        shards: the largest first; part i has every `parts`-th of them, from the i-th.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    model: PlannedModel
    request: ScreenRequest
    output: str
    parts: int = Field(ge=1)
    shards: tuple[PlannedShard, ...] = Field(min_length=1)

    def part(self, index: int | None) -> list[Shard]:
        """Return the shards of a part; None for all.

        Raises:
            PlanError: there is no such part.
        """
        if index is not None and not 0 <= index < self.parts:
            raise PlanError(f"got part {index}, expected 0 to {self.parts - 1}")
        shards = self.shards if index is None else self.shards[index :: self.parts]
        return [
            Shard(shard.name, shard.address, output_of(self.output, shard.name)) for shard in shards
        ]


def find_shards(inputs: Sequence[str], *, any_name: bool) -> tuple[list[PlannedShard], list[str]]:
    """Find the shards in files and folders.

    Args:
        inputs: paths or addresses; folders are searched with all below them.
        any_name: whether files in folders are shards whatever the ending of their name is.

    Returns:
        The shards, named by their paths relative to the folder that holds all inputs, and the names
        of files in folders that are none: with an unknown ending, or hidden (`.` or `_` first).

    Raises:
        PlanError: the inputs lie on several file systems, or there is no shard, or one twice.
        FileNotFoundError: an input is missing.
    """
    if len({is_remote(given) for given in inputs}) > 1:
        raise PlanError("got local paths and addresses, expected inputs on one file system")
    shards: dict[str, PlannedShard] = {}
    ignored: list[str] = []
    whole = [_normal(given) for given in inputs]
    root = _root(whole)
    for address in whole:
        for found in files_at(address).listed(address):
            name = found.address.removeprefix(root).lstrip("/") or found.name
            if found.address != address and _is_ignored(found, any_name):
                ignored.append(name)
            elif shards.setdefault(name, _planned(name, found)).address != found.address:
                raise PlanError(f"got two shards called {name}, expected different names")
    if not shards:
        raise PlanError(f"got no shard in {', '.join(inputs)}, expected files of molecules")
    # The largest first: a part, or a process, that takes a large one last would end late.
    return sorted(shards.values(), key=lambda shard: (-shard.size, shard.name)), ignored


def _planned(name: str, found: Found) -> PlannedShard:
    return PlannedShard(name=name, address=found.address, size=found.size)


def _normal(given: str) -> str:
    return given.rstrip("/") if is_remote(given) else os.path.abspath(given)


def _root(whole: Sequence[str]) -> str:
    """Return the beginning that the addresses of all inputs share, up to a folder: of a single
    input the folder itself, or the file's."""
    if len(whole) == 1:
        only = whole[0]
        is_file = [found.address for found in files_at(only).listed(only)] == [only]
        return only.rpartition("/")[0] if is_file else only
    folders = [address.split("/")[:-1] for address in whole]
    steps = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    return "/".join(names[0] for names in steps)


def _is_ignored(found: Found, any_name: bool) -> bool:
    if any(step.startswith((".", "_")) for step in found.name.split("/")):
        return True
    if any_name:
        return False
    try:
        kind_by_name(found.name)
    except InvalidInputError:
        return True
    return False


def shard_name(address: str, root: str | None) -> str:
    """Return the name of a single shard: its path relative to `root`, which is the current folder
    if it is None; elsewhere, and for addresses of other file systems, the whole path.

    Raises:
        PlanError: it is not below `root`.
    """
    whole = _normal(address)
    folder = _normal(root) if root is not None else "" if is_remote(whole) else os.getcwd()
    if folder and whole.startswith(folder.rstrip("/") + "/"):
        return whole[len(folder.rstrip("/")) + 1 :]
    if root is not None:
        raise PlanError(f"got {address}, which is not in {root}, expected a file below it")
    return whole.partition("://")[2] if is_remote(whole) else whole.lstrip("/")


def read_plan(path: Path) -> Plan:
    """Read a plan. Raises PlanError: the file is none; OSError."""
    content = path.read_bytes()
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        raise PlanError(f"{path}: got no plan: {problems_of(error, Plan)[:500]}") from None


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan."""
    content = plan.model_dump_json(indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(content))
