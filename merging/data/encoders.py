"""Linear encoders of node features to a network's input width: truncated singular value
decompositions, without labels."""

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from models.data.molecule import NUM_ATOM_TYPES, NUM_CHIRALITY_TAGS
from models.errors import DataError, InvalidInputError


def svd_encoder(x: Tensor, width: int) -> nn.Linear:
    """Fit the encoder z = s V^T (x - mean) by a singular value decomposition of centred features.

    V are the leading right singular vectors, and s makes the mean of z^2 equal to 1. The encoder is
    fixed: neither training nor merging changes it, so a merged network has the same inputs as its
    parents.

    Args:
        x: (N, F), the features of the training nodes.
        width: of z; at most N and F.

    Returns:
        A linear layer F -> width without gradients.

    Raises:
        DataError: the features vary in fewer than `width` directions.
    """
    mean = x.double().mean(0)
    centred = x.double() - mean
    if width > min(centred.shape):
        raise DataError(
            f"got features {tuple(x.shape)}, expected at least {width} nodes and numbers for an"
            f" encoder to {width}"
        )
    _, values, directions = randomized_svd(centred.numpy(), width, n_iter=7, random_state=0)
    # The tolerance of numpy.linalg.matrix_rank: smaller singular values are rounding.
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


def svd_features(x: Tensor, width: int) -> Tensor:
    """Compute U S^(1/2) of the truncated singular value decomposition x = U S V^T, AnyGraph's way
    to bring features to one width: (N, F) -> (N, width).

    Raises:
        InvalidInputError: F is not greater than the width.
    """
    if x.shape[1] <= width:
        raise InvalidInputError(
            f"x: got {x.shape[1]} features for each node, expected more than the width, {width}"
        )
    svd = TruncatedSVD(width, random_state=0)
    scores = svd.fit_transform(csr_matrix(x.numpy()))
    return torch.from_numpy(scores / np.sqrt(svd.singular_values_)).float()


def atom_features(x: Tensor, width: int) -> Tensor:
    """Project one-hot atom types and chirality tags by one fixed matrix with orthonormal columns,
    the same for all data sets: (N, 2) -> (N, width).

    Raises:
        InvalidInputError: the width exceeds the number of atom types and chirality tags.
    """
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
    """Scale features so that their mean square is 1, which gives all domains the same weight."""
    return x / x.square().mean().sqrt()
