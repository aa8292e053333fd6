"""The batch of the compiled model and its kernels against lists, dictionaries and float64."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.compiled import batch as compiled_batch
from models.compiled.batch import CompiledBatch
from models.data.batch import GraphBatch
from models.data.molecule import NUM_BOND_DIRECTIONS, SELF_LOOP, collate
from models.data.smiles import featurize
from tests.models.conftest import AsRun, Kernel
from tests.oracles_kernels import Array, cases, graph_sizes, random_graphs, small_halves
from tests.strategies import quick


@pytest.fixture
def refine(as_run: AsRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Run `refine` compiled or in Python, there with `_mix` in Python, as compiled code returns no
    64-bit number.
    """
    monkeypatch.setattr(compiled_batch, "_mix", as_run(compiled_batch._mix))
    with np.errstate(over="ignore"):
        yield as_run(compiled_batch.refine)


@quick
@given(rows=st.lists(st.integers(0, 6)), more=st.integers(0, 3))
def test_rows_of_is_a_stable_sort(as_run: AsRun, rows: list[int], more: int) -> None:
    size = max(rows, default=-1) + 1 + more
    starts, order = as_run(compiled_batch.group_by_row)(np.array(rows, np.int64), size)
    by_row = [[entry for entry, row in enumerate(rows) if row == k] for k in range(size)]
    assert order.tolist() == [entry for entries in by_row for entry in entries]
    assert np.diff(starts).tolist() == [len(entries) for entries in by_row]
    assert starts[0] == 0


def test_edges_are_sorted_by_target(as_run: AsRun) -> None:
    texts = ("C[C@H](N)C(=O)O", "F/C=C/F", "C", "c1ccc2[nH]ccc2c1", "[Na+].[Cl-]")
    batch = collate([featurize(text).graph for text in texts])
    shuffled = torch.randperm(batch.edge_index.shape[1], generator=torch.Generator().manual_seed(0))
    edges, attributes = batch.edge_index[:, shuffled].numpy(), batch.edge_attr[shuffled].numpy()
    starts, sources, bonds, scale, keys = as_run(compiled_batch.sort_edges)(
        batch.x.numpy(), *edges, attributes, 3, NUM_BOND_DIRECTIONS
    )
    found = []
    for node in range(batch.num_nodes):
        for entry in range(starts[node], starts[node + 1]):
            found.append((sources[entry], node, *divmod(bonds[entry], NUM_BOND_DIRECTIONS)))
    assert sorted(found) == sorted(zip(*edges, *attributes.T, strict=True))
    degree = np.bincount(edges[0], minlength=batch.num_nodes) + 1
    np.testing.assert_allclose(scale, degree**-0.5, rtol=1e-6)
    features = np.column_stack([batch.x.numpy(), degree])
    same = (features[:, None] == features).all(2)
    np.testing.assert_array_equal(keys[:, None] == keys, same)
    assert [
        len(values)
        for values in as_run(compiled_batch.sort_edges)(
            np.empty((0, 2), np.int64),
            *np.empty((2, 0), np.int64),
            np.empty((0, 2), np.int64),
            3,
            3,
        )
    ] == [1, 0, 0, 0, 0]


def splitmix(key: int) -> int:
    """Compute Vigna's splitmix64, https://prng.di.unimi.it/splitmix64.c, without the first
    addition.
    """
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB % 2**64
    return key ^ (key >> 31)


def test_mix_is_splitmix64(as_run: AsRun) -> None:
    mix = as_run(compiled_batch._mix)
    with np.errstate(over="ignore"):
        for key in (0, 1, 2, 2**32, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15):
            assert int(mix(np.uint64(key))) == splitmix(key)
    # the first number of the published generator with seed 0
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def classes_by_dictionary(
    previous: list[int], starts: Array, sources: Array, bonds: Array
) -> tuple[list[int], list[int]]:
    """Return the class of each node, numbered by its first node, and these first nodes."""
    number: dict[object, int] = {}
    classes, representatives = [], []
    for node, before in enumerate(previous):
        entries = range(starts[node], starts[node + 1])
        around = sorted((previous[sources[entry]], int(bonds[entry])) for entry in entries)
        key = before, tuple(around)
        if key not in number:
            number[key] = len(number)
            representatives.append(node)
        classes.append(number[key])
    return classes, representatives


@pytest.mark.parametrize("degree", [0.0, 1.0, 2.5, 30.0])
@pytest.mark.parametrize("kinds", [1, 3])
@pytest.mark.parametrize("sizes", [(), (0,), (1,), (6, 0, 7), (4,) * 9, (23, 19)])
def test_refine_is_a_dictionary_of_neighbourhoods(
    refine: Kernel, sizes: tuple[int, ...], kinds: int, degree: float
) -> None:
    """With 1 and 18 neighbours and more, where the kernel sorts in another way."""
    graphs, rng = random_graphs(sizes, seed=3, degree=degree), np.random.default_rng(4)
    previous = rng.integers(0, kinds, graphs.num_nodes)
    bonds = rng.integers(0, 2, len(graphs.sources))
    for _ in range(3):
        classes, representatives = refine(previous, graphs.starts, graphs.sources, bonds)
        expected = classes_by_dictionary(previous.tolist(), graphs.starts, graphs.sources, bonds)
        assert (classes.tolist(), representatives.tolist()) == expected
        previous = classes


@pytest.mark.parametrize("degree", [0.0, 1.0, 2.5])
def test_refine_never_takes_a_hash_for_equality(
    degree: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one hash for everything every node meets every class in the table."""
    monkeypatch.setattr(compiled_batch, "_mix", lambda key: np.uint64(7))
    graphs = random_graphs((9, 8), seed=5, degree=degree)
    previous, bonds = np.arange(17) % 3, graphs.bonds
    with np.errstate(over="ignore"):
        classes, representatives = compiled_batch.refine.py_func(
            previous, graphs.starts, graphs.sources, bonds
        )
    expected = classes_by_dictionary(previous.tolist(), graphs.starts, graphs.sources, bonds)
    assert (classes.tolist(), representatives.tolist()) == expected


@pytest.mark.parametrize(("directions", "loop"), [(1, 0), (3, 4), (2, 5)])
def test_weighted_bonds_counts_types_directions_and_weights(
    as_run: AsRun, directions: int, loop: int
) -> None:
    for graphs, _, rng in cases(streams=(1,)):
        bonds = rng.integers(0, max(loop, 1) * directions, len(graphs.sources))
        sums = as_run(compiled_batch.weighted_bonds)(
            graphs.representatives,
            graphs.starts,
            graphs.sources,
            bonds,
            directions,
            loop,
            graphs.scale,
        )
        expected = np.zeros((len(graphs.representatives), loop + 1 + directions + 1))
        for row, node in enumerate(graphs.representatives):
            edges = [(node, loop * directions)]  # the self-loop has direction 0
            edges += zip(
                graphs.neighbours(node), bonds[graphs.starts[node] :].tolist(), strict=False
            )
            for source, bond in edges:
                weight = graphs.scale[source] * graphs.scale[node]
                expected[row, bond // directions] += weight
                expected[row, loop + 1 + bond % directions] += weight
                expected[row, -1] += weight
        np.testing.assert_array_equal(sums, expected)


@pytest.mark.parametrize("width", [1, 8, 13])
def test_graph_sums(as_run: AsRun, width: int) -> None:
    for graphs, streams, rng in cases():
        values = small_halves(rng, streams, graphs.num_classes, width)
        weights = small_halves(rng, graphs.num_nodes)
        out = as_run(compiled_batch.graph_sums)(
            values, graphs.classes, weights, graphs.graph_starts
        )
        expected = np.zeros((streams, graphs.num_graphs, width))
        for stream, graph in np.ndindex(streams, graphs.num_graphs):
            for node in graphs.nodes(graph):
                expected[stream, graph] += weights[node] * values[stream, graphs.classes[node]]
        np.testing.assert_array_equal(out, expected)


@quick
@given(sizes=graph_sizes(), seed=st.integers(0, 10**6))
def test_readout_weights_put_the_mean_before_the_messages(
    as_run: AsRun, sizes: tuple[int, ...], seed: int
) -> None:
    """sum_j weight_j x_j is the mean over the graph of scale_i (x_i + its neighbours' x_j)."""
    graphs = random_graphs(sizes, seed)
    weights = as_run(compiled_batch.readout_weights)(
        graphs.starts, graphs.sources, graphs.scale, graphs.graph_starts
    )
    for graph in range(graphs.num_graphs):
        messages = graphs.mask(graph) * graphs.scale[graphs.nodes(graph)][:, None]
        nodes = graphs.nodes(graph)
        expected = messages.sum(0) / max(len(nodes), 1)
        np.testing.assert_allclose(weights[nodes.start : nodes.stop], expected, rtol=1e-6)


def some_molecules() -> GraphBatch:
    smiles = ("CCO", "C", "F/C=C/F", "c1ccccc1C(=O)O", "[Na+].[Cl-]", "C[C@H](N)C(=O)O", "CCO")
    return collate([featurize(text).graph for text in smiles])


def with_empty_graphs(batch: GraphBatch) -> GraphBatch:
    """Insert a graph without nodes at both ends and after the second graph."""
    moved = batch.batch + 1 + (batch.batch >= 2).long()
    return GraphBatch(batch.x, batch.edge_index, batch.edge_attr, moved, batch.num_graphs + 3)


@pytest.mark.parametrize("empty", [False, True])
def test_from_batch_is_the_batch_by_node(empty: bool) -> None:
    batch = with_empty_graphs(some_molecules()) if empty else some_molecules()
    graphs = CompiledBatch.from_batch(batch)
    edges = list(zip(*batch.edge_index.tolist(), batch.edge_attr.tolist(), strict=True))
    starts, sources = graphs.edges
    for node, (atom, chirality) in enumerate(batch.x.tolist()):
        entering = [(s, a * NUM_BOND_DIRECTIONS + b) for s, t, (a, b) in edges if t == node]
        entries = slice(starts[node], starts[node + 1])
        assert list(zip(sources[entries], graphs.bonds[entries], strict=True)) == entering
        degree = 1 + sum(s == node for s, _, _ in edges)
        assert graphs.scale[node] == pytest.approx(degree**-0.5)
        same = [
            other
            for other, row in enumerate(batch.x.tolist())
            if row == [atom, chirality] and sum(s == other for s, _, _ in edges) == degree - 1
        ]
        assert np.flatnonzero(graphs.keys == graphs.keys[node]).tolist() == same
    for graph in range(batch.num_graphs):
        nodes = range(graphs.graph_starts[graph], graphs.graph_starts[graph + 1])
        assert list(nodes) == torch.nonzero(batch.batch == graph).flatten().tolist()
    assert graphs.num_graphs == batch.num_graphs


@pytest.mark.parametrize("max_nodes", [1, 2, 9, 10, 10**6])
@pytest.mark.parametrize("empty", [False, True])
def test_chunks_are_the_graphs_by_themselves(empty: bool, max_nodes: int) -> None:
    batch = with_empty_graphs(some_molecules()) if empty else some_molecules()
    graphs = CompiledBatch.from_batch(batch)
    first_graph, next_node = 0, 0
    for chunk, nodes in graphs.chunks(max_nodes):
        assert nodes.start == next_node == graphs.graph_starts[first_graph]
        edges = (batch.edge_index[0] >= nodes.start) & (batch.edge_index[0] < nodes.stop)
        single = CompiledBatch.from_batch(
            GraphBatch(
                batch.x[nodes],
                batch.edge_index[:, edges] - int(nodes.start),
                batch.edge_attr[edges],
                batch.batch[nodes] - first_graph,
                chunk.num_graphs,
            )
        )
        assert chunk.num_graphs > 0
        assert chunk.num_graphs == 1 or len(chunk.scale) <= max_nodes
        for name in ("graph", "graph_starts", "bonds", "scale"):
            np.testing.assert_array_equal(getattr(chunk, name), getattr(single, name), name)
        assert torch.equal(chunk.atoms, single.atoms)
        for mine, other in zip(chunk.edges, single.edges, strict=True):
            np.testing.assert_array_equal(mine, other)
        np.testing.assert_array_equal(chunk.keys, graphs.keys[nodes])
        first_graph, next_node = first_graph + chunk.num_graphs, nodes.stop
    assert (first_graph, next_node) == (graphs.num_graphs, len(graphs.scale))


@pytest.mark.parametrize("by_graph", [False, True])
def test_classes_are_equal_surroundings(by_graph: bool) -> None:
    graphs = CompiledBatch.from_batch(some_molecules())
    classes = graphs.classes(3, by_graph)
    starts, sources = graphs.edges
    colours: list[object] = graphs.keys.tolist()
    for level in range(4):
        of_node, representatives = classes.of_node[level], classes.representatives[level]
        assert len(set(of_node.tolist())) == len(set(colours)) == len(representatives)
        for node, colour in enumerate(colours):
            assert colours[representatives[of_node[node]]] == colour
        # the first of the seven molecules is the last one too
        twins = of_node[:3].tolist() == of_node[-3:].tolist()
        assert twins != (by_graph and level > 0)
        if by_graph and not level:
            colours = list(zip(colours, graphs.graph.tolist(), strict=True))
        colours = [
            (
                colour,
                tuple(
                    sorted(
                        (colours[sources[k]], int(graphs.bonds[k]))
                        for k in range(starts[node], starts[node + 1])
                    )
                ),
            )
            for node, colour in enumerate(colours)
        ]


@settings(quick, max_examples=5)
@given(streams=st.integers(1, 3), width=st.integers(1, 9))
def test_mean_is_the_mean_over_the_nodes_of_a_graph(streams: int, width: int) -> None:
    batch = with_empty_graphs(some_molecules())
    graphs, rng = CompiledBatch.from_batch(batch), np.random.default_rng(width)
    of_node = rng.integers(0, 5, batch.num_nodes)
    values = torch.from_numpy(small_halves(rng, streams, 5, width))
    means = graphs.mean(values, of_node)
    for graph in range(batch.num_graphs):
        rows = values[:, torch.from_numpy(of_node)[batch.batch == graph]].double()
        expected = rows.mean(1) if rows.shape[1] else torch.zeros(streams, width)
        torch.testing.assert_close(means[:, graph].double(), expected.double())


def test_bond_sums_are_those_of_the_first_nodes_and_of_all() -> None:
    graphs = CompiledBatch.from_batch(some_molecules())
    classes = graphs.classes(1, by_graph=False)
    everywhere = graphs.bonds_by_node
    assert everywhere.shape == (len(graphs.scale), SELF_LOOP + 1 + NUM_BOND_DIRECTIONS + 1)
    assert torch.equal(
        graphs.bond_sums(classes.representatives[1]), everywhere[classes.representatives[1]]
    )
    # what a class stands for is the same at each of its nodes
    assert torch.allclose(everywhere, everywhere[classes.representatives[1]][classes.of_node[1]])
