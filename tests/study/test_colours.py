"""Text of the page can be read in both colour schemes: contrasts of WCAG 2.1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from s3prl_mtl.study import page
from s3prl_mtl.study.figures import COLOURS, STRONGEST

READABLE = 4.5
"""The ratio that WCAG 2.1, 1.4.3, requires of text."""

Rgb = Sequence[float]


def schemes() -> dict[str, dict[str, str]]:
    style = Path(page.__file__).with_name("page.css").read_text()
    blocks = re.findall(r":root {(.*?)}", style, flags=re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in blocks)
    return {"light": light, "dark": dark}


def rgb(colour: str) -> Rgb:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def luminance(colour: Rgb) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: Rgb, second: Rgb) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme: str) -> None:
    colours = {name: rgb(colour) for name, colour in schemes()[scheme].items()}
    for ink in ("ink", "muted", "helps", "hurts"):
        for ground in ("paper", "shade"):
            assert contrast(colours[ink], colours[ground]) >= READABLE, (ink, ground)
    for fill in ("helps", "hurts"):
        pairs = zip(colours[fill], colours["paper"], strict=True)
        cell = [STRONGEST * front + (1 - STRONGEST) * back for front, back in pairs]
        assert contrast(colours["ink"], cell) >= READABLE, fill


def test_figures_in_files_have_the_colours_of_the_light_page() -> None:
    assert {name: schemes()["light"][name] for name in COLOURS} == COLOURS
