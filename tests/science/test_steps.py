"""The seven steps, on strict array-API arrays living on a device that NumPy cannot reach, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict as strict
import numpy as np
import pytest
from hostile import ADCS, BINS, SMALL, Observation, every_config, observe
from reference import assert_close

from gpucal.science import bad_pixels, light_curves, noise, steps
from gpucal.settings.calibration import Calibration

DEVICE = strict.Device("device1")


def to_device(array: np.ndarray) -> Any:
    return strict.asarray(array.copy(), device=DEVICE)


def to_host(array: Any) -> np.ndarray:
    assert array.device == DEVICE
    return np.asarray(strict.asarray(array, device=strict.Device("CPU_DEVICE"))._array)


def chain(obs: Observation, config: Calibration, put: Callable[[np.ndarray], Any]) -> Any:
    """The seven steps as a notebook user calls them, without `mask`, which marks samples by losing them."""
    cut = (..., slice(*obs.detector.crop))
    dead = put(obs.dead[cut])
    values = steps.adc(put(obs.raw[cut]), obs.adc.gain, obs.adc.offset, clip_negatives=config.clip_negatives)
    if config.linearity:
        values = steps.linearity(values, put(obs.linear_corr[cut]))
    if config.dark:
        values = steps.dark(values, put(obs.dark[cut]), put(obs.integration_s(config)), dead)
    values = steps.cds(values)
    values = steps.bin(values, config.bins[obs.detector.name] if config.binning else 1, reduce=config.reduce)
    return steps.flat(values, put(obs.flat[cut]), dead) if config.flat else values


@pytest.mark.parametrize("put", [np.asarray, to_device], ids=["numpy", "strict"])
@pytest.mark.parametrize("adc", ADCS)
@pytest.mark.parametrize("detector", SMALL)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_every_switch(detector: str, adc: str, put: Callable[[np.ndarray], Any]) -> None:
    obs = observe(SMALL[detector], 2 * (2 * BINS[detector] + 3), ADCS[adc], seed=2)
    for config in every_config(mask=True):
        result = chain(obs, config, put)
        values = result if put is np.asarray else to_host(result)
        assert_close(values.transpose(0, 2, 1), obs.reference(config))


def test_mask_sets_bad_pixels_to_nan_and_later_steps_keep_them() -> None:
    electrons = to_device(np.arange(24.0).reshape(4, 2, 3))
    bad = np.array([[True, False, False], [False, False, True]])
    masked = steps.mask(electrons, to_device(bad))
    host = to_host(masked)
    np.testing.assert_array_equal(np.isnan(host), np.broadcast_to(bad, (4, 2, 3)))
    np.testing.assert_array_equal(host[:, ~bad], np.arange(24.0).reshape(4, 2, 3)[:, ~bad])
    binned = to_host(steps.bin(steps.cds(masked), 2))
    np.testing.assert_array_equal(np.isnan(binned[0]), bad)


def test_each_step_by_hand() -> None:
    raw = np.array([[[0]], [[100]], [[50]], [[65_535]]], np.uint16)
    electrons = steps.adc(raw, 2.0, -10.0)
    assert electrons.dtype == np.float64
    np.testing.assert_array_equal(electrons.ravel(), [-10.0, 40.0, 15.0, 32_757.5])
    np.testing.assert_array_equal(steps.adc(raw, 2.0, -10.0, clip_negatives=True).ravel(), [0.0, 40.0, 15.0, 32_757.5])
    np.testing.assert_array_equal(
        steps.linearity(np.full((1, 1, 1), 3.0), np.arange(1.0, 7.0).reshape(6, 1, 1)), [[[2005.0]]]
    )  # 1 + 2·3 + 3·9 + 4·27 + 5·81 + 6·243
    alive, dead = np.array([[False]]), np.array([[True]])
    seconds = np.array([0.1, 4.5, 0.1, 4.5])
    np.testing.assert_allclose(
        steps.dark(electrons, np.array([[2.0]]), seconds, alive).ravel(), [-10.2, 31.0, 14.8, 32_748.5]
    )
    np.testing.assert_array_equal(steps.dark(electrons, np.array([[2.0]]), seconds, dead), electrons)
    pairs = steps.cds(electrons)
    np.testing.assert_array_equal(pairs.ravel(), [50.0, 32_742.5])
    np.testing.assert_array_equal(steps.bin(pairs, 2).ravel(), [32_792.5])
    np.testing.assert_array_equal(steps.bin(pairs, 2, reduce="mean").ravel(), [16_396.25])
    np.testing.assert_array_equal(steps.flat(pairs, np.array([[0.5]]), alive).ravel(), [100.0, 65_485.0])
    np.testing.assert_array_equal(steps.flat(pairs, np.array([[0.5]]), dead), pairs)
    np.testing.assert_array_equal(steps.flat(pairs, np.array([[0.0]]), alive).ravel(), [np.inf, np.inf])


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_other_numbers_become_float64(kind: type) -> None:
    """Differences of whole numbers without a sign would wrap, and sums of float32 lose electrons."""
    counts = np.array([1000, 900, 1000, 1500]).reshape(4, 1, 1).astype(kind)
    assert steps.cds(counts).ravel().tolist() == [-100.0, 500.0]
    assert np.isnan(steps.mask(counts, np.array([[True]]))).all()
    one, none = np.ones((1, 1), np.float32), np.zeros((1, 1), bool)
    for made in (
        steps.adc(counts, 2.0, 0.0),
        steps.linearity(counts, np.ones((2, 1, 1), np.float32)),
        steps.dark(counts, one, np.ones(4, np.float32), none),
        steps.flat(counts, one, none),
    ):
        assert made.dtype == np.float64
    large = np.full((3, 1, 1), 2**15 + 1).astype(kind)
    for _ in range(9):
        large = np.concatenate([large, large])
    total = steps.bin(large, len(large))
    assert total.dtype == np.float64
    assert total.item() == len(large) * (2**15 + 1)


def test_inputs_are_left_alone() -> None:
    obs = observe(SMALL["AIRS-CH0"], 40, ADCS["2024"])

    def read_only(array: np.ndarray) -> np.ndarray:
        copy = array.copy()
        copy.flags.writeable = False
        return copy

    with np.errstate(all="ignore"):
        result = chain(obs, Calibration(bins=BINS), read_only)
    assert result.shape == (2, 4, 5)


def test_odd_frames_have_no_pairs() -> None:
    with pytest.raises(ValueError, match="even number of frames, got 3"):
        steps.cds(np.zeros((3, 1, 1)))


@pytest.mark.parametrize("detector", SMALL)
def test_variance_and_light_curve_stay_where_the_signal_is(detector: str) -> None:
    obs = observe(SMALL[detector], 2 * 3 * BINS[detector], ADCS["2024"])
    plan = obs.plan(Calibration(bins=BINS))
    shape = (plan.n_bins, plan.detector.width, plan.detector.shape[0])
    signal = np.random.default_rng(0).normal(0.0, 100.0, shape)
    dq = np.where(np.random.default_rng(1).random(shape[1:]) < 0.5, 1, 0).astype(np.uint8)
    dq[0] = 1
    maps = [values.reshape(shape[:0:-1]).T for values in (plan.divisor, plan.dark, plan.read_noise)]
    with np.errstate(all="ignore"):
        on_device = noise.on_arrays(*map(to_device, (signal, *maps, plan.tau_s)), plan.pairs_per_bin, plan.electron)
        expected = noise.variance(signal, plan, dq)
        np.testing.assert_array_equal(to_host(on_device), expected)
    excess = noise.noise_excess(to_device(signal), to_device(expected))
    np.testing.assert_array_equal(to_host(excess), noise.noise_excess(signal, expected))
    photometer, height = plan.detector.photometer, plan.detector.shape[0]
    rows = np.arange(height) < height - 1, np.arange(height) == height - 1
    means = (signal.mean(axis=0), np.full(shape[1:], 2.0))
    for extra in ((), means):
        c = light_curves.coefficients(*map(to_device, (dq == 0, *rows)), [], photometer, *map(to_device, extra))
        expected_c = light_curves.coefficients(dq == 0, *rows, [], photometer, *extra)
        np.testing.assert_array_equal(to_host(c), expected_c)
        curve = to_host(light_curves.weighted_sum(to_device(signal), c, photometer))
        np.testing.assert_array_equal(curve, light_curves.weighted_sum(signal, expected_c, photometer))
        assert np.isnan(curve).any() != photometer


def test_interpolation_happens_where_the_signal_is() -> None:
    rng = np.random.default_rng(0)
    signal, dq = rng.normal(100.0, 10.0, (4, 7, 5)), np.zeros((7, 5), np.uint8)
    dq[2, 1:3] = dq[5] = 4
    mends = bad_pixels.find_mends(dq)
    c = np.ones((7, 5))
    for change, array in (
        (bad_pixels.interpolate, signal),
        (bad_pixels.carry_variance, signal),
        (bad_pixels.gather, c),
    ):
        there, here = to_device(array), array.copy()
        change(there, mends)
        change(here, mends)
        np.testing.assert_array_equal(to_host(there), here)
        assert not np.array_equal(here, array)


def test_what_else_happens_on_a_device() -> None:
    """A block's way into a result (time, wavelength, spatial), as in `backends.cupy_`, and the masking of one."""
    rng = np.random.default_rng(0)
    binned, dq = rng.normal(size=(5, 4)), rng.integers(0, 2, (7, 3), np.uint8)
    expected = np.zeros((4, 7, 3))
    expected[:, 1:6, 2] = binned.T
    signal = to_device(np.zeros((4, 7, 3)))
    signal[:, 1:6, 2] = to_device(binned).T
    np.testing.assert_array_equal(to_host(signal), expected)
    _, change = bad_pixels.plan_repair(dq, "nan")
    assert change is not None
    change(signal)
    np.testing.assert_array_equal(to_host(signal), np.where(dq, np.nan, expected))
