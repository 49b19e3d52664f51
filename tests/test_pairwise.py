"""The cases of `pairwise` leave no pair of values out, and are few."""

from __future__ import annotations

from itertools import combinations, product
from math import prod

import pytest

from tests.support.pairwise import _rows


@pytest.mark.parametrize("sizes", [[1], [3, 2], [2, 2, 2], [3, 3, 2, 3, 2], [4, 14, 2, 2]], ids=str)
def test_each_pair_of_values_meets_in_a_case(sizes: list[int]) -> None:
    rows = _rows(sizes)
    for a, b in combinations(range(len(sizes)), 2):
        assert {(row[a], row[b]) for row in rows} == set(product(range(sizes[a]), range(sizes[b])))
    assert len(rows) <= prod(sizes)
