"""A file's pages on a GPU: ``kernels/inflate.cu`` and ``kernels/bins.cu``, on a lane of `gpucal.backends.cupy_gpu`.

The stored bytes of a block's pages are uploaded as they are, from the memory that the file was read into, and `inflate`
decompresses them. Pages that it will refuse, as their heads tell, are decompressed by pyarrow's codec meanwhile; they
follow, and `inflate` puts them beside the others. So do, when it has ended, the few of which only it could tell. `bins`
makes binned sums of all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpucal.backends.cupy_buffers import Buffer, Room, constants_of
from gpucal.backends.pagewise.leftover import foreseen, inflate_by_codec, verify_checksums
from gpucal.backends.pagewise.statuses import DONE
from gpucal.errors import DeviceError
from gpucal.inputs.parquet.layout import AT, CODEC, COLUMNS, PADDING, PREFIX, SIZE, STORED, TO, WANTED
from gpucal.inputs.signal_file import Loaded
from gpucal.kernels import THREADS, pages_grid, source
from gpucal.science.plan import Plan
from gpucal.science.steps import Array

__all__ = ["PageBlock", "PageKernels", "PageLane"]

# Pages with more bytes between them than this are uploaded one by one: in between are other columns, or row groups.
_GAP = 2**12

# Bytes of a page that is copied as it is, for one warp: an H200 took 0.5 ms for 118 KB of FGS1 by a single one.
_PART = 2**13

# The codec of pages that `inflate` is to leave alone.
_LEFT = -1


class PageKernels:
    """Both kernels, compiled for the current device."""

    def __init__(self) -> None:
        import cupy

        self.inflate, self.bins = (
            cupy.RawModule(code=source(name), options=()).get_function(name) for name in ("inflate", "bins")
        )


@dataclass(frozen=True)
class PageBlock:
    """Some columns of a file: their pages, whose places TO are those on the device.

    Parameters
    ----------
    loaded : Loaded
        The file.
    first : int
        Index of the first page in the file's table.
    pages : ndarray of int64, shape (page, COLUMNS)
        That part of the table.
    """

    loaded: Loaded
    first: int
    pages: NDArray[np.int64]

    @classmethod
    def of(cls, loaded: Loaded, pixels: slice) -> PageBlock:
        """Take some columns."""
        first, last = (int(loaded.table.firsts[place]) for place in (pixels.start, pixels.stop))
        pages = loaded.table.pages[first:last].copy()
        pages[:, TO] -= pages[:1, TO]
        return cls(loaded, first, pages)

    @property
    def room(self) -> int:
        """Bytes of the pages on the device, decompressed and padded."""
        return int((self.pages[-1:, TO] + self.pages[-1:, WANTED]).sum()) + PADDING

    def pieces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the parts of the file that hold the pages, (piece, begin and end), and each page's place in them."""
        order = np.argsort(self.pages[:, AT], kind="stable")
        starts = self.pages[order, AT]
        ends = np.maximum.accumulate(starts + self.pages[order, SIZE])
        new = np.ones(len(order), bool)
        new[1:] = starts[1:] > ends[:-1] + _GAP
        pieces = np.column_stack([starts[new], ends[np.append(new[1:], True)]])
        moved = np.cumsum(pieces[:, 1] - pieces[:, 0]) - pieces[:, 1]  # by which the bytes of a piece move
        places = np.empty(len(order), np.int64)
        places[order] = starts + moved[np.cumsum(new) - 1]
        return pieces, places


class PageLane:
    """The stream and buffers of one block on the device: run it, take its electrons, then finish."""

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._patch = Buffer(np.uint8)
        self._table, self._patch_table, self._facts = (Buffer(np.int64) for _ in range(3))
        self._firsts, self._became, self._patched, self._wrong = (Buffer(np.int32) for _ in range(4))
        self._constants, self._tau_s, self._out = (Buffer(np.float64) for _ in range(3))
        self._saturated = Buffer(np.uint32)
        self._stored, self._inflated = Room(), Room()
        self._copied: NDArray[np.int32] = np.empty(0, np.int32)  # statuses of pages that pyarrow has decompressed

    def run(self, kernels: PageKernels, plan: Plan, pixels: slice, loaded: Loaded) -> tuple[int, float]:
        """Queue a block, but for the download of its electrons.

        Returns how many pages pyarrow's codec decompressed, and the seconds until all pages were decompressed.

        `InputError` is raised, and nothing is queued then, if a page cannot be decompressed.
        """
        start = time.perf_counter()
        block, constants = PageBlock.of(loaded, pixels), constants_of(plan, pixels)
        n, n_pages = pixels.stop - pixels.start, len(block.pages)
        if loaded.strict:
            verify_checksums(loaded.table, loaded.data, block.first, block.first + n_pages, loaded.path)
        pieces, places = block.pieces()
        early = foreseen(loaded.data, block.pages)
        # All buffers come first, so that nothing is queued if an allocation fails.
        stored = self._stored.view(int((pieces[:, 1] - pieces[:, 0]).sum()) + PADDING)
        table, pages = self._table.views(max(1, n_pages), COLUMNS)
        became, status = self._became.views(max(1, n_pages))
        inflated = self._inflated.view(block.room)
        begins, firsts = self._firsts.views(n + 1)
        said, facts = self._facts.views(n, 3)
        numbers, pixel_constants = self._constants.views(n, constants.shape[1])
        times, tau_s = self._tau_s.views(plan.n_bins)
        self.electrons, self.out = self._out.views(n, plan.n_bins)
        self.flags, saturated = self._saturated.views(n)
        self.wrong, wrong = self._wrong.views(n, 2)

        table[:n_pages] = block.pages
        table[:n_pages, AT] = places
        table[:n_pages, CODEC][early != DONE] = _LEFT
        begins[:] = loaded.table.firsts[pixels.start : pixels.stop + 1] - block.first
        said[:], numbers[:], times[:] = loaded.table.facts[pixels], constants, plan.tau_s
        at = 0
        for begin, end in pieces.tolist():
            stored[at : at + end - begin].set(loaded.data[begin:end], stream=self.stream)
            at += end - begin
        for host, device in (
            (table, pages),
            (begins, firsts),
            (said, facts),
            (numbers, pixel_constants),
            (times, tau_s),
        ):
            device.set(host, stream=self.stream)
        self._copied, by_codec = self._copied[:0], 0
        if n_pages:
            self._inflate(kernels, stored, pages, n_pages, inflated, status)
            status.get(stream=self.stream, out=became, blocking=False)
            self._patch_in(kernels, block, early, inflated)
            self.finish()
            by_codec = int(np.count_nonzero(became))
            self._patch_in(kernels, block, np.where(early != DONE, DONE, became), inflated)
        seconds = time.perf_counter() - start
        sizes = (np.int32(size) for size in (loaded.table.n_rows, n, plan.n_bins, plan.pairs_per_bin))
        where = inflated, np.int64(block.room), pages, firsts, facts
        results = np.uint32(plan.saturation), self.out, saturated, wrong
        with self.stream:
            kernels.bins((pages_grid(n),), (THREADS["bins"],), (*where, *sizes, pixel_constants, tau_s, *results))
        saturated.get(stream=self.stream, out=self.flags, blocking=False)
        wrong.get(stream=self.stream, out=self.wrong, blocking=False)
        return by_codec, seconds

    def finish(self) -> None:
        """Wait for what is queued."""
        self.stream.synchronize()
        if (self._copied != DONE).any():
            raise DeviceError("pages that are stored as they are were not copied; do not use this GPU")

    def _patch_in(self, kernels: PageKernels, block: PageBlock, refused: NDArray[np.integer], inflated: Array) -> None:
        """Decompress the pages that the kernel refuses, by their statuses, and have them put beside the others."""
        others = np.flatnonzero(refused)
        if not others.size:
            return
        loaded, some = block.loaded, block.pages[others]
        begins = np.cumsum(some[:, WANTED]) - some[:, WANTED]
        bytes_, on_device = self._patch.views(int(some[:, WANTED].sum()) + PADDING)
        parts = _stored(some, begins)
        table, pages = self._patch_table.views(*parts.shape)
        left, status = self._patched.views(len(parts))
        inflate_by_codec(loaded.table, loaded.data, block.first + others, bytes_, begins, loaded.path)
        table[:] = parts
        for host, device in ((bytes_, on_device), (table, pages)):
            device.set(host, stream=self.stream)
        self._inflate(kernels, on_device, pages, len(parts), inflated, status)
        status.get(stream=self.stream, out=left, blocking=False)
        self._copied = left

    def _inflate(
        self, kernels: PageKernels, data: Array, pages: Array, n_pages: int, inflated: Array, status: Array
    ) -> None:
        """Queue the kernel. Arguments must have the C types of its parameters, as nothing checks them."""
        sizes = np.int64(data.size), np.int64(inflated.size)
        with self.stream:
            kernels.inflate(
                (pages_grid(n_pages),), (THREADS["inflate"],),
                (data, sizes[0], pages, np.int32(n_pages), inflated, sizes[1], status),
            )  # fmt: skip


def _stored(pages: NDArray[np.int64], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a table by which `inflate` copies pages that begin at ``begins``: one warp copies one part of a page."""
    n = np.maximum(1, -(-pages[:, WANTED] // _PART))
    parts, at = np.repeat(pages, n, axis=0), np.repeat(begins, n)
    done = _PART * (np.arange(len(parts)) - np.repeat(np.cumsum(n) - n, n))
    parts[:, AT], parts[:, TO] = at + done, parts[:, TO] + done
    parts[:, SIZE] = parts[:, WANTED] = np.minimum(_PART, parts[:, WANTED] - done)
    parts[:, CODEC], parts[:, PREFIX] = STORED, 0
    return parts
