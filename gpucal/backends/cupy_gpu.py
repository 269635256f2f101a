"""One GPU: it takes blocks of pixels, whole or in pieces, on lanes that are idle.

A lane is a stream, pinned host buffers for both directions, and the same buffers on the device. Each thread that bins
counts uses one; blocks of pages, which are whole files of the usual size, use two. So one's upload overlaps the
other's kernel and download, and the host's work overlaps them all.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Pages
from gpucal.backends.cupy_counts import CountLane
from gpucal.backends.cupy_pages import PageKernels, PageLane
from gpucal.backends.pagewise.leftover import settle
from gpucal.errors import DeviceError, DeviceMemoryError, InputError
from gpucal.inputs.signal_file import Loaded
from gpucal.kernels import source
from gpucal.science.plan import Plan
from gpucal.science.steps import Array

__all__ = ["Gpu", "line_of"]

log = logging.getLogger(__name__)

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, which pinned allocations raise

# Blocks of pages on the device at the same time, each as large as a usual file: one is uploaded while kernels run on
# another.
_IN_FLIGHT = 2


class Gpu:
    """One device, its kernels and its idle lanes."""

    def __init__(self, number: int) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device(number)
        self._idle: SimpleQueue[CountLane] = SimpleQueue()
        self._idle_for_pages: SimpleQueue[PageLane] = SimpleQueue()
        self._room_for_pages = BoundedSemaphore(_IN_FLIGHT)
        with self._device:
            self._kernel = cupy.RawModule(code=source("calibrate"), options=()).get_function("calibrate")
        self.runs_on = _described(cupy, number)

    def bin_counts(
        self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """See `gpucal.backends.numpy_.bin_counts`."""

        def deliver(part: slice, lane: CountLane) -> None:
            lane.download(electrons=True)
            lane.stream.synchronize()
            out[part] = lane.electrons

        return self._counts_in_pieces(plan, pixels, counts, deliver)

    def bin_into(self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: Array) -> NDArray[np.bool_]:
        """Leave the electrons on the device, in ``out`` (pixel, bin)."""

        def deliver(part: slice, lane: CountLane) -> None:
            with lane.stream:
                out[part] = lane.out
            lane.download(electrons=False)
            lane.stream.synchronize()

        return self._counts_in_pieces(plan, pixels, counts, deliver)

    def bin_pages(
        self, plan: Plan, pixels: slice, loaded: Loaded, out: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], Pages]:
        """See `gpucal.backends.pagewise.decode.bin_pages`."""

        def deliver(part: slice, lane: PageLane) -> None:
            lane.out.get(stream=lane.stream, out=lane.electrons, blocking=False)
            lane.finish()
            np.copyto(out[part], lane.electrons)

        def again(one: slice, counts: NDArray[np.uint16]) -> NDArray[np.bool_]:
            place = one.start - pixels.start
            return self.bin_counts(plan, one, counts, out[place : place + 1])

        return self._pages_in_pieces(plan, pixels, loaded, deliver, again)

    def bin_pages_into(self, plan: Plan, pixels: slice, loaded: Loaded, out: Array) -> tuple[NDArray[np.bool_], Pages]:
        """Leave the electrons on the device, in ``out`` (pixel, bin)."""

        def deliver(part: slice, lane: PageLane) -> None:
            with lane.stream:
                out[part] = lane.out
            lane.finish()

        def again(one: slice, counts: NDArray[np.uint16]) -> NDArray[np.bool_]:
            place = one.start - pixels.start
            return self.bin_into(plan, one, counts, out[place : place + 1])

        return self._pages_in_pieces(plan, pixels, loaded, deliver, again)

    def split(self, plan: Plan, counts: NDArray[np.uint16]) -> dict[str, float]:
        """Return the seconds of upload, kernel and download of a block of all a plan's pixels, one after the other."""
        seconds = {}
        with self._typed(f"{counts.nbytes:,} bytes of counts"):
            lane = self._lane()
            parts: dict[str, Callable[[], None]] = {
                "upload": partial(lane.upload, plan, slice(0, plan.n_pixels), counts),
                "kernel": partial(lane.launch, self._kernel, plan),
                "download": partial(lane.download, electrons=True),
            }
            for part, queue in parts.items():
                start = time.perf_counter()
                queue()
                lane.stream.synchronize()
                seconds[part] = time.perf_counter() - start
            self._idle.put(lane)
        return seconds

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Make an array on the device; where there is no room, idle memory is freed first."""
        try:
            return self._allocated(shape, dtype)
        except DeviceMemoryError:
            self._free()
        return self._allocated(shape, dtype)

    def _allocated(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        with self._typed(f"a result of {int(np.prod(shape)) * dtype.itemsize:,} bytes"):
            array = self._cupy.empty(shape, dtype)
            # The pool reuses memory that another stream may still read, and lanes do not wait for other streams.
            self._device.synchronize()
            return array

    def memory(self, size: int) -> NDArray[np.uint8]:
        """Make memory of the host for a file, from which pages are uploaded without another copy of them there."""
        try:
            with self._typed(f"{size:,} bytes of a file in pinned memory"):
                cuda = self._cupy.cuda
                # not from CuPy's pool, which would give up to twice as many bytes, and keep them
                pinned = cuda.PinnedMemoryPointer(cuda.PinnedMemory(size), 0)
                return np.frombuffer(pinned, np.uint8, size)
        except DeviceMemoryError:
            need = f"{size:,} bytes of pinned memory"
            log.warning("%s: a file is uploaded more slowly, as there are no %s", self.runs_on, need)
            return np.empty(size, np.uint8)

    def arranged(self, binned: Array, shape: tuple[int, int]) -> Array:
        """Make a result (bin, column, row) of all pixels' bins, on their device."""
        rows, width = shape
        signal = self.allocate((binned.shape[1], width, rows), binned.dtype)
        with self._typed(f"a result of {binned.nbytes:,} bytes"):
            signal[...] = binned.reshape(rows, width, -1).transpose(2, 1, 0)
            self._device.synchronize()
        return signal

    def change(self, signal: Array, how: Callable[[Array], None]) -> None:
        """Call ``how`` on a result, on its device."""
        with self._typed(f"changing a result of {signal.nbytes:,} bytes"):
            how(signal)
            self._device.synchronize()

    @cached_property
    def _page_kernels(self) -> PageKernels:
        with self._device:
            return PageKernels()

    def _counts_in_pieces(
        self,
        plan: Plan,
        pixels: slice,
        counts: NDArray[np.uint16],
        deliver: Callable[[slice, CountLane], None],
    ) -> NDArray[np.bool_]:
        saturated = np.empty(len(counts), bool)

        def run(part: slice) -> None:
            mine = slice(pixels.start + part.start, pixels.start + part.stop)
            self._run(plan, mine, counts[part], saturated[part], partial(deliver, part))

        self._in_pieces(len(counts), run)
        return saturated

    def _pages_in_pieces(
        self,
        plan: Plan,
        pixels: slice,
        loaded: Loaded,
        deliver: Callable[[slice, PageLane], None],
        again: Callable[[slice, NDArray[np.uint16]], NDArray[np.bool_]],
    ) -> tuple[NDArray[np.bool_], Pages]:
        """Run a block; ``again`` bins a column from its counts, where its pages are not such as the kernel takes."""
        saturated, total = np.empty(pixels.stop - pixels.start, bool), [Pages()]

        def run(part: slice) -> None:
            mine = slice(pixels.start + part.start, pixels.start + part.stop)
            by_codec, seconds, wrong = self._run_pages(plan, mine, loaded, saturated[part], partial(deliver, part))

            def bin_again(pixel: int, counts: NDArray[np.uint16]) -> None:
                one = slice(mine.start + pixel, mine.start + pixel + 1)
                saturated[part.start + pixel] = again(one, counts)[0]

            by_arrow = settle(loaded, mine, wrong, bin_again)
            n_pages = int(loaded.table.firsts[mine.stop] - loaded.table.firsts[mine.start])
            total.append(Pages(n_pages - by_codec - by_arrow, by_codec, by_arrow, seconds))

        self._in_pieces(len(saturated), run)
        return saturated, sum(total, Pages())

    def _in_pieces(self, n_pixels: int, run: Callable[[slice], None]) -> None:
        """Run a block, or its halves, quarters and so on if the device's memory is short."""
        pieces = [slice(0, n_pixels)]
        while pieces:
            part = pieces.pop()
            n = part.stop - part.start
            full: DeviceMemoryError | None = None
            try:
                run(part)
            except DeviceMemoryError as error:
                full = DeviceMemoryError(*error.args)  # a new one: the traceback of the old would keep the lane
            if full is None:
                continue
            self._free()
            if n == 1:
                raise full
            log.warning("%s is short of memory: a block of %d pixels is halved", self.runs_on, n)
            pieces += [slice(part.start + n // 2, part.stop), slice(part.start, part.start + n // 2)]

    def _run(
        self,
        plan: Plan,
        pixels: slice,
        counts: NDArray[np.uint16],
        saturated: NDArray[np.bool_],
        deliver: Callable[[CountLane], None],
    ) -> None:
        """Run a block on a lane; after an error the lane is dropped."""
        need = f"{2 * plan.used_frames * len(counts):,} bytes of counts and {8 * plan.n_bins * len(counts):,} of result"
        with self._typed(need):
            lane = self._lane()
            lane.upload(plan, pixels, counts)
            lane.launch(self._kernel, plan)
            deliver(lane)
            saturated[:] = lane.flags != 0
            self._idle.put(lane)

    def _run_pages(
        self,
        plan: Plan,
        pixels: slice,
        loaded: Loaded,
        saturated: NDArray[np.bool_],
        deliver: Callable[[PageLane], None],
    ) -> tuple[int, float, NDArray[np.int32]]:
        """Run a block on a lane; return what `PageLane.run` does, and what is wrong with columns."""
        n = len(saturated)
        size = int(loaded.table.sizes[pixels].sum())
        need = f"{size:,} bytes of pages, their compressed ones, and {8 * plan.n_bins * n:,} of result"
        with self._room_for_pages, self._typed(need):
            try:
                lane = self._idle_for_pages.get_nowait()
            except Empty:
                lane = PageLane()
            try:
                by_codec, seconds = lane.run(self._page_kernels, plan, pixels, loaded)
            except InputError:
                lane.stream.synchronize()
                self._idle_for_pages.put(lane)
                raise
            deliver(lane)
            saturated[:] = lane.flags != 0
            wrong = lane.wrong.copy()
            self._idle_for_pages.put(lane)
        return by_codec, seconds, wrong

    @contextmanager
    def _typed(self, need: str) -> Iterator[None]:
        """Make the device current, and turn its errors into gpucal's."""
        cuda = self._cupy.cuda
        try:
            with self._device:
                yield
        except (cuda.memory.OutOfMemoryError, cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            if getattr(error, "status", _OUT_OF_MEMORY) == _OUT_OF_MEMORY:
                raise DeviceMemoryError(
                    f"{self.runs_on}: no room for {need} ({line_of(error)}); free device memory or use another backend"
                ) from error
            raise DeviceError(
                f"{self.runs_on}: {line_of(error)}; start again, and if it fails again use another GPU"
            ) from error

    def _lane(self) -> CountLane:
        try:
            return self._idle.get_nowait()
        except Empty:
            return CountLane()

    def _free(self) -> None:
        """Free idle memory: other threads' idle lanes, and the pools."""
        for idle in (self._idle, self._idle_for_pages):
            while not idle.empty():
                with suppress(Empty):
                    idle.get_nowait()
        with self._device:
            self._cupy.get_default_memory_pool().free_all_blocks()
            self._cupy.get_default_pinned_memory_pool().free_all_blocks()


def _described(cupy: ModuleType, number: int) -> str:
    runtime = cupy.cuda.runtime
    facts = runtime.getDeviceProperties(number)
    driver = runtime.driverGetVersion()
    return (
        f"{facts['name'].decode()} (sm_{facts['major']}{facts['minor']}, device {number}), "
        f"driver for CUDA {driver // 1000}.{driver % 1000 // 10}, "
        f"NVRTC {'.'.join(map(str, cupy.cuda.nvrtc.getVersion()))}, CuPy {cupy.__version__}"
    )


def line_of(error: Exception) -> str:
    """Return an error's text as one line."""
    return " ".join(str(error).split())
