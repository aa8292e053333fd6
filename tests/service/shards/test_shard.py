"""One shard: rows, their order, ids and errors; what is done before; records that end a process."""

import csv
import gzip
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.errors import ArtifactError, InvalidInputError
from service.core.artifact_engine import load_engine
from service.core.engine import PredictionQuery, UnsupportedQueryError
from service.core.local import predict
from service.core.reading import Record
from service.settings import Settings
from service.shards import shard as module
from service.shards.made import Shard, made_of, output_of
from service.shards.note import Note, note_of, write_note
from service.shards.request import Limits, ScreenModel, ScreenRequest, Top
from service.shards.shard import Screener, ShardExistsError
from tests.service.formats.test_molecule_files import sdf

SETTINGS = Settings(device="cpu")
LIMITS = Limits(
    max_atoms=SETTINGS.max_atoms,
    max_smiles_length=SETTINGS.max_smiles_length,
    max_batch_cost=SETTINGS.max_batch_cost,
)
LABELS = ("bbbp.p_np", "tox21.NR-AR", "tox21.SR-p53")
GOOD = ["CCO", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "CCN", "OCC"]
HOSTILE = {
    "": "empty_smiles",
    "C1": "smiles_syntax",
    "C" * 2001: "smiles_too_long",
    "C" * 501: "too_many_atoms",
    "C[N](C)(C)(C)C": "chemistry",
    "*CC": "dummy_atom",
    "\x00": "smiles_syntax",
    "(" * 1000: "smiles_syntax",
    "é": "smiles_syntax",
    "[" + "1" * 1000 + "C]": "smiles_syntax",
}
Screen = Callable[..., dict[str, Any]]


def request(**changes: Any) -> ScreenRequest:
    asked = {"tasks": ("bbbp", "tox21"), "labels": LABELS, "limits": LIMITS}
    return ScreenRequest(**asked | changes)


def model(artifact: Path, **changes: Any) -> ScreenModel:
    return ScreenModel(artifact, None, request(**changes), "cpu")


def shard_of(path: Path) -> Shard:
    return Shard(path.name, str(path), output_of(str(path.parent / "out"), path.name))


def screened(artifact: Path, path: Path, **changes: Any) -> pa.Table:
    """Screen a shard, and return its rows."""
    shard = shard_of(path)
    made = Screener(model(artifact, **changes))(shard)
    assert not made.skipped
    assert sorted(os.listdir(path.parent / "out")) == [Path(shard.output).name]
    return pq.read_table(shard.output)


def write_table(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def direct(artifact: Path, smiles: Sequence[str]) -> np.ndarray[Any, Any]:
    """The engine's answers for the labels, molecule by molecule."""
    engine = load_engine(artifact, SETTINGS)
    query = PredictionQuery.checked("pico", engine, ["bbbp", "tox21"], "own")
    answers = [predict(query, SETTINGS, [text])[0] for text in smiles]
    rows = [
        np.concatenate([answer.tasks[task].values for task in ("bbbp", "tox21")])  # type: ignore[union-attr]
        for answer in answers
    ]
    return np.array(rows)[:, [0, 1, 3]]


def numbers(table: pa.Table) -> np.ndarray[Any, Any]:
    return np.stack([table[label].to_numpy() for label in LABELS], axis=1)


# --- rows ---


def test_every_row_has_its_row_in_order_with_the_engines_answers(
    pico_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 4)
    rows = [[f"m{k}" if k % 3 else "", GOOD[k % len(GOOD)]] for k in range(11)]
    path = write_table(tmp_path / "m.csv", [["ID", "smiles"], *rows])
    table = screened(pico_artifact, path)
    assert table.column_names == ["id", "gmerging_smiles", "gmerging_error", *LABELS]
    assert table["id"].to_pylist() == [name or f"m.csv:{k}" for k, (name, _) in enumerate(rows)]
    assert table["gmerging_error"].null_count == 11
    assert table["gmerging_smiles"].to_pylist()[:2] == ["CCO", "c1ccccc1"]
    expected = direct(pico_artifact, [smiles for _, smiles in rows])
    np.testing.assert_allclose(numbers(table), expected, rtol=0, atol=1e-5)


def test_good_molecules_beside_hostile_ones_are_all_answered(
    pico_artifact: Path, tmp_path: Path
) -> None:
    texts = [text for pair in zip(GOOD * 2, HOSTILE, strict=False) for text in pair]
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"smiles": [*texts, None], "name": [*range(len(texts)), 99]}), path)
    table = screened(pico_artifact, path)
    errors = [error and error.partition(":")[0] for error in table["gmerging_error"].to_pylist()]
    assert errors == [HOSTILE.get(text) for text in texts] + ["empty_smiles"]
    failed = np.array([error is not None for error in errors])
    assert np.isnan(numbers(table)).all(axis=1).tolist() == failed.tolist()
    expected = direct(pico_artifact, [text for text in texts if text not in HOSTILE])
    np.testing.assert_allclose(numbers(table)[~failed], expected, rtol=0, atol=1e-5)
    made = made_of(shard_of(path).output)
    assert made is not None
    assert (made.rows, made.kept) == (len(texts) + 1, len(texts) + 1)
    assert made.failed == {code: errors.count(code) for code in made.failed}
    assert sum(made.failed.values()) == failed.sum()


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("m.smi", "CCO ethanol\nc1ccccc1\n", ["ethanol", "m.smi:1"]),
        ("m.csv", "smiles\nCCO\nc1ccccc1\n", ["m.csv:0", "m.csv:1"]),
        ("m.tsv", "smiles\tname\nCCO\tx\nc1ccccc1\t\n", ["x", "m.tsv:1"]),
        ("m.sdf", sdf("CCO", "c1ccccc1"), None),
    ],
)
def test_kinds_of_files_plain_and_packed_have_ids(
    name: str, content: str, ids: list[str] | None, pico_artifact: Path, tmp_path: Path
) -> None:
    plain, packed = tmp_path / name, tmp_path / f"{name}.gz"
    plain.write_text(content)
    packed.write_bytes(gzip.compress(content.encode()))
    tables = [screened(pico_artifact, plain)]
    (tmp_path / "out" / f"{name}.parquet").unlink()
    tables.append(screened(pico_artifact, packed))
    for table in tables:
        assert table["gmerging_smiles"].to_pylist() == ["CCO", "c1ccccc1"]
    if ids is not None:
        assert tables[0]["id"].to_pylist() == ids
        assert tables[1]["id"].to_pylist() == [text.replace(name, packed.name) for text in ids]


def test_a_named_column_of_ids_comes_first(pico_artifact: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "m.csv", [["id", "code", "smiles"], ["1", "x", "CCO"]])
    assert screened(pico_artifact, path, id_field="code")["id"].to_pylist() == ["x"]


def test_an_empty_shard_has_an_empty_output(pico_artifact: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "m.csv", [["smiles"]])
    assert screened(pico_artifact, path).num_rows == 0


def test_floats_and_columns_are_as_asked(pico_artifact: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "m.csv", [["smiles"], *([text] for text in GOOD), ["C1"]])
    whole = screened(pico_artifact, path)
    assert {whole.schema.field(label).type for label in LABELS} == {pa.float32()}
    (tmp_path / "out" / "m.csv.parquet").unlink()
    half = screened(pico_artifact, path, floats="float16", smiles=False)
    assert half.column_names == ["id", "gmerging_error", *LABELS]
    assert {half.schema.field(label).type for label in LABELS} == {pa.float16()}
    np.testing.assert_allclose(numbers(half)[:-1], numbers(whole)[:-1], rtol=0, atol=5e-4)


# --- choices ---


def test_conditions_leave_rows_that_fulfil_all_and_count_the_others(
    pico_artifact: Path, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "m.csv", [["smiles"], *([text] for text in [*GOOD, "C1"])])
    values = direct(pico_artifact, GOOD)
    least, most = np.median(values[:, 0]), values[:, 1].max()
    keep = (f"bbbp.p_np>={least}", f"tox21.NR-AR<{most}")
    table = screened(pico_artifact, path, keep=keep)
    holds = (values[:, 0] >= least) & (values[:, 1] < most)
    assert 0 < holds.sum() < len(GOOD)
    assert table["id"].to_pylist() == [f"m.csv:{k}" for k in np.flatnonzero(holds)]
    made = made_of(shard_of(path).output)
    assert made is not None
    assert (made.rows, made.kept, made.failed) == (7, holds.sum(), {"smiles_syntax": 1})


@pytest.mark.parametrize("lowest", [False, True])
def test_top_rows_are_the_best_in_the_order_of_the_input(
    lowest: bool, pico_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 2)
    monkeypatch.setattr("service.shards.table._GROUP_ROWS", 8)
    texts = [*GOOD[:5], "C1", *("C" * k + "O" for k in range(3, 9))]
    path = write_table(tmp_path / "m.csv", [["smiles"], *([text] for text in texts)])
    top = Top(count=3, label="tox21.NR-AR", lowest=lowest)
    table = screened(pico_artifact, path, top=top)
    values = direct(pico_artifact, [text for text in texts if text != "C1"])[:, 1]
    best = np.argsort(values if lowest else -values)[:3]
    rows = sorted(k if k < 5 else k + 1 for k in best)
    assert table["id"].to_pylist() == [f"m.csv:{k}" for k in rows]


# --- what is there already ---


def test_an_output_of_the_same_input_and_settings_is_not_made_again(
    pico_artifact: Path, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "m.csv", [["smiles"], ["CCO"]])
    screener, shard = Screener(model(pico_artifact)), shard_of(path)
    first = screener(shard)
    before = os.stat(shard.output)
    again = screener(shard)
    assert (first.skipped, again.skipped) == (False, True)
    assert os.stat(shard.output).st_ino == before.st_ino
    assert json.loads(json.dumps(first.about)) == again.about
    assert again.about["input"]["size"] == path.stat().st_size
    assert again.about["model"]["digest"] == load_engine(pico_artifact, SETTINGS).info.digest

    write_table(path, [["smiles"], ["CCO"], ["CCN"]])
    assert screener(shard).rows == 2


def test_outputs_of_other_settings_are_replaced_only_if_asked(
    pico_artifact: Path, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "m.csv", [["smiles"], ["CCO"]])
    shard = shard_of(path)
    Screener(model(pico_artifact))(shard)
    other = model(pico_artifact, keep=("bbbp.p_np<2",))
    with pytest.raises(ShardExistsError, match=r"the output of model pico 0\.1\.0 .*--replace"):
        Screener(other)(shard)
    assert not Screener(other, replace=True)(shard).skipped
    Path(shard.output).write_text("mine")
    with pytest.raises(ShardExistsError, match="no output of a screening"):
        Screener(other)(shard)
    assert Path(shard.output).read_text() == "mine"


# --- what cannot be screened ---


def test_what_cannot_be_read_leaves_a_note_and_no_output(
    pico_artifact: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.parquet"
    path.write_text("no parquet")
    screener, shard = Screener(model(pico_artifact)), shard_of(path)
    with pytest.raises(InvalidInputError, match="got no Parquet file"):
        screener(shard)
    note = note_of(shard.output)
    assert note is not None
    assert note.error is not None
    assert "got no Parquet file" in note.error
    assert not note.is_alive
    assert os.listdir(tmp_path / "out") == [".m.parquet.note"]
    pq.write_table(pa.table({"smiles": ["CCO"]}), path)
    assert screener(shard).rows == 1
    assert os.listdir(tmp_path / "out") == ["m.parquet"]


def test_another_model_than_the_plans_is_refused(pico_artifact: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected the plan's \(00000000"):
        Screener(ScreenModel(pico_artifact, "0" * 64, request(), "cpu"))
    with pytest.raises(UnsupportedQueryError, match="unknown task 'nope'"):
        Screener(model(pico_artifact, tasks=("nope",), labels=("nope.x",)))
    with pytest.raises(InvalidInputError, match=r"got label 'bbbp\.nope'"):
        Screener(model(pico_artifact, tasks=("bbbp",), labels=("bbbp.nope",)))


def test_an_input_that_changes_while_it_is_read_has_no_output(
    pico_artifact: Path, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "m.csv", [["smiles"], ["CCO"]])
    shard = shard_of(path)

    def change(rows: int) -> None:
        if rows:
            with path.open("a") as file:
                file.write("CCN\n")

    screener = Screener(model(pico_artifact))
    with pytest.raises(InvalidInputError, match="which changed while it was read"):
        screener(shard, change)
    assert made_of(shard.output) is None
    assert screener(shard).rows == 2


# --- records that end a process ---


def test_a_chunk_in_which_a_process_died_is_looked_through(
    pico_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 2)
    looked: list[list[str]] = []

    def found(_: ScreenModel, records: Sequence[Record]) -> dict[int, str]:
        looked.append([str(record.source) for record in records])
        return {1: "its process ended (signal 9)"}

    monkeypatch.setattr(module, "crashes", found)
    path = write_table(tmp_path / "m.csv", [["smiles"], *([text] for text in GOOD)])
    shard = shard_of(path)
    left = tmp_path / "out" / ".left-by-a-dead-process"
    note = Note.new(str(left), (0,))
    write_note(shard.output, note.model_copy(update={"chunk": 2, "pid": 2**22 + 1}))
    left.write_bytes(b"half")
    table = screened(pico_artifact, path)
    assert looked == [GOOD[:2], GOOD[4:]]
    errors = table["gmerging_error"].to_pylist()
    crashed = "crashed: its process ended (signal 9)"
    assert errors == [None, crashed, None, None, None, crashed]
    good = [k for k, error in enumerate(errors) if error is None]
    expected = direct(pico_artifact, [GOOD[k] for k in good])
    np.testing.assert_allclose(numbers(table)[good], expected, rtol=0, atol=1e-5)


def test_so_is_the_chunk_of_an_attempt_on_another_machine_which_may_have_died(
    pico_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(module, "crashes", lambda _, records: looked.append(len(records)) or {})
    path = write_table(tmp_path / "m.csv", [["smiles"], *([text] for text in GOOD)])
    shard = shard_of(path)
    theirs = tmp_path / "out" / ".theirs"
    note = Note.new(str(theirs), ())
    write_note(shard.output, note.model_copy(update={"chunk": 0, "host": "another"}))
    theirs.write_bytes(b"half")
    assert Screener(model(pico_artifact))(shard).rows == len(GOOD)
    assert looked == [len(GOOD)]
    assert theirs.exists()


def test_a_chunk_that_the_model_fails_on_is_suspect(
    pico_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(tmp_path / "m.csv", [["smiles"], ["CCO"]])
    shard, screener = shard_of(path), Screener(model(pico_artifact))

    def fail(*_: object) -> None:
        raise RuntimeError("no\nmemory")

    with monkeypatch.context() as patch:
        patch.setattr("service.shards.answering.predict", fail)
        with pytest.raises(RuntimeError):
            screener(shard)
    note = note_of(shard.output)
    assert note is not None
    assert note.error is not None
    assert note.error.startswith("RuntimeError in ")
    assert note.all_suspects == (0,)
    monkeypatch.setattr(module, "crashes", lambda *_: {})
    assert screener(shard).failed == {}


def test_a_shard_that_another_process_screens_keeps_its_files(
    pico_artifact: Path, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "m.csv", [["smiles"], ["CCO"]])
    shard = shard_of(path)
    theirs = tmp_path / "out" / ".theirs"
    note = Note.new(str(theirs), ())
    write_note(shard.output, note.model_copy(update={"chunk": 0, "pid": os.getppid()}))
    theirs.write_bytes(b"half")
    Screener(model(pico_artifact))(shard)
    assert theirs.exists()


def test_the_limit_of_cpu_time_is_taken_back(pico_artifact: Path, tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_CPU)
    path = write_table(tmp_path / "m.csv", [["smiles"], ["CCO"]])
    screened(pico_artifact, path)
    assert resource.getrlimit(resource.RLIMIT_CPU) == before
    assert signal.getsignal(signal.SIGXCPU) == signal.SIG_DFL
