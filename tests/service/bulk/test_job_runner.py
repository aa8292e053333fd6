"""The runner of jobs, on its own: what it does when it stops, fails or loses a job."""

import asyncio
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from models.data.smiles import featurize
from service.bulk import job_runner
from service.bulk.job_runner import JobRunner
from service.bulk.jobs import Job, JobStore
from service.core.answer import Answer, Result
from service.core.models import UnknownModelError
from service.core.reading import ItemFailure
from service.formats.molecule_files import FileFormat
from service.security import KeyRing
from service.telemetry.metrics import Metrics
from tests.service.doubles import LABELS, DummyEngine, metric, query_of

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_runner, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(job_runner, "_SAVE_SECONDS", 0.0)


class FakePipeline:
    """Marks every molecule as unreadable: no engine is needed. It can be held, or fail."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.error: Exception | None = None
        self.num_molecules = 0

    async def predict(self, _: object, sources: Sequence[object], **__: object) -> list[Result]:
        self.entered.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.num_molecules += len(sources)
        return [ItemFailure("chemistry", str(source)) for source in sources]


class FakeModels:
    """The registry of one dummy engine."""

    def __init__(self) -> None:
        self.engine = DummyEngine()

    def get(self, name: str) -> DummyEngine:
        if name != "dummy":
            raise UnknownModelError(name, ["dummy"])
        return self.engine


class Bench:
    """A runner with everything that it works with."""

    def __init__(self, folder: Path) -> None:
        self.store = JobStore(folder, 3600)
        self.pipeline, self.models, self.metrics = FakePipeline(), FakeModels(), Metrics([])
        self.runner = JobRunner(
            self.store,
            self.pipeline,  # type: ignore[arg-type]
            self.models,  # type: ignore[arg-type]
            KeyRing(),
            self.metrics,
        )

    def create(self, content: bytes = b"smiles\nC\nCC\n", **query: object) -> Job:
        options = query_of(self.models.engine, **query)  # type: ignore[arg-type]
        return self.store.create(io.BytesIO(content), "", FileFormat("csv"), options, "csv")

    def now(self, job: Job) -> Job:
        found = self.store.get(job.id, "")
        assert found is not None
        return found

    def ended(self, outcome: str) -> float:
        text = self.metrics.exposition().decode()
        return metric(text, f'gmerging_jobs_total{{outcome="{outcome}"}}')


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "jobs")


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it does not come to hold")


async def test_jobs_are_worked_on_one_after_the_other_the_oldest_first(bench: Bench) -> None:
    jobs = [bench.create() for _ in range(3)]
    bench.pipeline.gate.clear()
    bench.runner.start()
    await bench.pipeline.entered.wait()
    assert [bench.now(job).state for job in jobs] == ["running", "queued", "queued"]
    bench.pipeline.gate.set()
    await until(lambda: bench.ended("done") == 3)
    await bench.runner.close()
    assert [bench.now(job).state for job in jobs] == ["done"] * 3
    finished = [bench.now(job).finished for job in jobs]
    assert finished == sorted(finished)
    assert [bench.now(job).failed for job in jobs] == [2, 2, 2]
    assert bench.store.result_path(jobs[0]).read_text() == (
        "smiles,gmerging_smiles,gmerging_error,bbbp.p_np\nC,,chemistry: C,\nCC,,chemistry: CC,\n"
    )


async def test_job_is_free_for_others_once_the_runner_is_closed(bench: Bench) -> None:
    job = bench.create()
    bench.pipeline.gate.clear()
    bench.runner.start()
    await bench.pipeline.entered.wait()
    await bench.runner.close()
    assert (bench.now(job).state, bench.now(job).answered) == ("queued", 0)
    claimed = bench.store.claim("another worker")
    assert claimed is not None
    assert claimed.id == job.id


async def test_runner_that_was_never_started_can_be_closed(bench: Bench) -> None:
    await bench.runner.close()


async def test_foreseen_failure_is_the_jobs_error(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    job = bench.create(model="gone")
    bench.runner.start()
    await until(lambda: bench.ended("failed") == 1)
    await bench.runner.close()
    assert bench.now(job).error == "got unknown model 'gone', expected one of dummy"
    assert [(r.levelno, r.exc_info) for r in caplog.records] == [(logging.WARNING, False)]


async def test_unforeseen_failure_is_in_the_log_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    job = bench.create()
    bench.store.input_path(job).unlink()
    bench.runner.start()
    await until(lambda: bench.ended("failed") == 1)
    await bench.runner.close()
    assert bench.now(job).error == "the service failed; its log says more under this job's id"
    (line,) = caplog.records
    assert (line.levelno, line.getMessage().split(" failed")[0]) == (logging.ERROR, f"job {job.id}")
    assert "FileNotFoundError" in caplog.text


async def test_task_that_the_model_has_no_more_is_named(bench: Bench) -> None:
    job = bench.create(tasks=("bbbp", "tox21"))
    infos = {name: bench.models.engine.info.task_infos[name] for name in ("bbbp", "clintox")}
    info = bench.models.engine.info
    bench.models.engine.info = type(info)(**{**vars(info), "task_infos": infos})
    bench.runner.start()
    await until(lambda: bench.ended("failed") == 1)
    await bench.runner.close()
    expected = "got tasks bbbp, tox21, of which the model now has bbbp"
    assert bench.now(job).error == expected


async def test_job_that_another_worker_took_over_is_left_to_it(bench: Bench) -> None:
    job = bench.create()
    bench.pipeline.gate.clear()
    bench.runner.start()
    await bench.pipeline.entered.wait()
    with bench.store._table() as table:
        table.execute("UPDATE jobs SET holder = 'another' WHERE id = ?", (job.id,))
    bench.pipeline.gate.set()
    follower = bench.create()
    await until(lambda: bench.ended("done") == 1)
    await bench.runner.close()
    assert [bench.now(j).state for j in (job, follower)] == ["running", "done"]
    assert [bench.ended(outcome) for outcome in ("done", "failed", "cancelled")] == [1, 0, 0]


async def test_store_that_fails_for_a_while_does_not_end_the_runner(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claim, failures = bench.store.claim, iter([OSError("no space left")] * 2)

    def broken(holder: str) -> Job | None:
        if (error := next(failures, None)) is not None:
            raise error
        return claim(holder)

    monkeypatch.setattr(bench.store, "claim", broken)
    job = bench.create()
    bench.runner.start()
    await until(lambda: bench.ended("done") == 1)
    await bench.runner.close()
    assert bench.now(job).state == "done"
    assert caplog.messages == ["looking for jobs failed"] * 2


async def test_answers_of_a_good_pass_are_rows(bench: Bench) -> None:
    engine = bench.models.engine

    async def predict(_: object, sources: Sequence[str], **__: object) -> list[Result]:
        answers = engine.run(
            [featurize(text).graph for text in sources], list(LABELS), "own"
        ).answers
        return [Answer(text, answer) for text, answer in zip(sources, answers, strict=True)]

    bench.pipeline.predict = predict  # type: ignore[assignment]
    job = bench.create()
    bench.runner.start()
    await until(lambda: bench.ended("done") == 1)
    await bench.runner.close()
    rows = bench.store.result_path(job).read_text().splitlines()
    assert rows[1:] == ["C,C,,0.5", "CC,CC,,0.33333334"]
    done = bench.now(job)
    assert (done.total, done.answered, done.failed, done.digest) == (2, 2, 0, "0" * 64)
    assert done.result_bytes == bench.store.result_path(job).stat().st_size
