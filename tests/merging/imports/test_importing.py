"""From chemprop's files to an artifact, and what it answers beside chemprop's own predictions."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml

from gmerging.cli.main import main
from merging.imports.config import make_import_config
from merging.imports.importing import Imported, import_models
from models.artifact import load_artifact
from models.data.dmpnn_features import featurize_bonds
from models.data.schema import BondInput
from models.errors import ArtifactError, ConfigError, DataError, MoleculeError
from models.experts.dmpnn import Residual
from models.families.table import FAMILIES
from tests.merging.imports.chemprop_files import FILES, PREDICTIONS, Change, hyper, saved

SMILES = tuple(PREDICTIONS["regression.pt"])


def imported(folder: Path, models: dict[str, Any], **settings: Any) -> Imported:
    config = make_import_config({"models": models, **settings}, "test")
    return import_models(config, folder / "made", folder / "work")


def answers(folder: Path, smiles: Sequence[str] = SMILES) -> dict[str, torch.Tensor]:
    artifact = load_artifact(folder / "made")
    schema = cast(BondInput, artifact.manifest.input)
    read = featurize_bonds(smiles, schema.options, schema.reading, None)
    family = FAMILIES["dmpnn"]
    batch = family.collate([m.graph for m in read if not isinstance(m, MoleculeError)])
    outputs = family.answer(artifact.model, batch, artifact.model.tasks, "own")
    return {task: output.values for task, output in outputs.items()}


def shifted(folder: Path, name: str, size: float, change: Change = lambda content: None) -> str:
    """A file of a model near the others: `size` times other random numbers are added."""

    def apply(content: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
        for key, value in content["state_dict"].items():
            if "W_" in key or "ffn" in key:
                noise = torch.randn(value.shape, generator=generator)
                content["state_dict"][key] = value + size * noise
        change(content)

    return str(saved(folder / f"{name}.pt", apply))


def related(folder: Path, *names: str, size: float = 0.05) -> dict[str, str]:
    return {name: shifted(folder, name, size) for name in names}


def molecules(folder: Path, count: int = 40) -> str:
    path = folder / "molecules.smi"
    chains = ["C" * k + end for k in range(1, 1 + count // 4) for end in ("O", "N", "F", "(=O)O")]
    path.write_text("\n".join([*chains, "C1CC"]))
    return str(path)


@pytest.mark.parametrize("file", [name for name in PREDICTIONS if "foundation" not in name])
def test_an_imported_model_answers_as_chemprop_does(file: str, tmp_path: Path) -> None:
    path, source = FILES / file, {"path": str(FILES / file)}
    if path.suffix == ".ckpt":
        count = len(next(iter(PREDICTIONS[file].values())))
        source |= {"labels": [f"y{k}" for k in range(count)]}
    imported(tmp_path, {"task": source}, method="separate")
    expected = torch.tensor([PREDICTIONS[file][smiles] for smiles in SMILES])
    torch.testing.assert_close(answers(tmp_path)["task"], expected, rtol=1e-5, atol=1e-6)


def test_a_residual_of_full_rank_is_the_models_themselves(tmp_path: Path) -> None:
    models, data = related(tmp_path, "tox", "sol", "bbb"), molecules(tmp_path)
    own = imported(tmp_path, models, method="separate")
    assert own.manifest.rank == 0
    expected = answers(tmp_path)
    whole_rank = imported(tmp_path, models, rank=64, molecules=data)
    found = answers(tmp_path)
    assert whole_rank.manifest.metrics["difference"] == whole_rank.difference
    assert max(whole_rank.difference.values()) < 1e-4
    for task, values in expected.items():
        torch.testing.assert_close(found[task], values, rtol=1e-4, atol=1e-5)
    low = imported(tmp_path, models, rank=1, molecules=data)
    assert min(low.difference.values()) > max(whole_rank.difference.values())


def test_the_smallest_rank_for_a_difference_is_found(tmp_path: Path) -> None:
    models, data = related(tmp_path, "tox", "sol", "bbb"), molecules(tmp_path)
    most = 0.2
    found = imported(tmp_path, models, max_difference=most, molecules=data)
    assert max(found.difference.values()) <= most
    assert found.rank >= 1
    if found.rank > 1:
        smaller = imported(tmp_path, models, rank=found.rank - 1, molecules=data)
        assert max(smaller.difference.values()) > most
    same = imported(tmp_path, models, rank=found.rank, molecules=data)
    assert same.difference == pytest.approx(found.difference)
    models = related(tmp_path, "tox", "sol", "bbb", size=0.3)  # differences round
    with pytest.raises(ConfigError, match=r"--max-difference: got 0\.0, expected at least"):
        imported(tmp_path, models, max_difference=0, molecules=data)


@pytest.mark.parametrize("method", ["adapters", "one-pass"])
def test_training_brings_predictions_nearer_to_the_own_models(method: str, tmp_path: Path) -> None:
    models, data = related(tmp_path, "tox", "sol", size=0.4), molecules(tmp_path, 120)
    settings: dict[str, Any] = {"method": method, "molecules": data, "rank": 3}
    short = imported(tmp_path, models, epochs=1, **settings)
    longer = imported(tmp_path, models, epochs=60, **settings)  # not resumed from the other
    assert sum(longer.difference.values()) < sum(short.difference.values())
    assert longer.manifest.provenance["training"]["loss"]
    states = sorted((tmp_path / "work").rglob("*.resume.pt"))
    before = [path.stat().st_mtime_ns for path in states]
    again = imported(tmp_path, models, epochs=60, **settings)
    assert again.difference == pytest.approx(longer.difference, rel=1e-3)
    assert [path.stat().st_mtime_ns for path in states] == before  # every epoch was finished


def test_an_ensemble_teaches_one_pass_and_refuses_a_residual(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for k, name in enumerate(("one", "two")):
        (run / f"model_{k}").mkdir(parents=True)
        shifted(run / f"model_{k}", name, 0.05)
        (run / f"model_{k}" / f"{name}.pt").rename(run / f"model_{k}" / "best.pt")
    models = {"both": str(run), **related(tmp_path, "tox")}
    with pytest.raises(ConfigError, match="got an ensemble of 2 networks, expected one network"):
        imported(tmp_path, models)
    made = imported(tmp_path, models, method="one-pass", epochs=1, molecules=molecules(tmp_path))
    assert set(made.difference) == {"both", "tox"}
    separate = imported(tmp_path, models, method="separate")
    assert separate.manifest.backbone.model_dump()["heads"]["both"]["members"] == 2


def test_models_that_do_not_fit_are_refused_by_what_differs(tmp_path: Path) -> None:
    good = related(tmp_path, "tox", "sol")
    foreign = str(saved(tmp_path / "foreign.pt", _other_numbers))
    with pytest.raises(ConfigError, match=r"cosine of -?0\.[0-4]. with the base, expected 0\.9"):
        imported(tmp_path, {**good, "foreign": foreign})
    deeper = shifted(tmp_path, "deeper", 0.05, hyper("message_passing", depth=4))
    with pytest.raises(ConfigError, match=r"deeper\.pt with depth 4, expected 3, that of the base"):
        imported(tmp_path, {**good, "deeper": deeper})
    doubtful = shifted(tmp_path, "doubtful", 0.8)
    made = imported(tmp_path, {**good, "doubtful": doubtful}, rank=2)
    assert any("merging may cost much" in note for note in made.notes)
    shutil.rmtree(tmp_path / "made")
    separate = imported(tmp_path, {**good, "foreign": foreign, "deeper": deeper}, method="separate")
    assert len(separate.manifest.tasks) == 4
    shutil.rmtree(tmp_path / "made")
    organic = str(FILES / "regression.pt")
    with pytest.raises(ConfigError, match=r"mode organic.*expected those of tox, mode rigr"):
        imported(tmp_path, {**good, "organic": organic}, method="separate")


def _other_numbers(content: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(77)
    for key, value in content["state_dict"].items():
        if "W_" in key:
            content["state_dict"][key] = torch.randn(value.shape, generator=generator)


def test_a_base_is_what_models_are_compared_with(tmp_path: Path) -> None:
    models = related(tmp_path, "tox", "sol")
    base = str(saved(tmp_path / "base.pt"))
    made = imported(tmp_path, models, base=base)
    assert made.manifest.provenance["base_sha256"]
    foreign = str(saved(tmp_path / "foreign.pt", _other_numbers))
    with pytest.raises(ConfigError, match=r"tox: got .*it was not fine-tuned from there"):
        imported(tmp_path, models, base=foreign)
    notes = imported(tmp_path, models, base=foreign, method="separate").notes
    assert "base: not used, since separate models are not merged" in notes


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "adapters"}, "molecules: got none with adapters, which learns from molecules"),
        ({"max_difference": 0.1}, "molecules: got none with residual"),
        ({"max_difference": 0.1, "rank": 3}, "expected residual without a rank"),
        ({"method": "separate", "rank": 3}, "which corrects nothing"),
        ({"epochs": 3}, "which trains nothing"),
        ({"models": {}}, "models: "),
        ({"methode": "residual"}, "methode"),
        ({"models": {"a b/c": "x.pt"}}, "a b/c"),
    ],
)
def test_requests_that_say_nothing_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_import_config({"models": {"tox": "tox.pt"}, **settings}, "test")


def test_files_of_molecules_are_checked(tmp_path: Path) -> None:
    models = related(tmp_path, "tox", "sol")
    empty = tmp_path / "empty.smi"
    empty.write_text("C1CC\nnothing\n")
    with pytest.raises(DataError, match=r"got 0 readable molecules of 2.*the first problem: "):
        imported(tmp_path, models, molecules=str(empty))
    with pytest.raises(DataError, match="got no file"):
        imported(tmp_path, models, molecules=str(tmp_path / "none.smi"))


def test_labels_and_units_are_those_of_the_user(tmp_path: Path) -> None:
    source = {"path": str(FILES / "regression.pt"), "units": {"logS": "log mol/L"}, "about": "wet"}
    info = imported(tmp_path, {"sol": source}, method="separate").manifest.tasks["sol"]
    assert (info.labels, info.unit_of, info.description) == (
        ("logS", "mp"),
        {"logS": "log mol/L"},
        "wet",
    )
    with pytest.raises(
        ConfigError, match=r"models\.sol\.units: got logP, expected labels among logS"
    ):
        imported(tmp_path, {"sol": source | {"units": {"logP": ""}}}, method="separate")


def test_another_artifact_is_not_overwritten(tmp_path: Path) -> None:
    imported(tmp_path, related(tmp_path, "tox", "sol"), rank=1)
    with pytest.raises(ArtifactError, match="replace"):
        imported(tmp_path, related(tmp_path, "tox"), method="separate")


# --- commands ---


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_check_models_prints_a_table_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = related(tmp_path, "tox", "sol")
    models["foreign"] = str(saved(tmp_path / "foreign.pt", _other_numbers))
    models["deeper"] = shifted(tmp_path, "deeper", 0.05, hyper("message_passing", depth=4))
    pairs = [f"{task}={path}" for task, path in models.items()]
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, "check-models", *pairs, "--base", models["sol"])
    assert (code, err) == (0, "")
    head, tox, sol, foreign, deeper, *notes = out.splitlines()
    assert head.split() == [
        *("task", "networks", "network", "features", "cosine", "outputs", "verdict")
    ]
    assert sol.split()[-1] == "related"
    assert "1.000" in sol
    assert tox.endswith("related")
    assert foreign.endswith("unrelated")
    assert deeper.endswith("other shape (depth 4, expected 3)")
    assert any("No config.toml" in note for note in notes)
    code, out, err = run(capsys, "check-models", *pairs, "--base", models["sol"], "--json")
    assert (code, err) == (0, "")
    records = {record["task"]: record for record in json.loads(out)}
    assert {task: record["verdict"] for task, record in records.items()} == {
        "tox": "related",
        "sol": "related",
        "foreign": "unrelated",
        "deeper": "other shape",
    }
    assert records["sol"]["cosine"] == pytest.approx(1)
    assert records["deeper"]["shape"]["depth"] == 4
    assert any("No config.toml" in note for note in records["tox"]["notes"])
    assert sorted(tmp_path.rglob("*")) == before


def test_import_models_by_options_and_by_the_file_that_it_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, made = related(tmp_path, "tox", "sol"), tmp_path / "made"
    pairs = [f"{task}={path}" for task, path in models.items()]
    options = (
        "--rank",
        2,
        "--name",
        "mine",
        "--molecules",
        molecules(tmp_path),
        "--work",
        tmp_path,
    )
    code, out, err = run(capsys, "import-models", *pairs, *options, "--output", made)
    assert (code, err) == (0, "")
    assert "tox: differs from its own model by 0." in out
    assert out.splitlines()[-1] == f"mine 0.1.0: 2 tasks, rank 2 in {made}"
    kept = made.with_name("made.yaml")
    assert yaml.safe_load(kept.read_text())["models"]["tox"]["path"] == models["tox"]
    before = json.loads((made / "manifest.json").read_text())["files"]
    code, _, err = run(
        capsys, "import-models", "--config", kept, "--output", made, "--work", tmp_path
    )
    assert (code, err) == (0, "")
    after = json.loads((made / "manifest.json").read_text())["files"]
    assert {k: v for k, v in after.items() if k != "README.md"} == {
        k: v for k, v in before.items() if k != "README.md"
    }
    code, out, err = run(capsys, "inspect", made)
    assert (code, err) == (0, "")
    assert "backbone: dmpnn, 3 layers x 4" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "got no models, expected TASK=PATH"),
        (("tox",), "got 'tox', expected TASK=PATH"),
        (("tox=a.pt", "tox=b.pt"), "got task tox twice"),
        (("tox=a.pt", "--labels", "sol=x"), "got task sol, expected one of tox"),
        (("tox=a.pt", "--config", "x.yaml"), "got --config and --models, expected one of them"),
        (("--config", "none.yaml"), "none.yaml: got no readable YAML"),
        (("tox=none.pt",), "none.pt"),
    ],
)
def test_wrong_options_are_named(
    arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "check-models", *arguments)
    assert (code, out) == (1, "")
    assert problem in err


def test_a_residual_holds_what_it_says(tmp_path: Path) -> None:
    imported(tmp_path, related(tmp_path, "tox", "sol"), rank=1)
    model = load_artifact(tmp_path / "made").model
    kept = [expert.correction for expert in model.experts]
    assert all(isinstance(found, Residual) and found.rank == 1 for found in kept)


def test_batch_norm_and_prelu_survive_the_way(tmp_path: Path) -> None:
    for file in ("batch_norm.pt", "prelu.pt"):
        imported(tmp_path, {"task": str(FILES / file)}, method="separate")
        first = answers(tmp_path)["task"]
        shutil.rmtree(tmp_path / "made")
        models = {name: str(FILES / file) for name in ("a", "b")}
        imported(tmp_path, models, rank=1)
        merged = answers(tmp_path)
        torch.testing.assert_close(merged["a"], first, rtol=1e-4, atol=1e-5)
        shutil.rmtree(tmp_path / "made")
