"""Networks of PyG's layers for graphs with numeric node features."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.schema import FeatureInput
from models.errors import ArtifactError, InvalidInputError
from models.experts.adapter import Stream
from models.experts.expert import Expert
from models.families.adapted import AdaptedFamily, SharedStreams
from models.families.inputs import GraphFields, SizeLimits, floats, longest
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from models.task import TaskInfo

_PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
# In units of `ModelFamily.cost`, measured on a CPU and rounded.
_FEATURES_PER_UNIT = 300
_EDGE = 1 / 8


class FeatureStreams(SharedStreams):
    """Streams of networks with numeric node features, which have no encoders: the tasks of a stream
    have the same inputs, those of the network."""

    def check_stream(
        self, stream: Stream, shape: GraphNetworkConfig, schema: FeatureInput, tasks: Sequence[str]
    ) -> None:
        """See `SharedStreams.check_stream`. Raises ArtifactError also if a task has another number
        of features per node than the network."""
        super().check_stream(stream, shape, schema, tasks)
        for task in tasks:
            if (width := schema.num_features[task]) != shape.in_dim:
                got = f"got {width} features of a node for {task}, which shares the stream"
                raise ArtifactError(f"{got}, expected the network's {shape.in_dim}")


class FeatureGraphFamily(AdaptedFamily):
    """GCN, GraphSAGE, GIN and GAT of PyG on numeric node features. Tasks may differ in the number
    of features per node."""

    kinds = ("pyg_gcn", "pyg_sage", "pyg_gin", "pyg_gat")
    shape = GraphNetworkConfig
    schema = FeatureInput
    streams = FeatureStreams()
    fields = GraphFields(
        "graphs: `graphs` with x and edge_index, and pairs where a task answers for pairs of nodes",
        frozenset({"x", "edge_index"}),
        frozenset({"pairs"}),
    )
    read_texts = None
    inputs_overflow = True

    def network(self, shape: GraphNetworkConfig) -> GraphNetwork:
        """Build a network of PyG's layers."""
        return GraphNetwork(shape)

    def expert(
        self, shape: GraphNetworkConfig, rank: int, info: TaskInfo, schema: FeatureInput, task: str
    ) -> Expert:
        """Build adapters, a head, and an encoder if the task's number of features is not the
        network's input width."""
        width = schema.num_features[task]
        settings = info.labels, info.level, info.output_kind, width, info.head_dim
        return Expert(shape, rank, *settings)

    def check(self, fields: Mapping[str, Any], limits: SizeLimits) -> None:
        """See `ModelFamily.check`."""
        self.fields.check(fields)
        limits.check_nodes(len(fields["x"]))
        limits.check_edges(longest(fields["edge_index"]))
        limits.check_edges(len(fields.get("pairs", ())), "pairs")

    def read(
        self,
        fields: Mapping[str, Any],
        shape: GraphNetworkConfig,
        schema: FeatureInput,
        limits: SizeLimits,
    ) -> FeatureGraph:
        """Build a graph from `x`, `edge_index` and `pairs`. Raises InvalidInputError if a task
        expects another number of features, or pairs are given for no task or missing for one; see
        also `ModelFamily.read`."""
        x = fields["x"]
        for task, width in schema.num_features.items():
            if other := [len(row) for row in x if len(row) != width][:1]:
                got = f"x: got {other[0]} features of a node, expected {width} for task {task!r}"
                raise InvalidInputError(f"{got} (`tasks` says which are asked)")
        rows, limit = floats(x), torch.finfo(torch.float32).max
        if large := [value for row in rows for value in row if abs(value) > limit][:1]:
            got = f"x: got {large[0]:.3g}, expected numbers that are finite in 32 bits"
            raise InvalidInputError(got)
        pairs = _checked_pairs(fields.get("pairs", ()), schema)
        return FeatureGraph.from_lists(rows, fields["edge_index"], pairs)

    def collate(self, graphs: Sequence[FeatureGraph]) -> GraphBatch:
        """Join graphs into one batch: see `models.data.feature_graph.collate_features`."""
        return collate_features(graphs)

    def smallest(self, shape: GraphNetworkConfig, schema: FeatureInput, task: str) -> FeatureGraph:
        """Return a path of three nodes, all features 1; for a task on pairs with that of its
        ends."""
        x = torch.ones(3, schema.num_features[task])
        if task in schema.pair_tasks:
            return FeatureGraph(x, _PATH, torch.tensor([[0], [2]]))
        return FeatureGraph(x, _PATH)

    def cost(self, graph: FeatureGraph) -> int:
        """Return the cost by numbers of nodes, features and edges."""
        return _cost(graph.num_nodes, graph.num_features, graph.edge_index.shape[1])

    def estimate(self, fields: Mapping[str, Any], limits: SizeLimits) -> int:
        """Estimate the cost from the lengths of the lists, up to the limits."""
        x, edges = fields.get("x", ()), longest(fields.get("edge_index", ()))
        nodes = min(len(x), limits.max_atoms)
        return max(1, _cost(nodes, longest(x), min(edges, limits.max_edges)))

    def atom_types(self, graph: FeatureGraph) -> None:
        """Return None: nodes are not atoms."""


def _checked_pairs(pairs: Sequence[Sequence[int]], schema: FeatureInput) -> Any:
    """Return the pairs of a graph's request if the asked tasks take as many."""
    if schema.pair_tasks and not pairs:
        got = f"pairs: got none for task {schema.pair_tasks[0]!r}"
        raise InvalidInputError(f"{got}, which answers for pairs of nodes, expected at least one")
    if pairs and not schema.pair_tasks:
        got = f"pairs: got {len(pairs)} for {', '.join(schema.num_features)}"
        raise InvalidInputError(f"{got}, none of which answers for pairs of nodes, expected none")
    return pairs


def _cost(nodes: int, width: int, edges: int) -> int:
    return math.ceil(nodes * max(1.0, width / _FEATURES_PER_UNIT) + edges * _EDGE)
