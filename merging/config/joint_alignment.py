"""Settings of joint alignment: one network that answers all tasks in one pass."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from merging.config.base import Count, Rate, Section, Weight
from models.names import Name
from models.transport.problem import Solver


class PoolConfig(Section):
    """The unlabelled molecules, or other graphs, of joint alignment. Test molecules of the run's
    tasks are never among them, whatever the source.

    Attributes:
        tasks: tasks whose training molecules are drawn; None for all tasks of the run, empty for
            none.
        most_per_task: maximum number of molecules drawn from a task.
        most_by_task: the same by task, for those that differ.
        files: files of molecules in the data folder, see `merging.data.molecule_files`.
        most_per_file: maximum number of molecules drawn from a file; None takes all.
        size: maximum number of molecules of the pool; None takes all that were drawn.
        leave_out_validation: also leave out the validation molecules of the run's tasks.
        watched: number of molecules that are not trained on and show the loss after every epoch; at
            most a tenth of the pool.
    """

    tasks: tuple[Name, ...] | None = None
    most_per_task: Count = 12_000
    most_by_task: dict[str, Count] = {}
    files: tuple[str, ...] = ()
    most_per_file: Count | None = None
    size: Count | None = None
    leave_out_validation: bool = False
    watched: Count = 2000

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tasks == () and not self.files:
            raise ValueError("got no tasks and no files, expected a source of molecules")
        if self.tasks is not None and (rest := sorted(self.most_by_task.keys() - set(self.tasks))):
            raise ValueError(f"most_by_task: got {rest}, expected names among `tasks` of the pool")
        return self


class TeachersConfig(Section):
    """The models that joint alignment imitates, by default the fine-tuned models of the run.

    Attributes:
        artifact: folder of an artifact, whose model teaches with routing `own`.
        seeds: seeds of the fine-tuned models whose mean output teaches; empty for the run's seed.
    """

    artifact: str | None = None
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.artifact is not None and self.seeds:
            raise ValueError("got an artifact and seeds, expected one of them")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: got {list(self.seeds)}, expected each seed once")
        return self


class JointLossConfig(Section):
    """Weights of the terms of the loss; 0 leaves a term out.

    Attributes:
        logits: of the squared difference to the teacher's outputs (logits, or the values of a
            regression), by label in units of their variance.
        embeddings: of the L1 distance to the teacher's graph embedding.
        layers: of the TWD to the outputs of the teacher's layers, summed over layers.
        solver: of the transport problem.
    """

    logits: Weight = 1.0
    embeddings: Weight = 0.0
    layers: Weight = 0.0
    solver: Solver = "exact"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.logits or self.embeddings or self.layers):
            raise ValueError("got weight 0 for every term, expected one that is not")
        return self


class JointAlignmentConfig(Section):
    """Settings of joint alignment, which needs no labels.

    Attributes:
        rank: rank of the graph adapters.
        epochs, batch_size, learning_rate: of Adam; the rate falls to 0 along half a cosine.
        start: the backbone that training starts from: `merged` (that of `teachers.artifact`, where
            given), `pretrained`, or the path of a state dict, such as an artifact's backbone.
        losses: weights of the terms of the loss.
        task_weights: weights of tasks in the loss, 1 for those that are not named.
        least_logit: teachers' logits below this value count as it; None leaves them as they are.
        pool: the unlabelled molecules.
        teachers: the models that are imitated.
        teachers_by_task: the same by task, for tasks with other teachers.
    """

    rank: Count = 100
    epochs: Count = 18
    batch_size: Annotated[Count, Field(ge=2)] = 256
    learning_rate: Rate = 2e-3
    start: Annotated[str, Field(min_length=1)] = "merged"
    losses: JointLossConfig = JointLossConfig()
    task_weights: dict[str, Weight] = {}
    least_logit: Annotated[float, Field(allow_inf_nan=False)] | None = None
    pool: PoolConfig = PoolConfig()
    teachers: TeachersConfig = TeachersConfig()
    teachers_by_task: dict[str, TeachersConfig] = {}

    @property
    def named_tasks(self) -> set[str]:
        """Names of the tasks that settings are given for."""
        by_task = self.task_weights, self.teachers_by_task, self.pool.most_by_task
        return {*(self.pool.tasks or ()), *(task for section in by_task for task in section)}

    def teachers_for(self, task: str) -> TeachersConfig:
        """Return the teachers of a task."""
        return self.teachers_by_task.get(task, self.teachers)
