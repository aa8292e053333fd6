"""Adding a task to a finished artifact, and taking one out."""

import gzip
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from merging.cli import main
from merging.extension import readable_graphs, remove_tasks
from models.artifact import load_artifact, make_manifest, save_artifact
from models.errors import ConfigError, DataError
from models.graph import GraphBatch
from models.router import RouterConfig
from models.screening import is_screened
from models.task import TaskInfo
from tests.conftest import pico_config, random_backbone, random_experts
from tests.merging.conftest import molecules, tail_has, write_csv
from tests.merging.test_pipeline import command


@pytest.fixture
def extended(pico_config_file: Path, tmp_path: Path) -> Path:
    """An artifact of two tasks in `artifact`, and the same with a third in `extended`."""
    assert command(tmp_path, "release", "--output", str(tmp_path / "artifact")) == 0
    write_csv(tmp_path / "data/carbonyl.csv", "smiles", ("has_co",), list(zip(molecules(), tail_has("C(=O)"), strict=True)))
    content = yaml.safe_load(pico_config_file.read_text())
    content |= {"tasks": ["carbonyl"], "datasets": {"carbonyl": {"file": "carbonyl.csv", "about": "has a carbonyl"}}, "alignment_by_task": {}}
    content |= {"release": {"name": "pico", "version": "1.3.0"}, "compare": {}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(content))
    assert add(tmp_path, "artifact", "extended") == 0
    return tmp_path


def add(tmp_path: Path, artifact: str, output: str) -> int:
    folders = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work"), "--device", "cpu", "--threads", "1"]
    config = ["--config", str(tmp_path / "more.yaml"), "--artifact", str(tmp_path / artifact), "--output", str(tmp_path / output)]
    return main(["add-task", *config, *folders])


def test_old_answers_stay_to_the_last_bit_and_the_new_task_answers(extended: Path, molecules: GraphBatch) -> None:
    old, new = load_artifact(extended / "artifact"), load_artifact(extended / "extended")
    assert list(new.manifest.tasks) == ["nitrogen", "other", "carbonyl"]
    assert new.manifest.version == "1.3.0"
    for name, sha256 in old.manifest.files.items():
        if name != "README.md":
            assert new.manifest.files[name] == sha256
    before, after = (each.model(molecules, ["nitrogen", "other"], "own") for each in (old, new))
    assert all(torch.equal(before.logits[task], after.logits[task]) for task in before.logits)
    assert new.model(molecules, ["carbonyl"], "moe").probabilities["carbonyl"].shape == (molecules.num_graphs, 1)
    gains = new.manifest.metrics["added"]["carbonyl"]
    assert 0 <= gains["with_adapters"] <= 1
    assert "| carbonyl |" in (extended / "extended/README.md").read_text()
    assert new.manifest.provenance["added"][0]["to"] == old.digest
    assert new.manifest.provenance["added"][0]["data"]["carbonyl"]["labels"] == ["has_co"]
    card = (extended / "extended/README.md").read_text()
    assert "| carbonyl | carbonyl.csv | 80 | 0 | scaffold |" in card


def test_adding_and_removing_gives_back_the_answers(extended: Path, molecules: GraphBatch) -> None:
    folders = ["--artifact", str(extended / "extended"), "--output", str(extended / "back")]
    assert main(["remove-task", "--tasks", "carbonyl", *folders]) == 0
    old, back = load_artifact(extended / "artifact"), load_artifact(extended / "back")
    assert list(back.manifest.tasks) == ["nitrogen", "other"]
    before, after = (each.model(molecules, None, "moe") for each in (old, back))
    assert all(torch.equal(before.logits[task], after.logits[task]) for task in before.logits)
    assert not (extended / "back/tasks/carbonyl.safetensors").exists()


def test_what_does_not_fit_is_refused(extended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(extended, "extended", "again") == 1
    assert "got carbonyl, which the artifact has, expected new ones" in capsys.readouterr().err
    save_file(random_backbone(pico_config(), seed=9).state_dict(), extended / "weights.safetensors")
    assert add(extended, "artifact", "again") == 1
    assert "pretrained.weights, sha256" in capsys.readouterr().err
    folders = ["--artifact", str(extended / "artifact"), "--output", str(extended / "again")]
    assert main(["remove-task", "--tasks", "muv", *folders]) == 1
    assert "got muv, expected names among those of the artifact, nitrogen, other" in capsys.readouterr().err
    assert main(["remove-task", "--tasks", "nitrogen", "other", *folders]) == 1
    assert "expected at least one to stay" in capsys.readouterr().err
    assert not (extended / "again").exists()


def test_a_removed_task_is_nobodys_nearest(tmp_path: Path) -> None:
    experts = random_experts(pico_config())
    nearest = {task: tuple(other for other in experts if other != task) for task in experts}
    manifest = make_manifest(
        "pico", "1", pico_config(), 4, RouterConfig(), {task: TaskInfo(labels=each.label_names) for task, each in experts.items()}
    )
    save_artifact(tmp_path / "whole", manifest.model_copy(update={"nearest": nearest}), random_backbone(pico_config()), experts)
    assert remove_tasks(tmp_path / "whole", ["beta"], tmp_path / "less").nearest == {"alpha": ("gamma",), "gamma": ("alpha",)}
    assert load_artifact(tmp_path / "less").manifest.nearest == {"alpha": ("gamma",), "gamma": ("alpha",)}


def test_screened_artifact_names_the_nearest_and_is_checked(extended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (extended / "molecules.smi").write_text("\n".join(["CCO", "no molecule", "", "c1ccccc1C(=O)O", "CCN"]))
    options = ["--artifact", str(extended / "extended"), "--molecules", str(extended / "molecules.smi"), "--output", str(extended / "screened")]
    assert main(["screen", "--candidates", "1", *options]) == 0
    assert "screened with 3 molecules, 1 could not be read" in capsys.readouterr().out
    manifest = load_artifact(extended / "screened").manifest
    assert manifest.router.candidates == 1
    assert {task: len(others) for task, others in manifest.nearest.items()} == {"nitrogen": 1, "other": 1, "carbonyl": 1}
    assert is_screened(manifest)
    assert main(["screen", "--candidates", "2", *options]) == 1
    assert "--candidates: got 2, expected 1 to 1" in capsys.readouterr().err
    (extended / "molecules.smi").write_text("no molecule")
    assert main(["screen", "--candidates", "1", *options]) == 1
    assert "got no readable SMILES" in capsys.readouterr().err


NAMED = "CCO\tmol0\nc1ccccc1\tmol1\nC1CC\tmol2\nCCN\tmol3\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.smi", NAMED),
        ("a.smi", NAMED.replace("\t", "  two words ")),
        ("a.smi", "SMILES Name\n" + NAMED),
        ("a.txt", "smiles,name\n" + NAMED.replace("\t", ",")),
        ("a.csv", "structure;name\n" + NAMED.replace("\t", ";")),
        ("a.smi.gz", gzip.compress(NAMED.encode())),
        ("a.smi", ("\ufeff" + NAMED).encode()),
        ("a.smi", NAMED.encode("utf-16")),
        ("a.smi", NAMED.replace("mol", "mol\u00e9").encode("cp1252")),
    ],
    ids=["names", "spaces", "header", "table", "csv", "gzip", "bom", "utf-16", "cp1252"],
)
def test_molecules_to_screen_with_may_have_names(
    name: str,
    content: str | bytes,
    tmp_path: Path,
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    graphs, unreadable = readable_graphs(tmp_path / name)
    assert [graph.num_nodes for graph in graphs] == [3, 6, 3]
    assert unreadable == 1


def test_molecules_to_screen_with_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got no file .*absent\.smi, expected molecules"):
        readable_graphs(tmp_path / "absent.smi")
    (tmp_path / "empty.smi").write_text("")
    with pytest.raises(ConfigError, match=r"got no readable SMILES in .*empty"):
        readable_graphs(tmp_path / "empty.smi")
    (tmp_path / "book.smi").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match="expected a text file"):
        readable_graphs(tmp_path / "book.smi")
