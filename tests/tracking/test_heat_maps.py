"""Heat maps: the colour of each number, and every matrix in the image."""

from __future__ import annotations

import math

import pytest

from s3prl_mtl.tracking.heat_maps import NEGATIVE, POSITIVE, UNDEFINED, colour, heat_maps


@pytest.mark.parametrize(
    ("value", "limit", "expected"),
    [
        (0.0, 1.0, (255, 255, 255)),
        (0.5, 0.5, POSITIVE),
        (2.0, 0.5, POSITIVE),
        (-0.5, 0.5, NEGATIVE),
        (math.nan, 1.0, UNDEFINED),
        (math.inf, 1.0, UNDEFINED),
        (0.0, 0.0, (255, 255, 255)),
    ],
)
def test_numbers_go_from_red_over_white_to_blue(value: float, limit: float, expected: object):
    assert colour(value, limit) == expected


def test_every_number_of_every_matrix_is_a_cell_of_its_colour():
    matrix = [[1.0, -1.0], [math.nan, 0.5]]
    areas = []
    for count in (1, 5):
        image = heat_maps(dict.fromkeys("abcde"[:count], matrix), ["x", "y"], "Title", 1.0)
        found = {colour: number for number, colour in image.getcolors(1 << 16)}
        areas.append([found[colour(value, 1.0)] for row in matrix for value in row])
    one, five = areas
    assert min(one) > 1000
    assert all(abs(more - 5 * less) < 0.05 * more for less, more in zip(one, five, strict=True))
