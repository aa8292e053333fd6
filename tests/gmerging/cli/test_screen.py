"""`gmerging screen-shard`, and `gmerging screen plan | run | status`."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmerging.cli.main import main
from gmerging.cli.screen import _shard_bar
from service.core.artifact_engine import load_engine
from service.core.engine import PredictionQuery
from service.core.local import predict
from service.settings import Settings
from service.shards.plan import read_plan
from service.shards.runner import Progress
from tests.service.shards.crashing import KILLS, SPINS, write_site
from tests.service.shards.libraries import check_answers, check_library, molecule, write_library
from tests.service.shards.test_shard import HOSTILE


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(artifact: Path, *words: str) -> None:
    assert main(["screen", "plan", "library", "-o", "out", "-m", str(artifact), *words]) == 0


# --- one shard ---


def test_a_shard_is_screened_once(
    pico_artifact: Path, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_library(desk / "library", 1, 60)
    words = ["screen-shard", "library/a/part-0.parquet", "-o", "out", "-m", str(pico_artifact)]
    words += ["--tasks", "bbbp", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "part-0.parquet done: 60 rows, 1 with an error (smiles_syntax 1), 60 written" in said
    assert pq.read_table(desk / "out/library/a/part-0.parquet").num_rows == 60
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().err)
    assert shown["skipped"]
    assert (shown["rows"], shown["failed"]) == (60, {"smiles_syntax": 1})
    assert main([*words, "--root", "library"]) == 0
    assert (desk / "out/a/part-0.parquet").is_file()
    assert main([*words, "--keep", "bbbp.p_np<0.5"]) == 1
    assert "expected nothing there, the same model and settings, or --replace" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "bbbp"], "got condition 'bbbp'"),
        (["--top", "3"], "expected --top with --by"),
        (["--lowest"], "expected --top with --by"),
        (["--labels", "bbbp.nope"], "got unknown label 'bbbp.nope'"),
        (["--tasks", "nope"], "got unknown task 'nope'"),
        (["--root", "elsewhere"], "which is not in elsewhere"),
        (["--id-field", "nope"], "id_field"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_line(
    words: list[str],
    message: str,
    pico_artifact: Path,
    desk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_library(desk / "library", 1, 1)
    start = ["screen-shard", "library/a/part-0.parquet", "-o", "out", "-m", str(pico_artifact)]
    assert main([*start, *words]) == 1
    assert message in capsys.readouterr().err


def test_a_terminal_has_a_bar_of_rows(
    pico_artifact: Path,
    desk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_library(desk / "library", 1, 60)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    words = ["screen-shard", "library/a/part-0.parquet", "-o", "out", "-m", str(pico_artifact)]
    assert main(words) == 0
    assert "60row" in capsys.readouterr().err
    with _shard_bar(3, shown=True) as report:
        report(Progress(3, done=2, rows=40, seconds=2.0))
    shown = capsys.readouterr().err
    assert "2/3" in shown
    assert "rows=40" in shown
    assert "rate=20/s" in shown


# --- plans ---


def test_a_plan_names_shards_model_and_parts(
    pico_artifact: Path, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_library(desk / "library", 3, 2)
    (desk / "library/README.md").write_text("about")
    planned(pico_artifact, "--parts", "2", "--top", "5", "--by", "tox21.NR-AR", "--lowest")
    out, err = capsys.readouterr()
    assert "screen.json: 3 shards" in out
    assert "1 files are no shards: README.md" in err
    plan = read_plan(desk / "screen.json")
    assert (plan.parts, plan.output, plan.model.name) == (2, str(desk / "out"), "pico")
    assert plan.request.top is not None
    assert plan.request.top.lowest
    assert sorted(shard.name for shard in plan.shards) == [
        "a/part-0.parquet",
        "a/part-1.parquet",
        "b/part-0.parquet",
    ]
    assert main(["screen", "plan", "library", "-o", "out"]) == 0  # a released model, by its name
    assert read_plan(desk / "screen.json").model.artifact == "admet"


def test_status_and_refusals(
    pico_artifact: Path, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_library(desk / "library", 3, 2)
    planned(pico_artifact, "--parts", "2")
    assert main(["screen", "status", "screen.json"]) == 0
    assert "3 shards: 3 waiting\n0 rows" in capsys.readouterr().out
    assert main(["screen", "status", "screen.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"]["waiting"] == 3
    for words, message in (
        (["--part", "2/2"], "expected one from 0/2 to 1/2, as the plan has them"),
        (["--part", "0/3"], "expected one from 0/2"),
        (["--part", "x"], "expected one from 0/2"),
        (["--sbatch", "--time=1"], "expected it with --engine slurm"),
        (["--engine", "slurm", "--part", "0/2"], "got --part with --engine slurm"),
    ):
        given = [f"{words[0]}={words[1]}", *words[2:]]
        assert main(["screen", "run", "screen.json", *given]) == 1
        assert message in capsys.readouterr().err


def test_slurm_gets_a_script(
    pico_artifact: Path,
    desk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    write_library(desk / "library", 3, 2)
    planned(pico_artifact, "--plan", "herg.json")
    words = ["screen", "run", "herg.json", "--engine", "slurm", "--sbatch=--partition=long"]
    assert main(words) == 0
    assert "herg.sbatch: written; there is no sbatch here" in capsys.readouterr().out
    text = (desk / "herg.sbatch").read_text()
    assert "#SBATCH --array=0-2\n" in text
    assert "#SBATCH --partition=long\n" in text
    assert str(desk / "herg.json") in text


def test_an_engine_that_is_not_installed_is_said(
    pico_artifact: Path,
    desk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    write_library(desk / "library", 1, 2)
    planned(pico_artifact)
    assert main(["screen", "run", "screen.json", "--engine", "ray"]) == 1
    said = capsys.readouterr().err
    assert "got no package ray for --engine ray, expected the extra `ray`" in said
    assert not (desk / "out").exists()


def test_the_old_name_of_screen_experts_is_known_a_while(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--molecules", "m.smi", "--artifact", "nowhere", "--output", "o"]
    assert main(["screen", *words]) == 1
    said = capsys.readouterr().err
    assert "`screen` with options is called `screen-experts` now" in said
    assert "nowhere" in said
    with pytest.raises(SystemExit):
        main(["screen", "--help"])
    assert "{plan,run,status}" in capsys.readouterr().out.replace("STEP", "{plan,run,status}")


# --- runs ---


def test_a_run_does_all_shards_and_a_second_one_none(
    pico_artifact: Path, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_library(desk / "library", 4, 30)
    planned(pico_artifact, "--tasks", "bbbp", "--parts", "2")
    assert main(["screen", "run", "screen.json", "--part", "1/2", "--device", "cpu"]) == 0
    assert "2 of 2 shards done, 0 missing; 60 rows," in capsys.readouterr().err
    assert main(["screen", "run", "screen.json", "--processes", "2", "--device", "cpu"]) == 0
    assert "4 of 4 shards done (2 before), 0 missing; 60 rows" in capsys.readouterr().err
    check_library(desk / "library", desk / "out")
    check_answers(pico_artifact, desk / "library", desk / "out", "b/part-1.parquet")
    assert main(["screen", "run", "screen.json", "--json"]) == 0
    shown = json.loads(capsys.readouterr().err)
    assert (shown["done"], shown["skipped"], shown["attempts"]) == (4, 4, 0)
    assert main(["screen", "status", "screen.json"]) == 0
    assert "4 shards: 4 done\n120 rows" in capsys.readouterr().out


def test_a_shard_that_cannot_be_read_is_missing_and_the_others_are_done(
    pico_artifact: Path, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_library(desk / "library", 2, 3)
    (desk / "library/c.parquet").write_text("no parquet")
    planned(pico_artifact)
    assert main(["screen", "run", "screen.json", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "gmerging: c.parquet: got no Parquet file" in said
    assert "2 of 3 shards done, 1 missing" in said
    assert main(["screen", "status", "screen.json"]) == 0
    assert "1 failed" in (said := capsys.readouterr().out)
    assert "c.parquet: got no Parquet file" in said


def started(*words: str, **options: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "gmerging", "screen", "run", "screen.json", *words]
    return subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.DEVNULL, **options)


def workers_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_ten_kills_of_workers_and_three_of_the_driver_lose_nothing(
    pico_artifact: Path, desk: Path
) -> None:
    write_library(desk / "library", 16, 3000)
    planned(pico_artifact, "--tasks", "bbbp")
    luck = random.Random(5)
    killed = {"worker": 0, "driver": 0}
    finished: dict[Path, int] = {}
    while killed["worker"] < 10 or killed["driver"] < 3:
        run = started("--processes", "2")
        deaths = 0
        while run.poll() is None and deaths < 4:
            time.sleep(luck.uniform(0.2, 1.5))
            busy = [p for p in workers_of(run.pid) if p.cpu_times().user > 1]
            if busy and killed["worker"] < 10:
                luck.choice(busy).kill()
                killed["worker"] += 1
                deaths += 1
            elif killed["worker"] >= 10:
                break
            for path in (desk / "out").rglob("*.parquet"):
                assert pq.read_metadata(path).num_rows == 3000  # whole as soon as it is there
                assert finished.setdefault(path, path.stat().st_ino) == path.stat().st_ino
        if run.poll() is None:
            run.kill()
            killed["driver"] += 1
        run.wait()
        if run.returncode == 0:  # all was done before there were enough kills: once more
            for path in (desk / "out").rglob("*.parquet"):
                path.unlink()
            finished.clear()
    for _ in range(3):  # a shard that was hit three times in one run is given up in it
        if started("--processes", "2").wait() == 0:
            break
    check_library(desk / "library", desk / "out")
    check_answers(pico_artifact, desk / "library", desk / "out", "a/part-3.parquet")
    for path, inode in finished.items():
        assert path.stat().st_ino == inode, "a finished shard was done again"


@pytest.mark.slow
def test_rows_that_kill_their_process_are_marked_and_the_others_answered(
    pico_artifact: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smiles = [molecule(k) for k in range(1, 12)]
    smiles[4] = smiles[7] = KILLS
    (desk / "library").mkdir()
    pq.write_table(pa.table({"smiles": smiles}), desk / "library/p.parquet")
    planned(pico_artifact)
    environment = {**os.environ, "PYTHONPATH": write_site(desk / "site")}
    assert started(env=environment).wait() == 0
    made = pq.read_table(desk / "out/p.parquet")
    errors = made["gmerging_error"].to_pylist()
    assert [k for k, error in enumerate(errors) if error] == [4, 7]
    assert errors[4] == "crashed: its process ended (signal 9)"
    assert np.isfinite(np.delete(made["bbbp.p_np"].to_numpy(), [4, 7])).all()
    assert os.listdir(desk / "out") == ["p.parquet"]


@pytest.fixture
def load_of_eight() -> Iterator[None]:
    """Eight processes that compute, for two or so cores."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


@pytest.mark.slow
def test_good_molecules_beside_ten_hostile_ones_have_no_error_on_a_busy_machine(
    load_of_eight: None, pico_artifact: Path, desk: Path
) -> None:
    hostile = {text: code for text, code in HOSTILE.items() if text} | {SPINS: "crashed"}
    assert len(hostile) == 10
    smiles = [molecule(k) for k in range(200) if molecule(k) != "C1"]
    for k, text in enumerate(hostile):
        smiles.insert(17 * k + 5, text)
    (desk / "library").mkdir()
    pq.write_table(pa.table({"smiles": smiles}), desk / "library/p.parquet")
    planned(pico_artifact, "--tasks", "bbbp")
    site = write_site(desk / "site", row_seconds=3)
    assert started(env={**os.environ, "PYTHONPATH": site}).wait() == 0
    made = pq.read_table(desk / "out/p.parquet")
    errors = made["gmerging_error"].to_pylist()
    assert [error and error.partition(":")[0] for error in errors] == [
        hostile.get(text) for text in smiles
    ]
    assert errors[smiles.index(SPINS)] == "crashed: its process ended (its CPU time was used up)"
    good = [text for text in smiles if text not in hostile]
    settings = Settings(device="cpu")
    query = PredictionQuery.checked("pico", load_engine(pico_artifact, settings), ["bbbp"], "own")
    expected = [answer.tasks["bbbp"].values[0] for answer in predict(query, settings, good)]  # type: ignore[union-attr]
    values = [value for value in made["bbbp.p_np"].to_pylist() if value is not None]
    assert values == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_ends_its_processes(pico_artifact: Path, desk: Path) -> None:
    write_library(desk / "library", 2, 50_000)
    planned(pico_artifact)
    run = started("--processes", "2")
    workers: list[psutil.Process] = []
    while not any(worker.cpu_times().user > 1 for worker in workers):
        time.sleep(0.05)
        workers = workers_of(run.pid)
    run.send_signal(signal.SIGINT)
    assert run.wait() == 130
    psutil.wait_procs(workers, timeout=10)
    assert not any(worker.is_running() for worker in workers)


_ARRAY = """#!/bin/bash
# Runs the tasks of an array one after the other, as SLURM would start them.
last=$(sed -n 's/^#SBATCH --array=0-//p' "$1")
for task in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=1 bash "$1" || exit 1
done
"""


@pytest.mark.slow
def test_the_tasks_of_an_array_do_all_shards(
    pico_artifact: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk / "bin").mkdir()
    (desk / "bin/sbatch").write_text(_ARRAY)
    (desk / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{desk}/bin:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("GMERGING_DEVICE", "cpu")
    write_library(desk / "library", 5, 30)
    planned(pico_artifact, "--parts", "2")
    assert main(["screen", "run", "screen.json", "--engine", "slurm"]) == 0
    check_library(desk / "library", desk / "out")


@pytest.mark.slow
def test_shards_in_an_object_store(
    pico_artifact: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pytest.importorskip("moto.server", reason="needs moto[server]")
    boto3 = pytest.importorskip("boto3", reason="needs boto3; its dateutil is not ours")
    store = server.ThreadedMotoServer(port=0)
    store.start()
    try:
        host, port = store.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="molecules")
        write_library(desk / "library", 2, 50)
        for path in (desk / "library").rglob("*.parquet"):
            name = path.relative_to(desk / "library").as_posix()
            client.upload_file(str(path), "molecules", f"library/{name}")
        client.put_object(Bucket="molecules", Key="library/c.csv", Body=b"smiles\nCCO\n")
        words = ["s3://molecules/library", "-o", "s3://molecules/out", "-m", str(pico_artifact)]
        assert main(["screen", "plan", *words]) == 0
        assert main(["screen", "run", "screen.json", "--device", "cpu"]) == 0
        listed = client.list_objects_v2(Bucket="molecules", Prefix="out/")["Contents"]
        assert sorted(found["Key"] for found in listed if not found["Key"].endswith("/")) == [
            "out/a/part-0.parquet",
            "out/b/part-0.parquet",
            "out/c.csv.parquet",
        ]
        for name in ("a", "b"):
            made = desk / f"out/{name}/part-0.parquet"
            made.parent.mkdir(parents=True)
            client.download_file("molecules", f"out/{name}/part-0.parquet", str(made))
        check_library(desk / "library", desk / "out")
        before = {found["Key"]: found["LastModified"] for found in listed}
        assert main(["screen", "run", "screen.json"]) == 0
        after = client.list_objects_v2(Bucket="molecules", Prefix="out/")["Contents"]
        assert {found["Key"]: found["LastModified"] for found in after} == before
        assert main(["screen-shard", "s3://molecules/library/c.csv", *words[1:]]) == 0
    finally:
        store.stop()
