"""What a CPU can check of `make gpu-check`: its sections run, and failures are recorded."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_one_pass
from benchmarks.gpu_bench import Bench
from benchmarks.gpu_check import SECTIONS, check
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


def test_one_pass_and_its_training_give_their_figures(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_one_pass, "BATCHES", (4, 8))
    monkeypatch.setattr(gpu_one_pass, "EPOCHS", 1)
    monkeypatch.setattr(gpu_one_pass, "RANK", 4)
    found = check(bench, ["one_pass", "joint_alignment"], tmp_path / "gpu.json")
    one_pass, joint = found["one_pass"], found["joint_alignment"]
    assert "failed" not in one_pass, one_pass
    assert (one_pass["tasks"], one_pass["streams"]) == (31, 1)
    assert one_pass["forests"] > 20
    for name in ("network", "with_trees"):
        assert one_pass[name]["largest_difference"] == 0  # the CPU against itself
        assert one_pass[name]["molecules_per_second_by_batch"]["8"] > 0
    assert "failed" not in joint, joint
    assert len(joint["device"]["loss"]) == 1
    assert joint["device"]["loss"] == pytest.approx(joint["cpu_two_threads"]["loss"], rel=1e-2)


def test_one_pass_whose_trees_are_not_asked_as_the_cpu_asks_them_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fingerprints the network alone answers."""
    bare = bench.graphs[0]
    real = gpu_one_pass.differences

    def other_molecule(ours: Any, theirs: Any) -> Any:
        alone = bench.engine("cpu", gpu_one_pass.ADMET).run([bare], [*theirs.answers[0]], "own")
        return real(alone, type(theirs)(theirs.answers[:1]))

    monkeypatch.setattr(gpu_one_pass, "BATCHES", (2,))
    monkeypatch.setattr(gpu_one_pass, "differences", other_molecule)
    assert gpu_one_pass.one_pass(bench)["failed"]
