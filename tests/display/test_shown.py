"""What objects say of themselves is short, is one text in two forms, and holds no markup of others."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from gpucal.display.shown import MOST_CHARACTERS, MOST_LINES, Shown, listed, shortened
from gpucal.display.svg import white_light

HOSTILE = "</script><b>&\n\x1b[31m\udce9"


@pytest.mark.parametrize(
    "shown",
    [
        Shown("Thing"),
        Shown("Thing", {"size": "3", "none": ""}),
        Shown("x" * 9_000, {f"fact {k}": "y" * 9_000 for k in range(40)}),
        Shown(HOSTILE, {HOSTILE: HOSTILE}),
    ],
)
def test_short_and_whole(shown: Shown) -> None:
    text = shown.text()
    assert len(text.splitlines()) <= MOST_LINES
    assert len(text) <= MOST_CHARACTERS
    assert text.startswith("<gpucal ")
    assert text.endswith(">")
    text.encode()
    shown.html().encode()
    root = ElementTree.fromstring(shown.html())
    assert {one.tag for one in root.iter()} <= {"div", "strong", "table", "tr", "th", "td"}


def test_both_forms_say_the_same() -> None:
    shown = Shown("Thing of 3", {"size": "3 <b>", "none": "", "name": "a & b"})
    assert shown.text() == "<gpucal Thing of 3\n  size  3 <b>\n  name  a & b>"
    cells = [one.text for one in ElementTree.fromstring(shown.html()).iter() if one.tag in ("th", "td", "strong")]
    assert cells == ["gpucal Thing of 3", "size", "3 <b>", "name", "a & b"]


def test_words() -> None:
    assert shortened("abcdefghijklm", 9) == "abc...klm"
    assert shortened("abc", 9) == "abc"
    assert listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert listed(["a", "b"]) == "a, b"


def points(svg: str) -> list[tuple[float, float]]:
    (path,) = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")
    return [tuple(map(float, one.removesuffix("h0").split())) for one in path.attrib["d"].split("M")[1:]]  # type: ignore[misc]


def test_a_transit_is_lower() -> None:
    flux = np.array([1.0, 1.0, 0.5, 1.0, np.nan, 1.0])
    found = points(white_light({"FGS1": (np.arange(6.0), flux)}))
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    heights = [y for _, y in found]
    assert len(heights) == 5
    assert heights[2] > heights[0] == heights[1] == heights[3] == heights[4]  # y grows downwards


@pytest.mark.parametrize("flux", [[], [np.nan, np.nan], [0.0, 0.0], [np.inf, -np.inf], [3.0, 3.0]])
def test_without_light_too(flux: list[float]) -> None:
    svg = white_light({"a<b": (np.arange(float(len(flux))), np.array(flux))})
    texts = [one.text for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "a<b"
    assert ("no light" in texts) == (flux != [3.0, 3.0])


def test_many_points_are_few() -> None:
    assert 200 <= len(points(white_light({"x": (np.arange(9_999.0), np.ones(9_999))}))) <= 400
