"""`gmerging predict`: the rows of `/predict/file`, without a service."""

import csv
import datetime
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmerging.cli.main import main
from service.bulk import local, output
from service.core.artifact_engine import ArtifactEngine, load_engine
from service.settings import Settings
from tests.service.doubles import save_pico_graph_artifact, serving
from tests.service.formats.test_molecule_files import sdf

CASES = Path("/work/shared/cases")
TABLE = 'id,smiles,note\na,CCO,"1,5"\nb,C1,\nc,C,"x\ry"\nd,,\ne,C[C@H](N)C(=O)O,"2\n3"\nf\n'
LINES = "CCO ethanol\nC1 broken\nc1ccccc1\n"
Command = Callable[..., int]


@pytest.fixture
def predict(pico_artifact: Path) -> Command:
    """Run the command in this process with the small model."""
    return lambda *words: main(
        ["predict", "--model", str(pico_artifact), "--device", "cpu", *map(str, words)]
    )


def started(artifact: Path, *words: object, **options: Any) -> "subprocess.Popen[bytes]":
    """Start the command in a process of its own."""
    command = [sys.executable, "-m", "gmerging", "predict", "--model", artifact, *words]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, **options)


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def check_same_cells(ours: str, theirs: str) -> None:
    """Text is the same; numbers may differ by what shared a pass of the model."""
    mine, expected = rows_of(ours), rows_of(theirs)
    assert mine[0] == expected[0]
    first_number = mine[0].index("gmerging_error") + 1
    for row, wanted in zip(mine, expected, strict=True):
        assert row[:first_number] == wanted[:first_number]
    for row, wanted in zip(mine[1:], expected[1:], strict=True):
        numbers = [[float(cell) for cell in r[first_number:] if cell] for r in (row, wanted)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)
        assert len(row) == len(wanted)


async def from_service(artifact: Path, path: Path, query: str = "") -> str:
    async with serving(load_engine(artifact, Settings(device="cpu"))) as client:
        response = await client.post(
            f"/predict/file?{query}", files={"file": (path.name, path.read_bytes())}
        )
    assert response.status_code == 200, response.text
    return response.text


# --- the same rows as the service ---


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "content", "options", "query"),
    [
        ("m.csv", TABLE, [], ""),
        ("m.csv", TABLE, ["--tasks", "tox21, bbbp"], "tasks=tox21,bbbp"),
        ("m.csv", TABLE, ["--routing", "moe", "--id-field", "id"], "routing=moe&id_field=id"),
        ("m.csv", "a;b\nCCO;C\nC;CC\n", ["--smiles-column", "b"], "smiles_column=b"),
        ("m.tsv", "smiles\tname\nCCO\tx\n", [], ""),
        ("m.smi", LINES, ["--experts", "own"], "experts=own"),
        ("m.sdf", sdf("CCO", "C"), [], ""),
        ("m.csv", "smiles\n", [], ""),
    ],
)
async def test_rows_are_those_of_the_service(
    name: str,
    content: str,
    options: list[str],
    query: str,
    predict: Command,
    pico_artifact: Path,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    expected = await from_service(pico_artifact, path, query)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for given in (path, packed):
        answers = tmp_path / f"{given.name}.answers"
        await in_thread(predict, given, "-o", answers, "--format", "csv", *options)
        check_same_cells(answers.read_bytes().decode(), expected)


async def in_thread(function: Callable[..., int], *arguments: object) -> int:
    """The command has an event loop of its own, and the test has one."""
    import asyncio

    return await asyncio.to_thread(function, *arguments)


@pytest.mark.anyio
@pytest.mark.skipif(not CASES.is_dir(), reason="no awkward files")
async def test_awkward_files_have_the_rows_of_the_service(
    predict: Command, pico_artifact: Path, tmp_path: Path
) -> None:
    paths = [path for path in sorted(CASES.iterdir()) if path.suffix != ".md"]
    assert len(paths) > 10
    async with serving(load_engine(pico_artifact, Settings(device="cpu"))) as client:
        for path in paths:
            for kind in ("csv", "ndjson"):
                sent = {"file": (path.name, path.read_bytes())}
                expected = await client.post(f"/predict/file?output={kind}", files=sent)
                answers = tmp_path / f"{path.name}.{kind}"
                code = await in_thread(predict, path, "-o", answers)
                if expected.status_code != 200:
                    assert code == 1, path
                    continue
                if kind == "csv":
                    check_same_cells(answers.read_bytes().decode(), expected.text)
                    failed = any(row[-1] == "" for row in rows_of(expected.text)[1:])
                    assert code == (3 if failed else 0), path
                else:
                    ours, theirs = answers.read_text().splitlines(), expected.text.splitlines()
                    assert len(ours) == len(theirs)
                    for line, wanted in zip(
                        map(json.loads, ours), map(json.loads, theirs), strict=True
                    ):
                        assert {**line, "tasks": 0} == {**wanted, "tasks": 0}


def test_ndjson_has_an_index_over_all_groups(
    predict: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GROUP_SIZE", 4)
    path = tmp_path / "m.smi"
    path.write_text("".join(f"{'C' * k} m{k}\n" for k in range(1, 11)))
    assert predict(path, "-o", tmp_path / "a.ndjson") == 0
    lines = [json.loads(line) for line in (tmp_path / "a.ndjson").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(10))
    assert [line["row"]["name"] for line in lines] == [f"m{k}" for k in range(1, 11)]


# --- Parquet ---


def test_parquet_has_typed_columns(predict: Command, tmp_path: Path) -> None:
    given = tmp_path / "m.parquet"
    columns = {"smiles": ["CCO", None, "C1"], "dose": [1.5, None, 2.5], "n": [0, 1, 2]}
    pq.write_table(pa.table(columns), given)
    assert predict(given, "-o", tmp_path / "a.parquet", "--id-field", "n") == 3
    found = pq.read_table(tmp_path / "a.parquet")
    types = dict(zip(found.schema.names, map(str, found.schema.types), strict=True))
    assert types == {
        "id": "int64",
        "smiles": "string",
        "dose": "double",
        "n": "int64",
        "gmerging_smiles": "string",
        "gmerging_error": "string",
        **dict.fromkeys(
            [
                "bbbp.p_np",
                "clintox.FDA_APPROVED",
                "clintox.CT_TOX",
                "tox21.NR-AR",
                "tox21.NR-ER",
                "tox21.SR-p53",
            ],
            "double",
        ),
    }
    rows = found.to_pylist()
    assert [row["dose"] for row in rows] == [1.5, None, 2.5]
    assert [row["smiles"] for row in rows] == ["CCO", None, "C1"]
    assert [row["gmerging_smiles"] for row in rows] == ["CCO", None, None]
    assert [row["bbbp.p_np"] is None for row in rows] == [False, True, True]
    codes = [row["gmerging_error"] and row["gmerging_error"].split(":")[0] for row in rows]
    assert codes == [None, "empty_smiles", "smiles_syntax"]
    assert predict(given, "-o", tmp_path / "a.csv", "--id-field", "n") == 3
    table = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["dose"] for row in table] == ["1.5", "", "2.5"]
    assert [row["id"] for row in table] == ["0", "1", "2"]
    for row, number in zip(table, rows, strict=True):
        assert float(row["bbbp.p_np"] or "nan") == pytest.approx(
            float("nan") if number["bbbp.p_np"] is None else number["bbbp.p_np"], nan_ok=True
        )


def test_parquet_of_odd_types_goes_through_all_formats(predict: Command, tmp_path: Path) -> None:
    given = tmp_path / "m.pq"
    day = datetime.date(2026, 1, 2)
    table = pa.table(
        {
            "smiles": pa.array(["CCO", "C", "CCO"]).dictionary_encode(),
            "price": pa.array([Decimal("1.50"), None, Decimal("2.25")]),
            "raw": pa.array([b"\x00", b"a", None]),
            "day": pa.array([day, None, day]),
            "tags": pa.array([["x"], [], None]),
        }
    )
    pq.write_table(table, given)
    assert predict(given, "-o", tmp_path / "a.parquet", "--tasks", "bbbp") == 0
    found = pq.read_table(tmp_path / "a.parquet")
    assert str(found.schema.field("smiles").type) == "string"
    for name in ("price", "raw", "day", "tags"):
        assert found[name].to_pylist() == table[name].to_pylist()
    assert predict(given, "-o", tmp_path / "a.jsonl", "--tasks", "bbbp") == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines[0]["row"] == {
        "smiles": "CCO",
        "price": "1.50",
        "raw": "b'\\x00'",
        "day": "2026-01-02",
        "tags": ["x"],
    }
    assert predict(given, "-o", tmp_path / "a.csv", "--tasks", "bbbp") == 0
    rows = rows_of((tmp_path / "a.csv").read_text())
    assert rows[1][:5] == ["CCO", "1.50", "b'\\x00'", "2026-01-02", "['x']"]


def test_parquet_of_rows_that_all_fail_and_of_none(predict: Command, tmp_path: Path) -> None:
    for name, content, count, code in (("f", "smiles\nC1\n", 1, 3), ("n", "smiles\n", 0, 0)):
        path = tmp_path / f"{name}.csv"
        path.write_text(content)
        assert predict(path, "-o", tmp_path / f"{name}.parquet") == code
        found = pq.read_table(tmp_path / f"{name}.parquet")
        assert (found.num_rows, str(found.schema.field("bbbp.p_np").type)) == (count, "double")


def test_parquet_in_row_groups(
    predict: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.formats.arrow._ROW_GROUP_BYTES", 1000)
    path = tmp_path / "m.smi"
    path.write_text("C\n" * 600)
    assert predict(path, "-o", tmp_path / "a.parquet") == 0
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert (file.metadata.num_rows, file.metadata.num_row_groups) == (600, 3)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1], "b": [2]}, "expected one of smiles"),
        ({"smiles": [1, 2]}, "got column 'smiles' of int64, expected text"),
        (None, "got no Parquet file"),
    ],
)
def test_parquet_that_cannot_be_read(
    columns: dict[str, list[int]] | None,
    message: str,
    predict: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "m.parquet"
    if columns is None:
        path.write_bytes(b"PAR1 and no more")
    else:
        pq.write_table(pa.table(columns), path)
    assert predict(path, "-o", tmp_path / "a.csv") == 1
    assert message in capsys.readouterr().err


# --- arguments, standard input, standard output ---


def test_smiles_as_arguments(predict: Command, capfd: pytest.CaptureFixture[str]) -> None:
    assert predict("CCO", "C1", "--tasks", "bbbp") == 3
    said = capfd.readouterr()
    rows = rows_of(said.out)
    assert rows[0] == ["smiles", "gmerging_smiles", "gmerging_error", "bbbp.p_np"]
    assert [(row[0], row[1], row[2].split(":")[0]) for row in rows[1:]] == [
        ("CCO", "CCO", ""),
        ("C1", "", "smiles_syntax"),
    ]
    assert said.err.startswith("gmerging: 2 rows, 1 failed (smiles_syntax 1), ")
    assert re.search(r"\), \d+ rows/s, model pico 0\.1\.0 \([0-9a-f]{12}\)\n$", said.err)


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_argument_that_is_no_text(
    kind: str, predict: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert predict("CCO\udcff", "C", "--tasks", "bbbp", "--format", kind) == 3
    assert "CCO?" in capfd.readouterr().out


def test_summary_for_programs(predict: Command, capfd: pytest.CaptureFixture[str]) -> None:
    assert predict("CCO", "C1", "", "--json", "--tasks", "bbbp") == 3
    summary = json.loads(capfd.readouterr().err)
    assert summary["errors"] == {"smiles_syntax": 1, "empty_smiles": 1}
    assert (summary["rows"], summary["failed"], summary["resumed"]) == (3, 2, 0)
    assert (summary["model"]["name"], summary["tasks"]) == ("pico", ["bbbp"])


def test_help_labels(predict: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("--help-labels") == 0
    said = capsys.readouterr().out
    assert "clintox: the clintox set\n    FDA_APPROVED\n    CT_TOX\n" in said
    assert predict("--help-labels", "--json") == 0
    tasks = json.loads(capsys.readouterr().out)
    assert tasks["bbbp"]["labels"] == ["p_np"]


def test_help_labels_says_what_labels_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help-labels", "--model", "admet", "--tasks", "herg"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("herg: ")
    assert "    blocker: blockade of the hERG potassium channel\n" in out
    assert "      direction: high is bad" in out
    assert "CC BY 4.0" in out
    assert "bbb_martins" not in out
    assert main(["predict", "--help-labels", "--model", "admet", "--tasks", "hreg"]) == 1


@pytest.mark.parametrize(
    ("sent", "options", "code", "rows"),
    [
        (b"CCO a\nC1 b\n", ["-"], 3, 2),
        (b"name,smiles\na,CCO\n", [], 0, 1),
        (gzip.compress(b"CCO\nC\n", mtime=0), ["-"], 0, 2),
        (sdf("CCO", "C").encode(), [], 0, 2),
        (b"smiles;x\nC;1\n", ["--input-format", "csv", "-"], 0, 1),
    ],
)
def test_standard_input(
    sent: bytes,
    options: list[str],
    code: int,
    rows: int,
    predict: Command,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(sent)))
    assert predict("--tasks", "bbbp", "--format", "ndjson", *options) == code
    assert len(capfd.readouterr().out.splitlines()) == rows


def test_named_pipe_and_folder(
    predict: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=["CCO a\nC b\n"])
    writer.start()
    assert predict(pipe, "--tasks", "bbbp", "--format", "ndjson") == 0
    writer.join()
    assert len(capfd.readouterr().out.splitlines()) == 2
    assert predict(tmp_path, "--tasks", "bbbp") == 3  # a folder is no file of molecules
    assert "smiles_syntax" in capfd.readouterr().out


def test_parquet_through_pipes(pico_artifact: Path) -> None:
    made = io.BytesIO()
    pq.write_table(pa.table({"smiles": ["CCO", "C"]}), made)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(pico_artifact, "--format", "parquet", **pipes) as process:
        out, err = process.communicate(made.getvalue())
    assert process.returncode == 0, err
    assert pq.read_table(io.BytesIO(out)).num_rows == 2


def test_pipe_that_nobody_reads_ends_it_quietly(pico_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.smi"
    path.write_text("CCO\n" * 5000)
    with started(pico_artifact, path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"smiles,name,gmerging_smiles")
        process.stdout.close()
        said = process.stderr.read()
    assert (process.wait(), said) == (141, b"")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["m.smi", "-o", "a.txt"], 2, "got output 'a.txt', expected .csv, .ndjson"),
        (["nothing.csv"], 1, "No such file or directory: 'nothing.csv'"),
        (["m.smi", "C"], 1, "got 'm.smi, C', expected one file, or SMILES only"),
        (["C", "CC", "--id-field", "x"], 1, "for SMILES, expected them for a file"),
        (["C", "--tasks", "nope"], 1, "got unknown task 'nope'"),
        (["C", "--tasks", "bbbp,bbbp"], 1, "got a task twice"),
        (["C", "--experts", "trees"], 1, "expected"),
        (["m.smi", "--id-field", "x"], 1, "id_field: got columns 'smiles, name', expected 'x'"),
        (["m.smi", "-o", "m.smi", "--format", "csv", "--replace"], 1, "as input and output"),
        (["C", "-o", "there.csv"], 1, "got there.csv, which exists"),
    ],
)
def test_what_cannot_be_is_said(
    words: list[str],
    code: int,
    message: str,
    predict: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.smi").write_text("C\n")
    Path("there.csv").write_text("mine")
    assert predict(*words) == code
    assert message in capsys.readouterr().err
    assert Path("there.csv").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"m.smi", "there.csv"}


def test_terminals_are_asked_for_what_is_missing(
    predict: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert predict() == 2
    assert "got no input, expected a file" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert predict("C", "--format", "parquet") == 2
    assert "got Parquet for a terminal" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        predict("C", "--processes", "0")
    assert stopped.value.code == 2


def test_model_that_takes_no_molecules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_pico_graph_artifact(tmp_path / "models" / "graphs")
    assert main(["predict", "C", "--model", str(folder)]) == 1
    assert "for a table of molecules" in capsys.readouterr().err


def test_model_by_its_name_in_the_folder_of_models(
    pico_artifact: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GMERGING_MODELS", str(pico_artifact.parent))
    assert main(["predict", "C", "--model", "pico", "--tasks", "bbbp", "--device", "cpu"]) == 0
    monkeypatch.setenv("GMERGING_ARTIFACT", str(pico_artifact))
    assert main(["predict", "C", "--tasks", "bbbp", "--device", "cpu"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == lines[2:]


def test_progress_on_a_terminal(
    predict: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    path = tmp_path / "m.smi"
    path.write_text(LINES)
    assert predict(path, "-o", tmp_path / "a.csv") == 3
    assert "3/3" in (said := capsys.readouterr().err)
    assert "failed=1" in said
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert predict(path, "-o", tmp_path / "b.csv") == 3
    assert "3/3" not in capsys.readouterr().err


# --- rows are never lost ---


def test_model_pass_that_fails_is_an_error_of_its_rows(
    predict: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(local, "GROUP_SIZE", 2)
    whole = ArtifactEngine.run

    def broken(self: ArtifactEngine, graphs: Any, *rest: Any) -> Any:
        if len(graphs) > 1 and any(graph.num_nodes == 7 for graph in graphs):
            raise RuntimeError("the model broke")
        return whole(self, graphs, *rest)

    monkeypatch.setattr(ArtifactEngine, "run", broken)
    path = tmp_path / "m.smi"
    path.write_text("C\nCC\nCCCCCCC\nC1\nCCCCCCC\nCCC\nCCCC\n")
    assert predict(path, "-o", tmp_path / "a.csv", "--tasks", "bbbp") == 3
    codes = [row[3].split(":")[0] for row in rows_of((tmp_path / "a.csv").read_text())[1:]]
    assert codes == ["", "", "", "smiles_syntax", "internal", "internal", ""]
    assert "the model broke" in caplog.text


# --- several processes ---


def test_several_processes_write_the_bytes_of_one(pico_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.smi"
    path.write_text("".join(f"{'C' * (k % 40 + 1)}O m{k}\nC1 broken\n" for k in range(700)))
    for count in (1, 2):
        words = (path, "-o", tmp_path / f"{count}.ndjson", "--processes", count)
        with started(pico_artifact, *words) as process:
            _, err = process.communicate()
        assert process.returncode == 3, err
        assert err.startswith(b"gmerging: 1400 rows, 700 failed (smiles_syntax 700), ")
        assert err.count(b"\n") == 1
    assert (tmp_path / "1.ndjson").read_bytes() == (tmp_path / "2.ndjson").read_bytes()


def test_process_with_a_wrong_question_says_so(
    predict: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict("C", "--processes", "2", "--tasks", "nope") == 1
    assert "got unknown task 'nope'" in capsys.readouterr().err


# --- runs that were stopped ---


def many(tmp_path: Path, count: int = 4000) -> Path:
    path = tmp_path / "m.smi"
    path.write_text("".join(f"{'C' * (k % 60 + 1)}O m{k}\n" for k in range(count)))
    return path


def test_run_that_was_killed_goes_on_to_the_same_bytes(
    predict: Command, pico_artifact: Path, tmp_path: Path
) -> None:
    path = many(tmp_path)
    whole, answers = tmp_path / "whole.csv", tmp_path / "answers.csv"
    assert predict(path, "-o", whole) == 0
    words = (path, "-o", answers, "--device", "cpu", "--json")
    partial, state = Path(f"{answers}.partial"), Path(f"{answers}.state")
    with started(pico_artifact, *words) as process:
        while not partial.exists() or partial.stat().st_size < 50_000:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    saved = json.loads(state.read_bytes())
    assert partial.stat().st_size >= saved["bytes"]
    with partial.open("ab") as torn:
        torn.write(b"half a ro")
    with started(pico_artifact, *words, "--processes", 2) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert answers.read_bytes() == whole.read_bytes()
    assert json.loads(err)["rows"] == 4000
    assert not partial.exists()
    assert not state.exists()


@pytest.fixture
def stopped(
    request: pytest.FixtureRequest,
    predict: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path]:
    """A file, and the output of a run that was interrupted after its third group."""
    kind = getattr(request, "param", "csv")
    monkeypatch.setattr(output, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(local, "GROUP_SIZE", 8)
    path, answers = many(tmp_path, 50), tmp_path / f"a.{kind}"
    append = output.FileOutput.append

    def interrupted(self: output.FileOutput, rows: local.Rows) -> None:
        append(self, rows)
        if self.answered == 24:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output.FileOutput, "append", interrupted)
        assert predict(path, "-o", answers) == 130
    assert json.loads(Path(f"{answers}.state").read_bytes())["answered"] == 24
    return path, answers


@pytest.mark.parametrize("stopped", ["csv", "ndjson", "parquet"], indirect=True)
def test_interrupted_run_goes_on(
    stopped: tuple[Path, Path], predict: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path, answers = stopped
    capsys.readouterr()
    assert predict(path, "-o", answers) == 0
    assert "50 rows, 24 of them by the run before, 0 failed" in capsys.readouterr().err
    whole = answers.with_name(f"whole{answers.suffix}")
    assert predict(path, "-o", whole) == 0
    assert answers.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--tasks", "bbbp"], "tasks"),
        (["--routing", "moe"], "routing"),
        (["--id-field", "name"], "id field"),
        (["--format", "ndjson"], "output format"),
        ("input", "input"),
        ("model", "model"),
        ("limits", "limits"),
    ],
)
def test_run_with_other_input_model_or_options_does_not_go_on(
    change: list[str] | str,
    named: str,
    stopped: tuple[Path, Path],
    predict: Command,
    pico_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, answers = stopped
    before = Path(f"{answers}.partial").read_bytes()
    words = change if isinstance(change, list) else []
    if change == "input":
        path.write_text(path.read_text().replace("m49", "m50"))
    elif change == "limits":
        monkeypatch.setenv("GMERGING_MAX_ATOMS", "40")
    elif change == "model":
        manifest = json.loads((pico_artifact / "manifest.json").read_text())
        other = tmp_path / "other"
        other.mkdir()
        for file in pico_artifact.rglob("*"):
            target = other / file.relative_to(pico_artifact)
            if file.is_dir():
                target.mkdir()
            else:
                target.write_bytes(file.read_bytes())
        (other / "manifest.json").write_text(json.dumps({**manifest, "version": "0.1.1"}))
        words = ["--model", str(other)]
    assert predict(path, "-o", answers, *words) == 1
    said = capsys.readouterr().err
    assert f"of a stopped run with other {named}, expected the same, or --replace" in said
    assert Path(f"{answers}.partial").read_bytes() == before
    assert predict(path, "-o", answers, *words, "--replace") in (0, 3)
    assert "of them by the run before" not in capsys.readouterr().err
    assert answers.exists()
    assert not Path(f"{answers}.state").exists()


def test_state_without_its_rows_starts_over(
    stopped: tuple[Path, Path], predict: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path, answers = stopped
    Path(f"{answers}.partial").unlink()
    assert predict(path, "-o", answers) == 0
    assert "by the run before" not in capsys.readouterr().err
    assert len(rows_of(answers.read_text())) == 51


def test_two_runs_do_not_write_one_output(
    predict: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, answers = many(tmp_path, 10), tmp_path / "a.csv"
    first = output.FileOutput(answers, "csv")
    first.begin(b"header\n", {})
    assert predict(path, "-o", answers) == 1
    assert "which another run writes, expected to be the only one" in capsys.readouterr().err
    first.close()


MEASURED = """
import re, sys
from pathlib import Path
from gmerging.cli.main import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text()
print(re.search(r"VmHWM:\\s+(\\d+)", status)[1], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_memory_does_not_grow_with_the_rows(pico_artifact: Path, tmp_path: Path) -> None:
    """Peak memory of 30,000 rows is that of 3,000, within what the allocator keeps."""
    peaks = []
    for count in (3_000, 30_000):
        words = ["predict", many(tmp_path, count), "--model", pico_artifact, "--tasks", "bbbp"]
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *map(str, words), "--device", "cpu"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=True,
        )
        peaks.append(int(done.stderr.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 25, peaks
