"""`gmerging add-drugs`: quantiles of an artifact's answers for drugs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from gmerging.cli.main import main
from merging.data.files import sha256
from merging.release.drugs import check_drugs
from merging.run.config import load_config
from merging.run.run import Run
from models.artifact import DRUGS, load_artifact, load_components, read_manifest
from models.errors import ArtifactError, ConfigError
from service.core.artifact_engine import load_engine
from service.core.engine import PredictionQuery
from service.core.local import predict
from service.settings import Settings
from tests.merging.conftest import molecules, run_options, write_pico
from tests.merging.run.test_stages import command
from tests.service.doubles import save_pico_graph_artifact

LIST = ["CCO", "OCC", "CCN", "C1", "c1ccccc1", "CC(=O)O", "CCCCCCCl"]
READ = ["CCO", "CCN", "c1ccccc1", "CC(=O)O", "CCCCCCCl"]
NITROGEN = {"nitrogen": {"file": "nitrogen.csv", "about": "has nitrogen"}}
ABOUT = ["--source", "by hand 1", "--date", "2026-01-01", "--terms", "free"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in `plain`, and the same with drugs in `drugs`."""
    folder = tmp_path_factory.mktemp("made")
    write_pico(folder)
    assert command(folder, "release", "--output", str(folder / "plain")) == 0
    (folder / "drugs.smi").write_text("".join(f"{smiles}\n" for smiles in LIST))
    assert add(folder, "plain", "drugs") == 0
    return folder


def add(
    folder: Path,
    artifact: str,
    output: str,
    molecules: str = "drugs.smi",
    config: str = "pico.yaml",
) -> int:
    files = ["--artifact", str(folder / artifact), "--output", str(folder / output)]
    listed = ["--config", str(folder / config), "--molecules", str(folder / molecules)]
    return main(["add-drugs", *listed, *files, *ABOUT, *run_options(folder)])


def test_weights_stay_and_the_list_is_described(made: Path) -> None:
    (old, old_digest), (new, digest) = (read_manifest(made / n) for n in ("plain", "drugs"))
    for name, of_file in old.files.items():
        assert name == "README.md" or new.files[name] == of_file
    assert new.files.keys() - old.files.keys() == {DRUGS}
    about = new.drugs
    assert about is not None
    assert (about.molecules, about.unreadable) == (len(READ), 1)
    assert (about.source, about.date, about.terms) == ("by hand 1", "2026-01-01", "free")
    assert about.experts == dict.fromkeys(new.tasks, "own")
    assert new.provenance["drugs"]["weights_of"] == new.weights_digest(digest) == old_digest
    card = (made / "drugs/README.md").read_text()
    assert "for 5 approved drugs" in card
    assert not any(smiles in (made / "drugs/manifest.json").read_text() for smiles in READ[2:])


def test_drugs_in_the_training_data_are_counted(made: Path) -> None:
    """The list is the data set itself: its training molecules are known, the others are not."""
    (made / "all.smi").write_text("".join(f"{smiles}\n" for smiles in molecules()))
    assert add(made, "plain", "all", "all.smi") == 0
    about = read_manifest(made / "all")[0].drugs
    assert about is not None
    assert about.sha256 == sha256(made / "all.smi")
    run = Run(load_config(made / "pico.yaml"), 0, made / "data", made / "work")
    train = {task: run.dataset(task).split.train.tolist() for task in run.tasks}
    assert about.in_training_by_task == {task: len(rows) for task, rows in train.items()}
    assert about.in_training == len(set().union(*map(set, train.values())))
    assert about.in_training < about.molecules == len(molecules())
    none = read_manifest(made / "drugs")[0].drugs
    assert none is not None
    assert none.in_training == 0


def test_quantiles_are_of_the_answers_of_the_service(made: Path) -> None:
    settings = Settings(artifact=made / "drugs", device="cpu")
    engine = load_engine(made / "drugs", settings)
    table = engine.info.drugs
    assert table is not None
    query = PredictionQuery.of("pico", engine, engine.info.tasks, "own")
    answers = predict(query, settings, READ)
    for task in engine.info.tasks:
        values = np.stack([answer.tasks[task].values for answer in answers])
        ends = table.quantiles[task][:, [0, -1]].T
        np.testing.assert_allclose(ends, [values.min(0), values.max(0)], atol=1e-5)
        np.testing.assert_allclose(
            table.quantiles[task][:, len(table.levels) // 2], np.median(values, 0), atol=1e-5
        )


def test_a_second_list_replaces_the_first(made: Path) -> None:
    (made / "two.csv").write_text("smiles,name\nCCO,a\nCCN,b\n")
    assert add(made, "drugs", "again", "two.csv") == 0
    manifest = read_manifest(made / "again")[0]
    assert manifest.drugs is not None
    assert manifest.drugs.molecules == 2
    assert (made / "again/README.md").read_text().count("## Among drugs") == 1


def test_removed_tasks_leave_the_table(made: Path) -> None:
    names = list(read_manifest(made / "drugs")[0].tasks)
    files = ["--artifact", str(made / "drugs"), "--output", str(made / "less")]
    assert main(["remove-task", "--tasks", names[0], *files]) == 0
    components = load_components(made / "less")
    assert components.drugs is not None
    assert components.manifest.drugs is not None
    assert list(components.drugs.quantiles) == list(components.manifest.drugs.experts) == names[1:]


def test_some_tasks_can_be_loaded(made: Path) -> None:
    name = list(read_manifest(made / "drugs")[0].tasks)[-1]
    loaded = load_artifact(made / "drugs", tasks=[name])
    assert loaded.drugs is not None
    assert list(loaded.drugs.quantiles) == [name]


def test_lists_without_molecules_are_refused(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made / "none.smi").write_text("C1\nC2\n")
    assert add(made, "plain", "none", "none.smi") == 1
    assert "got no readable SMILES" in capsys.readouterr().err
    assert not (made / "none").exists()


def test_damaged_tables_are_refused(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(made / "drugs", folder)
    (folder / DRUGS).write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"drugs.safetensors: got other contents"):
        load_artifact(folder)
    manifest = json.loads((made / "drugs/manifest.json").read_text())
    manifest["drugs"]["experts"] = dict.fromkeys(manifest["drugs"]["experts"], "both")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="expected those of the default experts, 'own'"):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["nitrogen"], "datasets": NITROGEN}, "tasks: got none of the name 'other'"),
        ({"release": None}, "release: got none"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(
    made: Path, change: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load((made / "pico.yaml").read_text()) | change
    content |= {"compare": {}, "alignment_by_task": {}}
    (made / "wrong.yaml").write_text(yaml.safe_dump(content))
    assert add(made, "plain", "none", config="wrong.yaml") == 1
    assert message in capsys.readouterr().err


def test_models_that_read_no_molecules_are_refused(made: Path, tmp_path: Path) -> None:
    run = Run(load_config(made / "pico.yaml"), 0, made / "data", made / "work")
    with pytest.raises(ConfigError, match="got a configuration of networks of kind 'gcn'"):
        check_drugs(run, save_pico_graph_artifact(tmp_path / "graphs"), tmp_path / "new")


def test_manifests_name_tasks_of_theirs(made: Path) -> None:
    manifest = read_manifest(made / "drugs")[0]
    content = json.loads((made / "drugs/manifest.json").read_text())
    content["drugs"]["experts"] = {"nothing": "own"}
    with pytest.raises(ValidationError, match=r"drugs: got 'nothing', expected tasks"):
        type(manifest).model_validate(content)
