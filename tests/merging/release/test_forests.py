"""Forests beside the network of a finished artifact, from the command to the served answer."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from gmerging.cli.main import main
from merging.run.config import load_config
from merging.run.forests import default_experts, expert_outputs, forest, trained_forest
from merging.run.run import Run
from models.artifact import load_artifact
from models.errors import ConfigError
from service.core.artifact_engine import load_engine
from service.core.engine import PredictionQuery
from service.core.local import predict
from service.settings import Settings
from tests.merging.conftest import molecules as tail_molecules
from tests.merging.conftest import run_options, write_csv, write_pico
from tests.merging.run.test_stages import command

SETTINGS = {"kinds": ["bagged"], "bagged": {"trees": 8, "min_leaf": 1}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in `artifact`, the same with a forest for `other` in `with`, and a regression
    that the configuration `more.yaml` describes."""
    folder = tmp_path_factory.mktemp("made")
    content = yaml.safe_load(write_pico(folder).read_text())
    content["forest"] = SETTINGS
    (folder / "pico.yaml").write_text(yaml.safe_dump(content))
    assert command(folder, "release", "--output", str(folder / "artifact")) == 0
    numbers = [(smiles, str(len(smiles))) for smiles in tail_molecules()]
    write_csv(folder / "data/length.csv", "smiles", ("length",), numbers)
    classes = [(smiles, "abc"[k % 3]) for k, smiles in enumerate(tail_molecules())]
    write_csv(folder / "data/class.csv", "smiles", ("class",), classes)
    (folder / "results").mkdir()
    assert add(folder, "pico.yaml", "artifact", "with", "--tasks", "other") == 0
    return folder


def add(folder: Path, config: str, artifact: str, output: str, *options: str) -> int:
    files = ["--artifact", str(folder / artifact), "--output", str(folder / output)]
    given = ["--config", str(folder / config), *files, *run_options(folder), *options]
    return main(["add-forests", *given])


def test_the_network_stays_to_the_last_bit(made: Path) -> None:
    old, new = load_artifact(made / "artifact"), load_artifact(made / "with")
    assert list(new.forests) == list(new.manifest.forests) == ["other"]
    for name, sha256 in old.manifest.files.items():
        if name != "README.md":
            assert new.manifest.files[name] == sha256
    info, metrics = new.manifest.forests["other"], new.manifest.metrics["forests"]["other"]
    assert info.library.startswith("scikit-learn")
    assert metrics.keys() == {"valid", "test", "gain", "gain_error", "calibration"}
    assert metrics["gain"] == pytest.approx(
        metrics["test"][info.default] - metrics["test"]["own"], abs=1e-4
    )
    assert new.manifest.provenance["forests"][0]["to"] == old.digest
    assert new.manifest.provenance["forests"][0]["tasks"] == ["other"]
    card = (made / "with/README.md").read_text()
    assert "## Forests" in card
    assert "| other | scikit-learn" in card


def test_the_trees_are_those_of_the_stage_with_temperatures(made: Path) -> None:
    run = pico_run(made)
    trained, served = (
        trained_forest(run.result(forest(run, "other"))),
        load_artifact(made / "with").forests["other"],
    )
    for name in trained.dtypes:
        if name not in ("scale", "both_scale"):
            assert np.array_equal(getattr(trained, name), getattr(served, name)), name
    assert (served.scale > 0).all()
    assert not np.array_equal(served.scale, np.ones(2))
    assert not np.array_equal(served.scale, served.both_scale)


def pico_run(folder: Path, config: str = "pico.yaml") -> Run:
    loaded = load_config(folder / config)
    return Run(loaded, 0, folder / "data", folder / "work", torch.device("cpu"))


def test_forests_come_and_go_with_their_tasks(made: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    assert add(copy, "pico.yaml", "with", "all", "--tasks", "nitrogen") == 0
    assert list(load_artifact(copy / "all").forests) == ["nitrogen", "other"]
    assert len(load_artifact(copy / "all").manifest.provenance["forests"]) == 2
    files = ["--artifact", str(copy / "all"), "--output", str(copy / "less"), "--replace"]
    assert main(["remove-task", "--tasks", "nitrogen", *files]) == 0
    less = load_artifact(copy / "less")
    assert list(less.forests) == list(less.manifest.forests) == ["other"]
    before = load_artifact(copy / "with").forests["other"]
    rows = np.ones((2, 2094), dtype=np.float32)
    assert np.array_equal(less.forests["other"].outputs(rows), before.outputs(rows))


def test_a_regression_has_a_forest_in_its_units(made: Path) -> None:
    content = yaml.safe_load((made / "pico.yaml").read_text())
    spec = {"file": "length.csv", "target": "regression", "units": {"length": "characters"}}
    content |= {"tasks": ["length"], "datasets": {"length": spec}, "compare": {}}
    content |= {"alignment_by_task": {}, "release": {"name": "pico", "version": "2.0.0"}}
    (made / "length.yaml").write_text(yaml.safe_dump(content))
    run = pico_run(made, "length.yaml")
    result, data = run.result(forest(run, "length")), run.dataset("length")
    labels = data.labels[data.split.test]
    outputs = result.tensors["outputs/test"]
    assert outputs.mean() == pytest.approx(float(labels.mean()), abs=3)
    own = labels.clone()  # a perfect network: the forest makes the mean worse
    valid = expert_outputs(own, outputs)
    assert default_experts(valid, labels, data) == "own"
    noise = labels + 100
    assert default_experts(expert_outputs(noise, labels), labels, data) == "forest"
    symmetric = expert_outputs(labels + 5, labels - 5)
    assert default_experts(symmetric, labels, data) == "both"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forest": SETTINGS | {"kind": "bagged"}}, "forest.kind: got an unknown key"),
        ({"forest": {"inputs": [["maccs"]]}}, "forest.inputs"),
        ({"forest_by_task": {"nothing": {}}}, "got names ['nothing']"),
        ({"release": None}, "release: got none"),
    ],
)
def test_wrong_settings_are_refused(
    made: Path, change: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((made / "pico.yaml").read_text()) | change
    (made / "wrong.yaml").write_text(yaml.safe_dump(content))
    assert add(made, "wrong.yaml", "artifact", "new") == 1
    assert message in capsys.readouterr().err


def test_tasks_that_the_artifact_does_not_have_are_refused(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((made / "pico.yaml").read_text())
    content |= {"compare": {}, "alignment_by_task": {}}
    wrong = {
        "class": ({"file": "class.csv", "target": "multiclass"}, "got class, expected tasks of"),
        "nitrogen": ({"file": "length.csv", "target": "regression"}, "got labels ['length']"),
    }
    for task, (spec, message) in wrong.items():
        one = content | {"tasks": [task], "datasets": {task: spec}}
        (made / "wrong.yaml").write_text(yaml.safe_dump(one))
        assert add(made, "wrong.yaml", "artifact", "new") == 1
        assert message in capsys.readouterr().err
    one = content | {"tasks": ["class"], "datasets": {"class": wrong["class"][0]}}
    (made / "wrong.yaml").write_text(yaml.safe_dump(one))
    run = pico_run(made, "wrong.yaml")
    with pytest.raises(ConfigError, match="got a task of target 'multiclass'"):
        forest(run, "class")


def test_settings_of_a_task_complete_the_common_ones(made: Path) -> None:
    content = yaml.safe_load((made / "pico.yaml").read_text())
    content["forest_by_task"] = {"other": {"inputs": [["descriptors"]]}}
    (made / "by_task.yaml").write_text(yaml.safe_dump(content))
    run = pico_run(made, "by_task.yaml")
    assert run.config.forest_for("other").kinds == ("bagged",)
    assert run.config.forest_for("other").inputs == (("descriptors",),)
    keys = {forest(some, "other").key for some in (run, pico_run(made), replace(run, seed=1))}
    assert len(keys) == 3


def test_the_study_measures_every_seed_and_writes_its_results(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = made / "results/forests.json"
    options = ["--config", str(made / "pico.yaml"), *run_options(made)]
    files = ["--artifacts", str(made / "artifact"), str(made / "with"), "--results", str(results)]
    assert main(["study", "forests", *options, *files, "--seeds", "0", "1"]) == 0
    content = json.loads(results.read_text())
    runs = content["tasks"]["other"]["runs"]
    assert [(run["artifact"].rpartition("/")[2], run["seed"]) for run in runs] == [
        ("artifact", 0),
        ("with", 0),
        ("artifact", 1),
        ("with", 1),
    ]
    # forests change no network, so that both artifacts answer alike
    assert runs[0]["test"] == runs[1]["test"]
    gain = content["tasks"]["other"]["gain"]["both"][0]
    mean = np.mean([run["test"]["both"] - run["test"]["own"] for run in runs])
    assert gain == pytest.approx(mean, abs=1e-4)
    table = capsys.readouterr().out
    assert "| nitrogen | bagged: " in table
    assert table.count("+-") == 6
    wrong = made / "other.yaml"
    content = yaml.safe_load((made / "pico.yaml").read_text())
    spec = {"file": "length.csv", "target": "regression"}
    content |= {"tasks": ["nitrogen"], "datasets": {"nitrogen": spec}, "compare": {}}
    wrong.write_text(yaml.safe_dump(content | {"alignment_by_task": {}}))
    options = ["--config", str(wrong), *run_options(made)]
    assert main(["study", "forests", *options, *files]) == 1
    assert "got labels ['has_n'] of nitrogen, expected those of" in capsys.readouterr().err


def test_answers_for_drugs_are_of_the_default_experts_and_leave_with_a_new_forest(
    made: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    (copy / "drugs.smi").write_text("".join(f"{smiles}\n" for smiles in tail_molecules()))
    about = ["--source", "by hand", "--date", "2026-01-01", "--terms", "free"]
    files = ["--artifact", str(copy / "with"), "--output", str(copy / "compared")]
    listed = ["--config", str(copy / "pico.yaml"), "--molecules", str(copy / "drugs.smi")]
    assert main(["add-drugs", *listed, *about, *files, *run_options(copy)]) == 0
    compared = load_artifact(copy / "compared")
    assert compared.manifest.drugs is not None
    assert compared.drugs is not None
    default = compared.manifest.forests["other"].default
    assert compared.manifest.drugs.experts == {"nitrogen": "own", "other": default}
    engine = load_engine(copy / "compared", Settings(device="cpu"))
    query = PredictionQuery.of("pico", engine, ["other"], "own")
    answers = predict(query, Settings(device="cpu"), tail_molecules())
    values = np.stack([answer.tasks["other"].values for answer in answers])
    table = compared.drugs.quantiles["other"]
    np.testing.assert_allclose(table[:, [0, -1]].T, [values.min(0), values.max(0)], atol=1e-5)
    assert add(copy, "pico.yaml", "compared", "all", "--tasks", "other") == 0
    again = load_artifact(copy / "all")
    assert again.manifest.drugs is not None
    assert again.drugs is not None
    assert list(again.drugs.quantiles) == list(again.manifest.drugs.experts) == ["nitrogen"]
