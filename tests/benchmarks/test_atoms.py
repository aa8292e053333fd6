"""Contributions of atoms find what a model has learned, and what it needs."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.atoms import RULES, deletions, planted_rules
from benchmarks.molecules import fixed_molecules
from models.released import find_artifact
from service.core.artifact_engine import load_engine
from service.settings import Settings

LEAST_AREA = 0.95


@pytest.fixture(scope="module")
def molecules(shared: Path) -> list[str]:
    return fixed_molecules(2500, shared / "data")


@pytest.mark.slow
def test_planted_rules_are_found(shared: Path, molecules: list[str]) -> None:
    """By the network and by the trees, in molecules that neither was trained on."""
    found = planted_rules(molecules, shared / "weights", epochs=8)
    for name in ("network", "trees"):
        assert found[name]["rules"].keys() == RULES.keys()
        assert found[name]["mean"]["roc_auc"] >= LEAST_AREA, found[name]
        assert found[name]["mean"]["largest"] >= LEAST_AREA, found[name]


@pytest.mark.slow
def test_the_model_needs_the_atoms_that_contribute_most(molecules: list[str]) -> None:
    settings = Settings().model_copy(update={"device": "cpu"})
    engine = load_engine(find_artifact("moleculenet-gcn"), settings)
    for task in ("bbbp", "bace"):
        found: dict[str, Any] = deletions(molecules[:200], engine, task)
        lost = found["mean_output_lost"]
        assert lost["largest"] > lost["random"] > lost["smallest"], found
