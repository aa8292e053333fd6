"""Settings of joint alignment: what is refused, and in which words."""

from typing import Any

import pytest
from pydantic import ValidationError

from merging.config.joint_alignment import JointAlignmentConfig
from merging.config.reading import only_tasks
from merging.families.molecule_config import MoleculeConfig
from models.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pool": {"tasks": []}}, "got no tasks and no files, expected a source of molecules"),
        (
            {"pool": {"tasks": ["a"], "most_by_task": {"b": 3}}},
            r"most_by_task: got \['b'\], expected names among `tasks`",
        ),
        ({"losses": {"logits": 0}}, "got weight 0 for every term, expected one that is not"),
        (
            {"teachers": {"artifact": "x", "seeds": [1]}},
            "got an artifact and seeds, expected one of them",
        ),
        ({"teachers": {"seeds": [1, 1]}}, r"seeds: got \[1, 1\], expected each seed once"),
        ({"batch_size": 1}, "greater than or equal to 2"),
        ({"task_weights": {"a": -1}}, "greater than or equal to 0"),
        ({"magic": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JointAlignmentConfig.model_validate(values)


def with_section(config: MoleculeConfig, **values: Any) -> MoleculeConfig:
    return MoleculeConfig.model_validate({**config.model_dump(), **values})


def test_tasks_of_the_section_are_tasks_of_the_run(pico: MoleculeConfig) -> None:
    for section in (
        {"task_weights": {"muv": 2}},
        {"teachers_by_task": {"muv": {"seeds": [1]}}},
        {"pool": {"tasks": ["muv"]}},
        {"pool": {"most_by_task": {"muv": 2}}},
    ):
        with pytest.raises(ValidationError, match=r"got names \['muv'\], expected names among"):
            with_section(pico, one_pass=section)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "one-pass"}, "method: got no section `one_pass`"),
        ({"compare": {"one_pass": {"a": {}}}}, r"compare\.one_pass: got no section `one_pass`"),
    ],
)
def test_what_needs_the_section_says_so(
    pico: MoleculeConfig, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        with_section(pico, one_pass=None, **values)


def test_an_invalid_variant_is_named(pico: MoleculeConfig) -> None:
    wrong = {"one_pass": {"tall": {"rank": 0}}}
    with pytest.raises(ConfigError, match=r"compare\.one_pass\.tall: one_pass\.rank"):
        with_section(pico, one_pass={}, compare=wrong).check_variants()


def test_a_variant_changes_what_it_names_and_keeps_the_rest(pico: MoleculeConfig) -> None:
    section = {"rank": 7, "losses": {"logits": 2.0}, "pool": {"size": 50, "watched": 3}}
    config = with_section(pico, one_pass=section)
    change = {"epochs": 2, "losses": {"embeddings": 0.5}, "pool": {"size": 9}}
    varied = config.with_changes(config.one_pass_change(change)).one_pass
    assert varied is not None
    assert (varied.rank, varied.epochs) == (7, 2)
    assert (varied.losses.logits, varied.losses.embeddings) == (2.0, 0.5)
    assert (varied.pool.size, varied.pool.watched) == (9, 3)


def test_fewer_tasks_drop_what_is_said_of_others() -> None:
    section = {
        "rank": 5,
        "task_weights": {"a": 2, "b": 3},
        "teachers_by_task": {"b": {"seeds": [1]}},
        "pool": {"tasks": ["a", "b"], "most_by_task": {"b": 4}, "size": 6},
    }
    assert only_tasks({"one_pass": section}, ["a"])["one_pass"] == {
        "rank": 5,
        "task_weights": {"a": 2},
        "teachers_by_task": {},
        "pool": {"tasks": ["a"], "most_by_task": {}, "size": 6},
    }
    assert only_tasks({"one_pass": None}, ["a"]) == {"one_pass": None}
