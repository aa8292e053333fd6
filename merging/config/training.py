"""Settings of supervised training and of adapter training."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from merging.config.base import Count, Rate, Section, Weight
from models.data.fingerprint import Block
from models.experts.symmetric_trees import MAX_DEPTH
from models.transport.problem import Solver

Initialisation = Literal["shared", "different"]
"""Whether all tasks start from the same random weights, or every task from its own."""
Dropout = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["constant", "cosine"]
KeptEpoch = Literal["best", "last"]
RegressionLoss = Literal["squared", "smooth_l1"]
HeadStart = Literal["random", "probe"]
ForestKind = Literal["boosted", "bagged"]


class TrainingConfig(Section):
    """Settings of supervised training with Adam.

    Attributes:
        epochs: maximum number of epochs.
        batch_size: graphs per batch; a single large graph is one batch.
        dropout: dropout rate of the hidden units.
        patience: epochs without a better validation score after which training stops; None never
            stops early.
        schedule: whether the learning rate is constant or falls to 0 along half a cosine.
        keep: the epoch whose weights are kept: the one with the best validation score, or the last.
            A few dozen validation molecules choose an epoch at random; with `cosine` the last one
            needs no choice.
        shuffles_batches: whether batches are shuffled after their rows were; needed to mix the
            batches of several tasks.
    """

    epochs: Count
    batch_size: Count = 32
    learning_rate: Rate = 1e-3
    weight_decay: Weight = 0.0
    dropout: Dropout = 0.0
    patience: Count | None = None
    schedule: Schedule = "constant"
    keep: KeptEpoch = "best"
    shuffles_batches: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keep == "last" and self.patience is not None:
            got = f"patience: got {self.patience} with `keep: last`"
            raise ValueError(f"{got}, expected `patience: null`: all epochs are trained")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out defaults of the newer fields, so that older results keep their keys."""
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        for name in ("schedule", "keep", "loss", "head"):
            if name in values and values[name] == fields[name].default:
                del values[name]
        return values


class MoleculeTrainingConfig(TrainingConfig):
    """Settings of supervised training on molecules.

    Attributes:
        loss: of regressions, on standardised labels: the squared error, or smooth L1, which is
            linear beyond one standard deviation, so that outliers weigh less.
    """

    dropout: Dropout = 0.5
    loss: RegressionLoss = "squared"


class FinetuneConfig(MoleculeTrainingConfig):
    """Settings of fine-tuning on one task (Hu et al. 2020: Adam, dropout 0.5, batch 32, 100
    epochs).

    Attributes:
        head: what the head starts from: random weights, or a linear probe of the pre-trained
            network (`merging.training.probe`), after which few epochs at a small learning rate do.
    """

    epochs: Count = 100
    head: HeadStart = "random"
    shuffles_batches: ClassVar[bool] = False


class MultitaskConfig(MoleculeTrainingConfig):
    """Settings of joint training of one backbone with all heads.

    Attributes:
        cap: maximum number of a task's training molecules per epoch, so that the 74,000 of MUV do
            not outweigh the 1,200 of BACE.
    """

    epochs: Count = 60
    cap: Count = 4000


class GraphTrainingConfig(TrainingConfig):
    """Settings of training a graph network; the defaults, but for the patience, are those of Kipf
    and Welling 2017, arXiv:1609.02907."""

    epochs: Count = 200
    learning_rate: Rate = 0.01
    weight_decay: Weight = 5e-4
    dropout: Dropout = 0.5
    patience: Count | None = 30


class ForceTrainingConfig(TrainingConfig):
    """Settings of training a force field.

    Attributes:
        energy_weight: weight of the squared error of the energy against that of the forces, both
            in units of the task's scale.
    """

    batch_size: Count = 10
    learning_rate: Rate = 2e-3
    energy_weight: Weight = 0.1
    schedule: Schedule = "cosine"


class TuningConfig(ForceTrainingConfig):
    """Settings of training the heads for a short time on the merged network.

    Attributes:
        frames: number of a task's training frames that are used, with labels; the first ones.
    """

    frames: Count = 500


class BoostedConfig(Section):
    """Settings of boosted symmetric trees (CatBoost).

    Attributes:
        trees: trees per label.
        depth: questions per tree.
        learning_rate: None lets CatBoost choose it by the number of molecules and trees.
        balanced: whether both classes of a label have the same total weight.
    """

    trees: Count = 500
    depth: Annotated[int, Field(ge=1, le=MAX_DEPTH)] = 6
    learning_rate: Rate | None = None
    balanced: bool = False


class BaggedConfig(Section):
    """Settings of bagged trees (random forests of scikit-learn); both classes of a label have the
    same total weight.

    Attributes:
        trees: trees per label.
        min_leaf: least number of training molecules of a leaf. Trees with 1 are several times
            larger, and on validation data of SIDER no better.
    """

    trees: Count = 100
    min_leaf: Count = 3


class ForestConfig(Section):
    """Settings of trees on fingerprints. Every kind is trained on every candidate of inputs; the
    one with the best validation score is taken.

    Attributes:
        kinds: kinds of trees.
        inputs: candidates of the columns that trees see, each a set of blocks
            (`models.data.fingerprint.Block`).
        boosted, bagged: settings of the kinds.
    """

    kinds: Annotated[tuple[ForestKind, ...], Field(min_length=1)] = ("boosted", "bagged")
    inputs: Annotated[
        tuple[Annotated[tuple[Block, ...], Field(min_length=1)], ...], Field(min_length=1)
    ] = (("ecfp4", "descriptors"), ("ecfp4",))
    boosted: BoostedConfig = BoostedConfig()
    bagged: BaggedConfig = BaggedConfig()


class AlignmentConfig(Section):
    """Settings of adapter training, which needs no labels: the loss is alpha * L1 of graph
    embeddings (of a task on nodes, of the last layer) + twd_weight * the sum over layers of TWD.

    Attributes:
        rank: rank of the adapters.
        sites: places in the network that have adapters.
        alpha, twd_weight: weights of the two terms; 0 leaves one out.
        support_order: maximum number of bonds or edges that mass is transported over: 0 compares
            every node with itself; None allows any two nodes of a graph.
        max_molecules: maximum number of molecules or other graphs per epoch, drawn anew for every
            epoch; None uses all.
        solver, epsilon, tolerance, max_iters: of the transport problem (`models.transport`).
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
