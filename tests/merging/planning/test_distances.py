"""Distances between models against oracles and laws."""

import itertools

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from merging.mergers.task_vector import TaskVector
from merging.planning.distances import (
    Matrix,
    Variant,
    cka_distance,
    cosine_distance,
    coupling_distance,
    distance_matrix,
    feasible,
    feature_matrix,
    gromov_wasserstein,
    low_rank,
    pair_table,
)
from models.data.batch import mean_readout
from models.data.molecule import collate
from models.data.smiles import featurize
from models.errors import InvalidInputError
from tests.conftest import SMILES, pico_config, random_backbone

VARIANTS: tuple[Variant, ...] = ("exact", "sampled", "low_rank")


def points(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def space(count: int, width: int = 3, seed: int = 0) -> Matrix:
    return distance_matrix(points(count, width, seed))


def distance(
    a: Matrix, b: Matrix, variant: Variant = "exact", restarts: int = 5, seed: int = 0
) -> float:
    return gromov_wasserstein(a, b, variant, restarts, np.random.default_rng(seed)).distance


class TestGromovWasserstein:
    def test_of_a_rotated_rescaled_shuffled_copy_is_zero(self) -> None:
        x = points(30, 4, seed=1)
        rotation = torch.linalg.qr(points(4, 4, seed=2))[0]
        copy = (
            7.5 * (x @ rotation)[torch.randperm(30, generator=torch.Generator().manual_seed(3))] + 2
        )
        found = gromov_wasserstein(
            distance_matrix(x), distance_matrix(copy), "exact", 3, np.random.default_rng(0)
        )
        assert found.distance < 1e-6
        assert found.converged

    def test_spaces_of_other_widths_and_sizes(self) -> None:
        x = points(12, 3, seed=1)
        padded = torch.cat([x, torch.zeros(12, 5)], dim=1)
        twice = torch.cat([padded, padded])
        assert distance(distance_matrix(x), distance_matrix(twice)) < 1e-4
        assert distance(space(9), space(14, width=6, seed=4)) > 0.05

    def test_is_symmetric(self) -> None:
        """Between spaces that are near each other; elsewhere the solver may get stuck on one side
        earlier than on the other."""
        for seed in range(4):
            x = points(20, 3, seed)
            a, b = distance_matrix(x), distance_matrix(x + 0.02 * points(20, 3, seed + 10))
            assert distance(a, b) == pytest.approx(distance(b, a), abs=1e-6)

    @pytest.mark.parametrize("count", [3, 4, 5, 6])
    def test_is_that_of_the_best_permutation(self, count: int) -> None:
        """By trying all permutations. A coupling that splits molecules could be better, but for
        Euclidean distances none is; of six pairs of spaces the solver may miss two by a little, as
        the problem is not convex."""
        found, best = [], []
        for seed in range(6):
            a, b = space(count, seed=seed), space(count, seed=seed + 10)
            found.append(distance(a, b, restarts=60))
            best.append(
                min(
                    0.5 * float(np.sqrt(((a - b[np.ix_(p, p)]) ** 2).mean()))
                    for p in map(list, itertools.permutations(range(count)))
                )
            )
        assert (np.array(found) >= np.array(best) - 1e-6).all()
        assert np.isclose(found, best, atol=1e-6).sum() >= 4
        assert (np.array(found) <= 1.02 * np.array(best)).all()

    def test_equals_pots_own_value(self) -> None:
        a, b = space(8), space(7, seed=5)
        loss = ot.gromov.gromov_wasserstein2(a, b, ot.unif(8), ot.unif(7), "square_loss")
        assert distance(a, b, restarts=1) == pytest.approx(0.5 * np.sqrt(loss), rel=1e-6)

    def test_more_starts_are_never_worse(self) -> None:
        a, b = space(25), space(25, seed=9)
        found = gromov_wasserstein(a, b, "exact", 12, np.random.default_rng(0))
        assert found.distance == min(found.by_start) <= found.by_start[0]
        # not convex: starts differ in where they lead
        assert len(set(np.round(found.by_start, 9))) > 1
        fewer = gromov_wasserstein(a, b, "exact", 4, np.random.default_rng(0))
        assert fewer.by_start == found.by_start[:4]

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_variant_gives_the_value_of_a_coupling(self, variant: Variant) -> None:
        """So none is below the minimum, and none above what no coupling at all (the product)
        has."""
        a, b = space(6), space(6, seed=3)
        product = coupling_distance(a, b, np.full((6, 6), 1 / 36))
        assert (
            distance(a, b, restarts=60) - 1e-9
            <= distance(a, b, variant, restarts=3)
            <= product + 1e-9
        )

    def test_value_of_a_coupling_is_the_definition(self) -> None:
        a, b = space(4), space(5, seed=3)
        plan = feasible(np.random.default_rng(0).random((4, 5)))
        value = sum(
            (a[i, k] - b[j, m]) ** 2 * plan[i, j] * plan[k, m]
            for i, j, k, m in itertools.product(range(4), range(5), range(4), range(5))
        )
        assert coupling_distance(a, b, plan) == pytest.approx(0.5 * np.sqrt(value))

    def test_feasible_plans(self) -> None:
        plan = feasible(np.random.default_rng(0).random((4, 6)))
        np.testing.assert_allclose(plan.sum(1), 1 / 4)
        np.testing.assert_allclose(plan.sum(0), 1 / 6)
        assert (plan >= 0).all()
        np.testing.assert_allclose(feasible(plan), plan)

    def test_low_rank_of_full_rank_is_the_table(self) -> None:
        table = space(12)
        left, right = low_rank(table, 12)
        np.testing.assert_allclose(left @ right.T, table, atol=1e-12)

    def test_errors_say_what_was_expected(self) -> None:
        with pytest.raises(InvalidInputError, match="not all the same"):
            distance_matrix(torch.ones(4, 2))
        with pytest.raises(InvalidInputError, match="not all the same"):
            distance_matrix(torch.full((4, 2), torch.nan))
        with pytest.raises(InvalidInputError, match=r"shape \(3, 4\)"):
            distance(np.ones((3, 4)), space(4))
        with pytest.raises(InvalidInputError, match="restarts: got 0"):
            distance(space(4), space(4), restarts=0)


class TestOtherDistances:
    def test_cka(self) -> None:
        x, y = points(40, 5, seed=1), points(40, 8, seed=2)
        rotation = torch.linalg.qr(points(5, 5, seed=3))[0]
        assert cka_distance(x, 3 * x @ rotation + 1) == pytest.approx(0, abs=1e-9)
        assert cka_distance(x, y) == pytest.approx(cka_distance(y, x))
        assert 0.3 < cka_distance(x, y) <= 1
        centred = [(features - features.mean(0)).double() for features in (x, y)]
        grams = [features @ features.T for features in centred]
        by_grams = 1 - float((grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm()))
        assert cka_distance(x, y) == pytest.approx(by_grams)
        with pytest.raises(InvalidInputError, match="40 and 39"):
            cka_distance(x, y[1:])

    def test_cosine(self) -> None:
        first = TaskVector({"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([[2.0]])})
        assert cosine_distance(
            first, TaskVector({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[6.0]])})
        ) == pytest.approx(0)
        assert cosine_distance(
            first, TaskVector({"a": torch.tensor([-1.0, 0.0]), "b": torch.tensor([[-2.0]])})
        ) == pytest.approx(2)
        assert cosine_distance(
            first, TaskVector({"a": torch.tensor([0.0, 5.0]), "b": torch.tensor([[0.0]])})
        ) == pytest.approx(1)


def test_features_are_graph_embeddings_batch_by_batch() -> None:
    backbone = random_backbone(pico_config()).eval()
    batches = [collate([featurize(one).graph for one in SMILES[k : k + 2]]) for k in (0, 2)]
    features = feature_matrix(backbone, batches)
    assert features.shape == (4, 16)
    assert not features.requires_grad
    whole = collate([featurize(one).graph for one in SMILES[:4]])
    torch.testing.assert_close(features, mean_readout(backbone(whole), whole).detach())


def test_a_table_of_pairs_asks_for_names_in_order_and_is_symmetric() -> None:
    values = {("a", "b"): 1.0, ("a", "c"): 2.0, ("b", "c"): 3.0}
    table = pair_table("cab", lambda first, second: values[first, second])
    assert table.tolist() == [[0, 2, 3], [2, 0, 1], [3, 1, 0]]
    assert pair_table("a", lambda first, second: np.nan).tolist() == [[0]]
