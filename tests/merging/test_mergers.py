"""Laws of task vectors, and one contract that every registered merger keeps."""

import pytest
import torch
from torch import Tensor

from merging.mergers.contract import MergeInputs
from merging.registry import MERGERS, merge
from merging.task_vector import TaskVector, is_merged, total
from models.errors import CheckpointError, ConfigError, InvalidInputError
from tests.conftest import pico_config, random_backbone


def states(count: int) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    pretrained = random_backbone(pico_config(), seed=100).state_dict()
    return pretrained, {f"task{k}": random_backbone(pico_config(), seed=k).state_dict() for k in range(count)}


def test_vector_applied_in_full_gives_the_finetuned_weights() -> None:
    pretrained, finetuned = states(1)
    back = TaskVector.between(pretrained, finetuned["task0"]).apply(pretrained)
    for key, value in back.items():
        expected = finetuned["task0"] if is_merged(key, value) else pretrained
        torch.testing.assert_close(value, expected[key])


def test_batchnorm_statistics_and_counters_are_not_merged() -> None:
    pretrained, finetuned = states(1)
    delta = TaskVector.between(pretrained, finetuned["task0"]).delta
    assert not any("running" in key or "tracked" in key for key in delta)
    assert {"batch_norms.0.weight", "batch_norms.0.bias", "x_embedding1.weight", "gnns.2.edge_embedding1.weight"} <= delta.keys()


def test_backbones_of_other_shapes_are_refused() -> None:
    pretrained, _ = states(0)
    missing = {key: value for key, value in pretrained.items() if key != "gnns.0.linear.bias"}
    with pytest.raises(CheckpointError, match=r"gnns\.0\.linear\.bias"):
        TaskVector.between(pretrained, missing)
    with pytest.raises(CheckpointError, match=r"gnns\.0\.linear\.bias"):
        TaskVector.between(pretrained, {**pretrained, "gnns.0.linear.bias": torch.zeros(3)})


def test_weight_average_is_the_mean() -> None:
    pretrained, finetuned = states(3)
    merged = merge("weight_average", MergeInputs(pretrained, finetuned)).backbone
    for key, value in merged.items():
        if is_merged(key, value):
            torch.testing.assert_close(value, sum(state[key] for state in finetuned.values()) / 3, rtol=1e-4, atol=1e-6)


def test_task_arithmetic_by_hand() -> None:
    pretrained, finetuned = states(2)
    merged = merge("task_arithmetic", MergeInputs(pretrained, finetuned, scaling=0.3)).backbone
    key = "gnns.1.linear.weight"
    expected = pretrained[key] + 0.3 * ((finetuned["task0"][key] - pretrained[key]) + (finetuned["task1"][key] - pretrained[key]))
    torch.testing.assert_close(merged[key], expected)


def test_sum_of_vectors() -> None:
    pretrained, finetuned = states(2)
    vectors = [TaskVector.between(pretrained, state) for state in finetuned.values()]
    torch.testing.assert_close(
        total(vectors).delta["batch_norms.1.bias"], vectors[0].delta["batch_norms.1.bias"] + vectors[1].delta["batch_norms.1.bias"]
    )


@pytest.mark.parametrize("method", MERGERS)
class TestContract:
    def test_names_shapes_and_finite(self, method: str) -> None:
        pretrained, finetuned = states(3)
        merged = merge(method, MergeInputs(pretrained, finetuned)).backbone
        assert {key: value.shape for key, value in merged.items()} == {key: value.shape for key, value in pretrained.items()}
        assert all(bool(value.isfinite().all()) for value in merged.values())

    def test_inputs_stay_as_they_are(self, method: str) -> None:
        pretrained, finetuned = states(2)
        before = {key: value.clone() for key, value in pretrained.items()}
        merge(method, MergeInputs(pretrained, finetuned)).backbone["x_embedding1.weight"].fill_(7)
        assert all(torch.equal(pretrained[key], value) for key, value in before.items())

    def test_repeatable_and_free_of_task_order(self, method: str) -> None:
        pretrained, finetuned = states(3)
        once = merge(method, MergeInputs(pretrained, finetuned)).backbone
        again = merge(method, MergeInputs(pretrained, dict(reversed(finetuned.items())))).backbone
        for key, value in once.items():
            torch.testing.assert_close(value, again[key], rtol=1e-5, atol=1e-6)

    def test_models_that_never_left_the_start_stay_there(self, method: str) -> None:
        pretrained, _ = states(0)
        merged = merge(method, MergeInputs(pretrained, {"a": pretrained, "b": pretrained})).backbone
        assert all(torch.equal(merged[key], value) for key, value in pretrained.items())

    def test_nothing_to_merge_is_an_error(self, method: str) -> None:
        with pytest.raises(InvalidInputError, match="at least one"):
            merge(method, MergeInputs(states(0)[0], {}))

    def test_says_where_it_is_from(self, method: str) -> None:
        assert "arXiv" in MERGERS[method].paper


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'magic', expected one of weight_average, task_arithmetic"):
        merge("magic", MergeInputs(*states(1)))


def test_weight_average_takes_no_scaling() -> None:
    with pytest.raises(InvalidInputError, match="scaling"):
        merge("weight_average", MergeInputs(*states(1), scaling=0.5))
