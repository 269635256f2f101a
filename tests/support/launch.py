"""The shipped kernels as the emulator runs them, and their arguments as a backend would make them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from emulator import cpp, nvrtc
from hostile import ADCS, SMALL, Observation, observe

from gpucal import kernels
from gpucal.science.plan import Plan
from gpucal.settings.calibration import Calibration

Launch = Callable[..., None]


def require(there: bool, what: str) -> None:
    """Skip a test without one of its tools, with the reason; fail it where GPUCAL_REQUIRE_EMULATOR is set, as in CI."""
    if not there:
        (pytest.fail if os.environ.get("GPUCAL_REQUIRE_EMULATOR") else pytest.skip)(f"{what} is not installed")


def require_compiler() -> None:
    require(cpp.compiler() is not None, "g++, or what CXX names,")


def require_nvrtc() -> None:
    require(nvrtc.available(), "nvidia-cuda-nvrtc-cu12")


def padded(counts: np.ndarray, poison: int = 65_535) -> np.ndarray:
    """Counts (pixel, frame) with rows of a multiple of 128 bytes, as long as the kernel asks for and no longer."""
    rows, frames = counts.shape
    wide = np.full((rows, -(-frames // 64) * 64), poison, np.uint16)
    wide[:, :frames] = counts
    return cpp.on_device(wide)


def constants(plan: Plan) -> np.ndarray:
    """A pixel's eight numbers: c1 ... c5, dark, divisor, floor."""
    table = np.zeros((plan.n_pixels, 8))
    table[:, : len(plan.coefficients) - 1] = plan.coefficients[1:].T
    table[:, 5], table[:, 6], table[:, 7] = plan.dark, plan.divisor, plan.floor
    return table


def calibrate(
    kernel: Launch,
    plan: Plan,
    counts: np.ndarray,
    grid: Sequence[int] = (2, 3),
    poison: int = 65_535,
    threads: int = kernels.THREADS["calibrate"],
) -> tuple[np.ndarray, np.ndarray]:
    """Launch ``calibrate``: electrons (pixel, bin), and which pixels are saturated."""
    wide = padded(counts, poison)
    out = np.full((plan.n_pixels, plan.n_bins), -12345.678)
    saturated = np.zeros(plan.n_pixels, np.uint32)
    sizes = np.int64(wide.shape[1]), np.int32(plan.n_pixels), np.int32(plan.n_bins), np.int32(plan.pairs_per_bin)
    rest = cpp.on_device(constants(plan)), cpp.on_device(plan.tau_s), np.uint32(plan.saturation), out, saturated
    kernel(grid, (threads,), wide, *sizes, *rest)
    return out, saturated.astype(bool)


def cases() -> dict[str, tuple[Observation, Calibration]]:
    """Hostile observations for every bin size: one bin and several, remainders, odd frames, one pixel."""
    made = {}
    lone = replace(SMALL["AIRS-CH0"], shape=(1, 1), crop=(0, 1))
    for pairs in (1, 30, 720):
        made[f"one-pixel-{pairs}"] = observe(lone, 2 * pairs + 2, ADCS["2024"]), Calibration(bins={lone.name: pairs})
    for pairs in (1, 4, 5, 12, 30, 60, 360, 720):
        for detector, adc in (("AIRS-CH0", "2024"), ("FGS1", "2025")):
            small = SMALL[detector]
            for n_bins, left in ((1, 0), (1, 2 * pairs - 1), (37 if pairs < 60 else 3, 1)):
                frames = 2 * pairs * n_bins + left
                obs = observe(small, frames, ADCS[adc], seed=pairs + n_bins)
                config = Calibration(bins={detector: pairs}, odd_frames="drop", clip_negatives=left == 1)
                made[f"{detector}-{pairs}-{n_bins}+{left}"] = obs, config
    return made
