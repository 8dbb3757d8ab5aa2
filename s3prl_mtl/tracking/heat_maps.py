"""Matrices of numbers between tasks as a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

CELL = 52
HEADING = 76
GAP = 24
PER_ROW = 4
"""Matrices beside each other."""
POSITIVE = (33, 102, 172)
NEGATIVE = (178, 24, 43)
UNDEFINED = (200, 200, 200)
INK = (0, 0, 0)


def heat_maps(
    maps: Mapping[str, Sequence[Sequence[float]]],
    names: Sequence[str],
    title: str,
    limit: float,
    shown: Callable[[float], str] = "{:.2f}".format,
) -> Image.Image:
    """Draw square matrices: positive numbers blue, negative ones red, undefined ones grey.

    Args:
        maps: matrices by title.
        names: of rows and columns.
        title: of the figure.
        limit: the absolute value that has the full colour.
        shown: the text of a number.
    """
    columns = min(PER_ROW, len(maps))
    size = HEADING + CELL * len(names)
    rows = -(-len(maps) // columns)
    width = max(columns * (size + GAP) + GAP, GAP + 9 * len(title))
    image = Image.new("RGB", (width, GAP + 20 + rows * (size + GAP)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((GAP, 10), title, INK, ImageFont.load_default(16))
    for number, (heading, matrix) in enumerate(maps.items()):
        left = GAP + number % columns * (size + GAP)
        top = GAP + 20 + number // columns * (size + GAP)
        _draw_one(draw, (left, top), heading, matrix, names, limit, shown)
    return image


def _draw_one(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    heading: str,
    matrix: Sequence[Sequence[float]],
    names: Sequence[str],
    limit: float,
    shown: Callable[[float], str],
) -> None:
    font = ImageFont.load_default(13)
    left, top = corner[0] + HEADING, corner[1] + HEADING
    draw.text(corner, heading, INK, ImageFont.load_default(14))
    for i, name in enumerate(names):
        middle = i * CELL + CELL // 2
        # Longer names would run into each other.
        draw.text((left + middle, top - 6), name[:7], INK, font, anchor="ms")
        draw.text((left - 6, top + middle), name[:10], INK, font, anchor="rm")
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            x, y = left + j * CELL, top + i * CELL
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), colour(value, limit))
            text = shown(value) if math.isfinite(value) else ""
            dark = math.isfinite(value) and abs(value) > 0.6 * limit
            ink = (255, 255, 255) if dark else INK
            draw.text((x + CELL // 2, y + CELL // 2), text, ink, font, anchor="mm")


def colour(value: float, limit: float) -> tuple[int, ...]:
    """The colour of a value: white at 0, blue or red at the limit."""
    if not math.isfinite(value):
        return UNDEFINED
    full = POSITIVE if value > 0 else NEGATIVE
    strength = min(1.0, abs(value) / limit) if limit else 0.0
    return tuple(round(255 + strength * (channel - 255)) for channel in full)
