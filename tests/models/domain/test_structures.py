"""Structures are found by the domain that they are of, and by nothing else."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from models.domain.structures import Structure, Structures, write_structures
from models.errors import ConfigError

ETHANOL, BENZENE = Structure("CCO", {"toxic": 0.0, "bitter": 1.0}), Structure("c1ccccc1", {})


def test_structures_come_back_by_domain_and_line(tmp_path: Path) -> None:
    path = tmp_path / "new folder/structures.db"
    found = {"a" * 64: [(2, ETHANOL), (7, BENZENE)], "b" * 64: [(2, BENZENE)]}
    assert write_structures(path, found) == {"a" * 64: 2, "b" * 64: 1}
    structures = Structures(path)
    assert structures.find("a" * 64, [7, 2, 3]) == {7: BENZENE, 2: ETHANOL}
    assert structures.find("b" * 64, [2]) == {2: BENZENE}
    assert structures.find("c" * 64, [2, 7]) == {}
    assert write_structures(path, {"a" * 64: [(3, BENZENE)]}) == {"a" * 64: 1}
    assert structures.find("a" * 64, [2, 3]) == {3: BENZENE}


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got unable to open .*, expected a file of structures"):
        Structures(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()
    (tmp_path / "text.db").write_text("smiles,label\n" * 100)
    with pytest.raises(ConfigError, match="got file is not a database"):
        Structures(tmp_path / "text.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as database, database:
        database.execute("CREATE TABLE things (name TEXT)")
    with pytest.raises(ConfigError, match="got a database of another kind"):
        Structures(tmp_path / "other.db")
