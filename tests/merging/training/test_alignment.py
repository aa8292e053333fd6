from pathlib import Path
from typing import Any

import pytest
import torch

from merging.config.training import AlignmentConfig
from merging.run.run import Run
from merging.training.alignment import (
    AlignmentResult,
    TeacherOutputs,
    align,
    alignment_loss,
    set_statistics,
)
from models.data.batch import GraphBatch
from models.experts.adapter import TaskAdapters, trace
from models.networks.hu2020 import Backbone
from models.transport.problem import Support
from models.transport.twd import twd
from tests.conftest import pico_config, random_backbone, random_experts


def networks() -> tuple[Backbone, Backbone]:
    """A teacher and a merged backbone."""
    return random_backbone(pico_config(), seed=1), random_backbone(pico_config(), seed=2)


def train(
    run: Run,
    checkpoint: Path,
    epochs: int,
    given: tuple[Backbone, Backbone] | None = None,
    **options: Any,
) -> AlignmentResult:
    dataset = run.dataset("nitrogen")
    settings = AlignmentConfig(rank=4, epochs=epochs, batch_size=16, learning_rate=0.01, **options)
    teacher, merged = given or networks()
    return align(
        dataset.graphs,
        dataset.split.train,
        teacher,
        merged,
        settings,
        0,
        checkpoint,
        torch.device("cpu"),
        "nitrogen",
    )


def test_loss_is_the_published_sum(molecules: GraphBatch) -> None:
    teacher, merged = random_backbone(pico_config(), seed=1), random_backbone(pico_config(), seed=2)
    adapters = random_experts(pico_config())["alpha"].adapters
    student, target = adapters(merged, molecules), trace(teacher, molecules)
    config = AlignmentConfig(alpha=0.7)
    expected = 0.7 * (student.graph_embedding - target.graph_embedding).abs().mean()
    for ours, theirs in zip(student.convolutions, target.convolutions, strict=True):
        expected = (
            expected
            + twd(
                ours, theirs, molecules.edge_index, molecules.batch, molecules.num_graphs
            ).cost.mean()
        )
    support = Support.from_graph(molecules.edge_index, molecules.batch, molecules.num_graphs)
    torch.testing.assert_close(alignment_loss(student, target, support, config), expected)


def test_training_lowers_the_loss_and_leaves_both_networks_alone(
    pico_run: Run, tmp_path: Path
) -> None:
    given = networks()
    result = train(pico_run, tmp_path / "state.pt", epochs=8, given=given)
    for network, fresh in zip(given, networks(), strict=True):
        for key, value in fresh.state_dict().items():
            assert torch.equal(network.state_dict()[key], value), key
    assert result.record["loss"][-1] < 0.8 * result.record["loss"][0]
    assert all(float(site.up.detach().abs().sum()) > 0 for site in result.adapters.sites)


def test_stopped_and_resumed_is_the_same_run(pico_run: Run, tmp_path: Path) -> None:
    whole = train(pico_run, tmp_path / "whole.pt", epochs=3)
    train(pico_run, tmp_path / "resumed.pt", epochs=1)
    resumed = train(pico_run, tmp_path / "resumed.pt", epochs=3)
    assert resumed.record["loss"] == whole.record["loss"]
    for ours, theirs in zip(
        resumed.adapters.state_dict().values(), whole.adapters.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("sites", "trained"),
    [("nodes", [True, True, True, False]), ("graph", [False, False, False, True])],
)
def test_sites_left_out_subtract_nothing(
    pico_run: Run, tmp_path: Path, sites: str, trained: list[bool]
) -> None:
    adapters = train(pico_run, tmp_path / "state.pt", epochs=1, sites=sites).adapters
    assert [bool(site.up.detach().any()) for site in adapters.sites] == trained


def test_terms_left_out_do_not_count(molecules: GraphBatch) -> None:
    adapters = random_experts(pico_config())["alpha"].adapters
    student, target = (
        adapters(random_backbone(pico_config(), seed=2), molecules),
        trace(random_backbone(pico_config(), seed=1), molecules),
    )
    support = Support.from_graph(molecules.edge_index, molecules.batch, molecules.num_graphs)
    both, transport, distance = (
        alignment_loss(student, target, support, AlignmentConfig(**weights))
        for weights in ({}, {"alpha": 0}, {"twd_weight": 0})
    )
    torch.testing.assert_close(transport + distance, both)
    torch.testing.assert_close(
        distance, (student.graph_embedding - target.graph_embedding).abs().mean()
    )


def test_an_epoch_sees_at_most_so_many_molecules(
    pico_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    original = TeacherOutputs.__call__
    monkeypatch.setattr(
        TeacherOutputs,
        "__call__",
        lambda self, rows, batch: (seen.append(rows.tolist()), original(self, rows, batch))[1],
    )
    train(pico_run, tmp_path / "state.pt", epochs=2, max_molecules=20)
    assert [len(rows) for rows in seen] == [16, 4, 16, 4]
    assert set(seen[0] + seen[1]) != set(seen[2] + seen[3])  # another draw in each epoch


def test_statistics_make_every_layer_standard(pico_run: Run) -> None:
    """With the statistics of the training molecules stored, each normalised layer has mean 0 and
    variance 1 on them."""
    dataset = pico_run.dataset("nitrogen")
    merged, adapters = (
        random_backbone(pico_config(), seed=2),
        random_experts(pico_config())["beta"].adapters,
    )
    set_statistics(adapters, merged, dataset.graphs, dataset.split.train, torch.device("cpu"))
    outputs = adapters(merged, dataset.graphs.select(dataset.split.train))
    for layer, h in enumerate(outputs.convolutions):
        torch.testing.assert_close(adapters.norm_mean[layer], h.mean(0), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            adapters.norm_var[layer], h.var(0, correction=0), rtol=1e-3, atol=1e-4
        )


def test_statistics_pool_over_batches(pico_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = pico_run.dataset("nitrogen")
    merged = random_backbone(pico_config(), seed=2)
    whole, pooled = TaskAdapters(pico_config(), 1), TaskAdapters(pico_config(), 1)
    set_statistics(whole, merged, dataset.graphs, dataset.split.train, torch.device("cpu"))
    monkeypatch.setattr("merging.training.alignment.STATISTICS_BATCH", 20)
    set_statistics(pooled, merged, dataset.graphs, dataset.split.train, torch.device("cpu"))
    # the first layer is exact in any batches
    torch.testing.assert_close(pooled.norm_mean[0], whole.norm_mean[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled.norm_var[0], whole.norm_var[0], rtol=1e-3, atol=1e-5)


def test_statistics_of_equal_batches_are_those_of_one(
    pico_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layer: batches of the same molecules have the same statistics on the way."""
    dataset = pico_run.dataset("nitrogen")
    merged, rows = random_backbone(pico_config(), seed=2), dataset.split.train[:20]
    single, repeated = TaskAdapters(pico_config(), 1), TaskAdapters(pico_config(), 1)
    set_statistics(single, merged, dataset.graphs, rows, torch.device("cpu"))
    monkeypatch.setattr("merging.training.alignment.STATISTICS_BATCH", 20)
    set_statistics(repeated, merged, dataset.graphs, rows.repeat(3), torch.device("cpu"))
    torch.testing.assert_close(repeated.norm_mean, single.norm_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(repeated.norm_var, single.norm_var, rtol=1e-4, atol=1e-5)


def test_cached_teacher_equals_the_network(pico_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, backbone = pico_run.dataset("other"), random_backbone(pico_config(), seed=1)
    rows = dataset.split.train
    cached = TeacherOutputs(backbone, dataset.graphs, rows, torch.device("cpu"))
    monkeypatch.setattr("merging.training.alignment.CACHE_BYTES", 0)
    computed = TeacherOutputs(backbone, dataset.graphs, rows, torch.device("cpu"))
    chosen = rows[torch.tensor([7, 0, 31])]
    ours, theirs = (
        teacher(chosen, dataset.graphs.select(chosen)) for teacher in (cached, computed)
    )
    torch.testing.assert_close(ours.graph_embedding, theirs.graph_embedding)
    for layer in range(3):
        torch.testing.assert_close(ours.convolutions[layer], theirs.convolutions[layer])
