"""Applicability domains of a finished artifact, from the command to the structures that a service
may show."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rdkit import Chem

from gmerging.cli.main import main
from merging.run.config import load_config
from merging.run.forests import forest
from merging.run.run import Run
from models.artifact import domain_file, load_artifact, read_manifest
from models.domain.structures import Structures
from models.domain.task_domain import DomainInfo
from tests.domains import fingerprint_of
from tests.merging.conftest import run_options, write_csv, write_pico
from tests.merging.release.test_labels import MEANINGS
from tests.merging.run.test_stages import command

RINGS = ("c1ccccc1", "c1ccncc1", "C1CCCCC1", "C1CCNCC1", "c1ccoc1", "c1ccsc1", "C1CC1", "C1CCOC1")
TAILS = ("O", "N", "C", "CC", "CO", "C#N", "Cl", "F", "CCN", "CCO", "CCC", "CNC", "COC", "CN", "Br")


def rows() -> list[str]:
    """480 molecules, a tenth of them for tests and a tenth for validation."""
    linkers = ("", "CC", "CCC", "OC")
    return [ring + link + tail for link in linkers for ring in RINGS for tail in TAILS]


def write_sets(folder: Path) -> None:
    """As `write_pico`, but with 480 molecules and a regression, which suffice to measure bands."""
    content = yaml.safe_load(write_pico(folder).read_text())
    has_n = [(text, str(int("N" in text or "n" in text))) for text in rows()]
    write_csv(folder / "data/nitrogen.csv", "smiles", ("has_n",), has_n)
    sizes = [(text, str(10 ** (len(text) / 10))) for text in rows()]
    write_csv(folder / "data/other.csv", "mol", ("size",), sizes)
    content["datasets"]["nitrogen"]["split"] = "random"
    more = {"target": "regression", "scale": "log10", "units": "characters", "split": "random"}
    content["datasets"]["other"] |= more
    content["meanings"] = {"nitrogen": {**MEANINGS["nitrogen"], "may_show": True}}
    content["forest"] = {"kinds": ["bagged"], "bagged": {"trees": 8, "min_leaf": 1}}
    content["finetune"] |= {"epochs": 1, "batch_size": 64}
    content["alignment"] |= {"epochs": 1, "batch_size": 64}
    content["alignment_by_task"] = {}
    content["compare"] = {}
    (folder / "pico.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact in `plain`; in `forests` with a forest for `nitrogen`; in `domains` with the
    domains of both tasks too."""
    folder = tmp_path_factory.mktemp("made")
    write_sets(folder)
    assert command(folder, "release", "--output", str(folder / "plain")) == 0
    assert run(folder, "add-forests", "plain", "forests", "--tasks", "nitrogen") == 0
    assert run(folder, "add-domain", "forests", "domains") == 0
    return folder


def run(folder: Path, verb: str, artifact: str, output: str, *options: str) -> int:
    files = ["--artifact", str(folder / artifact), "--output", str(folder / output)]
    config = ["--config", str(folder / "pico.yaml"), *run_options(folder)]
    return main([verb, *config, *files, *options])


def pico_run(folder: Path) -> Run:
    return Run(load_config(folder / "pico.yaml"), 0, folder / "data", folder / "work")


def test_models_stay_to_the_last_bit(made: Path) -> None:
    (old, old_digest), (new, digest) = (read_manifest(made / n) for n in ("forests", "domains"))
    for name, sha256 in old.files.items():
        assert name == "README.md" or new.files[name] == sha256
    added = set(new.files) - set(old.files)
    assert added == {"domain/nitrogen.safetensors", "domain/other.safetensors"}
    assert new.weights_digest(digest) == old_digest == new.provenance["domains"]["weights_of"]
    assert new.domains["nitrogen"] == DomainInfo(
        molecules=384, file="nitrogen.csv", split="random, seed 0", confidence=0.9, may_show=True
    )
    assert not new.domains["other"].may_show
    card = (made / "domains/README.md").read_text()
    assert card.count("## How far to trust") == 1


def test_training_molecules_are_known_by_their_lines(made: Path) -> None:
    data, smiles = pico_run(made).dataset("nitrogen"), rows()
    known = load_artifact(made / "domains").domains["nitrogen"].molecules
    train = data.split.train.tolist()
    assert sorted(known.rows.tolist()) == sorted(k + 2 for k in train)
    for k in train[:20]:
        found = known.nearest(fingerprint_of(smiles[k]), 1)
        assert found.similarities.tolist() == [1.0]
    bits = dict(zip(known.rows.tolist(), known.fingerprints, strict=True))
    for k in train[:20]:
        assert np.array_equal(bits[k + 2], fingerprint_of(smiles[k]))


def test_bands_are_of_answers_that_had_not_learnt_from_the_molecules(made: Path) -> None:
    """The artifact's forest knows the validation molecules by heart; what is measured there is the
    forest before."""
    artifact, pico = load_artifact(made / "domains"), pico_run(made)
    data = pico.dataset("nitrogen")
    (measured,) = artifact.domains["nitrogen"].labels
    assert artifact.manifest.forests["nitrogen"].default != "own"
    assert sum(band.molecules for band in measured.bands) == 48 + 48
    before = pico.result(forest(pico, "nitrogen")).tensors["outputs/valid"]
    assert before.shape == (len(data.split.valid), 1)
    assert [band.metric for band in measured.bands] == ["roc_auc"] * len(measured.bands)


def test_numbers_are_measured_in_their_unit(made: Path) -> None:
    (measured,) = load_artifact(made / "domains").domains["other"].labels
    lengths = 10 ** (np.array([len(text) for text in rows()]) / 10)
    assert {band.metric for band in measured.bands} == {"mae"}
    spread = np.abs(np.median(lengths) - lengths).mean()
    for band in measured.bands:
        assert band.error_of_base == pytest.approx(spread, rel=0.5)
    if measured.conformal is not None:
        low, high = measured.conformal.interval(10.0, "log10")
        assert low * high == pytest.approx(100)


def test_a_domain_is_measured_again_under_another_version(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made, "add-domain", "domains", "again", "--tasks", "nitrogen") == 0
    said = capsys.readouterr().out
    assert "nitrogen: 384 molecules; 1 labels, 1 with bands" in said
    (old, _), (new, digest) = (read_manifest(made / n) for n in ("domains", "again"))
    assert new.domains == old.domains
    assert new.files == old.files
    assert new.weights_digest(digest) == read_manifest(made / "forests")[1]


def test_a_task_that_goes_takes_its_domain_along(made: Path) -> None:
    files = ["--artifact", str(made / "domains"), "--output", str(made / "fewer")]
    assert main(["remove-task", "--tasks", "other", *files]) == 0
    artifact = load_artifact(made / "fewer")
    assert list(artifact.domains) == list(artifact.manifest.domains) == ["nitrogen"]
    assert artifact.manifest.weights_digest(artifact.digest) == artifact.digest
    kept = domain_file("nitrogen")
    assert artifact.manifest.files[kept] == read_manifest(made / "domains")[0].files[kept]


def test_new_trees_take_away_what_was_measured_of_other_answers(made: Path) -> None:
    assert run(made, "add-forests", "domains", "more", "--tasks", "nitrogen") == 0
    artifact = load_artifact(made / "more")
    assert list(artifact.domains) == list(artifact.manifest.domains) == ["other"]


def test_only_structures_that_may_be_shown_are_written(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made / "structures.db"
    assert run(made, "domain-structures", "domains", "structures.db") == 0
    said = capsys.readouterr().out
    assert "nitrogen: 384 molecules" in said
    assert "other: left out, its terms do not allow it" in said
    manifest, known = read_manifest(made / "domains")[0], load_artifact(made / "domains").domains
    structures, smiles = Structures(path), rows()
    lines = known["nitrogen"].molecules.rows.tolist()
    found = structures.find(manifest.files[domain_file("nitrogen")], lines)
    assert sorted(found) == sorted(lines)
    for line in lines[:50]:
        text = smiles[line - 2]
        assert found[line].smiles == Chem.CanonSmiles(text)
        assert found[line].values == {"has_n": float("N" in text or "n" in text)}
    with closing(sqlite3.connect(path)) as database:
        domains = database.execute("SELECT DISTINCT domain FROM molecules").fetchall()
    assert domains == [(manifest.files[domain_file("nitrogen")],)]


def test_without_a_task_that_may_be_shown_there_is_no_file(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made, "domain-structures", "plain", "nothing.db") != 0
    assert "got no task with an applicability domain whose" in capsys.readouterr().err
    assert not (made / "nothing.db").exists()


def changed(folder: Path, name: str, **changes: Any) -> None:
    """A copy of `plain` whose manifest differs."""
    shutil.copytree(folder / "plain", folder / name)
    manifest = json.loads((folder / name / "manifest.json").read_text())
    (folder / name / "manifest.json").write_text(json.dumps(manifest | changes))


def test_what_does_not_fit_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((made / "plain/manifest.json").read_text())
    provenance = manifest["provenance"]
    provenance["data_sha256"]["nitrogen"] = {"nitrogen.csv": "0" * 64}
    changed(made, "foreign", provenance=provenance)
    assert run(made, "add-domain", "foreign", "nowhere") != 0
    assert "got data files nitrogen.csv that the artifact was not made" in capsys.readouterr().err
    assert run(made, "add-domain", "plain", "nowhere", "--tasks", "unheard") != 0
    assert "tasks: got none of the name 'unheard'" in capsys.readouterr().err
    assert not (made / "nowhere").exists()


def test_models_of_graphs_have_no_domain(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--artifact", "cora-label-split", "--output", str(made / "nowhere")]
    config = ["--config", "cora_label_split.yaml", *run_options(made)]
    assert main(["add-domain", *config, *files]) != 0
    assert "kind 'pyg_gcn', expected one of molecules" in capsys.readouterr().err
