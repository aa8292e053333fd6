"""Stages: computations whose results are stored under a hash of everything they depend on."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from merging.config.base import Setting, fingerprint
from merging.data.lease import Claim
from merging.run.store import ResultStore, StageResult

_readable: ContextVar[frozenset[str] | None] = ContextVar("readable", default=None)
"""Keys of the results that the running stage may read; None if no stage is running."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A computation that is done once, and its result.

    Attributes:
        name: `<kind>/<task>`, the readable start of the result's file name.
        seed: seed of all random numbers.
        settings: values that the result depends on, besides seed and inputs.
        inputs: stages whose results are read.
        make: computes the result; its argument is a path for resumable state. It must be
            picklable for other processes: a partial of a module's function.
        size: estimate of the work; the largest stages are started first.
    """

    name: str
    seed: int
    settings: tuple[Setting, ...]
    inputs: tuple["Stage", ...]
    make: Callable[[Path], StageResult]
    size: int = 0

    @cached_property
    def key(self) -> str:
        """Hash of everything that the result depends on: 16 hexadecimal digits."""
        inputs = (stage.key for stage in self.inputs)
        return fingerprint(self.name, self.seed, *self.settings, *inputs)

    @property
    def result_name(self) -> str:
        """Name of the result in the store."""
        return f"{self.name}-seed{self.seed}-{self.key}"

    def result(self, store: ResultStore) -> StageResult:
        """Return the result; if it is not stored, make it now, inputs first.

        Raises:
            RuntimeError: a running stage reads this one without naming it among its inputs, so
                that its key would not change with this result.
            DataError, TrainingError: see `ResultStore.make`.
        """
        readable = _readable.get()
        if readable is not None and self.key not in readable:
            raise RuntimeError(f"got {self.name} read by a stage, expected it among its inputs")
        if (found := store.find(self.result_name)) is not None:
            return found
        for stage in self.inputs:
            if not store.has(stage.result_name):
                stage.result(store)
        return store.make(self.result_name, self.name, self._make)

    def make_unless_held(self, store: ResultStore, ended: Claim | None) -> bool:
        """Make and store the result, whose inputs are stored, unless another process holds its
        lease (`ResultStore.make_unless_held`)."""
        return store.make_unless_held(self.result_name, self.name, self._make, ended)

    def _make(self, checkpoint: Path) -> StageResult:
        token = _readable.set(self._below)
        try:
            return self.make(checkpoint)
        finally:
            _readable.reset(token)

    @cached_property
    def depth(self) -> int:
        """Number of stages on the longest way down; 0 without inputs."""
        return 1 + max((stage.depth for stage in self.inputs), default=-1)

    @cached_property
    def _below(self) -> frozenset[str]:
        """Keys of all stages that this one depends on, directly or not."""
        inputs = (stage._below | {stage.key} for stage in self.inputs)
        return frozenset[str]().union(*inputs)
