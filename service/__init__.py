"""The HTTP service: one merged model, every task, many clients."""

import os
import sys

# `python -m service` has the current folder in front of the path, and a `models.py` or `torch.py`
# that lies there would be taken for ours: it goes, unless it is where this package lies.
# While Python looks for the module to run, and only then, the first argument is "-m".
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[:1] != [_ROOT]:
    del sys.path[0]

# An empty entry of PYTHONPATH is the current folder too: `PYTHONPATH=$PYTHONPATH:/somewhere` leaves
# one where the variable was not set.
_ENTRIES = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if len(_ENTRIES) > 1 and "" in _ENTRIES:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _ENTRIES))
    _HERE = os.path.abspath("")
    if _HERE in sys.path and _HERE not in (_ROOT, *_ENTRIES):
        sys.path.remove(_HERE)
