"""The configuration of a study of merged experts: domains, the shape of the network, training, and
its variants."""

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
    """How training ties the experts together for merging; by default they are trained
    independently.

    Attributes:
        gamma: weight of KDEM's loss, the squared distance of the merged expert's output from the
            ensemble's. Published: 0.01.
        distil_every: steps between two evaluations of KDEM's loss (T1). Published: 100.
        beta: in PPEM every expert of the top k becomes beta times itself plus 1 - beta times the
            merged expert. Published: 0.999.
        pull_every: steps between two steps of PPEM (T2).
    """

    gamma: Weight = 0.0
    distil_every: Count = 100
    beta: Annotated[float, Field(gt=0, le=1)] = 1.0
    pull_every: Count = 10

    @property
    def couples(self) -> bool:
        """Whether the training of an expert depends on the others."""
        return self.gamma > 0 or self.beta < 1


class TrainingConfig(Section):
    """Self-supervised training of all experts with Adam, one batch per domain in every step.

    Attributes:
        epochs, steps_per_epoch: the state is saved after every epoch.
        learning_rate: of Adam.
        batch_nodes: approximate number of nodes in a batch.
    """

    epochs: Count = 12
    steps_per_epoch: Count = 50
    learning_rate: Rate = 1e-3
    batch_nodes: Count = 1024


class ExpertsConfig(Section):
    """A study of merged experts.

    Attributes:
        setting: its name.
        description: for people.
        domains: names of data sets of Planetoid and MoleculeNet, one expert per data set; at least
            four, so that there is a third-ranked expert when one is left out.
        network: shape of the experts; its in_dim is the width to which the features of every domain
            are reduced.
        max_train_graphs: the most training molecules of a domain, taken evenly; validation and test
            molecules are all used.
        piece_nodes: a single large graph is cut into connected pieces of at most this many nodes
            for training.
        top_k: number of experts with a weight above 0. Published: 3.
        training: of all variants.
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
    """Read the configuration of a study from a file or from those of the package. Raises
    ConfigError (see `merging.config.reading.read_config`)."""
    return read_config(path, ExpertsConfig, EXPERTS_CONFIG_FOLDER)
