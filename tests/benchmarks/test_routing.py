"""The experiments with routing run on pico data; their results are for real data to show."""

import pytest
import torch

from benchmarks import routing
from merging.run.models import expert, unified_model
from merging.run.run import Run
from models.experts.adapter import trace


def test_every_try_scores_every_task(pico_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "SMALL", ("nitrogen",))
    for name in ("published", "far", "few", "heldout", "joint"):
        found = routing.TRIES[name](pico_run)
        assert set(found) == ({"nitrogen"} if name == "few" else {"nitrogen", "other"})


def test_a_mean_of_adapters_subtracts_the_mean(pico_run: Run) -> None:
    adapters = [expert(pico_run, task).adapters for task in pico_run.tasks]
    h = torch.randn(5, 16)
    expected = sum(own.sites[1](h) for own in adapters) / 2
    torch.testing.assert_close(routing.mean_adapters(pico_run, adapters).sites[1](h), expected)


def test_the_mixed_stream_is_that_of_the_unified_model(pico_run: Run) -> None:
    """What is trained in the loop is what will answer."""
    tasks, batch = pico_run.config.tasks, pico_run.dataset("other").graphs.select(torch.arange(6))
    adapters = [expert(pico_run, task).adapters for task in tasks]
    model = unified_model(pico_run)
    with torch.no_grad():
        outputs = routing.mixed(pico_run, model.backbone, adapters, 1, batch)
        head = model.heads[1](outputs.graph_embedding)
    torch.testing.assert_close(
        head, model(batch, ["other"], "moe").logits["other"], rtol=1e-4, atol=1e-5
    )
    assert len(outputs.convolutions) == len(trace(model.backbone, batch).convolutions)
