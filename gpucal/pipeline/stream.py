"""Reads, decodes, bins and returns items at the same time, in order and within a memory budget.

    reader thread     opens each item, makes its plan and reads its whole file; waits while the budget is used up
    binning threads   decode blocks of pixels and bin them; a thread that finds no block left begins the next item
    caller's thread   receives finished items in order, and writes one while the threads work on the next

So decoding, the cost that cannot be avoided, never pauses, and all other work happens beside it.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend, Memory
from gpucal.errors import DeviceError, InputError
from gpucal.inputs.calibration_files import Axis
from gpucal.inputs.counts import Loaded, choose_decoder, prepare_decoder
from gpucal.inputs.dataset import Observation
from gpucal.inputs.signal_file import open_signal
from gpucal.pipeline.calibrated import Calibrated
from gpucal.pipeline.memory import BLOCK, Budget
from gpucal.pipeline.provenance import provenance
from gpucal.science.corrections import CORRECTIONS
from gpucal.science.plan import DQ, Plan, make_plan
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import Detector

__all__ = ["Item", "Outcome", "Pipeline", "out_of_memory", "pixel_blocks"]

# Items opened ahead of the caller. The budget limits full-size items; this number limits small ones.
_AHEAD = 4


@dataclass(frozen=True)
class Item:
    """One detector of one observation, and the settings to calibrate it with."""

    obs: Observation
    detector: Detector
    config: Calibration


@dataclass(frozen=True)
class Outcome:
    """The end of an item: its result, or why it has none.

    Parameters
    ----------
    item : Item
        The item.
    result : Calibrated, InputError or None
        None if the item was not wanted.
    inputs : str
        Fingerprint of all inputs; empty after an error.
    began : float
        `time.perf_counter` when the item was opened.
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


class Pipeline:
    """A stream of items in progress. Reading begins at once, before a backend is chosen.

    Parameters
    ----------
    items : iterable of Item
        The items to calibrate, in order.
    dtype : dtype
        Type of the signals.
    threads : int
        Threads that decode and bin.
    memory : int, optional
        Limit of the process's peak resident memory, bytes. By default `gpucal.pipeline.memory.DEFAULT_MEMORY`, which
        a single item may exceed if it needs more.
    value_bytes : int, optional
        Bytes that a value of the output takes until the caller asks for the next item. By default those of ``dtype``.
    wanted : callable, optional
        Decides from an item and the fingerprint of its inputs whether to calibrate it. The reader thread calls it.
    device : bool
        Leave the signals on the backend's device.
    strict : bool
        Check files fully, see `gpucal.inputs.signal_file.open_signal`.

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
        strict: bool = False,
    ) -> None:
        self._items = iter(items)
        self._dtype = dtype
        self._threads = threads
        self._value_bytes = value_bytes or dtype.itemsize
        self._wanted = wanted
        self._device = device
        self._strict = strict
        self._budget = Budget(memory, threads)
        self._decoder = prepare_decoder(threads)
        self._memory: Future[Memory] = Future()
        self._binning = ThreadPoolExecutor(threads, "gpucal-bin")
        self._reading = ThreadPoolExecutor(1, "gpucal-read")
        self._waiting: deque[tuple[Item, Future[_Flight | Outcome]]] = deque()
        try:
            self._read_ahead()
        except BaseException:  # raised by the caller's iterable: no `with` was entered yet that would end the threads
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._budget.close()
        self._memory.cancel()
        self._reading.shutdown(cancel_futures=True)
        self._binning.shutdown(cancel_futures=True)

    def wait_for_data(self) -> None:
        """Wait until the first file is in memory.

        Importing and compiling a backend needs the interpreter. Decoding does not, so the two overlap well. Opening a
        file needs it too: side by side, both take three times as long.
        """
        wait([reading for _, reading in list(self._waiting)[:1]])

    def outcomes(self, backend: Backend) -> Iterator[Outcome]:
        """Yield the outcome of every item, in order.

        An item's memory counts as free again when the next outcome is asked for.
        """
        memory = backend.memory(self._device)
        self._memory.set_result(memory)
        while self._waiting:
            item, reading = self._waiting.popleft()
            self._read_ahead()
            outcome, reserved, spare = _await(item, reading, partial(_finished, backend, memory))
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
        signal = open_signal(obs.signal_path(detector), detector, strict=self._strict)
        frames, adc, axis = obs.frames(detector), obs.adc(detector), obs.axis(detector)
        axes = hashlib.sha256()
        for values in (axis.time_h, axis.wavelength_um, axis.integration_s):
            axes.update(b"-" if values is None else values.tobytes())
        prints = {"signal": signal.fingerprint, "calibration": frames.digest, "adc": str(adc), "axes": axes.hexdigest()}
        # 0.1 took columns by position: what it made of files in another order is not taken for finished.
        moved = ["columns by number"] if (np.diff(signal.columns) < 0).any() else []
        inputs = hashlib.sha256(" ".join([*prints.values(), *moved]).encode()).hexdigest()
        if not self._wanted(item, inputs):
            return Outcome(item, None, inputs, began, {})
        try:
            plan = make_plan(detector, item.config, frames, adc, axis, signal.n_frames)
        except InputError as error:
            raise InputError(error.problem, error.mend, error.path or signal.path) from error
        opened = time.perf_counter()
        shape = (plan.n_bins, detector.width, detector.shape[0])
        reserved = signal.size + int(np.prod(shape)) * self._value_bytes
        if choose_decoder(self._decoder, plain=signal.plain and not self._strict) == "pyarrow":
            reserved += signal.metadata_bytes
        spare = self._budget.acquire(reserved, signal.path, self._check_alive)
        start = time.perf_counter()
        try:
            loaded = signal.load(self._decoder, spare)
            empty = self._memory.result().empty if self._device else np.empty  # the host needs no backend
            out, saturated = empty(shape, self._dtype), np.zeros(plan.n_pixels, bool)
            units = iter(list(loaded.units(pixel_blocks(plan, signal.n_frames), self._budget.unit)))
        except BaseException:
            self._budget.release(reserved)
            raise
        work = [
            self._binning.submit(self._decode_and_bin, plan, loaded, units, out, saturated)
            for _ in range(self._threads)
        ]
        seconds = {"open": opened - began, "read": time.perf_counter() - start}
        return _Flight(item, axis, plan, inputs, prints, out, saturated, loaded.buffer, work, reserved, began, seconds)

    def _check_alive(self) -> None:
        """Raise RuntimeError if the interpreter is exiting, as it waits for this thread."""
        self._binning.submit(int)

    def _decode_and_bin(
        self,
        plan: Plan,
        loaded: Loaded,
        units: Iterator[list[slice]],
        out: NDArray[Any],
        saturated: NDArray[np.bool_],
    ) -> dict[str, float]:
        """Decode and bin until ``units`` is empty. All threads share that iterator, which is safe as it is a list's."""
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
            deque(units, maxlen=0)  # the item has failed: the other threads must find nothing of it
            raise
        return {"decode": decoding + time.perf_counter() - start, "bin": binning}


def pixel_blocks(plan: Plan, n_frames: int) -> Iterator[slice]:
    """Cut the pixels into blocks of about 6 MiB of counts.

    Each block stays inside one spatial row, so that its result is a slice of the output.
    """
    height, width = plan.detector.shape[0], plan.detector.width
    step = min(width, max(1, BLOCK // (2 * n_frames)))
    for y in range(height):
        for x in range(0, width, step):
            yield slice(y * width + x, y * width + min(x + step, width))


def _await(
    item: Item, reading: Future[_Flight | Outcome], finish: Callable[[_Flight], Outcome]
) -> tuple[Outcome, int, BytesIO | None]:
    """Wait for an item; return its outcome, the bytes it reserved, and its buffer, which may be used again."""
    began, reserved = time.perf_counter(), 0
    try:
        flight = reading.result()
        if not isinstance(flight, _Flight):
            return flight, 0, None
        reserved = flight.reserved
        return finish(flight), reserved, flight.buffer
    except (InputError, MemoryError) as error:
        if isinstance(error, DeviceError):  # the device's memory: the next item would lack it too
            raise
        failed = error if isinstance(error, InputError) else out_of_memory()
        # Drop the traceback, which would keep the item's memory in a circle: frame, flight, future, error, frame.
        plain = failed.with_traceback(None).at(item.obs.where(item.detector))
        return Outcome(item, plain, "", began, {}), reserved, None


def out_of_memory() -> InputError:
    """Return the error of an item that the process had too little memory for.

    It is made anew, as a caught error's traceback would keep the memory that is left.
    """
    return InputError("ran out of memory", "lower --workers or --memory, or end what else needs some")


def _finished(backend: Backend, memory: Memory, flight: _Flight) -> Outcome:
    """Wait for an item's last block and make its product."""
    seconds = dict(flight.seconds)
    for work in flight.work:
        for stage, spent in work.result().items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    obs, detector, config = flight.item.obs, flight.item.detector, flight.item.config
    signal, dq = flight.signal, flight.plan.dq.copy()
    dq[flight.saturated] |= np.uint8(DQ.SATURATED)
    dq = np.ascontiguousarray(dq.reshape(detector.shape[0], detector.width).T)
    for correction in CORRECTIONS:
        dq, change = correction.plan(config, dq)
        if change is not None:
            memory.change(signal, change)
    history = provenance(
        config,
        flight.plan,
        dq,
        inputs=flight.inputs,
        fingerprints=flight.fingerprints,
        backend=backend.name,
        device=backend.runs_on,
    )
    cal = Calibrated(
        *obs.key, detector, signal, dq, flight.plan.time_h, flight.axis.wavelength_um, history, flight.plan
    )
    return Outcome(flight.item, cal, flight.inputs, flight.began, seconds)
