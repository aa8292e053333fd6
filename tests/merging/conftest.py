"""A pico data set and a pico checkpoint, made on the spot: real files through the real pipeline."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from merging.families.molecule_config import MoleculeConfig
from merging.run.config import load_config
from merging.run.run import Run
from tests.conftest import pico_config, random_backbone

RINGS = ("c1ccccc1", "c1ccncc1", "C1CCCCC1", "C1CCNCC1", "c1ccoc1", "c1ccsc1", "C1CC1", "C1CCOC1")
TAILS = ("O", "N", "C", "CC", "CO", "C(=O)O", "C#N", "Cl", "F", "CCN")


def run_options(tmp_path: Path) -> list[str]:
    """Options of `gmerging` that keep a run in the test's own folder, on one thread of the CPU."""
    folders = ["--data", str(tmp_path / "data"), "--work", str(tmp_path / "work")]
    return [*folders, "--device", "cpu", "--threads", "1"]


def write_csv(
    path: Path, smiles_column: str, labels: tuple[str, ...], rows: list[tuple[str, ...]]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([(smiles_column, *labels), *rows])


def molecules() -> list[str]:
    return [ring + tail for ring in RINGS for tail in TAILS]


def tail_has(*elements: str) -> list[str]:
    """For each molecule, whether its tail has one of the elements: every scaffold then has both
    classes."""
    return [str(int(any(element in tail for element in elements))) for _ in RINGS for tail in TAILS]


def stereo_corpus() -> list[str]:
    """Molecules that are long enough to have a context, some with stereo centres and double bonds
    with a direction."""
    return [
        ring + linker + tail
        for ring in RINGS
        for linker in ("CCCC", "C(=O)NCC", "O[C@H](C)CC", "/C=C/CC")
        for tail in TAILS
    ]


@pytest.fixture
def pico_config_file(tmp_path: Path) -> Path:
    """`write_pico` in the test's own folder."""
    return write_pico(tmp_path)


def write_pico(tmp_path: Path) -> Path:
    """Data, weights and `pico.yaml`.

    Two tasks: has the tail a nitrogen; has it an oxygen, and has it a halogen (with a missing label
    now and then).
    """
    halogen = ["" if k % 9 == 0 else label for k, label in enumerate(tail_has("Cl", "F"))]
    write_csv(
        tmp_path / "data/nitrogen.csv",
        "smiles",
        ("has_n",),
        list(zip(molecules(), tail_has("N"), strict=True)),
    )
    write_csv(
        tmp_path / "data/other.csv",
        "mol",
        ("has_o", "has_halogen"),
        list(zip(molecules(), tail_has("O"), halogen, strict=True)),
    )
    backbone = random_backbone(pico_config())
    save_file(backbone.state_dict(), tmp_path / "weights.safetensors")
    content = {
        "setting": "pico",
        "description": "made in a test",
        "pretrained": {
            "backbone": pico_config().model_dump(),
            "weights": str(tmp_path / "weights.safetensors"),
        },
        "tasks": ["nitrogen", "other"],
        "datasets": {
            "nitrogen": {"file": "nitrogen.csv", "about": "has nitrogen"},
            "other": {"file": "other.csv", "smiles_column": "mol"},
        },
        "finetune": {"epochs": 3, "batch_size": 16, "dropout": 0.1},
        "merge": {"method": "task_arithmetic", "options": {"scaling": 0.4}},
        "alignment": {"rank": 4, "epochs": 3, "batch_size": 16},
        "alignment_by_task": {"other": {"epochs": 2}},
        "one_pass": {"rank": 4, "epochs": 2, "batch_size": 16},
        "compare": {
            "mergers": {
                "weight_average": [{}],
                "task_arithmetic": [{"scaling": 0.2}, {"scaling": 0.5}],
                "regmean": [{}],
                "emr": [{}],
                "residual": [{"rank": 3}],
            },
            "multitask": {"epochs": 2, "batch_size": 16},
            "forest_trees": 5,
            "ablation_base": {"alignment": {"epochs": 1}},
            "ablation_tasks": ["other"],
            "ablations": {
                "without_l1": {"alignment": {"alpha": 0}},
                "without_merging": {"merge": {"method": "pretrained"}},
            },
            "sweeps": {
                "rank": {"2": {"alignment": {"rank": 2}}},
                "top_k": {"1": {"router": {"top_k": 1}}, "2": {"router": {"top_k": 2}}},
            },
        },
        "release": {"name": "pico", "version": "1.2.3"},
    }
    file = tmp_path / "pico.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def pico(pico_config_file: Path) -> MoleculeConfig:
    config = load_config(pico_config_file)
    assert isinstance(config, MoleculeConfig)
    return config


@pytest.fixture
def pico_run(pico: MoleculeConfig, tmp_path: Path) -> Run:
    return Run(pico, 0, tmp_path / "data", tmp_path / "work", torch.device("cpu"))
