"""Regression test of speed: ratios of alternatives measured side by side in this run. It fails
where one is worse by more than a half than the recorded one.

    make bench-smoke
"""

import sys

import torch

from benchmarks.compare import separate
from benchmarks.measuring import RESULTS
from benchmarks.molecules import fixed_molecules
from merging.data.files import read_json

_ALLOWED = 1.5
_RATIOS = ("own_time_ratio", "moe_time_ratio", "memory_ratio")


def main() -> int:
    """Measure on a few molecules and compare with `benchmarks/results/separate.json`."""
    torch.set_num_threads(1)
    recorded = read_json(RESULTS / "separate.json") or {}
    found = separate(fixed_molecules(500), rounds=3)
    worse = 0
    for name in _RATIOS:
        now, before = (
            values[name]["median"] if isinstance(values[name], dict) else values[name]
            for values in (found, recorded)
        )
        worse += now > _ALLOWED * before
        print(
            f"{name}: {now:.3f}, on record"
            f" {before:.3f}{', worse' if now > _ALLOWED * before else ''}"
        )
    return min(worse, 1)


if __name__ == "__main__":
    sys.exit(main())
