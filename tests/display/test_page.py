"""The page of a report: what is packed is unpacked, texts are escaped, and nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from pages import unpacked

from gpucal.display.page import Card, Failure, Look, Page, Scaled, packed, render

HOSTILE = "</script><script>alert(1)</script></noscript>@@DATA@@<b>&\"'\n\x1b\udce9"


def page(**how: Any) -> Page:
    return Page(
        **{
            **{"name": HOSTILE, "about": HOSTILE, "date": HOSTILE, "cards": [Card(HOSTILE, HOSTILE, "bad")]},
            **{"looks": [Look(0, HOSTILE, [(HOSTILE, HOSTILE)]), Look(None, HOSTILE, [])], "looks_note": HOSTILE},
            **{"failures": [Failure(HOSTILE, HOSTILE, [HOSTILE] * 9)], "made": {HOSTILE: HOSTILE}},
            **{"command": HOSTILE, "settings": HOSTILE, "head": [HOSTILE], "rows": [[HOSTILE]]},
            **{"data": packed({"text": HOSTILE}, {}), "observations": [packed({}, {}), ""]},
            **how,
        }
    )


class Tags(HTMLParser):
    """Counts tags and gathers attributes, outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_texts_stay_texts() -> None:
    text = "".join(render(page()))
    text.encode()
    plain = "".join(render(page(**dict.fromkeys(("name", "about", "date", "looks_note", "command", "settings"), "x"))))
    scripts = [attrs.get("type") for tag, attrs in Tags(text).found if tag == "script"]
    assert scripts == ["application/gzip;base64"] * 3 + [None]
    assert len(Tags(text).found) == len(Tags(plain).found)
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert text.count("@@") == 2 * text.count("@@DATA@@")
    assert unescape(text).count("</script><script>alert(1)</script></noscript>@@DATA@@<b>&\"'") > 20


def test_nothing_is_loaded_and_only_its_own_script_runs() -> None:
    text = "".join(render(page(name="x")))
    links = [attrs for _, attrs in Tags(text).found if attrs.keys() & {"src", "href", "srcset", "action", "data"}]
    assert links
    assert all(attrs.keys() <= {"href", "class"} and str(attrs["href"]).startswith("#") for attrs in links)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttp|WebSocket|import\(", text)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [tag for tag, attrs in Tags(text).found if "style" in attrs or any(name[:2] == "on" for name in attrs)]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.float32])
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 5), (1, 2, 3)])
def test_arrays_come_back(kind: type, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    facts = {"a": [1, 2.5, float("nan"), None, "ä"], "b": {"c": float("inf")}}
    told, arrays = unpacked(packed(facts, {"one": array, "two": array[::-1]}))
    assert told == {"a": [1, 2.5, None, None, "ä"], "b": {"c": None}}
    np.testing.assert_array_equal(arrays["one"], array)
    np.testing.assert_array_equal(arrays["two"], array[::-1])
    assert arrays["one"].dtype == kind


@pytest.mark.parametrize(("bits", "most"), [(8, 254), (16, 65534)])
def test_scaled_arrays_are_within_half_a_step(bits: int, most: int) -> None:
    values = np.array([[-3.0, np.nan, 7.5], [0.1, np.inf, 2.0]])
    _, arrays = unpacked(packed({}, {"a": Scaled(values, bits)}))
    expected = np.where(np.isfinite(values), values, np.nan)
    np.testing.assert_allclose(arrays["a"], expected, atol=10.5 / most / 2 * 1.001)
    assert np.isnan(arrays["a"]).sum() == 2


def test_scaled_logarithms_spans_and_nothing() -> None:
    values = np.array([1.0, 10.0, 1e6, 0.0, -1.0, np.nan])
    _, arrays = unpacked(
        packed(
            {},
            {
                "log": Scaled(values, log=True),
                "span": Scaled(values, 8, span=(1.0, 10.0)),
                "nothing": Scaled(np.full(3, np.nan)),
                "same": Scaled(np.full(3, 2.5)),
                "empty": Scaled(np.zeros(0)),
            },
        )
    )
    np.testing.assert_allclose(np.exp(arrays["log"]), np.where(values > 0, values, np.nan), rtol=2e-4)
    np.testing.assert_allclose(arrays["span"], [1.0, 10.0, 10.0, 1.0, 1.0, np.nan], rtol=1e-6)
    assert np.isnan(arrays["nothing"]).all()
    assert arrays["same"].tolist() == [2.5] * 3
    assert arrays["empty"].shape == (0,)


def test_the_same_values_are_the_same_bytes() -> None:
    values = np.linspace(0.0, 1.0, 1000)
    assert packed({"a": 1}, {"b": Scaled(values)}) == packed({"a": 1}, {"b": Scaled(values.copy())})
