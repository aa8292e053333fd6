"""A release by joint alignment: one shared stream in the artifact, from a configuration to what is
served, and its later changes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gmerging.cli.main import main
from merging.run.config import load_config
from merging.run.one_pass import one_pass_stream, one_pass_teacher
from merging.run.run import Run
from models.artifact import load_artifact, load_components
from models.manifest import STREAMS_VERSION
from models.task import answers
from tests.merging.conftest import molecules, run_options, tail_has, write_csv, write_pico
from tests.merging.run.test_stages import command


def edit(folder: Path, **sections: Any) -> None:
    file = folder / "pico.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **sections}))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with `method: one-pass`; tests write into folders of their own."""
    folder = tmp_path_factory.mktemp("one_pass")
    write_pico(folder)
    edit(folder, method="one-pass")
    assert command(folder, "release", "--output", str(folder / "artifact")) == 0
    return folder


def run_in(folder: Path) -> Run:
    config = load_config(folder / "pico.yaml")
    return Run(config, 0, folder / "data", folder / "work", torch.device("cpu"))


def test_artifact_answers_as_the_trained_network_up_to_the_temperature(released: Path) -> None:
    artifact, run = load_artifact(released / "artifact"), run_in(released)
    manifest = artifact.manifest
    assert manifest.format_version == STREAMS_VERSION
    assert manifest.rank == 0
    assert manifest.streams["one-pass"].tasks == ("nitrogen", "other")
    assert manifest.streams["one-pass"].graph_rank == 4
    graphs = run.dataset("other").graphs
    batch = graphs.select(torch.arange(len(graphs)))
    stream, served = one_pass_stream(run), artifact.model(batch, None, "own").logits
    for task, found in stream(batch).outputs.items():
        ratio = served[task] / found  # a temperature per label
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=1e-4)
        assert bool((ratio > 0).all())


def test_no_adapter_is_trained_and_scores_are_in_manifest_and_card(released: Path) -> None:
    assert not [*(released / "work/pieces").glob("adapters*")]
    manifest = load_components(released / "artifact").manifest
    names = {"one_pass", "one_pass_teachers", "one_pass_start"}
    assert {*manifest.metrics["recovery"]} == names
    assert names <= {*manifest.metrics}
    assert {*manifest.metrics["calibration"]} == {"nitrogen", "other"}
    own, card = manifest.metrics["one_pass"], (released / "artifact/README.md").read_text()
    assert f"{100 * own['average']:.1f}" in card
    assert "The stream `one-pass` is one pass of the network for nitrogen, other." in card
    assert "Merged by joint alignment: without labels" in card
    assert "start: merged). Teachers: fine-tuned models." in card


def test_inspect_counts_the_stream_once(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(released / "artifact")]) == 0
    said = capsys.readouterr().out
    assert "2 experts, 256 parameters" in said
    assert "stream one-pass: 2 tasks, no node adapters, graph adapters of rank 4" in said
    backbone = sum(
        value.numel() for value in load_components(released / "artifact").backbone.parameters()
    )
    heads, statistics = 3 * 17, 2 * 3 * 16
    assert f"weights of single tasks {heads + statistics}" in said
    assert f"all {backbone + 256 + heads + statistics:,}, " in said
    score = load_components(released / "artifact").manifest.metrics["one_pass"]["roc_auc"]["other"]
    assert f"ROC-AUC {score:.3f}" in said


def test_a_released_stream_teaches_the_next_one(released: Path, tmp_path: Path) -> None:
    """The artifact as teacher: its own answers, and nothing is fine-tuned for it."""
    write_pico(tmp_path)
    taught = {"artifact": str(released / "artifact")}
    section = {"rank": 4, "epochs": 1, "batch_size": 16, "teachers": taught}
    edit(tmp_path, method="one-pass", one_pass=section)
    output = tmp_path / "artifact"
    assert command(tmp_path, "release", "--output", str(output)) == 0
    assert not [*(tmp_path / "work/pieces").glob("finetuned*")]
    run = run_in(tmp_path)
    graphs = run.dataset("other").graphs
    batch = graphs.select(torch.arange(len(graphs)))
    served = load_artifact(released / "artifact").model(batch, ["other"]).probabilities["other"]
    found = answers(one_pass_teacher(run, "other").outputs(batch), "multilabel")
    torch.testing.assert_close(found, served, rtol=1e-4, atol=1e-5)
    card = (output / "README.md").read_text()
    assert f"Teachers: the models of `{released / 'artifact'}`." in card


def test_tasks_may_have_teachers_of_their_own(released: Path, tmp_path: Path) -> None:
    """One of an artifact, one the mean of two fine-tuned models; the start is a state dict."""
    write_pico(tmp_path)
    artifact = released / "artifact"
    by_task = {"nitrogen": {"artifact": str(artifact)}}
    section = {"rank": 4, "epochs": 1, "batch_size": 16, "teachers": {"seeds": [0, 1]}}
    start = str(artifact / "backbone.safetensors")
    edit(
        tmp_path,
        method="one-pass",
        one_pass={**section, "teachers_by_task": by_task, "start": start},
    )
    assert command(tmp_path, "release", "--output", str(tmp_path / "artifact")) == 0
    made = {path.name.split("-seed")[0] for path in (tmp_path / "work/pieces/finetuned").glob("*")}
    assert made == {"other"}
    card = (tmp_path / "artifact/README.md").read_text()
    expected = f"the models of `{artifact}` (nitrogen); means of 2 fine-tuned models (other)."
    assert f"Teachers: {expected}" in card


def add_oxygen(released: Path, artifact: Path, folder: Path) -> int:
    """Add the task `oxygen` to an artifact; the new one is in `folder / "artifact"`."""
    write_pico(folder)
    write_csv(
        folder / "data/oxygen.csv",
        "smiles",
        ("has_o",),
        list(zip(molecules(), tail_has("O"), strict=True)),
    )
    datasets = {"oxygen": {"file": "oxygen.csv"}}
    more = {"tasks": ["oxygen"], "datasets": datasets, "alignment_by_task": {}, "compare": {}}
    weights = yaml.safe_load((released / "pico.yaml").read_text())["pretrained"]
    release = {"name": "pico", "version": "1.3.0"}
    edit(folder, **more, pretrained=weights, release=release)
    files = ["--artifact", str(artifact), "--output", str(folder / "artifact")]
    return command(folder, "add-task", *files)


def test_a_task_added_later_has_a_stream_of_its_own(released: Path, tmp_path: Path) -> None:
    assert add_oxygen(released, released / "artifact", tmp_path) == 0
    artifact = load_artifact(tmp_path / "artifact")
    manifest = artifact.manifest
    assert (manifest.rank, manifest.streams["one-pass"].tasks) == (4, ("nitrogen", "other"))
    graphs = run_in(tmp_path).dataset("oxygen").graphs
    batch = graphs.select(torch.arange(10))
    before = load_artifact(released / "artifact").model(batch, ["other"]).logits["other"]
    after = artifact.model(batch, ["other", "oxygen"]).logits
    torch.testing.assert_close(after["other"], before)
    assert after["oxygen"].shape == (10, 1)


def test_a_removed_task_leaves_the_stream(released: Path, tmp_path: Path) -> None:
    files = ["--artifact", str(released / "artifact"), "--output", str(tmp_path / "artifact")]
    assert main(["remove-task", "--tasks", "other", *files]) == 0
    manifest = load_components(tmp_path / "artifact").manifest
    assert manifest.streams["one-pass"].tasks == ("nitrogen",)
    files = ["--artifact", str(tmp_path / "artifact"), "--output", str(tmp_path / "artifact")]
    assert main(["remove-task", "--tasks", "nitrogen", *files]) == 1


def test_a_forest_beside_the_shared_stream(released: Path, tmp_path: Path) -> None:
    """It changes no file of the network, and stays or goes with its task."""
    settings = {"kinds": ["bagged"], "bagged": {"trees": 4, "min_leaf": 1}}
    content = yaml.safe_load((released / "pico.yaml").read_text()) | {"forest": settings}
    (tmp_path / "forests.yaml").write_text(yaml.safe_dump(content))
    files = ["--artifact", str(released / "artifact"), "--output", str(tmp_path / "with")]
    config = ["--config", str(tmp_path / "forests.yaml"), *run_options(released)]
    assert main(["add-forests", *config, *files, "--tasks", "other"]) == 0
    old, new = load_artifact(released / "artifact"), load_artifact(tmp_path / "with")
    assert (new.manifest.format_version, new.manifest.streams) == (2, old.manifest.streams)
    weights = {name: sha for name, sha in old.manifest.files.items() if name != "README.md"}
    assert weights.items() <= new.manifest.files.items()
    assert list(new.forests) == ["other"]
    batch = run_in(released).dataset("other").graphs.select(torch.arange(10))
    assert torch.equal(new.model(batch).logits["other"], old.model(batch).logits["other"])
    measured = new.manifest.metrics["forests"]["other"]["test"]
    assert measured["own"] == pytest.approx(old.manifest.metrics["test"]["other"]["roc_auc"])

    more = tmp_path / "more"
    more.mkdir()
    assert add_oxygen(released, tmp_path / "with", more) == 0
    added = load_artifact(more / "artifact")
    assert (list(added.manifest.tasks), list(added.forests)) == (
        ["nitrogen", "other", "oxygen"],
        ["other"],
    )
    for task, stays in (("nitrogen", True), ("other", False)):
        files = ["--artifact", str(tmp_path / "with"), "--output", str(tmp_path / task)]
        assert main(["remove-task", "--tasks", task, *files]) == 0
        less = load_artifact(tmp_path / task)
        assert task not in less.manifest.streams["one-pass"].tasks
        assert list(less.forests) == (["other"] if stays else [])
        assert less.manifest.input.has_fingerprint == stays


def test_a_merger_of_one_network_per_task_is_refused_before_the_alignment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pico(tmp_path)
    edit(tmp_path, method="one-pass", merge={"method": "emr"})
    assert command(tmp_path, "release", "--output", str(tmp_path / "artifact")) == 1
    assert "'emr', which gives each task its own backbone" in capsys.readouterr().err
    assert not [*(tmp_path / "work/pieces").glob("one-pass*")]
    section = {"rank": 4, "epochs": 1, "batch_size": 16, "start": "pretrained"}
    edit(tmp_path, one_pass=section)
    assert command(tmp_path, "release", "--output", str(tmp_path / "artifact")) == 0
    manifest = json.loads((tmp_path / "artifact/manifest.json").read_text())
    assert manifest["provenance"]["config"]["one_pass"]["start"] == "pretrained"


def test_a_task_named_as_the_stream_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pico(tmp_path)
    named = {"tasks": ["One-Pass"], "datasets": {"One-Pass": {"file": "nitrogen.csv"}}}
    edit(tmp_path, method="one-pass", **named, alignment_by_task={}, compare={})
    options = ["--output", str(tmp_path / "artifact"), *run_options(tmp_path)]
    assert main(["release", "--config", str(tmp_path / "pico.yaml"), *options]) == 1
    assert "one-pass" in capsys.readouterr().err.casefold()
