"""Tables as users bring them, read as the training does."""

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from merging.data import molecule_dataset as datasets
from merging.data.molecule_dataset import MoleculeDataset, dropped_path, load_dataset, load_smiles
from merging.data.molecule_tables import DatasetSpec
from models.errors import DataError
from tests.merging.conftest import molecules, tail_has

NITROGEN = [float(label) for label in tail_has("N")]
ROWS = list(zip(molecules(), tail_has("N"), strict=True))


def table(
    rows: list[tuple[str, ...]], header: tuple[str, ...] = ("smiles", "has_n"), delimiter: str = ","
) -> str:
    return "".join(delimiter.join(row) + "\n" for row in (header, *rows))


def load(folder: Path, content: str | bytes, name: str = "own.csv", **spec: Any) -> MoleculeDataset:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return load_dataset("own", DatasetSpec(file=name, **spec), folder, folder / "cache")


def refused(folder: Path, content: str | bytes, name: str = "own.csv", **spec: Any) -> str:
    with pytest.raises(DataError) as error:
        load(folder, content, name, **spec)
    assert name in str(error.value)
    return str(error.value)


# --- one reader ---

WITH_ACCENT = [(smiles, label, "é") for smiles, label in ROWS]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + table(ROWS),
        table(ROWS) + "\n\n",
        table(ROWS).replace("\n", "\r\n"),
        table(ROWS, delimiter=";"),
        table(ROWS, delimiter="\t"),
        "sep=;\n" + table(ROWS, delimiter=";"),
        table(ROWS).encode("utf-16"),
        gzip.compress(table(ROWS).encode()),
        table([(label, smiles) for smiles, label in ROWS], ("has_n", "Canonical SMILES")),
        table([(f'"{smiles}"', label) for smiles, label in ROWS], ('"smiles"', '"has_n"')),
    ],
    ids=[
        "bom",
        "blank lines",
        "crlf",
        "semicolon",
        "tab",
        "sep",
        "utf-16",
        "gzip",
        "other order",
        "quotes",
    ],
)
def test_every_form_of_a_table_gives_the_same(content: str | bytes, tmp_path: Path) -> None:
    dataset = load(tmp_path, content)
    assert dataset.label_names == ("has_n",)
    assert dataset.labels.flatten().tolist() == NITROGEN
    assert dataset.dropped == ()
    assert len(dataset.graphs) == 80


def test_text_of_windows_and_short_rows(tmp_path: Path) -> None:
    rows = [(*row, "0") for row in ROWS]
    content = table(rows, ("smiles", "has_n", "réponse")).encode("cp1252")
    assert load(tmp_path, content, label_columns=("has_n",)).label_names == ("has_n",)
    rows = [(smiles, label, label) for smiles, label in ROWS[:79]] + [(ROWS[79][0],)]
    dataset = load(tmp_path, table(rows, ("smiles", "a", "réponse")).encode("cp1252"))
    assert dataset.label_names == ("a", "réponse")
    assert dataset.labels[79].isnan().all()
    assert dataset.dropped == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a header"),
        ("smiles,y\n", "got no row below the header"),
        ("smiles\nCCO\n", "got no column of labels beside 'smiles', expected some"),
        ("smiles y\nCCO 1\n", "got no column of labels beside 'smiles y', expected some"),
        ("smiles,y\nCCO,1,x\n", "that can be taken (line 2: got 3 cells, expected 2"),
        ("name,y\naspirin oxide,1\nibuprofen lysine,0\n", "none of which holds molecules"),
    ],
)
def test_what_is_no_table_of_molecules(content: str, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, content)


# --- labels ---


def test_words_are_read_and_said(tmp_path: Path) -> None:
    words = [(smiles, {"1": "Active", "0": "inactive"}[label], "") for smiles, label in ROWS]
    words = [(*row[:2], "hit" if k % 2 else "miss") for k, row in enumerate(words)]
    content = table(words, ("smiles", "assay", "screen"))
    message = refused(tmp_path, content)
    assert "column 'screen': got two values, 'miss', 'hit', expected to know" in message
    dataset = load(tmp_path, content, positive={"screen": "Hit"})
    assert dataset.labels[:, 0].tolist() == NITROGEN
    assert dataset.labels[:4, 1].tolist() == [0, 1, 0, 1]
    assert dataset.record["words"] == {"assay": ["Active", "inactive"], "screen": ["hit", "miss"]}
    said = dataset.summary
    assert "2 labels: assay (Active = 1, inactive = 0), screen (hit = 1, miss = 0)" in said
    assert torch.equal(load(tmp_path, content, positive="hit").labels, dataset.labels)
    assert "'hti', which no label holds" in refused(tmp_path, content, positive="hti")
    message = refused(tmp_path, content, positive={"sceen": "hit"})
    assert (
        "positive: got label 'sceen', expected one of assay, screen, did you mean 'screen'?"
        in message
    )


def test_missing_values_are_missing(tmp_path: Path) -> None:
    rows = [(smiles, "NA" if k % 5 == 0 else label) for k, (smiles, label) in enumerate(ROWS)]
    dataset = load(tmp_path, table(rows))
    assert dataset.labels[::5].isnan().all()
    assert not dataset.labels[1::5].isnan().any()
    assert dataset.record["words"] == {}


def test_labels_are_refused_before_molecules_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "merging.data.molecule_dataset._parse", lambda *_: pytest.fail("molecules were read")
    )
    rows = [(smiles, f"{k}.5") for k, (smiles, _) in enumerate(ROWS)]
    message = refused(tmp_path, table(rows, ("smiles", "pIC50")))
    assert "column 'pIC50': line 2: got '0.5', expected 0, 1 or a missing value" in message
    assert "regression is `target: regression`, more than two classes `target: mul" in message
    message = refused(tmp_path, table([(smiles, "1") for smiles in molecules()]))
    assert "column 'has_n': got 80 x 1 and 0 x 0" in message


def test_a_line_is_named_as_an_editor_counts_it(tmp_path: Path) -> None:
    content = table(ROWS).replace("smiles,has_n", '"the\nsmiles",has_n').replace("N,1", "N,>10", 1)
    line = next(k for k, text in enumerate(content.split("\n"), 1) if text.endswith(">10"))
    assert f"column 'has_n': line {line}: got '>10'" in refused(tmp_path, content)


# --- columns ---


@pytest.mark.parametrize(
    ("name", "cell", "reason"),
    [
        ("", str, "column '' (number 1): it has no name"),
        ("Unnamed: 0", str, "column 'Unnamed: 0': it has no name"),
        ("row", str, "column 'row': it numbers the rows"),
        ("row", lambda k: str(k + 1), "column 'row': it numbers the rows"),
        ("MW", lambda k: f"{100 + k / 7:.2f}", "column 'MW': line 2: got '100.00', expected 0, 1"),
        ("name", lambda k: f"compound {k}", "column 'name': line 4: got 'compound 2' beside"),
        ("split", lambda k: ("train", "test")[k % 2], "column 'split': its name says"),
        ("has_n", lambda k: str(k % 2), "got label name twice: 'has_n', expected each once"),
    ],
)
def test_a_column_that_is_no_label_is_not_taken(
    name: str, cell: Any, reason: str, tmp_path: Path
) -> None:
    rows = [(cell(k), *row) for k, row in enumerate(ROWS)]
    content = table(rows, (name, "smiles", "has_n"))
    message = refused(tmp_path, content)
    assert reason in message
    if name == "has_n":
        message = refused(tmp_path, content, label_columns=("has_n",))
        assert "got 2 columns of the name 'has_n', expected one" in message
    else:
        assert "name the labels, as in `label_columns: [has_n]`" in message
        dataset = load(tmp_path, content, label_columns=("has_n",))
        assert dataset.labels.flatten().tolist() == NITROGEN


def test_names_that_are_not_there_are_answered_with_the_nearest(tmp_path: Path) -> None:
    assert "did you mean 'has_n'?" in refused(tmp_path, table(ROWS), label_columns=("hasn",))
    assert "did you mean 'smiles'?" in refused(tmp_path, table(ROWS), smiles_column="SMILES")
    assert "did you mean 'has_n'?" in refused(tmp_path, table(ROWS), split_column="has_m")


def test_a_label_is_not_the_column_of_the_molecules(tmp_path: Path) -> None:
    message = refused(tmp_path, table(ROWS), label_columns=("smiles",))
    assert "'smiles' as label, expected it to hold the molecules" in message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"label_columns": ("a", "a")}, "got label name twice: 'a', expected each once"),
        ({"label_columns": ()}, "at least 1"),
        ({"label_columns": ("",)}, "got an empty name"),
        (
            {"label_columns": ("a",), "smiles_column": "a"},
            "got a, which is said to be something else",
        ),
        (
            {"label_columns": ("a",), "split_column": "a"},
            "got a, which is said to be something else",
        ),
        ({"positive": True}, "got true, which is what YAML makes of yes"),
        ({"folds": {"test": 1}}, "folds: got them without `split_column`"),
        (
            {"split_column": "f", "folds": {"valid": [0, 1], "test": 1}},
            "got fold 1 as valid and test",
        ),
        (
            {"split_column": "f", "folds": {"valid": "1.0", "test": [1, 2]}},
            "got fold 1 as valid and test",
        ),
        (
            {"split_column": "f", "folds": {"valid": "A", "test": "a "}},
            "got fold a as valid and test",
        ),
        ({"split_column": "f", "folds": {"valid": 1}}, "folds.test\n"),
        ({"split": "stratified"}, "'scaffold' or 'random'"),
        ({"max_dropped": 5}, "less than or equal to 1"),
    ],
)
def test_descriptions_that_say_two_things_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        DatasetSpec(file="own.csv", **spec)
    assert message in str(error.value)


# --- rows that are left out ---


def test_dropped_rows_are_counted_and_listed(tmp_path: Path) -> None:
    rows = [*ROWS[:10], ("C1CC", "1"), *ROWS[10:50], ("", "0"), *ROWS[50:], ("CCO", "1", "5")]
    dataset = load(tmp_path, table(rows))
    assert dataset.labels.flatten().tolist() == NITROGEN
    assert [row.line for row in dataset.dropped] == [12, 53, 84]
    assert {name: dataset.record[name] for name in ("rows", "molecules", "dropped")} == {
        "rows": 83,
        "molecules": 80,
        "dropped": 3,
    }
    with dropped_path("own", tmp_path / "cache").open(newline="") as stream:
        listed = list(csv.DictReader(stream))
    assert [(row["line"], row["smiles"]) for row in listed] == [
        ("12", "C1CC"),
        ("53", ""),
        ("84", "CCO"),
    ]
    assert "SMILES" in listed[0]["reason"]
    assert "got 3 cells, expected 2" in listed[2]["reason"]
    said = dataset.summary
    assert "80 molecules of own.csv, column 'smiles', 3 of 83 rows dropped" in said
    spec = DatasetSpec(file="own.csv")
    assert load_smiles(dataset, spec, tmp_path, tmp_path / "cache") == molecules()
    cached = load_dataset("own", spec, tmp_path, tmp_path / "cache")
    assert (cached.dropped, cached.record) == (dataset.dropped, dataset.record)
    load(tmp_path, table(ROWS))
    assert not dropped_path("own", tmp_path / "cache").exists()


def test_too_many_dropped_rows_are_an_error(tmp_path: Path) -> None:
    content = table([("not_a_smiles", "0") if k % 8 == 0 else row for k, row in enumerate(ROWS)])
    message = refused(tmp_path, content)
    assert "got 10 of 80 rows that cannot be read, expected at most 5 % (`max_dropped`)" in message
    assert ": line 2: got 'not_a_smiles'" in message
    assert str(dropped_path("own", tmp_path / "cache")) in message
    assert dropped_path("own", tmp_path / "cache").read_text().count("\n") == 11
    assert load(tmp_path, content, max_dropped=0.125).record["dropped"] == 10


# --- splits ---


def parts(dataset: MoleculeDataset) -> dict[str, list[int]]:
    return {name: rows.tolist() for name, rows in vars(dataset.split).items()}


def test_random_split_has_a_seed_of_its_own(tmp_path: Path) -> None:
    content = table(ROWS)
    message = refused(tmp_path, content, split="random")
    assert "split random: got molecules: 64 in train, 8 in valid" in message
    first, second = (load(tmp_path, content, split="random", split_seed=k) for k in (2, 5))
    assert {name: len(rows) for name, rows in parts(first).items()} == {
        "train": 64,
        "valid": 8,
        "test": 8,
    }
    assert parts(first) != parts(second)
    assert first.record["split"] == "random, seed 2"


def test_a_column_says_the_split_and_is_no_label(tmp_path: Path) -> None:
    given = [("train", "Val", "TEST", "train")[k % 4] for k in range(80)]
    rows = [(*row, subset) for row, subset in zip(ROWS, given, strict=True)]
    rows.insert(5, ("C1CC", "1", "test"))
    dataset = load(tmp_path, table(rows, ("smiles", "has_n", "set")), split_column="set")
    assert dataset.label_names == ("has_n",)
    assert parts(dataset) == {
        "train": [k for k in range(80) if k % 4 in (0, 3)],
        "valid": list(range(1, 80, 4)),
        "test": list(range(2, 80, 4)),
    }
    wrong = table([*rows, ("CCO", "1", "tset")], ("smiles", "has_n", "set"))
    message = refused(tmp_path, wrong, split_column="set")
    assert "column 'set': line 83: got 'tset', expected train, valid or test" in message


@pytest.mark.parametrize("split", ["scaffold", "random"])
def test_validation_is_drawn_where_the_column_has_none(split: str, tmp_path: Path) -> None:
    # whole rings go to the test part, as in a benchmark that fixes train and test only
    rows = [(*row, "test" if k >= 60 else "train") for k, row in enumerate(ROWS)]
    content = table(rows, ("smiles", "has_n", "split"))
    dataset = load(tmp_path, content, split_column="split", split=split)
    found = parts(dataset)
    assert found["test"] == list(range(60, 80))
    assert sorted(found["train"] + found["valid"]) == list(range(60))
    assert len(found["valid"]) == {"scaffold": 10, "random": 7}[split]
    assert f"validation drawn from its training rows, {split}" in dataset.record["split"]


def test_folds(tmp_path: Path) -> None:
    rows = [(*row, str(k // 3 % 5)) for k, row in enumerate(ROWS)]
    content = table(rows, ("smiles", "has_n", "cv"))
    assert "folds: {valid: 0, test: 1}" in refused(tmp_path, content, split_column="cv")
    dataset = load(tmp_path, content, split_column="cv", folds={"valid": 3, "test": [4, 0]})
    assert parts(dataset)["valid"] == [k for k in range(80) if k // 3 % 5 == 3]
    assert parts(dataset)["test"] == [k for k in range(80) if k // 3 % 5 in (0, 4)]
    message = refused(tmp_path, content, split_column="cv", folds={"valid": 3, "test": 5})
    assert "column 'cv': got folds 0, 1, 2, 3, 4, expected also 5" in message


@pytest.mark.parametrize(
    ("rows", "message", "remedy"),
    [
        (
            ROWS[:3] + ROWS[10:12],
            "expected some in ",
            "; try a `split_column` of your own, or more rows",
        ),
        (
            [("c1ccccc1" + "C" * n, str(n % 2)) for n in range(1, 41)],
            "0 in valid",
            "; try `split: random` with `split_seed: ",
        ),
        (
            [(smiles, "1" if k == 79 else "0") for k, smiles in enumerate(molecules())],
            "expected both classes of",
            "; try a `split_column`",
        ),
    ],
    ids=["five rows", "one scaffold", "one positive"],
)
def test_a_split_that_cannot_be_trained_on_is_a_sentence(
    rows: list[tuple[str, str]], message: str, remedy: str, tmp_path: Path
) -> None:
    said = refused(tmp_path, table(rows))
    assert message in said
    assert remedy in said


def test_the_remedy_for_few_scaffolds_helps(tmp_path: Path) -> None:
    rings = ("c1ccccc1", "C1CCNCC1", "c1ccsc1")
    content = table([(ring + "C" * n, str(n % 2)) for ring in rings for n in range(1, 15)])
    message = refused(tmp_path, content)
    assert "expected some in valid too; try `split: random` with `split_seed: " in message
    seed = int(message.split("split_seed: ")[1].split("`")[0])
    dataset = load(tmp_path, content, split="random", split_seed=seed)
    assert dataset.record["parts"] == {"train": 34, "valid": 4, "test": 4}
    assert dataset.record["not_measured"] == {"valid": [], "test": []}


def test_the_remedy_for_a_column_without_a_test_part_leaves_the_column_out(tmp_path: Path) -> None:
    content = table([(*row, "train") for row in ROWS], ("smiles", "has_n", "part"))
    message = refused(tmp_path, content, split_column="part")
    assert "expected some in test too; try `split: random` with `split_seed: " in message
    seed = int(message.split("`split_seed: ")[1].split("`")[0])
    assert f"`split_seed: {seed}` and no `split_column`, another column" in message
    load(tmp_path, table(ROWS), split="random", split_seed=seed)


def test_molecules_in_several_rows_are_counted_however_they_are_written(tmp_path: Path) -> None:
    """Phenol and aniline again, with an atom map and kept hydrogens; the first with another
    label."""
    assert ROWS[:2] == [("c1ccccc1O", "0"), ("c1ccccc1N", "1")]
    again = [("[OH:3]c1ccccc1", "1"), ("[H]N([H])C1=CC=CC=C1", "1")]
    dataset = load(tmp_path, table([*ROWS, *again]))
    assert dataset.record["repeated"] == {"molecules": 2, "contradictory": 1, "across_parts": 0}
    said = dataset.summary
    assert said.endswith("; molecules in several rows: 2, 1 with 0 and 1 for one label")
    parts_of = ["train"] * 60 + ["valid"] * 10 + ["test"] * 11 + ["train"]
    rows = [(*row, subset) for row, subset in zip([*ROWS, *again], parts_of, strict=True)]
    dataset = load(tmp_path, table(rows, ("smiles", "has_n", "part")), split_column="part")
    assert dataset.record["repeated"]["across_parts"] == 1
    assert dataset.summary.endswith(", 1 in several parts")
    assert "several rows" not in load(tmp_path, table(ROWS)).summary


# --- validation by seed, logarithms, names of labels ---

SEEDED = [
    (smiles, label, "test" if k >= 60 else "train_val") for k, (smiles, label) in enumerate(ROWS)
]
SEEDS = {"split_column": "split", "validation_seeds_column": "seeds"}
SEEDED_HEAD = ("smiles", "has_n", "split", "seeds")


def test_validation_is_by_seed_and_the_table_is_featurised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = ("1", "25", "")
    seeded = [(*row, seeds[k % 3] if k < 60 else "") for k, row in enumerate(SEEDED)]
    (tmp_path / "own.csv").write_text(table(seeded, SEEDED_HEAD))
    spec = DatasetSpec(file="own.csv", label_columns=("has_n",), **SEEDS)

    def of_seed(seed: int) -> MoleculeDataset:
        return load_dataset("own", spec, tmp_path, tmp_path / "cache", seed=seed)

    first = of_seed(1)
    assert first.split.valid.tolist() == [k for k in range(60) if k % 3 == 0]
    assert first.split.train.tolist() == [k for k in range(60) if k % 3]
    assert first.split.test.tolist() == list(range(60, 80))
    assert first.record["parts"] == {"train": 40, "valid": 20, "test": 20}
    assert "by column 'split', validation by column 'seeds', seed 1: 40 train" in first.summary
    monkeypatch.setattr(datasets, "read_csv", lambda *_: pytest.fail("read again"))
    second = of_seed(2)
    assert second.split.valid.tolist() == [k for k in range(60) if k % 3 == 1]
    assert torch.equal(second.split.valid, of_seed(5).split.valid)
    assert torch.equal(second.split.test, first.split.test)
    again = of_seed(1)
    assert (again.record, again.summary) == (first.record, first.summary)
    assert torch.equal(again.molecules, first.molecules)
    with pytest.raises(DataError, match="own: got a run with seed 0, expected one of 1, 2, 5 "):
        of_seed(0)


def test_a_validation_subset_of_a_seed_that_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    ones = [k for k, (_, label) in enumerate(ROWS) if label == "1" and k < 60]
    rows = [(*row, "1" if k in ones[:2] else "") for k, row in enumerate(SEEDED)]
    (tmp_path / "own.csv").write_text(table(rows, SEEDED_HEAD))
    spec = DatasetSpec(file="own.csv", label_columns=("has_n",), **SEEDS)
    with pytest.raises(DataError, match=r"column 'split': got molecules: .* in valid has_n: 0 x 0"):
        load_dataset("own", spec, tmp_path, tmp_path / "cache", seed=1)


def test_what_are_no_seeds_is_refused_by_column_and_line(tmp_path: Path) -> None:
    rows = [(*row, "yes" if k == 4 else "") for k, row in enumerate(SEEDED)]
    message = refused(tmp_path, table(rows, SEEDED_HEAD), label_columns=("has_n",), **SEEDS)
    assert "column 'seeds': line 6: got 'yes', expected digits" in message


def test_a_regression_on_a_logarithmic_scale_is_described_in_its_unit(tmp_path: Path) -> None:
    rows = [(smiles, f"{10 ** (k % 4)}") for k, smiles in enumerate(molecules())]
    spec = {"target": "regression", "scale": "log10", "units": "h", "metric": "spearman"}
    dataset = load(tmp_path, table(rows, ("smiles", "t")), **spec)
    assert dataset.labels[:4, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert dataset.info.output_kind == "log10_regression"
    assert dataset.info.main_metric == "spearman"
    assert dataset.record["ranges"] == {"t": [1.0, 1000.0]}
    assert "t (1 to 1000, h, learnt as log10)" in dataset.summary
    rows[7] = (rows[7][0], "0")
    message = refused(tmp_path, table(rows, ("smiles", "t")), **spec)
    assert "column 't': line 9: got 0, expected a number above 0 (`scale: log10`)" in message


def test_a_far_number_is_judged_on_its_scale_and_shown_in_its_unit(tmp_path: Path) -> None:
    rows = [(smiles, f"{10 ** (k % 2)}") for k, smiles in enumerate(molecules())]
    rows[5] = (rows[5][0], "1e30")
    content = table(rows, ("smiles", "t"))
    far = load(tmp_path, content, target="regression", scale="log10").record["far"]["t"]
    assert (far["number"], far["line"]) == (pytest.approx(1e30, rel=1e-4), 7)
    assert 29 <= far["times"] <= 30  # (30 - 0.5) / (1 - 0)


def test_labels_may_have_other_names_than_their_columns(tmp_path: Path) -> None:
    dataset = load(tmp_path, table(ROWS), label_columns=("has_n",), label_names=("nitrogen",))
    assert dataset.label_names == ("nitrogen",)
    assert dataset.labels[:, 0].tolist() == NITROGEN
    numbers = [(smiles, f"{k}") for k, smiles in enumerate(molecules())]
    named = load(
        tmp_path,
        table(numbers, ("smiles", "y")),
        label_columns=("y",),
        label_names=("t",),
        target="regression",
        units="h",
    )
    assert named.info.unit_of == {"t": "h"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_names": ["a"]}, "label_names: got 1 for 0 `label_columns`, expected one for each"),
        (
            {"label_columns": ["y"], "label_names": ["a"], "target": "multiclass"},
            "label_names: got some for target 'multiclass', expected `classes`",
        ),
        (
            {"label_columns": ["y"], "label_names": ["a"], "positive": {"y": "b"}},
            "positive: got them by label beside `label_names`",
        ),
        ({"validation_seeds_column": "s"}, "validation_seeds_column: got it without `split_col"),
        (
            {"label_columns": ["s"], "split_column": "p", "validation_seeds_column": "s"},
            "label_columns: got s, which is said to be something else",
        ),
        ({"scale": "log10"}, "scale: got 'log10' for target 'multilabel'"),
        ({"metric": "spearman"}, "metric: got 'spearman' for target 'multilabel', expected roc"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetSpec.model_validate({"file": "a.csv", **changes})
