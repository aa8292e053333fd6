"""Self-supervised objectives against slow and obvious ones."""

import random
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from merging.training.objectives import (
    ContextPrediction,
    ContextPredictionConfig,
    EdgePrediction,
    EdgePredictionConfig,
    PairScores,
    draw_nonadjacent,
    hop_distances,
    make_objective,
    split_context,
)
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, collate
from models.data.smiles import featurize
from models.errors import InvalidInputError
from tests.conftest import KINDS, pico_config
from tests.merging.conftest import stereo_corpus

CORPUS = stereo_corpus()
CONTEXT = ContextPredictionConfig(kind="contextpred", inner_hops=2, outer_hops=4)
EDGES = EdgePredictionConfig(kind="edgepred")


def generated(seed: int, graphs: int = 6) -> GraphBatch:
    """Long trees with some rings, some in pieces, some single atoms; features are the atoms'
    numbers in the batch, so that every atom can be told."""
    rng = random.Random(seed)
    molecules = []
    for _ in range(graphs):
        n = rng.randint(1, 25)
        bonds = {(max(0, k - rng.randint(1, 3)), k) for k in range(1, n)}
        bonds |= {
            (u, v)
            for u, v in ((rng.randrange(n), rng.randrange(n)) for _ in range(rng.randint(0, 3)))
            if u < v
        }
        bonds = {bond for bond in bonds if rng.random() < 0.97}
        edges = [*bonds, *((v, u) for u, v in bonds)]
        rng.shuffle(edges)
        index = torch.tensor(edges, dtype=torch.int64).view(-1, 2).T
        molecules.append(
            MolGraph(
                torch.zeros(n, 2, dtype=torch.int64),
                index,
                torch.zeros(len(edges), 2, dtype=torch.int64),
            )
        )
    batch = collate(molecules)
    return replace(
        batch,
        x=torch.arange(batch.num_nodes).unsqueeze(1).repeat(1, 2),
        edge_attr=batch.edge_index.T.clone(),
    )


def starts(batch: GraphBatch) -> Tensor:
    sizes = torch.bincount(batch.batch, minlength=batch.num_graphs)
    return sizes.cumsum(0) - sizes


def some_centres(batch: GraphBatch, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.bincount(batch.batch)
    return starts(batch) + torch.tensor(
        [int(torch.randint(int(n), (1,), generator=generator)) for n in sizes]
    )


def breadth_first(batch: GraphBatch, centre: int) -> dict[int, int]:
    """The plain algorithm: distance of every atom that can be reached."""
    neighbours: dict[int, list[int]] = {}
    for u, v in batch.edge_index.T.tolist():
        neighbours.setdefault(u, []).append(v)
    found, queue = {centre: 0}, deque([centre])
    while queue:
        atom = queue.popleft()
        for neighbour in neighbours.get(atom, []):
            if neighbour not in found:
                found[neighbour] = found[atom] + 1
                queue.append(neighbour)
    return found


def atoms_and_edges(subgraph: GraphBatch) -> tuple[list[int], set[tuple[int, int]]]:
    """Original numbers of a generated subgraph; its edges as numbered there must be those that
    their features tell."""
    numbers = subgraph.x[:, 0]
    assert torch.equal(numbers[subgraph.edge_index].T, subgraph.edge_attr)
    return numbers.tolist(), set(map(tuple, subgraph.edge_attr.tolist()))


@pytest.mark.parametrize("seed", range(12))
def test_hop_distances_are_those_of_breadth_first_search(seed: int) -> None:
    batch = generated(seed)
    centres = some_centres(batch, seed)
    for hops in (1, 4, 7):
        expected = torch.full((batch.num_nodes,), hops + 1)
        for centre in centres.tolist():
            for atom, distance in breadth_first(batch, centre).items():
                expected[atom] = min(distance, hops + 1)
        assert torch.equal(hop_distances(batch, centres, hops), expected)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("radius", "inner", "outer"), [(5, 4, 7), (2, 1, 4), (3, 1, 2)])
def test_neighbourhoods_contexts_and_anchors_are_exact(
    seed: int, radius: int, inner: int, outer: int
) -> None:
    batch = generated(seed)
    centres = some_centres(batch, seed)
    near: list[int] = []
    ring: list[int] = []
    shared: list[int] = []
    kept: list[int] = []
    for graph, centre in enumerate(centres.tolist()):
        distance = breadth_first(batch, centre)
        context = sorted(atom for atom, d in distance.items() if inner < d <= outer)
        if context:
            kept.append(graph)
            near += sorted(atom for atom, d in distance.items() if d <= radius)
            ring += context
            shared += [atom for atom in context if distance[atom] <= radius]
    edges = [(u, v) for u, v in batch.edge_index.T.tolist()]
    found = split_context(batch, centres, radius, inner, outer)
    for subgraph, atoms in ((found.neighbourhood, near), (found.context, ring)):
        assert atoms_and_edges(subgraph) == (
            atoms,
            {(u, v) for u, v in edges if u in atoms and v in atoms},
        )
        assert subgraph.num_graphs == len(kept)
        assert [kept[graph] for graph in subgraph.batch.tolist()] == batch.batch[
            subgraph.x[:, 0]
        ].tolist()
    assert found.neighbourhood.x[found.centres, 0].tolist() == [
        int(centres[graph]) for graph in kept
    ]
    assert found.context.x[found.anchors, 0].tolist() == shared
    # every context has an anchor
    assert set(found.context.batch[found.anchors].tolist()) == set(range(len(kept)))


@pytest.mark.parametrize("seed", range(12))
def test_drawn_pairs_are_two_unbonded_atoms_of_one_molecule(seed: int) -> None:
    batch = generated(seed)
    bonds = batch.edge_index[:, batch.edge_index[0] < batch.edge_index[1]]
    torch.manual_seed(seed)
    pairs = draw_nonadjacent(batch, bonds)
    edges = set(map(tuple, batch.edge_index.T.tolist()))
    assert all(u != v and (u, v) not in edges for u, v in pairs.T.tolist())
    assert torch.equal(batch.batch[pairs[0]], batch.batch[pairs[1]])
    for graph in range(batch.num_graphs):
        n, own = int((batch.batch == graph).sum()), int((batch.batch[bonds[0]] == graph).sum())
        complete = 2 * own == n * (n - 1)
        assert int((batch.batch[pairs[0]] == graph).sum()) == (0 if complete else own)


def test_pairs_are_drawn_evenly() -> None:
    # of the second 3 of 6 pairs are free, of the third 1 of 3
    batch = collate([featurize(smiles).graph for smiles in ("C1CC1", "CCCC", "CCO")])
    torch.manual_seed(0)
    pairs = draw_nonadjacent(batch, torch.tensor([[3], [4]]).repeat(1, 6000))
    drawn, counts = torch.unique(pairs.sort(dim=0).values, dim=1, return_counts=True)
    assert drawn.T.tolist() == [[3, 5], [3, 6], [4, 6]]
    assert bool(((counts - 2000).abs() < 200).all())
    assert draw_nonadjacent(batch, torch.tensor([[0, 7], [1, 8]])).sort(
        dim=0
    ).values.T.tolist() == [[7, 9]]


def test_loss_and_accuracy_by_their_definition() -> None:
    positive, negative = torch.tensor([3.0, -1.0, 0.5, 2.0]), torch.tensor([-2.0, 4.0])
    scores = PairScores(positive, negative)
    expected = F.binary_cross_entropy(positive.sigmoid(), torch.ones(4)) + F.binary_cross_entropy(
        negative.sigmoid(), torch.zeros(2)
    )
    torch.testing.assert_close(scores.loss(), expected)
    assert float(scores.accuracy()) == (3 / 4 + 1 / 2) / 2


def real_batch(*smiles: str) -> GraphBatch:
    return collate([featurize(one).graph for one in smiles or CORPUS[::16]])


def pico_objective(
    objective: ContextPredictionConfig | EdgePredictionConfig, **backbone: Any
) -> ContextPrediction | EdgePrediction:
    torch.manual_seed(0)
    return make_objective(pico_config("gin").model_copy(update=backbone), objective)


def scaled(left: Tensor, right: Tensor) -> Tensor:
    return left @ right / len(left) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_context_scores_are_those_of_molecules_cut_one_by_one(kind: str) -> None:
    objective = pico_objective(CONTEXT, kind=kind).eval()
    assert isinstance(objective, ContextPrediction)
    batch = real_batch(*CORPUS[::23], "CC", "CCO")
    torch.manual_seed(5)
    scores = objective(batch)
    torch.manual_seed(5)
    sizes = torch.bincount(batch.batch)
    centres = starts(batch) + torch.randint(2**62, sizes.shape) % sizes
    own, contexts = [], []
    for centre in centres.tolist():
        distance = breadth_first(batch, centre)
        near, ring = (
            [atom for atom, d in distance.items() if low <= d <= high]
            for low, high in ((0, 3), (3, 4))
        )
        if ring:
            own.append(objective.backbone(cut(batch, near))[near.index(centre)])
            contexts.append(
                objective.context(cut(batch, ring))[[distance[atom] <= 3 for atom in ring]].mean(0)
            )
    assert 2 < len(own) < batch.num_graphs
    torch.testing.assert_close(
        scores.positive,
        torch.stack([scaled(a, b) for a, b in zip(own, contexts, strict=True)]),
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(
        scores.negative,
        torch.stack([scaled(a, b) for a, b in zip(own, contexts[1:] + contexts[:1], strict=True)]),
        rtol=1e-4,
        atol=1e-5,
    )


def cut(batch: GraphBatch, atoms: list[int]) -> GraphBatch:
    """The subgraph of some atoms, in their order."""
    edges = [k for k, (u, v) in enumerate(batch.edge_index.T.tolist()) if u in atoms and v in atoms]
    index = torch.tensor(
        [[atoms.index(int(atom)) for atom in batch.edge_index[side, edges]] for side in (0, 1)],
        dtype=torch.int64,
    )
    return GraphBatch(
        batch.x[atoms], index, batch.edge_attr[edges], torch.zeros(len(atoms), dtype=torch.int64), 1
    )


def test_edge_scores_are_products_of_the_whole_molecules_embeddings() -> None:
    objective = pico_objective(EDGES).eval()
    batch = real_batch()
    torch.manual_seed(5)
    scores = objective(batch)
    h = objective.backbone(batch)
    bonds = [(u, v) for u, v in batch.edge_index.T.tolist() if u < v]
    torch.testing.assert_close(scores.positive, torch.stack([scaled(h[u], h[v]) for u, v in bonds]))
    torch.manual_seed(5)
    others = draw_nonadjacent(batch, torch.tensor(bonds).T)
    torch.testing.assert_close(
        scores.negative, torch.stack([scaled(h[u], h[v]) for u, v in others.T.tolist()])
    )


def test_batches_without_anything_to_predict_are_refused() -> None:
    with pytest.raises(
        InvalidInputError,
        match=(
            "got 1 molecules with an atom more than 2 bonds from the drawn one in a batch of 3,"
            " expected at least 2"
        ),
    ):
        pico_objective(CONTEXT)(real_batch("CC", "C1CCCCC1", "CCO"))
    with pytest.raises(
        InvalidInputError, match="got 1 bonds and no other pair of atoms in a batch of 2"
    ):
        pico_objective(EDGES)(real_batch("CC", "[Na+].[Cl-]"))


@pytest.mark.parametrize("kind", [CONTEXT, EDGES])
def test_stereo_molecules_train_the_chirality_and_direction_tables(
    kind: ContextPredictionConfig | EdgePredictionConfig,
) -> None:
    objective = pico_objective(kind)
    torch.manual_seed(0)
    batch = real_batch(
        *(smiles for smiles in CORPUS[::3] if "@" in smiles), *["CC/C=C/CCO", "CC/C=C\\CCO"] * 8
    )
    objective(batch).loss().backward()
    for table in (objective.backbone.x_embedding2, objective.backbone.gnns[0].edge_embedding2):
        assert isinstance(table.weight.grad, Tensor)
        assert bool((table.weight.grad.abs().sum(1) > 0).all())
