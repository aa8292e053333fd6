"""Dashboards and alerts ask for metrics that the service has, and the files agree with each other."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from service.metrics import Metrics
from service.parsing import LOSSES
from service.reading import ITEM_CODES
from service.settings import Settings

ROOT = Path(__file__).parents[2]


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def expressions() -> dict[str, str]:
    rules = [rule for group in load("deploy/alerts.yml")["groups"] for rule in group["rules"]]
    panels = json.loads((ROOT / "deploy/grafana/dashboards/gmerging.json").read_text())["panels"]
    smoke = re.findall(r"^COUNTER='(.*)'$", (ROOT / "deploy/smoke.sh").read_text(), re.MULTILINE)
    return {
        **{f"alert {rule['alert']}": rule["expr"] for rule in rules},
        **{f"panel {panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel["targets"]},
        **{f"smoke {k}": expression for k, expression in enumerate(smoke)},
    }


def test_there_are_alerts_panels_and_a_smoke_test() -> None:
    assert {name.split()[0] for name in expressions()} == {"alert", "panel", "smoke"}
    assert len(expressions()) > 15


@pytest.mark.parametrize(("name", "expression"), expressions().items(), ids=expressions())
def test_expression_asks_for_what_is_there(name: str, expression: str) -> None:
    metrics = Metrics(ITEM_CODES, LOSSES)
    metrics.model_loaded("m", ("m", "1", "d"), "cpu")
    metrics.routing("m", "a", ["a"], np.ones((1, 1, 1), dtype=np.float32))
    metrics.request_answered("/predict", "POST", 200)
    metrics.request_ended("/predict", 0.1)
    series = set(re.findall(r"^# TYPE (\w+)|^(\w+)[{ ]", metrics.exposition().decode(), re.MULTILINE))
    known = {part for pair in series for part in pair}
    asked = set(re.findall(r"\b(?:gmerging|process)_\w+", expression))
    assert asked <= known, name
    assert asked or "up{" in expression, name


def test_compose_mounts_files_that_are_there() -> None:
    for service in load("docker-compose.yml")["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source


def test_prometheus_scrapes_the_service_of_compose() -> None:
    (job,) = load("deploy/prometheus.yml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    service = load("docker-compose.yml")["services"][host]
    assert any(mapping.endswith(f":{port}") for mapping in service["ports"])


def test_compose_gives_the_service_time_to_stop() -> None:
    assert int(load("docker-compose.yml")["services"]["service"]["stop_grace_period"].rstrip("s")) > Settings().shutdown_seconds
