"""Molecules with numeric features of atoms and directed bonds, for D-MPNNs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from models.data.batch import GraphBatch
from models.errors import InvalidInputError


@dataclass(frozen=True)
class BondGraph:
    """One molecule.

    Attributes:
        x: (N, d_v) float32, features of atoms.
        edge_index: (2, E) int64, sources in the first row. Edges 2k and 2k + 1 are the two
            directions of bond k.
        edge_attr: (E, d_e) float32, features of bonds, the same in both directions.
    """

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor

    @property
    def num_nodes(self) -> int:
        """Number of atoms."""
        return int(self.x.shape[0])

    @classmethod
    def from_lists(
        cls,
        x: Sequence[Sequence[float]],
        edge_index: Sequence[Sequence[int]],
        edge_attr: Sequence[Sequence[float]],
        widths: tuple[int, int],
    ) -> Self:
        """Build a molecule from plain lists and check it.

        Args:
            x: N rows of d_v features.
            edge_index: 2 rows of E atom indices, every bond in both directions, in any order.
            edge_attr: E rows of d_e features.
            widths: d_v and d_e of the model.

        Raises:
            InvalidInputError: rows of other lengths, or see `validate`.
        """
        if len(edge_index) != 2 or len(edge_index[0]) != len(edge_index[1]):
            got = f"edge_index: got rows of {[len(row) for row in edge_index]} numbers"
            raise InvalidInputError(f"{got}, expected 2 of one length (sources and targets)")
        # Through NumPy: torch converts nested lists ten times slower.
        return cls(
            _table(x, "x", widths[0]),
            torch.from_numpy(np.array(edge_index, dtype=np.int64)),
            _table(edge_attr, "edge_attr", widths[1]),
        ).validate()

    def validate(self) -> Self:
        """Return the molecule with its edges in the order of the class: bonds by their first edge,
        which becomes edge 2k.

        Raises:
            InvalidInputError: no atom, a feature that is not finite, an edge to an atom that does
                not exist, a self-loop, a repeated edge, or a bond that is not given in both
                directions with the same features.
        """
        nodes, edges = self.num_nodes, int(self.edge_index.shape[1])
        if nodes == 0:
            raise InvalidInputError("x: got no atom, expected at least one")
        if edges != self.edge_attr.shape[0]:
            got = f"edge_attr: got {self.edge_attr.shape[0]} rows"
            raise InvalidInputError(f"{got}, expected one per edge, {edges}")
        for name, values in (("x", self.x), ("edge_attr", self.edge_attr)):
            if not bool(values.isfinite().all()):
                got = f"{name}: got a number that is not finite"
                raise InvalidInputError(f"{got}, expected finite ones")
        self._check_edges()
        order = self._paired_order()
        edge_index, edge_attr = self.edge_index[:, order], self.edge_attr[order]
        ends, back = edge_index[:, 0::2], edge_index[:, 1::2].flip(0)
        if not (torch.equal(ends, back) and torch.equal(edge_attr[0::2], edge_attr[1::2])):
            raise InvalidInputError(
                "edge_index: got a bond in one direction only, expected each bond in both"
                " directions with the same edge_attr"
            )
        return type(self)(self.x, edge_index, edge_attr)

    def _check_edges(self) -> None:
        source, target = self.edge_index
        if source.numel():
            low, high = int(self.edge_index.min()), int(self.edge_index.max())
            if not 0 <= low <= high < self.num_nodes:
                got = f"edge_index: got atoms from {low} to {high}"
                raise InvalidInputError(f"{got}, expected 0 to {self.num_nodes - 1}")
        if bool((source == target).any()):
            raise InvalidInputError("edge_index: got a self-loop, expected none")
        if len(torch.unique(source * self.num_nodes + target)) != source.numel():
            raise InvalidInputError("edge_index: got a repeated edge, expected each edge once")

    def _paired_order(self) -> Tensor:
        """Return the positions of the edges, (E,), ordered by bond: bonds by their first edge, and
        in a bond the first edge first."""
        ends = self.edge_index.sort(dim=0).values.numpy()
        _, first, bond = np.unique(
            ends[0] * self.num_nodes + ends[1], return_index=True, return_inverse=True
        )
        return torch.from_numpy(first[bond].argsort(kind="stable"))


def _table(rows: Sequence[Sequence[float]], name: str, width: int) -> Tensor:
    """Convert rows of `width` numbers to a float32 matrix; an empty list is (0, width)."""
    lengths = {len(row) for row in rows} - {width}
    if lengths:
        got = f"{name}: got rows of {sorted(lengths)} numbers"
        raise InvalidInputError(f"{got}, expected {width}")
    with np.errstate(over="ignore"):  # too large for float32: infinite, which `validate` refuses
        return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(-1, width))


def collate_bonds(graphs: Sequence[BondGraph]) -> GraphBatch:
    """Join molecules into one batch, in their order; features are float32.

    Raises:
        InvalidInputError: there are no molecules, or they differ in the number of features.
    """
    widths = {(graph.x.shape[1], graph.edge_attr.shape[1]) for graph in graphs}
    if len(widths) != 1:
        got = f"graphs: got {sorted(widths)} features of an atom and a bond"
        raise InvalidInputError(f"{got}, expected at least one molecule, and the same for all")
    counts = torch.tensor([graph.num_nodes for graph in graphs])
    offsets = (counts.cumsum(0) - counts).tolist()
    shifted = [graph.edge_index + k for graph, k in zip(graphs, offsets, strict=True)]
    return GraphBatch(
        torch.cat([graph.x for graph in graphs]),
        torch.cat(shifted, dim=1),
        torch.cat([graph.edge_attr for graph in graphs]),
        torch.repeat_interleave(torch.arange(len(graphs)), counts),
        len(graphs),
    )
