"""Encoders of node features against exact decompositions."""

import pytest
import torch

from merging.data.encoders import atom_features, svd_encoder, svd_features, unit_mean_square
from models.errors import DataError, InvalidInputError


def test_encoder_is_the_best_linear_map_of_its_width() -> None:
    x = (
        torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
        @ torch.randn(12, 30, generator=torch.Generator().manual_seed(1))
        + 5
    )
    z = svd_encoder(x, 6)(x).double()
    torch.testing.assert_close(z.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-4, rtol=0)
    assert float(z.square().mean()) == pytest.approx(1, abs=1e-4)
    # oracle: all of it, exactly
    u, s, _ = torch.linalg.svd(x.double() - x.double().mean(0), full_matrices=False)
    exact = u[:, :6] * s[:6]
    exact = exact / exact.square().mean().sqrt()
    # equal up to a rotation
    torch.testing.assert_close(z @ z.T, exact @ exact.T, atol=1e-3, rtol=0)
    assert torch.equal(svd_encoder(x, 6).weight, svd_encoder(x, 6).weight)
    with pytest.raises(DataError, match="fewer than 13 directions"):
        svd_encoder(x, 13)
    with pytest.raises(DataError, match="expected at least 31"):
        svd_encoder(x, 31)


def test_features_are_brought_to_one_width_and_loudness() -> None:
    x = torch.randn((40, 12), generator=torch.Generator().manual_seed(0)).relu()
    narrow = svd_features(x, 11)
    assert narrow.shape == (40, 11)
    left, values, _ = torch.linalg.svd(x.double())
    torch.testing.assert_close(
        (narrow @ narrow.T).double(),
        (left[:, :11] * values[:11]) @ left[:, :11].T,
        atol=1e-2,
        rtol=1e-2,
    )
    assert float(unit_mean_square(3 * x).square().mean()) == pytest.approx(1)
    atoms = torch.tensor([[5, 0], [5, 1], [6, 0], [5, 0]])
    mapped = atom_features(atoms, 64)
    assert torch.equal(mapped[0], mapped[3])
    assert all(not torch.allclose(mapped[0], mapped[k]) for k in (1, 2))
    with pytest.raises(InvalidInputError, match="expected more than the width"):
        svd_features(x, 12)
    with pytest.raises(InvalidInputError, match="at most 123"):
        atom_features(atoms, 124)
