"""Tasks of the same property: no training molecule of one is a test molecule of another."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from gmerging.cli.main import main
from merging.config.reading import only_tasks
from merging.families.molecule_config import MoleculeConfig
from merging.planning.plan import group_run
from merging.release.release import data_provenance
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.stages import teacher
from merging.studies.overlaps import overlap_tables, run_study
from merging.studies.rows import reference_rows
from models.errors import DataError
from tests.merging.conftest import molecules, run_options, tail_has, write_csv, write_pico

SUBSETS = {
    "nitrogen": ("train", "train", "train", "test", "valid"),
    "other": ("valid", "train", "test", "train", "train"),
}


def related_run(folder: Path, related: list[list[str]]) -> Run:
    """Two tasks on the same molecules; what is a test molecule of the one, is learnt by the other,
    and written without its stereochemistry."""
    config = yaml.safe_load(write_pico(folder).read_text())
    alanine = ("N[C@@H](C)C(=O)O", "1"), ("NC(C)C(=O)O", "1")
    for k, (task, label) in enumerate((("nitrogen", "N"), ("other", "O"))):
        subsets = [SUBSETS[task][(j + j // 10) % 5] for j in range(80)]
        rows = list(zip(molecules(), tail_has(label), subsets, strict=True))
        rows.append((*alanine[k], ("train", "test")[k]))
        write_csv(folder / f"data/{task}.csv", "smiles", ("y", "split"), rows)
        config["datasets"][task] = {"file": f"{task}.csv", "split_column": "split"}
    config |= {"related": related, "alignment_by_task": {}}
    config["compare"] = {"forest_trees": 5}
    (folder / "pico.yaml").write_text(yaml.safe_dump(config))
    settings = load_config(folder / "pico.yaml")
    return Run(settings, 0, folder / "data", folder / "work", torch.device("cpu"))


def test_test_molecules_of_related_tasks_are_left_out_and_counted(tmp_path: Path) -> None:
    whole, rest = related_run(tmp_path, []), related_run(tmp_path, [["nitrogen", "other"]])
    before, after = whole.dataset("nitrogen"), rest.dataset("nitrogen")
    assert "left_out" not in before.record
    assert (len(before.split.train), len(before.split.valid)) == (49, 16)
    # A fifth of the molecules are test molecules of the other task, all of them learnt here.
    assert after.record["left_out"] == {"other": {"train": 17, "valid": 0}}
    assert after.record["parts"] == {"train": 32, "valid": 16, "test": 16}
    assert "left out as test molecules: 17 of other" in after.summary
    tested = rest.dataset("other").test_molecules
    assert not torch.isin(after.molecules[after.split.train, 1], tested).any()
    assert torch.isin(before.molecules[before.split.train, 1], tested).sum() == 17
    assert torch.equal(after.split.test, before.split.test)
    assert before.own_split is None
    assert after.own_split is not None
    assert torch.equal(after.own_split.train, before.split.train)
    assert rest.dataset("other").record["left_out"] == {"nitrogen": {"train": 16, "valid": 0}}
    provenance = data_provenance(rest)
    assert provenance["data"]["nitrogen"]["left_out"]["other"]["train"] == 17
    sources = provenance["data_sha256"]["nitrogen"]
    assert list(sources) == ["nitrogen.csv", "other/other.csv"]


def test_a_group_of_a_plan_has_the_models_of_the_whole_run(tmp_path: Path) -> None:
    """Its tasks leave out the test molecules of related tasks in other groups too."""
    run = related_run(tmp_path, [["nitrogen", "other"]])
    group = group_run(run, ("nitrogen",), run.config.merge, "group1")
    assert group.tasks == ("nitrogen",)
    assert teacher(group, "nitrogen").key == teacher(run, "nitrogen").key
    alone = replace(group, _datasets={}).dataset("nitrogen")
    assert alone.record["left_out"] == {"other": {"train": 17, "valid": 0}}


def keys(run: Run) -> tuple[str, ...]:
    """Keys of results on the first task: its own model, and its forest."""
    forest = next(row for row in reference_rows(run) if row.name == "ecfp4_random_forest")
    return teacher(run, "nitrogen").key, forest.stages[0].key


def test_results_are_kept_by_what_was_left_out(tmp_path: Path) -> None:
    whole = related_run(tmp_path, [])
    assert whole.family.data_settings(whole.config, "nitrogen") == (
        whole.config.dataset_for("nitrogen"),
    )
    rest = related_run(tmp_path, [["nitrogen", "other"]])
    unrelated, related = keys(whole), keys(rest)
    assert not set(unrelated) & set(related)
    with (tmp_path / "data/other.csv").open("a") as file:
        file.write("CCCCCCO,1,train\n")
    again = related_run_as_it_is(tmp_path)
    assert not set(related) & set(keys(again))
    assert (
        again.dataset("nitrogen").record["left_out"] == rest.dataset("nitrogen").record["left_out"]
    )


def related_run_as_it_is(folder: Path) -> Run:
    """The run of the files that are there, which reads them anew."""
    settings = load_config(folder / "pico.yaml")
    return Run(settings, 0, folder / "data", folder / "work", torch.device("cpu"))


def test_a_task_of_which_too_little_is_left_is_refused(tmp_path: Path) -> None:
    run = related_run(tmp_path, [["nitrogen", "other"]])
    rows = list(zip(molecules(), tail_has("O"), ["test"] * 80, strict=True))
    rows += [(f"CCCC{tail}", label, "train") for tail, label in (("O", "1"), ("N", "0"))]
    rows += [(f"CCCCC{tail}", label, "valid") for tail, label in (("O", "1"), ("N", "0"))]
    write_csv(tmp_path / "data/other.csv", "smiles", ("y", "split"), rows)
    message = r"nitrogen.csv, column 'split': got molecules: 1 in train, 0 in valid, 16 in test"
    with pytest.raises(DataError, match=message):
        run.dataset("nitrogen")


@pytest.mark.parametrize(
    ("related", "message"),
    [
        ([["nitrogen"]], r"related: got \['nitrogen'\], expected groups of two tasks or more"),
        ([["nitrogen", "nitrogen"]], "expected groups of two tasks or more, each task once"),
        ([["nitrogen", "absent"]], "related: got 'absent', expected tasks, or sets described"),
        ([["bbbp", "bace"]], r"related: got \['bbbp', 'bace'\], .* one of `tasks` among them"),
    ],
)
def test_groups_that_are_none_are_refused(
    pico: MoleculeConfig, related: list[list[str]], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        MoleculeConfig.model_validate(pico.model_dump() | {"related": related})


def test_groups_are_reduced_to_the_tasks_that_are_kept() -> None:
    values = {"related": [["a", "b", "c"], ["c", "d"], "wrong"]}
    assert only_tasks(values, ["a", "b"])["related"] == [["a", "b"], "wrong"]


def test_a_task_of_several_groups_has_all_their_tasks_once(pico: MoleculeConfig) -> None:
    values = pico.model_dump() | {"tasks": ["nitrogen", "other", "bace"]}
    values["related"] = [["bace", "nitrogen"], ["other", "bace"], ["nitrogen", "bace"]]
    config = MoleculeConfig.model_validate(values)
    assert config.related_to("bace") == ("nitrogen", "other")
    assert config.related_to("nitrogen") == ("bace",)


def test_overlaps_are_counted_before_and_after(tmp_path: Path) -> None:
    run = related_run(tmp_path, [["nitrogen", "other"]])
    content = run_study(run, tmp_path / "results")
    assert content["learnt"] == {"nitrogen": 65, "other": 64}
    assert content["test"] == {"nitrogen": 16, "other": 17}
    assert content["rows"] == {"nitrogen": {"other": 17}, "other": {"nitrogen": 16}}
    assert content["left"] == {"nitrogen": {}, "other": {}}
    table = (tmp_path / "results/pico/overlaps.md").read_text()
    assert (tmp_path / "results/pico/overlaps.json").is_file()
    assert table == overlap_tables(content)
    assert "| 1 | nitrogen | 65 |  | 17 |" in table
    assert "|  | test molecules |  | 16 | 17 |" in table
    assert "| other | nitrogen | 16 | 0 |" in table
    arguments = ["--config", str(tmp_path / "pico.yaml"), "--results", str(tmp_path / "again")]
    assert main(["study", "overlaps", *arguments, *run_options(tmp_path)]) == 0
    assert (tmp_path / "again/pico/overlaps.md").read_text() == table
    apart = run_study(related_run(tmp_path, []), tmp_path / "results")
    assert apart["left"] == apart["rows"] == content["rows"]
    assert "No tasks are said to be related." in overlap_tables(apart)
