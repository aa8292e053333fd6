"""Groups of models against scipy, and by their laws."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import average
from scipy.spatial.distance import squareform

from merging.planning.grouping import all_groupings, average_linkage, drawn_groupings
from models.errors import InvalidInputError
from tests.merging.tables import symmetric


class TestGrouping:
    def test_without_a_limit_is_scipys_average_linkage(self) -> None:
        for seed in range(20):
            count = 2 + seed % 9
            table = symmetric(count, seed)
            found = average_linkage([f"t{k}" for k in range(count)], table, count)
            np.testing.assert_allclose(found.linkage, average(squareform(table)))
            assert len(found.groups) == 1

    @pytest.mark.parametrize("limit", [1, 2, 3, 4])
    def test_limit_is_kept_and_no_two_groups_could_be_joined(self, limit: int) -> None:
        for seed in range(10):
            names = [f"t{k}" for k in range(9)]
            found = average_linkage(names, symmetric(9, seed), limit)
            sizes = sorted(map(len, found.groups))
            assert sorted(name for group in found.groups for name in group) == names
            assert sizes[-1] <= limit
            assert len(sizes) == 1 or sizes[0] + sizes[1] > limit
            assert found.linkage.shape == (8, 4)
            assert (np.diff(found.linkage[:, 2]) >= 0).all()
            assert found.linkage[-1, 3] == 9

    def test_order_of_names_is_of_no_matter_even_with_ties(self) -> None:
        names, generator = [f"t{k}" for k in range(8)], np.random.default_rng(0)
        for seed in range(10):
            table = symmetric(8, seed, levels=4)
            order = generator.permutation(8)
            shuffled = average_linkage([names[k] for k in order], table[np.ix_(order, order)], 3)
            assert shuffled.groups == average_linkage(names, table, 3).groups

    def test_closest_are_joined(self) -> None:
        place = np.array([0.0, 0.1, 0.3, 5.0, 5.1])
        found = average_linkage(list("edcba"), np.abs(place[:, None] - place), 3)
        assert found.groups == (("a", "b"), ("c", "d", "e"))
        assert average_linkage(["alone"], np.zeros((1, 1)), 3).groups == (("alone",),)

    def test_all_groupings(self) -> None:
        found = list(all_groupings("hgfedcba", (3, 3, 2)))
        assert len(found) == len(set(found)) == 280
        assert all(
            sorted(map(len, groups)) == [2, 3, 3] and sorted(sum(groups, ())) == list("abcdefgh")
            for groups in found
        )
        assert list(all_groupings("ab", (2,))) == [(("a", "b"),)]

    def test_errors_say_what_was_expected(self) -> None:
        for names in (["a", "a"], ["a", "b", "c"]):
            with pytest.raises(
                InvalidInputError, match="expected different names and a row for each"
            ):
                average_linkage(names, np.zeros((2, 2)), 2)
        with pytest.raises(InvalidInputError, match="limit: got 0"):
            average_linkage(["a", "b"], np.zeros((2, 2)), 0)


def test_drawn_groupings_are_among_all() -> None:
    names, sizes = "abcdefgh", (3, 3, 2)
    every = set(all_groupings(names, sizes))
    drawn = drawn_groupings(names, sizes, 2000, np.random.default_rng(0))
    assert set(drawn) <= every
    # 280 equally likely ones: each is drawn with probability .9992.
    assert len(set(drawn)) > 270
    again = drawn_groupings(names[::-1], sizes, 3, np.random.default_rng(0))
    assert again == drawn[:3]
