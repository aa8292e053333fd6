"""Merging by singular values, against what can be said by hand."""

import pytest
import torch

from merging.mergers.spectral import average_vectors, isotropic, nearest_orthogonal, tsv_matrix


def matrices(count: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (7, 5), (6, 6)])
class TestTsv:
    def test_one_task_keeps_its_matrix(self, rows: int, columns: int) -> None:
        delta = matrices(1, rows, columns)
        torch.testing.assert_close(tsv_matrix(delta), delta[0])

    def test_tasks_in_orthogonal_spaces_keep_their_main_directions(
        self, rows: int, columns: int
    ) -> None:
        first, second = torch.zeros(2, rows, columns, dtype=torch.float64)
        first[:2, :2] = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
        second[2:4, 2:4] = torch.tensor([[1.0, 4.0], [0.0, 2.0]])
        merged = tsv_matrix(torch.stack([first, second]))
        torch.testing.assert_close(merged, first + second)

    def test_singular_values_are_those_of_the_tasks_if_none_is_dropped(
        self, rows: int, columns: int
    ) -> None:
        # Two tasks of rank 2: what is kept of them is all, and U and V are orthogonal.
        deltas = matrices(2, rows, 2) @ matrices(2, 2, columns, seed=1)
        values = torch.linalg.svdvals(tsv_matrix(deltas))[:4]
        own = torch.linalg.svdvals(deltas)[:, :2].flatten().sort(descending=True).values
        torch.testing.assert_close(values, own)


def test_more_tasks_than_rows_keep_one_direction() -> None:
    deltas = matrices(5, 2, 6)
    assert tsv_matrix(deltas).shape == (2, 6)
    assert torch.linalg.matrix_norm(tsv_matrix(deltas)) > 0.1


def test_nearest_orthogonal() -> None:
    wide, tall = matrices(1, 3, 5)[0], matrices(1, 5, 3)[0]
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(nearest_orthogonal(tall).T @ nearest_orthogonal(tall), eye)
    torch.testing.assert_close(nearest_orthogonal(wide) @ nearest_orthogonal(wide).T, eye)
    rotation = torch.linalg.qr(matrices(1, 4, 4)[0]).Q
    torch.testing.assert_close(nearest_orthogonal(2 * rotation), rotation)


def test_isotropic_has_one_singular_value_the_mean() -> None:
    matrix = matrices(1, 4, 6)[0]
    mean = torch.linalg.svdvals(matrix).mean()
    torch.testing.assert_close(torch.linalg.svdvals(isotropic(matrix)), mean.repeat(4))


def test_isotropic_leaves_alone_what_no_task_has_changed() -> None:
    matrix = torch.zeros(5, 4, dtype=torch.float64)
    matrix[[0, 2]] = matrices(1, 2, 4)[0]
    found = isotropic(matrix)
    assert torch.equal(found[[1, 3, 4]].abs() < 1e-12, torch.ones(3, 4, dtype=torch.bool))
    values = torch.linalg.svdvals(matrix)[:2]
    torch.testing.assert_close(torch.linalg.svdvals(found)[:2], values.mean().repeat(2))


def test_what_is_no_matrix_is_averaged() -> None:
    biases = torch.tensor([[1.0, 2.0], [3.0, -6.0]])
    found = average_vectors(biases, lambda _: pytest.fail("a vector is no matrix"))
    torch.testing.assert_close(found, torch.tensor([2.0, -2.0]))
