"""A regression over several orders of magnitude: learnt as logarithms, answered in its unit."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn.metrics import mean_absolute_error

from gmerging.cli.main import main
from merging.families.molecules import MOLECULES
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.scores import evaluation
from models.artifact import load_artifact
from models.data.molecule import collate
from models.data.smiles import featurize
from models.families.table import FAMILIES
from service.core.artifact_engine import load_engine
from tests.merging.conftest import TAILS, molecules, run_options, write_csv, write_pico
from tests.service.doubles import serving, settings_of

TASK = "half_life"


def hours() -> list[tuple[str, str]]:
    """A half-life that rises tenfold with every carbon of the tail, from minutes to weeks."""
    counts = [TAILS[k % len(TAILS)].count("C") for k in range(len(molecules()))]
    return [
        (smiles, f"{0.1 * 10**count * (1 + 0.01 * k):.5g}")
        for k, (smiles, count) in enumerate(zip(molecules(), counts, strict=True))
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a binary task by AUPRC and a half-life, and its `artifact`. Read only."""
    folder = tmp_path_factory.mktemp("log-scale")
    config = yaml.safe_load(write_pico(folder).read_text())
    write_csv(folder / f"data/{TASK}.csv", "smiles", ("y",), hours())
    config |= {"tasks": ["nitrogen", TASK], "alignment_by_task": {}, "compare": {}}
    described = {
        "file": f"{TASK}.csv",
        "label_columns": ["y"],
        "label_names": ["t_half"],
        "target": "regression",
        "units": "h",
        "scale": "log10",
        "metric": "spearman",
    }
    nitrogen = config["datasets"]["nitrogen"] | {"metric": "auprc"}
    config["datasets"] = {"nitrogen": nitrogen, TASK: described}
    config["finetune"] |= {"epochs": 30, "learning_rate": 0.01, "schedule": "cosine"}
    config["finetune"] |= {"keep": "last", "loss": "smooth_l1"}
    (folder / "pico.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", str(folder / "pico.yaml"), "--output", str(folder / "artifact")]
    assert main(["release", *arguments, *run_options(folder)]) == 0
    return folder


def run_of(folder: Path) -> Run:
    config = load_config(folder / "pico.yaml")
    return Run(config, 0, folder / "data", folder / "work", torch.device("cpu"))


def test_tables_are_by_the_tasks_metric_and_errors_in_the_unit(made: Path) -> None:
    run = run_of(made)
    record = run.result(evaluation("finetuned", run, TASK, ("stored", "batch"))).record["stored"]
    assert record["test"].keys() == {"spearman", "score"}
    assert record["test"]["spearman"] == record["test"]["score"] > 0.5
    manifest = load_artifact(made / "artifact").manifest
    assert manifest.metrics["gmerging_own"].keys() >= {"auprc", "spearman", "valid_auprc"}
    assert "roc_auc" not in manifest.metrics["gmerging_own"]
    card = (made / "artifact/README.md").read_text()
    assert "| method | nitrogen (AUPRC) | half_life (Spearman) | average |" in card
    assert re.search(r"t_half \(0\.1 to 1\d\.\d*, h, learnt as log10\)", card)


def test_the_network_learns_logarithms_and_answers_numbers(made: Path) -> None:
    run, artifact = run_of(made), load_artifact(made / "artifact")
    data, test = run.dataset(TASK), artifact.manifest.metrics["test"][TASK]["t_half"]
    family = FAMILIES[artifact.manifest.backbone.kind]
    batch = data.graphs.select(data.split.test)
    output = family.answer(artifact.model, batch, [TASK], "own")[TASK]
    assert output.target == "log10_regression"
    torch.testing.assert_close(output.values, 10**output.logits)
    assert bool((data.labels < 4).all())
    truth = 10 ** data.labels[data.split.test].double()
    error = mean_absolute_error(truth.numpy(), output.values.double().numpy())
    assert test["mae"] == pytest.approx(error, rel=1e-3)
    served = family.answer(family.served(artifact.model), batch, [TASK], "own")[TASK]
    torch.testing.assert_close(served.values, output.values, rtol=1e-3, atol=1e-5)


@pytest.mark.anyio
async def test_the_service_answers_in_the_unit(made: Path) -> None:
    engine = load_engine(made / "artifact", settings_of(device="cpu"))
    artifact, smiles = load_artifact(made / "artifact"), molecules()[:8]
    graphs = collate([featurize(text).graph for text in smiles])
    expected = artifact.model(graphs, [TASK]).probabilities[TASK][:, 0]
    async with serving(engine) as client:
        answer: Any = (await client.post("/predict", json={"smiles": smiles})).json()
        found = [item["tasks"][TASK]["t_half"] for item in answer["predictions"]]
        assert found == pytest.approx(expected.tolist(), rel=1e-3)
        assert min(found) > 0
        assert answer["predictions"][0]["units"] == {TASK: {"t_half": "h"}}
        (_, task) = (await client.get("/tasks")).json()["tasks"]
        assert task["units"] == {"t_half": "h"}
        assert not {"scale", "metric"} & task.keys()


def test_the_artifact_says_scale_and_metric(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = load_artifact(made / "artifact").manifest.tasks[TASK]
    assert (info.scale, info.metric, info.labels) == ("log10", "spearman", ("t_half",))
    assert main(["inspect", str(made / "artifact")]) == 0
    said = capsys.readouterr().out
    assert "Spearman 0." in said
    assert "t_half [h]" in said
    assert re.search(r"nitrogen +1 label +AUPRC \d\.\d{3}", said)


def test_the_loss_of_a_regression_is_the_configured_one(made: Path) -> None:
    run = run_of(made)
    data, settings = run.dataset(TASK), run.config.training_for(TASK)
    outputs, labels = torch.tensor([[3.0], [0.5]]), torch.tensor([[0.0], [0.0]])
    head = torch.nn.Linear(1, 1)
    assert float(MOLECULES.loss(outputs, labels, data, head, settings)) == pytest.approx(1.3125)
    squared = settings.model_copy(update={"loss": "squared"})
    assert float(MOLECULES.loss(outputs, labels, data, head, squared)) == pytest.approx(4.625)
