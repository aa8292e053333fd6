"""Random symmetric tables, for the tests of distances and of what is made of them."""

import numpy as np

from merging.planning.distances import Matrix


def symmetric(count: int, seed: int, levels: int | None = None) -> Matrix:
    generator = np.random.default_rng(seed)
    table = (
        generator.random((count, count))
        if levels is None
        else generator.integers(1, levels, (count, count)).astype(float)
    )
    table = np.triu(table, 1)
    return np.asarray(table + table.T)
