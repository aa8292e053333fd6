"""The notebooks run from top to bottom, are kept with their outputs, and stay small."""

from pathlib import Path

import nbformat
import pytest

from tests.notebooks import NOTEBOOKS, execute

MOST_BYTES = 40_000


def test_there_is_one_for_each_way_in() -> None:
    assert [path.name for path in NOTEBOOKS] == ["add-a-task.ipynb", "merge.ipynb", "predict.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_with_outputs_and_small(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert "/work/" not in path.read_text()  # of the machine that it was made on


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    made = execute(path, tmp_path)
    for before, after in zip(kept.cells, made.cells, strict=True):
        if before.cell_type == "code":
            shown = [
                output.output_type for output in after.outputs if output.get("name") != "stderr"
            ]
            assert shown == [output.output_type for output in before.outputs]
