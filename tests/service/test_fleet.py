"""The service among many: manifests for Kubernetes and KServe, and KServe's own client."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gmerging.cli import screen
from gmerging.cli.main import make_parser
from service.settings import PREFIX, Settings
from service.shards.runner import ATTEMPTS
from tests.service.test_deploy import routes
from tests.service.test_server import process

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy/kubernetes/base"
LABELS = {"app.kubernetes.io/name": "gmerging"}
KSERVE = "GMERGING_KSERVE_PYTHON"
PYTHON = os.environ.get(KSERVE)  # here, since tests of the service run without such variables


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / path).read_text())


def documents() -> Iterator[dict[str, Any]]:
    for path in sorted((ROOT / "deploy").glob("k*/**/*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


@pytest.mark.parametrize("folder", ["base", "cpu", "queue", "screening"])
def test_every_file_of_a_folder_is_applied(folder: str) -> None:
    path = ROOT / "deploy/kubernetes" / folder
    listed = load(f"kubernetes/{folder}/kustomization.yaml")["resources"]
    files = {name for name in listed if name.endswith(".yaml")}
    assert files == {file.name for file in path.glob("*.yaml")} - {"kustomization.yaml"}
    assert all((path / name).resolve() == BASE for name in set(listed) - files)
    assert (folder in ("base", "screening")) == (files == set(listed))


@pytest.mark.parametrize("folder", ["cpu", "queue"])
def test_what_scales_is_the_deployment_and_nobody_else_sets_its_number(folder: str) -> None:
    deployment = next(yaml.safe_load_all((BASE / "service.yaml").read_text()))
    spec = load(f"kubernetes/{folder}/autoscaler.yaml")["spec"]
    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (patch,) = load(f"kubernetes/{folder}/kustomization.yaml")["patches"]
    assert patch["target"] == {"kind": deployment["kind"], "name": deployment["metadata"]["name"]}
    assert yaml.safe_load(patch["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]
    least = spec.get("minReplicas", spec.get("minReplicaCount"))
    assert least == deployment["spec"]["replicas"]  # so that one may leave when nodes are drained


def test_rules_are_about_the_pods_of_the_service() -> None:
    network = load("kubernetes/base/network.yaml")["spec"]
    disruption = load("kubernetes/base/disruption.yaml")["spec"]
    assert network["podSelector"]["matchLabels"] == LABELS
    assert disruption["selector"]["matchLabels"] == LABELS
    assert network["egress"] == []  # structures stay inside
    deployment = next(yaml.safe_load_all((BASE / "service.yaml").read_text()))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (rule,) = network["ingress"]
    assert [port["port"] for port in rule["ports"]] == [port["name"] for port in container["ports"]]


def test_the_queue_is_measured_by_a_metric_that_there_is(pico_artifact: Path) -> None:
    (trigger,) = load("kubernetes/queue/autoscaler.yaml")["spec"]["triggers"]
    name = trigger["metadata"]["query"].removeprefix("sum(").removesuffix(")")
    with process(port=0, artifact=pico_artifact, device="cpu") as (_, url):
        metrics = httpx.get(f"{url}/metrics").text
    assert f"\n{name} 0" in metrics


def test_a_screening_has_a_pod_for_every_part_and_three_attempts() -> None:
    job = load("kubernetes/screening/job.yaml")["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (shell, _, script) = container["command"]
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimitPerIndex"] == ATTEMPTS - 1
    words = shlex.split(script.partition("exec gmerging ")[2])
    arguments = make_parser(words).parse_args(words)
    assert (shell, arguments.command) == ("sh", screen.run)
    assert arguments.part == f"$JOB_COMPLETION_INDEX/{job['completions']}"
    assert float(container["resources"]["requests"]["cpu"]) == arguments.processes
    mounted = [volume["mountPath"] for volume in container["volumeMounts"]]
    assert str(arguments.plan.parent) in mounted
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert environment["NUMBA_CACHE_DIR"].startswith("/tmp/")
    assert "/tmp" in mounted
    pod, service = (
        job["template"]["spec"],
        next(yaml.safe_load_all((BASE / "service.yaml").read_text())),
    )
    (of_service,) = service["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"] == of_service["securityContext"]
    assert (
        pod["securityContext"].items()
        >= service["spec"]["template"]["spec"]["securityContext"].items()
    )
    ignored, final = job["podFailurePolicy"]["rules"]
    assert ignored["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    with pytest.raises(SystemExit) as refused:  # an option that there is not
        make_parser(words).parse_args([*words, "--nope"])
    assert final["onExitCodes"]["values"] == [refused.value.code]


def test_kserve_runs_what_the_image_has() -> None:
    runtime, model = load("kserve/runtime.yaml"), load("kserve/model.yaml")
    (container,) = runtime["spec"]["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert set(environment) <= {PREFIX + name.upper() for name in Settings.model_fields}
    assert environment["GMERGING_ARTIFACT"] == "/mnt/models"  # where KServe puts the copy
    assert environment["GMERGING_MODEL_NAME"] == "{{.Name}}"
    (port,) = container["ports"]
    assert str(port["containerPort"]) == environment["GMERGING_PORT"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert {probe["port"] for probe in probes} == {port["containerPort"]}
    assert {probe["path"] for probe in probes} <= routes()
    asked = model["spec"]["predictor"]["model"]
    (kind,) = runtime["spec"]["supportedModelFormats"]
    assert asked["modelFormat"]["name"] == kind["name"]
    assert (asked["runtime"], [asked["protocolVersion"]]) == (
        runtime["metadata"]["name"],
        runtime["spec"]["protocolVersions"],
    )


@pytest.fixture
def python() -> str:
    if not PYTHON:
        pytest.skip(f"{KSERVE} does not name a Python with kserve and kubernetes-validate")
    return PYTHON


@pytest.mark.slow
def test_manifests_have_only_fields_that_kubernetes_knows(python: str) -> None:
    resources = "Kustomization", "InferenceService", "ServingRuntime", "ScaledObject"
    plain = [document for document in documents() if document["kind"] not in resources]
    assert {document["kind"] for document in plain} == {
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "HorizontalPodAutoscaler",
        "Job",
    }
    script = (
        "import json, sys, kubernetes_validate\n"
        "for document in json.load(sys.stdin):\n"
        "    kubernetes_validate.validate(document, '1.33', strict=True)\n"
    )

    def check(*documents: object) -> int:
        text = json.dumps(documents)
        command = [python, "-c", script]
        return subprocess.run(command, input=text, text=True, capture_output=True).returncode

    assert check(*plain) == 0
    scaler = load("kubernetes/cpu/autoscaler.yaml")
    scaler["spec"]["minReplica"] = 2
    assert check(scaler) != 0
    job = load("kubernetes/screening/job.yaml")
    job["spec"]["backOffLimitPerIndex"] = 2
    assert check(job) != 0


@pytest.mark.slow
def test_the_client_of_kserve_is_answered(python: str, pico_artifact: Path) -> None:
    name = "my-model"
    settings = {"port": 0, "artifact": pico_artifact, "device": "cpu", "model_name": name}
    with process(**settings) as (_, url):
        command = [python, "-P", str(Path(__file__).with_name("kserve_client.py")), url, name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        body = {"smiles": ["CCO", "c1ccccc1"], "model": name}
        predictions = httpx.post(f"{url}/predict", json=body).json()["predictions"]
        assert httpx.get(f"{url}/v2/models").json() == {"models": [name]}
    assert [said[key] for key in ("live", "ready", "model", "other")] == [True, True, True, False]
    expected = {
        task: [[*item["tasks"][task].values()] for item in predictions]
        for task in predictions[0]["tasks"]
    }
    for form in ("json", "binary"):
        assert said["answers"][form].keys() == expected.keys()
        for task, rows in expected.items():
            assert said["answers"][form][task] == [pytest.approx(row, abs=1e-6) for row in rows]
    assert "422" in said["refused"]
