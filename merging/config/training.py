"""Settings of every training."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from merging.config.base import Count, Rate, Section, Weight
from models.transport.problem import Solver

Initialisation = Literal["shared", "different"]
"""Whether the models of all tasks start from the same random weights, or each from its own."""
Schedule = Literal["constant", "cosine"]


class TrainingConfig(Section):
    """Supervised training by Adam; the epoch with the best validation score is kept.

    Attributes:
        epochs: at most so many.
        batch_size: graphs in a batch; a single large graph is one batch.
        dropout: share of the hidden units that a step leaves out.
        patience: training ends after so many epochs without a better validation score; None: never
            before the last.
        schedule: whether the learning rate stays, or falls to 0 along half a cosine.
        shuffles_batches: whether the order of batches is drawn a second time, after that of their
            rows. Batches of several tasks need it, to be mixed.
    """

    epochs: Count
    batch_size: Count = 32
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    patience: Count | None = None
    schedule: ClassVar[Schedule] = "constant"
    shuffles_batches: ClassVar[bool] = True


class FinetuneConfig(TrainingConfig):
    """Fine-tuning of one task from the pre-trained backbone (Hu et al. 2020: Adam, dropout 0.5,
    batch 32, 100 epochs)."""

    epochs: Count = 100
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    shuffles_batches: ClassVar[bool] = False


class MultitaskConfig(TrainingConfig):
    """Joint training of one backbone with all heads.

    Attributes:
        cap: the most training molecules that a task gives to one epoch, so that MUV's 74,000 do not
            drown BACE's 1,200.
    """

    epochs: Count = 60
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    cap: Count = 4000


class GraphTrainingConfig(TrainingConfig):
    """Training of a graph network (the defaults are those of Kipf and Welling 2017,
    arXiv:1609.02907, but for the patience)."""

    epochs: Count = 200
    learning_rate: Rate = 0.01
    weight_decay: Weight = 5e-4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    patience: Count | None = 30


class ForceTrainingConfig(TrainingConfig):
    """Training of a force field.

    Attributes:
        energy_weight: of the squared error of the energy against that of the forces, both in units
            of the task's scale.
    """

    batch_size: Count = 10
    learning_rate: Rate = 2e-3
    energy_weight: Weight = 0.1
    schedule: ClassVar[Schedule] = "cosine"


class TuningConfig(ForceTrainingConfig):
    """A short training of the heads on the merged network.

    Attributes:
        frames: of the training frames of each task, the first so many are used, with their labels.
    """

    frames: Count = 500


class AlignmentConfig(Section):
    """Adapter training (method: alpha * L1 of graph embeddings + sum over layers of TWD; no
    labels).

    Attributes:
        sites: where there are adapters.
        alpha, twd_weight: weights of the two terms; 0 leaves one out.
        support_order: mass moves along at most this many bonds: 0 compares each atom with itself,
            None any two atoms of a molecule.
        max_molecules: an epoch sees at most so many, drawn anew in each; None sees all.
    """

    rank: Count = 30
    epochs: Count = 30
    batch_size: Count = 64
    learning_rate: Rate = 1e-3
    sites: Literal["all", "nodes", "graph"] = "all"
    alpha: Weight = 1.0
    twd_weight: Weight = 1.0
    support_order: Annotated[int, Field(ge=0)] | None = 1
    max_molecules: Count | None = None
    solver: Solver = "sinkhorn"
    epsilon: Rate = 0.1
    tolerance: Rate = 0.1
    max_iters: Count = 100
