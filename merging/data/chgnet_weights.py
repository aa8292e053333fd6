"""The released weights of CHGNet, which come with the package `chgnet` (modified BSD licence)."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data.atoms import NUM_ELEMENTS
from models.errors import CheckpointError

VERSION = "0.3.0"
"""Version of the weights, trained on the Materials Project's relaxations (MPtrj)."""
SOURCE = f"CHGNet {VERSION} (Deng et al. 2023, arXiv:2302.14231), from the package chgnet 0.4.2"
_LICENCE = Path(__file__).parents[1] / "weights" / "chgnet-licence.txt"
_FILE = Path("pretrained", VERSION, f"chgnet_{VERSION}_e29f68s314m37.pth.tar")
_UNUSED = ("composition_model.", "site_wise.")
_EMBEDDING = "atom_embedding.embedding.weight"
_HEAD = {"mlp.layers.0": "lin1", "mlp.layers.2": "lin2", "mlp.layers.4": "lin3"} | {
    "mlp.layers.7": "lin4"
}
_NAMES = (
    (r"^bond_basis_expansion\.rbf_expansion_ag", "radial"),
    (r"^bond_basis_expansion\.rbf_expansion_bg", "near_radial"),
    (r"^angle_basis_expansion\.fourier_expansion", "angular"),
    (r"^bond_weights_ag", "atom_weights"),
    (r"^bond_weights_bg", "bond_weights"),
    (r"^readout_norm", "norm"),
    (r"^(atom|bond)_conv_layers\.(\d+)\.mlp_out\.layers\.1", r"\1_outs.\2"),
    (r"^(atom|bond)_conv_layers", r"\1_layers"),
    (r"\.twoBody_(atom|bond)", ""),
    (r"\.mlp_(core|gate)\.layers\.[01]\.", r".\1."),
    (r"\.mlp_(core|gate)\.layers\.3\.", r".\1_out."),
    (r"\.bn1\.", ".core_norm."),
    (r"\.bn2\.", ".gate_norm."),
)


def weights_file() -> Path:
    """Return the file of the weights in the installed package, which is not imported. Raises
    CheckpointError: the package is not installed."""
    spec = find_spec("chgnet")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (path := Path(folder) / _FILE).is_file():
            return path
    expected = "expected one with the weights (pip install --no-deps chgnet==0.4.2)"
    raise CheckpointError(f"got no package chgnet with {_FILE}, {expected}")


def licence() -> str:
    """Return the licence of the weights, which whoever passes them on has to keep with them."""
    return _LICENCE.read_text().strip()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights as `network.*` of `models.networks.chgnet.Chgnet` and `head.embedding.*` and
    `head.lin*` of its experts.

    Raises:
        CheckpointError: the file is none of CHGNet's.
    """
    try:
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = stored["model"]["state_dict"]
        known = state[_EMBEDDING]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(f"got {path}, expected weights of CHGNet: {error}") from error
    # Row k is of the element of number k + 1. Elements without a row are never seen.
    embedding = known.new_zeros(NUM_ELEMENTS, known.shape[1])
    embedding[1 : len(known) + 1] = known
    renamed = {"head.embedding.weight": embedding}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer in _HEAD:
            renamed[f"head.{_HEAD[layer]}.{kind}"] = value
        elif name != _EMBEDDING and not name.startswith(_UNUSED):
            renamed[f"network.{_renamed(name)}"] = value
    return renamed


def _renamed(name: str) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name
