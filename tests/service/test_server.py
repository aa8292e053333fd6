"""The service over real HTTP on a real port: a process of its own, started as an operator starts
it."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.data.smiles import featurize, featurize_all
from models.errors import MoleculeError
from models.experts.unified import DEFAULT_ROUTING
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.schemas import PredictResponse
from service.security import new_key
from service.settings import RELEASED_ARTIFACT
from tests.service.doubles import metric, settings_of

SMILES = [
    "CCO",
    "CC(=O)Oc1ccccc1C(=O)O",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "C",
    "[Na+].[Cl-]",
    "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",
    "C/C=C/C(=O)O",
    "O=C(O)c1cc(N=Nc2ccc(S(=O)(=O)Nc3ccccn3)cc2)ccc1O",
    "CCCCCCCCCCCCCCCC",
    "c1ccc2c(c1)ccc1ccccc12",
]


ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    """A running service and the same model offline."""

    url: str
    engine: ArtifactEngine
    _answers: dict[tuple[str, str, bool], dict[str, np.ndarray]] = field(default_factory=dict)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120)

    def offline(
        self, smiles: str, routing: str = DEFAULT_ROUTING, forests: bool = True
    ) -> dict[str, np.ndarray]:
        """The answer for a molecule on its own; a graph, which has no fingerprint, has none of the
        forests."""
        key = smiles, routing, forests
        if key not in self._answers:
            (read,) = featurize_all([smiles], fingerprints=forests)
            assert not isinstance(read, MoleculeError)
            output = self.engine.run([read.graph], self.engine.info.tasks, routing)
            self._answers[key] = {task: answer.values for task, answer in output.answers[0].items()}
        return self._answers[key]

    def check(self, body: Any, smiles: list[str], routing: str = DEFAULT_ROUTING) -> None:
        """Every answer is that of its molecule, in order."""
        items = PredictResponse.model_validate(body).predictions
        assert [item.index for item in items] == list(range(len(smiles)))
        for item, text in zip(items, smiles, strict=True):
            assert item.smiles == featurize(text).smiles
            assert item.tasks is not None
            for task, expected in self.offline(text, routing).items():
                assert tuple(item.tasks[task]) == self.engine.info.labels[task]
                np.testing.assert_allclose(
                    list(item.tasks[task].values()), expected, rtol=1e-5, atol=1e-5
                )


@contextmanager
def process(
    folder: Path | None = None, **settings: object
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m service`, started in a folder, on a free port, and its address; stopped at the
    end."""
    environment = {
        **os.environ,
        **{f"GMERGING_{name.upper()}": str(value) for name, value in settings.items()},
    }
    if folder is not None:  # where this checkout need not be the one that is installed
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}"  # with an empty entry, as often
    command = [sys.executable, "-m", "service"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        try:
            lines = []
            for line in running.stderr:
                lines.append(line)
                if found := re.search(r"running on (http://[\d.:]+)", line):
                    # Nobody may block on a full pipe.
                    drain = threading.Thread(target=running.stderr.read)
                    drain.start()
                    yield running, found[1]
                    break
            else:
                pytest.fail("the service did not start:\n" + "".join(lines))
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(60)
    drain.join()


@pytest.fixture(scope="module", params=["pico", "released"])
def server(request: pytest.FixtureRequest, pico_artifact: Path) -> Iterator[Server]:
    artifact = pico_artifact if request.param == "pico" else RELEASED_ARTIFACT
    if not (artifact / "manifest.json").is_file():
        pytest.skip(f"no artifact at {artifact}")
    # Small passes and no cache, so that requests are cut and mixed; and time, since a service on a
    # machine that is busy with other tests rightly refuses what it cannot answer soon.
    settings = {"max_batch_cost": 300, "cache_bytes": 0, "request_timeout_seconds": 120}
    with process(port=0, artifact=artifact, device="cpu", **settings) as (_, url):
        yield Server(url, load_engine(artifact, settings_of(device="cpu")))


def test_many_clients_each_get_their_own_answers(server: Server) -> None:
    requests = [
        [SMILES[(start + k) % len(SMILES)] for k in range(size)]
        for start, size in enumerate([1, 7, 2, 12, 1, 5, 3, 1])
    ]

    def ask(smiles: list[str]) -> Any:
        with server.client() as client:
            response = client.post("/predict", json={"smiles": smiles})
            assert response.status_code == 200
            return response.json()

    with ThreadPoolExecutor(len(requests)) as clients:
        bodies = list(clients.map(ask, requests))
    for body, smiles in zip(bodies, requests, strict=True):
        server.check(body, smiles)


def test_own_routing(server: Server) -> None:
    with server.client() as client:
        server.check(
            client.post("/predict", json={"smiles": SMILES, "routing": "own"}).json(), SMILES, "own"
        )


def test_bad_molecule_among_good_ones(server: Server) -> None:
    with server.client() as client:
        alone = client.post("/predict", json={"smiles": "CCO"}).json()["predictions"][0]
        first, bad, last = client.post("/predict", json={"smiles": ["CCO", "C1CC", "OCC"]}).json()[
            "predictions"
        ]
        assert client.post("/predict", json={"smiles": ["C1CC"]}).status_code == 422
    assert bad["error"]["code"] == "smiles_syntax"
    for item in (first, last):
        for task, labels in alone["tasks"].items():
            assert item["tasks"][task] == pytest.approx(labels, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("smiles", SMILES)
def test_graph_equals_its_smiles(server: Server, smiles: str) -> None:
    graph = featurize(smiles).graph
    lists = {
        "x": graph.x.tolist(),
        "edge_index": graph.edge_index.tolist(),
        "edge_attr": graph.edge_attr.tolist(),
    }
    with server.client() as client:
        (item,) = client.post("/predict", json={"graphs": [lists]}).json()["predictions"]
    assert item["smiles"] is None
    for task, expected in server.offline(smiles, forests=False).items():
        np.testing.assert_allclose(
            list(item["tasks"][task].values()), expected, rtol=1e-5, atol=1e-5
        )


def test_routing_weights_sum_to_one(server: Server) -> None:
    info = server.engine.info
    with server.client() as client:
        items = client.post("/predict", json={"smiles": SMILES, "explain": ["routing"]}).json()[
            "predictions"
        ]
    for item in items:
        assert tuple(item["routing"]) == info.tasks
        for sites in item["routing"].values():
            assert tuple(sites) == info.sites
            for weights in sites.values():
                assert tuple(weights) == info.tasks
                assert sum(weights.values()) == pytest.approx(1, abs=1e-6)


def test_descriptions_are_the_artifacts(server: Server) -> None:
    info = server.engine.info
    with server.client() as client:
        tasks = client.get("/tasks").json()["tasks"]
        model = client.get("/model").json()
        assert (
            client.get("/readyz").status_code
            == client.get("/healthz").status_code
            == client.get("/docs").status_code
            == 200
        )
    assert {task["name"]: tuple(task["labels"]) for task in tasks} == info.labels
    assert (model["name"], model["digest"]) == (info.name, info.digest)


def test_metrics_move(server: Server) -> None:
    names = [
        'gmerging_requests_total{method="POST",route="/predict",status="200"}',
        'gmerging_molecules_total{outcome="ok"}',
        'gmerging_molecules_total{outcome="chemistry"}',
        'gmerging_stage_duration_seconds_count{stage="parse"}',
        "gmerging_batch_graphs_sum",
    ]
    with server.client() as client:
        client.post("/predict", json={"smiles": "C"})
        before = client.get("/metrics").text
        client.post("/predict", json={"smiles": ["CCO", "CN(C)(C)C", "C"]})
        after = client.get("/metrics").text
    assert [metric(after, name) - metric(before, name) for name in names] == [1, 2, 1, 1, 2]
    assert metric(after, "process_resident_memory_bytes") > 5e7  # torch alone takes more


def test_chunked_body_over_the_limit_is_refused(server: Server) -> None:
    chunk = b" " * 65_536
    with server.client() as client:
        response = client.post(
            "/predict",
            content=(chunk for _ in range(80)),
            headers={"content-type": "application/json"},
        )
        assert response.status_code == 413
        assert response.json()["code"] == "body_too_large"
        assert client.get("/healthz").json() == {"status": "alive"}


def is_ready(url: str) -> bool:
    try:
        return get(f"{url}/readyz") == 200
    except httpx.ConnectError:
        return False


def get(url: str) -> int:
    return httpx.get(url, timeout=30).status_code


def test_draining_says_no_first_and_still_answers(pico_artifact: Path) -> None:
    with process(port=0, artifact=pico_artifact, device="cpu", drain_seconds=4) as (running, url):
        assert get(f"{url}/readyz") == 200
        running.send_signal(signal.SIGTERM)
        started = time.monotonic()
        while get(f"{url}/readyz") == 200:  # once it has drained nobody answers, and this fails
            pass
        assert (get(f"{url}/v2/health/ready"), get(f"{url}/healthz")) == (503, 200)
        assert httpx.post(f"{url}/predict", json={"smiles": "CCO"}, timeout=30).status_code == 200
        assert running.wait(30) == 0
        assert time.monotonic() - started >= 3.9


def test_stream_ends_with_a_reason_when_the_service_stops(pico_artifact: Path) -> None:
    with process(port=0, artifact=pico_artifact, device="cpu") as (running, url):
        told = threading.Event()

        def lines() -> Iterator[bytes]:
            yield b'"CCO"\n'
            assert told.wait(60)
            until(lambda: not is_ready(url))
            yield b'"C"\n'

        with httpx.Client(timeout=30) as client, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.post, f"{url}/predict/stream", content=lines())
            while (
                metric(client.get(f"{url}/metrics").text, 'gmerging_molecules_total{outcome="ok"}')
                == 0
            ):
                assert not answer.done()
            running.send_signal(signal.SIGTERM)
            told.set()
            received = [json.loads(line) for line in answer.result().text.splitlines()]
        assert running.wait(30) == 0
    assert (received[0]["smiles"], received[-1]["error"]["code"]) == ("CCO", "not_ready")
    assert "1 lines were answered" in received[-1]["error"]["message"]


def hostile(folder: Path) -> Path:
    """A folder with modules of a user's own, by the names of ours, of a library and of Python's."""
    (folder / "merging").mkdir()
    for name in ("models", "merging/__init__", "torch", "rdkit", "signal", "struct"):
        (folder / f"{name}.py").write_text(
            "raise SystemExit('a module of the user was taken for another')\n"
        )
    return folder


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_starts_in_a_folder_with_other_modules_of_the_same_names(
    pico_artifact: Path, tmp_path: Path, workers: int
) -> None:
    with process(
        hostile(tmp_path), port=0, artifact=pico_artifact, device="cpu", workers=workers
    ) as (running, url):
        until(lambda: get(f"{url}/readyz") == 200)

        def ask(*smiles: str) -> bool:
            answer = httpx.post(f"{url}/predict", json={"smiles": smiles}, timeout=30)
            return [
                item["smiles"] for item in answer.json()["predictions"] if "error" not in item
            ] == list(smiles)

        assert ask("CCO", "c1ccccc1")
        # as a release that is replaced: processes can be started all the same
        shutil.rmtree(tmp_path)
        for pid in parsers_of(running.pid):
            os.kill(pid, signal.SIGKILL)
        assert ask("CCC", "C=C")
        if workers > 1:
            before = workers_of(running)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            until(lambda: len(set(workers_of(running)) - set(before)) == 2)
            until(lambda: ask("CCN", "CC#N"))
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


@pytest.mark.slow
def test_workers_end_with_a_supervisor_that_was_killed(pico_artifact: Path) -> None:
    with process(port=0, artifact=pico_artifact, device="cpu", workers=2) as (running, url):
        until(lambda: metric(httpx.get(f"{url}/metrics", timeout=30).text, "gmerging_ready") == 1)
        running.kill()
        running.wait(30)
        until(lambda: is_free(url))


def is_free(url: str) -> bool:
    with (
        contextlib.suppress(OSError),
        socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))),
    ):
        return True
    return False


def children_of(pid: int, kind: str) -> list[int]:
    children = [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]
    return [child for child in children if kind in Path(f"/proc/{child}/cmdline").read_text()]


def workers_of(running: subprocess.Popen[str]) -> list[int]:
    return children_of(running.pid, "spawn_main")


def parsers_of(pid: int) -> list[int]:
    """Of a service, or of all its workers."""
    servers = [
        server
        for parent in (pid, *children_of(pid, "spawn_main"))
        for server in children_of(parent, "forkserver")
    ]
    return [parser for server in servers for parser in children_of(server, "forkserver")]


@pytest.mark.slow
def test_worker_that_starts_slowly_is_waited_for(pico_artifact: Path) -> None:
    """Longer than uvicorn would by default: the process stands still before it can have imported
    anything."""
    with process(port=0, artifact=pico_artifact, device="cpu", workers=2) as (running, url):
        until(lambda: len(workers_of(running)) == 2)
        before = workers_of(running)
        os.kill(before[0], signal.SIGSTOP)
        time.sleep(7)
        os.kill(before[0], signal.SIGCONT)
        until(lambda: metric(httpx.get(f"{url}/metrics", timeout=30).text, "gmerging_ready") == 1)
        assert workers_of(running) == before
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


def test_rates_hold_over_all_workers(pico_artifact: Path) -> None:
    key, entry = new_key("lab")
    keys = json.dumps([{**entry.model_dump(), "molecules_per_minute": 20}])
    with process(port=0, artifact=pico_artifact, device="cpu", workers=2, api_keys=keys) as (
        _,
        url,
    ):

        def ask() -> int:  # a connection of its own each
            return httpx.post(
                f"{url}/predict", json={"smiles": "CCO"}, headers={"x-api-key": key}, timeout=30
            ).status_code

        until(lambda: get(f"{url}/readyz") == 200)
        assert [ask() for _ in range(20)] == [200] * 20
        assert {ask() for _ in range(10)} == {429}


def test_several_workers_that_cannot_start_end_with_an_error(
    pico_artifact: Path, tmp_path: Path
) -> None:
    shutil.copytree(pico_artifact, tmp_path / "broken")
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    settings = {
        "port": 0,
        "artifact": pico_artifact,
        "models": tmp_path,
        "device": "cpu",
        "workers": 2,
    }
    environment = {
        **os.environ,
        **{f"GMERGING_{name.upper()}": str(value) for name, value in settings.items()},
    }
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3
    assert "worker" in done.stderr.decode()
    assert "could not start: stopping all" in done.stderr.decode()


@pytest.mark.slow
def test_several_workers_behind_one_port(pico_artifact: Path, tmp_path: Path) -> None:
    """Shared metrics, shared orders, a worker that dies and is replaced, and a clean end."""
    shutil.copytree(pico_artifact, tmp_path / "second")
    key, entry = new_key("boss")
    keys = json.dumps([{**entry.model_dump(), "admin": True}])
    headers = {"x-api-key": key}
    with process(
        port=0, artifact=pico_artifact, models=tmp_path, device="cpu", workers=2, api_keys=keys
    ) as (running, url):

        def text() -> str:
            return httpx.get(f"{url}/metrics", timeout=30).text

        def ask() -> httpx.Response:  # a connection of its own each, so that all workers get some
            return httpx.post(f"{url}/predict", json={"smiles": "CCO"}, headers=headers, timeout=30)

        until(lambda: metric(text(), "gmerging_ready") == 1)
        assert {ask().status_code for _ in range(20)} == {200}
        assert metric(text(), 'gmerging_molecules_total{outcome="ok"}') == 20

        def models() -> list[str]:
            return list(httpx.get(f"{url}/model", headers=headers, timeout=30).json()["models"])

        assert (
            httpx.post(
                f"{url}/admin/models/second", json={"action": "unload"}, headers=headers, timeout=30
            ).status_code
            == 200
        )
        until(lambda: {tuple(models()) for _ in range(12)} == {("pico",)})

        before = workers_of(running)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(workers_of(running)) - {before[0]}) == 2)
        until(lambda: {ask().status_code for _ in range(8)} == {200})
        # nothing that was counted is forgotten
        assert metric(text(), 'gmerging_molecules_total{outcome="ok"}') >= 28
        # nor what the new worker's predecessor was told
        until(lambda: {tuple(models()) for _ in range(8)} == {("pico",)})
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_metrics_on_their_own_port(pico_artifact: Path, workers: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with process(
        port=0, artifact=pico_artifact, device="cpu", metrics_port=port, workers=workers
    ) as (_, url):
        until(
            lambda: (
                metric(
                    httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text, "gmerging_ready"
                )
                == 1
            )
        )
        assert get(f"{url}/metrics") == 404


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150  # on a busy machine a worker imports torch for half a minute
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError, StopIteration, FileNotFoundError):
            if holds():
                return
        time.sleep(0.1)
    pytest.fail("it does not come to hold")


def test_sigterm_finishes_what_is_in_flight(pico_artifact: Path) -> None:
    smiles = SMILES * 100
    with (
        process(port=0, artifact=pico_artifact, device="cpu") as (running, url),
        httpx.Client(base_url=url, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(httpx.post, f"{url}/predict", json={"smiles": smiles}, timeout=60)
        while metric(client.get("/metrics").text, "gmerging_pending_cost") == 0:
            assert not answer.done()
        running.send_signal(signal.SIGTERM)
        response = answer.result()
        assert running.wait(60) == 0
    assert response.status_code == 200
    assert len(response.json()["predictions"]) == len(smiles)
