"""Records that end the process that answers them, for tests: a module `sitecustomize` that Python
imports before anything else."""

from pathlib import Path

KILLS, SPINS, RAISES = "N#CC#N", "N#CCC#N", "N#CCCC#N"
"""SMILES that kill their process, compute for ever, and make the model raise."""
_SITE = f"""
import os, signal

import service.core.local as local
import service.shards.answering as answering

real = local.predict
answering.ROW_CPU_SECONDS = ROW_SECONDS_
answering.CHUNK_CPU_SECONDS = 3 * ROW_SECONDS_


def predict(query, settings, sources):
    if {KILLS!r} in sources:
        os.kill(os.getpid(), signal.SIGKILL)
    while {SPINS!r} in sources:
        pass
    if {RAISES!r} in sources:
        raise RuntimeError("too much")
    return real(query, settings, sources)


local.predict = answering.predict = predict
"""


def write_site(folder: Path, row_seconds: int = 1) -> str:
    """Write the module, and return the value of PYTHONPATH with which it is found.

    Args:
        folder: is made.
        row_seconds: CPU time of one record; three times that of a chunk.
    """
    folder.mkdir()
    text = _SITE.replace("ROW_SECONDS_", str(row_seconds))
    (folder / "sitecustomize.py").write_text(text)
    return f"{folder}:{Path(__file__).parents[3]}"
