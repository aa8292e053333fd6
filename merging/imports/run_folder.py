"""What lies around a model of chemprop: the members of an ensemble, and `config.toml`."""

import re
from collections.abc import Iterable
from pathlib import Path

from models.data.dmpnn_features import WIDTHS, FeaturizerOptions, Mode
from models.errors import CheckpointError

_MEMBER = re.compile(r"model_(\d+)")
_INSIDE_A_RUN = re.compile(r"model_\d+|replicate_\d+|checkpoints")
"""Folders that `chemprop train` makes inside of the folder with config.toml."""
_MODE, _REORDER = "multi_hot_atom_featurizer_mode", "reorder_atoms"
_FLAGS = ("keep_h", "add_h", "ignore_stereo")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


def model_files(path: Path) -> tuple[Path, ...]:
    """Find the members of a model: a file is its only one.

    Args:
        path: a file; a run folder with `model_*/best.pt` or `best.pt`; or a folder of `.pt` files.

    Returns:
        The files in the order of their numbers.

    Raises:
        CheckpointError: there is nothing, a member is missing, or it is not clear what to take.
    """
    if not path.is_dir():
        return (path,)
    if replicates := sorted(path.glob("replicate_*")):
        expected = f"expected one of them, such as {replicates[0]}"
        raise CheckpointError(f"{path}: got a run with {len(replicates)} replicates, {expected}")
    members = [folder for folder in path.glob("model_*") if folder.is_dir()]
    loose = _numbered(path.glob("*.pt"))
    if members and loose:
        expected = "expected one or the other; name the folder or the file that is meant"
        got = f"got folders such as {members[0].name} and files such as {loose[0].name}"
        raise CheckpointError(f"{path}: {got}, {expected}")
    files = _numbered(folder / "best.pt" for folder in members)
    if missing := [file for file in files if not file.is_file()]:
        expected = "expected it: every member of the ensemble is needed"
        raise CheckpointError(f"{path}: got no file {missing[0]}, {expected}")
    if not files and not loose:
        expected = "expected model_*/best.pt, best.pt or other .pt files"
        raise CheckpointError(f"{path}: got a folder without a model, {expected}")
    best = [file for file in loose if file.name == "best.pt"]
    return tuple(files or best or loose)


def _numbered(files: Iterable[Path]) -> list[Path]:
    """Sort files by the number of `model_<number>` in their name or their folder's."""

    def key(file: Path) -> tuple[int, str]:
        found = _MEMBER.fullmatch(file.stem) or _MEMBER.fullmatch(file.parent.name)
        return int(found[1]) if found else 0, str(file)

    return sorted(files, key=key)


def featurizer_options(
    file: Path, widths: tuple[int, int], options: FeaturizerOptions | None
) -> tuple[FeaturizerOptions, tuple[str, ...]]:
    """Find out how a model's molecules are featurised.

    The mode follows from the widths. Whether hydrogens and stereo are kept is in no file of
    chemprop but `config.toml`: beside the model, or in the run folder above it.

    Args:
        file: the model.
        widths: numbers of features of an atom and of a bond that it takes.
        options: what the user says; it goes before `config.toml`.

    Returns:
        The options, and sentences on what was assumed.

    Raises:
        CheckpointError: the widths are of no mode, or not of the mode that is said; or
            `config.toml` cannot be read.
    """
    modes = [mode for mode, known in WIDTHS.items() if known == widths]
    if not modes:
        known = ", ".join(f"{mode} {sizes[0]} and {sizes[1]}" for mode, sizes in WIDTHS.items())
        raise CheckpointError(
            f"{file}: got {widths[0]} features of an atom and {widths[1]} of a bond, expected those"
            f" of a mode of chemprop's ({known}); extra features of atoms and bonds, and reactions,"
            " cannot be imported"
        )
    mode = modes[0]
    if options is not None:
        _check_mode(f"{file}: options", options.mode, mode)
        return options, ()
    config = _config_file(file)
    if config is None:
        defaults = "hydrogens are neither kept nor added, and stereo is not ignored"
        note = f"No config.toml beside the model: chemprop's defaults are assumed, {defaults}."
        return FeaturizerOptions(mode=mode), (note,)
    values = _read_config(config)
    _check_mode(str(config), values.get(_MODE, mode).lower(), mode)
    flags = {name: _flag(config, name, values) for name in _FLAGS}
    reorders = _flag(config, _REORDER, values)
    note = (
        "config.toml says reorder-atoms, which changes no prediction of a molecule: it is ignored."
    )
    return FeaturizerOptions(mode=mode, **flags), (note,) if reorders else ()


def _check_mode(origin: str, got: str, mode: Mode) -> None:
    if got != mode:
        raise CheckpointError(
            f"{origin}: got featuriser mode {got[:60]!a}, expected {mode!r}, which has the widths"
            " of the model"
        )


def _config_file(file: Path) -> Path | None:
    """Find config.toml beside a file, or above it within the folders of a run."""
    folder = file.resolve().parent
    while not (folder / "config.toml").is_file():
        if not _INSIDE_A_RUN.fullmatch(folder.name):
            return None
        folder = folder.parent
    return folder / "config.toml"


def _read_config(config: Path) -> dict[str, str]:
    """Read the lines `key = value`. Chemprop's file is TOML in name only: its texts have no
    quotes."""
    try:
        lines = config.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{config}: got {error}, expected text") from error
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {
        key.strip().lstrip("-").replace("-", "_"): value.partition("#")[0].strip().strip("\"'")
        for key, equals, value in pairs
        if equals
    }


def _flag(config: Path, name: str, values: dict[str, str]) -> bool:
    value = values.get(name, "false").lower()
    if value not in (*_TRUE, *_FALSE):
        got = f"{name.replace('_', '-')} = {value[:60]!a}"
        raise CheckpointError(f"{config}: got {got}, expected true or false")
    return value in _TRUE
