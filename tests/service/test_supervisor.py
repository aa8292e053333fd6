"""The supervisor's patience, with time in the test's hands; with real processes in
test_server.py."""

import pytest
from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import multiprocess

from service.supervisor import PatientProcess, Supervisor


class Alive:
    """Stands for the operating system's process."""

    alive = True
    exitcode: int | None = None
    pid = 1

    def is_alive(self) -> bool:
        return self.alive

    def end(self, exitcode: int) -> None:
        self.alive, self.exitcode = False, exitcode

    def start(self) -> None:
        pass

    kill = join = start


@pytest.fixture
def worker() -> PatientProcess:
    worker = PatientProcess(Config("x:y", log_config=None), [])
    worker.process = Alive()  # type: ignore[assignment]
    return worker


def answer(worker: PatientProcess, started: bool) -> None:
    assert worker.child_conn.poll()
    worker.child_conn.recv()
    assert not worker.child_conn.poll()  # one question at a time
    worker.child_conn.send(started)


def test_worker_that_has_not_answered_is_waited_for_without_waiting(worker: PatientProcess) -> None:
    assert all(worker.is_alive(0) for _ in range(1000))
    answer(worker, started=False)
    assert all(worker.is_alive(0) for _ in range(1000))
    answer(worker, started=True)
    assert worker.is_alive(0)


def test_worker_that_has_started_must_answer(worker: PatientProcess) -> None:
    worker.is_alive(0)
    answer(worker, started=True)
    assert worker.is_alive(0)
    assert not worker.is_alive(0.01)


def test_worker_whose_process_ends_is_replaced_at_once(worker: PatientProcess) -> None:
    assert worker.is_alive(0)
    worker.process.alive = False  # type: ignore[attr-defined]
    assert not worker.is_alive(0)


def test_supervisor_makes_patient_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocess, "Process", multiprocess.Process)
    monkeypatch.setattr(PatientProcess, "start", lambda self: None)
    monkeypatch.setattr(multiprocess.signal, "signal", lambda *_: None)
    supervisor = Supervisor(Config("x:y", workers=2, log_config=None), [])
    supervisor.init_processes()
    assert [type(process) for process in supervisor.processes] == [PatientProcess] * 2


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """A supervisor of two workers."""
    monkeypatch.setattr(multiprocess, "Process", multiprocess.Process)
    monkeypatch.setattr(multiprocess, "get_subprocess", lambda *_: Alive())
    monkeypatch.setattr(multiprocess.signal, "signal", lambda *_: None)
    supervisor = Supervisor(Config("x:y", workers=2, log_config=None), [])
    supervisor.init_processes()
    return supervisor


def test_first_worker_that_cannot_start_stops_all(pair: Supervisor) -> None:
    pair.processes[1].process.end(STARTUP_FAILURE)  # type: ignore[attr-defined]
    pair.keep_subprocess_alive()
    assert pair.should_exit.is_set()
    assert pair.failed


def test_later_worker_that_cannot_start_is_tried_again_and_stops_nobody(
    pair: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair.processes
    pair.keep_subprocess_alive()
    answer(first, started=True)
    first.is_alive()
    first.is_alive = lambda timeout=0: True  # type: ignore[method-assign]
    second.process.end(-9)  # type: ignore[attr-defined]
    pair.keep_subprocess_alive()
    third = pair.processes[1]
    assert third is not second
    third.process.end(STARTUP_FAILURE)  # type: ignore[attr-defined]
    pair.keep_subprocess_alive()
    assert pair.processes == [first, third]  # not at once
    third.started_at -= 60
    pair.keep_subprocess_alive()
    assert pair.processes[0] is first
    assert pair.processes[1] is not third
    assert not pair.should_exit.is_set()
    assert not pair.failed
