"""From fine-tuned networks in Hu et al.'s layout to an artifact."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gmerging.cli.main import main
from merging.imports.config import make_import_config
from merging.imports.formats import format_of
from merging.imports.importing import Imported, import_models
from models.artifact import load_artifact
from models.data.molecule import pack
from models.data.smiles import featurize
from models.errors import CheckpointError, ConfigError, DataError
from models.experts.adapter import trace
from models.families.table import FAMILIES
from models.networks.hu2020 import Backbone, BackboneConfig
from tests.merging.imports.chemprop_files import FILES
from tests.merging.imports.test_hu2020 import prefixed, saved

SHAPE = BackboneConfig(kind="gin", num_layers=2, hidden_dim=8)
SMILES = ("CCO", "c1ccccc1O", "CC(=O)N", "C[C@H](N)C(=O)O", "CCCl")
CHAINS = [
    f"{'C' * k}{ring}{end}"
    for k in range(1, 9)
    for ring in ("", "c1ccccc1", "C1CCNC1")
    for end in ("O", "N", "F", "C(=O)O")
]
LABELS = ("a", "b")


def network(seed: int) -> Backbone:
    """A network near the others, whose BatchNorm statistics are those of some molecules."""
    torch.manual_seed(0)
    made = Backbone(SHAPE)
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in made.parameters():
            value += 0.05 * torch.randn_like(value)
    made.train()
    graphs = pack([featurize(text).graph for text in CHAINS])
    for _ in range(50):
        made(graphs.select(torch.arange(len(graphs))))
    return made.eval()


def head(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {"weight": torch.randn(2, 8), "bias": torch.randn(2)}


def files(folder: Path, *tasks: str) -> dict[str, Any]:
    sources = {}
    for seed, task in enumerate(tasks, 1):
        state = prefixed(network(seed).state_dict(), "gnn.")
        state |= prefixed(head(seed), "graph_pred_linear.")
        path = saved(folder / f"{task}.pth", state)
        sources[task] = {"path": str(path), "labels": list(LABELS)}
    return sources


def base(folder: Path) -> str:
    return str(saved(folder / "base.pth", network(99).state_dict()))


def molecules(folder: Path) -> str:
    path = folder / "molecules.smi"
    path.write_text("\n".join([*CHAINS, "C1CC"]))
    return str(path)


def imported(folder: Path, models: dict[str, Any], **settings: Any) -> Imported:
    config = make_import_config({"models": models, **settings}, "test")
    return import_models(config, folder / "made", folder / "work")


def answers(folder: Path) -> dict[str, Tensor]:
    model = load_artifact(folder / "made").model
    family = FAMILIES["gin"]
    batch = family.collate([featurize(text).graph for text in SMILES])
    outputs = family.answer(model, batch, model.tasks, "own")
    return {task: output.values for task, output in outputs.items()}


def test_one_model_is_served_as_it_is(tmp_path: Path) -> None:
    made = imported(tmp_path, files(tmp_path, "tox"), method="separate")
    batch = pack([featurize(text).graph for text in SMILES]).select(torch.arange(5))
    own = head(1)
    with torch.no_grad():
        vectors = trace(network(1), batch).graph_embedding
    expected = (vectors @ own["weight"].T + own["bias"]).sigmoid()
    torch.testing.assert_close(answers(tmp_path)["tox"], expected, rtol=1e-4, atol=1e-5)
    assert made.manifest.tasks["tox"].labels == LABELS
    assert any("multilabel is assumed" in note for note in made.notes)
    assert any("canonical SMILES" in note for note in made.notes)


@pytest.mark.parametrize("method", ["adapters", "one-pass"])
def test_training_brings_predictions_nearer_to_the_own_models(method: str, tmp_path: Path) -> None:
    models, data = files(tmp_path, "tox", "sol"), molecules(tmp_path)
    settings = {"method": method, "molecules": data, "rank": 4, "base": base(tmp_path)}
    short = imported(tmp_path, models, epochs=1, **settings)
    longer = imported(tmp_path, models, epochs=40, **settings)
    assert sum(longer.difference.values()) < sum(short.difference.values())
    assert longer.manifest.metrics["difference"] == longer.difference
    assert longer.manifest.provenance["training"]["pool"]["unreadable"] == 1
    found = answers(tmp_path)
    assert found.keys() == {"tox", "sol"}
    assert all(bool(values.isfinite().all()) for values in found.values())
    again = imported(tmp_path, models, epochs=40, **settings)  # resumed: every epoch is done
    assert again.difference == pytest.approx(longer.difference, rel=1e-3)


def test_a_regression_answers_in_its_units(tmp_path: Path) -> None:
    models = files(tmp_path, "sol")
    models["sol"] |= {"target": "regression", "units": {"a": "log mol/L"}}
    made = imported(tmp_path, models, method="separate")
    assert made.manifest.tasks["sol"].unit_of == {"a": "log mol/L"}
    assert not any("assumed" in note and "multilabel" in note for note in made.notes)
    assert float(answers(tmp_path)["sol"].min()) < 0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "residual": ({"method": "residual"}, "method: got residual with a network in Hu et al"),
    "several separate": ({"method": "separate"}, "got separate with 2 models in Hu et al"),
    "reading": (
        {"method": "one-pass", "reading": "as_written"},
        "reading: got as_written with a network in Hu",
    ),
    "options": ({"method": "one-pass", "options": {}}, "options: got some with a network in Hu"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_the_layout_does_not_have_is_refused(case: str, tmp_path: Path) -> None:
    settings, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, files(tmp_path, "tox", "sol"), molecules=molecules(tmp_path), **settings)


def test_names_of_outputs_are_needed(tmp_path: Path) -> None:
    models = files(tmp_path, "tox")
    for labels, message in [
        (None, "got no labels, expected 2 names that differ, by --labels tox=NAME"),
        (["a"], "got the labels a, expected 2 names"),
        (["a", "a"], "got the labels a, a, expected 2 names"),
    ]:
        models["tox"]["labels"] = labels
        with pytest.raises(CheckpointError, match=message):
            imported(tmp_path, models, method="separate")


def test_a_network_without_a_head_can_only_be_a_base(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got no head, expected a fine-tuned network"):
        imported(tmp_path, {"tox": base(tmp_path)}, method="separate")


def test_two_formats_do_not_mix(tmp_path: Path) -> None:
    models = {**files(tmp_path, "tox"), "sol": str(FILES / "regression.pt")}
    config = make_import_config({"models": models}, "test")
    with pytest.raises(ConfigError, match="sol: got a chemprop model, expected a network in Hu"):
        format_of(config)


def test_chemprop_models_have_layers_and_a_target_of_their_own(tmp_path: Path) -> None:
    path = str(FILES / "regression.pt")
    with pytest.raises(ConfigError, match="layers: got gcn with a chemprop model"):
        imported(tmp_path, {"sol": path}, method="separate", layers="gcn")
    model = {"path": path, "target": "multilabel"}
    with pytest.raises(ConfigError, match="target: got multilabel, expected regression, as"):
        imported(tmp_path, {"sol": model}, method="separate")


def test_a_file_without_readable_molecules_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "one.smi"
    empty.write_text("CCO\nC1CC\n")
    with pytest.raises(DataError, match="got 1 readable molecules of 2, expected at least 2"):
        imported(tmp_path, files(tmp_path, "tox"), method="one-pass", molecules=str(empty))


def test_the_commands_read_this_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = files(tmp_path, "tox", "sol")
    pairs = [f"{task}={source['path']}" for task, source in models.items()]
    labels = ["--labels", "tox=a,b", "sol=c,d"]
    about = [*pairs, *labels, "--targets", "sol=regression", "--base", base(tmp_path)]
    assert main(["check-models", *about]) == 0
    out = capsys.readouterr().out
    assert "gin, 2 layers x 8" in out
    assert "2 regression: c, d" in out
    assert out.count("related") == 2
    place = ["--output", str(tmp_path / "made"), "--work", str(tmp_path)]
    training = ["--method", "one-pass", "--molecules", molecules(tmp_path), "--epochs", "1"]
    assert main(["import-models", *about, *training, *place]) == 0
    assert "2 tasks, rank 100" in capsys.readouterr().out
    assert load_artifact(tmp_path / "made").manifest.tasks["sol"].target == "regression"
