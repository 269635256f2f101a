"""Every setting people use, from files to result, against the reference's loops on hostile full-width frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from conftest import BINS, Made
from formulas import available, run
from hostile import ADCS, SMALL, linearity_limits, observe
from reference import Reference, assert_close, is_bad_linearity
from reference import hot_pixels as hot_by_astropy

import gpucal
from gpucal import DQ, Calibration
from gpucal.pipeline.provenance import steps_done
from gpucal.science.plan import hot_pixels
from gpucal.settings.detectors import DETECTORS


@dataclass(frozen=True)
class Variant:
    """Settings, the pairs in a bin they come to, and what differs from the result of others: numbers, or flags."""

    settings: Mapping[str, Any]
    pairs: Mapping[str, int] = field(default_factory=lambda: BINS)
    changes: bool = True
    flags: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = {
    "integration": Variant({"integration": "updated"}),
    "gain": Variant({"gain": "multiply"}),
    "gain and clip": Variant({"gain": "multiply", "clip_negatives": True}),
    "clip": Variant({"clip_negatives": True}),
    "mean": Variant({"reduce": "mean"}),
    "one pair": Variant({"bins": {"AIRS-CH0": 1, "FGS1": 1}}, {"AIRS-CH0": 1, "FGS1": 1}),
    "no bins": Variant({"binning": False}, {"AIRS-CH0": 1, "FGS1": 1}),
    "one bin": Variant({"bins": {"AIRS-CH0": 30, "FGS1": 70}}, {"AIRS-CH0": 30, "FGS1": 70}),
    "seconds": Variant({"bins": {"AIRS-CH0": "40 s", "FGS1": "2.1 s"}}, {"AIRS-CH0": 8, "FGS1": 5}),
    "crop": Variant({"crop": {"AIRS-CH0": (100, 103), "FGS1": (31, 32)}}),
    "no crop": Variant({"crop": {"AIRS-CH0": (0, 356)}}),
    "benign": Variant({"bad_coefficients": "benign"}),
    "benign within less": Variant(
        {"bad_coefficients": "benign", "linearity_tolerance": 0.01}, others={"bad_coefficients": "benign"}
    ),
    "flat minimum": Variant({"flat_minimum": 0.99}, changes=False, flags=True),
    "benign above a flat": Variant(
        {"bad_coefficients": "benign", "flat_minimum": 0.99}, others={"bad_coefficients": "benign"}
    ),
    "tolerance": Variant({"linearity_tolerance": 0.01}, changes=False, flags=True),
    "range": Variant({"linearity_range": 3e5}, changes=False, flags=True),
    "constant": Variant({"linearity_max_offset": 0.1}, changes=False, flags=True),
    "flat first": Variant({"flat_order": "before-cds"}, changes=False),
    "hot off": Variant({"hot_clip": "off"}, changes=False, flags=True),
    # at 5 σ the two darks have the same hot pixels here
    "hot full-frame": Variant(
        {"hot_clip": "full-frame", "hot_sigma": 2.0}, changes=False, flags=True, others={"hot_sigma": 2.0}
    ),
    "hot sigma": Variant({"hot_sigma": 2.5}, changes=False, flags=True),
    "hot iterations": Variant(
        {"hot_sigma": 2.5, "hot_iterations": 2}, changes=False, flags=True, others={"hot_sigma": 2.5}
    ),
    "no mask": Variant({"mask": False}, changes=False, flags=True),
    "last pairs": Variant({"drop_last_pairs": 7}),
    "cosmic rays": Variant(
        {"cosmic_rays": 1.8, "crop": {"AIRS-CH0": (100, 102), "FGS1": (10, 12)}},
        others={"crop": {"AIRS-CH0": (100, 102), "FGS1": (10, 12)}},
    ),
    "no pair but those left over": Variant({"drop_last_pairs": 2}, changes=False),
}


def assert_same_order_or_not(signal: np.ndarray, expected: Reference, flat_order: str) -> None:
    """Compare with the reference, where a flat of 0 before CDS gives inf - inf, here an infinity: neither finite."""
    if flat_order == "before-cds":
        wild = ~np.isfinite(expected.signal)
        assert not np.isfinite(signal[wild]).any()
        expected.signal[wild] = signal[wild]
    assert_close(signal, expected)


@pytest.mark.parametrize("detector", [pytest.param("AIRS-CH0", marks=pytest.mark.slow), "FGS1"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_the_reference_s(name: str, detector: str, old: Made) -> None:
    folder, made = old
    variant, observed = VARIANTS[name], made[17, 0][detector]
    config = Calibration(**{"bins": BINS, "integration": "notebook"} | dict(variant.settings))
    cal = gpucal.calibrate(gpucal.open_dataset(folder)[17], detector, config)
    detector_used = config.cropped(observed.detector)
    expected = replace(observed, detector=detector_used).reference(config, variant.pairs[detector])
    assert_same_order_or_not(cal.signal, expected, config.flat_order)
    np.testing.assert_array_equal(cal.dq & DQ.DEAD != 0, expected.dead.T & config.mask)
    np.testing.assert_array_equal(cal.dq & DQ.HOT != 0, expected.hot.T & config.mask)
    columns = slice(*detector_used.crop)
    bad = is_bad_linearity(observed.linear_corr[..., columns], *linearity_limits(config))
    np.testing.assert_array_equal(cal.dq & DQ.BAD_LINEARITY != 0, bad.T)
    flat = observed.flat[:, columns]
    dim = [[not np.isfinite(one) or one <= config.flat_minimum for one in row] for row in flat]
    np.testing.assert_array_equal(cal.dq & DQ.BAD_FLAT != 0, np.transpose(dim))
    assert cal.provenance["settings"] == config.to_dict()
    if cal.wavelength is not None:
        np.testing.assert_array_equal(cal.wavelength, np.linspace(4.08, 1.63, 356)[columns])
    others = Calibration(**{"bins": BINS} | dict(variant.others))
    plain = gpucal.calibrate(gpucal.open_dataset(folder)[17], detector, others)
    # All columns of FGS1 are calibrated in any case.
    whole = detector == "FGS1" and name in ("no crop", "hot full-frame")
    assert np.array_equal(plain.signal, cal.signal, equal_nan=True) != (variant.changes and not whole)
    if not variant.changes:
        assert np.array_equal(plain.dq, cal.dq) != (variant.flags and not whole)


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize("detector", SMALL)
@pytest.mark.parametrize(
    "change",
    [
        {"gain": "multiply"},
        {"gain": "multiply", "clip_negatives": True, "linearity": False},
        {"bad_coefficients": "benign", "reduce": "mean"},
        {"flat_order": "before-cds", "clip_negatives": True},
        {"odd_frames": "drop", "gain": "multiply"},
        {"drop_last_pairs": 3, "reduce": "mean"},
        {"drop_last_pairs": 1, "odd_frames": "drop"},
    ],
    ids=str,
)
def test_variants_on_every_backend(detector: str, backend: str, change: dict[str, Any]) -> None:
    for adc in ADCS.values():
        obs = observe(SMALL[detector], 2 * (3 * BINS[detector] + 2) + ("odd_frames" in change), adc, seed=6)
        config = Calibration(bins=BINS, **change)
        assert_same_order_or_not(run(obs, config, backend), obs.reference(config), config.flat_order)


@pytest.mark.parametrize("wrong", [(), (np.nan,), (np.nan, np.inf, -np.inf)], ids=str)
def test_the_whole_dark_has_more_to_clip(wrong: tuple[float, ...]) -> None:
    """Pixels outside the crop move the median and the spread; those that are not finite count as little as inside."""
    obs = observe(DETECTORS["AIRS-CH0"], 2, ADCS["2024"])
    dark = obs.dark.copy()
    rng = np.random.default_rng(0)
    dark[:, :39] = rng.normal(0.0, 0.05, dark[:, :39].shape)
    dark[3, 50] = 0.04
    dark[0, : len(wrong)] = wrong
    obs = replace(obs, dark=dark)
    hot = {}
    for clip in ("cropped", "full-frame", "off"):
        config = Calibration(binning=False, hot_clip=clip)
        hot[clip] = obs.plan(config).dq & DQ.HOT != 0
        np.testing.assert_array_equal(hot[clip], obs.reference(config).hot.ravel())
    assert hot["cropped"].sum() > hot["full-frame"].sum() > hot["off"].sum() == 0
    assert hot["cropped"].reshape(32, -1)[3, 50 - 39] > hot["full-frame"].reshape(32, -1)[3, 50 - 39]


@pytest.mark.parametrize("sigma", [5.0, 3.0, 1.0, 0.3, 1e-9])
@pytest.mark.parametrize("wrong", ["nothing", "some", "most", "all"])
def test_the_clip_is_astropy_s(wrong: str, sigma: float) -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 500):
        dark = rng.normal(0.007, 0.0014, (1, size))
        dark[0, rng.integers(size)] = 3.0
        share = {"nothing": 0.0, "some": 0.1, "most": 0.9, "all": 1.0}[wrong]
        bad = rng.random(size) < share
        dark[0, bad] = rng.choice([np.nan, np.inf, -np.inf], bad.sum())
        with np.errstate(all="ignore"):  # astropy's own, where nothing is left
            expected = hot_by_astropy(dark, sigma)
        np.testing.assert_array_equal(hot_pixels(dark, sigma, 5), expected)


@pytest.mark.parametrize(
    ("change", "skipped", "order"),
    [
        ({}, {"interpolate"}, "flat"),
        ({"linearity": False, "binning": False}, {"linearity", "bin", "interpolate"}, "flat"),
        ({"bins": {"AIRS-CH0": 1}}, {"bin", "interpolate"}, "flat"),
        ({"bins": {"AIRS-CH0": "4.8 s"}}, {"bin", "interpolate"}, "flat"),
        ({"bins": {"FGS1": 1}}, {"interpolate"}, "flat"),
        ({"mask": False, "dark": False, "flat": False}, {"mask", "dark", "flat", "interpolate"}, "flat"),
        ({"bad_pixels": "interpolate"}, set(), "flat"),
        ({"flat_order": "before-cds"}, {"interpolate"}, "cds"),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # the same in every process
)
def test_provenance_says_what_was_done(change: dict[str, Any], skipped: set[str], order: str, old: Made) -> None:
    config = Calibration(**{"bins": BINS, "integration": "notebook"} | change)
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], "AIRS-CH0", config)
    steps = cal.provenance["steps"]
    assert cal.plan is not None
    assert steps == steps_done(config, cal.plan, cal.dq)
    assert {name for name, done in steps.items() if done == "SKIPPED"} == skipped
    assert {*steps.values()} <= {"COMPLETE", "SKIPPED"}
    names = ["adc", "mask", "linearity", "dark", "cds", "bin", "flat", "interpolate"]
    if order == "cds":
        names = ["adc", "mask", "linearity", "dark", "flat", "cds", "bin", "interpolate"]
    assert list(steps) == names


def test_every_setting_reaches_the_files(old: Made, tmp_path: Any) -> None:
    """Through the command line's flags, to config.toml and to each record's settings."""
    from gpucal.cli.main import main

    flags = [
        *("--bin=AIRS-CH0=33.6s", "--bin=FGS1=none", "--crop=AIRS-CH0=100:110", "--gain=multiply", "--reduce=mean"),
        *("--integration=updated", "--flat-order=before-cds", "--bad-pixels=interpolate", "--bad-coefficients=benign"),
        *("--odd-frames=drop", "--clip-negatives", "--hot-clip=full-frame", "--hot-sigma=4", "--hot-iterations=3"),
        *("--saturation=60000", "--linearity-tolerance=0.2", "--linearity-range=1e4", "--linearity-max-offset=20"),
        "--flat-minimum=0.5",
        *("--weights=variance", "--rows=FGS1=8:24", "--background-rows=AIRS-CH0=0:8,24:32", "--no-mask"),
        *("--no-linearity", "--no-dark", "--no-flat", "--drop-last-pairs=2"),
        *("--background=constant", "--background-rows=FGS1=faintest:6", "--columns=FGS1=10:22"),
        "--cosmic-rays=20",
    ]
    assert main(["calibrate", str(old[0]), str(tmp_path), "--planet", "17", *flags]) == 0
    expected = Calibration(
        mask=False,
        linearity=False,
        dark=False,
        flat=False,
        bins={"AIRS-CH0": "33.6 s", "FGS1": 1},
        crop={"AIRS-CH0": (100, 110)},
        gain="multiply",
        reduce="mean",
        integration="updated",
        flat_order="before-cds",
        bad_pixels="interpolate",
        bad_coefficients="benign",
        odd_frames="drop",
        clip_negatives=True,
        hot_clip="full-frame",
        hot_sigma=4.0,
        hot_iterations=3,
        saturation=60_000,
        linearity_tolerance=0.2,
        linearity_range=1e4,
        linearity_max_offset=20.0,
        flat_minimum=0.5,
        weights="variance",
        rows={"FGS1": (8, 24)},
        background_rows={"AIRS-CH0": ((0, 8), (24, 32)), "FGS1": "faintest:6"},
        drop_last_pairs=2,
        background="constant",
        columns={"FGS1": (10, 22)},
        cosmic_rays=20.0,
    )
    default = Calibration().to_dict()
    untouched = [name for name, value in expected.to_dict().items() if value == default[name]]
    assert untouched == ["binning"]
    assert Calibration.from_toml(tmp_path / "config.toml") == expected
    results = gpucal.open_results(tmp_path)
    for name, shape in (("AIRS-CH0", (4, 10, 32)), ("FGS1", (68, 32, 32))):
        cal = results.calibrated((17, 0), name)
        assert cal.signal.shape == shape
        assert Calibration.from_dict(cal.provenance["settings"]) == expected
        assert cal.provenance["settings_hash"] == expected.content_hash


def test_saturation_linearity_thresholds_move_flags(old: Made) -> None:
    obs = gpucal.open_dataset(old[0])[17]

    def flagged(bit: DQ, **change: Any) -> int:
        return int((gpucal.calibrate(obs, "AIRS-CH0", Calibration(bins=BINS, **change)).dq & bit != 0).sum())

    assert flagged(DQ.SATURATED, saturation=65_536) == 0
    assert flagged(DQ.SATURATED, saturation=20_000) > flagged(DQ.SATURATED)
    for name, values in (
        ("linearity_tolerance", (1e3, 0.1, 1e-3)),
        ("linearity_range", (1e3, 3e4, 3e5)),
        ("linearity_max_offset", (2e3, 10.0, 0.1)),
    ):
        counts = [flagged(DQ.BAD_LINEARITY, **{name: value}) for value in values]
        assert counts == sorted(counts)
        assert counts[0] < counts[2]
