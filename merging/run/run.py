"""One run: a configuration, a seed, and a work folder in which results are kept and found again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from merging.families.table import KINDS
from merging.family import Folders, OfflineFamily, StateDict
from merging.run.stage import Stage, build
from merging.run.store import ResultStore, StageResult


@dataclass(frozen=True)
class Run:
    """Where a run reads and writes, and on what it computes.

    Attributes:
        config: the setting, of whatever family.
        seed: of everything that is drawn.
        data: the data folder.
        work: the work folder; results live in `pieces/`, named by what they were made from, so that
            every setting, seed and ablation finds those that it shares with another; featurised
            data lives in `data/`.
        device: cpu or cuda.
        workers: processes for reading molecules.
    """

    config: Any
    seed: int
    data: Path
    work: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 1
    _datasets: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which reads data sets itself."""
        return {**vars(self), "_datasets": {}}

    @property
    def family(self) -> OfflineFamily:
        """The kind of model."""
        return KINDS[self.config.shape.kind]

    @property
    def folders(self) -> Folders:
        """Where it reads and writes."""
        return Folders(self.data, self.work, self.workers)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of the configuration."""
        return tuple(self.config.tasks)

    @property
    def store(self) -> ResultStore:
        """Where the results of stages are."""
        return ResultStore(self.work / "pieces")

    @property
    def initial_fingerprint(self) -> str:
        """What all training starts from, see `OfflineFamily.initial_fingerprint`. Raises CheckpointError."""
        return self.family.initial_fingerprint(self.config, self.folders)

    def with_changes(self, **sections: Mapping[str, Any]) -> "Run":
        """The same run with some settings changed (see `MoleculeConfig.with_changes`); data that was read
        is shared."""
        return replace(self, config=self.config.with_changes(sections))

    def dataset(self, task: str) -> Any:
        """A task's data, read once a run. Raises DataError."""
        if task not in self._datasets:
            read = self.family.read(self.config, task, self.folders, self.seed)
            self._datasets[task] = read
        return self._datasets[task]

    def initial_state(self, task: str | None = None) -> StateDict:
        """The weights that a task's training starts from, or that of all tasks together."""
        seed = self.seed if task is None else self.config.initial_seed(task, self.seed)
        return self.family.initial_state(self.config, seed, self.folders)

    def result(self, stage: Stage) -> StageResult:
        """The result of a stage, made now or read back."""
        return stage.result(self.store)

    def build(
        self,
        targets: Iterable[Stage],
        description: str = "stages",
        processes: int = 1,
        threads: int = 1,
    ) -> None:
        """Make the targets and what they need, see `merging.run.stage.build`."""
        build(targets, self.store, processes, threads, description)
