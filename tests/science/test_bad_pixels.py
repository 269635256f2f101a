"""Interpolation over bad pixels: against pandas' and astropy's routines, its variance, and hopeless cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from astropy.convolution import Box1DKernel, interpolate_replace_nans
from conftest import BINS, Made
from emulator import standin
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gpucal
from gpucal import DQ, Calibration
from gpucal.science.bad_pixels import carry_variance, find_mends, gather, interpolate, plan_repair, unusable

flags = st.tuples(st.integers(1, 8), st.integers(1, 8)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 2, 16, 31, 32]))
)


def by_pandas(cube: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Interpolate along the slit, then the columns that remain along wavelength."""
    result = np.where(bad, np.nan, cube)
    for frame in result:
        table = pd.DataFrame(frame).interpolate(axis="columns", limit_direction="both")
        frame[:] = table.interpolate(axis="index", limit_direction="both").to_numpy()
    return result


@given(flags, st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_is_what_pandas_gives(dq: np.ndarray, seed: int) -> None:
    bad = (dq & 31) != 0
    cube = np.random.default_rng(seed).normal(1000.0, 300.0, (3, *dq.shape))
    before = cube.copy()
    after, change = plan_repair(dq.copy(), "interpolate")
    if change is not None:
        change(cube)
    if bad.all():
        assert np.isnan(cube).all()
        np.testing.assert_array_equal(after, dq)
        return
    np.testing.assert_allclose(cube, by_pandas(before, bad), rtol=1e-12)
    np.testing.assert_array_equal(cube[:, ~bad], before[:, ~bad])
    np.testing.assert_array_equal(after & DQ.INTERPOLATED != 0, bad | (dq & 32 != 0))
    np.testing.assert_array_equal(after & 31, dq & 31)
    assert not unusable(after).any()
    assert find_mends(after) == find_mends(dq)  # so that a variance can be carried later


def test_at_either_end_nothing_but_the_neighbour_counts() -> None:
    cube, dq = np.array([[[0.0, 3.0, np.inf, np.nan, 7.0, 0.0]]]), np.array([[1, 0, 0, 0, 0, 1]], np.uint8)
    interpolate(cube, find_mends(dq))
    np.testing.assert_array_equal(cube, [[[3.0, 3.0, np.inf, np.nan, 7.0, 7.0]]])


def test_is_what_astropy_gives_where_both_neighbours_are_good() -> None:
    rng = np.random.default_rng(1)
    cube, dq = rng.normal(1000.0, 300.0, (2, 6, 9)), np.zeros((6, 9), np.uint8)
    dq[0, 1] = dq[2, 4] = dq[2, 7] = dq[5, 3] = DQ.HOT
    holes = np.where(dq, np.nan, cube)
    expected = [[interpolate_replace_nans(row, Box1DKernel(3)) for row in frame] for frame in holes]
    interpolate(cube, find_mends(dq))
    np.testing.assert_allclose(cube, expected, rtol=1e-12)


@given(flags)
@settings(max_examples=100, deadline=None)
def test_the_coefficients_of_a_sum_move_to_measured_pixels(dq: np.ndarray) -> None:
    bad = (dq & 31) != 0
    cube, c = np.random.default_rng(2).normal(1.0, 1.0, (2, 3, *dq.shape))
    c = c[0]
    mends = find_mends(dq)
    measured = cube.copy()
    interpolate(cube, mends)
    moved = c.copy()
    gather(moved, mends)
    if mends:
        assert (moved[bad] == 0.0).all()
        np.testing.assert_allclose((cube * c).sum(axis=(1, 2)), (measured * moved).sum(axis=(1, 2)), atol=1e-12)


def test_variance_is_that_of_the_mean() -> None:
    """Many draws of pure noise give the scatter of an interpolated pixel, in a column and across columns."""
    rng = np.random.default_rng(3)
    dq = np.zeros((4, 6), np.uint8)
    dq[0, 2:4] = dq[2] = DQ.DEAD
    dq[3, 0] = DQ.DEAD  # an edge: its neighbour's value
    sigma = rng.uniform(1.0, 3.0, dq.shape)
    cube = sigma * rng.standard_normal((40_000, *dq.shape))
    variance = np.broadcast_to(sigma**2, (1, *dq.shape)).copy()
    mends = find_mends(dq)
    interpolate(cube, mends)
    carry_variance(variance, mends)
    np.testing.assert_allclose(cube.var(axis=0), variance[0], rtol=0.04)
    assert variance[0, 0, 2] == pytest.approx((2 / 3) ** 2 * sigma[0, 1] ** 2 + (1 / 3) ** 2 * sigma[0, 4] ** 2)
    assert variance[0, 3, 0] == sigma[3, 1] ** 2


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", BINS)
def test_from_files(name: str, dtype: str, old: Made) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    plain = gpucal.calibrate(obs, name, Calibration(bins=BINS))
    mended = gpucal.calibrate(obs, name, Calibration(bins=BINS, bad_pixels="interpolate"), dtype=dtype)
    bad = plain.dq != 0
    assert bad.any()
    assert mended.signal.dtype == dtype
    np.testing.assert_array_equal(mended.dq, np.where(bad, plain.dq | DQ.INTERPOLATED, 0))
    assert not mended.mask.any()
    with np.errstate(all="ignore"):
        expected = by_pandas(plain.signal, bad)
        wild = np.abs(expected) > 1e30  # a flat of 1e-300 has no flag
        np.testing.assert_allclose(mended.signal[~wild], expected[~wild], rtol=1e-6, atol=1e-2)
        np.testing.assert_allclose(mended.variance[:, ~bad], plain.variance[:, ~bad], rtol=1e-5, atol=1.0)
        flux, error = mended.light_curve_with_errors()
        axes = (1, 2) if name == "FGS1" else 2
        sums = mended.signal.sum(axis=axes, dtype=float).reshape(flux.shape)
        variances = mended.variance.sum(axis=axes).reshape(flux.shape)
    tame = (np.abs(sums) < 1e30) & (bad.any() if name == "FGS1" else bad.any(axis=1))
    np.testing.assert_allclose(flux[tame], sums[tame], rtol=1e-6, atol=1.0)
    # what was interpolated shares noise with its neighbours: the sum of variances is less than the variance of the sum
    assert (error**2 > variances)[tame].all()
    assert mended.provenance["steps"]["interpolate"] == "COMPLETE"


@pytest.mark.parametrize("how", ["nan", "interpolate"])
def test_on_a_device(how: str, old: Made, device: standin.Machine) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    config = Calibration(bins=BINS, bad_pixels=how)
    for name in BINS:
        there = gpucal.calibrate(obs, name, config, backend="cupy", device=True)
        here = gpucal.calibrate(obs, name, config, backend="cupy")
        np.testing.assert_array_equal(there.signal.get(), here.signal)
        np.testing.assert_array_equal(there.variance.get(), here.variance)
        np.testing.assert_array_equal(there.to_host().signal, here.signal)
        for choices in ({}, *({"weights": one, "background_rows": ((0, 3),)} for one in ("variance", "profile"))):
            curves = there.light_curve_with_errors(**choices), here.light_curve_with_errors(**choices)
            for given_there, given_here in zip(*curves, strict=True):
                np.testing.assert_allclose(given_there.get(), given_here, rtol=1e-12)


def test_nothing_good_is_nothing_to_interpolate_from(old: Made) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    cal = gpucal.calibrate(obs, "FGS1", Calibration(bins=BINS, bad_pixels="interpolate", linearity_max_offset=1e-300))
    assert np.isnan(cal.signal).all()
    assert not (cal.dq & DQ.INTERPOLATED).any()
    assert cal.mask.all()
    assert np.isnan(cal.light_curve()).all()
    assert cal.provenance["steps"]["interpolate"] == "SKIPPED"
