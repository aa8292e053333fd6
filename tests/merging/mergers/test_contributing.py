"""`docs/contributing.md`: the merger that it shows works as it stands there, by its row."""

import sys
from types import ModuleType

import pytest
import torch

from merging.mergers.base import MergeInputs
from merging.mergers.registry import MERGERS, MergerSpec, merge
from models.errors import ConfigError
from tests.conftest import pico_config, random_backbone
from tests.pages import blocks, page

FILE, ROW = (found.text for found in blocks(page("contributing.md"), "python"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> str:
    """The page's merger, in the table."""
    module = ModuleType("merging.mergers.magmax")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(FILE, "docs/contributing.md", "exec"), vars(module))
    row = eval(ROW, {"MergerSpec": MergerSpec, **vars(module)})
    assert row.name not in MERGERS, "the example of the page must be a new one"
    monkeypatch.setitem(MERGERS, row.name, row)
    return str(row.name)


@pytest.fixture
def inputs() -> MergeInputs:
    config = pico_config("gin")
    pretrained, *finetuned = (random_backbone(config, seed).state_dict() for seed in range(4))
    return MergeInputs(pretrained, dict(zip("abc", finetuned, strict=True)), config)


def test_every_weight_takes_the_largest_change(example: str, inputs: MergeInputs) -> None:
    merged = merge(example, inputs, {"scaling": 1.0}).backbone
    key = "x_embedding1.weight"
    before = inputs.pretrained[key]
    changes = [float(state[key][2, 1] - before[2, 1]) for state in inputs.finetuned.values()]
    expected = float(before[2, 1]) + max(changes, key=abs)
    assert float(merged[key][2, 1]) == pytest.approx(expected, rel=1e-6)


def test_a_single_model_is_itself(example: str, inputs: MergeInputs) -> None:
    one = MergeInputs(inputs.pretrained, {"a": inputs.finetuned["a"]}, inputs.config)
    merged = merge(example, one, {"scaling": 1.0}).backbone
    for name, weight in inputs.finetuned["a"].items():
        if weight.is_floating_point() and "running" not in name:
            torch.testing.assert_close(merged[name], weight)


def test_its_options_are_checked(example: str, inputs: MergeInputs) -> None:
    with pytest.raises(ConfigError, match="scaling"):
        merge(example, inputs, {"scaling": 0})
