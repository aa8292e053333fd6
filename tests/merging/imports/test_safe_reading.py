"""Files that are hostile, damaged, or something else: each has its own error, and nothing in them
is executed."""

import os
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merging.imports.chemprop import read_chemprop
from merging.imports.safe_reading import INERT, Inert, read_checkpoint, shown
from merging.imports.state_file import read_state
from models.errors import CheckpointError
from tests.merging.imports.chemprop_files import (
    FILES,
    Calls,
    archive,
    chemprop_class,
    hyper,
    model,
    save,
    saved,
)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that hostile files make if they are executed."""
    return tmp_path / "canary"


def touch(canary: Path) -> str:
    return f"touch {canary}"


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "os.system": (lambda canary: Calls(os.system, touch(canary)), "posix.system"),
    "os.popen": (lambda canary: Calls(os.popen, touch(canary)), "os.popen"),
    "exec": (lambda canary: Calls(exec, f"open({str(canary)!r}, 'w')"), "__builtin__.exec"),
    "eval": (lambda canary: Calls(eval, f"open({str(canary)!r}, 'w')"), "__builtin__.eval"),
    "open": (lambda canary: Calls(open, str(canary), "w"), "io.open"),
    "import": (lambda canary: Calls(__import__, "this"), "__builtin__.__import__"),
    "getattr": (lambda canary: Calls(getattr, "a", "upper"), "__builtin__.getattr"),
    "pathlib": (lambda canary: Calls(Path.touch, canary), "__builtin__.getattr"),
    "pickle.loads": (
        lambda canary: Calls(pickle.loads, pickle.dumps(Calls(os.system, touch(canary)))),
        "pickle.loads",
    ),
    "torch.load": (lambda canary: Calls(torch.load, "a.pt"), "torch.serialization.load"),
    "bytearray": (lambda canary: Calls(bytearray, 10**12), "__builtin__.bytearray"),
    "huge tensor": (lambda canary: Calls(torch.Tensor, 10**14), "torch.Tensor"),
    "sparse": (lambda canary: torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    "nowhere": (lambda canary: torch.empty(3, device="meta"), "_rebuild_meta_tensor_no_storage"),
    "numpy": (lambda canary: torch.ones(3).numpy(), "numpy"),
    "module": (lambda canary: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    "path": (lambda canary: canary, "pathlib.PosixPath"),
}
PLACES: dict[str, Callable[[object], object]] = {
    "the state": lambda value: {**model(), "state_dict": {"message_passing.W_i.weight": value}},
    "a hyper-parameter": lambda value: {**model(), "hyper_parameters": {"metrics": value}},
    "a key that nobody reads": lambda value: {**model(), "callbacks": [value]},
    "the whole file": lambda value: value,
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("place", PLACES)
def test_what_a_hostile_file_calls_is_named_and_not_called(
    case: str, place: str, canary: Path, tmp_path: Path
) -> None:
    make, name = HOSTILE[case]
    path = save(tmp_path / "model.pt", PLACES[place](make(canary)))
    with pytest.raises(CheckpointError) as refused:
        read_chemprop(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: got ")
    assert name in message
    assert "expected tensors, plain values and classes of chemprop only" in message
    assert not canary.exists()
    with pytest.raises(CheckpointError):
        read_state(path)
    assert not canary.exists()


@pytest.mark.parametrize("case", ["os.system", "pickle.loads"])
def test_the_canary_sings_where_a_file_is_executed(case: str, canary: Path, tmp_path: Path) -> None:
    """So that its silence above means something."""
    path = save(tmp_path / "model.pt", HOSTILE[case][0](canary))
    torch.load(path, weights_only=False)
    assert canary.exists()


def test_calls_of_chemprops_classes_do_nothing(canary: Path, tmp_path: Path) -> None:
    call = Calls(chemprop_class("agg.SumAggregation"), touch(canary), [1, 2])
    path = save(tmp_path / "a.pt", {"a": call})
    found = read_checkpoint(path)["a"]
    assert isinstance(found, Inert)
    assert type(found) is INERT["chemprop.nn.agg.SumAggregation"]
    assert found.arguments == (touch(canary), [1, 2])
    assert not canary.exists()


STORED = {
    "another protocol": (
        pickle.dumps(os.system, protocol=4),
        "got the instruction STACK_GLOBAL in its pickle, expected those of torch.save",
    ),
    "the oldest protocol": (
        b"(S'touch canary'\nios\nsystem\n.",
        "got the instruction INST in its pickle",
    ),
    "an object of the oldest protocol": (
        b"(cos\nsystem\nS'touch canary'\no.",
        "got the instruction OBJ in its pickle",
    ),
    "a number of the registry": (b"\x80\x02\x82\x01.", "got the instruction EXT1 in its pickle"),
    "no instruction": (b"\x80\x02\xff.", "got a damaged pickle"),
    "no end": (b"\x80\x02}", "got a damaged pickle"),
    "nothing on the stack": (b"\x80\x02a.", "got a file that cannot be read"),
    "nothing": (b"", "got a damaged pickle"),
    "a list": (pickle.dumps([1, 2], protocol=2), "got a list, expected a dictionary"),
    "a number": (pickle.dumps(3, protocol=2), "got a int, expected a dictionary"),
    "a storage that is not there": (
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x04tQ.",
        "got a file that cannot be read",
    ),
}


@pytest.mark.parametrize("case", STORED)
def test_a_pickle_of_ones_own_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = STORED[case]
    path = archive(tmp_path / "model.pt", content)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert str(refused.value).startswith(f"{path}: {message}")
    assert not (tmp_path / "canary").exists()


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "got an empty file, expected a zip archive"),
    "text": (lambda path: path.write_text("smiles,y\nCCO,1\n"), "got no zip archive"),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps({})), "got no zip archive"),
    "cut off": (lambda path: cut(path, 0.9), "got a damaged or cut-off zip archive"),
    "cut off early": (lambda path: cut(path, 0.1), "got a damaged or cut-off zip archive"),
    "compressed": (
        lambda path: archive(path, pickle.dumps({}), zipfile.ZIP_DEFLATED),
        "got a compressed entry, 'archive/data.pkl'",
    ),
    "another archive": (
        lambda path: zipfile.ZipFile(path, "w").close(),
        "got 0 entries data.pkl, expected one",
    ),
    "a program": (
        lambda path: torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path),
        "got a TorchScript program, expected a state dict",
    ),
    "old torch": (
        lambda path: torch.save({}, path, _use_new_zipfile_serialization=False),
        "got no zip archive",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_or_another_kind_of_file_is_said_to_be_one(
    case: str, tmp_path: Path
) -> None:
    damage, message = DAMAGED[case]
    path = saved(tmp_path / "model.pt")
    damage(path)
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_a_storage_that_is_shorter_than_its_tensor_is_refused(tmp_path: Path) -> None:
    path, other = saved(tmp_path / "model.pt"), tmp_path / "other.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:8] if name.endswith("data/0") else content)
    with pytest.raises(CheckpointError, match="got a file that cannot be read"):
        read_checkpoint(other)


def test_a_missing_file_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"got no file at .*a\.pt, expected a model"):
        read_checkpoint(tmp_path / "a.pt")


def test_endless_values_are_not_printed(tmp_path: Path) -> None:
    """A list of 2^60 entries in a few bytes: the same list twice, sixty times over."""
    endless: list[object] = []
    for _ in range(60):
        endless = [endless, endless]
    path = saved(tmp_path / "a.pt", hyper("message_passing", activation=endless, depth=3))
    with pytest.raises(CheckpointError, match="activation: got a list, expected one of"):
        read_chemprop(path)


def test_values_are_shown_in_a_few_characters() -> None:
    assert shown(None) == "nothing"
    assert shown(10**5000) == "a huge number"
    assert shown("a" * 1000) == repr("a" * 60 + "...")
    assert shown(True) == "True"
    assert shown(INERT["chemprop.nn.utils.Activation"]()) == "a Activation"


def test_torchs_list_of_safe_names_is_as_before(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    read_checkpoint(FILES / "last.ckpt")
    with pytest.raises(CheckpointError):
        read_checkpoint(archive(tmp_path / "a.pt", b"\x80\x02a."))
    assert torch.serialization.get_safe_globals() == before


def test_threads_may_read_at_once() -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(read_checkpoint(FILES / "last.ckpt"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
