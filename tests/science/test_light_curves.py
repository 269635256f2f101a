"""Light curves against loops written from their definition: windows, background, weights, errors, the product."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import BINS, Made

import gpucal
from gpucal import DQ, Calibration
from gpucal.cli.main import main
from gpucal.errors import ConfigError, OutputError
from gpucal.science import noise
from gpucal.science.bad_pixels import carry_variance, find_mends, interpolate
from gpucal.science.light_curves import Aperture, light_curve, light_curve_of_plan, light_curve_with_errors
from gpucal.science.rejected import Rejected
from gpucal.settings.detectors import DETECTORS, Detector

AIRS = replace(DETECTORS["AIRS-CH0"], shape=(8, 6), crop=(0, 6))
FGS1 = replace(DETECTORS["FGS1"], shape=(8, 6), crop=(0, 6))
BACKGROUND = ((0, 2), (6, 8))


def draw(seed: int = 0, n: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a signal with a bright row 3, its variance, and flags: a whole column, and pixels of which one is NaN."""
    rng = np.random.default_rng(seed)
    profile = 50.0 + 1000.0 * np.exp(-0.5 * ((np.arange(8) - 3.2) / 1.1) ** 2)
    signal = profile * rng.uniform(0.8, 1.2, (6, 1)) + rng.normal(0.0, 5.0, (n, 6, 8))
    variance = rng.uniform(20.0, 30.0, (n, 6, 8)) + profile
    dq = np.zeros((6, 8), np.uint8)
    dq[0, 3] = DQ.HOT
    dq[1, 0] = dq[1, 1] = DQ.DEAD
    dq[4] = DQ.BAD_FLAT
    signal[:, 1, 0] = np.nan
    return signal, variance, dq


def groups(detector: Detector) -> list[list[tuple[int, int]]]:
    """The pixels of each light curve."""
    if detector.photometer:
        return [[(x, y) for x in range(6) for y in range(8)]]
    return [[(x, y) for y in range(8)] for x in range(6)]


def by_loops(
    signal: np.ndarray,
    variance: np.ndarray,
    dq: np.ndarray,
    detector: Detector,
    weights: str,
    rows: tuple[int, int],
    background: tuple[tuple[int, int], ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Flux and error from the definition, pixel by pixel."""
    curves, errors = [], []
    for pixels in groups(detector):
        good = [pixel for pixel in pixels if dq[pixel] == 0]
        used = [(x, y) for x, y in good if rows[0] <= y < rows[1]]
        sky = [(x, y) for x, y in good if any(first <= y < stop for first, stop in background)]
        level = np.mean([signal[:, x, y] for x, y in sky], axis=0) if sky else np.zeros(len(signal))
        if weights == "plain":
            w = dict.fromkeys(used, 1.0)
        else:
            profile = {p: max(signal[:, p[0], p[1]].mean() - level.mean(), 0.0) for p in used}
            noise = {p: variance[:, p[0], p[1]].mean() for p in used}
            norm = sum(profile[p] ** 2 / noise[p] for p in used)
            w = {p: profile[p] / noise[p] / norm * sum(profile.values()) for p in used} if norm else {}
        if not used or (background and not sky):  # no light, or none that is on the others' footing
            curves.append(np.full(len(signal), np.nan))
            errors.append(np.full(len(signal), np.nan))
            continue
        flux, squared = np.zeros(len(signal)), np.zeros(len(signal))
        for p in {*used, *sky}:
            share = w.get(p, 0.0) - (sum(w.values()) / len(sky) if p in sky else 0.0)
            squared += share**2 * variance[:, p[0], p[1]]
        for p in used:
            flux += w.get(p, 0.0) * (signal[:, p[0], p[1]] - level)
        curves.append(flux)
        errors.append(np.sqrt(squared))
    return np.array(curves).T, np.array(errors).T


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("background", [(), BACKGROUND, ((0, 1),), ((2, 5),)])
@pytest.mark.parametrize("rows", [(0, 8), (1, 6), (3, 4)])
@pytest.mark.parametrize("weights", ["plain", "variance"])
@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
def test_is_the_definition(
    detector: Detector,
    weights: str,
    rows: tuple[int, int],
    background: tuple[tuple[int, int], ...],
    dtype: type[np.floating],
) -> None:
    signal, variance, dq = draw()
    signal, variance = signal.astype(dtype), variance.astype(dtype)
    before = signal.copy(), variance.copy(), dq.copy()
    aperture = Aperture(detector, weights, rows, background)
    flux, error = light_curve_with_errors(signal, dq, aperture, variance)
    assert flux.dtype == error.dtype == np.float64
    expected = by_loops(signal.astype(float), variance.astype(float), dq, detector, weights, rows, background)
    # no good pixel in these, or none of the background
    empty = {4} | ({0} if rows == (3, 4) else set()) | ({1} if background == ((0, 1),) else set())
    assert detector.photometer or np.flatnonzero(np.isnan(flux).all(axis=0)).tolist() == sorted(empty)
    np.testing.assert_allclose(flux, expected[0], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(error, expected[1], rtol=1e-9)
    np.testing.assert_array_equal(light_curve(signal, dq, aperture, variance), flux)
    for array, original in zip((signal, variance, dq), before, strict=True):
        np.testing.assert_array_equal(array, original)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("gain", ["divide", "multiply"])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("bad_pixels", ["keep", "nan", "interpolate"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", BINS)
def test_errors_need_no_cube_of_variances(
    old: Made, name: str, dtype: type[np.floating], bad_pixels: str, reduce: str, gain: str
) -> None:
    """Hostile frames, and charges below 0: the sums are those over the cube."""
    config = Calibration(bins={name: 2}, bad_pixels=bad_pixels, reduce=reduce, gain=gain, integration="notebook")
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], name, config, dtype=dtype)
    for rows, background in ((None, ()), ((4, 20), ()), ((4, 20), ((0, 3), (25, 32)))):
        aperture = Aperture(cal.detector, "plain", rows, background)
        before = cal.signal.copy()
        flux, error = light_curve_of_plan(cal.signal, cal.dq, aperture, cal.plan)
        expected = light_curve_with_errors(cal.signal, cal.dq, aperture, cal.variance)
        np.testing.assert_array_equal(cal.signal, before)
        size = np.abs(cal.signal[:, ~cal.mask]).sum(dtype=float) if name == "FGS1" else np.abs(cal.signal).sum(axis=2)
        size = np.where(np.isfinite(size), size, 0.0)
        for got, of in ((np.isnan, flux), (np.isposinf, error)):
            np.testing.assert_array_equal(got(of), got(expected.flux if of is flux else expected.error))
        there = np.isfinite(expected.flux)
        assert (np.abs(flux - expected.flux)[there] <= (1e-12 * size + 1e-12 * np.abs(expected.flux))[there]).all()
        np.testing.assert_allclose(error, expected.error, rtol=1e-12)
    plan = replace(cal.plan, read_noise=np.full_like(cal.plan.read_noise, np.nan))
    assert np.isnan(light_curve_of_plan(cal.signal, cal.dq, aperture, plan).error).all()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("background", [(), ((0, 3), (25, 32)), "faintest:5"])
@pytest.mark.parametrize("name", BINS)
def test_errors_without_that_cube_know_rejected_pairs(
    old: Made, name: str, background: tuple[tuple[int, int], ...] | str
) -> None:
    """Of some bins a part is left, of others nothing: in good pixels and in bad ones."""
    config = Calibration(bins={name: 3}, bad_pixels="interpolate", integration="notebook")
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], name, config)
    shape, rng = cal.signal.shape, np.random.default_rng(1)
    counts = np.where(rng.random(shape) < 0.01, rng.integers(1, 4, shape), 0)
    counts[: len(counts) // 2][counts[: len(counts) // 2] == 3] = 2  # or no light curve of FGS1 would have a number
    bins, x, y = np.nonzero(counts)
    rejected = Rejected(bins, y * shape[1] + x, counts[bins, x, y])
    sane = np.abs(cal.signal).max(axis=0) < 1e9
    dq = np.where(sane, cal.dq, np.uint8(DQ.DEAD))
    signal = np.where((counts == 3) & (dq == 0), np.nan, cal.signal)
    variances = noise.variance(signal, cal.plan, dq, rejected)
    aperture = Aperture(cal.detector, "plain", (4, 20), background)
    curve = light_curve_of_plan(signal, dq, aperture, cal.plan, rejected)
    expected = light_curve_with_errors(signal, dq, aperture, variances)
    np.testing.assert_allclose(curve.flux, expected.flux, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(curve.error, expected.error, rtol=1e-9)
    assert np.isfinite(curve.error).any()
    plain = light_curve_of_plan(signal, dq, aperture, cal.plan)
    assert (curve.error > plain.error).any()


def by_whole_loops(
    signal: np.ndarray,
    variance: np.ndarray,
    dq: np.ndarray,
    detector: Detector,
    rows: tuple[int, int],
    sky_rows: set[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Flux and error with one background for all bins: every output as a sum over all pixels of all bins."""
    n = len(signal)
    flux, error = np.full((n, len(groups(detector))), np.nan), np.full((n, len(groups(detector))), np.nan)
    for curve, pixels in enumerate(groups(detector)):
        used = [p for p in pixels if dq[p] == 0 and rows[0] <= p[1] < rows[1]]
        sky = [
            (t, p) for t in range(n) for p in pixels if dq[p] == 0 and p[1] in sky_rows and np.isfinite(signal[t][p])
        ]
        if not used or not sky:
            continue
        for b in range(n):
            factor: dict[tuple[int, tuple[int, int]], float] = {(b, p): 1.0 for p in used}
            for one in sky:
                factor[one] = factor.get(one, 0.0) - len(used) / len(sky)
            flux[b, curve] = sum(k * signal[t][p] for (t, p), k in factor.items())
            error[b, curve] = np.sqrt(sum(k * k * variance[t][p] for (t, p), k in factor.items()))
    return flux, error


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("background", [BACKGROUND, ((0, 1),), ((2, 5),), ((3, 5),)])
@pytest.mark.parametrize("rows", [(0, 8), (1, 6), (3, 4)])
@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
def test_a_constant_background_is_the_definition(
    detector: Detector, rows: tuple[int, int], background: tuple[tuple[int, int], ...], n: int
) -> None:
    signal, variance, dq = draw(seed=3, n=n)
    before = signal.copy(), variance.copy(), dq.copy()
    aperture = Aperture(detector, "plain", rows, background, "constant")
    flux, error = light_curve_with_errors(signal, dq, aperture, variance)
    sky = {row for first, stop in background for row in range(first, stop)}
    expected = by_whole_loops(signal, variance, dq, detector, rows, sky)
    np.testing.assert_allclose(flux, expected[0], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(error, expected[1], rtol=1e-9)
    np.testing.assert_array_equal(light_curve(signal, dq, aperture, variance), flux)
    if n == 1:  # of one bin, the mean over all bins is its own
        own = light_curve_with_errors(signal, dq, replace(aperture, background="bin"), variance)
        np.testing.assert_allclose(flux, own.flux, rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(error, own.error, rtol=1e-9)
    for array, original in zip((signal, variance, dq), before, strict=True):
        np.testing.assert_array_equal(array, original)


@pytest.mark.parametrize("weights", ["plain", "variance"])
@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
def test_errors_with_a_constant_background_are_the_scatter(detector: Detector, weights: str) -> None:
    """Of 2,000 observations of 4 bins, with an interpolated pixel in the background and one beside it."""
    rng = np.random.default_rng(8)
    dq = np.zeros((6, 8), np.uint8)
    dq[2, 1] = dq[3, 4] = DQ.DEAD
    mends = find_mends(dq)
    flagged = np.where(dq, dq | np.uint8(DQ.INTERPOLATED), 0).astype(np.uint8)
    level = 50.0 + 1000.0 * np.exp(-0.5 * ((np.arange(8) - 3.2) / 1.1) ** 2)
    variance = np.broadcast_to(rng.uniform(20.0, 30.0, (6, 8)) + level, (4, 6, 8)).copy()
    carried = variance.copy()
    carry_variance(carried, mends)
    aperture = Aperture(detector, weights, (0, 8), ((0, 2),), "constant")
    curves = []
    for _ in range(2_000):
        signal = level + np.sqrt(variance) * rng.standard_normal(variance.shape)
        interpolate(signal, mends)
        curves.append(light_curve_with_errors(signal, flagged, aperture, carried))
    scatter = np.std([curve.flux for curve in curves], axis=0)
    np.testing.assert_allclose(scatter, np.mean([curve.error for curve in curves], axis=0), rtol=0.08)


def test_a_bin_that_is_not_finite_does_not_spoil_a_constant_background() -> None:
    signal, variance, dq = draw(seed=4)
    signal[2, 3, 0] = np.nan
    aperture = Aperture(AIRS, "plain", (2, 6), BACKGROUND, "constant")
    flux, error = light_curve_with_errors(signal, dq, aperture, variance)
    # The mean is over all background pixels of each bin: one with fewer bins weighs as much as the others.
    others = [np.delete(signal[:, 3, y], 2) if y == 0 else signal[:, 3, y] for y in (0, 1, 6, 7)]
    level = np.mean([one.mean() for one in others])
    np.testing.assert_allclose(flux[:, 3], signal[:, 3, 2:6].sum(axis=1) - 4 * level, rtol=1e-12)
    assert np.isfinite(error[:, 3]).all()


@pytest.mark.parametrize("how", ["bin", "constant"])
@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
@pytest.mark.parametrize(
    ("rows", "number", "chosen"),
    [((0, 8), 2, {5, 7}), ((0, 8), 3, {1, 5, 7}), ((4, 8), 2, {0, 1}), ((2, 7), 3, {0, 1, 7}), ((1, 7), 1, {7})],
)
def test_the_faintest_rows_are_those_of_the_smallest_mean(
    detector: Detector, rows: tuple[int, int], number: int, chosen: set[int], how: str
) -> None:
    level = np.array([30.0, 20.0, 200.0, 900.0, 500.0, -40.0, 60.0, 10.0])
    rng = np.random.default_rng(5)
    signal = level + rng.normal(0.0, 1.0, (6, 6, 8))
    signal[:, 1, 3] = -1e9  # of a bad pixel, which does not count
    variance = rng.uniform(20.0, 30.0, signal.shape)
    dq = np.zeros((6, 8), np.uint8)
    dq[1, 3] = DQ.HOT
    windows = tuple((row, row + 1) for row in sorted(chosen))
    curve, expected = (
        light_curve_with_errors(signal, dq, Aperture(detector, "plain", rows, sky, how), variance)
        for sky in (f"faintest:{number}", windows)
    )
    np.testing.assert_array_equal(curve.flux, expected.flux)
    np.testing.assert_array_equal(curve.error, expected.error)


def test_a_row_without_a_usable_pixel_is_not_the_faintest() -> None:
    signal, variance, _ = draw(seed=6)
    signal = np.nan_to_num(signal)
    signal[:, :, 7] = -1e6
    dq = np.zeros((6, 8), np.uint8)
    dq[:, 7] = DQ.DEAD
    for how in ("bin", "constant"):
        faintest = Aperture(AIRS, "plain", (2, 6), "faintest:2", how)
        assert np.isfinite(light_curve(signal, dq, faintest, variance)).all()
    some = light_curve(signal, dq, Aperture(AIRS, "plain", (2, 6), "faintest:3"), variance)
    all_of_them = light_curve(signal, dq, Aperture(AIRS, "plain", (2, 6), "faintest:4"), variance)
    np.testing.assert_array_equal(all_of_them, some)  # the fourth has no usable pixel, and none that is summed comes in
    dq[:, [0, 1, 6]] = DQ.DEAD
    assert np.isnan(light_curve(signal, dq, Aperture(AIRS, "plain", (2, 6), "faintest:2"), variance)).all()


@pytest.mark.parametrize("how", ["bin", "constant"])
@pytest.mark.parametrize("weights", ["plain", "variance"])
@pytest.mark.parametrize(
    ("rows", "columns", "crop"),
    [((2, 6), (1, 5), (0, 6)), ((3, 4), (3, 4), (0, 6)), ((0, 8), (0, 3), (0, 6)), ((2, 6), (3, 9), (2, 8))],
)
def test_a_square_of_the_photometer_is_the_definition(
    rows: tuple[int, int], columns: tuple[int, int], crop: tuple[int, int], weights: str, how: str
) -> None:
    """Pixels outside it have other light, which must not count; background rows keep all their columns."""
    detector = replace(FGS1, shape=(8, 9), crop=crop)
    signal, variance, dq = draw(seed=7)
    outside = [x for x in range(6) if not columns[0] <= x + crop[0] < columns[1]]
    dq[5, 3] = DQ.DEAD
    aperture = Aperture(detector, weights, rows, BACKGROUND, how, columns)
    curve = light_curve_with_errors(signal, dq, aperture, variance)
    good = dq == 0
    sky = [(x, y) for x in range(6) for y in (0, 1, 6, 7) if good[x, y]]
    used = [(x, y) for x in range(6) for y in range(*rows) if good[x, y] and x not in outside]
    level = np.mean([signal[:, x, y] for x, y in sky], axis=0)
    mean = {p: max(signal[:, p[0], p[1]].mean() - level.mean(), 0.0) for p in used}
    noise = {p: variance[:, p[0], p[1]].mean() for p in used}
    norm = sum(mean[p] ** 2 / noise[p] for p in used) / sum(mean.values())
    w = {p: mean[p] / noise[p] / norm if weights == "variance" else 1.0 for p in used}
    n = len(signal)
    for b in range(n):
        factor = {(b, p): one for p, one in w.items()}
        times = range(n) if how == "constant" else (b,)
        for one in ((t, p) for t in times for p in sky):
            factor[one] = factor.get(one, 0.0) - sum(w.values()) / (len(sky) * len(times))
        flux = sum(k * signal[t][p] for (t, p), k in factor.items())
        error = np.sqrt(sum(k * k * variance[t][p] for (t, p), k in factor.items()))
        np.testing.assert_allclose(curve.flux[b, 0], flux, rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(curve.error[b, 0], error, rtol=1e-9)


def test_all_columns_change_nothing() -> None:
    signal, variance, dq = draw()
    plain, whole = (Aperture(FGS1, "plain", (2, 6), BACKGROUND, columns=columns) for columns in (None, (0, 6)))
    for one, other in zip(*(light_curve_with_errors(signal, dq, a, variance) for a in (plain, whole)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_results_of_0_1_have_no_choice_of_background_or_columns() -> None:
    settings = Calibration().to_dict()
    for name in ("background", "drop_last_pairs", "columns"):
        settings.pop(name)
    assert Aperture.of(DETECTORS["FGS1"], settings) == Aperture(DETECTORS["FGS1"])


@pytest.mark.parametrize("weights", ["plain", "variance"])
def test_without_a_usable_background_pixel_there_is_no_light_curve(weights: str) -> None:
    """Without the subtraction, that wavelength, or that photometer, would not compare with the others."""
    signal, variance, _ = draw()
    signal = np.nan_to_num(signal)
    dq = np.zeros((6, 8), np.uint8)
    whole = light_curve_with_errors(signal, dq, Aperture(AIRS, weights, (2, 6), BACKGROUND), variance)
    dq[2, [0, 1, 6, 7]] = DQ.HOT
    some = light_curve_with_errors(signal, dq, Aperture(AIRS, weights, (2, 6), BACKGROUND), variance)
    for with_it, without in zip(whole, some, strict=True):
        assert np.isfinite(with_it).all()
        np.testing.assert_array_equal(np.isnan(without), np.tile(np.arange(6) == 2, (5, 1)))
        np.testing.assert_array_equal(np.delete(without, 2, 1), np.delete(with_it, 2, 1))
    mended = np.where(dq, dq | np.uint8(DQ.INTERPOLATED), 0).astype(np.uint8)
    one_side = dq.copy()
    one_side[2, :3] = 0
    for other in (mended, one_side):
        assert np.isfinite(light_curve(signal, other, Aperture(AIRS, weights, (2, 6), BACKGROUND), variance)).all()
    assert np.isfinite(light_curve(signal, dq, Aperture(AIRS, weights, (2, 6)), variance)).all()
    of_image = Aperture(FGS1, weights, (2, 6), BACKGROUND)
    assert np.isfinite(light_curve(signal, dq, of_image, variance)).all()
    dq[:, [0, 1, 6, 7]] = DQ.HOT
    assert np.isnan(light_curve(signal, dq, of_image, variance)).all()


@pytest.mark.parametrize("weights", ["plain", "variance"])
@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
def test_errors_are_the_scatter_also_with_interpolated_pixels(detector: Detector, weights: str) -> None:
    """20,000 bins of known noise, with a column that is wholly interpolated."""
    _, _, dq = draw()
    rng = np.random.default_rng(1)
    level = 50.0 + 1000.0 * np.exp(-0.5 * ((np.arange(8) - 3.2) / 1.1) ** 2)
    variance = np.broadcast_to(rng.uniform(20.0, 30.0, (6, 8)) + level, (20_000, 6, 8)).copy()
    signal = level + np.sqrt(variance) * rng.standard_normal(variance.shape)
    mends = find_mends(dq)
    interpolate(signal, mends)
    carry_variance(variance, mends)
    flux, error = light_curve_with_errors(
        signal, np.where(dq, dq | np.uint8(DQ.INTERPOLATED), 0).astype(np.uint8), Aperture(detector, weights), variance
    )
    assert np.isfinite(flux).all()
    np.testing.assert_allclose(flux.std(axis=0), error.mean(axis=0), rtol=0.03)  # 1 / sqrt(2 · 20,000) is 0.005
    expected = level.sum() * (6 if detector.photometer else 1)
    # A straight line over the peak, or a neighbour's value at an edge, is not what was there: columns 0 and 1.
    straight = flux.mean(axis=0) if detector.photometer else flux.mean(axis=0)[2:]
    np.testing.assert_allclose(straight, expected, rtol=0.05 if detector.photometer else 0.01)


def test_optimal_weights_lower_the_noise_and_keep_the_depth() -> None:
    rng = np.random.default_rng(2)
    profile = 1000.0 * np.exp(-0.5 * ((np.arange(8) - 3.2) / 1.1) ** 2)
    transit = np.where(np.arange(400) < 200, 1.0, 0.9)
    mean = transit[:, None, None] * profile * np.ones((6, 1))
    variance = mean + 400.0
    signal = mean + np.sqrt(variance) * rng.standard_normal(mean.shape)
    dq = np.zeros((6, 8), np.uint8)
    plain = light_curve_with_errors(signal, dq, Aperture(AIRS), variance)
    best = light_curve_with_errors(signal, dq, Aperture(AIRS, "variance"), variance)
    assert (best.error < 0.95 * plain.error).all()
    np.testing.assert_allclose(best.flux[:200].mean(), plain.flux[:200].mean(), rtol=2e-3)
    for curve in (plain, best):
        depth = 1.0 - curve.flux[200:].mean(axis=0) / curve.flux[:200].mean(axis=0)
        np.testing.assert_allclose(depth, 0.1, atol=5 * 0.03 / 200**0.5)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"weights": "best"}, "weights = 'best': must be one of plain, variance"),
        ({"rows": (4, 2)}, "rows = (4, 2): must be [first, stop] with 0 <= first < stop <= 32"),
        ({"rows": (0, 33)}, "rows = (0, 33)"),
        ({"background_rows": ((0, 40),)}, "background_rows = (0, 40)"),
        (
            {"background_rows": ((0, 20), (9, 32))},
            "background_rows = ((0, 20), (9, 32)): these are the rows that are summed",
        ),
        ({"rows": (3, 5), "background_rows": ((3, 5),)}, "so nothing would be left; choose others"),
        ({"columns": (10, 33)}, "columns = (10, 33): must be [first, stop] with 0 <= first < stop <= 32"),
        ({"background": "none"}, "background = 'none': must be one of bin, constant"),
        (
            {"rows": (8, 24), "background_rows": "faintest:17"},
            "background_rows = 'faintest:17': 16 rows are not summed",
        ),
        ({"detector": "FGS1"}, "unknown choice detector; there are weights, rows, background_rows"),
    ],
    ids=str,
)
def test_impossible_choices(choices: dict[str, object], words: str, old: Made) -> None:
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], "FGS1", Calibration(bins=BINS))
    with pytest.raises(ConfigError) as caught:
        cal.light_curve(**choices)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:overflow")
def test_settings_are_what_is_not_chosen(old: Made) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    chosen = {"rows": (8, 24), "background_rows": ((0, 4),), "columns": (9, 25)}
    by_name = {name: {"FGS1": value} for name, value in chosen.items()} | {"background": "constant"}
    chosen |= {"weights": "variance", "background": "constant"}
    cal = gpucal.calibrate(obs, "FGS1", Calibration(bins=BINS, weights="variance", **by_name))
    plain = gpucal.calibrate(obs, "FGS1", Calibration(bins=BINS))
    np.testing.assert_array_equal(cal.light_curve(), plain.light_curve(**chosen))
    none = {"weights": "plain", "rows": None, "columns": None, "background_rows": ()}
    np.testing.assert_array_equal(plain.light_curve(), cal.light_curve(**none))
    assert not np.array_equal(cal.light_curve(), plain.light_curve())


FLAGS = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]


def test_the_product_is_light_curves_and_nothing_else(old: Made, tmp_path: Path) -> None:
    out, cubes = tmp_path / "curves", tmp_path / "cubes"
    assert main(["calibrate", str(old[0]), str(out), "--product", "light-curves", "--dtype", "float64", *FLAGS]) == 0
    assert main(["calibrate", str(old[0]), str(cubes), "--variance", "--dtype", "float64", *FLAGS]) == 0
    expected = gpucal.open_results(cubes).light_curves_with_errors()
    results = gpucal.open_results(out)
    assert results.ids == [(17, 0), (23, 0)]
    for stored, computed in zip(results.light_curves_with_errors(), expected, strict=True):
        np.testing.assert_array_equal(stored, computed)
    np.testing.assert_array_equal(results.light_curves(), expected.flux)
    for form in ("npy", "parquet"):
        assert main(["export", str(out), str(tmp_path / "to"), "--product", "light-curves", "--format", form]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "to" / "light-curves.flux.npy"), expected.flux)
    np.testing.assert_array_equal(np.load(tmp_path / "to" / "light-curves.error.npy"), expected.error)
    assert expected.flux.shape == (2, 4, 283)
    table = pq.read_table(tmp_path / "to" / "light-curves.parquet")
    assert table.num_rows == 8
    np.testing.assert_array_equal(table["wl_1"].to_numpy(), expected.flux[:, :, 0].ravel())
    np.testing.assert_array_equal(table["wl_2"].to_numpy(), expected.flux[:, :, 1].ravel())
    np.testing.assert_array_equal(table["wl_283_error"].to_numpy(), expected.error[:, :, 282].ravel())
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert not any("signal" in name or "light-curves" in name for name in names)
    for name in DETECTORS:  # which pixels are in them
        np.testing.assert_array_equal(results.dq(name), gpucal.open_results(cubes).dq(name))
        curve, axes = results.light_curve_with_errors((23, 0), name), results.axes((23, 0), name)
        whole = gpucal.open_results(cubes).calibrated((23, 0), name)
        np.testing.assert_array_equal(curve, whole.light_curve_with_errors())
        np.testing.assert_array_equal(results.light_curve((23, 0), name), curve.flux)
        assert axes.keys() == whole.axes.keys()
        assert all(np.array_equal(axes[axis], whole.axes[axis]) for axis in axes)
    # Each stack is a 32nd of the signals; here, with 4 bins, flags, records and headers weigh more.
    sizes = [sum(path.stat().st_size for path in folder.rglob("*")) for folder in (out, cubes)]
    assert sizes[0] < 0.3 * sizes[1]
    for read in (lambda: results["FGS1"][0], lambda: results.calibrated((17, 0), "FGS1")):
        with pytest.raises(OutputError, match="holds no signal of planet 17 visit 0, but flux, error, dq, time"):
            read()
    with pytest.raises(OutputError, match="holds light curves as they were made; calibrate again to choose rows"):
        results.light_curves(rows=(8, 24))


def test_one_product_takes_the_place_of_the_other(old: Made, tmp_path: Path) -> None:
    arguments = ["calibrate", str(old[0]), str(tmp_path), "--planet", "17", *FLAGS]
    assert main(arguments) == 0
    assert main([*arguments, "--product", "light-curves", "--overwrite"]) == 0
    kept = {path.name for path in (tmp_path / "17" / "0").iterdir()}
    assert kept == {
        *("FGS1.json", "FGS1.flux.npy", "FGS1.error.npy", "FGS1.dq.npy", "FGS1.time.npy", "FGS1.bounds.npy"),
        *("AIRS-CH0.json", "AIRS-CH0.flux.npy", "AIRS-CH0.error.npy", "AIRS-CH0.dq.npy"),
        *("AIRS-CH0.time.npy", "AIRS-CH0.wavelength.npy", "AIRS-CH0.bounds.npy"),
    }
    summary = gpucal.run(
        gpucal.open_dataset(old[0]), tmp_path, Calibration(bins=BINS), planets=[17], product="light-curves"
    )
    assert (summary.done, summary.skipped) == (0, 2)


@pytest.mark.parametrize(
    "options",
    [[], ["--variance"], ["--weights=variance"], ["--weights=profile"], ["--bad-pixels=interpolate"]],
    ids=str,
)
def test_cubes_have_light_curves_with_errors(old: Made, tmp_path: Path, options: list[str]) -> None:
    """The same as those of the other product, whether their variance is stored or not."""
    arguments = ["calibrate", str(old[0]), "--planet", "17", *FLAGS, *options]
    cubes, curves = tmp_path / "cubes", tmp_path / "curves"
    assert main([*arguments[:2], str(cubes), *arguments[2:]]) == 0
    assert main([*arguments[:2], str(curves), *arguments[2:], "--product", "light-curves"]) == 0
    results, expected = gpucal.open_results(cubes), gpucal.open_results(curves).light_curves_with_errors()
    assert np.isfinite(expected.error).any()
    for stored, alone in zip(results.light_curves_with_errors(), expected, strict=True):
        np.testing.assert_array_equal(stored, alone)
    for name in DETECTORS:
        cal, curve = results.calibrated((17, 0), name), results.light_curve_with_errors((17, 0), name)
        for stored, read in zip(curve, cal.light_curve_with_errors(), strict=True):
            np.testing.assert_array_equal(stored, read)
        np.testing.assert_allclose(cal.light_curve(), curve.flux, rtol=1e-5, atol=1.0)
        excess = cal.noise_excess("wavelength")
        assert excess.shape == (curve.flux.shape[1],)
        size, cube = ((cubes / "17" / "0" / f"{name}.{kind}.npy").stat().st_size for kind in ("flux", "signal"))
        assert size - 128 == (cube - 128) // (32 if name == "AIRS-CH0" else 1024)


def test_other_choices_need_the_variance(old: Made, tmp_path: Path) -> None:
    assert main(["calibrate", str(old[0]), str(tmp_path), "--planet", "17", *FLAGS]) == 0
    results = gpucal.open_results(tmp_path)
    assert np.isfinite(results.light_curves()).any()
    same = results.light_curves_with_errors(weights="plain", rows=None)
    np.testing.assert_array_equal(same, results.light_curves_with_errors())
    rows = (8, 24)
    reads = (lambda: results.light_curves_with_errors(rows=rows), lambda: results.light_curves(weights="variance"))
    for read in reads:
        with pytest.raises(OutputError, match="planet 17 visit 0 FGS1: its folder holds no variance; calibrate with"):
            read()


def test_an_unknown_product(old: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="product = 'cube': must be one of cubes, light-curves"):
        gpucal.run(gpucal.open_dataset(old[0]), tmp_path, product="cube")
