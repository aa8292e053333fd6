"""Slow and obvious restatements of the published equations, with loops on purpose: what the fast
code is compared with."""

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def edges_with_loops(
    edge_index: Tensor, edge_attr: Tensor, nodes: int
) -> list[tuple[int, int, int, int]]:
    """(source, target, bond type, direction), and for each atom a loop of type 4 and direction
    0."""
    edges = [
        (*pair, *attr) for pair, attr in zip(edge_index.T.tolist(), edge_attr.tolist(), strict=True)
    ]
    return edges + [(i, i, 4, 0) for i in range(nodes)]


def backbone(
    kind: str, state: State, x: Tensor, edge_index: Tensor, edge_attr: Tensor, num_layers: int
) -> Tensor:
    """Node embeddings of one graph by Hu et al. 2020's network in evaluation mode, edge by edge,
    float64."""
    state = {key: value.double() for key, value in state.items()}
    edges = edges_with_loops(edge_index, edge_attr, len(x))
    h = state["x_embedding1.weight"][x[:, 0]] + state["x_embedding2.weight"][x[:, 1]]
    for layer in range(num_layers):
        own = {
            key.removeprefix(f"gnns.{layer}."): value
            for key, value in state.items()
            if key.startswith(f"gnns.{layer}.")
        }
        h = _LAYERS[kind](own, h, edges)
        norm = {
            key.removeprefix(f"batch_norms.{layer}."): value
            for key, value in state.items()
            if key.startswith(f"batch_norms.{layer}.")
        }
        h = (h - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm[
            "weight"
        ] + norm["bias"]
        if layer < num_layers - 1:
            h = h.relu()
    return h


def _edge_embedding(state: State, kind: int, direction: int) -> Tensor:
    return state["edge_embedding1.weight"][kind] + state["edge_embedding2.weight"][direction]


def gcn(state: State, h: Tensor, edges: list[tuple[int, int, int, int]]) -> Tensor:
    degree = [sum(source == i for source, *_ in edges) for i in range(len(h))]
    z = h @ state["linear.weight"].T + state["linear.bias"]
    out = torch.zeros_like(z)
    for source, target, kind, direction in edges:
        out[target] += (z[source] + _edge_embedding(state, kind, direction)) / (
            degree[source] * degree[target]
        ) ** 0.5
    return out


def gin(state: State, h: Tensor, edges: list[tuple[int, int, int, int]]) -> Tensor:
    total = torch.zeros_like(h)
    for source, target, kind, direction in edges:
        total[target] += h[source] + _edge_embedding(state, kind, direction)
    hidden = (total @ state["mlp.0.weight"].T + state["mlp.0.bias"]).relu()
    return hidden @ state["mlp.2.weight"].T + state["mlp.2.bias"]


def gin_linear(state: State, h: Tensor, edges: list[tuple[int, int, int, int]]) -> Tensor:
    z = h @ state["linear.weight"].T + state["linear.bias"]
    out = torch.zeros_like(z)
    for source, target, kind, direction in edges:
        out[target] += z[source] + _edge_embedding(state, kind, direction)
    return out


def graphsage(state: State, h: Tensor, edges: list[tuple[int, int, int, int]]) -> Tensor:
    z = h @ state["linear.weight"].T + state["linear.bias"]
    rows = []
    for i in range(len(h)):
        messages = [
            z[source] + _edge_embedding(state, kind, direction)
            for source, target, kind, direction in edges
            if target == i
        ]
        rows.append(torch.stack(messages).mean(0))
    out = torch.stack(rows)
    return out / out.norm(dim=1, keepdim=True).clamp(min=1e-12)


def gat(state: State, h: Tensor, edges: list[tuple[int, int, int, int]]) -> Tensor:
    heads, width = state["att"].shape[1], state["att"].shape[2] // 2
    z = (h @ state["weight_linear.weight"].T + state["weight_linear.bias"]).view(
        len(h), heads, width
    )
    messages, scores = [], []
    for source, target, kind, direction in edges:
        message = z[source] + _edge_embedding(state, kind, direction).view(heads, width)
        messages.append(message)
        scores.append(
            F.leaky_relu((torch.cat([z[target], message], dim=1) * state["att"][0]).sum(1), 0.2)
        )
    out = torch.zeros_like(z)
    for (source, target, *_), message, score in zip(edges, messages, scores, strict=True):
        # as in Hu et al.'s code, the softmax runs over the edges that leave the source
        total = sum(
            (other - score).exp()
            for other, (start, *_) in zip(scores, edges, strict=True)
            if start == source
        )
        out[target] += message / total[:, None]
    return out.mean(1) + state["bias"]


_LAYERS = {"gcn": gcn, "gin": gin, "graphsage": graphsage, "gat": gat, "gin_linear": gin_linear}


def adapter(h: Tensor, down: Tensor, up: Tensor) -> Tensor:
    return (h @ down).relu() @ up


def roc_auc(labels: list[float], scores: list[float]) -> float:
    """Share of (positive, negative) pairs in the right order, ties half."""
    pairs = [
        (p, n)
        for p, lp in zip(scores, labels, strict=True)
        if lp == 1
        for n, ln in zip(scores, labels, strict=True)
        if ln == 0
    ]
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)


def mean_ranks(values: list[float]) -> list[float]:
    """By value its rank from 1; equal ones share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]
