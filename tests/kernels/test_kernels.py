"""The shipped CUDA sources, built by g++ over the emulator's shim and run on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulator.cpp import Kernel, KernelError, Sanitized
from hostile import ADCS, SMALL, Observation, observe
from launch import calibrate, cases, constants, padded, require_compiler
from reference import assert_close

from gpucal import kernels
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS

CASES = cases()
SOURCE = kernels.source("calibrate")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    require_compiler()
    return Kernel(SOURCE, "calibrate", tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    require_compiler()
    return Kernel(SOURCE, "calibrate", tmp_path_factory.mktemp("counting"), count=True)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(built: Kernel, case: str) -> None:
    obs, config = CASES[case]
    plan = obs.plan(config)
    out, saturated = calibrate(built, plan, obs.counts())
    even = replace(obs, raw=obs.raw[: len(obs.raw) // 2 * 2])
    assert_close(obs.cube(out), even.reference(config), rtol=1e-12)
    used = obs.counts()[:, : plan.used_frames]
    np.testing.assert_array_equal(saturated, (used >= plan.saturation).any(axis=1))


@pytest.mark.parametrize("pairs", [1, 7, 30, 600])
def test_neither_grid_nor_padding_changes_a_bit(built: Kernel, pairs: int) -> None:
    obs = observe(SMALL["AIRS-CH0"], 2 * pairs * 40 + 2, ADCS["2024"])
    plan = obs.plan(Calibration(bins={"AIRS-CH0": pairs}))
    first = calibrate(built, plan, obs.counts(), (1, 1))[0]
    for grid, poison in (((1, 20), 0), ((7, 2), 12_345), ((100, 100), 65_535)):
        again = calibrate(built, plan, obs.counts(), grid, poison)[0]
        np.testing.assert_array_equal(again.view(np.uint64), first.view(np.uint64))


@pytest.mark.parametrize("threshold", [1000, 40_000, 40_001, 65_535, 65_536])
def test_saturation_looks_at_used_frames_only(built: Kernel, threshold: int) -> None:
    obs = observe(SMALL["AIRS-CH0"], 2 * (2 * 7 + 3), ADCS["2024"])
    counts = np.full((20, 34), 999, np.uint16)
    counts[0, 0] = counts[1, 27] = 40_000
    counts[2, 28] = 65_535
    plan = obs.plan(Calibration(bins={"AIRS-CH0": 7}, saturation=threshold))
    saturated = calibrate(built, plan, counts)[1]
    assert np.flatnonzero(saturated).tolist() == ([0, 1] if threshold <= 40_000 else [])


def test_rows_beyond_32_bits(built: Kernel) -> None:
    pitch = 2**31  # counts: the second row starts 4 GiB on; pages nobody touches take no memory
    counts = np.zeros((2, pitch), np.uint16)
    obs = observe(replace(DETECTORS["FGS1"], shape=(1, 2), crop=(0, 2)), 720, ADCS["2024"])
    counts[:, :720] = obs.counts()
    plan = obs.plan(Calibration())
    out, saturated = np.empty((2, 1)), np.zeros(2, np.uint32)
    sizes = np.int64(pitch), np.int32(2), np.int32(1), np.int32(360)
    rest = constants(plan), plan.tau_s, np.uint32(65_535), out, saturated
    built((1, 1), (128,), counts, *sizes, *rest)
    np.testing.assert_array_equal(out, calibrate(built, plan, obs.counts())[0])


@pytest.mark.slow
def test_a_large_grid_ends(built: Kernel) -> None:
    """Its warps' bins, 480 each, are more than 31 bits count; blocks are of one warp, as every one takes time."""
    obs = observe(replace(SMALL["AIRS-CH0"], shape=(1, 3), crop=(0, 3)), 40, ADCS["2024"])
    plan = obs.plan(Calibration(binning=False))
    few = calibrate(built, plan, obs.counts(), (1, 1))[0]
    many = calibrate(built, plan, obs.counts(), (2**31 // (4 * 480) + 1, 1), threads=32)[0]
    assert np.isfinite(few).any()
    np.testing.assert_array_equal(many, few)


def test_equal_reads_differ_by_nothing(built: Kernel) -> None:
    obs = observe(SMALL["FGS1"], 720, ADCS["2025"])
    plan = obs.plan(Calibration(bins={"FGS1": 360}, dark=False))
    counts = np.repeat(obs.counts()[:, :1], 720, axis=1)
    finite = np.isfinite(plan.coefficients[1:]).all(axis=0) & (plan.divisor != 0) & ~np.isnan(plan.divisor)
    out = calibrate(built, plan, counts)[0]
    assert finite.sum() > 5
    assert not out[finite].any()


# ------------------------------------------------------------------------------------------------------- sanitizers


def sane() -> list[tuple[Observation, Calibration]]:
    """Runs with a remainder, a bin longer than a stage, several pixels for one block."""
    small = SMALL["AIRS-CH0"]
    shapes = ((1003, 29), (2100, 513), (600, 30), (70, 1))
    return [
        (observe(small, frames, ADCS["2024"]), Calibration(bins={small.name: pairs}, odd_frames="drop"))
        for frames, pairs in shapes
    ]


SANITIZERS = ["address", *(pytest.param(name, marks=pytest.mark.slow) for name in ("undefined", "thread"))]
"""The first with every run of the tests: each is a build of its own, and a thread for each of CUDA's."""


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizers_are_silent(sanitizer: str, built: Kernel, tmp_path: Path) -> None:
    program = Sanitized(SOURCE, "calibrate", tmp_path, sanitizer)
    for obs, config in sane():
        plan, counts = obs.plan(config), obs.counts()
        out, saturated = calibrate(program, plan, counts, (1, 2))
        expected = calibrate(built, plan, counts)
        np.testing.assert_array_equal(out, expected[0])
        np.testing.assert_array_equal(saturated, expected[1])


# What is planted, where, which sanitizer sees it, and what it says.
BUGS = {
    "a load beyond the row": (
        "row + begin / 4 + 32 * k + lane)",
        "row + begin / 4 + 32 * k + lane + 8)",
        "address",
        "heap-buffer-overflow",
    ),
    "a bin too many": ("if (member == 0 && bin < bins)", "if (member == 0)", "address", "heap-buffer-overflow"),
    "shared memory too short": ("stages[WARPS][LOADS * 32]", "stages[WARPS][100]", "undefined", "out of bounds"),
    "a row off its alignment": ("counts + pixel * pitch)", "counts + pixel * pitch + 2)", "undefined", "misaligned"),
    "no barrier before constants change": (
        "__syncwarp(); // all lanes have used the last pixel's constants",
        "",
        "thread",
        "data race",
    ),
    "no barrier after constants": (
        "        __syncwarp();\n        const double floor",
        "const double floor",
        "thread",
        "data race",
    ),
    "no barrier before a stage": ("__syncwarp(); // all lanes have used the last stage", "", "thread", "data race"),
    "no barrier after a stage": ("__syncwarp();\n\n", "\n\n", "thread", "data race"),
}


ALWAYS = "a bin too many"
"""The bug that is planted with every run of the tests."""


@pytest.mark.parametrize("bug", [pytest.param(bug, marks=() if bug == ALWAYS else pytest.mark.slow) for bug in BUGS])
def test_sanitizers_catch_planted_bugs(bug: str, tmp_path: Path) -> None:
    require_compiler()
    right, wrong, sanitizer, message = BUGS[bug]
    assert SOURCE.count(right) == 1
    program = Sanitized(SOURCE.replace(right, wrong), "calibrate", tmp_path, sanitizer)

    def every_run() -> None:
        for obs, config in sane():
            calibrate(program, obs.plan(config), obs.counts(), (1, 2))

    with pytest.raises(KernelError, match=message):
        every_run()


# ---------------------------------------------------------------------------------------------------------- sectors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "pairs"),
    [
        ("AIRS-CH0", 30),
        *(
            pytest.param(detector, pairs, marks=pytest.mark.slow)
            for detector, pairs in (("FGS1", 360), *((name, few) for name in DETECTORS for few in (1, 4, 5, 12)))
        ),
    ],
)
def test_fetched_bytes_are_used(counting: Kernel, detector: str, pairs: int) -> None:
    small = replace(DETECTORS[detector], shape=(1, 2), crop=(0, 2))
    obs = observe(small, small.frames, ADCS["2024"])
    plan = obs.plan(Calibration(bins={detector: pairs}))
    calibrate(counting, plan, obs.counts(), (1, 2))
    loads, _ = counting.traffic()
    assert min(loads.efficiency) >= (0.98 if pairs == small.bin_pairs else 0.9)
    counts, constants_and_tau = 2 * 2 * plan.used_frames, 2 * (64 + 8 * plan.n_bins)
    # Each count is fetched once, and with the last ones of a row what else lies in their 16 bytes.
    assert 0 <= loads.used_by_block - counts - constants_and_tau < 2 * 16
    assert loads.fetched_by_load <= 1.03 * (counts + constants_and_tau + 2 * 3 * 64)  # each warp loads the constants


def test_a_strided_load_is_seen_to_waste(tmp_path: Path) -> None:
    require_compiler()
    right = "const unsigned reads = staged[skip + pair]"
    wrong = "const unsigned reads = pair < 0 ? staged[0] : __ldg((const unsigned *)row + begin + pair)"
    assert SOURCE.count(right) == 1
    kernel = Kernel(SOURCE.replace(right, wrong), "calibrate", tmp_path, count=True)
    obs = observe(SMALL["AIRS-CH0"], 1200, ADCS["2024"])
    calibrate(kernel, obs.plan(Calibration(bins={"AIRS-CH0": 30})), obs.counts(), (1, 2))
    by_load, by_block = kernel.traffic()[0].efficiency
    assert by_load < 0.5 < 0.9 < by_block


# -------------------------------------------------------------------------------------------------------- full size


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_full_size_cube(built: Kernel, name: str) -> None:
    detector = DETECTORS[name]
    obs = observe(detector, 2, ADCS["2024"], seed=3)
    rng = np.random.default_rng(5)
    counts = rng.integers(300, 60_000, (detector.n_pixels, detector.frames), np.uint16)
    counts[::97] = 65_535
    long = replace(obs, raw=np.broadcast_to(np.uint16(0), (detector.frames, *detector.shape)))
    plan = long.plan(Calibration())
    out, saturated = calibrate(built, plan, counts, (1, 4096))
    np.testing.assert_array_equal(saturated, (counts[:, : plan.used_frames] >= plan.saturation).any(axis=1))
    # The reference's loops, over some columns of the detector at a time: their float64 cubes are large.
    rows, width = detector.shape[0], detector.width
    cube, by_row = long.cube(out), counts.reshape(rows, width, -1)
    columns = 8 * 11_250 * 16 // detector.frames
    for first in range(0, width, columns):
        cut = slice(first, min(first + columns, width))
        maps = {key: np.ascontiguousarray(m[..., slice(*detector.crop)][..., cut]) for key, m in obs.maps.items()}
        part = replace(detector, shape=(rows, cut.stop - cut.start), crop=(0, cut.stop - cut.start))
        piece = replace(obs, detector=part, raw=np.moveaxis(by_row[:, cut], 2, 0), **maps)
        assert_close(cube[:, cut], piece.reference(Calibration()), rtol=1e-12)


def test_constants_and_padding_by_hand() -> None:
    obs = observe(SMALL["FGS1"], 100, ADCS["2024"])
    plan = obs.plan(Calibration(bins={"FGS1": 5}, linearity=False, clip_negatives=True))
    table = constants(plan)
    np.testing.assert_array_equal(table[:, 1:5], 0.0)
    np.testing.assert_allclose(table[:, 0], 1 / obs.adc.gain)
    np.testing.assert_allclose(table[:, 7], -obs.adc.offset * obs.adc.gain)
    wide = padded(obs.counts())
    assert wide.shape == (15, 128)
    np.testing.assert_array_equal(wide[:, :100], obs.counts())
    assert wide.flags.c_contiguous
