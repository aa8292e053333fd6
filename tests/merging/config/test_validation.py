"""Configurations are closed: an unknown key is an error that names the nearest known one."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from merging.config.base import CONFIG_FOLDER
from merging.families.force_fields import ForceFieldRunConfig
from merging.families.graphs import GraphConfig
from merging.families.molecule_config import MoleculeConfig
from merging.mergers.registry import MERGERS
from merging.run.config import load_config
from merging.studies.experts.config import ExpertsConfig, load_experts_config
from merging.training.pretraining import PretrainConfig, load_pretrain_config
from models.errors import ConfigError
from models.validation import sections_at

KINDS: dict[str, tuple[type[BaseModel], Callable[[Path], Any], str]] = {
    "molecules": (MoleculeConfig, load_config, "gcn_contextpred.yaml"),
    "graphs": (GraphConfig, load_config, "graphs/cora_citeseer.yaml"),
    "force fields": (ForceFieldRunConfig, load_config, "force_fields/md17.yaml"),
    "experts": (ExpertsConfig, load_experts_config, "experts/six_domains.yaml"),
    "pre-training": (PretrainConfig, load_pretrain_config, "pretraining/gin_contextpred.yaml"),
}


def sections_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for name in model.model_fields:
        for section in sections_at(model, [name]):
            yield from sections_of(section)


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_is_closed(kind: str) -> None:
    sections = set(sections_of(KINDS[kind][0]))
    assert len(sections) > 2
    for section in {*sections, *(spec.options for spec in MERGERS.values())}:
        assert section.model_config.get("extra") == "forbid", section.__name__


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_key_is_answered_with_the_nearest(kind: str, tmp_path: Path) -> None:
    model, load, bundled = KINDS[kind]
    whole = yaml.safe_load((CONFIG_FOLDER / bundled).read_text())
    fields = model.model_fields
    mappings = [name for name, values in whole.items() if isinstance(values, dict)]
    sections = [name for name in mappings if isinstance(fields[name].annotation, type)]
    for section in ["", *sections]:
        values = whole[section] if section else whole
        key = max((key for key in values), key=len)
        wrong = {**values, key[:-1]: values[key]}
        content = {**whole, section: wrong} if section else wrong
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError) as refused:
            load(tmp_path / "own.yaml")
        place = f"{section}.{key[:-1]}" if section else key[:-1]
        assert f"{place}: got an unknown key, expected one of " in str(refused.value)
        assert f", did you mean '{key}'?" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "place", "meant"),
    [
        (
            "datasets: {nitrogen: {smile_column: s}}",
            "datasets.nitrogen.smile_column",
            "smiles_column",
        ),
        ("datasets: {nitrogen: {label_column: [y]}}", "nitrogen.label_column", "label_columns"),
        ("datasets: {nitrogen: {split_column: f, folds: {tset: 1}}}", "folds.tset", "test"),
        ("pretrained: {backbone: {hiden_dim: 16}}", "pretrained.backbone.hiden_dim", "hidden_dim"),
        ("router: {temprature: 1}", "router.temprature", "temperature"),
        ("compare: {forest_tree: 1}", "compare.forest_tree", "forest_trees"),
        ("finetune_by_task: {nitrogen: {epoch: 1}}", "nitrogen.epoch", "epochs"),
        ("merge: {method: ties, options: {desnity: 0.2}}", "options of ties: desnity", "density"),
        ("alignement: {rank: 2}", "alignement", "alignment"),
    ],
)
def test_an_unknown_key_is_refused_at_any_depth(
    text: str, place: str, meant: str, pico_config_file: Path
) -> None:
    said = refused_child(pico_config_file, text)
    assert re.search(
        rf"{place}: got an unknown key, expected one of .*, did you mean '{meant}'\?", said
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: {nitrogen: {positive: yes}}", "got true, which is what YAML makes of yes"),
        (
            "datasets: {nitrogen: {target: multiclass, classes: [a]}}",
            "datasets.nitrogen.classes: got ['a'], expected at least 2 items",
        ),
        (
            "datasets: {nitrogen: {label_columns: []}}",
            "datasets.nitrogen.label_columns: got [], expected at least 1 item",
        ),
        (
            "datasets: {nitrogne: {file: a.csv}}",
            "got names ['nitrogne'], expected names among tasks",
        ),
        ("merge: {method: tise}", "got merge method 'tise', expected one of pretrained"),
        ("merge: {method: tise}", "did you mean 'ties'?"),
        (
            "zzz: 1",
            "zzz: got an unknown key, expected one of setting, description, merge, release,",
        ),
        (
            "finetune: {epochs: 1, epochs: 2}",
            "got epochs twice in one section, expected each key once",
        ),
        ("finetune: {epochs: 1}\nfinetune: {dropout: 0.1}", "got finetune twice in one section"),
    ],
)
def test_what_fits_nowhere_is_refused(text: str, message: str, pico_config_file: Path) -> None:
    assert message in refused_child(pico_config_file, text)


def test_items_that_are_wrong_are_not_called_too_few(pico_config_file: Path) -> None:
    text = "datasets: {nitrogen: {target: multiclass, classes: [yes, no]}}"
    said = refused_child(pico_config_file, text)
    assert "datasets.nitrogen.classes.1: got false, which is what YAML makes of yes" in said
    assert "at least" not in said


def refused_child(parent: Path, text: str) -> str:
    child = parent.with_name("child.yaml")
    child.write_text(f"extends: {parent.name}\nsetting: child\n{text}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(child)
    return str(refused.value)


def test_an_anchor_may_be_merged_and_overridden(pico_config_file: Path) -> None:
    child = pico_config_file.with_name("child.yaml")
    own, inherited = "&n {epochs: 7, dropout: 0.2}", "{<<: *n, epochs: 8}"
    by_task = f"finetune_by_task:\n  nitrogen: {own}\n  other: {inherited}\n"
    child.write_text(f"extends: pico.yaml\nsetting: child\n{by_task}")
    config = load_config(child)
    assert config.training_for("other").epochs == 8
    assert config.training_for("other").dropout == 0.2


def test_data_of_other_tasks_are_not_handed_on(pico_config_file: Path) -> None:
    child = pico_config_file.with_name("child.yaml")
    child.write_text("extends: pico.yaml\nsetting: child\ntasks: [nitrogen]\n")
    assert list(load_config(child).datasets) == ["nitrogen"]
