"""What a study of merged experts consists of: domains, the network's shape, training, and the
variants of training."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from merging.config.base import CONFIG_FOLDER, Count, Rate, Section, Weight
from merging.config.reading import read_config
from merging.data.molecule_dataset import MOLECULENET
from merging.data.planetoid import CLASS_NAMES
from models.names import Name
from models.networks.pyg import GraphNetworkConfig

EXPERTS_CONFIG_FOLDER = CONFIG_FOLDER / "experts"


class VariantConfig(Section):
    """What training does so that experts can be merged later; the defaults are nothing, and each
    expert is then trained on its own.

    Attributes:
        gamma: weight of KDEM's term, the distance of the merged expert's output from the experts'
            mean output. Published: 0.01.
        distil_every: steps from one such term to the next. Published: 100.
        beta: in PPEM each expert of the top k becomes beta times itself plus 1 - beta times the
            merged expert. Published: 0.999.
        pull_every: steps from one such pull to the next (T2).
    """

    gamma: Weight = 0.0
    distil_every: Count = 100
    beta: Annotated[float, Field(gt=0, le=1)] = 1.0
    pull_every: Count = 10

    @property
    def couples(self) -> bool:
        """Whether one expert's training depends on the others."""
        return self.gamma > 0 or self.beta < 1


class TrainingConfig(Section):
    """Self-supervised training of all experts side by side, one batch of its own domain for each in
    every step (Adam).

    Attributes:
        epochs, steps_per_epoch: an epoch is what a stopped run may lose.
        batch_nodes: about how many nodes the graphs of a batch have together.
    """

    epochs: Count = 12
    steps_per_epoch: Count = 50
    learning_rate: Rate = 1e-3
    batch_nodes: Count = 1024


class ExpertsConfig(Section):
    """A study.

    Attributes:
        domains: data sets, one expert each: Planetoid's and MoleculeNet's names; four at least, so
            that there is a third when one is left out.
        network: the experts' shape; its in_dim is the width that every domain's features are
            brought to.
        max_train_graphs: molecules of a training part, taken evenly; the validation and test parts
            stay whole.
        piece_nodes: a single large graph is cut into connected pieces of at most so many nodes to
            learn from.
        top_k: how many experts count at once. Published: 3.
        variants: of training, by name.
    """

    setting: Name
    description: str
    domains: Annotated[tuple[str, ...], Field(min_length=4)]
    network: GraphNetworkConfig
    max_train_graphs: Count = 700
    piece_nodes: Count = 256
    top_k: Count = 3
    training: TrainingConfig = TrainingConfig()
    variants: Annotated[dict[Name, VariantConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [
            name for name in self.domains if name not in CLASS_NAMES and name not in MOLECULENET
        ]
        if unknown or len(set(self.domains)) != len(self.domains):
            raise ValueError(
                f"domains: got {list(self.domains)}, expected each once, names among"
                f" {[*CLASS_NAMES, *MOLECULENET]}"
            )
        if self.top_k >= len(self.domains):
            raise ValueError(
                f"top_k: got {self.top_k}, expected less than the {len(self.domains)} domains,"
                " since each is also left out once"
            )
        return self


def load_experts_config(path: Path) -> ExpertsConfig:
    """A study's configuration. Raises ConfigError (see `merging.config.reading.read_config`)."""
    return read_config(path, ExpertsConfig, EXPERTS_CONFIG_FOLDER)
