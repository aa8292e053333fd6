import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from merging.data.split import Subset
from merging.families.force_fields import CHGNET_FORCE_FIELDS, ChgnetRunConfig
from merging.family import random_state
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.stages import teacher
from merging.studies import pretrained_forces as study
from merging.studies.pretrained_forces_tables import errors_table, pretrained_forces_tables
from models.errors import ConfigError
from tests.merging.families.test_force_fields import SHAPES, write_md17
from tests.pages import page

ROOT = Path(__file__).parents[3]
CONFIG = ChgnetRunConfig.model_validate(
    {
        "setting": "pico_chgnet",
        "source": "md17",
        "tasks": list(SHAPES),
        "network": {
            "kind": "chgnet",
            "hidden_dim": 8,
            "num_interactions": 2,
            "num_radial": 4,
            "num_angular": 5,
            "cutoff": 3.0,
            "angle_cutoff": 2.0,
        },
        "frames": {"train": 4, "valid": 2, "test": 3},
        "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01},
        "merge": {"method": "gffmerge"},
        "calibration_frames": 4,
        "tuning": {"epochs": 1, "batch_size": 4, "frames": 4},
    }
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for task in SHAPES:
        write_md17(folder, task)
    return folder


def test_the_study_measures_every_method_and_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "SEQUENTIAL_FRAMES", {"md17": 2})
    monkeypatch.setattr(study, "DENSITIES", (0.5,))
    monkeypatch.setattr(study, "RIDGES", (1e-3, 1e-1))
    results, work = tmp_path / "results.json", tmp_path / "work"
    measured = study.subset_errors

    left = iter(range(4))  # start, separate, mean, the first candidate of task arithmetic

    def stopped(run: Run, models: study.Models, subset: Subset) -> study.ErrorsByTask:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return measured(run, models, subset)

    with monkeypatch.context() as patched:
        patched.setattr(study, "subset_errors", stopped)
        with pytest.raises(KeyboardInterrupt):
            study.run_study(CONFIG, data, work, [0], results)
    begun = json.loads(results.read_text())["pico_chgnet"]["rows"]
    assert list(begun) == ["no model", "start", "separate", "mean"]
    assert "| mean |" in pretrained_forces_tables(json.loads(results.read_text()))

    entry = study.run_study(CONFIG, data, work, [0], results)
    assert list(entry["rows"]) == ["no model", *study.METHODS]
    assert {name: rows["0"] for name, rows in entry["rows"].items() if name in begun} == {
        name: rows["0"] for name, rows in begun.items()
    }
    assert json.loads(results.read_text()) == {"pico_chgnet": json.loads(json.dumps(entry))}
    for rows in entry["rows"].values():
        assert set(rows["0"]["errors"]) == set(SHAPES)
    for name, count in (("task arithmetic", 4), ("TIES", 3), (study.PULLED, 2)):
        row = entry["rows"][name]["0"]
        assert len(row["tried"]) == count
        least = min(row["tried"], key=lambda tried: tried["valid"])
        assert row["options"] == {key: least[key] for key in row["options"]}
    assert entry["rows"]["EMR"]["0"]["rescalers"].keys() == SHAPES.keys()
    assert entry["rows"]["separate"]["0"] != entry["rows"]["mean"]["0"]
    assert set(entry["training"]["0"]) == {*SHAPES, *study.TRAINED, *study.ADAPTED}
    assert errors_table(entry).count("\n") == len(study.METHODS) + 2


def test_a_pretrained_start_is_one_start() -> None:
    values = CONFIG.model_dump() | {"pretrained": True, "initialisation": "different"}
    with pytest.raises(ValidationError, match="got 'different' with `pretrained`"):
        ChgnetRunConfig.model_validate(values)


def test_a_pretrained_run_starts_from_the_released_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = random_state(
        7,
        network=lambda: CHGNET_FORCE_FIELDS.network(CONFIG.network),
        head=lambda: CHGNET_FORCE_FIELDS.head(CONFIG.network, None),
    )
    weights = {key: released[key] for key in released if "atom_energies" not in key}
    (tmp_path / "weights").write_text("the released weights")
    monkeypatch.setattr("merging.families.force_fields.weights_file", lambda: tmp_path / "weights")
    monkeypatch.setattr("merging.families.force_fields.read_weights", lambda _: weights)
    run = Run(CONFIG.model_copy(update={"pretrained": True}), 0, data, tmp_path)
    model = study.untrained_model(run)
    assert torch.equal(model.network.state_dict()["norm.weight"], released["network.norm.weight"])
    for task in run.tasks:
        expert = model.expert(task)
        assert torch.equal(expert.get_parameter("lin2.weight"), released["head.lin2.weight"])
        assert float(expert.scale) == 1.0
    random = Run(CONFIG, 0, data, tmp_path)
    first = CONFIG.tasks[0]
    assert random.initial_fingerprint == ""
    assert teacher(run, first).key != teacher(random, first).key


def test_other_networks_are_refused(data: Path, tmp_path: Path) -> None:
    config = load_config(Path("md17.yaml"))
    with pytest.raises(ConfigError, match="expected one of CHGNet force fields with `tuning`"):
        study.run_study(config, data, tmp_path, [0], tmp_path / "results.json")


def test_the_configurations_differ_in_what_they_say() -> None:
    names = ("md17_chgnet", "md17_chgnet_random", "md17_chgnet_long", "lips20_chgnet")
    found = {name: load_config(Path(f"{name}.yaml")) for name in names}
    values = {name: config.model_dump() for name, config in found.items()}
    assert [values[name]["pretrained"] for name in names] == [True, False, True, True]
    assert all(config.setting == name for name, config in found.items())
    same = {"setting", "description", "pretrained"}
    first, random = (values[name] for name in names[:2])
    assert {key for key in first if first[key] != random[key]} == same
    assert values["md17_chgnet_long"]["frames"] == {"train": 950, "valid": 24, "test": 100}


def test_the_page_shows_the_results() -> None:
    path = ROOT / "results" / "neighbours" / "gffmerge-pretrained.json"
    results = json.loads(path.read_text())
    assert pretrained_forces_tables(results) in page("gffmerge-pretrained.md").read_text()
