"""The folded formula against the reference's loops: every switch, hostile data, any cut into blocks."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from formulas import available, run
from hostile import ADCS, AIRS, BINS, FGS1, SMALL, every_config, observe
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_close

from gpucal.backends import load, numpy_
from gpucal.errors import InputError
from gpucal.science.plan import DQ
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, Detector


def in_words(config: Calibration) -> str:
    """A test's name: what is on, and how bins and times are made."""
    on = [name for name, value in config.to_dict().items() if value is True]
    return "-".join([*on, config.reduce, config.integration])


@pytest.mark.parametrize("config", list(every_config()), ids=in_words)
@pytest.mark.parametrize("adc", ADCS)
@pytest.mark.parametrize("detector", SMALL)
def test_every_switch(detector: str, adc: str, config: Calibration) -> None:
    obs = observe(SMALL[detector], 2 * (3 * BINS[detector] + 2), ADCS[adc], seed=1)
    for backend in available():
        assert_close(run(obs, config, backend), obs.reference(config))


@pytest.mark.parametrize("backend", available())
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_shape(backend: str, data: st.DataObject) -> None:
    rows, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    first = data.draw(st.integers(0, width - 1))
    crop = (first, data.draw(st.integers(first + 1, width)))
    detector = replace(data.draw(st.sampled_from(list(DETECTORS.values()))), shape=(rows, width), crop=crop)
    pairs = data.draw(st.integers(1, 40))
    bins = {detector.name: data.draw(st.integers(1, pairs))}
    obs = observe(detector, 2 * pairs, ADCS["2025"], seed=data.draw(st.integers(0, 2**32)))
    config = Calibration(
        bins=bins, binning=data.draw(st.booleans()), reduce=data.draw(st.sampled_from(["sum", "mean"]))
    )
    assert_close(run(obs, config, backend, data.draw(st.integers(1, rows * width))), obs.reference(config))


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("tile", [1, 14, 100, 16_384])
def test_blocks_and_tiles_do_not_change_a_bit(backend: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    obs = observe(SMALL["AIRS-CH0"], 300, ADCS["2024"])
    config = Calibration(bins=BINS)
    whole = run(obs, config, backend)
    monkeypatch.setattr(numpy_, "_TILE", tile)
    for block in (1, 3, 19, 20, 1000):
        np.testing.assert_array_equal(run(obs, config, backend, block), whole)


@pytest.mark.parametrize("backend", available())
def test_saturation_looks_at_used_frames_only(backend: str) -> None:
    obs = observe(SMALL["AIRS-CH0"], 2 * (2 * 7 + 3), ADCS["2024"])
    counts = np.full((20, 34), 1000, np.uint16)
    counts[0, 0] = counts[1, 27] = 40_000
    counts[2, 28] = 65_535
    for threshold, expected in ((40_000, [0, 1]), (40_001, []), (1000, list(range(20))), (65_536, [])):
        plan = obs.plan(Calibration(bins=BINS, saturation=threshold))
        saturated = load(backend).bin_counts(plan, slice(0, 20), counts, np.empty((20, 2)))
        assert np.flatnonzero(saturated).tolist() == expected


@pytest.mark.parametrize("backend", available())
def test_inputs_are_left_alone(backend: str) -> None:
    obs = observe(SMALL["FGS1"], 100, ADCS["2024"])
    plan, counts = obs.plan(Calibration(bins=BINS)), obs.counts()
    arrays = [counts, plan.coefficients, plan.dark, plan.tau_s, plan.divisor, plan.dq]
    for array in arrays:
        array.flags.writeable = False
    out = np.full((15, plan.n_bins), np.nan)
    load(backend).bin_counts(plan, slice(0, 15), counts, out)
    np.testing.assert_array_equal(counts, obs.counts())
    assert np.isfinite(out).any()


@pytest.mark.parametrize(
    ("detector", "sigma", "iterations"),
    [(SMALL["AIRS-CH0"], 2.0, 1), (SMALL["FGS1"], 2.0, 10), (AIRS, 5.0, 5), (AIRS, 5.0, 1), (FGS1, 5.0, 5)],
    ids=lambda value: getattr(value, "name", value),
)
def test_dead_and_hot_maps_are_the_reference_s(detector: Detector, sigma: float, iterations: int) -> None:
    obs = observe(detector, 2, ADCS["2024"], seed=4)
    config = Calibration(binning=False, hot_sigma=sigma, hot_iterations=iterations)
    expected = obs.reference(config)
    dq = obs.plan(config).dq.reshape(expected.dead.shape)
    np.testing.assert_array_equal(dq & DQ.DEAD != 0, expected.dead)
    np.testing.assert_array_equal(dq & DQ.HOT != 0, expected.hot)
    assert expected.dead.any()
    assert expected.hot.any()


def test_switches_say_what_is_flagged() -> None:
    obs = observe(SMALL["AIRS-CH0"], 100, ADCS["2024"])
    bits = {
        "mask": DQ.DEAD | DQ.HOT,
        "flat": DQ.BAD_FLAT,
        "linearity": DQ.BAD_LINEARITY,
    }
    everything = obs.plan(Calibration(bins=BINS)).dq
    for switch, bit in bits.items():
        assert (everything & bit).any()
        np.testing.assert_array_equal(
            obs.plan(Calibration(bins=BINS, **{switch: False})).dq, everything & ~np.uint8(bit)
        )


def test_bad_flat_and_linearity_bits() -> None:
    detector = replace(DETECTORS["FGS1"], shape=(1, 12), crop=(0, 12))
    obs = observe(detector, 20, ADCS["2024"])
    flat = np.array([[1.0, 0.0, -0.0, -1e-9, np.nan, np.inf, 1e-9, 1, 1, 1, 1, 1]])
    linear = np.zeros((6, 1, 12))
    linear[1] = 1.0
    linear[0, 0, :3] = 9.99, 10.01, -10.01
    linear[1, 0, 3:5] = 1.0999, 0.8999
    linear[2, 0, 5:7] = 0.0999 / 30_000, 0.1001 / 30_000
    linear[5, 0, 7:9] = np.nan, np.inf
    linear[2:4, 0, 9] = 4 * 0.11 / 30_000, -4 * 0.11 / 30_000**2  # 11 % half way up, the identity at both ends
    linear[0, 0, 10] = -np.inf
    linear[2:4, 0, 11] = 0.2 / 30_000, -0.2 / 30_000**2  # 5 % half way up, made of terms that are larger
    dq = (
        replace(obs, flat=flat, linear_corr=linear, dead=np.zeros((1, 12), bool)).plan(Calibration(bins={"FGS1": 5})).dq
    )
    assert np.flatnonzero(dq & DQ.BAD_FLAT).tolist() == [1, 2, 3, 4, 5]
    assert np.flatnonzero(dq & DQ.BAD_LINEARITY).tolist() == [1, 2, 4, 6, 7, 8, 9, 10]


def test_an_odd_frame_is_an_error_or_dropped() -> None:
    odd = observe(SMALL["AIRS-CH0"], 45, ADCS["2024"])
    even = replace(odd, raw=odd.raw[:-1])
    with pytest.raises(InputError, match=r'frames, an odd number; set odd_frames = "drop" \(--odd-frames drop\)$'):
        odd.plan(Calibration(bins=BINS))
    config = Calibration(bins=BINS, odd_frames="drop")
    assert_close(run(odd, config), even.reference(config))


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("detector", SMALL)
def test_without_the_last_pairs_other_bins_keep_their_bits(detector: str, backend: str) -> None:
    bins = BINS[detector]
    obs = observe(SMALL[detector], 2 * (3 * bins + 2), ADCS["2024"], seed=6)
    whole = run(obs, Calibration(bins=BINS), backend)
    for dropped, left in ((1, 3), (2, 3), (3, 2), (bins + 2, 2), (bins + 3, 1), (2 * bins + 2, 1)):
        fewer = run(obs, Calibration(bins=BINS, drop_last_pairs=dropped), backend)
        np.testing.assert_array_equal(fewer, whole[:left])
    plan = obs.plan(Calibration(bins=BINS, drop_last_pairs=3))
    assert (plan.n_bins, plan.time_h.size, plan.tau_s.size, plan.used_frames) == (2, 2, 2, 4 * bins)


@pytest.mark.parametrize(
    ("dropped", "n_frames", "says"),
    [
        (17, 34, "has 34 frames; without the last 17 pairs, fewer than the 14 of one bin; drop at most 10, as --drop-"),
        (11, 34, "has 34 frames; without the last 11 pairs, fewer than the 14 of one bin; drop at most 10, as --drop-"),
        (10**9, 35, "drop at most 10, as --drop-last-pairs sets"),
        (2, 12, "without the last 2 pairs, fewer than the 14 of one bin; use smaller bins, as in --bin AIRS-CH0=4"),
        (6, 12, "without the last 6 pairs, fewer than the 14 of one bin; drop fewer pairs"),
        (1, 0, "has 0 frames, fewer than the 14 of one bin; copy it again"),
    ],
)
def test_nothing_left_of_the_pairs_is_an_error(dropped: int, n_frames: int, says: str) -> None:
    obs = observe(SMALL["AIRS-CH0"], 40, ADCS["2024"])
    cut = replace(obs, raw=obs.raw[:n_frames])
    with pytest.raises(InputError, match=re.escape(says)):
        cut.plan(Calibration(bins=BINS, odd_frames="drop", drop_last_pairs=dropped))


def test_times_are_means_over_used_frames() -> None:
    obs = observe(SMALL["AIRS-CH0"], 2 * 17, ADCS["2024"])
    plan = obs.plan(Calibration(bins={"AIRS-CH0": 5}))
    assert plan.used_frames == 30
    np.testing.assert_allclose(plan.time_h, [0.0045, 0.0145, 0.0245])
    np.testing.assert_allclose(plan.tau_s, 5 * 4.4)
