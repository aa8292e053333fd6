"""Reading of YAML configurations: strict, with `extends`."""

from pathlib import Path
from typing import Any

import pytest

from merging.config.base import Section
from merging.config.reading import only_tasks, read_config
from models.errors import ConfigError


class Training(Section):
    epochs: int = 1
    rates: tuple[float, ...] = ()


class Config(Section):
    setting: str
    description: str = ""
    release: str | None = None
    training: Training = Training()
    tasks: tuple[str, ...] = ()
    datasets: dict[str, str] = {}


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    folder = tmp_path / "bundled"
    folder.mkdir()
    (folder / "base.yaml").write_text(
        "setting: base\ndescription: the base\nrelease: one\n"
        "training: {epochs: 5, rates: [0.1, 0.2]}\n"
        "tasks: [a, b]\ndatasets: {a: a.csv, b: b.csv}\n"
    )
    return folder


def read(folder: Path, text: str | bytes, bundled: Path, name: str = "mine.yaml") -> Config:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(content)
    return read_config(folder / name, Config, bundled)


def test_a_bare_name_is_looked_up_in_the_package(bundled: Path) -> None:
    config = read_config(Path("base.yaml"), Config, bundled)
    assert config.setting == "base"
    assert config.training == Training(epochs=5, rates=(0.1, 0.2))


def test_a_file_that_exists_comes_before_a_bundled_one(tmp_path: Path, bundled: Path) -> None:
    assert read(tmp_path, "setting: other", bundled, "base.yaml").setting == "other"


def test_sections_are_extended_key_by_key_and_lists_replaced(tmp_path: Path, bundled: Path) -> None:
    text = "extends: base.yaml\nsetting: mine\ntraining: {rates: [0.3]}"
    config = read(tmp_path, text, bundled)
    assert config.training == Training(epochs=5, rates=(0.3,))
    assert config.tasks == ("a", "b")


def test_the_identity_of_the_extended_file_is_not_inherited(tmp_path: Path, bundled: Path) -> None:
    config = read(tmp_path, "extends: base.yaml", bundled)
    assert (config.setting, config.description, config.release) == ("mine", "extends base", None)
    named = read(tmp_path, "extends: base.yaml\nsetting: x\ndescription: y", bundled)
    assert (named.setting, named.description) == ("x", "y")


def test_extensions_are_followed_and_a_file_beside_comes_first(
    tmp_path: Path, bundled: Path
) -> None:
    (tmp_path / "base.yaml").write_text("setting: near\ntraining: {epochs: 2}")
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\ntraining: {rates: [1.0]}")
    config = read(tmp_path, "extends: middle.yaml", bundled)
    assert config.training == Training(epochs=2, rates=(1.0,))
    assert config.description == "extends middle"


def test_what_is_said_of_other_tasks_is_dropped(tmp_path: Path, bundled: Path) -> None:
    config = read(tmp_path, "extends: base.yaml\ntasks: [b]", bundled)
    assert config.tasks == ("b",)
    assert config.datasets == {"b": "b.csv"}


def test_a_file_may_be_utf_16(tmp_path: Path, bundled: Path) -> None:
    text = "setting: mine\ndescription: größer".encode("utf-16")
    assert read(tmp_path, text, bundled).description == "größer"


OTHER = "setting: other\ntasks: [c, a]\ndatasets: {c: c.csv, a: a.csv}\n"


def test_a_file_extends_several(tmp_path: Path, bundled: Path) -> None:
    training = "training: {epochs: 5, rates: [0.1, 0.2]}"
    (tmp_path / "other.yaml").write_text(OTHER + training)
    config = read(tmp_path, "extends: [base.yaml, other.yaml]", bundled)
    assert config.tasks == ("a", "b", "c")
    assert config.datasets == {name: f"{name}.csv" for name in "abc"}
    assert (config.training.epochs, config.release) == (5, None)
    assert config.description == "extends base and other"
    fewer = read(tmp_path, "extends: [other.yaml, base.yaml]\ntasks: [b]", bundled)
    assert fewer.datasets == {"b": "b.csv"}


def test_several_files_that_differ(tmp_path: Path, bundled: Path) -> None:
    (tmp_path / "other.yaml").write_text(OTHER + "training: {epochs: 6}")
    text = "extends: [base.yaml, other.yaml]\n"
    with pytest.raises(ConfigError, match=r"got sections training of other\.yaml that differ"):
        read(tmp_path, text, bundled)
    assert read(tmp_path, text + "training: {epochs: 7}", bundled).training == Training(epochs=7)
    (tmp_path / "other.yaml").write_text("setting: other\ndatasets: {b: c.csv}")
    with pytest.raises(ConfigError, match=r"got datasets b of other\.yaml that differ"):
        read(tmp_path, text, bundled)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.yaml: got nothing, expected sections"),
        ("[1, 2]", "mine.yaml: got no sections, expected sections"),
        ("setting: [", "mine.yaml: not valid YAML"),
        ("tasks: [Temp [C]]", ": or # in it, goes into quotes"),
        ("release: %", "; a text that begins with %, or has"),
        ("a: " + "[" * 2000, "mine.yaml: not valid YAML"),
        ("setting: a\nsetting: b", "got setting twice in one section, expected each key once"),
        ("extends: mine.yaml", "mine.yaml: extends itself, expected another file"),
        ("extends: 3", "extends: got 3, expected the name of a YAML file"),
        ("extends: ''", "extends: got '', expected the name of a YAML file"),
        ("extends: absent.yaml", "mine.yaml: extends: got no configuration at .*base.yaml"),
        ("extends: list.yaml", "extends a file of list, expected a configuration"),
        ("setting: a\nsettings: b", "settings: got an unknown key, expected one of setting"),
        ("setting: a\ntraining: {epochs: x}", "mine.yaml: training.epochs"),
    ],
)
def test_what_is_no_configuration_is_refused(
    text: str, message: str, tmp_path: Path, bundled: Path
) -> None:
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text, bundled)


def test_every_problem_is_named(tmp_path: Path, bundled: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, "training: {epochs: x, rates: 3}\nzzz: 1", bundled)
    for place in ("setting", "training.epochs", "training.rates", "zzz"):
        assert place in str(refused.value)


def test_an_extension_without_a_setting_may_not_be_named_as_the_other(
    tmp_path: Path, bundled: Path
) -> None:
    with pytest.raises(ConfigError, match="got no setting, and extends one of the file's name"):
        read(tmp_path, "extends: base.yaml", bundled, "Base.yaml")


VALUES: dict[str, Any] = {
    "tasks": ["a", "b"],
    "datasets": {"a": 1, "b": 2},
    "finetune_by_task": {"b": {}},
    "alignment_by_task": "no mapping",
    "forest_by_task": {"a": {"kinds": ["bagged"]}, "b": {}},
    "compare": {
        "ablation_tasks": ["b", "a"],
        "forest_trees_by_task": {"a": 5, "b": 6},
        "forest_trees": 7,
    },
}


def test_only_tasks_keeps_what_is_said_of_these_tasks() -> None:
    kept = only_tasks(VALUES, ["a"])
    assert kept["datasets"] == {"a": 1}
    assert kept["finetune_by_task"] == {}
    assert kept["forest_by_task"] == {"a": {"kinds": ["bagged"]}}
    assert kept["compare"] == {
        "ablation_tasks": ["a"],
        "forest_trees_by_task": {"a": 5},
        "forest_trees": 7,
    }


def test_only_tasks_keeps_values_of_unexpected_types_and_its_argument() -> None:
    before = repr(VALUES)
    assert only_tasks(VALUES, ["a"])["alignment_by_task"] == "no mapping"
    assert only_tasks({"compare": 3}, []) == {"compare": 3}
    odd = {"compare": {"ablation_tasks": "ab", "forest_trees_by_task": 3}}
    assert only_tasks(odd, ["a"]) == odd
    assert repr(VALUES) == before
