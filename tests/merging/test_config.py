import re
from pathlib import Path

import pytest
import yaml

from merging.config import CONFIG_FOLDER, RunConfig, fingerprint, load_config
from models.errors import ConfigError


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_configurations_are_valid_and_named_after_their_setting(path: Path) -> None:
    config = load_config(Path(path.name))
    assert config.setting == path.stem
    assert len(config.tasks) == 8


def test_settings_by_task_inherit_the_common_ones(pico: RunConfig) -> None:
    assert pico.alignment_for("nitrogen").epochs == 3
    assert pico.alignment_for("other") == pico.alignment.model_copy(update={"epochs": 2})
    assert pico.finetune_for("other") == pico.finetune


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("surplus", 1, "surplus: got an unknown key, expected one of setting, "),
        ("finetune", {"epoch": 3}, "finetune.epoch: got an unknown key, .* did you mean 'epochs'"),
        ("finetune", {"epochs": 0}, "finetune.epochs: Input should be greater than or equal to 1"),
        ("finetune_by_task", {"muv": {"epochs": 1}}, r"settings by task: got names \['muv'\]"),
        ("alignment_by_task", {"other": {"rank": 5}}, r"got ranks \[4, 5\], expected one rank"),
        ("tasks", ["nitrogen", "other", "other"], "expected each task once"),
        ("tasks", ["nitrogen", "other", "unheard"], r"got \['unheard'\]"),
        ("tasks", [], "tasks"),
        ("router", {"temperature": -1}, "router.temperature"),
        ("merge", {"method": "magic"}, "merge: .*'magic', expected one of"),
        ("merge", {"method": "ties", "options": {"desnity": 0.2}}, "options of ties: desnity"),
        ("compare", {"mergers": {"ties": []}}, "compare.mergers.ties: got no option set"),
        ("compare", {"mergers": {"ties": [{"density": 2}]}}, "options of ties: density"),
    ],
)
def test_wrong_values_are_named(pico_config_file: Path, section: str, value: object, message: str) -> None:
    content = {**yaml.safe_load(pico_config_file.read_text()), section: value}
    pico_config_file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        load_config(pico_config_file)


def test_a_file_extends_another_section_by_section(pico_config_file: Path, pico: RunConfig) -> None:
    child = pico_config_file.with_name("child.yaml")
    child.write_text("extends: pico.yaml\nsetting: child\nalignment: {rank: 2}\ncompare: {multitask: null}\n")
    config = load_config(child)
    assert config.setting == "child"
    assert config.alignment == pico.alignment.model_copy(update={"rank": 2})
    assert config.alignment_for("other").rank == 2
    assert (config.compare.multitask, config.compare.mergers) == (None, pico.compare.mergers)
    child.write_text("extends: gcn_contextpred.yaml\ndescription: of a bundled one\n")
    assert load_config(child).setting == "gcn_contextpred"
    child.write_text("extends: pico.yaml\ntasks: [nitrogen]\n")
    config = load_config(child)
    assert (config.tasks, config.alignment_by_task, config.compare.ablation_tasks) == (("nitrogen",), {}, ())
    child.write_text("extends: child.yaml\n")
    with pytest.raises(ConfigError, match=r"child.yaml: extends itself"):
        load_config(child)
    pico_config_file.write_text("- 1")
    child.write_text("extends: pico.yaml\n")
    with pytest.raises(ConfigError, match=r"child.yaml: extends a file of list, expected a configuration"):
        load_config(child)
    child.write_text("extends: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"no configuration at .*nowhere.yaml"):
        load_config(child)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration at .*absent.yaml, expected .* gcn_supervised_contextpred.yaml"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")


def test_varied_changes_a_section_for_every_task(pico: RunConfig) -> None:
    varied = pico.varied({"alignment": {"rank": 2, "epochs": 7}, "merge": {"method": "ties"}})
    assert {varied.alignment_for(task).rank for task in varied.tasks} == {2}
    assert {varied.alignment_for(task).epochs for task in varied.tasks} == {7}
    assert (varied.merge.method, varied.merge.options) == ("ties", {})
    assert varied.finetune_for("other") == pico.finetune_for("other")
    assert pico.alignment.rank == 4
    with pytest.raises(ValueError, match=r"alignment\.rnak"):
        pico.varied({"alignment": {"rnak": 2}})


def test_fingerprint_changes_with_every_part(pico: RunConfig) -> None:
    base = fingerprint(pico.finetune, "task", 0)
    assert base == fingerprint(pico.finetune.model_copy(), "task", 0)
    assert len({base, fingerprint(pico.finetune, "task", 1), fingerprint(pico.finetune, "other", 0), fingerprint(pico.alignment, "task", 0)}) == 4


def test_the_configuration_of_the_readme_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (block,) = [found for found in blocks if "label_columns" in found]
    (tmp_path / "mine.yaml").write_text(block)
    assert set(load_config(tmp_path / "mine.yaml").datasets) == {"solubility", "herg", "ames"}
