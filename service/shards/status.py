"""How far a screening is, from its outputs and notes alone: whoever computes, and wherever."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from service.shards.made import Made, Shard, depends_on, made_of
from service.shards.note import Note, note_of
from service.shards.places import files_at
from service.shards.plan import Plan

State = Literal["done", "running", "failed", "stopped", "waiting"]
STATES: tuple[State, ...] = ("done", "running", "failed", "stopped", "waiting")
"""States of shards. `failed`: the last attempt said why it ended. `stopped`: it did not. `waiting`:
nobody has begun, or the output is of an older input, another model or other settings."""
_LOOKS = 16  # files looked at at a time: they may be far away


@dataclass(frozen=True)
class Looked:
    """What was found of a shard."""

    state: State
    made: Made | None = None
    note: Note | None = None


@dataclass(frozen=True)
class Status:
    """How far a screening is.

    Attributes:
        shards: number of shards by state.
        rows: rows of the inputs of finished shards.
        kept: rows of their outputs.
        errors: rows of their inputs with an error, by code.
        rows_under_way: rows answered in shards that are running.
        rate: rows per second of all shards that are running, together.
        seconds_left: at this rate; None if nothing is running or nothing is known yet.
        failed: why the last attempt at a shard that is not done failed, by name.
    """

    shards: dict[State, int]
    rows: int
    kept: int
    errors: dict[str, int]
    rows_under_way: int
    rate: float
    seconds_left: float | None
    failed: dict[str, str]


def status_of(plan: Plan) -> Status:
    """Look at the outputs and notes of all shards of a plan."""
    shards = plan.part(None)
    with ThreadPoolExecutor(_LOOKS) as pool:
        found = list(pool.map(lambda shard: _look(shard, plan), shards))
    counts = Counter(looked.state for looked in found)
    made = [looked.made for looked in found if looked.made is not None]
    running = [looked.note for looked in found if looked.state == "running" and looked.note]
    errors: Counter[str] = Counter()
    for output in made:
        errors.update(output.failed)
    rate = sum(note.rows / max(note.updated - note.started, 1e-3) for note in running)
    rows, under_way = sum(output.rows for output in made), sum(note.rows for note in running)
    return Status(
        shards={state: counts[state] for state in STATES},
        rows=rows,
        kept=sum(output.kept for output in made),
        errors=dict(errors.most_common()),
        rows_under_way=under_way,
        rate=rate,
        seconds_left=_seconds_left(plan, found, rows, under_way, rate),
        failed={
            shard.name: looked.note.error
            for shard, looked in zip(shards, found, strict=True)
            if looked.note is not None and looked.note.error is not None
        },
    )


def _look(shard: Shard, plan: Plan) -> Looked:
    made = made_of(shard.output)
    if made is not None:
        try:
            identity = files_at(shard.address).identity(shard.address)
        except FileNotFoundError:
            return Looked("waiting")
        if made.is_of(depends_on(shard, identity, plan.model.digest, plan.request)):
            return Looked("done", made)
    note = note_of(shard.output)
    if note is None:
        return Looked("waiting")
    if note.error is not None:
        return Looked("failed", note=note)
    return Looked("running" if note.is_alive else "stopped", note=note)


def _seconds_left(
    plan: Plan, found: Sequence[Looked], rows: int, under_way: int, rate: float
) -> float | None:
    """Estimate the time left. How many rows an input has is known when it is done; those of others
    are taken to have as many for each byte."""
    sizes = [shard.size for shard in plan.shards]
    states = [looked.state for looked in found]
    done = sum(size for size, state in zip(sizes, states, strict=True) if state == "done")
    if states.count("done") == len(states):
        return 0.0
    if not rate or not done or not rows:
        return None
    all_rows = rows * sum(sizes) / done
    return max(0.0, all_rows - rows - under_way) / rate
