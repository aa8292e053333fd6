"""Pre-trained encoders of GCC (Qiu et al. 2020, arXiv:2006.09963) as starting weights of a plain
network.

A layer of GCC's GIN is Linear, BatchNorm, relu, Linear, BatchNorm, relu, BatchNorm, and relu before
the next layer. With the statistics of pre-training every BatchNorm is an affine map: the first two
are folded into the Linears before them, and the third becomes a third Linear, a diagonal one at the
start (`pyg_gin` with `mlp_layers: 3`). The readout, sums of all layers, is left out.
"""

from pathlib import Path

import torch
from torch import Tensor

from merging.data.files import read_arrays
from models.data.structural import DEGREES, POSITIONS, STRUCTURAL_FEATURES
from models.errors import CheckpointError
from models.state_dict import read_tensors

LINEARS = 3
"""Linears of a layer, `mlp_layers` of the network."""
_EPSILON = 1e-5  # of torch's BatchNorm1d
_FIRST, _WIDTH = "gnn.ginlayers.0.apply_func.mlp.linears.0.weight", POSITIONS + 1


def read_start(path: Path) -> dict[str, Tensor]:
    """Read the weights of a network: a state dict (.safetensors, .pth), or one of GCC's, also as
    `.npz`, whose layers are made those of `pyg_gin`.

    Raises:
        CheckpointError: the file is missing or no table of tensors, or it is not GCC's encoder.
        DataError: the same of an `.npz` file.
    """
    if path.suffix == ".npz":
        tensors = {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    else:
        tensors = read_tensors(path)
    return plain_layers(tensors, str(path)) if _FIRST in tensors else tensors


def plain_layers(tensors: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Return the layers of GCC's encoder, with names of `models.networks.pyg.GraphNetwork`.

    The first layer takes the features of `models.data.structural`: the encoder's 32 positions and
    its mark of the centre; the degree, which it has not seen, has weights of 0.

    Args:
        tensors: GCC's state dict, of an encoder without degrees among its inputs (33 columns).
        origin: where they are from, for errors.
    """
    if (width := tensors[_FIRST].shape[1]) != _WIDTH:
        expected = f"expected {_WIDTH}, positions and a mark, without degrees"
        raise CheckpointError(f"{origin}: got an encoder of {width} inputs, {expected}")
    layers = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("gnn.ginlayers."))
    plain: dict[str, Tensor] = {}
    try:
        for layer in range(layers):
            mlp = f"gnn.ginlayers.{layer}.apply_func"
            plain[f"gnns.{layer}.eps"] = tensors[f"gnn.ginlayers.{layer}.eps"]
            norms = f"{mlp}.mlp.batch_norms.0", f"{mlp}.bn", f"gnn.batch_norms.{layer}"
            for number, norm in enumerate(norms):
                scale, shift = _affine(tensors, norm)
                weight, bias = torch.eye(len(scale), dtype=scale.dtype), torch.zeros_like(scale)
                if number < LINEARS - 1:
                    linear = f"{mlp}.mlp.linears.{number}"
                    weight, bias = (tensors[f"{linear}.{name}"] for name in ("weight", "bias"))
                name = f"gnns.{layer}.nn.{2 * number}"
                plain[f"{name}.weight"] = (scale[:, None] * weight).float()
                plain[f"{name}.bias"] = (scale * bias + shift).float()
    except KeyError as error:
        raise CheckpointError(f"{origin}: got no tensor {error}, expected GCC's layout") from error
    first = plain["gnns.0.nn.0.weight"]
    widened = first.new_zeros(len(first), STRUCTURAL_FEATURES)
    widened[:, :POSITIONS] = first[:, :POSITIONS]
    widened[:, POSITIONS + DEGREES :] = first[:, POSITIONS:]
    return plain | {"gnns.0.nn.0.weight": widened}


def _affine(tensors: dict[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a BatchNorm with its stored statistics."""
    weight, bias, mean, variance = (
        tensors[f"{norm}.{name}"].double()
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + _EPSILON).sqrt()
    return scale, bias - scale * mean
