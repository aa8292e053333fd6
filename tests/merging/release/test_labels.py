"""Meanings of labels, from the configuration to the artifact: released with it, or described later;
the weights stay as they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from gmerging.cli.main import main
from merging.run.config import load_config
from merging.run.one_pass import teacher_source
from merging.run.run import Run
from models.artifact import load_artifact, read_manifest
from models.meaning import TaskMeaning
from tests.merging.conftest import run_options, write_pico
from tests.merging.run.test_stages import command

MEANINGS: dict[str, Any] = {
    "nitrogen": {
        "source": "made in a test",
        "terms": "CC0",
        "labels": {
            "has_n": {
                "name": "nitrogen",
                "measured": "Whether the tail has nitrogen.",
                "direction": "good",
                "one": "it has",
            }
        },
    }
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in `plain`; the same with the labels of one task described, in `described`."""
    folder = tmp_path_factory.mktemp("made")
    write_pico(folder)
    assert command(folder, "release", "--output", str(folder / "plain")) == 0
    configure(folder, meanings=MEANINGS, release={"name": "pico", "version": "1.3.0"})
    assert describe(folder, "described.yaml", "plain", "described") == 0
    return folder


def configure(folder: Path, name: str = "described.yaml", **changes: Any) -> None:
    content = yaml.safe_load((folder / "pico.yaml").read_text())
    (folder / name).write_text(yaml.safe_dump(content | changes))


def describe(folder: Path, config: str, artifact: str, output: str) -> int:
    files = ["--artifact", str(folder / artifact), "--output", str(folder / output)]
    return main(["describe-labels", "--config", str(folder / config), *files, *run_options(folder)])


def meaning_of(folder: Path, task: str = "nitrogen") -> TaskMeaning:
    meaning = read_manifest(folder)[0].tasks[task].meaning
    assert meaning is not None
    return meaning


def test_weights_stay_and_the_manifest_says_where_they_are_from(made: Path) -> None:
    (old, old_digest), (new, digest) = (read_manifest(made / n) for n in ("plain", "described"))
    for name, sha256 in old.files.items():
        assert name == "README.md" or new.files[name] == sha256
    assert (new.name, new.version) == ("pico", "1.3.0")
    record = new.provenance["meanings"]
    assert record["weights_of"] == new.weights_digest(digest) == old_digest
    assert old.weights_digest(old_digest) == old_digest
    assert record["tasks"] == ["nitrogen"]
    assert record["data_sha256"] == {"nitrogen": old.provenance["data_sha256"]["nitrogen"]}
    assert "1000 draws" in record["interval"]
    card = (made / "described/README.md").read_text()
    assert card.startswith("# pico 1.3.0\n")
    assert card.count("## Labels") == 1


def test_described_labels_are_measured_on_the_answers(made: Path) -> None:
    meaning = meaning_of(made / "described")
    (label,) = meaning.labels
    assert (meaning.counted, meaning.answered_by, label.name) == ("molecules", "own", "nitrogen")
    run = Run(load_config(made / "pico.yaml"), 0, made / "data", made / "work")
    data, model = run.dataset("nitrogen"), load_artifact(made / "described").model
    rows = data.split.test
    with torch.no_grad():
        predicted = model(data.graphs.select(rows), ["nitrogen"]).probabilities["nitrogen"]
    known = data.labels[:, 0]
    expected = roc_auc_score(known[rows], predicted[:, 0])
    assert label.scores[0].value == pytest.approx(expected, abs=1e-6)
    assert label.scores[0].low <= label.scores[0].value <= label.scores[0].high
    assert label.counts.total == len(known) == 80
    assert label.counts.test == len(rows)
    assert label.share_of_ones == pytest.approx(float(known.mean()))
    assert label.calibration_error is not None
    assert read_manifest(made / "described")[0].tasks["other"].meaning is None


def test_describing_again_keeps_the_origin_of_the_weights(made: Path) -> None:
    assert describe(made, "described.yaml", "described", "again") == 0
    assert meaning_of(made / "again") == meaning_of(made / "described")
    new, digest = read_manifest(made / "again")
    assert new.weights_digest(digest) == read_manifest(made / "plain")[1]
    assert (made / "again/README.md").read_text() == (made / "described/README.md").read_text()


def test_results_that_a_described_artifact_taught_keep_their_keys(made: Path) -> None:
    keys = []
    for artifact in ("plain", "described"):
        teachers = {"artifact": str(made / artifact)}
        configure(made, "taught.yaml", one_pass={"rank": 4, "teachers": teachers})
        run = Run(load_config(made / "taught.yaml"), 0, made / "data", made / "work")
        keys.append(teacher_source(run, "nitrogen").settings)
    assert keys[0] == keys[1] == (read_manifest(made / "plain")[1],)


def test_an_artifact_with_other_weights_stands_for_itself(made: Path) -> None:
    files = ["--artifact", str(made / "described"), "--output", str(made / "fewer")]
    assert main(["remove-task", "--tasks", "other", *files]) == 0
    manifest, digest = read_manifest(made / "fewer")
    assert manifest.weights_digest(digest) == digest
    assert manifest.provenance["meanings"]["tasks"] == ["nitrogen"]
    assert meaning_of(made / "fewer") == meaning_of(made / "described")


def test_a_release_describes_and_an_added_task_does_too(made: Path) -> None:
    configure(made, "pico-released.yaml", meanings=MEANINGS)
    options = ["--config", str(made / "pico-released.yaml"), *run_options(made)]
    assert main(["release", *options, "--output", str(made / "released")]) == 0
    assert meaning_of(made / "released") == meaning_of(made / "described")
    text = {
        "source": "made in a test",
        "terms": "CC0",
        "labels": {"long": MEANINGS["nitrogen"]["labels"]["has_n"]},
    }
    rows = (made / "data/nitrogen.csv").read_text().replace("has_n", "long")
    (made / "data/long.csv").write_text(rows)
    changes = {"tasks": ["long"], "datasets": {"long": {"file": "long.csv"}}}
    alone = {"alignment_by_task": {}, "compare": {}, "meanings": {"long": text}}
    configure(made, "added.yaml", **changes, **alone)
    files = ["--artifact", str(made / "released"), "--output", str(made / "with-long")]
    options = ["--config", str(made / "added.yaml"), *run_options(made)]
    assert main(["add-task", *options, *files]) == 0
    assert meaning_of(made / "with-long") == meaning_of(made / "released")
    assert meaning_of(made / "with-long", "long").labels[0].name == "nitrogen"


def test_forests_are_measured_where_they_answer(made: Path) -> None:
    forest = {"kinds": ["bagged"], "bagged": {"trees": 8, "min_leaf": 1}}
    configure(made, "forests.yaml", meanings=MEANINGS, forest=forest)
    files = ["--artifact", str(made / "plain"), "--output", str(made / "forests")]
    options = ["--config", str(made / "forests.yaml"), *run_options(made), "--tasks", "nitrogen"]
    assert main(["add-forests", *options, *files]) == 0
    manifest, _ = read_manifest(made / "forests")
    meaning, choice = meaning_of(made / "forests"), manifest.forests["nitrogen"].default
    assert meaning.answered_by == choice != "own"
    scores = manifest.metrics["forests"]["nitrogen"]["test"]
    assert meaning.labels[0].scores[0].value == pytest.approx(scores[choice], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "meanings: got none of the artifact's tasks"),
        ({"meanings": {"unheard": "tdc"}}, "got 'unheard', expected names among"),
        ({"meanings": {"nitrogen": "tdc"}}, "got no such task in 'tdc'"),
        ({"meanings": {"other": MEANINGS["nitrogen"]}}, "got no text about label 'has_o'"),
        ({"meanings": MEANINGS, "release": None}, "release: got none"),
        (
            {
                "meanings": MEANINGS,
                "tasks": ["nitrogen"],
                "datasets": {"nitrogen": {"file": "nitrogen.csv"}},
                "alignment_by_task": {},
                "compare": {},
            },
            "tasks: got none of the name 'other', expected those of the artifact",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    made: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(made, "wrong.yaml", **changes)
    assert describe(made, "wrong.yaml", "plain", "nowhere") != 0
    assert message in capsys.readouterr().err
    assert not (made / "nowhere").exists()


def test_another_kind_of_network_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--artifact", str(made / "plain"), "--output", str(made / "nowhere")]
    config = ["--config", "cora_label_split.yaml", *run_options(made)]
    assert main(["describe-labels", *config, *files]) != 0
    assert "kind 'pyg_gcn', expected one of the artifact's, 'gcn'" in capsys.readouterr().err


def test_other_data_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(made, "other.yaml", meanings=MEANINGS)
    shutil.copytree(made / "plain", made / "foreign")
    manifest = json.loads((made / "foreign/manifest.json").read_text())
    manifest["provenance"]["data_sha256"]["nitrogen"] = {"nitrogen.csv": "0" * 64}
    (made / "foreign/manifest.json").write_text(json.dumps(manifest))
    assert describe(made, "other.yaml", "foreign", "nowhere") != 0
    assert "got data files nitrogen.csv that the artifact was not made" in capsys.readouterr().err
    manifest["tasks"]["nitrogen"]["labels"] = ["has_carbon"]
    (made / "foreign/manifest.json").write_text(json.dumps(manifest))
    assert describe(made, "other.yaml", "foreign", "nowhere") != 0
    assert "tasks.nitrogen: got labels ['has_n'], expected those of" in capsys.readouterr().err


def test_a_manifest_of_before_says_nothing_about_meanings(made: Path) -> None:
    written = json.loads((made / "plain/manifest.json").read_text())
    assert all("meaning" not in task for task in written["tasks"].values())
    assert load_artifact(made / "plain").manifest.tasks["nitrogen"].meaning is None
