"""The time of an answer: every way is measured, and nothing is changed by it."""

import pytest
import torch

from merging.studies.experts.cost import forward_seconds
from tests.merging.studies.experts.pico import batch, random_bank


def test_every_way_is_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that grows by ever more: the median of every way tells when it took its turn."""
    ticks = iter(float(k * k) for k in range(1000))
    monkeypatch.setattr("merging.studies.experts.cost.REPEATS", 3)
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    bank, graphs = random_bank(), batch()
    before = {key: value.clone() for key, value in bank.state_dict().items()}
    found = forward_seconds(bank, graphs, 2)
    assert all(torch.equal(value, before[key]) for key, value in bank.state_dict().items())
    ways = ["top1", "ensemble", "merge", "merged", "merged_kept", "competence"]
    assert list(found) == ["nodes", *ways]
    assert found["nodes"] == graphs.num_nodes
    # The k-th reading pair is (2k)^2 and (2k + 1)^2, and the middle of three turns has k = 6 + way.
    assert [found[way] for way in ways] == [4 * (6 + k) + 1 for k in range(6)]
