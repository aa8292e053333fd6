"""The HTTP service: one merged model, every task, many clients."""

import os
import sys

# `python -m service` has the current folder in front of the path, and a `models.py` or `torch.py`
# that lies there would be taken for ours: it goes, unless it is where this package lies.
# While Python looks for the module to run, and only then, the first argument is "-m".
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[:1] != [_ROOT]:
    del sys.path[0]
