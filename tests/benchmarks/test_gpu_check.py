"""What a CPU can check of `make gpu-check`: its sections run, and failures are recorded."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import SECTIONS, Bench, check
from models.data.molecule import MolGraph
from models.data.smiles import featurize_all
from tests.conftest import SMILES


@pytest.fixture
def bench() -> Bench:
    graphs = [
        molecule.graph for molecule in featurize_all(SMILES) if not isinstance(molecule, Exception)
    ]
    return Bench(torch.device("cpu"), [*SMILES], graphs, seconds=0.01)


def test_sections_give_their_figures(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "EPOCHS", 1)
    monkeypatch.setattr(gpu_check, "BATCHES", (1, 8))
    names = ["equality", "reading", "throughput", "training", "memory"]
    found = check(bench, names, tmp_path / "gpu.json")
    assert json.loads((tmp_path / "gpu.json").read_text()) == found
    assert not [name for name in names if found[name].get("failed")]
    assert found["equality"]["own"]["probabilities"] == 0  # the CPU against itself
    assert found["throughput"]["moe"]["by_batch"]["8"]["molecules_per_second"] > 0
    assert found["training"]["exact"]["device"]["transport"] == "exact on cpu"
    assert found["memory"]["skipped"] == "needs a GPU"
    assert found["machine"]["torch"] == version("torch")


def test_answers_that_differ_fail(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = bench.engine("cpu")
    other = bench.graphs[::-1]

    class Wrong:
        info = engine.info

        def run(self, graphs: list[MolGraph], *rest: Any) -> Any:
            return engine.run(other, *rest)

    monkeypatch.setattr(
        Bench, "engine", lambda self, device=None: Wrong() if device is None else engine
    )
    assert gpu_check.equality(bench)["failed"]


def test_a_section_that_breaks_is_written_down_and_the_next_one_runs(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Bench) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(SECTIONS, "equality", broken)
    found = check(bench, ["equality", "reading"], tmp_path / "gpu.json")
    assert found["equality"]["failed"]
    assert found["equality"]["error"] == "RuntimeError: no such kernel"
    assert found["reading"]["molecules_per_second_of_a_core"] > 0


@pytest.mark.slow
def test_the_service_is_asked(bench: Bench, tmp_path: Path) -> None:
    found = check(bench, ["service"], tmp_path / "gpu.json")["service"]
    assert "failed" not in found
    assert (found["device"], found["exit_code"]) == (["cpu"], 0)
    assert found["molecules_compared"] == len(SMILES)
    assert found["molecules_per_second_16_clients_of_100"] > 0
