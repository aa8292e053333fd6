"""Directed message-passing networks as chemprop builds them (D-MPNN).

Source: Yang et al. 2019, "Analyzing learned molecular representations for property prediction",
arXiv:1904.01561; Heid et al. 2024, "Chemprop", doi:10.1021/acs.jcim.3c01250.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.names import Name
from models.networks.base import NetworkShape

Messages = Literal["bonds", "atoms"]
"""Whether hidden states are of directed bonds (D-MPNN), or of atoms."""
Aggregation = Literal["mean", "sum", "norm"]
"""How atoms become a molecule; `norm` is the sum over a constant."""
Activation = Literal["relu", "leakyrelu", "prelu", "tanh", "elu"]
Width = Annotated[int, Field(ge=1)]


class DmpnnHead(BaseModel):
    """Shape of what a task has of its own.

    Attributes:
        hidden: widths of the hidden layers of the feed-forward network.
        activation: after its hidden layers.
        batch_norm: whether the molecule's vector is normalised first.
        members: number of networks whose mean is the answer (an ensemble).
        own_network: whether the task brings its own message passing, one per member.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[Width, ...] = ()
    activation: Activation = "relu"
    batch_norm: bool = False
    members: Width = 1
    own_network: bool = False


class DmpnnConfig(NetworkShape):
    """Shape of the message passing, and of the heads by task.

    Attributes:
        atom_dim, bond_dim: widths of the features of atoms and bonds.
        hidden_dim: width of the hidden states.
        depth: number of steps of message passing, the first one included.
        bias: whether `W_i` and `W_h` have biases; `W_o` always has one.
        activation: after every step.
        messages: see `Messages`.
        undirected: whether both directions of a bond take the mean of their states.
        aggregation: see `Aggregation`.
        norm: the constant of aggregation `norm`.
        heads: by task.
    """

    kind: Literal["dmpnn"] = "dmpnn"
    atom_dim: Width
    bond_dim: Width
    hidden_dim: Width = 300
    depth: Width = 3
    bias: bool = False
    activation: Activation = "relu"
    messages: Messages = "bonds"
    undirected: bool = False
    aggregation: Aggregation = "mean"
    norm: Annotated[float, Field(gt=0)] = 100.0
    heads: dict[Name, DmpnnHead] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Number of steps and width."""
        return self.depth, self.hidden_dim
