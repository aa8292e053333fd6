"""CHGNet, a network for force fields that sees distances and the angles between bonds."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.data.atoms import AtomsBatch
from models.networks.force_field import Activation, AtomNetwork, ForceFieldShape
from models.ops.segment import segment_count, segment_sum

ENVELOPE = 8
"""Exponent of the smooth cutoff."""
_COSINE_MARGIN = 1 - 1e-6
"""Keeps cosines off -1 and 1, where the angle has no derivative."""


class ChgnetConfig(ForceFieldShape):
    """Shape of CHGNet; the defaults are those of the released networks.

    Attributes:
        num_interactions: blocks; all but the last update bonds and angles too.
        num_radial: waves in which a distance is expanded.
        num_angular: numbers in which an angle is expanded, odd: a constant, sines and cosines.
        angle_cutoff: Angstrom; only bonds at most this long form angles.
    """

    kind: Literal["chgnet"] = "chgnet"
    num_interactions: int = Field(default=4, ge=1)
    num_radial: int = Field(default=31, ge=1)
    num_angular: int = Field(default=31, ge=3)
    cutoff: float = Field(default=6.0, gt=0)
    angle_cutoff: float = Field(default=3.0, gt=0)

    @property
    def size(self) -> tuple[int, int]:
        """Number and width of the blocks."""
        return self.num_interactions, self.hidden_dim

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Three hidden layers."""
        return (*[self.hidden_dim] * 4, 1)

    @property
    def head_activation(self) -> Activation:
        """That of the blocks."""
        return "silu"


class RadialWaves(nn.Module):
    """Expansion of distances in sine waves over the distance, which vanish smoothly at the cutoff;
    the frequencies are learned."""

    def __init__(self, number: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.frequencies = nn.Parameter(math.pi * torch.arange(1.0, number + 1))

    def forward(self, distances: Tensor) -> Tensor:
        """Expand distances, in Angstrom: (n,) -> (n, number)."""
        r = distances[:, None]
        x, p = r / self.cutoff, ENVELOPE
        inside = (
            1
            - (p + 1) * (p + 2) / 2 * x**p
            + p * (p + 2) * x ** (p + 1)
            - p * (p + 1) / 2 * x ** (p + 2)
        )
        smooth = torch.where(x < 1, inside, torch.zeros_like(x))
        waves: Tensor = math.sqrt(2 / self.cutoff) * torch.sin(self.frequencies * x) / r
        return smooth * waves


class AngularWaves(nn.Module):
    """Expansion of angles in a constant, sines and cosines; the frequencies are learned."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.arange(1.0, (number - 1) // 2 + 1))

    def forward(self, angles: Tensor) -> Tensor:
        """Expand angles, in radians: (n,) -> (n, number)."""
        x = torch.outer(angles, self.frequencies)
        constant = torch.full_like(x[:, :1], math.sqrt(0.5))
        return torch.cat([constant, x.sin(), x.cos()], 1) / math.sqrt(math.pi)


Rows = tuple[Tensor, Tensor | None]
"""A table, and the number of the row that every output takes from it; None takes them in order."""


class GatheredLinear(nn.Linear):
    """A Linear on rows that are put together from several tables.

    It multiplies every table with its own columns of the weight before rows are gathered, which is
    less work than to multiply the gathered rows: there are many more angles than bonds, and more
    bonds than atoms.
    """

    def forward(self, *tables: Rows) -> Tensor:  # type: ignore[override]
        """Compute the Linear's output, (n, q)."""
        out: Tensor | None = self.bias
        blocks = self.weight.split([values.shape[1] for values, _ in tables], dim=1)
        for (values, rows), block in zip(tables, blocks, strict=True):
            product = values @ block.T
            product = product if rows is None else product.index_select(0, rows)
            out = product if out is None else out + product
        assert out is not None
        return out


def joined(*tables: Rows) -> Tensor:
    """Return the input of a `GatheredLinear` as one matrix, (n, p)."""
    gathered = [values if rows is None else values.index_select(0, rows) for values, rows in tables]
    return torch.cat(gathered, 1)


class GatedLayer(nn.Module):
    """A layer whose output is multiplied by a gate of its own, both normalised.

    Attributes:
        hidden: whether core and gate have a hidden layer.
    """

    def __init__(self, inputs: int, width: int, hidden: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.core, self.gate = GatheredLinear(inputs, width), GatheredLinear(inputs, width)
        if hidden:
            self.core_out, self.gate_out = nn.Linear(width, width), nn.Linear(width, width)
        self.core_norm, self.gate_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, *tables: Rows) -> Tensor:
        """Compute the gated output of rows gathered from tables: (n, width)."""
        core, gate = self.core(*tables), self.gate(*tables)
        if self.hidden:
            core, gate = self.core_out(F.silu(core)), self.gate_out(F.silu(gate))
        out: Tensor = F.silu(self.core_norm(core)) * torch.sigmoid(self.gate_norm(gate))
        return out


class Chgnet(AtomNetwork):
    """The convolutions of CHGNet on atoms, bonds and angles. Atom embedding and head belong to the
    experts; charges and magnetic moments, which the original predicts too, are left out.

    Source: Deng et al. 2023, Nature Machine Intelligence 5, 1031, arXiv:2302.14231.
    """

    config: ChgnetConfig

    def __init__(self, config: ChgnetConfig) -> None:
        super().__init__()
        self.config = config
        width, blocks = config.hidden_dim, config.num_interactions
        self.radial = RadialWaves(config.num_radial, config.cutoff)
        self.near_radial = RadialWaves(config.num_radial, config.angle_cutoff)
        self.angular = AngularWaves(config.num_angular)
        self.bond_embedding = nn.Linear(config.num_radial, width, bias=False)
        self.atom_weights = nn.Linear(config.num_radial, width, bias=False)
        self.bond_weights = nn.Linear(config.num_radial, width, bias=False)
        angular = len(self.angular.frequencies) * 2 + 1
        self.angle_embedding = nn.Linear(angular, width, bias=False)
        self.atom_layers = self._gated(blocks, 3, hidden=True)
        self.bond_layers = self._gated(blocks - 1, 4, hidden=True)
        self.angle_layers = self._gated(blocks - 1, 4, hidden=False)
        self.atom_outs = self._linear(blocks)
        self.bond_outs = self._linear(blocks - 1)
        self.norm = nn.LayerNorm(width)

    def _gated(self, count: int, inputs: int, hidden: bool) -> nn.ModuleList:
        width = self.config.hidden_dim
        return nn.ModuleList(GatedLayer(inputs * width, width, hidden) for _ in range(count))

    def _linear(self, count: int) -> nn.ModuleList:
        width = self.config.hidden_dim
        return nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))

    def forward(self, h: Tensor, batch: AtomsBatch, positions: Tensor) -> Tensor:
        """Compute atom embeddings (`AtomNetwork.forward`)."""
        source, center = batch.edge_index
        vectors = positions[center] - positions[source] - batch.shift.to(positions)
        distances = vectors.norm(dim=1)
        # A bond is a pair of atoms without direction: the first of its two directed pairs.
        numbers = torch.arange(len(source), device=source.device)
        firsts, bond = torch.minimum(numbers, batch.reverse).unique(return_inverse=True)
        waves, near = self.radial(distances[firsts]), self.near_radial(distances[firsts])
        bonds, weights = self.bond_embedding(waves), self.atom_weights(waves)[bond]
        one, other = bond_angles(center, distances < self.config.angle_cutoff, len(h))
        directions = vectors / distances[:, None]
        cosines = _COSINE_MARGIN * (directions[one] * directions[other]).sum(1)
        angles = self.angle_embedding(self.angular(cosines.acos()))
        corner, one, other = center[one], bond[one], bond[other]
        near_weights = self.bond_weights(near)
        near_weights = near_weights[one] * near_weights[other]
        for k, (layer, out) in enumerate(zip(self.atom_layers, self.atom_outs, strict=True)):
            messages = layer((h, center), (bonds, bond), (h, source)) * weights
            h = h + out(segment_sum(messages, center, len(h)))
            if k < len(self.bond_layers):
                tables = (bonds, one), (bonds, other), (angles, None), (h, corner)
                messages = self.bond_layers[k](*tables) * near_weights
                bonds = bonds + self.bond_outs[k](segment_sum(messages, one, len(bonds)))
                tables = (bonds, one), (bonds, other), (angles, None), (h, corner)
                angles = angles + self.angle_layers[k](*tables)
        out_h: Tensor = self.norm(h)
        return out_h

    def linear_groups(self) -> tuple[tuple[str, ...], ...]:
        """Return the Linears in the order of the forward pass, core and gate of a layer as one."""
        groups: list[tuple[str, ...]] = [
            ("bond_embedding", "atom_weights", "bond_weights", "angle_embedding")
        ]
        for k in range(len(self.atom_layers)):
            groups += [*_layer_groups(f"atom_layers.{k}"), (f"atom_outs.{k}",)]
            if k < len(self.bond_layers):
                groups += [*_layer_groups(f"bond_layers.{k}"), (f"bond_outs.{k}",)]
                groups.append((f"angle_layers.{k}.core", f"angle_layers.{k}.gate"))
        return tuple(groups)


def _layer_groups(name: str) -> tuple[tuple[str, ...], ...]:
    return (f"{name}.core", f"{name}.gate"), (f"{name}.core_out", f"{name}.gate_out")


def bond_angles(center: Tensor, short: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """Return all angles as two numbers of directed pairs with the same center: (A,) and (A,).

    Args:
        center: (E,) the atom at which every directed pair ends, ascending.
        short: (E,) bool, which pairs form angles.
        atoms: number of atoms.
    """
    pairs = short.nonzero().flatten()
    owner = center[pairs]
    counts = segment_count(owner, atoms)
    starts = counts.cumsum(0) - counts
    partners = counts[owner]
    one = torch.arange(len(pairs), device=pairs.device).repeat_interleave(partners)
    before = (partners.cumsum(0) - partners)[one]
    other = starts[owner[one]] + torch.arange(len(one), device=one.device) - before
    different = one != other
    return pairs[one[different]], pairs[other[different]]
