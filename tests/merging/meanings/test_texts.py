"""The texts that come with the package, and those of a configuration."""

from pathlib import Path

import pytest
import yaml

import models
from merging.meanings.texts import FOLDER, task_text
from models.artifact import read_manifest
from models.errors import ConfigError
from models.meaning import LabelText, TaskText
from models.task import TaskInfo

RELEASES = Path(models.__file__).parent / "releases"
TEXT = LabelText(name="a", measured="Whether it is a.", direction="good", one="it is")
INFO = TaskInfo(labels=("herg",))


def text_about(*labels: str, one: str | None = "it is") -> TaskText:
    texts = {label: TEXT.model_copy(update={"one": one}) for label in labels}
    return TaskText(source="ours", terms="CC0", labels=texts)


def test_every_bundled_text_is_that_of_a_released_task() -> None:
    """And the released tasks have the texts as they are in the package."""
    found, bundled = set(), set()
    for path in FOLDER.glob("*.yaml"):
        bundled |= {(path.stem, task) for task in yaml.safe_load(path.read_text())}
    for folder in RELEASES.iterdir():
        for task, info in read_manifest(folder)[0].tasks.items():
            (collection,) = [own for own, name in bundled if name == task]
            found.add((collection, task))
            text = task_text(collection, task, info)
            assert info.meaning is not None
            assert (info.meaning.source, info.meaning.terms) == (text.source, text.terms)
            for label, own in zip(info.labels, info.meaning.labels, strict=True):
                assert text.labels[label] == LabelText(
                    **{name: getattr(own, name) for name in LabelText.model_fields}
                )
    assert found == bundled


def test_the_example_of_the_documentation_is_a_configuration() -> None:
    page = (Path(models.__file__).parents[1] / "docs/label-meanings.md").read_text()
    block = page.split("```yaml\n")[1].split("```")[0]
    texts = yaml.safe_load(block)["meanings"]
    infos = {
        "solubility": TaskInfo(labels=("logS",), target="regression"),
        "herg": TaskInfo(labels=("blocker",)),
    }
    for task, section in texts.items():
        assert task_text(TaskText.model_validate(section), task, infos[task]).labels


def test_own_texts_are_taken_as_they_are() -> None:
    text = text_about("herg")
    assert task_text(text, "mine", INFO) == text


@pytest.mark.parametrize(
    ("collection", "task", "info", "message"),
    [
        ("nope", "herg", INFO, "got 'nope', expected one of cora, md17, moleculenet, tdc, or"),
        ("tdc", "mine", INFO, "meanings.mine: got no such task in 'tdc', expected one of hia_hou"),
        ("tdc", "herg", INFO, "meanings.herg: got no text about label 'herg'"),
        (text_about("herg", "b"), "herg", INFO, "got a text about 'b', expected labels of"),
        (text_about("herg", one=None), "herg", INFO, "got no `one`, expected what 1 means"),
        (
            text_about("herg"),
            "herg",
            TaskInfo(labels=("herg",), target="regression"),
            "got `one`, expected none for a number",
        ),
        ("moleculenet", "toxcast", INFO, "got label 'herg'"),
    ],
)
def test_texts_that_do_not_fit_are_refused(
    collection: str | TaskText, task: str, info: TaskInfo, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        task_text(collection, task, info)
