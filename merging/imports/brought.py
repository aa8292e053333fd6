"""Models that somebody brought, whatever their format: what checking and merging ask of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from models.manifest import StreamInfo
from models.task import LabelTarget


class Brought(Protocol):
    """A model of one task: a network with a head, or an ensemble of them."""

    @property
    def path(self) -> Path:
        """The file or folder that was asked for."""
        ...

    @property
    def files(self) -> Mapping[str, str]:
        """The SHA-256 of its files, by path."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs."""
        ...

    @property
    def target(self) -> LabelTarget:
        """Kind of prediction."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user on what was assumed or left out."""
        ...

    @property
    def shape(self) -> Any:
        """Shape of the network without heads, a pydantic model."""
        ...

    @property
    def vectors(self) -> tuple[Tensor, ...]:
        """By member, the weights that fine-tuning moves little, as one vector in float64."""
        ...

    @property
    def about(self) -> tuple[str, str]:
        """Words for the network, and for the features of molecules."""
        ...


class Base(Protocol):
    """The network that models were fine-tuned from."""

    @property
    def sha256(self) -> str:
        """Of the file."""
        ...

    @property
    def shape(self) -> Any:
        """See `Brought.shape`."""
        ...

    @property
    def vector(self) -> Tensor:
        """See `Brought.vectors`."""
        ...


@dataclass(frozen=True)
class Merged:
    """One model of all tasks.

    Attributes:
        shape: of the manifest.
        rank: of the corrections.
        network: what the tasks share, or an empty module.
        experts: by task.
        record: of the training, for the manifest.
        streams: of the manifest; with streams its own `rank` is 0.
    """

    shape: Any
    rank: int
    network: nn.Module
    experts: Mapping[str, nn.Module]
    record: dict[str, Any] = field(default_factory=dict)
    streams: Mapping[str, StreamInfo] = field(default_factory=dict)
