"""Local paths, and addresses of other file systems."""

from pathlib import Path
from uuid import uuid4

import pytest

from models.errors import InvalidInputError
from service.shards.places import beside, files_at, is_remote, joined


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new folder of this machine, and one of a file system that fsspec brings."""
    if request.param == "local":
        return str(tmp_path / "made")
    pytest.importorskip("fsspec")
    return f"memory://{uuid4().hex}/made"


def write(address: str, content: bytes) -> None:
    with files_at(address).writing(address) as writing:
        writing.path.write_bytes(content)


def test_addresses() -> None:
    assert joined("/a", "b/c") == "/a/b/c"
    assert joined("/", "b") == "/b"
    assert joined("s3://bucket/a/", "b") == "s3://bucket/a/b"
    assert beside("/a/b.parquet", ".note") == "/a/.b.parquet.note"
    assert beside("b.parquet", ".note") == ".b.parquet.note"
    assert is_remote("s3://b/k")
    assert not is_remote("/a:/b")


def test_a_written_file_is_found_read_and_known_again(folder: str) -> None:
    files = files_at(folder)
    address = joined(folder, "a/part 0.csv")
    write(address, b"one")
    write(joined(folder, "b.csv"), b"three")
    assert [(found.name, found.size) for found in files.listed(folder)] == [
        ("a/part 0.csv", 3),
        ("b.csv", 5),
    ]
    assert files.listed(folder)[0].address == address
    (only,) = files.listed(address)
    assert (only.name, only.address, only.size) == ("part 0.csv", address, 3)
    before = files.identity(address)
    assert before == files.identity(address)
    assert before.size == 3
    with files.opened(address) as stream:
        assert stream.read() == b"one"
        stream.seek(1)
        assert stream.read() == b"ne"
    with files.looked_into(address) as stream:
        stream.seek(1)
        assert bytes(stream.read(1)) == b"n"
    write(address, b"other")
    assert files.identity(address) != before


def test_a_file_whose_writing_fails_does_not_appear_and_leaves_nothing(folder: str) -> None:
    address = joined(folder, "a.csv")
    write(joined(folder, "b.csv"), b"")

    def fail() -> None:
        with files_at(address).writing(address) as writing:
            writing.path.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [found.name for found in files_at(folder).listed(folder)] == ["b.csv"]


def test_small_files(folder: str) -> None:
    files, address = files_at(folder), joined(folder, ".a.note")
    assert files.small(address) is None
    files.put(address, b"1")
    files.put(address, b"22")
    assert files.small(address) == b"22"
    files.remove(address)
    files.remove(address)
    assert files.small(address) is None


def test_what_is_missing_is_not_found(folder: str) -> None:
    address = joined(folder, "nothing.csv")
    files = files_at(address)
    with pytest.raises(FileNotFoundError):
        files.identity(address)
    with pytest.raises(FileNotFoundError), files.opened(address):
        pass
    with pytest.raises(FileNotFoundError), files.looked_into(address):
        pass
    with pytest.raises(FileNotFoundError):
        files.listed(address)


def test_addresses_that_nothing_reads_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="got address nope://host, which nothing here"):
        files_at("nope://host/a").identity("nope://host/a")
