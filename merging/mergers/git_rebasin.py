"""Git Re-Basin: permutes the hidden units of the models so that their weights agree best, and then
averages them.

Ainsworth, Hayase and Srinivasa 2023, arXiv:2209.04836: weight matching (algorithm 1), and for more
than two models MergeMany (algorithm 3). A network is a chain of spaces of hidden units; every axis
of every parameter belongs to one of them or to none (inputs, bond types). A space's best order,
with all others fixed, is a linear assignment: maximise the sum over its parameters of
<W_reference, P W>.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from merging.mergers.base import MergeInputs, MergeResult, MergerOptions, stack_states
from merging.mergers.task_vector import State, is_merged
from models.networks.pyg import GraphNetworkConfig

Orders = dict[str, Tensor]
"""By space a permutation of its units: the unit of the model at each position, (size,) int64."""


class GitRebasinOptions(MergerOptions):
    """Options of Git Re-Basin.

    Attributes:
        max_sweeps: the most sweeps over all spaces, and over all models; both loops end earlier
            when no order changes.
    """

    max_sweeps: Annotated[int, Field(ge=1)] = 100


@dataclass(frozen=True)
class Axes:
    """The spaces of hidden units along the axes of a parameter.

    Attributes:
        shape: the shape that the parameter is viewed in; one axis may be -1.
        spaces: by axis the space whose units it indexes, or None.
    """

    shape: tuple[int, ...]
    spaces: tuple[str | None, ...]

    def reordered(
        self, value: Tensor, orders: Mapping[str, Tensor], but: str | None = None
    ) -> Tensor:
        """Permute every axis of a parameter by the order of its space, except the space `but`.

        Returns:
            The parameter viewed in `shape`.
        """
        out = value.reshape(self.shape)
        for axis, space in enumerate(self.spaces):
            if space is not None and space != but:
                out = out.index_select(axis, orders[space])
        return out


@dataclass(frozen=True)
class Chain:
    """The spaces of hidden units of a network, from its input to its output.

    Attributes:
        axes: by parameter name; parameters without hidden units are absent.
        sizes: by space the number of its units, in the order of computation.
        blocks: by space the number of blocks (heads of a GAT) that its units form: whole blocks are
            permuted, and the units within a block. Absent for one block.
        output: the space of the node embeddings, which heads read.
    """

    axes: dict[str, Axes]
    sizes: dict[str, int]
    blocks: dict[str, int]
    output: str

    def identity(self) -> Orders:
        """Return the orders that move no unit."""
        return {space: torch.arange(size) for space, size in self.sizes.items()}

    def apply(self, state: State, orders: Orders) -> State:
        """Permute the hidden units of a state dict, which leaves the network's function the
        same."""
        return {
            key: (
                self.axes[key].reordered(value, orders).reshape(value.shape)
                if key in self.axes
                else value
            )
            for key, value in state.items()
        }


def git_rebasin(inputs: MergeInputs, options: GitRebasinOptions) -> MergeResult:
    """Average the models after permuting the hidden units of all but the first by name.

    Every task's head must be permuted too, see `MergeResult.head_for`. The pre-trained weights are
    not used.

    Raises:
        CheckpointError: the backbones differ in names or shapes.
    """
    inputs.task_vectors()  # refuses backbones of other shapes
    tasks, chain = sorted(inputs.finetuned), chain_of(inputs.config)
    states = [
        {
            key: value.double()
            for key, value in inputs.finetuned[task].items()
            if is_merged(key, value)
        }
        for task in tasks
    ]
    orders, sweeps = merge_many(chain, states, options.max_sweeps)
    aligned = [chain.apply(state, order) for state, order in zip(states, orders, strict=True)]
    merged = {
        key: value.mean(0).to(inputs.pretrained[key].dtype)
        for key, value in stack_states(aligned).items()
    }
    moved = {task: _units_moved(order) for task, order in zip(tasks, orders, strict=True)}
    backbone = {
        key: merged[key] if key in merged else value.clone()
        for key, value in inputs.pretrained.items()
    }
    heads = {
        task: order[chain.output].to(next(iter(backbone.values())).device)
        for task, order in zip(tasks, orders, strict=True)
    }
    return MergeResult(
        backbone,
        record={**options.model_dump(), "sweeps": sweeps, "units_moved": moved},
        head_orders=heads,
    )


def merge_many(chain: Chain, states: list[State], max_sweeps: int) -> tuple[list[Orders], int]:
    """Align every model to the first, then repeatedly to the mean of the others, until no order
    changes (MergeMany, algorithm 3).

    Args:
        chain: the spaces of the network.
        states: the models' merged tensors, float64.
        max_sweeps: the most sweeps over the models, and over the spaces of one.

    Returns:
        The orders of every model, and the number of sweeps over the models.
    """
    orders = [match(chain, states[0], state, chain.identity(), max_sweeps) for state in states]
    sweeps, before = 0, None
    while sweeps < max_sweeps and not (before and _equal(before, orders)):
        sweeps, before = sweeps + 1, orders
        for k in range(1, len(states)):
            others = [chain.apply(states[j], orders[j]) for j in range(len(states)) if j != k]
            mean = {key: value.mean(0) for key, value in stack_states(others).items()}
            matched = match(chain, mean, states[k], orders[k], max_sweeps)
            orders = [*orders[:k], matched, *orders[k + 1 :]]
    return orders, sweeps


def match(chain: Chain, reference: State, state: State, start: Orders, max_sweeps: int) -> Orders:
    """Find the orders of `state` that agree best with `reference` (weight matching, algorithm 1).

    Spaces are solved one after the other from the input on, in sweeps, beginning with the orders
    `start`, until no order changes.
    """
    orders = dict(start)
    for _ in range(max_sweeps):
        before = dict(orders)
        for space in chain.sizes:
            orders[space] = _best_order(chain, space, reference, state, orders)
        if _equal([before], [orders]):
            break
    return orders


def _best_order(chain: Chain, space: str, reference: State, state: State, orders: Orders) -> Tensor:
    size = chain.sizes[space]
    agreement = np.zeros((size, size))
    for key, axes in chain.axes.items():
        if space in axes.spaces:
            axis = axes.spaces.index(space)
            fixed = reference[key].reshape(axes.shape).movedim(axis, 0).reshape(size, -1)
            moving = axes.reordered(state[key], orders, but=space).movedim(axis, 0)
            agreement += (fixed @ moving.reshape(size, -1).T).cpu().numpy()
    found = assign(agreement, chain.blocks.get(space, 1))
    rows, old = np.arange(len(found)), orders[space].numpy()
    # The gain must exceed rounding: among equally good orders the present one stays, so that the
    # search ends.
    rounding = 1e-9 * np.abs(agreement).max()
    better = agreement[rows, found].sum() > agreement[rows, old].sum() + rounding
    return torch.from_numpy(found) if better else orders[space]


def assign(agreement: NDArray[np.float64], blocks: int = 1) -> NDArray[np.int64]:
    """Find the order that maximises sum_i agreement[i, order[i]] among those that keep blocks
    together: (n, n) -> (n,).

    Exact: an assignment within every pair of blocks gives the agreement of the pair, and an
    assignment over the blocks picks the pairs.
    """
    size = len(agreement) // blocks
    within = np.empty((blocks, blocks, size), dtype=np.int64)
    gain = np.empty((blocks, blocks))
    for i in range(blocks):
        for j in range(blocks):
            block = agreement[i * size : (i + 1) * size, j * size : (j + 1) * size]
            rows, within[i, j] = linear_sum_assignment(block, maximize=True)
            gain[i, j] = block[rows, within[i, j]].sum()
    _, chosen = linear_sum_assignment(gain, maximize=True)
    return np.concatenate([within[i, j] + j * size for i, j in enumerate(chosen)])


def _units_moved(orders: Orders) -> int:
    return sum(int((order != torch.arange(len(order))).sum()) for order in orders.values())


def _equal(first: list[Orders], second: list[Orders]) -> bool:
    return all(
        torch.equal(a[space], b[space]) for a, b in zip(first, second, strict=True) for space in a
    )


# --- the spaces of every kind of network ---


def chain_of(config: Any) -> Chain:
    """Return the spaces of a network of this shape.

    `h0` is the input of the first layer (Hu et al.'s networks only: generic node features are no
    hidden units), `h1` its output, and so on; `m0`, `m1`, ... are hidden units within a layer.
    """
    layers, dim = config.num_layers, config.hidden_dim
    if config.kind not in _LAYERS:
        axes = {
            f"gnns.{n}.{key}": axis
            for n in range(layers)
            for key, axis in _pyg_layer(config, n).items()
        }
        sizes = {space: dim for n in range(layers) for space in [*_hidden(config, n), f"h{n + 1}"]}
        blocks = (
            {f"h{n + 1}": config.heads for n in range(layers)} if config.kind == "pyg_gat" else {}
        )
        return Chain(axes, sizes, blocks, f"h{layers}")
    axes = {f"x_embedding{k}.weight": Axes((-1, dim), (None, "h0")) for k in (1, 2)}
    sizes = {"h0": dim}
    for n in range(layers):
        axes |= {
            f"gnns.{n}.{key}": spaces
            for key, spaces in _LAYERS[config.kind](f"h{n}", f"m{n}", f"h{n + 1}", dim).items()
        }
        axes |= {
            f"batch_norms.{n}.{key}": Axes((dim,), (f"h{n + 1}",)) for key in ("weight", "bias")
        }
        sizes |= {"gin": {f"m{n}": 2 * dim}, "gat": {f"m{n}": 2}}.get(config.kind, {}) | {
            f"h{n + 1}": dim
        }
    return Chain(axes, sizes, {}, f"h{layers}")


def _linear(
    key: str, enters: str | None, leaves: str, enter_dim: int, leave_dim: int
) -> dict[str, Axes]:
    return {
        f"{key}.weight": Axes((leave_dim, enter_dim), (leaves, enters)),
        f"{key}.bias": Axes((leave_dim,), (leaves,)),
    }


def _tables(space: str, dim: int) -> dict[str, Axes]:
    return {f"edge_embedding{k}.weight": Axes((-1, dim), (None, space)) for k in (1, 2)}


def _one_linear(enters: str, _: str, leaves: str, dim: int) -> dict[str, Axes]:
    return {**_linear("linear", enters, leaves, dim, dim), **_tables(leaves, dim)}


def _gin(enters: str, middle: str, leaves: str, dim: int) -> dict[str, Axes]:
    return {
        **_linear("mlp.0", enters, middle, dim, 2 * dim),
        **_linear("mlp.2", middle, leaves, 2 * dim, dim),
        **_tables(enters, dim),
    }


def _gat(enters: str, heads: str, leaves: str, dim: int) -> dict[str, Axes]:
    """Heads are averaged, so they share one order of units; the heads themselves are a space of
    two."""
    return {
        "weight_linear.weight": Axes((2, dim, dim), (heads, leaves, enters)),
        "weight_linear.bias": Axes((2, dim), (heads, leaves)),
        "att": Axes((2, 2, dim), (heads, None, leaves)),
        "bias": Axes((dim,), (leaves,)),
        **{key: Axes((-1, 2, dim), (None, heads, leaves)) for key in _tables(leaves, dim)},
    }


_LAYERS = {
    "gin": _gin,
    "gcn": _one_linear,
    "gin_linear": _one_linear,
    "graphsage": _one_linear,
    "gat": _gat,
}


def _pyg_layer(config: GraphNetworkConfig, number: int) -> dict[str, Axes]:
    dim, enters, leaves = config.hidden_dim, f"h{number}" if number else None, f"h{number + 1}"
    width = dim if number else config.in_dim
    out = Axes((dim,), (leaves,))
    weight = Axes((dim, width), (leaves, enters))
    return {
        "pyg_gcn": {"lin.weight": weight, "bias": out},
        "pyg_sage": {"lin_l.weight": weight, "lin_r.weight": weight, "lin_l.bias": out},
        "pyg_gin": _pyg_mlp(enters, [*_hidden(config, number), leaves], width, dim),
        "pyg_gat": {"lin.weight": weight, "bias": out, "att_src": out, "att_dst": out},
    }[config.kind]


def _hidden(config: GraphNetworkConfig, number: int) -> list[str]:
    """Return the spaces between the Linears of a layer's MLP."""
    count = config.mlp_layers - 1 if config.kind == "pyg_gin" else 0
    return [f"m{number}.{k}" if k else f"m{number}" for k in range(count)]


def _pyg_mlp(
    enters: str | None, spaces: Sequence[str], enter_dim: int, dim: int
) -> dict[str, Axes]:
    """Return the axes of the Linears that end in these spaces, in their order."""
    axes: dict[str, Axes] = {}
    for k, space in enumerate(spaces):
        axes |= _linear(f"nn.{2 * k}", enters, space, dim if k else enter_dim, dim)
        enters = space
    return axes
