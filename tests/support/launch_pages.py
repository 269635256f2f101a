"""`inflate` and `bins` as functions that can stand where the compiled ones of `gpucal.backends.pagewise` do."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from emulator import cpp
from numpy.typing import NDArray

from gpucal import kernels
from gpucal.inputs.parquet.layout import AT, CODEC, COLUMNS, PADDING, PREFIX, SIZE, TO, WANTED, ZSTD

Launch = Callable[..., None]

# Grids that launches take in turn: none may change a result.
_GRIDS = itertools.cycle((1, 2, 3, 7, 40))
_ONE_AT_A_TIME = threading.Lock()


def inflating(kernel: Launch) -> Callable[..., None]:
    """Return what has the arguments of `inflate_pages`, but for the memory to work in, and launches the kernel."""

    def inflate_pages(
        data: NDArray[np.uint8],
        pages: NDArray[np.int64],
        first: int,
        last: int,
        out: NDArray[np.uint8],
        status: NDArray[np.int64],
        *work: object,
    ) -> None:
        some, found = pages[first:last].copy(), np.full(last - first, -1, np.int32)
        some[:, TO] -= some[:1, TO]
        there = cpp.on_device(out)
        with _ONE_AT_A_TIME:
            sizes = np.int64(data.size), np.int64(out.size)
            kernel(
                (next(_GRIDS),), (kernels.THREADS["inflate"],), cpp.on_device(data), sizes[0], some,
                np.int32(len(some)), there, sizes[1], found,
            )  # fmt: skip
        out[:], status[:] = there, found

    return inflate_pages


def binning(kernel: Launch) -> Callable[..., None]:
    """Return what has the arguments of `gpucal.backends.pagewise.bins.bin_pages`, and launches the kernel."""

    def bin_pages(
        data: NDArray[np.uint8],
        pages: NDArray[np.int64],
        firsts: NDArray[np.int64],
        facts: NDArray[np.int64],
        n_rows: int,
        constants: NDArray[np.float64],
        floor: float,
        pairs_per_bin: int,
        dark: NDArray[np.float64],
        tau_s: NDArray[np.float64],
        divisor: NDArray[np.float64],
        saturation: int,
        out: NDArray[np.float64],
        saturated: NDArray[np.uint8],
        status: NDArray[np.int64],
        *work: object,
    ) -> None:
        n_pixels, n_bins = out.shape
        some = pages.copy()
        some[:, TO] -= some[firsts[0], TO] if firsts[0] < firsts[-1] else 0
        pixels = np.column_stack([constants, dark, divisor, np.full(n_pixels, floor)])
        flags, found = np.full(n_pixels, 7, np.uint32), np.full((n_pixels, 2), -7, np.int32)
        there = cpp.on_device(data), np.int64(data.size), some, firsts.astype(np.int32), np.ascontiguousarray(facts)
        sizes = map(np.int32, (n_rows, n_pixels, n_bins, pairs_per_bin))
        plan = np.ascontiguousarray(pixels), np.ascontiguousarray(tau_s), np.uint32(saturation)
        with _ONE_AT_A_TIME:
            kernel((next(_GRIDS),), (kernels.THREADS["bins"],), *there, *sizes, *plan, out, flags, found)
        saturated[:], status[:] = flags, found

    return bin_pages


def frames(pages: Sequence[tuple[bytes, int]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Lay zstd frames out, each given by its bytes and its content's size, with odd gaps; return them and the table."""
    table, data, to = np.zeros((len(pages), COLUMNS), np.int64), bytearray(b"\xa5" * 5), 0
    for row, (body, wanted) in zip(table, pages, strict=True):
        row[[AT, SIZE, CODEC, PREFIX, TO, WANTED]] = len(data), len(body), ZSTD, 0, to, wanted
        data += body + b"\x5a" * (len(body) % 3)
        to += wanted + PADDING + wanted % 5
    return np.frombuffer(bytes(data) + b"\x5a" * PADDING, np.uint8), table


def inflated(
    inflate_pages: Callable[..., None], data: NDArray[np.uint8], table: NDArray[np.int64], *work: Any
) -> tuple[NDArray[np.int64], list[bytes | None]]:
    """Inflate a table's pages: statuses, and what is in the pages that have none; nothing beside them may change."""
    out = np.full(int((table[:, TO] + table[:, WANTED]).max()) + PADDING, 77, np.uint8)
    status, beside = np.full(len(table), -1), np.ones(out.size, bool)
    inflate_pages(data, table, 0, len(table), out, status, *work)
    places = [slice(to, to + wanted) for to, wanted in table[:, [TO, WANTED]].tolist()]
    for place in places:
        beside[place] = False
    assert (out[beside] == 77).all()
    return status, [None if became else out[place].tobytes() for place, became in zip(places, status, strict=True)]
