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
answering.ROW_CPU_SECONDS = 1
answering.CHUNK_CPU_SECONDS = 3


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


def write_site(folder: Path) -> str:
    """Write the module, and return the value of PYTHONPATH with which it is found."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITE)
    return f"{folder}:{Path(__file__).parents[3]}"
