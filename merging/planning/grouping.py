"""Groups of models from the distances between them: average linkage with a limit on the size of a
group."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInputError

Group = tuple[str, ...]


@dataclass(frozen=True)
class Grouping:
    """Groups, and how they came about.

    Attributes:
        groups: names in order within a group, groups in order of their first name.
        linkage: (K - 1, 4) in the form of scipy.cluster.hierarchy over the sorted names: which two
            were joined, at which distance, and how many names the new group has. After the K -
            len(groups) joins that made the groups come those that the limit forbids, so that a
            dendrogram is whole; a close pair may be among them, so their distances are raised to
            that of the join before where they are less.
    """

    groups: tuple[Group, ...]
    linkage: NDArray[np.float64]


def average_linkage(names: Sequence[str], distances: NDArray[np.float64], limit: int) -> Grouping:
    """Of the groups that have at most `limit` members together, join the two with the least mean
    distance between members, until there are none.

    With the limit K this is average linkage (Sokal and Michener 1958) as in
    scipy.cluster.hierarchy. Of equal distances the pair that comes first by its names is joined, so
    the order of the models is of no matter.

    Args:
        names: of K models, each once.
        distances: (K, K), symmetric.
        limit: the most members of a group.

    Raises:
        InvalidInputError: the table does not fit the names, a name is there twice, or the limit is
            below 1.
    """
    if len(set(names)) != len(names) or distances.shape != (len(names), len(names)):
        raise InvalidInputError(
            f"got {len(names)} names and distances of shape {distances.shape}, expected different"
            " names and a row for each"
        )
    if limit < 1:
        raise InvalidInputError(f"limit: got {limit}, expected at least 1")
    order = sorted(range(len(names)), key=lambda k: names[k])
    numbers: dict[tuple[int, ...], int] = {(k,): k for k in range(len(order))}
    rows: list[list[float]] = []
    _join(numbers, distances[np.ix_(order, order)], rows, limit)
    groups = tuple(tuple(names[order[k]] for k in members) for members in sorted(numbers))
    _join(numbers, distances[np.ix_(order, order)], rows, len(order))
    return Grouping(groups, np.array(rows).reshape(-1, 4))


def _join(
    numbers: dict[tuple[int, ...], int],
    table: NDArray[np.float64],
    rows: list[list[float]],
    limit: int,
) -> None:
    """Join groups as long as there are two that may be; `numbers` has each by its members, and
    `rows` gets a row of the linkage for each join."""

    @cache
    def between(first: tuple[int, ...], second: tuple[int, ...]) -> float:
        return float(table[np.ix_(first, second)].mean())

    while pairs := [
        (between(*pair), *pair)
        for pair in itertools.combinations(sorted(numbers), 2)
        if len(pair[0]) + len(pair[1]) <= limit
    ]:
        distance, first, second = min(pairs)
        rows.append(
            [
                *sorted((numbers.pop(first), numbers.pop(second))),
                max(distance, rows[-1][2] if rows else 0),
                len(first + second),
            ]
        )
        numbers[tuple(sorted(first + second))] = len(table) + len(rows) - 1


def all_groupings(names: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[Group, ...]]:
    """Every way to split a few names into groups of these sizes, each once (8 names in groups of 3,
    3 and 2: 280 ways)."""
    if not names:
        yield ()
        return
    first, *others = sorted(names)
    for size in sorted(set(sizes)):
        left = list(sizes)
        left.remove(size)
        for rest in itertools.combinations(others, size - 1):
            for following in all_groupings([name for name in others if name not in rest], left):
                yield ((first, *rest), *following)
