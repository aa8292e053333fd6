"""Linear encoders that bring node features of any width to a network's: a truncated singular value
decomposition, without labels."""

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from models.data.molecule import NUM_ATOM_TYPES, NUM_CHIRALITY_TAGS
from models.errors import DataError, InvalidInputError


def svd_encoder(x: Tensor, width: int) -> nn.Linear:
    """The encoder z = s V^T (x - mean) with the leading right singular vectors V of the centred
    features, and s such that the mean of z^2 is 1.

    It is fixed: neither training nor merging changes it, so that a merged network still gets what
    each of its parents got.

    Args:
        x: (N, F) the features of all nodes that may be seen.
        width: of z; at most N and F.

    Raises:
        DataError: there are not so many directions in which the features differ.
    """
    mean = x.double().mean(0)
    centred = x.double() - mean
    if width > min(centred.shape):
        raise DataError(
            f"got features {tuple(x.shape)}, expected at least {width} nodes and numbers for an"
            f" encoder to {width}"
        )
    _, values, directions = randomized_svd(centred.numpy(), width, n_iter=7, random_state=0)
    # The least singular value that is not rounding, as numpy.linalg.matrix_rank has it
    if values[-1] <= values[0] * max(x.shape) * torch.finfo(x.dtype).eps:
        raise DataError(
            f"got features {tuple(x.shape)} that differ in fewer than {width} directions, expected"
            f" so many for an encoder to {width}"
        )
    scale = (len(x) * width / float((values**2).sum())) ** 0.5
    weight = torch.from_numpy(directions.copy()) * scale
    encoder = nn.Linear(x.shape[1], width).requires_grad_(False)
    encoder.weight.copy_(weight)
    encoder.bias.copy_(-weight @ mean)
    return encoder


def reduced(x: Tensor, width: int) -> Tensor:
    """U S^(1/2) of the truncated singular value decomposition x = U S V^T, as AnyGraph brings
    features to one width: (N, F) -> (N, width).

    Raises:
        InvalidInputError: fewer features than the width.
    """
    if x.shape[1] <= width:
        raise InvalidInputError(
            f"x: got {x.shape[1]} features for each node, expected more than the width, {width}"
        )
    svd = TruncatedSVD(width, random_state=0)
    scores = svd.fit_transform(csr_matrix(x.numpy()))
    return torch.from_numpy(scores / np.sqrt(svd.singular_values_)).float()


def atom_features(x: Tensor, width: int) -> Tensor:
    """One-hot atom type and chirality through one fixed map with orthonormal columns, the same for
    all sets of molecules: (N, 2) -> (N, width)."""
    rows = NUM_ATOM_TYPES + NUM_CHIRALITY_TAGS
    if width > rows:
        raise InvalidInputError(
            f"width: got {width}, expected at most {rows}, the number of atom types and chirality"
            " tags"
        )
    gaussian = torch.randn(
        (rows, width), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    table: Tensor = torch.linalg.qr(gaussian).Q.float()
    return table[x[:, 0]] + table[NUM_ATOM_TYPES + x[:, 1]]


def unit_mean_square(x: Tensor) -> Tensor:
    """The same numbers in another unit, so that their mean square is 1: no domain is louder than
    another."""
    return x / x.square().mean().sqrt()
