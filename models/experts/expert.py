"""Experts: the task-specific modules of a merged model."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from models.data.batch import GraphBatch
from models.errors import InvalidInputError
from models.experts.adapter import Adapter, LayerOutputs, Stream, TaskAdapters, trace
from models.networks.base import LayeredNetwork, LayeredShape
from models.task import Level, OutputKind


class TaskExpert(nn.Module):
    """Base of experts: a stream, a graph adapter, a linear head and, where needed, an input
    encoder.

    Attributes:
        label_names: C names, in the order of the head's outputs.
        level: see `models.task.TaskInfo`.
        target: what the head's outputs are, `TaskInfo.output_kind`.
        head: (*, d) -> (*, C); of a task at level "pair" (N, d) -> (N, D), see
            `TaskInfo.head_dim`.
        encoder: linear map of node features (N, F) -> (N, in_dim); None if F is the network's
            `in_dim`, or the network has embedding tables.
    """

    head: nn.Linear
    encoder: nn.Linear | None

    def __init__(self, label_names: Sequence[str], level: Level, target: OutputKind) -> None:
        super().__init__()
        self.label_names, self.level, self.target = tuple(label_names), level, target

    @property
    def stream(self) -> Stream:
        """The stream that the task reads from."""
        raise NotImplementedError

    @property
    def graph_adapter(self) -> Adapter:
        """The adapter after the readout."""
        raise NotImplementedError

    def forward(self, backbone: LayeredNetwork, batch: GraphBatch) -> Tensor:
        """Compute logits (G, C) of a task at level "graph" without an encoder.

        They equal those of `UnifiedModel` with routing "own", without stacking adapters.
        """
        logits: Tensor = self.head(self.trace(backbone, batch).graph_embedding)
        return logits

    def trace(self, backbone: LayeredNetwork, batch: GraphBatch) -> LayerOutputs:
        """Run the task's stream and its graph adapter, and record the intermediate outputs."""
        stream, num_layers = self.stream, backbone.config.num_layers

        def correct(site: int, h: Tensor) -> Tensor:
            return stream.correct(site, h) if site < num_layers else h - self.graph_adapter(h)

        return trace(backbone, batch, correct, partial(stream.normalise, backbone))


class Expert(TaskExpert):
    """Adapters, BatchNorm statistics, head and encoder of a task with a stream of its own.

    Attributes:
        adapters: adapters and BatchNorm statistics.
    """

    def __init__(
        self,
        config: LayeredShape,
        rank: int,
        label_names: Sequence[str],
        level: Level = "graph",
        target: OutputKind = "multilabel",
        num_features: int | None = None,
        head_dim: int | None = None,
    ) -> None:
        super().__init__(label_names, level, target)
        self.adapters = TaskAdapters(config, rank)
        self.head = nn.Linear(config.hidden_dim, head_dim or len(self.label_names))
        self.encoder = None
        if num_features is not None and config.in_dim not in (None, num_features):
            self.encoder = nn.Linear(num_features, config.in_dim)

    @property
    def stream(self) -> Stream:
        """The node adapters and statistics of this task alone."""
        return self.adapters

    @property
    def graph_adapter(self) -> Adapter:
        """The adapter after the readout."""
        return self.adapters.graph_adapter


class SharedExpert(TaskExpert):
    """Graph adapter and head of a task that shares its stream with others.

    Attributes:
        graph: the adapter after the readout; its state dict and that of `head` are the expert's.
    """

    def __init__(
        self,
        stream: Stream,
        rank: int,
        label_names: Sequence[str],
        level: Level = "graph",
        target: OutputKind = "multilabel",
        head_dim: int | None = None,
    ) -> None:
        super().__init__(label_names, level, target)
        if not stream.name:
            raise InvalidInputError("got a stream without a name, expected one that tasks share")
        dim = stream.norm_mean.shape[1]
        self.graph = Adapter(dim, rank)
        self.head = nn.Linear(dim, head_dim or len(self.label_names))
        self.encoder = None
        # In a tuple, so that the stream is no submodule: its tensors are not this task's.
        self._stream = (stream,)

    @property
    def stream(self) -> Stream:
        """The stream that the tasks share."""
        return self._stream[0]

    @property
    def graph_adapter(self) -> Adapter:
        """The adapter after the readout."""
        return self.graph


def shared_streams(experts: Mapping[str, TaskExpert]) -> dict[str, Stream]:
    """Collect the streams that the experts share, by name.

    Raises:
        InvalidInputError: two streams have one name, or a stream has the name of a task.
    """
    streams: dict[str, Stream] = {}
    for expert in experts.values():
        stream = expert.stream
        if stream.name and streams.setdefault(stream.name, stream) is not stream:
            raise InvalidInputError(f"got two streams {stream.name!a}, expected one")
    if taken := sorted(streams.keys() & experts.keys()):
        raise InvalidInputError(f"got stream {taken[0]!a}, expected a name that no task has")
    return streams
