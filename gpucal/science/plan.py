"""Settings and calibration frames folded into the few arrays of the one formula.

    out[bin, pixel] = ( Σ over the bin's CDS pairs of [ P(n_end) − P(n_start) ]  −  dark · τ[bin] ) / divisor

P is the pixel's linearity polynomial composed with the ADC's n / gain + offset: still of degree 5, in raw counts n.
Every switch is data here, and no other code depends on it:

- linearity off: P is the ADC line;
- dark off: dark is 0;
- flat off: the divisor is 1;
- no binning: bins of one pair;
- a dead pixel, which the notebook leaves alone: dark 0, or NaN where it is not known, divisor 1;
- a mean instead of a sum: the divisor times the pairs;
- clipping of negatives: a real-valued floor on the count;
- benign coefficients: the identity and 1;
- the flat before or after CDS: the same sum is divided.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import ConfigError, InputError
from gpucal.inputs.calibration_files import DEGREE, Adc, Axis, CalibrationFrames
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import Detector

__all__ = ["DQ", "DQ_DESCRIPTIONS", "Plan", "integration_times_s", "make_plan"]


class DQ(enum.IntFlag):
    """Data-quality bits of a pixel.

    Examples
    --------
    >>> dq = np.array([0, 1, 3], np.uint8)
    >>> (dq & gpucal.DQ.HOT) != 0
    array([False, False,  True])
    >>> [flag.name for flag in gpucal.DQ if flag & 3]
    ['DEAD', 'HOT']
    """

    DEAD = 1
    HOT = 2
    BAD_FLAT = 4
    BAD_LINEARITY = 8
    SATURATED = 16
    INTERPOLATED = 32
    BAD_DARK = 64
    COSMIC = 128


DQ_DESCRIPTIONS: Mapping[DQ, str] = MappingProxyType(
    {
        DQ.DEAD: "does not respond, says the map of dead pixels",
        DQ.HOT: "dark current is an outlier of the sigma clip",
        DQ.BAD_FLAT: "flat field is too small or not finite",
        DQ.BAD_LINEARITY: "linearity polynomial is far from the identity",
        DQ.SATURATED: "a raw count reached the saturation limit",
        DQ.INTERPOLATED: "value was made of good neighbours, and is usable",
        DQ.BAD_DARK: "dark current is not known, and the value is NaN",
        DQ.COSMIC: "pairs of reads were left out as hit by cosmic rays, and the value is usable",
    }
)
"""What each data-quality bit says of a pixel."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The arrays of the formula for one observation and detector; pixels are the cropped ones, row by row.

    Parameters
    ----------
    detector : Detector
        The detector.
    n_bins : int
        Time bins.
    pairs_per_bin : int
        CDS pairs in each.
    coefficients : ndarray of float64, shape (degree + 1, pixel)
        P in raw counts, ascending powers, electrons.
    floor : float
        Counts below this are raised to it; 0 does nothing.
    dark : ndarray of float64, shape (pixel,)
        Dark current, electrons a second; NaN where it is not known.
    tau_s : ndarray of float64, shape (bin,)
        Integration time between start and end reads, summed over the bin's pairs, s.
    divisor : ndarray of float64, shape (pixel,)
        Flat field, times the pairs of a bin for a mean.
    electron : float
        Signal of one electron: 1, or gain² if counts are multiplied by the gain instead of divided.
    read_noise : ndarray of float64, shape (pixel,)
        Noise of one read, electrons times ``electron``; NaN where it is not known.
    saturation : int
        Raw counts at or above this in any used frame saturate a pixel.
    dq : ndarray of uint8, shape (pixel,)
        Data-quality flags from the calibration frames alone.
    time_h : ndarray of float64, shape (bin,)
        Mean time of the frames of each bin, hours.
    bounds_h : ndarray of float64, shape (bin, 2)
        Times of the first and the last frame of each bin, hours.
    cosmic_rays : float
        Threshold beyond which a pair is rejected, standard deviations of its pixel's pairs; 0 rejects none.
    """

    detector: Detector
    n_bins: int
    pairs_per_bin: int
    coefficients: NDArray[np.float64]
    floor: float
    dark: NDArray[np.float64]
    tau_s: NDArray[np.float64]
    divisor: NDArray[np.float64]
    electron: float
    read_noise: NDArray[np.float64]
    saturation: int
    dq: NDArray[np.uint8]
    time_h: NDArray[np.float64]
    bounds_h: NDArray[np.float64]
    cosmic_rays: float = 0.0

    @property
    def used_frames(self) -> int:
        """Frames inside whole bins."""
        return 2 * self.pairs_per_bin * self.n_bins

    @property
    def n_pixels(self) -> int:
        """Cropped pixels."""
        return self.dq.size


def make_plan(
    detector: Detector, config: Calibration, frames: CalibrationFrames, adc: Adc, axis: Axis, n_frames: int
) -> Plan:
    """Fold settings and calibration frames into the arrays of the formula.

    Parameters
    ----------
    detector : Detector
        The detector.
    config : Calibration
        The settings.
    frames : CalibrationFrames
        Dark, dead, flat, linearity and read noise, cropped.
    adc : Adc
        Gain and offset.
    axis : Axis
        Times and integration times.
    n_frames : int
        Frames in the signal file.

    Returns
    -------
    Plan
        The arrays.

    Raises
    ------
    ConfigError
        If a setting is None, or a bin in seconds is shorter than half a pair.
    InputError
        If the number of frames is too small for one bin, larger than the axes of ``axis_info.parquet``, or odd and the
        settings do not drop the last frame.
    """
    if config.integration is None:
        raise ConfigError("integration is None; call Calibration.filled with the data set's preset")
    if n_frames % 2 and config.odd_frames == "error":
        raise InputError(f"has {n_frames} frames, an odd number", 'set odd_frames = "drop" (--odd-frames drop)')
    pairs_per_bin = config.pairs_per_bin(detector, axis.pair_s)
    n_bins = max(0, n_frames // 2 - config.drop_last_pairs) // pairs_per_bin
    if n_bins == 0:
        raise _too_short(detector, n_frames, pairs_per_bin, config.drop_last_pairs)
    used = 2 * pairs_per_bin * n_bins
    for length in (axis.time_h.size, used if axis.integration_s is None else axis.integration_s.size):
        if length < used:
            problem = f"has {n_frames} frames, but axis_info.parquet describes only {length}"
            raise InputError(problem, "take both files from the same data set")

    dq = _data_quality(detector, config, frames)
    if config.bad_coefficients == "benign":
        frames = _benign(frames, dq)
    dead, dark = frames.dead.ravel(), frames.dark.ravel()
    scale, electron = (adc.gain, adc.gain**2) if config.gain == "multiply" else (1.0 / adc.gain, 1.0)
    divisor = np.where(dead, 1.0, frames.flat.ravel()) if config.flat else np.ones(dead.size)
    start_s, end_s = integration_times_s(detector, config, axis, used)
    times_h = axis.time_h[:used].reshape(n_bins, 2 * pairs_per_bin)
    return Plan(
        detector=detector,
        n_bins=n_bins,
        pairs_per_bin=pairs_per_bin,
        coefficients=_coefficients(config, frames, scale, adc.offset),
        floor=max(0.0, -adc.offset / scale) if config.clip_negatives else 0.0,
        # At a dead pixel the notebook subtracts the same dark from both reads, which cancels, unless it is NaN.
        dark=np.where(dead & ~np.isnan(dark), 0.0, dark) if config.dark else np.zeros(dead.size),
        tau_s=(end_s - start_s).reshape(n_bins, pairs_per_bin).sum(axis=1),
        divisor=divisor * pairs_per_bin if config.reduce == "mean" else divisor,
        electron=electron,
        read_noise=electron * frames.read.ravel(),
        saturation=config.saturation,
        dq=dq.ravel(),
        time_h=times_h.mean(axis=1),
        bounds_h=times_h[:, [0, -1]],
        cosmic_rays=config.cosmic_rays,
    )


def _too_short(detector: Detector, n_frames: int, pairs_per_bin: int, dropped: int) -> InputError:
    """Return the error of an observation that does not fill one bin."""
    left = n_frames // 2 - dropped
    if dropped and n_frames > 1:
        problem = (
            f"has {n_frames} frames; without the last {dropped} pairs, fewer than the {2 * pairs_per_bin} of one bin"
        )
        fewer = f"drop at most {n_frames // 2 - pairs_per_bin}, as --drop-last-pairs sets"
        smaller = f"use smaller bins, as in --bin {detector.name}={left}" if left > 0 else "drop fewer pairs"
        return InputError(problem, fewer if n_frames // 2 >= pairs_per_bin else smaller)
    problem = f"has {n_frames} frames, fewer than the {2 * pairs_per_bin} of one bin"
    smaller = f"use smaller bins, as in --bin {detector.name}={left}"
    return InputError(problem, smaller if n_frames > 1 else "copy it again from the competition data")


def _coefficients(config: Calibration, frames: CalibrationFrames, scale: float, shift: float) -> NDArray[np.float64]:
    """Compose the linearity polynomial, or the identity, with n · scale + shift, by Horner's rule on polynomials."""
    if not config.linearity:
        return np.repeat([[shift], [scale]], frames.dead.size, axis=1)
    linear_corr = frames.linear_corr.reshape(frames.linear_corr.shape[0], -1)
    composed = np.zeros_like(linear_corr)
    with np.errstate(invalid="ignore", over="ignore"):  # outlier coefficients may overflow; they are flagged
        for coefficient in linear_corr[::-1]:
            shifted = composed * shift
            shifted[1:] += composed[:-1] * scale
            composed = shifted
            composed[0] += coefficient
    # The constant cancels between two reads, so backends leave it out. One that is not finite would not cancel: NaN.
    composed[1, ~np.isfinite(composed[0])] = np.nan
    return composed


def integration_times_s(
    detector: Detector, config: Calibration, axis: Axis, used: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the integration times of start and end reads.

    Parameters
    ----------
    detector : Detector
        The detector.
    config : Calibration
        Settings, with ``integration`` set.
    axis : Axis
        The times that the data set gives.
    used : int
        Frames in whole bins.

    Returns
    -------
    start, end : ndarray of float64, shape (pair,)
        Seconds, of each used CDS pair.
    """
    # FGS1 has no integration column: the notebook uses one constant for every read (0.1 s), so the differences are 0.
    frames_s = np.full(used, detector.integration_s) if axis.integration_s is None else axis.integration_s[:used]
    # The update of 29 August 2024 adds 0.1 s to end reads, for both detectors.
    update_s = 0.1 if config.integration == "updated" else 0.0
    return frames_s[0::2], frames_s[1::2] + update_s


def _data_quality(detector: Detector, config: Calibration, frames: CalibrationFrames) -> NDArray[np.uint8]:
    dq = np.zeros(frames.dead.shape, np.uint8)
    if config.mask:
        dq[frames.dead] |= np.uint8(DQ.DEAD)
    if config.mask and config.hot_clip != "off":
        whole = config.hot_clip == "full-frame"
        hot = hot_pixels(frames.whole_dark if whole else frames.dark, config.hot_sigma, config.hot_iterations)
        dq[hot[:, slice(*detector.crop)] if whole else hot] |= np.uint8(DQ.HOT)
    if config.dark:
        dq[np.isnan(frames.dark)] |= np.uint8(DQ.BAD_DARK)
    if config.flat:
        dq[~(np.isfinite(frames.flat) & (frames.flat > config.flat_minimum))] |= np.uint8(DQ.BAD_FLAT)
    if config.linearity:
        dq[_bad_linearity(config, frames.linear_corr)] |= np.uint8(DQ.BAD_LINEARITY)
    return dq


def _benign(frames: CalibrationFrames, dq: NDArray[np.uint8]) -> CalibrationFrames:
    """Replace flagged polynomials by the identity and flagged flats by 1."""
    identity = np.zeros((DEGREE + 1, 1, 1))
    identity[1] = 1.0
    linear_corr = np.where(dq & DQ.BAD_LINEARITY, identity, frames.linear_corr)
    return replace(frames, linear_corr=linear_corr, flat=np.where(dq & DQ.BAD_FLAT, 1.0, frames.flat))


def hot_pixels(dark: NDArray[np.float64], sigma: float, iterations: int) -> NDArray[np.bool_]:
    """Find hot pixels by an iterated sigma clip of the dark; the notebook clips the cropped one.

    The same as ``astropy.stats.sigma_clip(dark, sigma=sigma, maxiters=iterations)``, whose import takes 0.3 s of a cold
    start. A single pass of mean ± 5σ, seen elsewhere, finds 7 pixels where the iterated clip finds 65.

    Parameters
    ----------
    dark : ndarray of float64, shape (spatial, wavelength)
        Dark current. Values that are not finite do not count, and are hot, as in astropy.
    sigma : float
        Threshold in standard deviations, both ways.
    iterations : int
        Passes, at most.

    Returns
    -------
    ndarray of bool, shape (spatial, wavelength)
        True where hot.
    """
    finite = np.isfinite(dark)
    kept = dark[finite]
    low = high = np.nan
    for _ in range(iterations):
        if not kept.size:
            low = high = np.nan
            break
        centre, spread = np.median(kept), np.std(kept)
        low, high = centre - sigma * spread, centre + sigma * spread
        inside = kept[(kept >= low) & (kept <= high)]
        if inside.size == kept.size:
            break
        kept = inside
    hot: NDArray[np.bool_] = (dark < low) | (dark > high) | ~finite
    return hot


def _bad_linearity(config: Calibration, linear_corr: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Flag polynomials that are not finite, too far from the identity, or with too large a constant term.

    The constant term has its own test and is left out of the deviation, which would otherwise diverge at zero
    electrons.
    """
    finite = np.isfinite(linear_corr).all(axis=0)
    off = np.abs(linear_corr[0]) > config.linearity_max_offset
    far, most = np.zeros(finite.shape, bool), np.zeros(finite.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        # Without the constant, |P(x) / x − 1| is at most the sum of the sizes of its terms at the end of the range.
        # That is small enough for nearly all pixels, and 0.1 % is more room than rounding needs.
        for power in linear_corr[:1:-1]:
            most += np.abs(power)
            most *= config.linearity_range
        most += np.abs(linear_corr[1] - 1.0)
        unsure = ~(1.001 * most + 1e-9 <= config.linearity_tolerance)
        # The others' smooth quartic is followed: 60 steps of 500 e⁻ are ample.
        electrons = np.linspace(0.0, config.linearity_range, 61)[:, None]
        ratio = np.zeros((electrons.size, np.count_nonzero(unsure)))
        for power in linear_corr[:0:-1, unsure]:
            ratio *= electrons
            ratio += power
        far[unsure] = ~(np.abs(ratio - 1.0) <= config.linearity_tolerance).all(axis=0)
    bad: NDArray[np.bool_] = ~finite | off | far
    return bad
