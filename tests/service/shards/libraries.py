"""Libraries of molecules for tests, and what must be true of what is made of them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmerging.cli.main import main
from service.core.artifact_engine import load_engine
from service.core.engine import PredictionQuery
from service.core.local import predict
from service.settings import Settings

ATOMS = ("C", "N", "O", "CC", "c1ccccc1", "C(=O)", "S", "C(F)", "C1CC1")


def molecule(k: int) -> str:
    """The k-th of many molecules, one of 50 of which cannot be read."""
    digits = [ATOMS[k // 9**place % 9] for place in range(4)]
    return "C1" if k % 50 == 17 else "C" + "".join(digits) + "C"


def write_library(folder: Path, shards: int, rows: int) -> None:
    for shard in range(shards):
        path = folder / f"{'ab'[shard % 2]}/part-{shard // 2}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        ids = [f"m{shard}-{k}" for k in range(rows)]
        smiles = [molecule(shard * rows + k) for k in range(rows)]
        pq.write_table(pa.table({"id": ids, "smiles": smiles}), path)


def plan_library(folder: Path, artifact: Path, *words: str, output: str = "out") -> None:
    """Write `screen.json`, the plan of `library` for one task, in a folder."""
    command = ["screen", "plan", str(folder / "library"), "-o", str(folder / output)]
    command += ["--plan", str(folder / "screen.json"), "-m", str(artifact), "--tasks", "bbbp"]
    assert main([*command, *words]) == 0


def outputs(folder: Path, rows: int) -> dict[Path, int]:
    """Return the inodes of all outputs that have their final name; each of them is whole."""
    found = {path: path.stat().st_ino for path in folder.rglob("[!.]*.parquet")}
    assert all(pq.read_metadata(path).num_rows == rows for path in found)
    return found


def check_library(library: Path, output: Path) -> None:
    """Every shard has its output, with the same rows in the same order, and nothing else is
    there."""
    names = sorted(path.relative_to(library) for path in library.rglob("*.parquet"))
    assert sorted(p.relative_to(output) for p in output.rglob("*") if p.is_file()) == names
    for name in names:
        given, made = pq.read_table(library / name), pq.read_table(output / name)
        assert made["id"].to_pylist() == given["id"].to_pylist()
        bad = [smiles == "C1" for smiles in given["smiles"].to_pylist()]
        assert [error is not None for error in made["gmerging_error"].to_pylist()] == bad


def check_answers(artifact: Path, library: Path, output: Path, name: str) -> None:
    """The numbers are the engine's, molecule by molecule."""
    engine, settings = load_engine(artifact, Settings(device="cpu")), Settings(device="cpu")
    query = PredictionQuery.checked("pico", engine, ["bbbp"], "own")
    given, made = pq.read_table(library / name), pq.read_table(output / name)
    for smiles, value in zip(
        given["smiles"].to_pylist()[:60], made["bbbp.p_np"].to_pylist(), strict=False
    ):
        if smiles != "C1":
            (answer,) = predict(query, settings, [smiles])
            assert value == pytest.approx(answer.tasks["bbbp"].values[0], abs=1e-5)  # type: ignore[union-attr]
