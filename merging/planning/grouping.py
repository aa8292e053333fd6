"""Groups of models by the distances between them: average linkage with a limit on group sizes."""

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
    """Groups, and the joins that formed them.

    Attributes:
        groups: names sorted within a group, groups sorted by their first name.
        linkage: (K - 1, 4) in the format of scipy.cluster.hierarchy over the sorted names: the two
            groups joined, their distance, and the number of names in the new group. The first K -
            len(groups) joins formed the groups; the rest are forbidden by the limit and complete
            the dendrogram. A close pair may be among them, so distances are raised to that of the
            join before where they are less.
    """

    groups: tuple[Group, ...]
    linkage: NDArray[np.float64]


def average_linkage(names: Sequence[str], distances: NDArray[np.float64], limit: int) -> Grouping:
    """Cluster models by average linkage with a limit on the size of a group.

    Repeatedly joins the two groups with the least mean distance between their members, among those
    with at most `limit` members together. With the limit K this is average linkage (Sokal and
    Michener 1958) as in scipy.cluster.hierarchy. Of equal distances the pair first by name is
    joined, so that the result does not depend on the order of the models.

    Args:
        names: of the K models, all different.
        distances: (K, K), symmetric.
        limit: the most members of a group.

    Raises:
        InvalidInputError: the shape of the distances does not fit the names, a name is repeated, or
            the limit is below 1.
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
    """Join groups until no pair is within the limit.

    `numbers` maps the members of a group to scipy's number of it; every join appends its row of the
    linkage to `rows`.
    """

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
    """Yield every partition of some names into groups of these sizes, once (8 names in groups of 3,
    3 and 2: 280 partitions)."""
    if not names:
        yield ()
        return
    first, *others = sorted(names)
    for size in sorted(set(sizes)):
        sizes_left = list(sizes)
        sizes_left.remove(size)
        for members in itertools.combinations(others, size - 1):
            names_left = [name for name in others if name not in members]
            for groups in all_groupings(names_left, sizes_left):
                yield ((first, *members), *groups)


def drawn_groupings(
    names: Sequence[str], sizes: Sequence[int], count: int, generator: np.random.Generator
) -> list[tuple[Group, ...]]:
    """Draw partitions of some names into groups of these sizes, all equally likely; one may be
    drawn twice. Names are sorted within a group, and groups by their first name."""
    drawn = []
    for _ in range(count):
        order = iter(generator.permutation(sorted(names)).tolist())
        groups = (tuple(sorted(itertools.islice(order, size))) for size in sizes)
        drawn.append(tuple(sorted(groups)))
    return drawn
