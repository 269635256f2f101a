"""Reading ahead, decoding, binning and handing over at the same time: items in order, within a memory budget.

    reader thread     opens item after item, folds its plan, reads its file whole; waits while the budget is used up
    binning threads   decode pixel blocks and bin them; one that finds no block left begins the next item
    the caller        takes finished items in order, and writes one while the next are worked on

So decoding, the cost that cannot be avoided, goes on all the time, and everything else happens beside it.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Condition
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend, Memory
from gpucal.config import Calibration
from gpucal.dataset import Observation
from gpucal.decoders import Loaded, prepare_decoder
from gpucal.detectors import Detector
from gpucal.errors import ConfigError, InputError
from gpucal.frames import Axis
from gpucal.plan import DQ, Plan, make_plan
from gpucal.product import Calibrated
from gpucal.provenance import provenance
from gpucal.reader import open_signal
from gpucal.repair import plan_repair

__all__ = ["BLOCK", "DEFAULT_MEMORY", "Item", "Line", "Outcome", "pixel_blocks"]

DEFAULT_MEMORY = 900_000_000
"""Peak resident memory to stay below by default, bytes; a single larger item is still worked on, alone."""

# What the process holds beside items and what it decodes, bytes: interpreter, libraries, freed memory kept by
# allocators (340 MB measured with Polars and Numba after ten observations).
_PROCESS = 360_000_000

# Bytes of raw counts in a pixel block: enough that a call's overhead vanishes, little beside the result.
BLOCK = 6 * 2**20

# The most bytes of counts decoded in one call (more is little faster: benchmarks/readers.py), and bytes that parsing
# the footer takes in each call of Polars (33 MB measured with AIRS-CH0, 11392 columns).
_UNIT, _FOOTER = 64 * 2**20, 33_000_000

# Items opened before they are taken. The budget is what limits full-size ones; this limits small ones.
_AHEAD = 4


@dataclass(frozen=True)
class Item:
    """One detector of one observation, and the settings to calibrate it with."""

    obs: Observation
    detector: Detector
    config: Calibration


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Parameters
    ----------
    item : Item
        Which.
    result : Calibrated, InputError or None
        None if it was not wanted.
    inputs : str
        Fingerprint of everything it was made from; empty after an error.
    began : float
        `time.perf_counter` when it was opened.
    seconds : mapping of str to float
        Time spent opening, reading, decoding and binning, summed over threads.
    """

    item: Item
    result: Calibrated | InputError | None
    inputs: str
    began: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Flight:
    """An item being decoded and binned."""

    item: Item
    axis: Axis
    plan: Plan
    inputs: str
    fingerprints: dict[str, str]
    signal: NDArray[Any]
    saturated: NDArray[np.bool_]
    buffer: BytesIO
    work: list[Future[dict[str, float]]]
    reserved: int
    began: float
    seconds: dict[str, float]


class Line:
    """Items on their way through; reading begins at once, before a backend is chosen.

    Parameters
    ----------
    items : iterable of Item
        What to calibrate, in order.
    dtype : dtype
        Of the signals.
    threads : int
        Threads that decode and bin.
    memory : int, optional
        Peak resident memory of the process to stay below, bytes. By default `DEFAULT_MEMORY`, not enforced on an item
        that needs more by itself.
    value_bytes : int, optional
        Bytes a value of the output takes until the caller asks for the next item; by default those of ``dtype``.
    wanted : callable, optional
        From an item and the fingerprint of its inputs to whether to calibrate it; called by the reader thread.
    device : bool
        Leave the signals on the backend's device.

    Raises
    ------
    ConfigError
        If the memory is too little for any item.
    """

    def __init__(
        self,
        items: Iterable[Item],
        *,
        dtype: np.dtype[Any],
        threads: int,
        memory: int | None = None,
        value_bytes: int | None = None,
        wanted: Callable[[Item, str], bool] = lambda item, inputs: True,
        device: bool = False,
    ) -> None:
        self._items = iter(items)
        self._dtype = dtype
        self._threads = threads
        self._value_bytes = value_bytes or dtype.itemsize
        self._wanted = wanted
        self._device = device
        self._budget = _Budget(memory, threads)
        self._decoder = prepare_decoder(threads)
        self._memory: Future[Memory] = Future()
        self._binning = ThreadPoolExecutor(threads, "gpucal-bin")
        self._reading = ThreadPoolExecutor(1, "gpucal-read")
        self._waiting: deque[tuple[Item, Future[_Flight | Outcome]]] = deque()
        try:
            self._read_ahead()
        except BaseException:  # of the caller's own iterable: no `with` has been entered that would end the threads
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._budget.close()
        self._memory.cancel()
        self._reading.shutdown(cancel_futures=True)
        self._binning.shutdown(cancel_futures=True)

    def wait_for_data(self) -> None:
        """Wait until the first file is in memory.

        Importing and compiling a backend then takes the interpreter only from decoding, which does not need it; beside
        the opening of a file, both take three times as long.
        """
        wait([reading for _, reading in list(self._waiting)[:1]])

    def outcomes(self, backend: Backend) -> Iterator[Outcome]:
        """Give every item back, in order.

        Parameters
        ----------
        backend : Backend
            What bins.

        Yields
        ------
        Outcome
            One an item. Its memory counts as free again when the next is asked for.
        """
        memory = backend.memory(self._device)
        self._memory.set_result(memory)
        while self._waiting:
            item, reading = self._waiting.popleft()
            self._read_ahead()
            outcome, reserved, spare = _await(item, reading, partial(_landed, backend, memory))
            del reading
            yield outcome
            del outcome
            self._budget.release(reserved, spare)
            del spare

    def _read_ahead(self) -> None:
        while len(self._waiting) < _AHEAD and (item := next(self._items, None)) is not None:
            self._waiting.append((item, self._reading.submit(self._read, item)))

    def _read(self, item: Item) -> _Flight | Outcome:
        """Open an item, wait for memory, read its file and queue its blocks."""
        self._check_alive()
        began = time.perf_counter()
        obs, detector = item.obs, item.detector
        signal = open_signal(obs.signal_path(detector), detector)
        frames, adc, axis = obs.frames(detector), obs.adc(detector), obs.axis(detector)
        axes = hashlib.sha256()
        for values in (axis.time_h, axis.wavelength_um, axis.integration_s):
            axes.update(b"-" if values is None else values.tobytes())
        prints = {"signal": signal.fingerprint, "calibration": frames.digest, "adc": str(adc), "axes": axes.hexdigest()}
        inputs = hashlib.sha256(" ".join(prints.values()).encode()).hexdigest()
        if not self._wanted(item, inputs):
            return Outcome(item, None, inputs, began, {})
        try:
            plan = make_plan(detector, item.config, frames, adc, axis, signal.n_frames)
        except InputError as error:
            raise InputError(error.problem, error.mend, error.path or signal.path) from error
        opened = time.perf_counter()
        shape = (plan.n_bins, detector.width, detector.shape[0])
        reserved = signal.size + int(np.prod(shape)) * self._value_bytes
        spare = self._budget.acquire(reserved, signal.path, self._check_alive)
        start = time.perf_counter()
        try:
            loaded = signal.load(self._decoder, spare)
        except BaseException:
            self._budget.release(reserved)
            raise
        empty = self._memory.result().empty if self._device else np.empty  # on the host, no backend is waited for
        out, saturated = empty(shape, self._dtype), np.zeros(plan.n_pixels, bool)
        units = iter(list(loaded.units(pixel_blocks(plan, signal.n_frames), self._budget.unit)))
        work = [
            self._binning.submit(self._decode_and_bin, plan, loaded, units, out, saturated)
            for _ in range(self._threads)
        ]
        seconds = {"open": opened - began, "read": time.perf_counter() - start}
        return _Flight(item, axis, plan, inputs, prints, out, saturated, loaded.buffer, work, reserved, began, seconds)

    def _check_alive(self) -> None:
        """Raise RuntimeError if the interpreter is exiting: it waits for the reader, and nobody asks for more."""
        self._binning.submit(int)

    def _decode_and_bin(
        self,
        plan: Plan,
        loaded: Loaded,
        units: Iterator[list[slice]],
        out: NDArray[Any],
        saturated: NDArray[np.bool_],
    ) -> dict[str, float]:
        """Take units off an iterator that all threads share (a list's, so that they may) until there are none."""
        decoding = binning = 0.0
        start = time.perf_counter()
        try:
            for pixels, counts in loaded.decode(units):
                memory = self._memory.result()
                decoded = time.perf_counter()
                y, first = divmod(pixels.start, plan.detector.width)
                saturated[pixels] = memory.bin_into(plan, pixels, counts, out[:, first : first + len(counts), y])
                decoding, binning = decoding + decoded - start, binning + time.perf_counter() - decoded
                start = time.perf_counter()
        except BaseException:
            deque(units, maxlen=0)  # the item has failed: leave nothing of it to the other threads
            raise
        return {"decode": decoding + time.perf_counter() - start, "bin": binning}


def pixel_blocks(plan: Plan, n_frames: int) -> Iterator[slice]:
    """Cut the pixels into blocks; each stays inside one spatial row, so that its result is a slice of the output.

    Parameters
    ----------
    plan : Plan
        Whose pixels.
    n_frames : int
        Frames in the signal file.

    Yields
    ------
    slice
        Consecutive pixels, about 6 MiB of counts.
    """
    height, width = plan.detector.shape[0], plan.detector.width
    step = min(width, max(1, BLOCK // (2 * n_frames)))
    for y in range(height):
        for x in range(0, width, step):
            yield slice(y * width + x, y * width + min(x + step, width))


def _await(
    item: Item, reading: Future[_Flight | Outcome], land: Callable[[_Flight], Outcome]
) -> tuple[Outcome, int, BytesIO | None]:
    """Wait for an item; return what became of it, the bytes it reserved, and the buffer that it is done with."""
    began, reserved = time.perf_counter(), 0
    try:
        flight = reading.result()
        if not isinstance(flight, _Flight):
            return flight, 0, None
        reserved = flight.reserved
        return land(flight), reserved, flight.buffer
    except InputError as error:
        # Without its traceback, which would keep the item's memory: frame, flight, future, error, frame.
        plain = error.with_traceback(None).at(item.obs.where(item.detector))
        return Outcome(item, plain, "", began, {}), reserved, None


def _landed(backend: Backend, memory: Memory, flight: _Flight) -> Outcome:
    """Wait for an item's last block and make the product of it."""
    seconds = dict(flight.seconds)
    for work in flight.work:
        for stage, spent in work.result().items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    obs, detector, config = flight.item.obs, flight.item.detector, flight.item.config
    signal, dq = flight.signal, flight.plan.dq.copy()
    dq[flight.saturated] |= np.uint8(DQ.SATURATED)
    dq = np.ascontiguousarray(dq.reshape(detector.shape[0], detector.width).T)
    dq, change = plan_repair(dq, config.bad_pixels)
    if change is not None:
        memory.change(signal, change)
    history = provenance(config, flight.inputs, flight.fingerprints, backend.name, backend.runs_on)
    cal = Calibrated(
        *obs.key, detector, signal, dq, flight.plan.time_h, flight.axis.wavelength_um, history, flight.plan
    )
    return Outcome(flight.item, cal, flight.inputs, flight.began, seconds)


def _decode_bytes(unit: int) -> int:
    """Bound what one thread holds while it decodes so many bytes of counts: footer, table, a block of it, its pages."""
    return _FOOTER + unit + unit // 2 + 2 * BLOCK


class _Budget:
    """Bytes of files and outputs that may be in memory at once, and how much a thread may decode in one call."""

    def __init__(self, memory: int | None, threads: int) -> None:
        self.strict = memory is not None
        total = DEFAULT_MEMORY if memory is None else memory
        least = _PROCESS + threads * _decode_bytes(BLOCK)
        if self.strict and total < least:
            raise ConfigError(f"memory = {total:,} bytes: {threads} threads need {least:,} beside the data; raise it")
        share = (total - _PROCESS) // (2 * threads)  # half of the rest may be decoded counts
        self.unit = max(BLOCK, min(_UNIT, (share - _decode_bytes(0)) * 2 // 3))
        self.other = _PROCESS + threads * _decode_bytes(self.unit)
        self.total = total - self.other
        self._threads = threads
        self._used, self._closed = 0, False
        self._spare: list[BytesIO] = []
        self._changed = Condition()

    def acquire(self, wanted: int, path: Path, check_alive: Callable[[], None]) -> BytesIO | None:
        """Wait until so many bytes are free, or nothing is in use; return a buffer to use again, if there is one."""
        if self.strict and wanted > self.total:
            # The other half is as much as this one, within what decoding can use.
            least, most = (self._threads * _decode_bytes(unit) for unit in (BLOCK, _UNIT))
            raise InputError(
                f"needs {_PROCESS + wanted + min(max(wanted, least), most):,} bytes of memory, "
                f"more than the {self.total + self.other:,} allowed",
                "raise --memory or lower --workers",
                path,
            )
        with self._changed:
            while not (self._closed or not self._used or self._used + wanted <= self.total):
                check_alive()
                self._changed.wait(timeout=0.5)
            if self._closed:
                raise CancelledError
            self._used += wanted
            spare = self._spare.pop() if self._spare else None
            while self._spare and self._used + sum(buffer.getbuffer().nbytes for buffer in self._spare) > self.total:
                self._spare.pop()
            return spare

    def release(self, returned: int, spare: BytesIO | None = None) -> None:
        """Give bytes back, and a buffer to use again that was among them."""
        with self._changed:
            self._used -= returned
            if spare is not None:
                self._spare.append(spare)
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
