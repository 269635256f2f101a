"""The organisers' calibration notebook as slow, literal loops: the oracle of the tests.

One function a step, in the notebook's order: adc, mask, linearity, dark, cds, bin, flat. It shares no code with the
package and is meant to be read as a specification, quirks included:

- the masks are built and then lost, because a masked array is assigned into a plain one;
- at dead pixels the dark is subtracted without the time, which cancels in the CDS difference, and the flat is not
  divided; this holds whether masking is on or off;
- pairs past the last whole bin are dropped.

Everywhere ``rows`` is the spatial axis (y) and ``width`` the wavelength axis (x) of the detector.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import cosmic
import numpy as np
from astropy.stats import sigma_clip


@dataclass(frozen=True)
class Reference:
    """What the notebook makes of one observation.

    Attributes
    ----------
    signal : numpy.ndarray
        (bin, wavelength, spatial) float64 electrons; (bin, spatial, wavelength) without the transposition.
    scale : numpy.ndarray
        Same shape: the sum of |P(n)| / |flat| over the frames of the bin (divided by the pairs for ``reduce="mean"``),
        with P(n) the values that enter the dark step, and flat 1 at dead pixels, where it is 0 or not finite, and
        where the flat step is off. It is NaN or infinite only where P(n) itself is.
    dead, hot : numpy.ndarray
        (rows, cropped width) bool. ``hot`` is the clipped dark's mask, whether masking is on or off.
    bad_dark : numpy.ndarray
        (rows, cropped width) bool: a dark without a value, which makes every bin NaN.
    """

    signal: np.ndarray
    scale: np.ndarray
    dead: np.ndarray
    hot: np.ndarray
    bad_dark: np.ndarray


def adc(
    raw: np.ndarray, gain: float, offset: float, clip_negatives: bool = False, multiply: bool = False
) -> np.ndarray:
    """Convert counts to electrons: n / gain + offset, frame by frame, with a floor at 0 if asked for.

    The documentation of 2024 says n * gain + offset, which is what ``multiply`` gives.
    """
    signal = np.zeros(raw.shape, dtype=np.float64)
    for i in range(raw.shape[0]):
        signal[i] = raw[i].astype(np.float64)
        if multiply:
            signal[i] *= gain
        else:
            signal[i] /= gain
        signal[i] += offset
        if clip_negatives:
            signal[i][signal[i] < 0.0] = 0.0
    return signal


def hot_pixels(dark: np.ndarray, sigma: float = 5.0, iterations: int = 5) -> np.ndarray:
    """Pixels that the iterated sigma clip takes out of the (cropped) dark; values that are not finite count as hot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy warns of values that are not finite
        return np.ma.getmaskarray(sigma_clip(dark, sigma=sigma, maxiters=iterations)).copy()


def is_bad_linearity(
    linear_corr: np.ndarray, tolerance: float = 0.10, up_to: float = 30_000.0, max_offset: float = 10.0
) -> np.ndarray:
    """Pixels whose polynomial is not finite, has too large a constant, or is too far from the identity anywhere."""
    bad = np.zeros(linear_corr.shape[1:], dtype=bool)
    for y in range(bad.shape[0]):
        for x in range(bad.shape[1]):
            c = linear_corr[:, y, x]
            if not np.all(np.isfinite(c)) or abs(c[0]) > max_offset:
                bad[y, x] = True
                continue
            electrons = np.arange(0.0, up_to + 1.0, 100.0)
            with np.errstate(all="ignore"):
                correction = sum(c[k] * electrons ** (k - 1) for k in range(1, len(c))) - 1.0
            bad[y, x] = not np.all(np.abs(correction) <= tolerance)
    return bad


def make_benign(
    linear_corr: np.ndarray, flat: np.ndarray, flat_minimum: float, *limits: float
) -> tuple[np.ndarray, np.ndarray]:
    """The identity where a polynomial is bad, and 1 where a flat is at the minimum, below, or not finite."""
    linear_corr, flat = linear_corr.copy(), flat.copy()
    bad = is_bad_linearity(linear_corr, *limits)
    for y in range(flat.shape[0]):
        for x in range(flat.shape[1]):
            if bad[y, x]:
                linear_corr[:, y, x] = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
            if not np.isfinite(flat[y, x]) or flat[y, x] <= flat_minimum:
                flat[y, x] = 1.0
    return linear_corr, flat


def mask_hot_dead(signal: np.ndarray, dead: np.ndarray, hot: np.ndarray) -> np.ma.MaskedArray:
    """Mask hot and dead pixels in every frame."""
    masked = np.ma.masked_where(np.tile(dead, (signal.shape[0], 1, 1)), signal)
    return np.ma.masked_where(np.tile(hot, (signal.shape[0], 1, 1)), masked)


def lose_mask(masked: np.ma.MaskedArray) -> np.ndarray:
    """Assign a masked array into a plain array of zeros, which keeps the data under the mask and drops the mask."""
    out = np.zeros(masked.shape, dtype=np.float64)
    out[...] = masked.data
    return out


def correct_linearity(signal: np.ndarray, linear_corr: np.ndarray) -> np.ndarray:
    """Apply each pixel's polynomial, ascending coefficients (power, rows, width), to its time series."""
    descending = np.flip(linear_corr, axis=0)
    out = np.zeros_like(signal)
    with np.errstate(all="ignore"):
        for y in range(signal.shape[1]):
            for x in range(signal.shape[2]):
                polynomial = np.poly1d(descending[:, y, x])
                out[:, y, x] = polynomial(signal[:, y, x])
    return out


def subtract_dark(signal: np.ndarray, dark: np.ndarray, dead: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Subtract dark * dt from every frame; at dead pixels dark alone, without the time.

    The product of a masked dark and a time keeps, under the mask, the dark unmultiplied; subtracted in place from a
    plain array it takes the dark off there. The same number leaves both frames of a pair, so CDS cancels it.
    """
    masked_dark = np.ma.masked_where(dead, dark)
    out = signal.copy()
    with np.errstate(all="ignore"):
        for i in range(signal.shape[0]):
            product = np.ma.getdata(masked_dark * dt[i])
            product = np.where(dead, dark, product)  # what is under the mask, said aloud
            out[i] -= product
    return out


def cds(signal: np.ndarray) -> np.ndarray:
    """Correlated double sampling: each odd frame minus the even frame before it."""
    pairs = signal.shape[0] // 2
    out = np.zeros((pairs, *signal.shape[1:]), dtype=np.float64)
    with np.errstate(all="ignore"):
        for i in range(pairs):
            out[i] = signal[2 * i + 1] - signal[2 * i]
    return out


def left_out(raw: np.ndarray, used_pairs: int, sigma: float) -> np.ndarray:
    """Which of the used pairs cosmic rays hit, (pair, rows, width), pixel by pixel."""
    out = np.zeros((used_pairs, *raw.shape[1:]), dtype=bool)
    for y in range(raw.shape[1]):
        for x in range(raw.shape[2]):
            for pair in cosmic.rejected(raw[: 2 * used_pairs, y, x].tolist(), sigma):
                out[pair, y, x] = True
    return out


def without(bins: np.ndarray, pairs: np.ndarray, out: np.ndarray, bin_pairs: int, reduce: str) -> np.ndarray:
    """Bins with pairs left out: the sum of the others, scaled up to all; NaN where there are no others."""
    bins = bins.copy()
    for i, y, x in np.ndindex(bins.shape):
        mine = slice(i * bin_pairs, (i + 1) * bin_pairs)
        gone = int(np.sum(out[mine, y, x]))
        if gone == bin_pairs:
            bins[i, y, x] = np.nan
        elif gone:
            kept = [pairs[k, y, x] for k in range(mine.start, mine.stop) if not out[k, y, x]]
            with np.errstate(all="ignore"):
                bins[i, y, x] = np.sum(kept) * bin_pairs / len(kept) / (bin_pairs if reduce == "mean" else 1)
    return bins


def mend_by_profile(signal: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Bad pixels of a cube (time, wavelength, spatial) by the profiles of ten wavelengths, one after the other.

    A wavelength's estimate counts by the sum of its squares, but no more than the median one.
    NaN are those that no wavelength can tell of, and wavelengths without a good pixel.
    """
    out = np.where(bad, np.nan, signal)
    width, height = bad.shape
    for x, y in np.argwhere(bad & ~bad.all(axis=1, keepdims=True)):
        estimates, powers = [], []
        for near in range(max(0, x - 5), min(width, x + 6)):
            if near == x or bad[near, y]:
                continue
            shared = [row for row in range(height) if not bad[near, row] and not bad[x, row]]
            means = {row: float(np.mean(signal[:, near, row])) for row in (*shared, y)}
            square = sum(means[row] ** 2 for row in shared)
            if 0.0 < square < np.inf:
                factor = sum(means[row] * signal[:, x, row] for row in shared) / square
                estimates.append(factor * means[y])
                powers.append(square)
        if estimates:
            weights = [min(power, float(np.median(powers))) for power in powers]
            total = sum(weight * estimate for weight, estimate in zip(weights, estimates, strict=True))
            out[:, x, y] = total / sum(weights)
    return out


def bin_pairs_of(pairs: np.ndarray, bin_pairs: int, reduce: str = "sum") -> np.ndarray:
    """Sum, or average, every ``bin_pairs`` pairs; the pairs past the last whole bin are dropped."""
    bins = pairs.shape[0] // bin_pairs
    out = np.zeros((bins, *pairs.shape[1:]), dtype=np.float64)
    with np.errstate(all="ignore"):
        for i in range(bins):
            out[i] = np.sum(pairs[i * bin_pairs : (i + 1) * bin_pairs], axis=0)
            if reduce == "mean":
                out[i] /= bin_pairs
    return out


def divide_flat(signal: np.ndarray, flat: np.ndarray, dead: np.ndarray) -> np.ndarray:
    """Divide every bin by the flat, except at dead pixels; a flat of 0 or below is divided by like any other.

    Said with the flat masked and its data divided by, not with ``numpy.ma``'s own division, which would leave the
    numerator wherever the quotient is not finite.
    """
    masked_flat = np.ma.masked_where(dead, flat)
    divisor = masked_flat.filled(1.0)
    out = np.zeros_like(signal)
    with np.errstate(all="ignore"):
        for i in range(signal.shape[0]):
            out[i] = signal[i] / divisor
    return out


def magnitude(signal: np.ndarray, flat: np.ndarray, bin_pairs: int, reduce: str) -> np.ndarray:
    """Sum |signal| / |flat| over the frames of each bin, or take that sum over the pairs for ``reduce="mean"``."""
    usable = np.isfinite(flat) & (flat != 0.0)
    divisor = np.where(usable, np.abs(flat), 1.0)
    bins = signal.shape[0] // 2 // bin_pairs
    out = np.zeros((bins, *signal.shape[1:]), dtype=np.float64)
    with np.errstate(all="ignore"):
        for i in range(bins):
            frames = signal[2 * i * bin_pairs : 2 * (i + 1) * bin_pairs]
            out[i] = np.sum(np.abs(frames), axis=0) / divisor
            if reduce == "mean":
                out[i] /= bin_pairs
    return out


def calibrate(
    raw: np.ndarray,
    *,
    dark: np.ndarray,
    dead: np.ndarray,
    flat: np.ndarray,
    linear_corr: np.ndarray,
    gain: float,
    offset: float,
    dt: np.ndarray,
    bin_pairs: int,
    crop: tuple[int, int],
    transpose: bool = True,
    mask: bool = True,
    linearity: bool = True,
    dark_on: bool = True,
    flat_on: bool = True,
    binning: bool = True,
    reduce: str = "sum",
    clip_negatives: bool = False,
    hot_sigma: float = 5.0,
    hot_iterations: int = 5,
    multiply: bool = False,
    hot_clip: str = "cropped",
    flat_first: bool = False,
    benign: tuple[float, ...] | None = None,
    drop_odd: bool = False,
    drop_last_pairs: int = 0,
    cosmic_rays: float = 0.0,
) -> Reference:
    """Calibrate one observation of one detector as the notebook does.

    Parameters
    ----------
    raw : numpy.ndarray
        (frame, rows, width) uint16 counts, even frames the start and odd frames the end of each exposure.
    dark, dead, flat : numpy.ndarray
        (rows, width): electrons per second, bool, and relative response.
    linear_corr : numpy.ndarray
        (6, rows, width), ascending powers.
    gain, offset : float
        Electrons = counts / gain + offset.
    dt : numpy.ndarray
        (frame,) seconds that each frame integrates.
    bin_pairs : int
        CDS pairs in a bin; one if ``binning`` is off.
    crop : tuple of int
        First and past-the-last wavelength column, cut out of everything before anything else.
    transpose : bool
        Give (bin, wavelength, spatial), as the notebook does, rather than (bin, spatial, wavelength).
    mask, linearity, dark_on, flat_on, binning : bool
        Take or leave out that step. The dead map acts on dark and flat in either case.
    reduce : {"sum", "mean"}
        What becomes of the pairs of a bin.
    clip_negatives : bool
        Floor the electrons at 0 after the adc step.
    hot_sigma, hot_iterations : float, int
        The clip that finds hot pixels in the dark.
    multiply : bool
        Multiply by the gain instead of dividing by it.
    hot_clip : {"cropped", "full-frame", "off"}
        Which dark that clip sees; the notebook's is cropped.
    flat_first : bool
        Divide every frame by the flat, before CDS, and not the bins.
    benign : tuple of float, optional
        Replace flats not above this first, and coefficients that are bad beyond this tolerance, range and constant.
    drop_odd : bool
        Leave out the last of an odd number of frames.
    drop_last_pairs : int
        Leave out so many pairs at the end, as if they had not been read.
    cosmic_rays : float
        Leave out pairs beyond so many standard deviations of their pixel, see `cosmic`; 0 leaves out none.

    Returns
    -------
    Reference
        Signal, scale and the two pixel maps.
    """
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce must be 'sum' or 'mean', got {reduce!r}")
    if drop_odd and raw.shape[0] % 2:
        raw = raw[:-1]
    if raw.shape[0] % 2:
        raise ValueError(f"an odd number of frames, {raw.shape[0]}, has no CDS pairs")
    raw = raw[: len(raw) - 2 * drop_last_pairs]
    first, last = crop
    raw = np.asarray(raw)[:, :, first:last]
    whole_dark = np.asarray(dark, dtype=np.float64)
    dark = np.asarray(dark, dtype=np.float64)[:, first:last]
    dead = np.asarray(dead, dtype=bool)[:, first:last]
    flat = np.asarray(flat, dtype=np.float64)[:, first:last]
    linear_corr = np.asarray(linear_corr, dtype=np.float64)[:, :, first:last]
    dt = np.asarray(dt, dtype=np.float64)
    if not binning:
        bin_pairs = 1

    if benign:
        linear_corr, flat = make_benign(linear_corr, flat, *benign)
    signal = adc(raw, gain, offset, clip_negatives, multiply)
    if hot_clip == "off":
        hot = np.zeros(dark.shape, dtype=bool)
    elif hot_clip == "full-frame":
        hot = hot_pixels(whole_dark, hot_sigma, hot_iterations)[:, first:last]
    else:
        hot = hot_pixels(dark, hot_sigma, hot_iterations)
    if mask:
        signal = lose_mask(mask_hot_dead(signal, dead, hot))
    if linearity:
        signal = correct_linearity(signal, linear_corr)
    applied_flat = np.where(dead, 1.0, flat) if flat_on else np.ones_like(flat)
    scale = magnitude(signal, applied_flat, bin_pairs, reduce)
    if dark_on:
        signal = subtract_dark(signal, dark, dead, dt[: len(signal)])
    if flat_on and flat_first:
        signal = divide_flat(signal, flat, dead)
    signal = cds(signal)
    pairs, signal = signal, bin_pairs_of(signal, bin_pairs, reduce)
    if cosmic_rays:
        signal = without(signal, pairs, left_out(raw, len(signal) * bin_pairs, cosmic_rays), bin_pairs, reduce)
    if flat_on and not flat_first:
        signal = divide_flat(signal, flat, dead)
    if transpose:
        signal, scale = signal.transpose(0, 2, 1), scale.transpose(0, 2, 1)
    return Reference(np.ascontiguousarray(signal), np.ascontiguousarray(scale), dead.copy(), hot, dark != dark)


def assert_close(actual: np.ndarray, reference: Reference, rtol: float = 1e-9) -> None:
    """Assert |a - b| <= rtol * max(|b|, 1) + 1e-13 * scale for every element.

    NaN equals NaN and an infinity the same infinity. Where the coefficients took P(n) beyond the floating-point range
    (``scale`` not finite, or past the largest number of ``actual``'s type), the kind of non-finite value depends on
    the order of the arithmetic: there, where the reference is not finite, any non-finite value will do.

    Parameters
    ----------
    actual : numpy.ndarray
        What is tested, of the reference's shape.
    reference : Reference
        What :func:`calibrate` gave.
    rtol : float
        1e-9 for float64, 1e-6 for float32.

    Raises
    ------
    AssertionError
        With the position, the two values and the excess of the worst element.
    """
    given = np.asarray(actual)
    a, b, scale = given.astype(np.float64), reference.signal, reference.scale
    if a.shape != b.shape:
        raise AssertionError(f"shape {a.shape}, expected {b.shape}")
    largest = float(np.finfo(given.dtype).max) if np.issubdtype(given.dtype, np.floating) else np.finfo(np.float64).max
    with np.errstate(all="ignore"):
        overflow = ~(scale <= largest)
        representable = np.abs(b) <= largest  # False for NaN and infinities
        difference = np.abs(a - b)
        tolerance = rtol * np.maximum(np.abs(b), 1.0) + 1e-13 * scale
        excess = difference - tolerance
        near = difference <= tolerance
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    close = np.where(representable, near, same | (overflow & ~np.isfinite(a)))
    if np.all(close):
        return
    rank = np.where(close, -np.inf, np.where(np.isnan(excess), np.inf, excess))
    worst = tuple(int(k) for k in np.unravel_index(np.argmax(rank), rank.shape))
    raise AssertionError(
        f"{np.count_nonzero(~close)} of {close.size} elements differ; worst at {worst}: {float(a[worst])!r}, expected "
        f"{float(b[worst])!r}, off by {difference[worst]:.6g} where {tolerance[worst]:.6g} is allowed "
        f"(excess {excess[worst]:.6g}, scale {scale[worst]:.6g}, rtol {rtol:g})"
    )
