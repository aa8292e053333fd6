"""The graph site and the heads of a compiled model. See `models.compiled.model`."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.compiled import kernels
from models.compiled.fold import KEPT_SELECTIONS, ExpertSelection
from models.experts.router import routing_weights
from models.experts.streams import StreamSelection
from models.experts.unified import Routing, UnifiedModel


class GraphSite:
    """Graph adapters and heads of all K tasks, and the router between them.

    With routing "own" the tasks of a shared stream are three steps for all of them together
    (`SharedTasks`): none of their corrected embeddings is computed.
    """

    def __init__(self, model: UnifiedModel) -> None:
        bank, table = model.graph_bank, model.streams
        self._router, self._heads = model.router, model.heads
        # (K, d, r) and (K, r, d)
        self._down, self._up = bank.down.movedim(1, 0).contiguous(), bank.up.clone()
        self._sharing = {
            stream: SharedTasks(model, [k for k, s in enumerate(table.of_task) if s == stream])
            for stream in range(table.own, len(table.streams))
        }

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors, in bytes."""
        tensors = [self._down, self._up, *self._heads.parameters()]
        own = sum(value.numel() * value.element_size() for value in tensors)
        return own + sum(tasks.num_bytes for tasks in self._sharing.values())

    def own_logits(self, h: Tensor, chosen: StreamSelection) -> list[Tensor]:
        """Compute the logits (G, C) of every requested task with its own adapter from the readouts
        h (S, G, d) of the streams."""
        logits: dict[int, Tensor] = {}
        single, streams, sharing = _by_stream(chosen)
        if single:
            experts = ExpertSelection([chosen.tasks[t] for t in single])
            e = streams.select(h)
            e = e - (e @ experts.select(self._down)).relu_() @ experts.select(self._up)
            logits |= {t: self._heads[chosen.tasks[t]](e[k]) for k, t in enumerate(single)}
        for stream, tasks in sharing.items():
            shared = self._sharing[chosen.streams[stream]]
            found = shared.logits(h[stream], [chosen.tasks[t] for t in tasks])
            logits |= zip(tasks, found, strict=True)
        return [logits[t] for t in range(len(chosen.tasks))]

    def mixed_logits(
        self, h: Tensor, chosen: StreamSelection, routing: Routing, known: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """Compute the logits with mixed adapters.

        Args:
            h: (S, G, d), readout of every stream.
            chosen: the streams and the T requested tasks.
            routing: "moe" or "merged".
            known: with routing "merged", the weights (G, T, K) of the first layer that mixes; None
                if the graph site is the first for all tasks.

        Returns:
            Logits (G, C) of every requested task, and weights (G, T, K) of the graph site.
        """
        correct = self._merge if routing == "merged" else self._mix
        corrected, weights = correct(h, chosen, known)
        logits = [self._heads[k](e) for k, e in zip(chosen.tasks, corrected, strict=True)]
        return logits, weights

    def _mix(self, h: Tensor, chosen: StreamSelection, _: Tensor | None) -> tuple[Tensor, Tensor]:
        """Subtract the weighted mean of all adapters' outputs: (T, G, d), and weights (G, T, K)."""
        streams, graphs, width = h.shape
        z = (h.reshape(-1, width) @ self._down).relu_()  # (K, S * G, r)
        outputs = (z @ self._up).view(-1, streams, graphs, width)
        weights = self._weigh(outputs, chosen)
        corrected = h.new_empty(len(chosen.tasks), *h.shape[1:])
        single, rows, sharing = _by_stream(chosen)
        if single:
            of_streams = rows.select(outputs.transpose(0, 1)).transpose(0, 1)
            bias = torch.einsum("ksgd,gsk->sgd", of_streams, weights[:, single])
            corrected[single] = rows.select(h) - bias
        for stream, tasks in sharing.items():
            bias = torch.einsum("kgd,gtk->tgd", outputs[:, stream], weights[:, tasks])
            corrected[tasks] = h[stream] - bias
        return corrected, weights

    def _merge(
        self, h: Tensor, chosen: StreamSelection, known: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Do as `_mix` with the adapters' parameters averaged."""
        projected = h @ self._down.unsqueeze(1)  # (K, S, G, r)
        weights, corrected = known, h.new_empty(len(chosen.tasks), *h.shape[1:])
        if weights is None or not all(chosen.has_own_stream):
            weights = self._weigh(projected.relu() @ self._up.unsqueeze(1), chosen)
            if known is not None:
                own = torch.tensor(chosen.has_own_stream).unsqueeze(1)
                weights = torch.where(own, known, weights)
        single, rows, sharing = _by_stream(chosen)
        if single:
            of_streams = rows.select(projected.transpose(0, 1))
            z = torch.einsum("skgr,gsk->sgr", of_streams, weights[:, single]).relu_()
            bias = torch.einsum("sgr,gsk,krd->sgd", z, weights[:, single], self._up)
            corrected[single] = rows.select(h) - bias
        for stream, tasks in sharing.items():
            z = torch.einsum("kgr,gtk->tgr", projected[:, stream], weights[:, tasks]).relu_()
            bias = torch.einsum("tgr,gtk,krd->tgd", z, weights[:, tasks], self._up)
            corrected[tasks] = h[stream] - bias
        return corrected, weights

    def _weigh(self, outputs: Tensor, chosen: StreamSelection) -> Tensor:
        """Compute the routing weights (G, T, K) from the outputs (K, S, G, d)."""
        tasks, of_task = np.array(chosen.tasks), np.array(chosen.of_task)
        distances = kernels.mean_absolute_differences(outputs.numpy(), tasks, of_task)
        router = self._router
        return routing_weights(torch.from_numpy(distances), router.graph_temperature, router.top_k)


class SharedTasks:
    """Graph adapters and heads of the tasks of one stream, side by side.

    With head W and bias b the logits g' W + b of g' = g - relu(g D) U are
    g W + b - relu(g D) (U W), and U W does not depend on the molecule.
    """

    def __init__(self, model: UnifiedModel, tasks: Sequence[int]) -> None:
        """Fold the given tasks of a model."""
        bank, heads = model.graph_bank, [cast(nn.Linear, model.heads[task]) for task in tasks]
        self._position = {task: k for k, task in enumerate(tasks)}
        self._rank = bank.down.shape[2]
        self._starts = [0, *accumulate(len(head.bias) for head in heads)]
        with torch.no_grad():
            self._down = bank.down[:, list(tasks)].flatten(1)  # (d, T * r)
            self._head = torch.cat([head.weight.T for head in heads], 1)  # (d, C)
            self._bias = torch.cat([head.bias for head in heads])
            folded = [head.weight @ bank.up[t].T for t, head in zip(tasks, heads, strict=True)]
            self._up = torch.cat(folded)  # (C, r)
        self._selected = lru_cache(maxsize=KEPT_SELECTIONS)(self._select)

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors, in bytes."""
        tensors = (self._down, self._head, self._bias, self._up)
        return sum(value.numel() * value.element_size() for value in tensors)

    def logits(self, g: Tensor, tasks: Sequence[int]) -> list[Tensor]:
        """Compute the logits (G, C) of some tasks from the stream's readout g (G, d)."""
        bias, head, down, up, starts = self._selected(tuple(tasks))
        out = torch.addmm(bias, g, head)
        projected = g @ down
        kernels.subtract_adapters(out.numpy(), projected.numpy(), up, starts)
        return [out[:, begin:end] for begin, end in pairwise(starts.tolist())]

    def _select(self, tasks: tuple[int, ...]) -> "_SelectedTasks":
        positions = [self._position[task] for task in tasks]
        labels = [(self._starts[k], self._starts[k + 1]) for k in positions]
        ranks = [(k * self._rank, (k + 1) * self._rank) for k in positions]
        starts = np.array([0, *accumulate(end - begin for begin, end in labels)])
        bias = _columns(self._bias[None], labels)[0]
        up = _columns(self._up.T, labels).T.contiguous().numpy()
        head, down = _columns(self._head, labels), _columns(self._down, ranks)
        return _SelectedTasks(bias, head, down, up, starts)


class _SelectedTasks(NamedTuple):
    """Weights of T tasks with C labels: (C,), (d, C), (d, T * r), (C, r) product of heads and `up`
    matrices, and (T + 1,) the first label of every task."""

    bias: Tensor
    head: Tensor
    down: Tensor
    up: NDArray[np.float32]
    starts: NDArray[np.int64]


def _columns(values: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Select ranges of columns, as a view if one follows the other."""
    if all(left[1] == right[0] for left, right in pairwise(ranges)):
        return values[:, ranges[0][0] : ranges[-1][1]]
    return torch.cat([values[:, begin:end] for begin, end in ranges], 1)


@lru_cache(maxsize=KEPT_SELECTIONS)
def _by_stream(chosen: StreamSelection) -> tuple[list[int], ExpertSelection, dict[int, list[int]]]:
    """Group the requested tasks, given by their positions in the request, by their streams.

    Returns:
        The tasks with streams of their own, these streams, and the other tasks by their stream.
    """
    single = [t for t, own in enumerate(chosen.has_own_stream) if own]
    sharing: dict[int, list[int]] = {}
    for t, stream in enumerate(chosen.of_task):
        if stream >= chosen.own:
            sharing.setdefault(stream, []).append(t)
    return single, ExpertSelection([chosen.of_task[t] for t in single]), sharing
