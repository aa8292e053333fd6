"""The whole offline chain on a pico data set, through the command that a user types."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.cli import main
from merging.pipeline import finetuned, without_adapters
from merging.results import measure_task
from merging.run import Run
from models.artifact import load_artifact
from models.classifier import GraphClassifier
from models.errors import CheckpointError
from tests.conftest import pico_config
from tests.merging.conftest import molecules, tail_has, write_csv


def command(tmp_path: Path, *arguments: str) -> int:
    folders = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--device", "cpu", "--threads", "1"]
    return main([*arguments, "--config", str(tmp_path / "pico.yaml"), *folders])


@pytest.fixture
def released(pico_config_file: Path, tmp_path: Path) -> Path:
    assert command(tmp_path, "release", "--output", str(tmp_path / "artifact"), "--results", str(tmp_path / "results")) == 0
    return tmp_path


def test_release_writes_artifact_results_and_card(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = load_artifact(released / "artifact")
    assert (artifact.manifest.name, artifact.manifest.version) == ("pico", "1.2.3")
    assert artifact.model.label_names == {"nitrogen": ("has_n",), "other": ("has_o", "has_halogen")}
    assert artifact.manifest.provenance["config"]["merge"]["scaling"] == 0.4
    assert set(artifact.manifest.provenance["data_sha256"]) == {"nitrogen", "other"}
    results = json.loads((released / "results/pico/seed0.json").read_text())
    assert set(results["methods"]) == {"finetuned", "weight_average", "task_arithmetic", "gmerging_own", "gmerging_moe"}
    for method in results["methods"].values():
        for statistics in ("stored", "batch"):
            values = method[statistics]["roc_auc"]
            assert all(0 <= value <= 1 for value in values.values())
            assert method[statistics]["average"] == pytest.approx(sum(values.values()) / 2, abs=1e-4)
    card = (released / "artifact/README.md").read_text()
    assert f"{100 * results['methods']['gmerging_moe']['stored']['average']:.1f}" in card
    capsys.readouterr()
    assert main(["inspect", str(released / "artifact")]) == 0
    said = capsys.readouterr().out
    assert "pico 1.2.3" in said
    assert "rank 4, 4 sites x 2 experts x 128 = 1,024 parameters" in said


def test_second_release_makes_nothing_anew(released: Path) -> None:
    pieces = {path: path.stat().st_mtime_ns for path in (released / "work").rglob("*.safetensors")}
    assert len(pieces) == 2 + 2 + 2 + 2  # data, fine-tuned, merged by two methods, adapters
    assert command(released, "release", "--output", str(released / "again"), "--results", str(released / "results")) == 0
    assert {path: path.stat().st_mtime_ns for path in (released / "work").rglob("*.safetensors")} == pieces
    for name in ("backbone", "tasks/nitrogen", "tasks/other"):
        first, second = (load_file(released / folder / f"{name}.safetensors") for folder in ("artifact", "again"))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert not list((released / "work").rglob("*.resume.pt"))


def test_another_setting_makes_only_what_depends_on_it(released: Path) -> None:
    def stamps(folder: str) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (released / "work/pico/seed0" / folder).glob("*.safetensors")}

    finetuned_before, adapters_before = stamps("finetuned"), stamps("adapters")
    config = released / "pico.yaml"
    config.write_text(config.read_text().replace("other:\n    epochs: 2", "other:\n    epochs: 1"))
    assert "epochs: 1" in config.read_text()
    assert command(released, "train-adapters") == 0
    assert stamps("finetuned") == finetuned_before
    changed = {name for name, stamp in stamps("adapters").items() if stamp != adapters_before[name]}
    assert changed == {"other.safetensors"}


def test_other_data_makes_other_models(pico_run: Run, tmp_path: Path) -> None:
    first = finetuned(pico_run, "nitrogen").tensors["head.weight"]
    write_csv(tmp_path / "data/nitrogen.csv", "smiles", ("has_n",), list(zip(molecules(), tail_has("O"), strict=True)))
    again = Run(pico_run.config, 0, pico_run.data, pico_run.work, pico_run.device)
    assert not torch.equal(finetuned(again, "nitrogen").tensors["head.weight"], first)


def test_processes_give_the_same_as_one(pico_config_file: Path, tmp_path: Path) -> None:
    assert command(tmp_path, "finetune") == 0
    alone = {path.name: load_file(path) for path in (tmp_path / "work/pico/seed0/finetuned").glob("*.safetensors")}
    shutil.rmtree(tmp_path / "work")
    assert command(tmp_path, "finetune", "--processes", "2") == 0
    for name, tensors in alone.items():
        again = load_file(tmp_path / "work/pico/seed0/finetuned" / name)
        assert all(torch.equal(again[key], value) for key, value in tensors.items())


def test_finetuned_baseline_equals_the_classifier(pico_run: Run) -> None:
    """The baselines run through the unified model's code; with stored statistics that is the fine-tuned network itself."""
    piece, dataset = finetuned(pico_run, "other"), pico_run.dataset("other")
    classifier = GraphClassifier(pico_config(), 2).eval()
    classifier.load_state_dict(piece.tensors)
    batch = dataset.graphs.select(dataset.split.test)
    model = without_adapters(pico_run, "other", "finetuned")
    torch.testing.assert_close(model(batch, ["other"], "own").logits["other"], classifier(batch), rtol=1e-4, atol=1e-5)
    assert 0 <= measure_task(pico_run, model, "other", "own", "batch")["test"] <= 1


def test_errors_are_one_sentence_and_exit_status_one(pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "finetune", "--tasks", "muv") == 1
    assert "--tasks: got muv, expected names among nitrogen, other" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("gmerging: got no manifest.json")
    (tmp_path / "weights.safetensors").unlink()
    assert command(tmp_path, "merge") == 1
    assert "no pre-trained weights" in capsys.readouterr().err
    assert main(["finetune", "--config", "absent.yaml"]) == 1
    assert "no configuration at absent.yaml" in capsys.readouterr().err


def test_wrong_shape_of_pretrained_weights_is_refused(pico_run: Run, tmp_path: Path) -> None:
    save_file({"x_embedding1.weight": torch.zeros(2, 2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"x_embedding1\.weight has shape"):
        pico_run.pretrained()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("finetune", "merge", "train-adapters", "evaluate", "release", "inspect"))
