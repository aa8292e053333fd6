"""Networks in the layout of Hu et al. 2020, as others save them: GraphMVP, Mole-BERT, GraphCL,
JOAO, MGSSL.

Source: Hu et al. 2020, "Strategies for pre-training graph neural networks", arXiv:1905.12265.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from merging.data.files import sha256
from merging.imports.state_file import read_state
from merging.mergers.task_vector import State
from models.errors import CheckpointError
from models.networks.hu2020 import BackboneConfig, BackboneKind, make_backbone
from models.state_dict import sub_state

FIRST = "x_embedding1.weight"
"""The tensor that every file of this layout has, behind its prefix."""
_HEAD = "graph_pred_linear."
_PREFIXES = ("", "gnn.", "molecule_model.", "model.", "module.", "module.gnn.")
_LINEAR: tuple[BackboneKind, ...] = ("gcn", "graphsage", "gin_linear")
"""Kinds of layers whose tensors have the same names and shapes."""


@dataclass(frozen=True, eq=False)
class HuModel:
    """A network in Hu et al.'s layout.

    Attributes:
        path: the file.
        sha256: of the file.
        shape: kind, number and width of the layers.
        network: state dict of a `Backbone` of that shape.
        head: `weight` (C, d) and `bias` (C,) of a fine-tuned model; None for a pre-trained one.
        notes: sentences for the user on what was assumed.
    """

    path: Path
    sha256: str
    shape: BackboneConfig
    network: State
    head: State | None
    notes: tuple[str, ...]

    @property
    def vector(self) -> Tensor:
        """Its weights, see `network_vector`."""
        return network_vector(self.network)


def network_vector(network: State) -> Tensor:
    """Join the matrices of all layers to one vector, in float64, without embeddings of bonds."""
    return torch.cat(
        [
            value.double().flatten()
            for key, value in sorted(network.items())
            if key.startswith("gnns.") and value.dim() == 2 and "edge_embedding" not in key
        ]
    )


def read_hu2020(path: Path, kind: BackboneKind | None = None) -> HuModel:
    """Read a network in Hu et al.'s layout, whatever prefix its names have.

    Args:
        path: a file with a state dict (`read_state`).
        kind: kind of its layers. GIN and GAT are recognised; GCN, GraphSAGE and linear GIN have
            the same tensors, so that one of them must be named.

    Raises:
        CheckpointError: the file cannot be read; it is of another layout, has other vocabularies
            of atoms and bonds, or tensors that are missing, surplus or not finite.
    """
    state = read_state(path)
    prefix = _prefix(path, state)
    outer = prefix.removesuffix("gnn.").removesuffix("molecule_model.")
    heads = [start for start in dict.fromkeys((prefix, outer)) if f"{start}{_HEAD}weight" in state]
    head = sub_state(state, f"{heads[0]}{_HEAD}") if heads else None
    of_head = {f"{heads[0]}{_HEAD}{name}" for name in head} if head else set()
    tensors = {
        key.removeprefix(prefix) if key.startswith(prefix) else key: value
        for key, value in state.items()
        if key not in of_head
    }
    shape = _shape(path, tensors, kind)
    backbone = make_backbone(tensors, shape, str(path))
    if head is not None:
        _check_head(path, head, shape.hidden_dim)
        head = {name: value.float() for name, value in head.items()}
    readout = "The file does not say how atoms become a molecule: their mean is assumed."
    return HuModel(path, sha256(path), shape, backbone.state_dict(), head, (readout,))


def _prefix(path: Path, state: Iterable[str]) -> str:
    found = [key.removesuffix(FIRST) for key in state if key.endswith(FIRST)]
    if len(found) != 1 or found[0] not in _PREFIXES:
        got = ", ".join(f"{prefix}{FIRST}" for prefix in found) or f"no {FIRST}"
        known = ", ".join(prefix or "none" for prefix in _PREFIXES)
        expected = f"expected it once, with one of the prefixes {known}"
        raise CheckpointError(f"{path}: got {got}, {expected} (the layout of Hu et al. 2020)")
    return found[0]


def _shape(path: Path, tensors: State, kind: BackboneKind | None) -> BackboneConfig:
    layers = {key.split(".")[1] for key in tensors if key.startswith("gnns.")}
    width = tensors[FIRST].shape[-1] if tensors[FIRST].dim() else 0
    if not layers or not width:
        got = f"{len(layers)} layers of width {width}"
        raise CheckpointError(f"{path}: got {got}, expected at least one of each")
    found: BackboneKind | None = kind
    if "gnns.0.mlp.0.weight" in tensors:
        found = "gin"
    elif "gnns.0.att" in tensors:
        found = "gat"
    if found is None:
        expected = f"expected a kind: {', '.join(_LINEAR)} have the same tensors"
        raise CheckpointError(f"{path}: got linear layers and no kind, {expected}")
    if kind is not None and found != kind:
        raise CheckpointError(f"{path}: got layers of kind {found}, expected {kind}")
    return BackboneConfig(kind=found, num_layers=len(layers), hidden_dim=width)


def _check_head(path: Path, head: dict[str, Tensor], width: int) -> None:
    """Raise CheckpointError if a head is not one linear layer on the molecule's vector."""
    shapes = {name: tuple(value.shape) for name, value in head.items()}
    count = shapes["weight"][0] if shapes["weight"] else 0
    expected = {"weight": (count, width), "bias": (count,)}
    if shapes != expected or not count:
        raise CheckpointError(
            f"{path}: {_HEAD[:-1]}: got {shapes}, expected {expected}: one linear layer on the"
            " mean of the last layer's atoms"
        )
    if not all(v.is_floating_point() and bool(v.isfinite().all()) for v in head.values()):
        raise CheckpointError(
            f"{path}: {_HEAD[:-1]}: got numbers that are not finite, expected finite"
        )
