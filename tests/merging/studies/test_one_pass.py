"""The study of joint alignment, by its command."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gmerging.cli.main import main
from merging.config.base import CONFIG_FOLDER
from merging.families.molecule_config import MoleculeConfig
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.scores import evaluation
from tests.merging.run.test_stages import command, released  # noqa: F401 - a fixture

VARIANTS = {
    "higher_rank": {"rank": 8},
    "with_embeddings": {"losses": {"embeddings": 1.0}},
    "few": {"epochs": 1, "pool": {"size": 40}},
}


def study(folder: Path, *options: str) -> Any:
    """Run the study and read its results."""
    results = folder / "results/one-pass.json"
    assert command(folder, "study", "one-pass", "--results", str(results), *options) == 0
    return json.loads(results.read_text())


@pytest.fixture
def varied(pico_config_file: Path, tmp_path: Path) -> Path:
    values = yaml.safe_load(pico_config_file.read_text())
    values["compare"]["one_pass"] = VARIANTS
    pico_config_file.write_text(yaml.safe_dump(values))
    return tmp_path


def test_variants_are_measured_beside_their_teachers(varied: Path, pico_run: Run) -> None:
    content = study(varied, "--seeds", "0", "1")
    assert content["seeds"] == [0, 1]
    assert {name: row["changes"] for name, row in content["variants"].items()} == {
        "base": {},
        **VARIANTS,
    }
    base = content["variants"]["base"]["seeds"]["0"]
    for name, of in (("one_pass", "one_pass"), ("one_pass_teachers", "finetuned")):
        for task in pico_run.tasks:
            scores = pico_run.result(evaluation(of, pico_run, task)).record["stored"]
            for subset, prefix in (("test", ""), ("valid", "valid_")):
                found = base["scores"][name][f"{prefix}roc_auc"][task]
                assert found == pytest.approx(scores[subset]["score"], abs=1e-5)
    averages = {name: scores["average"] for name, scores in base["scores"].items()}
    gap = averages["one_pass_teachers"] - averages["one_pass_start"]
    if gap > 0:
        expected = (averages["one_pass"] - averages["one_pass_start"]) / gap
        assert base["recovery"] == pytest.approx(expected, abs=1e-4)
    few = content["variants"]["few"]["seeds"]["1"]
    assert len(few["loss"]) == 1
    assert few["trained_molecules"] + few["watched_molecules"] == few["pool"]["molecules"] == 40
    assert all(len(losses) == 2 for losses in base["watched"].values())


def test_tables_have_a_row_per_variant_and_the_loss_by_epoch(varied: Path) -> None:
    content = study(varied, "--seeds", "0", "1", "--variants", "base", "few")
    text = (varied / "results/one-pass.md").read_text()
    titles = re.findall(r"^\| ([A-Za-z_, ]+) \|", text, re.MULTILINE)
    rows = ["variant", "Teachers, one model per task", "Start, without training", "base", "few"]
    assert titles == [*rows, *rows, "variant", "base", "few"]
    seeds = content["variants"]["base"]["seeds"].values()
    mean = sum(seed["scores"]["one_pass"]["roc_auc"]["other"] for seed in seeds) / 2
    test = text.split("Validation scores")[0]
    assert f" {100 * mean:.1f} |" in re.findall(r"^\| base .*$", test, re.MULTILINE)[0]
    curves = [
        sum(losses[k] for losses in seed["watched"].values()) / 2 for k in (0, 1) for seed in seeds
    ]
    first, last = (sum(curves[2 * k : 2 * k + 2]) / 2 for k in (0, 1))
    assert f"| base | {first:.3f}, {last:.3f} |" in text


def test_a_stopped_study_goes_on_with_what_is_made(
    varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study(varied, "--variants", "few")
    made = {path.name: path.stat().st_mtime_ns for path in (varied / "work/pieces").rglob("*.*")}
    content = study(varied, "--variants", "few", "higher_rank")
    assert {*content["variants"]} == {"higher_rank", "few"}
    after = {path.name: path.stat().st_mtime_ns for path in (varied / "work/pieces").rglob("*.*")}
    assert all(after[name] == stamp for name, stamp in made.items())
    assert "| few |" in capsys.readouterr().out


def test_own_streams_of_a_release_teach(released: Path) -> None:  # noqa: F811
    folder = str(released / "artifact")
    content = study(released, "--teachers", folder)
    assert content["config"]["one_pass"]["teachers"]["artifact"] == folder
    manifest = json.loads((released / "artifact/manifest.json").read_text())
    served = manifest["metrics"]["gmerging_own"]["roc_auc"]
    scores = content["variants"]["base"]["seeds"]["0"]["scores"]["one_pass_teachers"]["roc_auc"]
    assert scores == pytest.approx(served, abs=1e-4)


def test_an_unknown_variant_is_refused_before_any_training(
    varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = str(varied / "r.json")
    wrong = "--variants", "base", "tall"
    assert command(varied, "study", "one-pass", "--results", results, *wrong) == 1
    expected = "--variants: got tall, expected names among base, few, higher_rank, with_embeddings"
    assert expected in capsys.readouterr().err
    assert not (varied / "work/pieces").exists()


def test_a_configuration_without_the_section_is_refused(
    varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load((varied / "pico.yaml").read_text())
    del values["one_pass"], values["compare"]["one_pass"]
    (varied / "pico.yaml").write_text(yaml.safe_dump(values))
    for more in ((), ("--teachers", "artifact")):
        results = str(varied / "r.json")
        assert command(varied, "study", "one-pass", "--results", results, *more) == 1
        assert "one_pass: got no" in capsys.readouterr().err


def test_bundled_configuration_has_the_recipe_and_its_variants() -> None:
    config = load_config(CONFIG_FOLDER / "gcn_supervised_contextpred_one_pass.yaml")
    assert isinstance(config, MoleculeConfig)
    recipe = config.one_pass
    assert recipe is not None
    assert (recipe.rank, recipe.epochs, recipe.batch_size) == (100, 18, 256)
    assert (recipe.learning_rate, recipe.pool.most_per_task) == (0.002, 12_000)
    assert config.method == "one-pass"
    assert {"layers", "pool_foreign", "rank_300", "pretrained_start"} <= {*config.compare.one_pass}
    assert main(["study", "one-pass", "--variants", "tall", "--threads", "0"]) == 1
