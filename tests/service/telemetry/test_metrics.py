import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.metrics import Metrics
from service.telemetry.statistics import PassStatistics
from tests.service.doubles import metric


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["smiles_syntax"])


def shown(metrics: Metrics) -> str:
    return metrics.exposition().decode()


def test_applications_do_not_share_metrics(metrics: Metrics) -> None:
    metrics.molecules("ok", 3)
    assert metric(shown(metrics), 'gmerging_molecules_total{outcome="ok"}') == 3
    assert metric(shown(Metrics([])), 'gmerging_molecules_total{outcome="ok"}') == 0


def test_exposition_is_readable_and_names_are_ours_or_the_process(metrics: Metrics) -> None:
    names = {family.name for family in text_string_to_metric_families(shown(metrics))}
    assert {
        "gmerging_requests",
        "gmerging_molecules",
        "gmerging_stage_duration_seconds",
        "gmerging_batch_graphs",
        "gmerging_ready",
    } <= names
    assert {name.split("_")[0] for name in names} == {"gmerging", "process", "python"}


def test_labels_are_bounded(metrics: Metrics) -> None:
    metrics.molecules("smiles_syntax")
    metrics.molecules("something new", 2)
    metrics.request_answered("/predict", "BREW", 405)
    text = shown(metrics)
    assert metric(text, 'gmerging_molecules_total{outcome="smiles_syntax"}') == 1
    assert metric(text, 'gmerging_molecules_total{outcome="other"}') == 2
    assert (
        metric(text, 'gmerging_requests_total{method="OTHER",route="/predict",status="405"}') == 1
    )
    assert "something new" not in text
    assert "BREW" not in text


def test_stages(metrics: Metrics) -> None:
    metrics.model_pass(PassStatistics(3, 0.25, 0.5, (0.1, 0.3)))
    metrics.stage("parse", 2.0)
    text = shown(metrics)
    assert metric(text, 'gmerging_stage_duration_seconds_sum{stage="model"}') == 0.5
    assert metric(text, 'gmerging_stage_duration_seconds_count{stage="queue"}') == 2
    assert metric(text, 'gmerging_stage_duration_seconds_sum{stage="queue"}') == pytest.approx(0.4)
    assert metric(text, 'gmerging_stage_duration_seconds_sum{stage="parse"}') == 2
    assert metric(text, 'gmerging_stage_duration_seconds_count{stage="serialise"}') == 0


def test_batch_sizes(metrics: Metrics) -> None:
    for items, fill, atoms in ((3, 0.95, 70), (1, 0.1, 9)):
        metrics.model_pass(PassStatistics(items, fill, 0.5, ()))
        metrics.pass_atoms(atoms)
    text = shown(metrics)
    assert metric(text, "gmerging_batch_fill_ratio_sum") == pytest.approx(1.05)
    assert metric(text, "gmerging_batch_graphs_count") == 2
    assert metric(text, "gmerging_batch_atoms_sum") == 79
    assert metric(text, 'gmerging_batch_atoms_bucket{le="16.0"}') == 1


def test_routing_by_task_and_expert(metrics: Metrics) -> None:
    # 2 molecules, 2 sites
    weights = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.0, 1.0]]], dtype=np.float32)
    metrics.routing("m", "a", ["a", "b"], weights)
    metrics.routing("m", "a", ["a", "b"], weights[:1])
    text = shown(metrics)
    assert metric(text, 'gmerging_routed_molecules_total{model="m",task="a"}') == 3
    assert metric(
        text, 'gmerging_routing_weight_total{expert="a",model="m",task="a"}'
    ) == pytest.approx(0.75 + 0 + 0.75)
    assert metric(
        text, 'gmerging_routing_weight_total{expert="b",model="m",task="a"}'
    ) == pytest.approx(0.25 + 1 + 0.25)
    assert metric(text, 'gmerging_routing_entropy_nats_total{model="m",task="a"}') == pytest.approx(
        2 * np.log(2) / 2
    )


def test_artifacts_come_and_go(metrics: Metrics) -> None:
    metrics.model_loaded("m", ("n", "1", "abc"), "cpu")
    assert (
        metric(
            shown(metrics),
            'gmerging_artifact_info{device="cpu",digest="abc",model="m",name="n",version="1"}',
        )
        == 1
    )
    metrics.model_unloaded("m", ("n", "1", "abc"), "cpu", replaced=True)
    metrics.model_loaded("m", ("n", "2", "def"), "cpu")
    text = shown(metrics)
    assert "abc" not in text
    assert (
        metric(
            text, 'gmerging_artifact_info{device="cpu",digest="def",model="m",name="n",version="2"}'
        )
        == 1
    )
    metrics.model_unloaded("m", ("n", "2", "def"), "cpu")
    metrics.model_refused()
    text = shown(metrics)
    assert "def" not in text
    assert [
        metric(text, f'gmerging_model_loads_total{{outcome="{outcome}"}}')
        for outcome in ("ok", "failed", "unloaded")
    ] == [2, 1, 1]


def test_drift_is_seen(metrics: Metrics) -> None:
    metrics.molecule_read(np.array([5, 5, 7]))
    metrics.molecule_read(np.array([5, 91]))
    text = shown(metrics)
    assert metric(text, "gmerging_molecule_atoms_sum") == 5
    assert metric(text, "gmerging_rare_element_molecules_total") == 1
