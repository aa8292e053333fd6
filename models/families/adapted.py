"""Base of families whose models are a layered network with adapters, heads and a router."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.data.batch import GraphBatch
from models.errors import ArtifactError
from models.experts.adapter import Stream
from models.experts.expert import SharedExpert, TaskExpert, shared_streams
from models.experts.node_sums import NodeSum
from models.experts.router import RouterConfig
from models.experts.unified import Routing, UnifiedModel, UnifiedOutput
from models.families.base import Locator, NodeSums, ServedModel, StreamModules, TaskOutput
from models.networks.base import LayeredNetwork, LayeredShape
from models.task import Target, TaskInfo


class SharedStreams:
    """Streams and experts of tasks that share one: see `models.families.base.StreamModules`."""

    def stream(self, shape: LayeredShape, rank: int, name: str) -> Stream:
        """Build node adapters and BatchNorm statistics."""
        return Stream(shape, rank, name)

    def expert(self, stream: Stream, graph_rank: int, info: TaskInfo) -> SharedExpert:
        """Build a graph adapter and a head."""
        settings = info.labels, info.level, info.output_kind, info.head_dim
        return SharedExpert(stream, graph_rank, *settings)

    def check_stream(self, stream: Stream, shape: Any, schema: Any, tasks: Sequence[str]) -> None:
        """Check the loaded weights of a stream. Its tasks must take the network's inputs.

        Raises:
            ArtifactError: a BatchNorm variance is negative, or all node adapters are zero. A stream
                may have none: rank 0.
        """
        if bool((stream.norm_var < 0).any()):
            raise ArtifactError("norm_var is negative, expected variances")
        if stream.rank and not stream.active_sites:
            raise ArtifactError(
                f"sites.*.up or .down are zero at all {len(stream.sites)} sites, expected adapters"
                f" of rank {stream.rank} that do something, or rank 0"
            )

    def collect(self, experts: Mapping[str, TaskExpert]) -> dict[str, Stream]:
        """Return the streams that experts share, by name: see `shared_streams`."""
        return shared_streams(experts)


class AdaptedNodeSums:
    """Sums over nodes of models whose readout is a mean and whose graph adapters have no bias: see
    `UnifiedModel.node_sums`."""

    locate: Locator | None = None

    def split(
        self,
        model: UnifiedModel,
        batch: GraphBatch,
        labels: Mapping[str, Sequence[int]],
        routing: Routing,
    ) -> dict[str, NodeSum]:
        """Split outputs into contributions of the nodes."""
        return model.node_sums(batch, labels, routing)


class AdaptedFamily:
    """Base of families whose network is a `LayeredNetwork` and whose task modules are experts with
    adapters.

    Attributes:
        targets: prediction targets of a linear head.
        streams: tasks may share streams.
        node_sums: outputs of graphs are sums over their nodes.
    """

    targets: tuple[Target, ...] = ("multilabel", "multiclass", "regression")
    streams: StreamModules | None = SharedStreams()
    node_sums: NodeSums | None = AdaptedNodeSums()

    def check_expert(self, expert: TaskExpert, schema: object, task: str) -> None:
        """Check the loaded weights of an expert.

        Raises:
            ArtifactError: a BatchNorm variance is negative, or the adapters of all sites are zero.
                Some may be zero, since training can leave sites out (`alignment.sites`). A task
                that shares its stream has one site, the graph adapter.
        """
        if isinstance(expert, SharedExpert):
            if not expert.graph.is_active:
                raise ArtifactError(
                    "graph.up or .down is zero, expected a graph adapter of rank"
                    f" {len(expert.graph.up)} that does something"
                )
            return
        adapters = expert.stream
        if bool((adapters.norm_var < 0).any()):
            raise ArtifactError("adapters.norm_var is negative, expected variances")
        if adapters.rank and not adapters.active_sites:
            raise ArtifactError(
                f"adapters.sites.*.up or .down are zero at all {len(adapters.sites)} sites, "
                f"expected adapters of rank {adapters.rank} that do something"
            )

    def model(
        self, network: LayeredNetwork, experts: Mapping[str, TaskExpert], router: RouterConfig
    ) -> UnifiedModel:
        """Assemble the unified model."""
        return UnifiedModel(network, experts, router)

    def served(self, model: UnifiedModel) -> ServedModel:
        """Return the model itself."""
        return model

    def answer(
        self,
        model: Callable[[GraphBatch, Sequence[str], Routing], UnifiedOutput],
        batch: GraphBatch,
        tasks: Sequence[str],
        routing: Routing,
    ) -> dict[str, TaskOutput]:
        """Predict tasks for a batch: see `ModelFamily.answer` and `UnifiedModel.forward`."""
        output = model(batch, tasks, routing)
        return {
            task: TaskOutput(logits, output.target(task), output.routing_weights[task])
            for task, logits in output.logits.items()
        }
