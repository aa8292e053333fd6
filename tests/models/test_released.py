"""Released artifacts by name, others by folder."""

from pathlib import Path

import pytest

from models.errors import ArtifactError
from models.released import DEFAULT_RELEASE, RELEASES, find_artifact, released


def test_names_are_those_of_the_folders() -> None:
    assert released() == {path.name: path for path in sorted(RELEASES.iterdir())}
    assert DEFAULT_RELEASE in released()


def test_a_name_is_the_released_one_wherever_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "admet").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_artifact("admet") == RELEASES / "admet"
    assert find_artifact("./admet/../admet") == Path("admet/../admet")


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_artifact(tmp_path) == find_artifact(str(tmp_path)) == tmp_path


def test_what_is_neither_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ArtifactError, match=r"got 'admte', .*did you mean 'admet'\?"):
        find_artifact("admte")
