"""Jobs: nothing is lost or answered twice, whatever stops them."""

import asyncio
import csv
import gzip
import io
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.data.schema import FeatureInput
from models.networks.pyg import GraphNetworkConfig
from service.bulk import job_runner, jobs
from service.bulk.jobs import Job, JobStore
from service.core.engine import PredictionQuery
from service.core.reading import InputRequirements
from service.formats.molecule_files import FileFormat
from tests.service.doubles import DummyEngine, metric, serving

pytestmark = pytest.mark.anyio
SMILES = ["C" * (k % 40 + 1) if k % 10 else "C1" for k in range(500)]
TABLE = "id,smiles\n" + "".join(f"{k},{smiles}\n" for k, smiles in enumerate(SMILES))
ASYNC = {"prefer": "respond-async"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_runner, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(job_runner, "_SAVE_SECONDS", 0.0)


@asynccontextmanager
async def keeping(
    folder: Path, engine: DummyEngine | None = None, **settings: object
) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(engine, jobs=folder / "jobs", cache_bytes=0, **settings) as client:
        yield client


async def post(
    client: httpx.AsyncClient, content: str = TABLE, query: str = "tasks=bbbp", **headers: str
) -> dict[str, Any]:
    response = await client.post(
        f"/predict/file?{query}", files={"file": ("m.csv", content)}, headers={**ASYNC, **headers}
    )
    assert response.status_code == 202
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    return job


async def until(client: httpx.AsyncClient, job: dict[str, Any], *states: str) -> dict[str, Any]:
    for _ in range(2000):
        now: dict[str, Any] = (await client.get(f"/jobs/{job['id']}")).json()
        if now["state"] in states:
            return now
        await asyncio.sleep(0.01)
    pytest.fail(f"the job is {now}")


def check(response: httpx.Response) -> None:
    """Each row is there once, in order, with its own answer."""
    assert response.status_code == 200
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [(row["id"], row["smiles"]) for row in rows] == [
        (str(k), smiles) for k, smiles in enumerate(SMILES)
    ]
    for row in rows:
        if row["smiles"] == "C1":
            assert row["gmerging_error"].startswith("smiles_syntax")
        else:
            assert float(row["bbbp.p_np"]) == pytest.approx(1 / (len(row["smiles"]) + 1))


async def test_job_from_beginning_to_end(tmp_path: Path) -> None:
    async with keeping(tmp_path) as client:
        job = await post(client)
        assert (job["state"], job["progress"]) == ("queued", 0)
        done = await until(client, job, "done")
        assert (
            done["total"],
            done["answered"],
            done["failed"],
            done["progress"],
            done["digest"],
        ) == (500, 500, 50, 1, "0" * 64)
        check(await client.get(f"/jobs/{job['id']}/result"))
        listed = (await client.get("/jobs")).json()["jobs"]
        assert [shown["id"] for shown in listed] == [job["id"]]
        assert (
            metric((await client.get("/metrics")).text, 'gmerging_jobs_total{outcome="done"}') == 1
        )
        assert (await client.delete(f"/jobs/{job['id']}")).json()["state"] == "done"
        assert (await client.get(f"/jobs/{job['id']}")).json()["code"] == "unknown_job"
    assert [
        path.name for path in (tmp_path / "jobs").iterdir() if path.suffix in (".input", ".result")
    ] == []


async def test_long_files_become_jobs_by_themselves_where_jobs_are_kept(tmp_path: Path) -> None:
    files = {"file": ("m.csv", TABLE)}
    async with keeping(tmp_path, direct_file_bytes=1000) as client:
        long = await client.post("/predict/file", files=files)
        assert (long.status_code, long.json()["state"]) == (202, "queued")
        short = await client.post("/predict/file?tasks=bbbp", files={"file": ("m.smi", "C\n")})
        assert (short.status_code, short.text.splitlines()[1:]) == (200, ["C,,C,,0.5"])
    async with serving(direct_file_bytes=1000) as client:
        check(await client.post("/predict/file?tasks=bbbp", files=files, headers=ASYNC))
        assert (await client.get("/jobs")).json() == {"jobs": []}
        assert (await client.get("/jobs/abc")).json()["code"] == "unknown_job"


async def test_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    engine = DummyEngine()
    async with keeping(tmp_path, engine, max_batch_cost=300) as client:
        job = await post(client)
        while (await client.get(f"/jobs/{job['id']}")).json()["answered"] < 100:
            await asyncio.sleep(0)
        assert (await client.get(f"/jobs/{job['id']}/result")).json()["code"] == "job_not_done"
    first = sum(graphs for graphs, _, _ in engine.passes)
    again = DummyEngine()
    async with keeping(tmp_path, again) as client:
        await until(client, job, "done")
        check(await client.get(f"/jobs/{job['id']}/result"))
    assert first < 450
    assert 0 < sum(graphs for graphs, _, _ in again.passes) < 450


async def test_half_written_answer_is_cut_off(tmp_path: Path) -> None:
    async with keeping(tmp_path, max_batch_cost=300) as client:
        job = await post(client)
        while (await client.get(f"/jobs/{job['id']}")).json()["answered"] < 100:
            await asyncio.sleep(0)
    with (tmp_path / "jobs" / f"{job['id']}.result").open("ab") as result:
        result.write(b"123,CCO,half a li")
    async with keeping(tmp_path) as client:
        await until(client, job, "done")
        check(await client.get(f"/jobs/{job['id']}/result"))


async def test_never_the_answers_of_two_models_in_one_file(tmp_path: Path) -> None:
    async with keeping(tmp_path, DummyEngine("2", shift=1), max_batch_cost=300) as client:
        job = await post(client)
        while (await client.get(f"/jobs/{job['id']}")).json()["answered"] < 100:
            await asyncio.sleep(0)
    async with keeping(tmp_path) as client:
        assert (await until(client, job, "done"))["digest"] == "0" * 64
        check(await client.get(f"/jobs/{job['id']}/result"))


async def test_cancel(tmp_path: Path, engine: DummyEngine) -> None:
    async with keeping(tmp_path, engine) as client:
        engine.gate.clear()
        job = await post(client)
        await asyncio.to_thread(engine.entered.acquire)
        assert (await client.delete(f"/jobs/{job['id']}")).json()["state"] == "cancelled"
        engine.gate.set()
        assert (await client.get(f"/jobs/{job['id']}")).json()["state"] == "cancelled"
        assert not list((tmp_path / "jobs").glob(f"{job['id']}.*"))
        follower = await post(client)  # the runner lives on
        await until(client, follower, "done")
        assert (
            metric((await client.get("/metrics")).text, 'gmerging_jobs_total{outcome="cancelled"}')
            == 1
        )


async def test_job_that_cannot_be_done_says_why(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs", 3600)
    query = PredictionQuery.of("gone", DummyEngine(), ("bbbp",), "own")
    job = store.create(io.BytesIO(b"smiles\nC\n"), "", FileFormat("csv"), query, "csv")
    async with keeping(tmp_path) as client:
        failed = await until(client, {"id": job.id}, "failed")
        assert "unknown model 'gone'" in failed["error"]
        assert (await client.get(f"/jobs/{job.id}/result")).json()["code"] == "job_not_done"


def made(store: JobStore, client: str = "") -> Job:
    return store.create(
        io.BytesIO(b"smiles\nC\n"),
        client,
        FileFormat("csv"),
        PredictionQuery.of("dummy", DummyEngine(), ("bbbp",), "own"),
        "csv",
    )


def test_a_job_is_one_holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = JobStore(tmp_path, 3600)
    first, second = made(store), made(store)
    assert [job.id for job in (store.claim("a"), store.claim("b")) if job] == [first.id, second.id]
    assert store.claim("c") is None
    assert store.save(first.id, "a", answered=3)
    assert not store.save(first.id, "b", answered=4)
    monkeypatch.setattr(jobs, "_LEASE_SECONDS", -1.0)
    assert store.save(first.id, "a")  # the holder has died now, by its lease
    taken = store.claim("c")
    assert taken is not None
    assert (taken.id, taken.answered) == (first.id, 3)
    assert not store.save(first.id, "a")
    store.release(second.id, "b")
    assert store.waiting() == 2


def test_jobs_are_their_clients_and_are_forgotten_in_time(tmp_path: Path) -> None:
    store = JobStore(tmp_path, -1)
    ours, theirs = made(store, "us"), made(store, "them")
    assert store.get(ours.id, "them") is None
    assert [job.id for job in store.of_client("them")] == [theirs.id]
    store.cancel(ours)
    store.delete_expired()
    assert store.get(ours.id, "us") is None
    assert store.get(theirs.id, "them") == theirs


async def test_job_of_a_model_that_takes_no_molecules_any_more_says_so(tmp_path: Path) -> None:
    store, engine = JobStore(tmp_path / "jobs", 3600), DummyEngine()
    job = store.create(
        io.BytesIO(b"smiles\nC\n"),
        "",
        FileFormat("csv"),
        PredictionQuery.of("dummy", engine, ("bbbp",), "own"),
        "csv",
    )
    schema = FeatureInput(num_features=dict.fromkeys(engine.info.tasks, 3))
    requirements = InputRequirements(GraphNetworkConfig(kind="pyg_gcn", in_dim=3), schema)
    engine.info = replace(engine.info, requirements=requirements)
    async with keeping(tmp_path, engine) as client:
        failed = await until(client, {"id": job.id}, "failed")
        assert "for a table of molecules" in failed["error"]


@pytest.mark.parametrize("output", ["csv", "ndjson"])
async def test_restart_reads_the_file_as_it_was_read(tmp_path: Path, output: str) -> None:
    """Packed, in Windows-1252, with a column chosen by content, ids and names that repeat."""
    header = "Säure;Struktur;n;n\n"
    table = header + "".join(f"ä{k};{smiles};{k};x\n" for k, smiles in enumerate(SMILES))
    sent = {"file": ("m.csv.gz", gzip.compress(table.encode("cp1252")))}
    query = f"/predict/file?tasks=bbbp&output={output}&id_field=S%C3%A4ure"
    async with keeping(tmp_path) as client:
        whole = (await client.post(query, files=sent)).text
    async with keeping(tmp_path, max_batch_cost=300) as client:
        job = (await client.post(query, files=sent, headers=ASYNC)).json()
        assert (job["encoding"], job["smiles_column"]) == ("cp1252", "Struktur")
        while (await client.get(f"/jobs/{job['id']}")).json()["answered"] < 100:
            await asyncio.sleep(0)
    async with keeping(tmp_path) as client:
        done = await until(client, job, "done")
        got = await client.get(f"/jobs/{job['id']}/result")
    assert (done["total"], done["answered"]) == (500, 500)
    assert got.text == whole
    assert got.headers["x-file-encoding"] == "cp1252"
    assert got.headers["x-smiles-column"] == "Struktur"
    assert whole.splitlines()[-1].count("ä499") == 2


async def test_what_is_stored_is_unpacked_within_the_limit(tmp_path: Path) -> None:
    bomb = gzip.compress(b"C\n" * 5_000_000)
    async with keeping(tmp_path, max_file_bytes=100_000) as client:
        answer = await client.post("/predict/file", files={"file": ("m.smi.gz", bomb)})
        assert answer.json()["limit"] == {"max_file_bytes": 100_000}
        assert (await client.get("/jobs")).json() == {"jobs": []}
    assert not list((tmp_path / "jobs").glob("*.input"))


async def test_packed_file_that_is_long_unpacked_becomes_a_job(tmp_path: Path) -> None:
    sent = {"file": ("m.csv.gz", gzip.compress(TABLE.encode()))}
    async with keeping(tmp_path, direct_file_bytes=len(TABLE) - 1) as client:
        answer = await client.post("/predict/file", files=sent)
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")


async def test_folder_of_an_older_version(tmp_path: Path) -> None:
    """Its jobs are kept; one that was begun starts again, for it wrote other columns."""
    JobStore(tmp_path / "jobs", 3600)
    with closing(sqlite3.connect(tmp_path / "jobs" / "jobs.sqlite")) as table, table:
        for name in ("id_field", "encoding"):
            table.execute(f"ALTER TABLE jobs DROP COLUMN {name}")
        table.execute(
            "INSERT INTO jobs (id, client, state, created, finished, kind, smiles_column, model, "
            "tasks, routing, output, digest, total, answered, failed, result_bytes, error) "
            "VALUES ('a', '', 'queued', 1, 0, 'csv', NULL, 'dummy', "
            "'[\"bbbp\"]', 'own', 'csv', ?, 2, 1, 0, 9, '')",
            ("0" * 64,),
        )
    (tmp_path / "jobs" / "a.input").write_bytes(b"smiles\nC\nCC\n")
    (tmp_path / "jobs" / "a.result").write_bytes(b"old,text\n")
    async with keeping(tmp_path) as client:
        done = await until(client, {"id": "a"}, "done")
        assert (done["answered"], done["total"], done["encoding"]) == (2, 2, None)
        lines = (await client.get("/jobs/a/result")).text.splitlines()
    assert [line.split(",")[0] for line in lines] == ["smiles", "C", "CC"]
