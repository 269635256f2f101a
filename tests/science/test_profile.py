"""Bad pixels by the profile of neighbouring wavelengths: against the reference, on known truth, and hopeless cases."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import BINS, Made
from emulator import standin
from reference import mend_by_profile

import gpucal
from gpucal import DQ, Calibration
from gpucal.science.bad_pixels import (
    carry_variance,
    find_mends,
    gather,
    interpolate,
    mean_profile,
    mends_of,
    plan_repair,
    unusable,
)
from gpucal.science.light_curves import Aperture, light_curve_with_errors
from gpucal.settings.detectors import DETECTORS


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.8])
@pytest.mark.parametrize("shape", [(14, 9), (1, 6), (3, 2), (6, 1)])
def test_is_the_reference(shape: tuple[int, int], share: float) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cube = rng.normal(100.0, 80.0, (4, *shape))
        dq = np.where(rng.random(shape) < share, rng.choice([1, 2, 4, 16, 64 + 128], shape), 0).astype(np.uint8)
        dq[rng.random(shape) < 0.3] |= np.uint8(DQ.COSMIC)
        bad = unusable(dq)
        cube[:, bad] = rng.choice([np.nan, np.inf, 1e300, -5.0], bad.sum())
        before, flags = cube.copy(), dq.copy()
        after, change = plan_repair(dq, "profile")
        if change is not None:
            change(cube)
        np.testing.assert_array_equal(dq, flags)
        np.testing.assert_array_equal(cube[:, ~bad], before[:, ~bad])
        if bad.all():
            assert np.isnan(cube).all()
            continue
        np.testing.assert_array_equal(after & DQ.INTERPOLATED != 0, bad)
        assert not unusable(after).any()
        expected, straight = mend_by_profile(before, bad), before.copy()
        interpolate(straight, find_mends(dq))
        told = ~np.isnan(expected[0])
        np.testing.assert_allclose(cube[:, told], expected[:, told], rtol=1e-9, atol=1e-9)
        # What no other wavelength tells of is interpolated; whole wavelengths come from those beside them.
        alone = ~told & ~bad.all(axis=1, keepdims=True)
        np.testing.assert_array_equal(cube[:, alone], straight[:, alone])
        assert np.isfinite(cube).all()


@pytest.mark.parametrize("wild", [np.nan, np.inf, 1e300, 0.0])
def test_pixels_that_are_wild_without_a_flag_cost_their_own_wavelength(wild: float) -> None:
    """It makes no estimate. In the pixel's own wavelength they count, as in a straight line."""
    cube, dq = np.random.default_rng(0).normal(100.0, 5.0, (6, 9, 8)), np.zeros((9, 8), np.uint8)
    dq[4, 3] = DQ.HOT
    without = dq.copy()
    cube[:, 2], without[2] = wild, DQ.DEAD
    mended, expected = cube.copy(), cube.copy()
    for signal, flags in ((mended, dq), (expected, without)):
        interpolate(signal, find_mends(flags, mean_profile(signal)))
    np.testing.assert_allclose(mended[:, 4, 3], expected[:, 4, 3], rtol=1e-12)
    assert np.isfinite(mended[:, 4, 3]).all()


def test_a_bin_that_is_not_finite_spoils_no_other() -> None:
    """As cosmic rays may leave one: means over time go without it."""
    cube, dq = np.random.default_rng(0).normal(100.0, 5.0, (6, 9, 8)), np.zeros((9, 8), np.uint8)
    dq[4, 3] = DQ.HOT
    cube[2, 4, 5] = cube[1, 5, 6] = np.nan
    np.testing.assert_allclose(mean_profile(cube)[5, 6], np.delete(cube[:, 5, 6], 1).mean(), rtol=1e-12)
    interpolate(cube, find_mends(dq, mean_profile(cube)))
    np.testing.assert_array_equal(np.isnan(cube[:, 4, 3]), np.arange(6) == 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_interpolate_keeps_its_bits(dtype: type[np.floating]) -> None:
    cube, dq = np.random.default_rng(0).normal(0.0, 1.0, (3, 4, 6)).astype(dtype), np.zeros((4, 6), np.uint8)
    dq[1, 2:4] = dq[3, 0] = 1
    expected = cube.copy()
    first, second = cube[:, 1, 1].astype(float), cube[:, 1, 4].astype(float)
    for mend in find_mends(dq)[:2]:
        assert (mend.first, mend.second) == ((1, 1), (1, 4))
        expected[:, 1, mend.pixel[1]] = (1.0 - mend.weight) * first + mend.weight * second
    expected[:, 3, 0] = cube[:, 3, 1]
    interpolate(cube, mends_of(np.where(dq, dq | 32, 0).astype(np.uint8)))
    np.testing.assert_array_equal(cube, expected)


def test_a_profile_that_wavelengths_share_comes_back_at_any_brightness() -> None:
    """In a transit too, and with several pixels of a wavelength gone: the weights do not depend on time."""
    shape = np.exp(-0.5 * ((np.arange(12) - 5.3) / 1.1) ** 2) + 0.01
    light = np.linspace(500.0, 900.0, 9)[:, None] * shape
    truth = np.array([1.0, 1.0, 0.98, 0.5, 1.0])[:, None, None] * light
    dq = np.zeros((9, 12), np.uint8)
    dq[0, 5] = dq[4, 5] = dq[4, 6] = dq[8, 0] = dq[8, 11] = DQ.HOT
    cube = np.where(dq, 1e9, truth)
    mended, change = plan_repair(dq, "profile")
    assert change is not None
    change(cube)
    np.testing.assert_allclose(cube, truth, rtol=1e-12)
    c = np.random.default_rng(1).normal(1.0, 1.0, dq.shape)
    moved = c.copy()
    gather(moved, find_mends(mended, mean_profile(cube)))
    assert (moved[dq != 0] == 0.0).all()
    np.testing.assert_allclose((cube * c).sum(axis=(1, 2)), (cube * moved).sum(axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("name", list(DETECTORS))
def test_errors_are_the_scatter(name: str) -> None:
    """Of 10,000 bins of known noise: of mended pixels, and of light curves, which share noise with them."""
    rng = np.random.default_rng(2)
    shape = 50.0 + 3000.0 * np.exp(-0.5 * ((np.arange(8) - 3.2) / 1.1) ** 2)
    light = np.linspace(0.7, 1.3, 6)[:, None] * shape
    variance = np.broadcast_to(light + 300.0, (10_000, 6, 8)).copy()
    signal = light + np.sqrt(variance) * rng.standard_normal(variance.shape)
    dq = np.zeros((6, 8), np.uint8)
    dq[0, 3] = dq[2, 3] = dq[2, 4] = dq[4, 0] = DQ.HOT
    mended, change = plan_repair(dq, "profile")
    assert change is not None
    change(signal)
    mends = find_mends(mended, mean_profile(signal))
    carry_variance(variance, mends)
    np.testing.assert_allclose(signal.mean(axis=0), light, rtol=0.01)
    np.testing.assert_allclose(signal.var(axis=0), variance[0], rtol=0.08)
    detector = replace(DETECTORS[name], shape=(8, 6), crop=(0, 6))
    curve = light_curve_with_errors(signal, mended, Aperture(detector), variance, mends)
    np.testing.assert_allclose(curve.flux.std(axis=0), curve.error.mean(axis=0), rtol=0.04)


def test_synthetic_peaks_are_right_and_their_errors_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 3 % and 20 % off, where a straight line is a third too low."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    found = importlib.import_module("bad_pixels").figures(frames=600, pairs={"AIRS-CH0": 10, "FGS1": 120})
    for name, ways in found.items():
        assert abs(ways["profile"].off) < 0.03, name
        assert 0.8 < ways["profile"].honest < 1.2, name
        assert ways["interpolate"].off < -0.2, name


@pytest.mark.parametrize("name", BINS)
def test_from_files(name: str, old: Made, device: standin.Machine, tmp_path: Path) -> None:
    crop = {"AIRS-CH0": (100, 112), "FGS1": (10, 22)}
    config = Calibration(bins=BINS, crop=crop, bad_pixels="profile", integration="notebook")
    obs = gpucal.open_dataset(old[0])[17]
    plain = gpucal.calibrate(obs, name, config.replace(bad_pixels="keep"))
    here = gpucal.calibrate(obs, name, config, backend="numba")
    bad = plain.mask
    assert bad.any()
    np.testing.assert_array_equal(here.dq, np.where(bad, plain.dq | DQ.INTERPOLATED, plain.dq))
    np.testing.assert_array_equal(here.signal[:, ~bad], plain.signal[:, ~bad])
    assert here.provenance["steps"]["interpolate"] == "COMPLETE"
    with np.errstate(all="ignore"):
        usual = gpucal.calibrate(obs, name, config, backend="numpy")
        size = np.abs(plain.signal[:, ~bad]).max()
        np.testing.assert_allclose(usual.signal, here.signal, rtol=1e-9, atol=1e-9 * size)
        there = gpucal.calibrate(obs, name, config, backend="cupy", device=True)
        np.testing.assert_array_equal(there.signal.get(), here.signal)
        np.testing.assert_allclose(there.variance.get(), here.variance, rtol=1e-12)
        summed = light_curve_with_errors(here.signal, here.dq, Aperture(here.detector), here.variance, here._mends)
        for device_curve, curve, sums in zip(
            there.light_curve_with_errors(), here.light_curve_with_errors(), summed, strict=True
        ):
            np.testing.assert_allclose(device_curve.get(), curve, rtol=1e-9, atol=1e-9 * size)
            np.testing.assert_allclose(sums, curve, rtol=1e-9, atol=1e-9 * size)
        gpucal.run(old[0], tmp_path, config, planets=17, dtype="float64", variance=True)
        stored = gpucal.open_results(tmp_path).calibrated((17, 0), name)
        np.testing.assert_array_equal(stored.variance, here.variance)
        np.testing.assert_array_equal(stored.read_variance, here.read_variance)
        for kept, curve in zip(stored.light_curve_with_errors(), here.light_curve_with_errors(), strict=True):
            np.testing.assert_array_equal(kept, curve)
        choice = {"rows": (8, 24)}
        np.testing.assert_array_equal(stored.light_curve(**choice), here.light_curve(**choice))
