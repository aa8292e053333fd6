"""What lies around a model: members of an ensemble, and the flags of config.toml."""

from pathlib import Path

import pytest

from merging.imports.run_folder import featurizer_options, model_files
from models.data.dmpnn_features import WIDTHS, FeaturizerOptions
from models.errors import CheckpointError

V2 = WIDTHS["v2"]


def files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("model_0/best.pt",), ("model_0/best.pt",)),
        (
            ("model_10/best.pt", "model_2/best.pt", "config.toml"),
            ("model_2/best.pt", "model_10/best.pt"),
        ),
        (("best.pt", "splits.json"), ("best.pt",)),
        (("model_10.pt", "model_9.pt"), ("model_9.pt", "model_10.pt")),
        (("b.pt", "a.pt"), ("a.pt", "b.pt")),
        (("model_0/best.pt", "model_notes.txt"), ("model_0/best.pt",)),
    ],
)
def test_members_are_found_in_the_order_of_their_numbers(
    names: tuple[str, ...], found: tuple[str, ...], tmp_path: Path
) -> None:
    files(tmp_path, *names)
    assert model_files(tmp_path) == tuple(tmp_path / name for name in found)


def test_a_file_is_its_only_member(tmp_path: Path) -> None:
    assert model_files(tmp_path / "model_1/best.pt") == (tmp_path / "model_1/best.pt",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("config.toml",), "got a folder without a model, expected model_*/best.pt, best.pt or"),
        (("model_0/best.pt", "model_1/a.ckpt"), "model_1/best.pt, expected it: every member"),
        (("model_0/best.pt", "best.pt"), "got folders such as model_0 and files such as best.pt"),
        (
            ("replicate_0/model_0/best.pt", "replicate_1/model_0/best.pt"),
            "got a run with 2 replicates, expected one of them, such as ",
        ),
    ],
)
def test_a_folder_that_leaves_a_choice_is_refused(
    names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    files(tmp_path, *names)
    with pytest.raises(CheckpointError) as refused:
        model_files(tmp_path)
    assert message in str(refused.value)


@pytest.mark.parametrize(("mode", "widths"), WIDTHS.items())
def test_the_mode_follows_from_the_widths(
    mode: str, widths: tuple[int, int], tmp_path: Path
) -> None:
    options, (note,) = featurizer_options(tmp_path / "a.pt", widths, None)
    assert options == FeaturizerOptions.model_validate({"mode": mode})
    assert note.startswith("No config.toml beside the model: chemprop's defaults are assumed")


@pytest.mark.parametrize(
    "place",
    ["best.pt", "model_0/best.pt", "model_3/checkpoints/a.ckpt", "replicate_1/model_0/best.pt"],
)
def test_flags_are_those_of_the_runs_config(place: str, tmp_path: Path) -> None:
    """As chemprop writes it: TOML in name only."""
    files(tmp_path, place)
    text = "accelerator = cpu\nkeep-h = true\nignore-stereo = true\ndata-path = [a.csv]\n"
    (tmp_path / "config.toml").write_text(text)
    options, notes = featurizer_options(tmp_path / place, V2, None)
    assert options == FeaturizerOptions(keep_h=True, ignore_stereo=True)
    assert notes == ()


def test_a_config_of_ones_own_may_have_quotes_comments_and_underscores(tmp_path: Path) -> None:
    text = '# add-h = false\nadd_h = "True"  # all\nmulti_hot_atom_featurizer_mode = "V2"\n\nx\n'
    (tmp_path / "config.toml").write_text(text)
    assert featurizer_options(tmp_path / "a.pt", V2, None)[0] == FeaturizerOptions(add_h=True)


def test_a_config_above_another_kind_of_folder_is_not_the_models(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("keep-h = true\n")
    files(tmp_path, "mine/best.pt")
    assert not featurizer_options(tmp_path / "mine/best.pt", V2, None)[0].keep_h


def test_what_the_user_says_goes_before_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("keep-h = true\n")
    said = FeaturizerOptions(add_h=True)
    assert featurizer_options(tmp_path / "a.pt", V2, said) == (said, ())


def test_reordered_atoms_are_said_to_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("reorder-atoms = true\n")
    _, (note,) = featurizer_options(tmp_path / "a.pt", V2, None)
    assert note.startswith("config.toml says reorder-atoms, which changes no prediction")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "multi-hot-atom-featurizer-mode = V1\n",
            "config.toml: got featuriser mode 'v1', expected 'v2', which has the widths",
        ),
        ("keep-h = maybe\n", "config.toml: got keep-h = 'maybe', expected true or false"),
    ],
)
def test_a_config_that_contradicts_the_model_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(CheckpointError) as refused:
        featurizer_options(tmp_path / "a.pt", V2, None)
    assert message in str(refused.value)


def test_a_config_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"config\.toml: got .*, expected text"):
        featurizer_options(tmp_path / "a.pt", V2, None)


def test_options_of_another_mode_and_unknown_widths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="options: got featuriser mode 'v1', expected 'v2'"):
        featurizer_options(tmp_path / "a.pt", V2, FeaturizerOptions(mode="v1"))
    with pytest.raises(CheckpointError, match="got 73 features of an atom and 14 of a bond"):
        featurizer_options(tmp_path / "a.pt", (73, 14), None)
