import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.metrics import Metrics
from service.telemetry.statistics import Gauges, PassStatistics
from tests.service.doubles import metric


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(["smiles_syntax"], ["timeout", "died"])


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


def test_gauges_are_read_at_every_scrape(metrics: Metrics) -> None:
    readings = iter([Gauges(True, 3, 0.5, 70, 1000, 2000, 4), Gauges(False, 0, 0, 0, 0, 0, 0)])
    metrics.read_gauges_with(lambda: next(readings))
    names = [
        f"gmerging_{name}"
        for name in (
            *("ready", "queue_molecules", "queue_oldest_seconds", "pending_cost"),
            *("cache_bytes", "gpu_memory_bytes", "jobs_waiting"),
        )
    ]
    first, second = shown(metrics), shown(metrics)
    assert [metric(first, name) for name in names] == [1, 3, 0.5, 70, 1000, 2000, 4]
    assert [metric(second, name) for name in names] == [0] * 7


def test_scrape_before_the_start_shows_gauges_of_zero(metrics: Metrics) -> None:
    metrics.refresh()
    assert metric(shown(metrics), "gmerging_ready") == 0


def test_series_of_known_values_exist_from_the_start(metrics: Metrics) -> None:
    text = shown(metrics)
    for name, label, values in (
        ("molecules", "outcome", ("ok", "refused", "failed", "cancelled", "expired", "other")),
        ("cache", "result", ("hit", "miss")),
        ("parser_losses", "reason", ("timeout", "died")),
        ("model_loads", "outcome", ("ok", "failed", "unloaded")),
        ("jobs", "outcome", ("done", "failed", "cancelled")),
    ):
        for value in values:
            assert metric(text, f'gmerging_{name}_total{{{label}="{value}"}}') == 0


def test_counts_of_the_cache_the_parsers_and_the_jobs(metrics: Metrics) -> None:
    metrics.cache(3, 2)
    metrics.cache(0, 1)
    metrics.parser_lost("died")
    metrics.job_ended("failed")
    text = shown(metrics)
    assert metric(text, 'gmerging_cache_total{result="hit"}') == 3
    assert metric(text, 'gmerging_cache_total{result="miss"}') == 3
    assert metric(text, 'gmerging_parser_losses_total{reason="died"}') == 1
    assert metric(text, 'gmerging_parser_losses_total{reason="timeout"}') == 0
    assert metric(text, 'gmerging_jobs_total{outcome="failed"}') == 1


def test_request_is_counted_when_it_is_answered_and_timed_when_it_ends(metrics: Metrics) -> None:
    metrics.request_answered("/predict", "POST", 200)
    text = shown(metrics)
    name = 'gmerging_requests_total{method="POST",route="/predict",status="200"}'
    assert metric(text, name) == 1
    assert "gmerging_request_duration_seconds_count" not in text
    metrics.request_ended("/predict", 0.03)
    text = shown(metrics)
    series = "gmerging_request_duration_seconds"
    assert metric(text, f'{series}_sum{{route="/predict"}}') == 0.03
    assert metric(text, f'{series}_bucket{{le="0.025",route="/predict"}}') == 0
    assert metric(text, f'{series}_bucket{{le="0.05",route="/predict"}}') == 1


def test_tasks_of_a_loaded_model_have_their_series_before_they_are_asked(metrics: Metrics) -> None:
    metrics.model_loaded("m", ("n", "1", "abc"), "cpu", ["a", "b"])
    text = shown(metrics)
    assert metric(text, 'gmerging_routed_molecules_total{model="m",task="b"}') == 0
    assert metric(text, 'gmerging_routing_entropy_nats_total{model="m",task="a"}') == 0
    for task, expert in ((task, expert) for task in "ab" for expert in "ab"):
        name = f'gmerging_routing_weight_total{{expert="{expert}",model="m",task="{task}"}}'
        assert metric(text, name) == 0


_TWO_PROCESSES = """
import os, sys
from service.telemetry.metrics import Metrics, shared_registry
from service.telemetry.statistics import Gauges
from prometheus_client import generate_latest
metrics = Metrics(["smiles_syntax"])
metrics.molecules("ok", int(sys.argv[1]))
metrics.read_gauges_with(lambda: Gauges(True, int(sys.argv[1]), 0, 0, 0, 0, 0))
sys.stdout.write(metrics.exposition().decode())
"""


def test_any_of_several_processes_shows_the_sums_of_all(tmp_path: Path) -> None:
    def scrape(count: int) -> str:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        command = [sys.executable, "-c", _TWO_PROCESSES, str(count)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    name = 'gmerging_molecules_total{outcome="ok"}'
    assert metric(scrape(3), name) == 3
    text = scrape(4)
    assert metric(text, name) == 7
    assert "process_resident_memory_bytes" not in text
