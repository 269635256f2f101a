"""The search for cosmic rays in every pair of a block, compiled: see `gpucal.science.cosmic_rays`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpucal.backends.pagewise.intrinsics import compiled, get, inlined, put
from gpucal.inputs.parquet.layout import Array
from gpucal.science.cosmic_rays import CHUNK, MIDDLE, WINDOW, sampled

__all__ = ["flag_chunks", "prepare"]

_HALF = WINDOW // 2
_W0, _W1, _W2, _W3, _W4, _W5 = MIDDLE
_CHUNK = CHUNK


@inlined
def _away(row: Array, k: int) -> np.int32:
    """Return |e| · 4290 of a pair in the middle of its window."""
    away = np.int32(
        _W0 * get(row, k)
        + _W1 * (get(row, k - 1) + get(row, k + 1))
        + _W2 * (get(row, k - 2) + get(row, k + 2))
        + _W3 * (get(row, k - 3) + get(row, k + 3))
        + _W4 * (get(row, k - 4) + get(row, k + 4))
        + _W5 * (get(row, k - 5) + get(row, k + 5))
    )
    return max(away, np.int32(-away))


@compiled("void(Array(u2, 2, 'C', readonly=True), i8, i4[:, ::1], i4[:, ::1])")
def _prepare(counts: Array, step: int, series: Array, samples: Array) -> None:
    for pixel in range(series.shape[0]):
        reads, row, away = counts[pixel], series[pixel], samples[pixel]
        for k in range(series.shape[1]):
            put(row, k, np.int32(get(reads, 2 * k + 1)) - np.int32(get(reads, 2 * k)))
        for k in range(samples.shape[1]):
            put(away, k, _away(row, _HALF + k * step))


@compiled("void(Array(i4, 2, 'C', readonly=True), Array(i4, 1, 'C', readonly=True), u1[:, ::1])")
def _flag_chunks(series: Array, limits: Array, flags: Array) -> None:
    n = series.shape[1] - 2 * _HALF
    for pixel in range(series.shape[0]):
        row, limit = series[pixel], limits[pixel]
        for chunk in range(flags.shape[1]):
            first = chunk * _CHUNK + _HALF
            worst = np.int32(0)
            for k in range(first, first + min(_CHUNK, n - chunk * _CHUNK)):
                worst = max(worst, _away(row, k))
            flags[pixel, chunk] = worst > limit


def prepare(counts: NDArray[np.uint16], used_frames: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """See `gpucal.science.cosmic_rays.prepare`."""
    pairs = sampled(used_frames // 2)
    series, samples = (np.empty((len(counts), n), np.int32) for n in (used_frames // 2, len(pairs)))
    _prepare(np.ascontiguousarray(counts), pairs.step, series, samples)
    return series, samples


def flag_chunks(series: NDArray[np.int32], limits: NDArray[np.int32]) -> NDArray[np.bool_]:
    """See `gpucal.science.cosmic_rays.flag_chunks`; ``series`` is C-contiguous."""
    n = series.shape[1] - 2 * _HALF
    flags = np.empty((len(series), -(-n // _CHUNK)), np.uint8)
    _flag_chunks(series, limits, flags)
    return flags.view(np.bool_)
