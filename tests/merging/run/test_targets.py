"""Regression and classes from a table to HTTP: trained, merged, adapted, released, added,
served."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gmerging.cli.main import main
from merging.config.base import fingerprint
from merging.data.molecule_tables import DatasetSpec
from merging.families.molecule_config import MoleculeConfig
from merging.mergers.registry import MERGERS
from merging.release.card import data_table
from merging.run.config import load_config
from merging.run.models import finetuned_model
from merging.run.run import Run
from merging.run.scores import unified_forward
from merging.run.stages import calibration, merge_result, teacher, trained_model
from merging.targets.metrics import compute_metrics
from models.artifact import load_artifact
from models.errors import ConfigError
from models.state_dict import sub_state
from service.core.artifact_engine import load_engine
from tests.merging.conftest import TAILS, molecules, write_csv, write_pico
from tests.service.doubles import serving, settings_of

UNITS = {"esol": {"logS": "log mol/L", "mp": "K"}}


def numbers() -> list[tuple[str, str, str]]:
    """A solubility that falls with the carbons of the tail, and a melting point, now and then
    missing, that rises with its length."""
    rows = []
    for k, smiles in enumerate(molecules()):
        tail = TAILS[k % len(TAILS)]
        solubility = -2.0 - 1.5 * tail.count("C") + 0.1 * (k % 3)
        melting = "" if k % 5 == 0 else f"{300 + 40 * len(tail)}"
        rows.append((smiles, f"{solubility:.2f}", melting))
    return rows


def classes() -> list[tuple[str, str]]:
    """How long a tail is, in words; now and then not known."""
    named = ["short" if len(tail) == 1 else "middle" if len(tail) < 4 else "long" for tail in TAILS]
    rows = [(smiles, named[k % len(TAILS)]) for k, smiles in enumerate(molecules())]
    return [(smiles, "?" if k % 11 == 5 else name) for k, (smiles, name) in enumerate(rows)]


def write_targets(folder: Path) -> Path:
    """`pico.yaml` of a binary task and a regression of two columns; `more.yaml` adds classes."""
    config = yaml.safe_load(write_pico(folder).read_text())
    write_csv(folder / "data/esol.csv", "smiles", ("logS", "mp"), numbers())
    write_csv(folder / "data/tail.csv", "smiles", ("tail",), classes())
    esol = {
        "file": "esol.csv",
        "target": "regression",
        "label_columns": ["logS", "mp"],
        "units": UNITS["esol"],
        "about": "solubility and melting point",
    }
    tail = {"file": "tail.csv", "target": "multiclass", "classes": ["short", "middle", "long"]}
    config |= {"tasks": ["nitrogen", "esol"], "alignment_by_task": {}}
    config["datasets"] = {"nitrogen": config["datasets"]["nitrogen"], "esol": esol}
    config["finetune"] |= {"epochs": 60, "learning_rate": 0.01}
    config["compare"] |= {"ablation_tasks": [], "mergers": {"weight_average": [{}], "fisher": [{}]}}
    (folder / "pico.yaml").write_text(yaml.safe_dump(config))
    config |= {"tasks": ["tail"], "datasets": {"tail": tail}, "compare": {}}
    config["release"] = {"name": "pico", "version": "1.3.0"}
    (folder / "more.yaml").write_text(yaml.safe_dump(config))
    return folder / "pico.yaml"


def command(folder: Path, name: str, *arguments: str, config: str = "pico.yaml") -> int:
    folders = ["--data", str(folder / "data"), "--work", str(folder / "work")]
    options = ["--config", str(folder / config), "--threads", "1", *folders]
    return main([name, *options, "--device", "cpu", *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`artifact` of a binary task and a regression; `extended`, with classes added. Read only."""
    folder = tmp_path_factory.mktemp("targets")
    write_targets(folder)
    assert command(folder, "release", "--output", str(folder / "artifact")) == 0
    places = ["--artifact", str(folder / "artifact"), "--output", str(folder / "extended")]
    assert command(folder, "add-task", *places, config="more.yaml") == 0
    return folder


def run_of(folder: Path, config: str = "pico.yaml") -> Run:
    settings = load_config(folder / config)
    return Run(settings, 0, folder / "data", folder / "work", torch.device("cpu"))


def test_what_was_read_is_said(made: Path) -> None:
    said = run_of(made).dataset("esol").summary
    assert "2 labels: logS (-5 to -1.8, log mol/L), mp (340 to 420, K); split scaffold" in said
    said = run_of(made, "more.yaml").dataset("tail").summary
    assert "3 classes of 'tail': short, middle, long; split scaffold: 60 train" in said


def test_what_is_worth_a_look_in_the_cells_is_said(tmp_path: Path) -> None:
    write_targets(tmp_path)
    rows = [(smiles, logs, f"{k % 2}") for k, (smiles, logs, _) in enumerate(numbers())]
    rows[4], rows[5] = (rows[4][0], "-999", ""), (rows[5][0], "NA", "n/a")
    write_csv(tmp_path / "data/esol.csv", "smiles", ("logS", "mp"), rows)
    graded = [(smiles, ("none", "mild", "severe")[k % 3]) for k, smiles in enumerate(molecules())]
    write_csv(tmp_path / "data/tail.csv", "smiles", ("tail",), graded)
    values = yaml.safe_load((tmp_path / "more.yaml").read_text())
    del values["datasets"]["tail"]["classes"]
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(values))
    run = run_of(tmp_path)
    said = run.dataset("esol").summary
    missing = "; missing values: 1 x 'NA', 1 x empty, 1 x 'n/a'"
    assert f"10 test{missing}; far from the others: logS -999 in line 6, " in said
    assert re.search(r"line 6, \d+ times the width of the middle half from the median; mp", said)
    assert "; mp is one of two numbers: to learn a class, leave `target` out" in said
    assert "logS -999 in line 6" in data_table({"esol": run.dataset("esol").record})
    said = run_of(tmp_path, "more.yaml").dataset("tail").summary
    assert "2 classes of 'tail': mild, severe; split" in said
    assert said.endswith("10 test; missing values: 27 x 'none'")


def test_numbers_are_learnt_and_answered_in_their_units(made: Path) -> None:
    run = run_of(made)
    dataset, forward = (
        run.dataset("esol"),
        unified_forward(run, finetuned_model(run, "esol"), "esol"),
    )
    outputs, labels = run.family.predict(forward, dataset.steps("train", 256), run.device)
    found = compute_metrics(outputs.numpy(), labels.numpy(), dataset.info)
    assert found["r2"] > 0.5
    assert found["spearman"] > 0.7
    record = run.result(teacher(run, "esol")).record
    assert len(record["valid"]) == 60
    assert record["valid"][record["best_epoch"] - 1] == max(record["valid"]) < 0


def test_a_merger_sees_a_head_without_units(made: Path) -> None:
    """Which unit a label has must not decide how much its task weighs in a merger."""
    run = run_of(made)
    seen = calibration(run, "esol")
    folded = trained_model(run, teacher(run, "esol")).heads["esol"]["weight"]
    deviations = run.dataset("esol").labels[run.dataset("esol").split.train]
    spread = torch.tensor(
        [float(column[~column.isnan()].std(correction=0)) for column in deviations.T]
    )
    assert seen.target == "regression"
    torch.testing.assert_close(seen.head["weight"], folded / spread[:, None])


def test_the_artifact_says_target_and_units(made: Path) -> None:
    manifest = load_artifact(made / "extended").manifest
    tasks = manifest.tasks
    assert [info.target for info in tasks.values()] == ["multilabel", "regression", "multiclass"]
    assert tasks["esol"].unit_of == UNITS["esol"]
    assert tasks["tail"].labels == ("short", "middle", "long")
    test = manifest.metrics["test"]
    assert test["nitrogen"].keys() == {"roc_auc", "auprc"}
    assert test["esol"].keys() == {"logS", "mp"}
    assert test["esol"]["mp"].keys() == {"rmse", "mae", "r2", "spearman"}
    own = manifest.metrics["gmerging_own"]
    assert own["roc_auc"].keys() == {"nitrogen"}
    assert own["scaled_mae"]["esol"] > 0
    average = (own["roc_auc"]["nitrogen"] - own["scaled_mae"]["esol"]) / 2
    assert own["average"] == pytest.approx(average, abs=1e-4)
    assert manifest.metrics["calibration"].keys() == {"nitrogen"}
    added = manifest.metrics["added"]["tail"]
    assert (added["metric"], added["calibration"]) == ("accuracy", None)
    assert added["test"].keys() == {"accuracy", "roc_auc", "auprc"}


def test_the_card_names_metrics_and_units(made: Path) -> None:
    card = (made / "extended/README.md").read_text()
    assert "| method | nitrogen | esol (MAE / std) | average |" in card
    assert "| esol | mp | K |" in card
    assert "`esol`: An answer is a number, in the unit of its label." in card
    assert "| tail | accuracy |" in card
    assert "logS (-5 to -1.8, log mol/L), mp (340 to 420, K)" in card


def test_the_artifact_describes_itself(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(made / "extended")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"nitrogen +1 label +ROC-AUC \d\.\d{3}", said)
    found = r"esol +2 numbers  MAE / std \d\.\d{3}  solubility and melting point: "
    assert re.search(found + r"logS \[log mol/L\], mp \[K\]\n", said)
    assert re.search(r"tail +3 classes  accuracy \d\.\d{3}  short, middle, long\n?", said)


@pytest.mark.anyio
async def test_all_doors_answer_with_units(made: Path) -> None:
    engine = load_engine(made / "extended", settings_of(device="cpu"))
    model = load_artifact(made / "extended").model
    async with serving(engine) as client:
        items = (await client.post("/predict", json={"smiles": molecules()[:3]})).json()
        (first, *_) = items["predictions"]
        assert first["units"] == UNITS
        assert first["tasks"]["esol"].keys() == {"logS", "mp"}
        assert 250 < first["tasks"]["esol"]["mp"] < 800
        assert list(first["tasks"]["tail"]) == ["short", "middle", "long"]
        assert sum(first["tasks"]["tail"].values()) == pytest.approx(1, abs=1e-6)
        file = {"file": ("a.csv", "smiles\n" + "\n".join(molecules()[:3]))}
        text = (await client.post("/predict/file", files=file)).text
        (row, *_) = csv.DictReader(io.StringIO(text))
        assert float(row["esol.logS [log mol/L]"]) == pytest.approx(first["tasks"]["esol"]["logS"])
        assert float(row["tail.short"]) == pytest.approx(first["tasks"]["tail"]["short"], abs=1e-6)
        body = "".join(json.dumps(smiles) + "\n" for smiles in molecules()[:3])
        lines = (await client.post("/predict/stream", content=body)).text.splitlines()
        assert [json.loads(line)["units"] for line in lines] == [UNITS] * 3
        outputs = (await client.get("/v2/models/pico")).json()["outputs"]
        assert outputs[1]["parameters"]["unit.1"] == "K"
    assert model.targets["esol"] == "regression"


def test_the_comparison_names_the_metric_of_a_task(made: Path) -> None:
    results = made / "results"
    assert command(made, "compare", "--results", str(results)) == 0
    table = (results / "pico/table.md").read_text()
    assert "| method | nitrogen | esol (MAE / std) | average | recovery |" in table
    summary = json.loads((results / "pico/summary.json").read_text())
    methods = summary["methods"]
    assert methods["fisher"]["stored"]["metrics"] == {"nitrogen": "roc_auc", "esol": "scaled_mae"}
    own, start, aim = (
        methods[name]["stored"]["average"]
        for name in ("gmerging_own", "weight_average", "finetuned")
    )
    recovered = methods["gmerging_own"]["stored"]["recovery"]
    assert recovered == pytest.approx((own - start) / (aim - start), abs=0.01)
    forest = methods["ecfp4_random_forest"]["stored"]["mean"]["esol"]
    assert 0 < forest < 0.8  # guessing the mean has about 0.8


def test_a_merger_that_needs_probabilities_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_targets(tmp_path)
    values = yaml.safe_load(file.read_text())
    values["compare"]["mergers"] = {"adamerging": [{}]}
    file.write_text(yaml.safe_dump(values))
    assert command(tmp_path, "compare", "--results", str(tmp_path / "results")) == 1
    message = "adamerging: got task 'esol', a regression, expected multilabel or multiclass"
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "work").rglob("finetuned*"))
    values["merge"] = {"method": "adamerging"}
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="adamerging: got task 'esol', a regression"):
        load_config(file)


_OF_MOLECULES = {name for name, spec in MERGERS.items() if not spec.kinds or "gcn" in spec.kinds}


@pytest.mark.parametrize(
    "method", sorted(_OF_MOLECULES - {"adamerging", "git_rebasin", "pretrained"})
)
def test_every_merger_merges_them(made: Path, tmp_path: Path, method: str) -> None:
    """A merged backbone of a binary task, numbers and classes: finite, and not the start."""
    config = MoleculeConfig.model_validate(
        run_of(made).config.model_dump() | {"merge": {"method": method}}
    )
    run = Run(config, 0, made / "data", made / "work", torch.device("cpu"))
    result, start = merge_result(run), sub_state(run.initial_state(), "network.")
    weights = result.backbone_for("esol")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert any(not torch.equal(value, start[key]) for key, value in weights.items())


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        (">10", {}, "esol.csv, column 'logS': line 3: got '>10', expected a finite number"),
        (
            "high",
            {},
            "line 3: got 'high', expected a finite number or a missing value; classes are",
        ),
        ("1", {"units": {"logs": "M"}}, "units: got label 'logs', expected one of logS, mp, did"),
        ("1", {"target": "multilabel"}, "units: got it for target 'multilabel', expected `target:"),
        ("1", {"label_columns": None}, "got columns 'logS', 'mp' beside the molecules, expected"),
        ("1", {"target": "multiclass", "units": None}, "got 2 columns for target 'multiclass'"),
        ("1", {"classes": ["a", "b"]}, "classes: got it for target 'regression', expected `target"),
    ],
)
def test_a_bad_column_or_description_is_refused_before_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cell: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    file = write_targets(tmp_path)
    values = yaml.safe_load(file.read_text())
    described = values["datasets"]["esol"] | changes
    values["datasets"]["esol"] = {key: own for key, own in described.items() if own is not None}
    file.write_text(yaml.safe_dump(values))
    rows = numbers()
    rows[1] = (rows[1][0], cell, rows[1][2])
    write_csv(tmp_path / "data/esol.csv", "smiles", ("logS", "mp"), rows)
    assert command(tmp_path, "finetune") == 1
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "work").rglob("*.resume.pt"))


def test_a_description_without_a_target_keeps_its_fingerprint() -> None:
    """Finished pieces of binary tasks, and caches of their data, are found again."""
    spec = DatasetSpec(file="a.csv", positive="yes")
    assert not {"target", "units", "classes"} & spec.model_dump().keys()
    assert fingerprint(spec) == "8bb7b4c3eb6c1aeb"  # as before there were targets
    numbers = DatasetSpec(file="a.csv", target="regression", units="K")
    assert numbers.model_dump()["units"] == "K"
    assert DatasetSpec.model_validate(numbers.model_dump()) == numbers


def test_a_part_that_cannot_be_learnt_or_measured_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_targets(tmp_path)
    rows = [(smiles, "rare" if k == 79 else "usual") for k, smiles in enumerate(molecules())]
    subsets = ["test" if k > 60 else "valid" if k > 50 else "train" for k in range(80)]
    table = [(*row, subset) for row, subset in zip(rows, subsets, strict=True)]
    write_csv(tmp_path / "data/tail.csv", "smiles", ("tail", "part"), table)
    values = yaml.safe_load((tmp_path / "more.yaml").read_text())
    described = {"label_columns": ["tail"], "split_column": "part", "target": "multiclass"}
    values["datasets"]["tail"] = {"file": "tail.csv", **described}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(values))
    assert command(tmp_path, "finetune", config="more.yaml") == 1
    error = capsys.readouterr().err
    assert "and in train rare: 0 rows, expected rows of every class; try `split: random`" in error
    assert "target: regression" not in error
    measured = [(smiles, f"{k}.5") for k, smiles in enumerate(molecules())]
    table = [(*row, subset) for row, subset in zip(measured, subsets, strict=True)]
    write_csv(tmp_path / "data/tail.csv", "smiles", ("tail", "part"), table)
    assert command(tmp_path, "finetune", config="more.yaml") == 1
    assert "; numbers that are no classes are `target: regression`" in capsys.readouterr().err
    numbers = [(smiles, "1.5" if k > 60 else f"{k}") for k, smiles in enumerate(molecules())]
    table = [(*row, subset) for row, subset in zip(numbers, subsets, strict=True)]
    write_csv(tmp_path / "data/tail.csv", "smiles", ("tail", "part"), table)
    values["datasets"]["tail"]["target"] = "regression"
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(values))
    assert command(tmp_path, "finetune", config="more.yaml") == 1
    error = capsys.readouterr().err
    assert "in test tail: 19 x 1.5, expected numbers that differ of at least one label" in error
