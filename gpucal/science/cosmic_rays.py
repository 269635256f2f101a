"""Cosmic rays: CDS pairs far from what their neighbours in time say.

A pair is compared with a quadratic through the ten pairs around it, in raw counts: with the other ten of the window of
eleven that it is in the middle of, or, near either end, of the first or last eleven. Its distance from that quadratic
is e / (1 − h): e is its distance from the quadratic through all eleven, and h its own weight there. The scatter of a
pair is 1.4826 times the median of |e| / √(1 − h) over evenly spaced pairs, and at least one count. The farthest pair
beyond the threshold is taken out of the series as if it had never been read, and so on, until there is
none: so a hit does not make its neighbours look wrong.

Where more than three of eleven pairs in a row would be taken out, the light itself has changed, or nobody can tell
which pairs are right. Without a limit, a step of the light would then lose one pair after the other, up to the ends of
the series. So the pairs taken out up to ten away from the last one are put back, and none up to 20 away is taken out
any more.

All of that is done on whole numbers, so that every backend finds the same pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "MIDDLE", "NUMPY", "WINDOW", "Search", "find_hits", "flag_chunks", "prepare", "sampled"]

WINDOW = 11
"""Pairs of a window, with the one in question."""

_T = np.arange(WINDOW) - WINDOW // 2
_SCALE = 4290
# Weights of a quadratic through eleven points, by the orthogonal polynomials 1, t and t² − 10.
_HAT = 390 + 39 * np.outer(_T, _T) + 5 * np.outer(_T**2 - 10, _T**2 - 10)
_RESIDUAL = (_SCALE * np.eye(WINDOW, dtype=np.int64) - _HAT).astype(np.int32)
# Scatter of e · 4290 in the middle where pairs have a scatter of 1, and e · 4290 of a hit of 1.
_SPREAD = _SCALE * math.sqrt(1.0 - float(_HAT[WINDOW // 2, WINDOW // 2]) / _SCALE)
_OF_HIT = (_SCALE - np.diag(_HAT)).astype(np.float64)

MIDDLE = tuple(int(weight) for weight in _RESIDUAL[WINDOW // 2, WINDOW // 2 :])
"""Weights in e of the pair in the middle, and of those 1 to 5 beside it on either side, times 4290."""

CHUNK = 1024
"""Pairs that are flagged together, and looked at again if any of them is suspect."""

_OF_RANGE = int(np.abs(_RESIDUAL[WINDOW // 2]).sum()) // 2  # largest e · 4290 in the middle of pairs whose range is 1
_SAMPLES = 511  # of the median: enough for a scatter that is right to 5 %
_TILE = 2**16  # differences that are looked at together, and stay in a core's cache
_NORMAL = 1.0 / 0.6744897501960817
_HALF = WINDOW // 2
_MOST = 3  # pairs that may be taken out of eleven in a row
_KEPT = 20  # pairs before and after the last of more than those, of which none is taken out any more
_REACH, _MARGIN = 40, 16  # pairs around a suspect that are looked at; removals nearer to an end of them need more

Differences: TypeAlias = "NDArray[np.int32]"
"""End minus start read, counts, (pixel, pair)."""


class Search(NamedTuple):
    """The two parts that look at every pair, `prepare` and `flag_chunks`, or faster functions with the same results."""

    prepare: Callable[[NDArray[np.uint16], int], tuple[Differences, NDArray[np.int32]]]
    flag_chunks: Callable[[Differences, NDArray[np.int32]], NDArray[np.bool_]]


def sampled(n_pairs: int) -> range:
    """Return the evenly spaced pairs that the scatter is found from, all in the middle of their windows."""
    middle = range(_HALF, n_pairs - _HALF)
    return middle[:: max(1, len(middle) // _SAMPLES)]


def prepare(counts: NDArray[np.uint16], used_frames: int) -> tuple[Differences, NDArray[np.int32]]:
    """Return what a search starts from.

    Parameters
    ----------
    counts : ndarray of uint16, shape (pixel, frame)
        Raw counts.
    used_frames : int
        Frames inside whole bins, more than 22.

    Returns
    -------
    series : ndarray of int32, shape (pixel, pair)
        End minus start read, counts.
    samples : ndarray of int32, shape (pixel, sample)
        |e| · 4290 of `sampled` pairs.
    """
    used = counts[:, :used_frames]
    series: Differences = np.subtract(used[:, 1::2], used[:, 0::2], dtype=np.int32)
    pairs = sampled(series.shape[1])
    places = slice(pairs.start, pairs.stop, pairs.step)
    total = series[:, places] * np.int32(MIDDLE[0])
    for away, weight in enumerate(MIDDLE[1:], 1):
        before, after = (slice(pairs.start + by, pairs.stop + by, pairs.step) for by in (-away, away))
        total += (series[:, before] + series[:, after]) * np.int32(weight)
    return series, np.abs(total)


def flag_chunks(series: Differences, limits: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell which chunks have a pair beyond its pixel's limit, but for the first and last five pairs of a series.

    Parameters
    ----------
    series : ndarray of int32, shape (pixel, pair)
        Differences of more than ten pairs; C-contiguous.
    limits : ndarray of int32, shape (pixel,)
        Largest |e| · 4290 of a pair in the middle of its window that is no suspect.

    Returns
    -------
    ndarray of bool, shape (pixel, chunk)
        Of the pairs from the sixth on, in chunks of `CHUNK`.
    """
    n = series.shape[1] - 2 * _HALF
    flags = np.zeros((len(series), -(-n // CHUNK)), bool)
    # The weights of e add up to 0, so that it is at most this times the range of a series: most need no closer look.
    spread = series.max(axis=1).astype(np.int64) - series.min(axis=1)
    looked = np.flatnonzero(spread * _OF_RANGE > limits)
    rows = max(1, _TILE // n)
    memory = np.empty((2, min(rows, looked.size), n), np.int32)
    for first in range(0, looked.size, rows):
        places = looked[first : first + rows]
        away = np.abs(total := _in_the_middle(series[places], *memory[:, : places.size]), out=total)
        for row, place in enumerate(places):
            largest = np.maximum.reduceat(away[row], np.arange(0, n, CHUNK))
            flags[place] = largest > limits[place]
    return flags


NUMPY = Search(prepare, flag_chunks)
"""The search on NumPy."""


def find_hits(counts: NDArray[np.uint16], used_frames: int, sigma: float, search: Search = NUMPY) -> NDArray[np.intp]:
    """Find the pairs that are rejected.

    Parameters
    ----------
    counts : ndarray of uint16, shape (pixel, frame)
        Raw counts.
    used_frames : int
        Frames inside whole bins.
    sigma : float
        Threshold, in standard deviations of a pixel's pairs.
    search : Search
        `NUMPY`, or a faster one.

    Returns
    -------
    ndarray of int, shape (hit, 2)
        Pixel and pair of each, in order. Fewer than twelve pairs are too few to tell.
    """
    if used_frames <= 2 * WINDOW or not len(counts):
        return np.empty((0, 2), np.intp)
    series, samples = search.prepare(counts, used_frames)
    middle = samples.shape[1] // 2
    typical = np.partition(samples, middle, axis=1)[:, middle]
    scatter = np.maximum(_NORMAL * typical / _SPREAD, 1.0)
    limits = sigma * scatter[:, None] * _OF_HIT
    suspects = _suspects(series, limits, search)
    hits = [
        (pixel, pair)
        for pixel in np.unique(suspects[:, 0])
        for pair in _hits_of(series[pixel], suspects[suspects[:, 0] == pixel, 1], limits[pixel])
    ]
    return np.array(hits, np.intp).reshape(-1, 2)


def _in_the_middle(series: NDArray[Any], total: NDArray[Any], both: NDArray[Any]) -> NDArray[Any]:
    """Fill ``total`` with e · 4290 of all pairs but the first and last five; ``both`` is memory to work in."""
    n = series.shape[1] - 2 * _HALF
    np.multiply(series[:, _HALF : _HALF + n], MIDDLE[0], out=total)
    for away, weight in enumerate(MIDDLE[1:], 1):
        np.add(series[:, _HALF - away :][:, :n], series[:, _HALF + away :][:, :n], out=both)
        both *= weight
        total += both
    return total


def _distances(series: NDArray[np.signedinteger[Any]]) -> NDArray[np.int64]:
    """Return |e| · 4290 of all pairs of one series but the first and last five."""
    memory = np.empty((2, 1, series.size - 2 * _HALF), np.int64)
    distances: NDArray[np.int64] = np.abs(_in_the_middle(series[None, :], *memory)[0])
    return distances


def _suspects(series: Differences, limits: NDArray[np.float64], search: Search) -> NDArray[np.intp]:
    """Return pixel and pair of those beyond their limits in the whole series."""
    n = series.shape[1]
    most = np.minimum(np.floor(limits[:, _HALF]), np.iinfo(np.int32).max).astype(np.int32)
    found = []
    for pixel, chunk in np.argwhere(search.flag_chunks(series, most)):
        first = chunk * CHUNK
        part = series[pixel, first : min(first + CHUNK, n - 2 * _HALF) + 2 * _HALF]
        pairs = np.flatnonzero(_distances(part) > most[pixel]) + first + _HALF
        found += [(pixel, pair) for pair in pairs]
    for places, edge in ((slice(0, _HALF), series[:, :WINDOW]), (slice(_HALF + 1, WINDOW), series[:, -WINDOW:])):
        beyond = np.abs(edge @ _RESIDUAL[places].T) > limits[:, places]
        shift = 0 if places.start == 0 else n - _HALF
        found += [(pixel, pair + shift) for pixel, pair in np.argwhere(beyond)]
    return np.array(sorted(found), np.intp).reshape(-1, 2)


def _hits_of(series: Differences, suspects: NDArray[np.intp], limits: NDArray[np.float64]) -> list[int]:
    """Return the rejected pairs of one pixel; only the neighbourhood of suspects is looked at."""
    n, hits = series.size, []
    for group in np.split(suspects, np.flatnonzero(np.diff(suspects) > 2 * _REACH) + 1):
        first, stop = max(0, group[0] - _REACH), min(n, group[-1] + _REACH + 1)
        removed, tried = _removed(series[first:stop], limits, first > 0, stop < n)
        low, high = _MARGIN if first > 0 else 0, stop - first - (_MARGIN if stop < n else 0)
        if any(not low <= pair < high for pair in tried):  # they run on beyond the neighbourhood
            return _removed(series, limits, False, False)[0]
        hits += [first + pair for pair in removed]
    return hits


def _removed(
    series: Differences, limits: NDArray[np.float64], cut_before: bool, cut_after: bool
) -> tuple[list[int], list[int]]:
    """Take out the farthest pair beyond its limit, again and again; beside a cut, five pairs are not judged.

    Returns the pairs that are out in the end, in order, and all that were taken out, though some were put back.
    """
    out, kept, tried = np.zeros(series.size, bool), np.zeros(series.size, bool), []
    while (places := np.flatnonzero(~out)).size > WINDOW:
        left = series[places].astype(np.int64)
        ends = np.abs(_RESIDUAL[:_HALF] @ left[:WINDOW]), np.abs(_RESIDUAL[_HALF + 1 :] @ left[-WINDOW:])
        away = np.concatenate([ends[0], _distances(left), ends[1]])
        limit = np.full(left.size, limits[_HALF])
        limit[:_HALF] = np.inf if cut_before else limits[:_HALF]
        limit[-_HALF:] = np.inf if cut_after else limits[_HALF + 1 :]
        beyond = np.flatnonzero((away > limit) & ~kept[places])
        if not beyond.size:
            break
        pair = int(places[beyond[np.argmax(away[beyond] / limit[beyond])]])
        out[pair] = True
        tried.append(pair)
        before = max(0, pair - WINDOW + 1)
        near = out[before : pair + WINDOW]
        if np.convolve(near, np.ones(WINDOW, int)).max() > _MOST:
            near[:] = False
            kept[max(0, pair - _KEPT) : pair + _KEPT + 1] = True
    return np.flatnonzero(out).tolist(), tried
