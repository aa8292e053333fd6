"""merging.training.loop.settings"""

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from merging.config.base import Count, Rate, Section, Weight
from models.transport.problem import Solver


class FinetuneConfig(Section):
    """Supervised fine-tuning of one task from the pre-trained backbone (Hu et al. 2020: Adam,
    dropout 0.5, batch 32, 100 epochs)."""

    epochs: Count = 100
    batch_size: Count = 32
    learning_rate: Rate = 1e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


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


class MultitaskConfig(FinetuneConfig):
    """Joint training of one backbone with all heads.

    Attributes:
        cap: the most training molecules that a task gives to one epoch, so that MUV's 74,000 do not
            drown BACE's 1,200.
    """

    epochs: Count = 60
    cap: Count = 4000


class GraphTrainingConfig(Section):
    """Supervised training of a network and its head (the defaults are those of Kipf and Welling
    2017, arXiv:1609.02907, but for the patience).

    Attributes:
        epochs: at most so many.
        patience: training ends after so many epochs without a better validation score; the best
            epoch is kept.
        batch_size: graphs in a batch; a single large graph is one batch.
    """

    epochs: Count = 200
    patience: Count = 30
    batch_size: Count = 32
    learning_rate: Rate = 0.01
    weight_decay: Weight = 5e-4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


Beginning = Literal["shared", "different"]


class FitConfig(Section):
    """Training by gradients: Adam, the rate falls to 0 along a cosine.

    Attributes:
        energy_weight: of the squared error of the energy against that of the forces, both in units
            of the task's scale.
    """

    epochs: Count
    batch_size: Count = 10
    learning_rate: Rate = 2e-3
    energy_weight: Annotated[float, Field(ge=0)] = 0.1
