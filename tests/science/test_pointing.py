"""Pointing and the weights of a fit, against loops, on hostile frames and on stars whose motion is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from conftest import BINS, Made
from emulator import standin
from reference import errors, fitted, moves, smoothest

import gpucal
from gpucal import DQ, Calibration
from gpucal.errors import ConfigError, OutputError
from gpucal.science import steps
from gpucal.science.bad_pixels import find_mends, interpolate
from gpucal.science.light_curves import Aperture, light_curve, light_curve_with_errors
from gpucal.science.pointing import derivative, fill, pointing
from gpucal.settings.detectors import DETECTORS, Detector

SHAPE = (10, 12)
AIRS = replace(DETECTORS["AIRS-CH0"], shape=SHAPE[::-1], crop=(0, SHAPE[0]))
FGS1 = replace(DETECTORS["FGS1"], shape=SHAPE[::-1], crop=(0, SHAPE[0]))
BOTH = pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
READS = 400.0


def star(
    shape: tuple[int, int], x: np.ndarray | float, y: np.ndarray | float, photometer: bool, sigma: float = 1.14
) -> np.ndarray:
    """A spot, or a trace of even colour, that peaks at 1: (time, wavelength, spatial)."""
    across, along = (
        np.exp(-0.5 * ((np.arange(size) - np.atleast_1d(place)[:, None]) / sigma) ** 2)
        for size, place in zip(shape, (x, y), strict=True)
    )
    return (across if photometer else np.ones_like(across))[:, :, None] * along[:, None, :]


@dataclass
class Frames:
    signal: np.ndarray
    dq: np.ndarray
    noise: np.ndarray


def draw(photometer: bool, n: int = 4, y: float = 5.7) -> Frames:
    """A moving star with a transit, noise, a dead core pixel, and one that is NaN."""
    rng = np.random.default_rng(5)
    shifts = rng.normal(0.0, 0.05, (2, n))
    light = 1e5 * star(SHAPE, 4.8 + shifts[0], y + shifts[1], photometer)
    light *= np.linspace(1.0, 0.98, n)[:, None, None]
    light *= 1.0 if photometer else np.linspace(0.5, 1.0, SHAPE[0])[:, None]
    signal = 50.0 + light + np.sqrt(light + READS) * rng.standard_normal(light.shape)
    dq = np.zeros(SHAPE, np.uint8)
    dq[4, 6] = dq[5, 5] = DQ.DEAD
    dq[7, 6] = DQ.COSMIC
    dq[9] = DQ.BAD_FLAT
    signal[:, 4, 6] = np.nan
    return Frames(signal, dq, np.maximum(np.nanmean(light, axis=0), 0.0) + READS)


def spoil(change: Callable[[Frames], object], **how: float) -> Callable[[bool], Frames]:
    def make(photometer: bool) -> Frames:
        frames = draw(photometer, **how)
        change(frames)
        return frames

    return make


def put(name: str, where: object, value: float) -> Callable[[Frames], object]:
    return lambda frames: getattr(frames, name).__setitem__(where, value)


def in_single(frames: Frames) -> None:
    frames.signal = frames.signal.astype(np.float32)


def interpolated(frames: Frames) -> None:
    frames.signal = np.nan_to_num(frames.signal, nan=70.0)
    mends = find_mends(frames.dq)
    interpolate(frames.signal, mends)
    for mend in mends:
        frames.dq[mend.pixel] |= np.uint8(DQ.INTERPOLATED)


def without_star(frames: Frames) -> None:
    frames.signal = np.random.default_rng(8).normal(0.0, READS**0.5, frames.signal.shape)


HOSTILE: dict[str, Callable[[bool], Frames]] = {
    "sound": spoil(lambda frames: None),
    "single precision": spoil(in_single),
    "a star at the edge": spoil(lambda frames: None, y=0.3),
    "interpolated": spoil(interpolated),
    "a dead core": spoil(put("dq", (slice(3, 6), slice(4, 7)), DQ.DEAD)),
    "one row is left": spoil(put("dq", (slice(None), [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]), DQ.DEAD)),
    "a NaN in one bin": spoil(put("signal", (1, 3, 6), np.nan)),
    "an infinity in one bin": spoil(put("signal", (1, 3, 6), np.inf)),
    "no noise in a pixel": spoil(put("noise", (3, 6), 0.0)),
    "noise that is not known": spoil(put("noise", (3, 6), np.nan)),
    "one bin": spoil(lambda frames: None, n=1),
}
NOWHERE: dict[str, Callable[[bool], Frames]] = {
    "no star": spoil(without_star),
    "no light": spoil(put("signal", ..., 0.0)),
    "light all over": spoil(put("signal", ..., 1e5)),
    "all dead": spoil(put("dq", ..., DQ.DEAD)),
    "all interpolated": spoil(put("dq", ..., DQ.DEAD | DQ.INTERPOLATED)),
    "all NaN": spoil(put("signal", ..., np.nan)),
    "no noise is known": spoil(put("noise", ..., np.nan)),
    "no noise": spoil(put("noise", ..., 0.0)),
}


# Of an image of which one row is left, the rows beside it are guesses.
CURVES = [
    (case, detector)
    for case in HOSTILE
    for detector in (AIRS, FGS1)
    if "noise" not in case and (case, detector) != ("one row is left", FGS1)
]


def used(frames: Frames) -> np.ndarray:
    """Pixels that are fitted."""
    free = (frames.dq == 0) | (frames.dq == DQ.COSMIC)
    return free & np.isfinite(frames.signal).all(axis=0) & np.isfinite(frames.noise) & (frames.noise > 0)


def mean_of(frames: Frames) -> np.ndarray:
    return np.where(used(frames), np.nan_to_num(frames.signal).astype(float).mean(axis=0), 0.0)


@BOTH
@pytest.mark.parametrize("case", HOSTILE)
def test_pointing_is_its_definition(case: str, detector: Detector) -> None:
    frames = HOSTILE[case](detector.photometer)
    before = frames.signal.copy(), frames.dq.copy(), frames.noise.copy()
    found = pointing(frames.signal, frames.dq, frames.noise, photometer=detector.photometer)
    model = moves(mean_of(frames), used(frames), detector.photometer)
    noise = np.where(model.good, frames.noise, 1.0)
    seen = [np.where(model.good, frame, 0.0) for frame in frames.signal.astype(float)]
    shifts = np.array([fitted(frame, noise, model)[1] for frame in seen]).T
    sizes = errors(seen[-1], noise, model)[1]
    shifts -= np.median(shifts, axis=1, keepdims=True)
    if case == "one row is left":  # the rows beside it are guesses
        assert detector.photometer or np.isnan(np.array(found)).all()
        return
    if case == "one bin" and not detector.photometer:
        assert np.array(found)[1] in ([0.0], [np.nan])
    names = ("dx", "dy") if detector.photometer else ("dy",)
    for name, shift, size in zip(names, shifts, sizes, strict=True):
        np.testing.assert_allclose(getattr(found, name), shift, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(getattr(found, f"{name}_error")[-1], size, rtol=1e-4)
    if not detector.photometer:
        assert np.isnan(found.dx).all()
        assert np.isnan(found.dx_error).all()
    for kept, array in zip(before, (frames.signal, frames.dq, frames.noise), strict=True):
        np.testing.assert_array_equal(array, kept)


@BOTH
@pytest.mark.parametrize("case", NOWHERE)
def test_without_a_star_there_is_no_pointing(case: str, detector: Detector) -> None:
    frames = NOWHERE[case](detector.photometer)
    found = pointing(frames.signal, frames.dq, frames.noise, photometer=detector.photometer)
    assert [one.shape for one in found] == [(4,)] * 4
    assert np.isnan(np.array(found)).all()


@pytest.mark.parametrize("sigma", [1.1, 1.14])
@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5, -0.3])
def test_derivatives_are_good_to_a_hundredth(offset: float, sigma: float) -> None:
    """In a fit with weights of photon noise; central differences are not."""
    image = star((32, 32), 16.0, 16.0 + offset, True, sigma)[0]
    truth = -(np.arange(32) - 16.0 - offset) / sigma**2 * image
    for read in (3e-4, 2e-2):
        weight = 1.0 / (image + read)
        size = {}
        for name, slope in (("ours", image @ derivative(32).T), ("central", np.gradient(image, axis=1))):
            size[name] = (weight * slope * truth).sum() / (weight * slope**2).sum()
        assert abs(size["ours"] - 1.0) < 0.01
        assert abs(size["central"] - 1.0) > 0.01
    np.testing.assert_allclose(derivative(9) @ np.arange(9.0) ** 2, 2 * np.arange(9.0), atol=1e-12)
    assert not derivative(4).any()


def test_bad_pixels_are_filled_in_smoothly() -> None:
    rng = np.random.default_rng(3)
    image = star((16, 14), 7.3, 6.6, True)[0]
    for bad in ([(7, 6)], [(7, 7), (8, 7)], [(6, 6), (7, 7), (2, 2)], [(0, 0), (15, 13)]):
        good = np.ones(image.shape, bool)
        good[tuple(np.transpose(bad))] = False
        filled = fill(np.where(good, image, np.nan), good)
        np.testing.assert_array_equal(filled[good], image[good])
        np.testing.assert_allclose(filled, image, atol=0.012)
        np.testing.assert_allclose(filled, smoothest(np.where(good, image, 0.0), good), atol=1e-5)
    for share in (0.1, 0.5):
        good = rng.random(image.shape) > share
        np.testing.assert_allclose(fill(image, good), smoothest(image, good), atol=1e-2)
    assert not fill(image, np.zeros(image.shape, bool)).any()
    for small in ((1, 1), (1, 3), (2, 7)):
        good = np.ones(small, bool)
        good[0, 0] = small == (1, 1)
        assert np.isfinite(fill(np.full(small, 2.0), good)).all()


@BOTH
def test_a_moving_star_is_followed(detector: Detector) -> None:
    """Charge from start to end read under a flat, with photon and read noise, CDS pairs summed and flat-fielded."""
    rng = np.random.default_rng(11)
    n, pairs, full = 300, 4, 3e4
    width, height = (32, 32) if detector.photometer else (16, 32)
    walk = rng.normal(0.0, 0.03, (2, n, 1)) + rng.normal(0.0, 0.03, (2, n, 2 * pairs))
    flat = rng.uniform(0.97, 1.03, (height, width))
    dead = np.zeros((height, width), bool)
    dead[15, 14 if detector.photometer else 5] = dead[17, 9] = True
    known = flat * (1.0 + 0.002 * rng.standard_normal(flat.shape))
    reads = np.empty((2 * n * pairs, height, width))
    for k in range(n * pairs):
        places = walk[:, k // pairs, 2 * (k % pairs) : 2 * (k % pairs) + 2]
        light = star((width, height), 15.2 + places[0], 15.9 + places[1], detector.photometer).transpose(0, 2, 1)
        charge = np.cumsum(rng.poisson(light * (flat * ~dead) * np.array([0.1, 0.9])[:, None, None] * full), axis=0)
        reads[2 * k : 2 * k + 2] = charge + rng.normal(0.0, 13.0, charge.shape)
    signal = steps.flat(steps.bin(steps.cds(reads), pairs), known, dead).transpose(0, 2, 1)
    noise = (np.maximum(signal.mean(axis=0) * known.T, 0.0) + 2 * pairs * 13.0**2) / known.T**2
    found = pointing(signal, np.where(dead.T, DQ.DEAD, 0).astype(np.uint8), noise, photometer=detector.photometer)
    moved = walk[:, :, 1::2].mean(axis=2)  # between the two reads
    for k, name in enumerate(("dx", "dy")):
        if name == "dx" and not detector.photometer:
            continue
        shift, error = getattr(found, name), getattr(found, f"{name}_error")
        slope, offset = np.polyfit(moved[k], shift, 1)
        left = shift - slope * moved[k] - offset
        assert abs(slope - 1.0) < 0.01
        assert left.std() == pytest.approx(np.sqrt((error**2).mean()), rel=0.1)
        assert abs(np.median(shift)) < 1e-12


@pytest.mark.parametrize("background", [(), ((0, 2), (10, 12))], ids=["all rows", "background"])
@pytest.mark.parametrize(("case", "detector"), CURVES)
def test_a_fitted_light_curve_is_its_definition(case: str, detector: Detector, background: tuple) -> None:
    """Each bin is fitted anew by loops; the light curve is the brightness times the sum of the mean image."""
    frames = HOSTILE[case](detector.photometer)
    with np.errstate(invalid="ignore"):
        plain = light_curve(frames.signal, frames.dq, Aperture(detector, "plain", (2, 10), background))
    aperture = Aperture(detector, "profile", (2, 10), background)
    variance = np.broadcast_to(frames.noise, frames.signal.shape)
    flux, error = light_curve_with_errors(frames.signal, frames.dq, aperture, variance)
    np.testing.assert_array_equal(light_curve(frames.signal, frames.dq, aperture, variance), flux)
    counts = [dq for dq in range(256) if dq in (0, DQ.COSMIC) or dq & DQ.INTERPOLATED]
    good, groups = used(frames), [list(range(SHAPE[0]))] if detector.photometer else [[x] for x in range(10)]
    image, seen = mean_of(frames), np.where(good, frames.signal, 0.0).astype(float)
    sky = (np.arange(12) < 2) | (np.arange(12) >= 10)
    finite = np.isfinite(frames.signal).all(axis=0)
    levels = np.zeros(SHAPE[0])
    if background:
        there = [
            [p for p in np.ndindex(SHAPE) if p[0] in columns and sky[p[1]] and finite[p] and frames.dq[p] in counts]
            for columns in groups
        ]
        each = [np.mean([frames.signal[:, x, y].mean() for x, y in of]) if of else 0.0 for of in there]
        levels += each[0] if detector.photometer else each
    whole = moves(np.where(good, image - levels[:, None], 0.0), good, detector.photometer)
    if case == "interpolated" and not detector.photometer:  # a column of its own has its neighbour's curve
        np.testing.assert_array_equal(flux[:, 9], flux[:, 8])
        groups.pop()
    for curve, columns in enumerate(groups):
        here = np.zeros(SHAPE, bool)
        here[columns] = True
        usable = here & finite & np.isin(frames.dq, counts)
        beside = usable & sky
        if background and not beside.any():
            assert np.isnan(flux[:, curve]).all()
            continue
        level = frames.signal[:, beside].mean(axis=1).astype(float) if background else np.zeros(len(seen))
        inside = good & here & ~sky
        if not inside.any():
            assert np.isnan(flux[:, curve]).all()
            continue
        model = replace(whole, good=inside, groups=[[p for p in np.ndindex(SHAPE) if here[p]]])
        counted = usable & ~sky
        total = (np.nan_to_num(frames.signal.astype(float)).mean(axis=0) - level.mean())[counted].sum()
        noise = np.where(good, frames.noise, 1.0)
        expected = [fitted(seen[b] - level[b], noise, model)[0][0] * total for b in range(len(seen))]
        np.testing.assert_allclose(flux[:, curve], expected, rtol=1e-5)
        if not background:
            size = abs(total) * errors(seen[0], noise, model)[0][0]
            np.testing.assert_allclose(error[0, curve], size, rtol=1e-4)
        if np.isfinite(plain[:, curve]).all():
            np.testing.assert_allclose(flux[:, curve].mean(), plain[:, curve].mean(), rtol=1e-5)


@BOTH
def test_jitter_adds_nothing_and_the_depth_is_kept(detector: Detector) -> None:
    """Light lost in dead pixels of the core comes and goes with the pointing; a fit lets a tenth of it through."""
    rng = np.random.default_rng(2)
    n = 60
    shifts = rng.normal(0.0, 0.02, (2, n))
    shape = np.where(np.arange(n) < 30, 0.0, 1.0)
    for moved in (0.0, 1.0):
        places = np.array([[4.8], [5.7]]) + moved * shifts
        signal = 1e5 * star(SHAPE, *places, detector.photometer) * (1.0 - 0.01 * shape)[:, None, None]
        dq = np.zeros(SHAPE, np.uint8)
        dq[[4, 5, 7], [6, 5, 5]] = DQ.DEAD
        variance = np.broadcast_to(signal.mean(axis=0) + READS, signal.shape)
        left = {}
        for weights in ("plain", "profile"):
            flux = light_curve(signal, dq, Aperture(detector, weights), variance)
            left[weights] = flux / (1.0 - 0.01 * shape)[:, None] / flux[:30].mean(axis=0) - 1.0
        assert np.abs(left["profile"]).max() < (1e-3 if moved else 1e-12)
        if moved:
            touched = np.ptp(left["plain"], axis=0) > 1e-3
            assert touched.any()
            ratio = (left["profile"].std(axis=0) / left["plain"].std(axis=0))[touched]
            assert ratio.max() < 0.1


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_pointing_of_a_calibrated_item(old: Made) -> None:
    """Without read noise, or variances, one line says what to do."""
    config = Calibration(bins=BINS)
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], "FGS1", config)
    assert all(one.shape == (len(cal.time),) for one in cal.pointing())
    assert cal.plan is not None
    unknown = replace(cal, plan=replace(cal.plan, read_noise=np.full_like(cal.plan.read_noise, np.nan)))
    with pytest.raises(ConfigError, match=r"^planet 17 visit 0 FGS1: pointing needs read.parquet, which is missing"):
        unknown.pointing()
    with pytest.raises(ConfigError, match=r"weights = 'profile' need read.parquet, which is missing; use 'plain'"):
        unknown.light_curve(weights="profile")
    with pytest.raises(OutputError, match="its folder holds no variance; calibrate with --variance"):
        replace(cal, plan=None).pointing()
    stored = replace(cal, plan=None, stored_variance=lambda: cal.variance).pointing()
    for one, other in zip(stored, cal.pointing(), strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))


@BOTH
def test_on_a_device_it_is_the_same(detector: Detector, device: standin.Machine) -> None:
    """Also beside NaN, and in single precision."""
    import cupy

    for case in ("sound", "single precision", "a NaN in one bin", "no star"):
        frames = {**HOSTILE, **NOWHERE}[case](detector.photometer)
        there = cupy.asarray(frames.signal)
        ours, theirs = (
            pointing(signal, frames.dq, frames.noise, photometer=detector.photometer)
            for signal in (there, frames.signal)
        )
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
        aperture = Aperture(detector, "profile", (2, 10), ((0, 2), (10, 12)))
        variance = np.broadcast_to(frames.noise, frames.signal.shape).copy()
        on_device = light_curve_with_errors(there, frames.dq, aperture, cupy.asarray(variance))
        on_host = light_curve_with_errors(frames.signal, frames.dq, aperture, variance)
        for one, other in zip(on_device, on_host, strict=True):
            np.testing.assert_allclose(one.get(), other, rtol=1e-9)
