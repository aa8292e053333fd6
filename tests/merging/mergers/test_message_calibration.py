"""Message calibration: the moments that it promises, on every kind of layer without BatchNorm."""

import pytest
import torch

from merging.mergers.base import MergeInputs
from merging.mergers.message_calibration import message_moments
from merging.mergers.registry import merge
from tests.merging.mergers.test_gnnmerge import PYG, assert_is_model, given


def averaged(inputs: MergeInputs, states: dict[str, dict[str, torch.Tensor]], layer: int) -> list:
    """Mean and deviation by channel, averaged over tasks."""
    found = [
        message_moments(inputs.network(state), inputs.calibration[task])[layer]
        for task, state in states.items()
    ]
    pairs = [(moments.mean, moments.deviation) for moments in found]
    return [torch.stack(values).mean(0) for values in zip(*pairs, strict=True)]


@pytest.mark.parametrize("kind", PYG)
def test_messages_of_every_layer_have_the_moments_of_the_teachers(kind: str) -> None:
    inputs = given(kind, 0, 1, 2)
    merged = merge("message_calibration", inputs).backbone
    average = merge("weight_average", inputs).backbone
    for layer in range(inputs.config.num_layers):
        target = averaged(inputs, inputs.finetuned, layer)
        found = averaged(inputs, dict.fromkeys(inputs.finetuned, merged), layer)
        before = averaged(inputs, dict.fromkeys(inputs.finetuned, average), layer)
        for theirs, ours, plain in zip(target, found, before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(plain, theirs, rtol=1e-2)


@pytest.mark.parametrize("kind", PYG)
def test_copies_of_a_model_merge_to_it(kind: str) -> None:
    inputs = given(kind, 4, 4, 4)
    assert_is_model(merge("message_calibration", inputs).backbone, inputs.finetuned["task0"])


def test_a_dead_channel_keeps_its_scale() -> None:
    """Its outputs are 0 in every model: there is nothing to divide by."""
    inputs = given("pyg_gcn", 0, 1)
    for state in inputs.finetuned.values():
        state["gnns.1.lin.weight"][3] = 0
        state["gnns.1.bias"][3] = 0
    merged = merge("message_calibration", inputs).backbone
    assert not merged["gnns.1.lin.weight"][3].any()
    assert float(merged["gnns.1.bias"][3]) == pytest.approx(0, abs=1e-6)
    assert all(value.isfinite().all() for value in merged.values())


def test_shrunken_messages_are_widened() -> None:
    """Two teachers of opposite signs: their average has no messages of its own."""
    inputs = given("pyg_gcn", 0, 0)
    other = inputs.finetuned["task1"]
    for key in other:
        other[key] = -0.5 * other[key]
    factors = merge("message_calibration", inputs).record["mean_factor_by_layer"]
    assert len(factors) == 3
    assert factors[0] == pytest.approx(3, rel=0.5)
