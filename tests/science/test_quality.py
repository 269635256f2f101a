"""Numbers on quality against loops written from their definitions, on sound and on hostile arrays."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gpucal import DQ
from gpucal.science.pointing import Pointing
from gpucal.science.quality import middles, motion, position, quality, scatter, thirds, trace, white_light

NOTHING = float("nan")


@dataclass
class Arrays:
    signal: np.ndarray
    dq: np.ndarray
    flux: np.ndarray
    error: np.ndarray
    photometer: bool

    def numbers(self) -> dict[str, Any]:
        return quality(self.signal, self.dq, self.flux, self.error, photometer=self.photometer)


def draw(photometer: bool, n: int = 10, width: int = 7, height: int = 9) -> Arrays:
    """Draw light around row 4, and column 3 of a photometer, that moves and fades, with a few flags."""
    rng = np.random.default_rng(3)
    y, x, t = np.arange(height), np.arange(width), np.arange(n)[:, None, None]
    light = np.exp(-0.5 * ((y - 4.2 - 0.02 * t) / 1.1) ** 2)
    light = light * np.exp(-0.5 * ((x - 3.1 + 0.01 * t) / 1.2) ** 2).transpose(0, 2, 1) if photometer else light
    signal = 1e4 * light * (1.0 - 0.001 * t) * np.ones((n, width, 1)) + rng.normal(0.0, 20.0, (n, width, height))
    dq = np.zeros((width, height), np.uint8)
    dq[rng.integers(width), 4 % height] = DQ.HOT
    dq[0, 0] = DQ.DEAD | DQ.BAD_FLAT
    dq[-1, -1] = DQ.HOT | DQ.INTERPOLATED
    usable = np.where((dq == 0) | (dq & DQ.INTERPOLATED != 0), signal, 0.0)
    flux = usable.sum(axis=(1, 2))[:, None] if photometer else usable.sum(axis=2)
    return Arrays(signal, dq, flux, np.sqrt(np.abs(flux)) + rng.uniform(0.0, 1.0, flux.shape), photometer)


def spoil(what: Callable[[Arrays], object], **size: int) -> Callable[[bool], Arrays]:
    def make(photometer: bool) -> Arrays:
        arrays = draw(photometer, **size)
        what(arrays)
        return arrays

    return make


def put(name: str, where: Any, value: float) -> Callable[[Arrays], object]:
    return lambda arrays: getattr(arrays, name).__setitem__(where, value)


def scale(by: float) -> Callable[[Arrays], object]:
    def change(arrays: Arrays) -> None:
        arrays.signal *= by
        arrays.flux *= by

    return change


def in_single(arrays: Arrays) -> None:
    arrays.signal, arrays.flux, arrays.error = (
        of.astype(np.float32) for of in (arrays.signal, arrays.flux, arrays.error)
    )


HOSTILE: dict[str, Callable[[bool], Arrays]] = {
    "sound": spoil(lambda arrays: None),
    "eleven bins": spoil(lambda arrays: None, n=11),
    "single precision": spoil(in_single),
    "one bin": spoil(lambda arrays: None, n=1),
    "two bins": spoil(lambda arrays: None, n=2),
    "three bins": spoil(lambda arrays: None, n=3),
    "one wavelength": spoil(lambda arrays: None, width=1),
    "one pixel": spoil(put("dq", ..., 0), width=1, height=1),
    "one bin of one pixel": spoil(put("dq", ..., 0), n=1, width=1, height=1),
    "all flagged": spoil(put("dq", ..., DQ.DEAD)),
    "all interpolated": spoil(put("dq", ..., DQ.DEAD | DQ.INTERPOLATED)),
    "signal NaN": spoil(put("signal", ..., np.nan)),
    "light curves NaN": spoil(put("flux", ..., np.nan)),
    "errors NaN": spoil(put("error", ..., np.nan)),
    "a light curve NaN": spoil(put("flux", (slice(None), 0), np.nan)),
    "a bin infinite": spoil(put("flux", (2, -1), np.inf)),
    "a pixel NaN": spoil(put("signal", (slice(None), 2, 4), np.nan)),
    "a value infinite": spoil(put("signal", (1, 2, 4), -np.inf)),
    "zero": spoil(scale(0.0)),
    "negative": spoil(scale(-1.0)),
    "huge": spoil(scale(1e200)),
    "no error": spoil(put("error", ..., 0.0)),
}


def told(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def median(values: Iterable[float]) -> float:
    values = list(values)
    return NOTHING if not values or any(map(math.isnan, values)) else statistics.median(values)


def over(one: float, other: float) -> float:
    if other:
        return one / other
    return math.copysign(math.inf, one) if one and not math.isnan(one) else NOTHING


def noise(flux: list[float], error: list[float]) -> tuple[float, float, float]:
    """Scatter and expected, in ppm, and their ratio."""
    level = abs(median(flux)) / 1e6
    steps = [b - a for a, b in itertools.pairwise(flux)]
    centre = median(steps)
    spread = 1.4826 * median(abs(step - centre) for step in steps) / 2**0.5 if len(steps) > 1 else NOTHING
    expected = (sum(e**2 for e in error) / len(error)) ** 0.5
    parts = over(spread, level), over(expected, level)
    return *parts, over(*parts)


def profile(image: dict[tuple[int, int], float], shape: tuple[int, int], axis: int) -> list[float]:
    means = []
    for k in range(shape[axis]):
        own = [value for place, value in image.items() if place[axis] == k]
        means.append(sum(own) / len(own) if own else NOTHING)
    return means


def lit(means: list[float]) -> set[int]:
    there = told(means)
    return {k for k, of in enumerate(means) if there and of > (min(there) + max(there)) / 2}


def centroid(means: list[float]) -> float:
    there = {k: of for k, of in enumerate(means) if math.isfinite(of)}
    light = {k: of - min(there.values()) for k, of in there.items()}
    total = sum(light.values())
    return sum(k * of for k, of in light.items()) / total if 0 < total < math.inf else NOTHING


def by_loops(arrays: Arrays) -> dict[str, Any]:
    """The numbers from their definitions, value by value."""
    signal, dq, flux, error = (
        of.astype(float) if of.dtype.kind == "f" else of for of in (arrays.signal, arrays.dq, arrays.flux, arrays.error)
    )
    n, width, height = signal.shape
    columns = range(flux.shape[1])
    whole = [k for k in columns if all(math.isfinite(value) for value in flux[:, k])]
    white = [sum(flux[b, k] for k in whole) if whole else NOTHING for b in range(n)]
    white_error = [sum(error[b, k] ** 2 for k in whole) ** 0.5 if whole else NOTHING for b in range(n)]
    names = ("scatter_ppm", "expected_ppm", "excess")
    numbers: dict[str, Any] = {"white_flux": median(white)}
    numbers |= dict(zip(names, noise(white, white_error), strict=True))
    if not arrays.photometer:
        curves = [noise(flux[:, k].tolist(), error[:, k].tolist()) for k in columns]
        for i, name in enumerate(names):
            there = told(curve[i] for curve in curves)
            numbers[f"{name}_by_wavelength"] = {
                f"p{q}": float(np.percentile(there, q)) if there else NOTHING for q in (5, 50, 95)
            }
    part = n // 3
    first, middle, last = (median(white[a:b]) for a, b in ((0, part), (part, n - part), (n - part, n)))
    numbers["drift_ppm"] = 1e6 * over(last - first, abs(median(white)))
    numbers["depth_ppm"] = 1e6 * (1 - over(middle, (first + last) / 2))
    good = [p for p in np.ndindex(width, height) if dq[p] == 0 or dq[p] & DQ.INTERPOLATED]

    def image(bins: range) -> dict[tuple[int, int], float]:
        means = {p: sum(signal[b, p[0], p[1]] for b in bins) / len(bins) for p in good} if bins else {}
        return {p: value for p, value in means.items() if math.isfinite(value)}

    everything = image(range(n))
    rows, lines = (lit(profile(everything, (width, height), axis)) for axis in (1, 0))
    inside = [(x, y) for x, y in np.ndindex(width, height) if y in rows and (x in lines or not arrays.photometer)]
    for name, pixels in (("flags", list(np.ndindex(width, height))), ("trace_flags", inside)):
        numbers[name] = {flag.name: sum(bool(dq[p] & flag) for p in pixels) for flag in DQ}
    numbers["nan_columns"] = len(columns) - len(whole)
    numbers["negative_share"] = over(sum(float(signal[b, x, y] < 0) for b in range(n) for x, y in good), n * len(good))
    for name, axis in [("trace_row", 1), ("trace_column", 0)][: 1 + arrays.photometer]:
        whole_time, early, late = (
            centroid(profile(image(bins), (width, height), axis))
            for bins in (range(n), range(part), range(n - part, n))
        )
        numbers[name], numbers[f"{name}_drift"] = whole_time, late - early
    return numbers


def compare(found: Any, expected: Any, name: str, slack: float) -> None:
    if isinstance(expected, dict):
        assert [*found] == [*expected], name
        for key in expected:
            compare(found[key], expected[key], f"{name} {key}", slack)
    elif not math.isfinite(expected):
        assert found is None, name
    else:
        assert found == pytest.approx(expected, rel=1e-5, abs=slack), name


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("photometer", [False, True], ids=["spectrum", "image"])
@pytest.mark.parametrize("case", HOSTILE)
def test_numbers_are_their_definitions(case: str, photometer: bool) -> None:
    arrays = HOSTILE[case](photometer)
    before = [of.copy() for of in (arrays.signal, arrays.dq, arrays.flux, arrays.error)]
    found = arrays.numbers()
    compare(found, by_loops(arrays), "", 1e-8)
    for kept, of in zip(before, (arrays.signal, arrays.dq, arrays.flux, arrays.error), strict=True):
        np.testing.assert_array_equal(of, kept)
    text = json.dumps(found, allow_nan=False)
    assert len(text) < 1000
    assert json.loads(text) == found


@pytest.mark.parametrize("case", HOSTILE)
def test_every_item_of_a_detector_has_the_same_fields(case: str) -> None:
    for photometer in (False, True):
        assert [*HOSTILE[case](photometer).numbers()] == [*draw(photometer).numbers()]


@pytest.mark.parametrize("sigma", [3.0, 700.0])
def test_scatter_is_a_standard_deviation_in_spite_of_drifts_and_hits(sigma: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(1e6, sigma, (4000, 3))
    values[:, 1] += 0.5 * sigma * np.arange(4000)
    values[::400, 2] += 1e5
    np.testing.assert_allclose(scatter(values), sigma, rtol=0.1)  # 5 times the error of a draw


@pytest.mark.parametrize("n", range(1, 9))
def test_middles_are_medians(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(n, 5))
    values[n // 2, 3] = np.nan
    np.testing.assert_allclose(middles(values), np.median(values, axis=0))
    parts = [np.arange(n)[part] for part in thirds(n)]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(n))
    assert len(parts[0]) == len(parts[2]) == n // 3


def test_a_transit_and_a_shift_are_found() -> None:
    arrays = draw(False, n=30)
    arrays.flux = np.outer(1.0 - 0.001 * np.arange(30), np.full(7, 1e5))
    arrays.flux[10:20] *= 0.99
    numbers = arrays.numbers()
    assert numbers["depth_ppm"] == pytest.approx(10_000)
    assert numbers["drift_ppm"] == pytest.approx(-20_000, rel=0.03)  # a thousandth a bin, over two thirds
    assert numbers["trace_row"] == pytest.approx(4.2 + 0.02 * 14.5, abs=0.1)
    assert numbers["trace_row_drift"] == pytest.approx(0.02 * 20, rel=0.2)


def test_white_light_leaves_out_what_is_not_finite() -> None:
    flux = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 5.0]])
    error = np.array([[3.0, 4.0, 1.0], [6.0, 8.0, 1.0]])
    white, white_error, broken = white_light(flux, error)
    assert (white.tolist(), white_error.tolist(), broken) == ([[3.0], [7.0]], [[5.0], [10.0]], 1)


def test_the_trace_is_where_the_light_is() -> None:
    image = np.zeros((3, 5))
    image[:, 2], image[:, 3] = 10.0, 4.0
    image[0, 2] = np.nan
    assert trace(image, photometer=False).tolist() == [[False, False, True, False, False]] * 3
    assert position(image, 1) == pytest.approx((10 * 2 + 4 * 3) / 14)
    image[:2] = 0.0
    assert np.argwhere(trace(image, photometer=True)).tolist() == [[2, 2]]
    assert position(image, 0) == 2.0
    assert not trace(np.full((3, 5), np.nan), photometer=True).any()


def test_motion_is_drift_scatter_and_excess() -> None:
    """Of a star that jumps by a pixel after half of the time, beside one that stands still but for its errors."""
    rng = np.random.default_rng(4)
    still, jumps = rng.normal(0.0, 0.01, 999), rng.normal(0.0, 0.03, 999) + np.where(np.arange(999) < 500, 0.0, 1.0)
    error, nothing = np.full(999, 0.01), np.full(999, np.nan)
    numbers = motion(Pointing(still, jumps, error, error), photometer=True)
    assert numbers["pointing_row_drift"] == pytest.approx(1.0, abs=0.01)
    assert numbers["pointing_column_drift"] == pytest.approx(0.0, abs=0.003)
    assert (numbers["pointing_row_scatter"], numbers["pointing_row_excess"]) == pytest.approx((0.03, 3.0), rel=0.1)
    assert numbers["pointing_column_excess"] == pytest.approx(1.0, rel=0.1)
    of_spectrum = motion(Pointing(nothing, jumps, nothing, error), photometer=False)
    assert of_spectrum == {name: value for name, value in numbers.items() if "row" in name}
    for n in (1, 2, 999):
        unknown = motion(Pointing(*[nothing[:n]] * 4), photometer=True)
        assert unknown == dict.fromkeys(numbers)
    json.dumps(numbers, allow_nan=False)
