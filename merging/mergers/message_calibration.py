"""Message calibration: average the weights, then give every layer's messages the teachers' moments.

After Jing, Hong and Tao 2024, Deep Graph Mating (Child Message Calibration: averaging shrinks the
messages, so that nodes become alike), and H-GRAMA (Bhattacharya, Kalsariya and Manwani 2026,
arXiv:2602.19332), which calibrates without labels too. Only the abstracts of both could be read;
the equations are ours. For channel c of a layer's convolution outputs, before the activation,

    h_c <- (h_c - m_c) s*_c / s_c + m*_c,

where m* and s* are the means over tasks of the mean and standard deviation that each teacher's
messages have on its own graphs, and m and s are those of the merged network on the same graphs.
Layers are calibrated in their order. The map is affine, so it is folded into the layer's weights
and bias: the merged network costs nothing more.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merging.mergers.arithmetic import weight_average
from merging.mergers.base import Calibration, MergeInputs, MergeResult, MergerOptions
from merging.mergers.git_rebasin import chain_of

_SMALLEST = 1e-6  # of a standard deviation, relative to the layer's largest: a channel that is dead


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation by channel: both (d,) float64."""

    mean: Tensor
    deviation: Tensor


def message_calibration(inputs: MergeInputs, options: MergerOptions) -> MergeResult:
    """Merge by averaging, and calibrate the messages of every layer, from the first to the last.

    A channel that is constant in the average keeps its scale; its mean is calibrated.
    """
    state, factors = weight_average(inputs, options).backbone, []
    for layer, target in enumerate(_over_tasks(inputs, inputs.finetuned)):
        found = _over_tasks(inputs, dict.fromkeys(inputs.finetuned, state))[layer]
        alive = found.deviation > _SMALLEST * found.deviation.max()
        factor = torch.where(alive, target.deviation / found.deviation.where(alive, 1.0), 1.0)
        _fold(state, inputs.config, layer, factor, target.mean - factor * found.mean)
        factors.append(round(float(factor.mean()), 6))
    return MergeResult(state, record={"mean_factor_by_layer": factors})


def _over_tasks(inputs: MergeInputs, states: dict[str, dict[str, Tensor]]) -> list[Moments]:
    """Average over tasks, layer by layer, the moments that the task's network has on the task's
    graphs."""
    by_task = [
        message_moments(inputs.network(states[task]), inputs.calibration[task])
        for task in sorted(states)
    ]
    return [
        Moments(
            torch.stack([moments.mean for moments in found]).mean(0),
            torch.stack([moments.deviation for moments in found]).mean(0),
        )
        for found in zip(*by_task, strict=True)
    ]


@torch.no_grad()
def message_moments(network: Any, calibration: Calibration) -> list[Moments]:
    """Measure the convolution outputs of every layer on the nodes that belong to a task."""
    rows: list[list[Tensor]] = [[] for _ in range(network.config.num_layers)]

    def record(layer: int, h: Tensor) -> Tensor:
        rows[layer].append(h[calibration.node_mask(len(rows[layer]))].double())
        return h

    for batch in calibration.batches:
        network(batch, record)
    by_layer = map(torch.cat, rows)
    return [Moments(one.mean(0), one.std(0, correction=0)) for one in by_layer]


def _fold(state: dict[str, Tensor], config: Any, layer: int, factor: Tensor, shift: Tensor) -> None:
    """Multiply the outputs of a layer by factors (d,) and add shifts (d,), in place.

    A GAT's attention vectors are divided by the factors of the values that they read, so that the
    weights of its edges stay as they are.
    """
    prefix, space = f"gnns.{layer}.", f"h{layer + 1}"
    for key, axes in chain_of(config).axes.items():
        if not key.startswith(prefix) or axes.spaces[0] != space:
            continue
        value = state[key].double().reshape(axes.shape)
        by_row = factor.reshape(-1, *[1] * (value.dim() - 1))
        value = value / by_row if "att_" in key else value * by_row
        if key.endswith("bias"):
            value = value + shift
        state[key] = value.reshape(state[key].shape).to(state[key].dtype)
