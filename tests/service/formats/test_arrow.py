"""Parquet in and out: what it costs in memory."""

import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.formats.arrow import arrow, open_parquet


@pytest.fixture(scope="module")
def one_group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of one group of rows, which are all different: 8 MB."""
    path, generator = tmp_path_factory.mktemp("parquet") / "rows.parquet", random.Random(0)
    smiles = ["C" * generator.randint(1, 9) + hex(generator.getrandbits(256)) for _ in range(10**5)]
    pq.write_table(pa.table({"smiles": smiles}), path, row_group_size=10**6)
    assert pq.read_metadata(path).num_row_groups == 1
    return path


class Watched(io.FileIO):
    """A file that notes the most bytes that were read at once."""

    most = 0

    def read(self, size: int = -1) -> bytes:
        found = super().read(size)
        self.most = max(self.most, len(found))
        return found


def test_a_group_of_rows_is_read_piece_by_piece(one_group: Path) -> None:
    with Watched(one_group) as stream:
        assert sum(1 for _ in open_parquet(stream, "smiles").records) == 10**5
        assert 0 < stream.most < one_group.stat().st_size / 4


def test_what_is_freed_goes_back_to_the_system(one_group: Path) -> None:
    """And not into a pool that keeps it for other tables."""
    arrow()
    assert pa.default_memory_pool().backend_name == "system"
