"""The notebooks of `docs/notebooks`: `python -m tests.notebooks` executes them, each in a folder of
its own, and keeps their outputs without progress bars."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook in a folder, with this checkout. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    programs = folder / "bin"
    programs.mkdir()
    (programs / "gmerging").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gmerging "$@"\n')
    (programs / "gmerging").chmod(0o755)
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    (folder / "work").mkdir()
    # Not the machine's configuration of IPython, which may start with code of its own.
    paths |= {"IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "1"}
    with patch.dict(os.environ, paths):
        resources = {"metadata": {"path": str(folder / "work")}}
        settings = {"kernel_name": "python3", "timeout": 300, "coalesce_streams": True}
        NotebookClient(notebook, resources=resources, **settings).execute()
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop what differs from run to run: progress bars, times, the kernel's version."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def main() -> None:
    """Execute all notebooks and write them back."""
    for path in NOTEBOOKS:
        with TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        tidy(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
