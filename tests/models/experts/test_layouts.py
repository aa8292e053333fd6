import numpy as np
import pytest
from safetensors.numpy import save

from models.errors import ArtifactError
from models.experts.forest import Forest
from models.experts.layouts import read_forest
from tests.forests import binary_forest, random_rows, random_symmetric


@pytest.mark.parametrize("forest", [random_symmetric(2), binary_forest(2)])
def test_a_forest_comes_back_from_its_file_bit_by_bit(forest: Forest) -> None:
    rows = random_rows(5)
    again = read_forest(forest.to_bytes(), rows.shape[1], 2)
    assert type(again) is type(forest)
    assert np.array_equal(again.outputs(rows), forest.outputs(rows))
    for name in forest.dtypes:
        assert np.array_equal(getattr(again, name), getattr(forest, name)), name


def test_other_files_are_refused() -> None:
    with pytest.raises(ArtifactError):
        read_forest(b"no tensors", 4, 1)
    with pytest.raises(ArtifactError, match="got arrays weight, expected columns, borders"):
        read_forest(save({"weight": np.zeros(2)}), 4, 1)
    with pytest.raises(ArtifactError, match=r"starts: got int32 \(3,\), expected int32 \(4,\)"):
        read_forest(binary_forest(2).to_bytes(), 4, 3)
