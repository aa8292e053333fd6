import math
from pathlib import Path

import pytest
import yaml

from merging.config.base import CONFIG_FOLDER, fingerprint
from merging.families.molecule_config import MoleculeConfig
from merging.run.config import load_config
from models.errors import ConfigError


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_configurations_are_valid_and_named_after_their_setting(path: Path) -> None:
    config = load_config(Path(path.name))
    assert config.setting == path.stem
    counts = {"admet": 31, "moleculeace": 30}
    joined = {"admet_moleculeace": 61, "admet_moleculeace_short": 61, "moleculeace_proteins": 29}
    expected = joined.get(path.stem, counts.get(path.stem.split("_")[0], 8))
    assert len(config.tasks) == expected


def test_settings_by_task_inherit_the_common_ones(pico: MoleculeConfig) -> None:
    assert pico.alignment_for("nitrogen").epochs == 3
    assert pico.alignment_for("other") == pico.alignment.model_copy(update={"epochs": 2})
    assert pico.training_for("other") == pico.finetune


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("surplus", 1, "surplus: got an unknown key, expected one of setting, "),
        ("finetune", {"epoch": 3}, "finetune.epoch: got an unknown key, .* did you mean 'epochs'"),
        ("finetune", {"epochs": 0}, "finetune.epochs: got 0, expected greater than or equal to 1"),
        ("finetune_by_task", {"muv": {"epochs": 1}}, r"settings by task: got names \['muv'\]"),
        ("alignment_by_task", {"other": {"rank": 5}}, r"got ranks \[4, 5\], expected one rank"),
        ("tasks", ["nitrogen", "other", "other"], "expected each task once"),
        ("tasks", ["nitrogen", "other", "unheard"], r"got \['unheard'\]"),
        ("finetune", {"epochs": True}, "finetune.epochs: got true, .* expected a number"),
        ("finetune", {"learning_rate": math.inf}, "learning_rate: got inf, expected a finite"),
        ("finetune", 3, "finetune: got 3, expected a section of keys$"),
        ("setting", 3, "setting: got 3 without quotes, expected text"),
        ("setting", None, "setting: got nothing, expected text"),
        (
            "release",
            {"name": "m", "version": 1.0},
            "version: got 1.0 without quotes, expected text",
        ),
        ("router", {"solver": "sinkhron"}, "router.solver: got 'sinkhron', expected 'sinkhorn' or"),
        ("tasks", "nitrogen", "tasks: got 'nitrogen', expected a list"),
        (
            "datasets",
            {"nitrogen": {"positive": [1]}},
            r"positive: got \[1\], expected text or a sec",
        ),
        (
            "datasets",
            {"nitrogen": {"positive": True}},
            "nitrogen.positive: got true, .* in quotes$",
        ),
        ("tasks", [], "tasks: got none, expected at least one"),
        (
            "tasks",
            ["nitrogen", "CYP/3A4"],
            r"tasks.1: .*'CYP/3A4', expected .*, for example 'CYP_3A4'",
        ),
        (
            "tasks",
            ["nitrogen", "../evil"],
            r"tasks.1: .*'\.\./evil', expected .*, for example 'evil'",
        ),
        ("tasks", ["nitrogen", "a b"], r"tasks.1: .*'a b', expected .*, for example 'a_b'"),
        ("tasks", ["hiv", "bbbp", ""], r"tasks.2: .*got name ''"),
        ("tasks", ["hiv", "h" * 65], r"tasks.1: .*got name 'hhh"),
        ("setting", "../results", r"setting: .*'\.\./results', expected"),
        (
            "datasets",
            {"nitrogen": {"file": "x.csv", "label_columns": ["a", "b", "a"]}},
            "label_columns: .*label name twice: 'a'",
        ),
        (
            "release",
            {"name": "my/model"},
            r"release.name: .*'my/model', expected .*, for example 'my_model'",
        ),
        ("release", {"name": "m", "version": "1/2"}, "release.version: String should match"),
        ("router", {"temperature": -1}, "router.temperature"),
        ("merge", {"method": "magic"}, "merge: .*'magic', expected one of"),
        ("merge", {"method": "ties", "options": {"desnity": 0.2}}, "options of ties: desnity"),
        ("compare", {"mergers": {"ties": []}}, "compare.mergers.ties: got no option set"),
        ("compare", {"mergers": {"ties": [{"density": 2}]}}, "options of ties: density"),
    ],
)
def test_wrong_values_are_named(
    pico_config_file: Path, section: str, value: object, message: str
) -> None:
    content = {**yaml.safe_load(pico_config_file.read_text()), section: value}
    pico_config_file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        load_config(pico_config_file)


def test_a_file_extends_another_section_by_section(
    pico_config_file: Path, pico: MoleculeConfig
) -> None:
    child = pico_config_file.with_name("child.yaml")
    child.write_text(
        "extends: pico.yaml\nsetting: child\nalignment: {rank: 2}\ncompare: {multitask: null}\n"
    )
    config = load_config(child)
    assert config.setting == "child"
    assert config.alignment == pico.alignment.model_copy(update={"rank": 2})
    assert config.alignment_for("other").rank == 2
    assert (config.compare.multitask, config.compare.mergers) == (None, pico.compare.mergers)
    child.write_text("extends: gcn_contextpred.yaml\ndescription: of a bundled one\n")
    assert load_config(child).pretrained.weights == "gcn_contextpred"
    child.write_text("extends: pico.yaml\ntasks: [nitrogen]\n")
    config = load_config(child)
    assert (config.tasks, config.alignment_by_task, config.compare.ablation_tasks) == (
        ("nitrogen",),
        {},
        (),
    )
    child.write_text("extends: child.yaml\n")
    with pytest.raises(ConfigError, match=r"child.yaml: extends itself"):
        load_config(child)
    pico_config_file.write_text("- 1")
    child.write_text("extends: pico.yaml\n")
    with pytest.raises(
        ConfigError, match=r"child.yaml: extends a file of list, expected a configuration"
    ):
        load_config(child)
    child.write_text("extends: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"no configuration at .*nowhere.yaml"):
        load_config(child)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"no configuration at .*absent.yaml, expected .* gcn_supervised_contextpred.yaml",
    ):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing, expected sections"),
        (b"null", "got nothing, expected sections"),
        (b"- a", "got no sections, expected sections"),
        (b"text", "got no sections, expected sections"),
        (b"7", "got no sections, expected sections"),
        ("description: gr\u00fcn".encode("latin-1"), "not valid YAML: .*#x00fc"),
        (b"[" * 5000, "not valid YAML: "),
        (b"extends:", "extends: got None, expected the name of a YAML file"),
        (b"extends: [a.yaml]", r"extends: got \['a.yaml'\], expected the name"),
        (b"extends: nowhere.yaml", r"x.yaml: extends: got no configuration at .*nowhere.yaml"),
    ],
)
def test_a_file_of_anything_else_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "x.yaml")


def test_a_file_may_be_utf_16(pico_config_file: Path, pico: MoleculeConfig) -> None:
    pico_config_file.write_text(pico_config_file.read_text(), "utf-16")
    assert load_config(pico_config_file) == pico


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        (
            {"ablations": {"x": {"alignment": {"rnk": 1}}}},
            r"compare\.ablations\.x: alignment\.rnk: got an unknown key, .* did you mean 'rank'",
        ),
        (
            {"sweeps": {"rank": {"2": {"alinment": {"rank": 2}}}}},
            r"compare\.sweeps\.rank\.2: alinment: got an unknown key, .* did you mean 'alignment'",
        ),
        (
            {"sweeps": {"rank": {"0": {"alignment": {"rank": 0}}}}},
            r"compare\.sweeps\.rank\.0: alignment\.rank: got 0, expected greater",
        ),
        ({"sweeps": {"a": {"b": {"tasks": {"c": 1}}}}}, r"compare\.sweeps\.a\.b: tasks: got"),
        ({"ablation_base": {"merge": {"method": "tis"}}}, r"compare\.ablation_base: .*'tis'"),
        (
            {"sweeps": {"../evil": {}}},
            r"compare\.sweeps\.\.\./evil: got name '\.\./evil', expected",
        ),
        (
            {"sweeps": {"Recovery": {}}},
            "compare: sweeps: got 'Recovery', the name of another figure",
        ),
        (
            {"sweeps": {"ablations": {}}},
            "compare: sweeps: got 'ablations', the name of another fig",
        ),
        ({"sweeps": {"rank": {}, "Rank": {}}}, "compare: got names 'Rank' and 'rank', expected"),
        ({"ablations": {"full": {}}}, "compare: got a variant 'full', which is the base"),
        ({"sweeps": {"rank": {"full": {}}}}, "compare: got a variant 'full', which is the base"),
        ({"forest_trees_by_task": {"nitrogn": 3}}, r"got names \['nitrogn'\]"),
    ],
)
def test_what_is_compared_later_is_checked_at_once(
    compare: dict[str, object], message: str, pico_config_file: Path
) -> None:
    content = yaml.safe_load(pico_config_file.read_text()) | {"compare": compare}
    pico_config_file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
        load_config(pico_config_file)


def test_forests_of_other_tasks_are_not_handed_on(pico_config_file: Path) -> None:
    content = yaml.safe_load(pico_config_file.read_text())
    content["compare"]["forest_trees_by_task"] = {"nitrogen": 3, "other": 4}
    pico_config_file.write_text(yaml.safe_dump(content))
    child = pico_config_file.with_name("mine.yaml")
    child.write_text("extends: pico.yaml\ntasks: [other]\n")
    assert load_config(child).compare.forest_trees_by_task == {"other": 4}


def test_varied_changes_a_section_for_every_task(pico: MoleculeConfig) -> None:
    varied = pico.with_changes({"alignment": {"rank": 2, "epochs": 7}, "merge": {"method": "ties"}})
    assert {varied.alignment_for(task).rank for task in varied.tasks} == {2}
    assert {varied.alignment_for(task).epochs for task in varied.tasks} == {7}
    assert (varied.merge.method, varied.merge.options) == ("ties", {})
    assert varied.training_for("other") == pico.training_for("other")
    assert pico.alignment.rank == 4
    with pytest.raises(ValueError, match=r"alignment\.rnak"):
        pico.with_changes({"alignment": {"rnak": 2}})


def test_fingerprint_changes_with_every_part(pico: MoleculeConfig) -> None:
    base = fingerprint(pico.finetune, "task", 0)
    assert base == fingerprint(pico.finetune.model_copy(), "task", 0)
    assert (
        len(
            {
                base,
                fingerprint(pico.finetune, "task", 1),
                fingerprint(pico.finetune, "other", 0),
                fingerprint(pico.alignment, "task", 0),
            }
        )
        == 4
    )


def test_names_of_the_field_are_allowed_and_may_not_differ_in_case_alone(
    pico_config_file: Path,
) -> None:
    names = ["hERG", "CYP3A4", "Tox21_NR-AR", "ames.v2"]
    content = yaml.safe_load(pico_config_file.read_text())
    content |= {"finetune_by_task": {}, "alignment_by_task": {}, "compare": {}, "tasks": names}
    content["datasets"] = {name: {"file": "x.csv"} for name in names}
    pico_config_file.write_text(yaml.safe_dump(content))
    assert load_config(pico_config_file).tasks == tuple(names)
    content["datasets"]["HERG"] = {"file": "x.csv"}
    pico_config_file.write_text(yaml.safe_dump(content | {"tasks": [*names, "HERG"]}))
    with pytest.raises(
        ConfigError, match="got names 'hERG' and 'HERG', expected names that differ"
    ):
        load_config(pico_config_file)


def test_what_is_extended_does_not_hand_on_who_it_is(pico_config_file: Path) -> None:
    child = pico_config_file.with_name("mine.yaml")
    child.write_text("extends: pico.yaml\n")
    config = load_config(child)
    assert (config.setting, config.description, config.release) == ("mine", "extends pico", None)
    with pytest.raises(
        ConfigError,
        match=(
            r"release: got none in configuration 'mine', .*write `release: \{name: mine, version:"
            r" 1\.0\.0\}`"
        ),
    ):
        config.require_release()
    assert config.with_changes({"alignment": {"rank": 2}}).release is None
    child.write_text("extends: pico.yaml\nsetting: own\nrelease: {name: own}\n")
    config = load_config(child)
    assert config.setting == "own"
    # not the other's version
    assert config.require_release().model_dump() == {"name": "own", "version": "0.1.0"}
    grandchild = pico_config_file.with_name("grand.yaml")
    grandchild.write_text("extends: mine.yaml\n")
    config = load_config(grandchild)
    assert (config.setting, config.description, config.release) == ("grand", "extends own", None)
    unusable = pico_config_file.with_name("my config.yaml")
    unusable.write_text("extends: pico.yaml\n")
    with pytest.raises(
        ConfigError, match=r"setting: .*got name 'my config', expected .*'my_config'"
    ):
        load_config(unusable)


def test_a_file_with_the_name_of_the_setting_that_it_extends_needs_one_of_its_own(
    pico_config_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    child = tmp_path / "more" / "Pico.yaml"
    child.write_text(f"extends: {pico_config_file}\n")
    with pytest.raises(ConfigError, match="expected `setting:` with another name"):
        load_config(child)


def test_no_two_bundled_configurations_write_the_same_results_or_artifact() -> None:
    configs = [load_config(Path(path.name)) for path in CONFIG_FOLDER.glob("*.yaml")]
    names = [
        (config.require_release().name, config.require_release().version) for config in configs
    ]
    assert len(set(names)) == len({config.setting for config in configs}) == len(configs)


def test_the_admet_tasks_are_judged_as_the_benchmark_says() -> None:
    """Huang et al. 2021, table of the ADMET benchmark group."""
    config = load_config(Path("admet.yaml"))
    assert isinstance(config, MoleculeConfig)
    specs = {task: config.dataset_for(task) for task in config.tasks}
    by_seed = [task for task, spec in specs.items() if spec.validation_seeds_column]
    assert (len(specs), len(by_seed)) == (31, 19)
    metrics = {task: specs[task].info(["y"]).main_metric for task in by_seed}
    assert [task for task, metric in metrics.items() if metric == "mae"] == [
        "ld50_zhu",
        "lipophilicity_astrazeneca",
        "solubility_aqsoldb",
    ]
    ranked = [task for task, metric in metrics.items() if metric == "spearman"]
    assert [task for task, spec in specs.items() if spec.scale == "log10"] == ranked
    assert len(ranked) == 4
    assert sum(metric == "auprc" for metric in metrics.values()) == 5
    assert all(specs[task].units for task in specs if specs[task].target == "regression")
    assert all(spec.about and spec.max_dropped == 0.05 for spec in specs.values())
    assert len(config.related_to("cyp2d6_veith")) == 4
    assert config.related_to("toxcast") == ("tox21",)
    herg, ames = config.training_for("herg"), config.training_for("ames")
    assert (herg.keep, herg.head) == ("last", "probe")
    assert herg.learning_rate < ames.learning_rate
    assert config.one_pass is not None
    assert len(config.one_pass.teachers_for("herg").seeds) == 5
    one_seed = load_config(Path("admet_one_seed.yaml"))
    assert isinstance(one_seed, MoleculeConfig)
    assert one_seed.one_pass is not None
    assert not any(one_seed.one_pass.teachers_for(task).seeds for task in by_seed)
