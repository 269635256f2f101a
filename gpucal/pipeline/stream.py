"""Reads, bins and returns items at the same time, in order and within a memory budget.

    opening thread    opens the next items, by their footers and small files
    reader thread     takes an opened item, makes its plan and reads its file; waits while the budget is used up
    binning threads   take blocks of pixels from pages to bins; a thread that finds no block left begins the next item
    caller's thread   receives finished items in order, makes a cube of an item's sums, and writes it

So the threads that bin, where the time goes, do nothing else, and all other work happens beside them. On a GPU, two of
them have a block of pages at a time, and the others wait.
"""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend, Destination, Pages
from gpucal.backends.rejection import Repairs, repairs
from gpucal.errors import DeviceError, InputError, InputUnavailable
from gpucal.inputs.calibration_files import BY_NUMBER, Adc, Axis, CalibrationFrames, digest_of, read_raw_frames
from gpucal.inputs.counts import takes_pages
from gpucal.inputs.dataset import Observation
from gpucal.inputs.files import mend_of
from gpucal.inputs.signal_file import Loaded, Signal, fingerprint_of, open_signal
from gpucal.pipeline.calibrated import Calibrated
from gpucal.pipeline.memory import (
    COUNT_BLOCK,
    Budget,
    FileMemory,
    page_block_of,
    result_bytes,
    usual_memory,
    working_bytes,
)
from gpucal.pipeline.provenance import provenance
from gpucal.science.corrections import CORRECTIONS
from gpucal.science.cosmic_rays import NUMPY
from gpucal.science.plan import DQ, Plan, make_plan
from gpucal.science.rejected import Rejected
from gpucal.science.steps import Array
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import Detector
from gpucal.settings.ids import ItemId
from gpucal.settings.table import BY_NOISE

__all__ = [
    "AHEAD",
    "Item",
    "Opened",
    "Outcome",
    "Pipeline",
    "bins_pages",
    "failed",
    "has_fingerprints",
    "open_items",
    "out_of_memory",
    "pixel_blocks",
    "plan_of",
    "require_no_read",
]

# Items opened ahead of the caller. The budget limits full-size items; this number limits small ones.
AHEAD = 4


@dataclass(frozen=True)
class Item:
    """One detector of one observation, and the settings to calibrate it with."""

    obs: Observation
    detector: Detector
    config: Calibration

    @property
    def id(self) -> ItemId:
        """Planet, visit and detector."""
        return self.obs.item(self.detector)


@dataclass(frozen=True, eq=False)
class Opened:
    """An item whose files have been opened and checked; its signal is not read yet.

    Parameters
    ----------
    item : Item
        The item.
    signal, frames, adc, axis
        What its files say.
    fingerprints : dict of str to str
        A fingerprint of each input.
    inputs : str
        One of all of them.
    seconds : float
        Time that opening took.
    """

    item: Item
    signal: Signal
    frames: CalibrationFrames
    adc: Adc
    axis: Axis
    fingerprints: dict[str, str]
    inputs: str
    seconds: float


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
        Fingerprint of all inputs; empty if the item could not be opened.
    seconds : mapping of str to float
        Time spent opening, reading, decoding and binning, summed over threads.
    pages : Pages
        How many pages were decoded in which way.
    """

    item: Item
    result: Calibrated | InputError | None
    inputs: str
    seconds: dict[str, float]
    pages: Pages = field(default_factory=Pages)


@dataclass(frozen=True)
class _Flight:
    """An item being binned."""

    opened: Opened
    plan: Plan
    binned: Array
    saturated: NDArray[np.bool_]
    repairs: list[Repairs]
    memory: FileMemory
    work: list[Future[tuple[dict[str, float], Pages]]]
    reserved: int
    seconds: dict[str, float]


def open_items(
    items: Iterable[Item], *, strict: bool = False, variance: bool = False
) -> Generator[Opened | Outcome, None, None]:
    """Open items one by one; one whose files cannot be used becomes its `Outcome`.

    Parameters
    ----------
    items : iterable of Item
        The items.
    strict : bool
        Check files fully, see `gpucal.inputs.signal_file.open_signal`.
    variance : bool
        Whether the variance of cubes is wanted, which needs the read noise.

    Yields
    ------
    Opened or Outcome
        One for each item.
    """
    for item in items:
        try:
            opened = _open(item, strict, variance)
        except (InputError, MemoryError) as error:
            yield failed(item, error)
        else:
            yield opened


def _open(item: Item, strict: bool, variance: bool) -> Opened:
    began, obs, detector = time.perf_counter(), item.obs, item.detector
    signal = open_signal(obs.signal_path(detector), detector, strict=strict)
    frames, adc, axis = obs.frames(detector), obs.adc(detector), obs.axis(detector)
    if not frames.has_read:
        require_no_read(item, variance)
    prints = {"signal": signal.fingerprint, "calibration": frames.digest, "adc": str(adc), "axes": axis.digest}
    # 0.1 took columns by position: what it made of files in another order is not taken for finished.
    moved = ["columns by number"] if (np.diff(signal.columns) < 0).any() else []
    inputs = hashlib.sha256(" ".join([*prints.values(), *moved]).encode()).hexdigest()
    return Opened(item, signal, frames, adc, axis, prints, inputs, time.perf_counter() - began)


def has_fingerprints(item: Item, known: Mapping[str, object]) -> bool:
    """Tell whether an item's inputs have the fingerprints that `Opened` had; nothing is parsed.

    Raises InputError if a file cannot be read.
    """
    obs, detector = item.obs, item.detector
    return (
        known.get("adc") == str(obs.adc(detector))
        and known.get("axes") == obs.axis(detector).digest
        and known.get("signal") == fingerprint_of(obs.signal_path(detector))
        and str(known.get("calibration")).removesuffix(BY_NUMBER)
        == digest_of(read_raw_frames(obs.calibration_path(detector)))
    )


def bins_pages(destination: Destination) -> bool:
    """Tell whether pages get there without their counts, in the files that gpucal's decoder takes."""
    return takes_pages() and destination.place_pages is not None


def plan_of(opened: Opened) -> Plan:
    """Make the plan of an opened item; raises InputError if its frames do not fit the settings or the axes."""
    item, signal = opened.item, opened.signal
    try:
        return make_plan(item.detector, item.config, opened.frames, opened.adc, opened.axis, signal.n_frames)
    except InputError as error:
        raise InputError(error.problem, error.mend, error.path or signal.path) from error


def require_no_read(item: Item, variance: bool) -> None:
    """Raise InputUnavailable for an item without read noise whose settings, or whose cubes' variance, need it."""
    by_weights = item.config.weights in BY_NOISE
    if by_weights or variance:
        asked = f"--weights {item.config.weights}"
        what, mend = (asked, "--weights plain") if by_weights else ("--variance", "without it")
        path = item.obs.calibration_path(item.detector) / "read.parquet"
        problem = f"read noise is missing, which {what} needs"
        raise InputUnavailable(problem, f"copy it from the competition data, or calibrate {mend}", path)


class Pipeline:
    """A stream of items in progress. Reading begins at once.

    Parameters
    ----------
    items : iterable of Opened or Outcome
        The items to calibrate, in order, and the outcomes of those that are not. A thread of the pipeline iterates.
    backend : Backend
        The backend that computes.
    dtype : dtype
        Type of the signals.
    threads : int
        Threads that bin.
    memory : int, optional
        Limit of the process's peak resident memory, bytes. By default `gpucal.pipeline.memory.DEFAULT_MEMORY`, or
        DEVICE_MEMORY with a GPU, which a single item may exceed if it needs more.
    value_bytes : int, optional
        Bytes that a value of the output takes until the caller asks for the next item. By default those of ``dtype``.
    device : bool
        Leave the signals on the backend's device.

    Raises
    ------
    ConfigError
        If the memory is too little for any item, or GPUCAL_READER names no reader.
    BackendUnavailable
        If results cannot stay on a device.
    """

    def __init__(
        self,
        items: Iterable[Opened | Outcome],
        backend: Backend,
        *,
        dtype: np.dtype[Any],
        threads: int,
        memory: int | None = None,
        value_bytes: int | None = None,
        device: bool = False,
    ) -> None:
        self._items = iter(items)
        self._backend = backend
        self._destination = backend.destination(device)
        self._by_pages = bins_pages(self._destination)
        self._by_own_counts = takes_pages() and backend.count_pages is not None
        self._dtype = dtype
        self._threads = threads
        self._value_bytes = value_bytes or dtype.itemsize
        self._budget = Budget(memory, threads, usual_memory(backend))
        self._binning = ThreadPoolExecutor(threads, "gpucal-bin")
        # One thread each, so that items keep their order: it opens one item while the other reads another.
        self._opening = ThreadPoolExecutor(1, "gpucal-open")
        self._reading = ThreadPoolExecutor(1, "gpucal-read")
        self._next = self._opening.submit(self._open_next)
        self._waiting: deque[Future[_Flight | Outcome | None]] = deque()
        self._read_ahead()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._budget.close()
        self._reading.shutdown(cancel_futures=True)
        self._opening.shutdown(cancel_futures=True)
        self._binning.shutdown(cancel_futures=True)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcome of every item, in order.

        An item's memory counts as free again when the next outcome is asked for.
        """
        while (flight := self._waiting.popleft().result()) is not None:
            self._read_ahead()
            outcome, reserved, spare = self._land(flight)
            del flight
            yield outcome
            del outcome
            self._budget.release(reserved, spare)
            del spare

    def _read_ahead(self) -> None:
        while len(self._waiting) < AHEAD:
            self._waiting.append(self._reading.submit(self._read_next))

    def _open_next(self) -> Opened | Outcome | None:
        """Take the next item, opened, or what became of it; None after the last."""
        self.check_alive()
        return next(self._items, None)

    def _read_next(self) -> _Flight | Outcome | None:
        """Wait for the next item and for memory, read its file and queue its blocks; return None after the last.

        Meanwhile the item after it is opened, and no other: what is opened early takes memory, and may end too late.
        """
        opened = self._next.result()
        if opened is not None:
            self._next = self._opening.submit(self._open_next)
        if not isinstance(opened, Opened):
            return opened
        try:
            return self._read(opened)
        except (InputError, MemoryError) as error:
            return failed(opened.item, error, opened.inputs)

    def _read(self, opened: Opened) -> _Flight:
        signal, began = opened.signal, time.perf_counter()
        plan = plan_of(opened)
        wants_pages = self._by_pages and not plan.cosmic_rays  # which are found in counts
        planned = time.perf_counter() - began
        shape = (plan.n_pixels, plan.n_bins)
        held = signal.size + result_bytes(shape[0] * shape[1], self._dtype, self._value_bytes)
        page_block = self._destination.page_block
        reserved = held + working_bytes(signal, self._threads, page_block, by_pages=wants_pages)
        spare = self._budget.acquire(reserved, signal.path, self.check_alive, signal.size)
        reserved += 0 if spare is None else spare.beyond(signal.size)
        start = time.perf_counter()
        try:
            memory = (self._new_memory(signal.size) if spare is None else spare).holding(signal.size)
            reserved += memory.beyond(signal.size) if spare is None else 0
            loaded = signal.load(memory.space)
            own_counts = plan.cosmic_rays > 0 and self._by_own_counts and not loaded.table.unfit
            by_pages = wants_pages and not loaded.table.unfit
            if wants_pages and not by_pages:  # which the footer did not tell: pyarrow needs more
                self._budget.release(reserved)
                reserved = 0
                more = held + memory.written - signal.size + working_bytes(signal, self._threads, by_pages=False)
                self._budget.acquire(more, signal.path, self.check_alive)
                reserved = more
            if not (by_pages or own_counts):
                _ = loaded.metadata  # here, where no thread that bins waits for it
            out, saturated = self._destination.allocate(shape, self._dtype), np.zeros(plan.n_pixels, bool)
            if by_pages:
                sizes = loaded.table.sizes
                most = page_block or page_block_of(int(sizes.sum()), self._threads)
            else:
                sizes, most = np.full(plan.n_pixels, 2 * signal.n_frames), COUNT_BLOCK
            blocks = iter(list(pixel_blocks(sizes, most)))
        except BaseException:
            self._budget.release(reserved)
            raise
        found: list[Repairs] = []
        job: tuple[Any, ...]
        if by_pages:
            job = self._bin_pages, plan, loaded, blocks, out, saturated
        else:
            job = self._bin_counts, plan, loaded, blocks, out, saturated, found, own_counts
        work = [self._binning.submit(*job) for _ in range(self._threads)]
        seconds = {"open": opened.seconds + planned, "read": time.perf_counter() - start}
        return _Flight(opened, plan, out, saturated, found, memory, work, reserved, seconds)

    def _new_memory(self, size: int) -> FileMemory:
        """Make memory for a file, and for others later, which differ by a tenth or so.

        The usual memory takes nothing before it is written to. A backend's own kind is taken at once, and takes long to
        make. It has room for larger files where that is free.
        """
        if self._backend.memory is None:
            return FileMemory(self._destination.memory(size + size // 4), 0)
        room = self._budget.take(size // 16)
        try:
            return FileMemory(self._destination.memory(size + room), size + room)
        except BaseException:
            self._budget.release(room)
            raise

    def check_alive(self) -> None:
        """Raise RuntimeError if the interpreter is exiting, as it waits for this thread."""
        self._binning.submit(int)

    def _bin_pages(
        self, plan: Plan, loaded: Loaded, blocks: Iterator[slice], out: NDArray[Any], saturated: NDArray[np.bool_]
    ) -> tuple[dict[str, float], Pages]:
        """Bin until ``blocks`` is empty. All threads share that iterator, which is safe as it is a list's."""
        place = self._destination.place_pages
        assert place is not None
        start, total = time.perf_counter(), Pages()
        with _emptied(blocks):
            for pixels in blocks:
                saturated[pixels], pages = place(plan, pixels, loaded, out[pixels])
                total += pages
        spent = time.perf_counter() - start
        return {"decode": total.seconds, "bin": spent - total.seconds}, total

    def _bin_counts(
        self,
        plan: Plan,
        loaded: Loaded,
        blocks: Iterator[slice],
        out: NDArray[Any],
        saturated: NDArray[np.bool_],
        found: list[Repairs],
        own: bool,
    ) -> tuple[dict[str, float], Pages]:
        """Do the same with counts, which pyarrow decodes, or gpucal; add to ``found`` what cosmic rays hit."""
        decoding, binning, total = 0.0, 0.0, Pages()
        start = time.perf_counter()
        with _emptied(blocks):
            for pixels, counts, pages in self._own_counts(loaded, blocks) if own else _arrow_counts(loaded, blocks):
                decoded = time.perf_counter()
                saturated[pixels] = self._destination.place_counts(plan, pixels, counts, out[pixels])
                if plan.cosmic_rays:
                    found.append(repairs(plan, pixels, counts, self._backend.search or NUMPY))
                decoding, binning = decoding + decoded - start, binning + time.perf_counter() - decoded
                total += pages
                start = time.perf_counter()
        return {"decode": decoding + time.perf_counter() - start, "bin": binning}, total

    def _own_counts(self, loaded: Loaded, blocks: Iterator[slice]) -> Iterator[tuple[slice, NDArray[np.uint16], Pages]]:
        assert self._backend.count_pages is not None
        for pixels in blocks:
            yield pixels, *self._backend.count_pages(pixels, loaded)

    def _land(self, flight: _Flight | Outcome) -> tuple[Outcome, int, FileMemory | None]:
        """Wait for an item; return its outcome, the bytes it reserved, and its file's memory, to be used again."""
        if isinstance(flight, Outcome):
            return flight, 0, None
        try:
            outcome = self._finished(flight)
        except (InputError, MemoryError) as error:
            wait(flight.work)  # their file and their memory are in use until they end
            outcome = failed(flight.opened.item, error, flight.opened.inputs)
        return outcome, flight.reserved, flight.memory

    def _finished(self, flight: _Flight) -> Outcome:
        """Wait for an item's last block and make its product."""
        seconds, total = dict(flight.seconds), Pages()
        for work in flight.work:
            spent, pages = work.result()
            for stage, more in spent.items():
                seconds[stage] = seconds.get(stage, 0.0) + more
            total += pages
        opened, plan = flight.opened, flight.plan
        obs, detector, config = opened.item.obs, opened.item.detector, opened.item.config
        start = time.perf_counter()
        signal = self._destination.arranged(flight.binned, (detector.shape[0], detector.width))
        seconds["bin"] = seconds.get("bin", 0.0) + time.perf_counter() - start
        dq = plan.dq.copy()
        dq[flight.saturated] |= np.uint8(DQ.SATURATED)
        dq = np.ascontiguousarray(dq.reshape(detector.shape[0], detector.width).T)
        rejected = Rejected.joined([one.rejected for one in flight.repairs])
        dq[rejected.flagged(*dq.shape)] |= np.uint8(DQ.COSMIC)
        if rejected.pairs.size:
            self._destination.change(signal, partial(_repaired, found=flight.repairs))
        for correction in CORRECTIONS:
            dq, change = correction.plan(config, dq)
            if change is not None:
                self._destination.change(signal, change)
        history = provenance(
            config,
            plan,
            dq,
            adc=opened.adc,
            files=obs.files(detector),
            inputs=opened.inputs,
            fingerprints=opened.fingerprints,
            backend=self._backend.name,
            device=self._backend.runs_on,
        )
        if config.cosmic_rays:
            history["cosmic_rays"] = {"rejected_pairs": int(rejected.pairs.sum()), "found_on": "host"}
        axes = plan.time_h, opened.axis.wavelength_um
        cal = Calibrated(
            *obs.key, detector, signal, dq, *axes, history, plan, time_bounds=plan.bounds_h, rejections=rejected
        )
        return Outcome(opened.item, cal, opened.inputs, seconds, total)


def pixel_blocks(sizes: NDArray[np.integer[Any]], most: int) -> Iterator[slice]:
    """Cut pixels into blocks of at most so many bytes, but of a pixel at least.

    Parameters
    ----------
    sizes : ndarray of int, shape (pixel,)
        Bytes of each pixel.
    most : int
        Bytes of a block.

    Yields
    ------
    slice
        The pixels of a block.
    """
    ends, first, begin = np.cumsum(sizes).tolist(), 0, 0
    while first < len(ends):
        last = max(bisect_right(ends, begin + most), first + 1)
        yield slice(first, last)
        first, begin = last, ends[last - 1]


def _arrow_counts(loaded: Loaded, blocks: Iterator[slice]) -> Iterator[tuple[slice, NDArray[np.uint16], Pages]]:
    for pixels, counts in loaded.counts(blocks):
        yield pixels, counts, Pages(arrow=int(loaded.table.firsts[pixels.stop] - loaded.table.firsts[pixels.start]))


def _repaired(signal: Array, found: list[Repairs]) -> None:
    """Put the sums without rejected pairs in the place of those with them."""
    for one in found:
        for place, value in zip(one.rejected.places(signal.shape[1]), one.values.tolist(), strict=True):
            signal[place] = value


@contextmanager
def _emptied(blocks: Iterator[slice]) -> Iterator[None]:
    """Leave nothing of an item that has failed to the other threads."""
    try:
        yield
    except BaseException:
        deque(blocks, maxlen=0)
        raise


def failed(item: Item, error: InputError | MemoryError, inputs: str = "") -> Outcome:
    """Return the outcome of an item that failed; a device's error is raised, as the next item would have it too.

    ``inputs`` is known if the item had been opened.
    """
    if isinstance(error, DeviceError):
        raise error
    # Drop the traceback, which would keep the item's memory in a circle: frame, flight, future, error, frame.
    error = error.with_traceback(None)
    plain = error if isinstance(error, InputError) else out_of_memory()
    return Outcome(item, plain.at(str(item.id)), inputs, {})


def out_of_memory() -> InputUnavailable:
    """Return the error of an item that the process had too little memory for.

    It is made anew, as a caught error's traceback would keep the memory that is left.
    """
    return InputUnavailable("ran out of memory", mend_of(MemoryError()))
