"""A run: a configuration, a seed, and the folder in which its results are stored."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from merging.families.table import KINDS
from merging.family import Folders, OfflineFamily, StateDict
from merging.run.build import Share, build
from merging.run.stage import Stage
from merging.run.store import ResultStore, StageResult


@dataclass(frozen=True)
class Run:
    """A configuration with a seed, its folders and its device.

    Attributes:
        config: the configuration, of any family.
        seed: seed of all random numbers.
        data: the data folder.
        work: the work folder. Results of stages are in `pieces/`, where runs with the same inputs
            share them; featurised data are in `data/`.
        device: cpu or cuda.
        workers: number of processes that read molecules.
    """

    config: Any
    seed: int
    data: Path
    work: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 1
    _datasets: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the data sets: another process reads its own."""
        return {**vars(self), "_datasets": {}}

    @property
    def family(self) -> OfflineFamily:
        """Family of the network."""
        return KINDS[self.config.shape.kind]

    @property
    def folders(self) -> Folders:
        """Folders of the run."""
        return Folders(self.data, self.work, self.workers)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the configuration."""
        return tuple(self.config.tasks)

    @property
    def store(self) -> ResultStore:
        """Store of the results of stages."""
        return ResultStore(self.work / "pieces")

    @property
    def initial_fingerprint(self) -> str:
        """See `OfflineFamily.initial_fingerprint`. Raises CheckpointError."""
        return self.family.initial_fingerprint(self.config, self.folders)

    def with_changes(self, **sections: Mapping[str, Any]) -> "Run":
        """Return the run with changed settings (`MoleculeConfig.with_changes`); loaded data are
        shared."""
        return replace(self, config=self.config.with_changes(sections))

    def dataset(self, task: str) -> Any:
        """Return a task's data, read at the first use. Raises DataError."""
        if task not in self._datasets:
            data = self.family.read(self.config, task, self.folders, self.seed)
            self._datasets[task] = data
        return self._datasets[task]

    def initial_state(self, task: str | None = None) -> StateDict:
        """Return the initial weights of a task's training; without a task, of joint training and of
        merging."""
        seed = self.seed if task is None else self.config.initial_seed(task, self.seed)
        return self.family.initial_state(self.config, seed, self.folders)

    def result(self, stage: Stage) -> StageResult:
        """Return the result of a stage; made now if it is not stored."""
        return stage.result(self.store)

    def build(
        self,
        targets: Iterable[Stage],
        description: str = "stages",
        processes: int = 1,
        threads: int = 1,
        executor: Executor | None = None,
        share: Share | None = None,
    ) -> int:
        """Make the targets and their inputs, on one machine or on several
        (`merging.run.build.build`)."""
        return build(targets, self.store, processes, threads, description, executor, share)
