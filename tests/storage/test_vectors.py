"""A vector's direction is kept, however large or small its numbers are."""

from __future__ import annotations

import math

import pytest

from session_middleware.storage.sql.memory.vectors import unit


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e39, 1e300, 5e-324])
def test_a_vector_is_made_one_long(size: float) -> None:
    assert unit([size, size, 0.0]).tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), 0.0])


def test_nothing_points_nowhere() -> None:
    assert unit([0.0, 0.0]).tolist() == [0.0, 0.0]
