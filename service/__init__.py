"""HTTP service: predictions of one merged model, for every task, to many clients."""

import os
import sys

# `python -m service` puts the current folder at the front of `sys.path`, where a `models.py` or
# `torch.py` of the user would be imported in place of ours. Remove it, unless it is the folder of
# this package. `sys.argv` begins with "-m" only while Python looks for the module to run.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[:1] != [_ROOT]:
    del sys.path[0]

# An empty entry of PYTHONPATH means the current folder too; `PYTHONPATH=$PYTHONPATH:/somewhere`
# leaves one where the variable was not set.
_ENTRIES = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if len(_ENTRIES) > 1 and "" in _ENTRIES:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _ENTRIES))
    _HERE = os.path.abspath("")
    if _HERE in sys.path and _HERE not in (_ROOT, *_ENTRIES):
        sys.path.remove(_HERE)
