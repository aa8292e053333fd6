"""The whole offline chain on a pico data set, through the command line."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gmerging.cli.main import main, make_parser
from merging.families.molecule_config import MoleculeConfig
from merging.run.models import adapted_model, finetuned_model
from merging.run.run import Run
from merging.run.scores import evaluate, unified_forward
from merging.run.stages import finetuned_network, merged_network, teacher, trained_model
from merging.studies.markdown import markdown_table
from models.artifact import load_artifact
from models.data.batch import mean_readout
from models.errors import CheckpointError
from tests.conftest import pico_config
from tests.merging.conftest import molecules, run_options, tail_has, write_csv


def command(tmp_path: Path, *arguments: str) -> int:
    folders = run_options(tmp_path)
    return main([*arguments, "--config", str(tmp_path / "pico.yaml"), *folders])


def pieces(tmp_path: Path, folder: str) -> dict[str, int]:
    """Return the modification times of the stored results, by name."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in (tmp_path / "work/pieces" / folder).rglob("*.safetensors")
    }


def head_of(run: Run, task: str) -> torch.Tensor:
    return trained_model(run, teacher(run, task)).heads[task]["weight"]


@pytest.fixture
def released(pico_config_file: Path, tmp_path: Path) -> Path:
    assert command(tmp_path, "release", "--output", str(tmp_path / "artifact")) == 0
    return tmp_path


def test_release_writes_artifact_and_card(
    released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = load_artifact(released / "artifact")
    manifest = artifact.manifest
    assert (manifest.name, manifest.version) == ("pico", "1.2.3")
    assert artifact.model.label_names == {"nitrogen": ("has_n",), "other": ("has_o", "has_halogen")}
    assert manifest.provenance["config"]["merge"]["options"] == {"scaling": 0.4}
    assert set(manifest.provenance["data_sha256"]) == {"nitrogen", "other"}
    assert set(manifest.metrics["recovery"]) == {
        "finetuned",
        "weight_average",
        "task_arithmetic",
        "gmerging_own",
        "gmerging_moe",
    }
    card = (released / "artifact/README.md").read_text()
    assert f"{100 * manifest.metrics['gmerging_moe']['average']:.1f}" in card
    assert f"{manifest.metrics['calibration']['other']['ece_after']:.3f}" in card
    capsys.readouterr()
    assert main(["inspect", str(released / "artifact")]) == 0
    said = capsys.readouterr().out
    assert "pico 1.2.3" in said
    assert "rank 4, 2 experts, 1,024 parameters" in said
    assert "not its own" not in said
    (released / "artifact/tasks/notes.txt").write_text("mine")
    assert main(["inspect", str(released / "artifact")]) == 0
    assert (
        "files that are not in the manifest, which nothing reads: 'tasks/notes.txt'"
        in capsys.readouterr().out
    )
    assert "Data of nitrogen, other: the files in the table above, under their owner" in card
    assert "MoleculeNet" not in card


def test_what_was_read_as_what_is_said_before_training_and_kept(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [{"1": "Active", "0": "inactive"}[label] for label in tail_has("N")]
    rows = [*zip(molecules(), words, strict=True), ("not_a_smiles", "Active")]
    write_csv(tmp_path / "data/nitrogen.csv", "smiles", ("has_n",), rows)
    assert command(tmp_path, "release", "--output", str(tmp_path / "artifact")) == 0
    said = capsys.readouterr().out
    assert "nitrogen: 80 molecules of nitrogen.csv, column 'smiles', 1 of 81 rows dropped" in said
    assert "1 label: has_n (Active = 1, inactive = 0); split scaffold: 60 train" in said
    card = (tmp_path / "artifact/README.md").read_text()
    assert "| nitrogen | nitrogen.csv | 80 | 1 | scaffold | 60 / 10 / 10 |" in card
    assert "| has_n (Active = 1, inactive = 0) |" in card
    assert "not_a_smiles" in (tmp_path / "work/data/nitrogen.dropped.csv").read_text()
    record = load_artifact(tmp_path / "artifact").manifest.provenance["data"]["nitrogen"]
    assert record["words"] == {"has_n": ["Active", "inactive"]}
    (piece,) = (tmp_path / "work/pieces/finetuned").glob("nitrogen*.safetensors")
    with safe_open(piece, "pt") as stream:
        assert json.loads(stream.metadata()["record"])["data"] == record


def test_a_second_task_that_cannot_be_trained_stops_the_first(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [(smiles, f"{k}.5") for k, smiles in enumerate(molecules())]
    write_csv(tmp_path / "data/other.csv", "mol", ("y",), numbers)
    assert command(tmp_path, "finetune") == 1
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("gmerging: ")
    assert "other.csv, column 'y': line 2: got '0.5', expected 0, 1 or a missing value" in error
    assert not list((tmp_path / "work").rglob("*.resume.pt"))
    assert not pieces(tmp_path, "finetuned")


def test_calibration_changes_probabilities_and_no_ranking(
    released: Path, pico: MoleculeConfig
) -> None:
    """The artifact's scores equal those evaluated before its heads were calibrated."""
    run = Run(pico, 0, released / "data", released / "work", torch.device("cpu"))
    artifact = load_artifact(released / "artifact")
    for task in pico.tasks:
        scores = evaluate(run, unified_forward(run, artifact.model, task), task)
        own = artifact.manifest.metrics["gmerging_own"]["roc_auc"][task]
        assert scores["test"]["roc_auc"] == own
    head = dict(zip(artifact.model.tasks, artifact.model.heads, strict=True))["nitrogen"]
    assert not torch.equal(head.weight, head_of(run, "nitrogen"))  # type: ignore[arg-type]


def test_second_release_makes_nothing_anew(released: Path) -> None:
    before = pieces(released, "")
    assert len(before) == 2 + 2 + 2  # fine-tuned, merged by two methods, adapters
    assert command(released, "release", "--output", str(released / "again")) == 0
    assert pieces(released, "") == before
    for name in ("backbone", "tasks/nitrogen", "tasks/other"):
        first, second = (
            load_file(released / folder / f"{name}.safetensors") for folder in ("artifact", "again")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert not list((released / "work").rglob("*.resume.pt"))


def test_another_setting_makes_only_what_depends_on_it(released: Path) -> None:
    finetuned_before, adapters_before = pieces(released, "finetuned"), pieces(released, "adapters")
    config = released / "pico.yaml"
    config.write_text(config.read_text().replace("other:\n    epochs: 2", "other:\n    epochs: 1"))
    assert "epochs: 1" in config.read_text()
    assert command(released, "train-adapters") == 0
    assert pieces(released, "finetuned") == finetuned_before
    adapters = pieces(released, "adapters")
    assert adapters_before.items() <= adapters.items()
    (made,) = adapters.keys() - adapters_before.keys()
    assert made.startswith("other-seed0-")


def test_other_data_makes_other_models(pico_run: Run, tmp_path: Path) -> None:
    first = head_of(pico_run, "nitrogen")
    write_csv(
        tmp_path / "data/nitrogen.csv",
        "smiles",
        ("has_n",),
        list(zip(molecules(), tail_has("O"), strict=True)),
    )
    again = Run(pico_run.config, 0, pico_run.data, pico_run.work, pico_run.device)
    assert not torch.equal(head_of(again, "nitrogen"), first)


def test_processes_give_the_same_as_one(pico_config_file: Path, tmp_path: Path) -> None:
    assert command(tmp_path, "finetune") == 0
    folder = tmp_path / "work/pieces/finetuned"
    alone = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    shutil.rmtree(tmp_path / "work")
    assert command(tmp_path, "finetune", "--processes", "2") == 0
    assert len(alone) == 2
    for name, tensors in alone.items():
        again = load_file(folder / name)
        assert all(torch.equal(again[key], value) for key, value in tensors.items())


def test_finetuned_baseline_equals_the_classifier(pico_run: Run) -> None:
    """The baselines run through the unified model's code; with stored statistics that is the
    fine-tuned network itself."""
    found, dataset = trained_model(pico_run, teacher(pico_run, "other")), pico_run.dataset("other")
    head = torch.nn.Linear(pico_config().hidden_dim, 2)
    head.load_state_dict(found.heads["other"])
    batch = dataset.graphs.select(dataset.split.test)
    expected = head(mean_readout(finetuned_network(pico_run, "other")(batch), batch))
    model = finetuned_model(pico_run, "other")
    torch.testing.assert_close(
        model(batch, ["other"], "own").logits["other"], expected, rtol=1e-4, atol=1e-5
    )
    forward = unified_forward(pico_run, model, "other", kind="batch")
    assert 0 <= evaluate(pico_run, forward, "other", "batch")["test"]["roc_auc"] <= 1


def test_a_merger_with_versions_by_task_is_adapted_version_by_version(pico_run: Run) -> None:
    run = pico_run.with_changes(merge={"method": "emr"})
    versions = [
        merged_network(run, task).state_dict()["gnns.0.linear.weight"] for task in run.config.tasks
    ]
    assert not torch.equal(*versions)
    for task, version in zip(run.config.tasks, versions, strict=True):
        assert torch.equal(
            adapted_model(run, task).backbone.state_dict()["gnns.0.linear.weight"], version
        )


def test_versions_by_task_cannot_be_served(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pico_config_file.write_text(
        pico_config_file.read_text().replace(
            "method: task_arithmetic\n  options:\n    scaling: 0.4", "method: emr"
        )
    )
    assert command(tmp_path, "release", "--output", str(tmp_path / "artifact")) == 1
    assert (
        "got merge method 'emr', which gives each task its own backbone" in capsys.readouterr().err
    )
    assert not pieces(tmp_path, "adapters")


def test_errors_are_one_sentence_and_exit_status_one(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        pico_run.initial_state()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(
        name in said
        for name in (
            "pretrain",
            "finetune",
            "merge",
            "train-adapters",
            "compare",
            "ablate",
            "figures",
            "release",
            "inspect",
        )
    )
    assert all(name in said for name in ("add-task", "remove-task"))


def test_errors_of_files_and_numbers_are_one_sentence(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").write_text("a file")
    assert command(tmp_path, "finetune") == 1
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("gmerging: [Errno 20] Not a directory: ")
    (tmp_path / "work").unlink()
    for seed in ("-1", str(2**31)):
        assert command(tmp_path, "finetune", "--seed", seed) == 1
        assert f"--seed: got {seed}, expected 0 to" in capsys.readouterr().err
    content = yaml.safe_load(pico_config_file.read_text())
    content["finetune"]["learning_rate"] = 1e30
    pico_config_file.write_text(yaml.safe_dump(content))
    assert command(tmp_path, "finetune") == 1
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("gmerging: finetuned/nitrogen: ")
    assert error.endswith("a smaller `learning_rate` may help")


def test_a_process_that_died_is_one_sentence(
    pico_config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A reading process is killed, as by the kernel when memory runs out."""
    monkeypatch.setattr("merging.data.molecule_dataset._parse_one", _die)
    assert command(tmp_path, "finetune") == 1
    assert "gmerging: a process died or got no memory" in capsys.readouterr().err


def _die(smiles: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMERGING_DATA", "")
    monkeypatch.setenv("GMERGING_WORK", "")
    arguments = make_parser().parse_args(["finetune"])
    assert (arguments.data, arguments.work) == (Path("../shared/data"), Path("work"))


def test_a_cell_of_a_table_stays_in_its_cell() -> None:
    table = markdown_table(["a", "b"], [["x|y", "z\nw"]])
    assert table.split("\n") == ["| a | b |", "|---|---|", "| x\\|y | z w |"]
