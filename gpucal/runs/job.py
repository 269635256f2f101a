"""The work of one process in a run: it calibrates missing items in order, while there is time."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpucal.backends import choose
from gpucal.errors import InputError, OutputError, OutputLost
from gpucal.inputs.dataset import Observation
from gpucal.pipeline.calibrated import arrays_of
from gpucal.pipeline.stream import Item, Opened, Outcome, Pipeline, failed, open_items, out_of_memory
from gpucal.results.origin import home_of
from gpucal.results.records import is_finished
from gpucal.results.writer import Store
from gpucal.runs.summary import Summary
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.ids import ItemId

__all__ = ["Job"]

log = logging.getLogger(__name__)

# Seconds between looks at items that other runs have claimed.
_PATIENCE = 0.5


@dataclass(frozen=True)
class Job:
    """The settings of a run, the same for every item; picklable.

    Parameters
    ----------
    out : Path
        The results folder.
    config : Calibration
        The settings.
    dtype : {'float32', 'float64'}
        Type of the stored arrays.
    product : {'cubes', 'light-curves'}
        The product to store.
    variance : bool
        Store the cubes' variances too.
    backend : str, optional
        The backend that computes.
    threads : int
        Threads that decode and bin.
    memory : int, optional
        Limit of the peak resident memory, bytes.
    overwrite : bool
        Calibrate finished items again.
    strict : bool
        Check input files fully.
    resume_from : tuple of Path
        Other results folders, whose items count as done.
    """

    out: Path
    config: Calibration
    dtype: str
    product: str
    variance: bool
    backend: str | None
    threads: int
    memory: int | None
    overwrite: bool = False
    strict: bool = False
    resume_from: tuple[Path, ...] = ()

    @property
    def settings(self) -> str:
        """All settings that decide an item's contents, as TOML."""
        output = {"dtype": self.dtype, "product": self.product, "variance": self.variance}
        table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in output.items())
        return f"{self.config.to_toml()}\n[output]\n{table}\n"

    @property
    def settings_hash(self) -> str:
        """Hash of the settings, which commit records hold."""
        identity = json.dumps([self.config.content_hash, self.dtype, self.product, self.variance])
        return hashlib.sha256(identity.encode()).hexdigest()

    def work(
        self,
        observations: Iterable[Observation],
        summary: Summary,
        *,
        store: Store,
        beside: int = 0,
        until: float | None = None,
        stop: Callable[[], bool] = lambda: False,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        """Calibrate the items that are missing, of both detectors.

        Parameters
        ----------
        observations : iterable of Observation
            The observations.
        summary : Summary
            Counts items as they end, so that it is right after an interrupt too.
        store : Store
            Writes the items into the results folder; the caller closes it.
        beside : int
            The number of items that other processes still have to write there; used to say how much space a full disk
            lacks.
        until : float, optional
            `time.monotonic` at which all work must have ended.
        stop : callable
            Returns True to begin no further item.
        tick : callable
            Called after each item.

        Raises
        ------
        BackendUnavailable
            If the chosen backend cannot run here.
        OutputError
            If the folder cannot be written at all.
        """
        detectors = [self.config.cropped(detector) for detector in DETECTORS.values()]
        waiting = deque(Item(o, d, self.config) for o in observations for d in detectors)
        summary.left = len(waiting)
        _Work(self, store, summary, beside, until, waiting).do(stop, tick)


@dataclass
class _Work:
    """The items of one process, and its progress."""

    job: Job
    store: Store
    summary: Summary
    beside: int
    until: float | None
    waiting: deque[Item]
    busy: set[ItemId] = field(default_factory=set)
    unwritable: dict[ItemId, OutputError] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.others = [Store(folder) for folder in self.job.resume_from]
        self.hash = self.job.settings_hash
        # The pipeline's reader begins items, and this thread ends them: neither counts the other's.
        self.begun_items = self.ended_items = 0
        self.is_late = False
        self.ended = time.monotonic()
        self.took: deque[float] = deque(maxlen=8)  # seconds of the last items, each from the end of the one before

    def do(self, stop: Callable[[], bool], tick: Callable[[], object]) -> None:
        """Calibrate until nothing is waiting; items that another run has claimed are looked at again."""
        job, kind = self.job, np.dtype(self.job.dtype)
        needs_variance = job.variance or job.product == "light-curves"
        # A variance is computed in float64 and stored like the signal.
        value_bytes = kind.itemsize + needs_variance * (8 + kind.itemsize)
        while self.waiting and not self.summary.stopped:
            if stop():
                self.summary.stopped = "interrupted"
                return
            self.busy.clear()
            backend = choose(job.backend)
            self.summary.backend = backend.name
            pipeline = Pipeline(
                self._missing(),
                backend,
                dtype=kind,
                threads=job.threads,
                memory=job.memory,
                value_bytes=value_bytes,
            )
            # Another thread writes items: an interrupt reaches the main thread only, and so cannot split an item.
            with pipeline, ThreadPoolExecutor(1, "gpucal-write") as writer:
                for outcome in pipeline.outcomes():
                    self.ended_items += 1
                    if outcome.result is None and outcome.item.id in self.busy:
                        self.waiting.append(outcome.item)
                        self.ended = time.monotonic()
                        continue
                    writer.submit(self._record, outcome).result()
                    del outcome  # free its output, so that the next item may use the memory
                    tick()
                    if stop() and self.summary.left:
                        self.summary.stopped = "interrupted"
                    if self.summary.stopped:
                        break
            if self.is_late and not self.summary.stopped:
                self.summary.stopped = "time limit"
            if self.busy and not self.summary.stopped:
                time.sleep(_PATIENCE)
                self.ended = time.monotonic()

    def _missing(self) -> Iterator[Opened | Outcome]:
        """Open items while there is time, claim those that are missing, and pass over those that are not."""
        for opened in open_items(self._begin(), strict=self.job.strict, variance=self.job.variance):
            if isinstance(opened, Outcome):
                yield opened
                continue
            try:
                missing = self._is_missing(opened.item, opened.inputs)
            except MemoryError as error:
                yield failed(opened.item, error)
            else:
                yield opened if missing else Outcome(opened.item, None, opened.inputs, {})

    def _begin(self) -> Iterator[Item]:
        for _ in range(len(self.waiting)):
            if self._would_be_late():
                self.is_late = True  # items already begun end in time
                return
            self.begun_items += 1
            yield self.waiting.popleft()

    def _would_be_late(self) -> bool:
        """Tell whether an item begun now would end too late, as it must wait for the items in progress."""
        if self.until is None:
            return False
        in_flight = self.begun_items - self.ended_items
        return time.monotonic() + (in_flight + 1) * max(self.took, default=0.0) >= self.until

    def _is_missing(self, item: Item, inputs: str) -> bool:
        """Tell whether to calibrate an item; if so, it is claimed."""
        key = item.id
        try:
            elsewhere = False
            if not self.job.overwrite:  # look before claiming, as a claim writes a file
                if self.store.holds(key, self.hash, inputs, without_error=True):
                    return False
                here = self.store.record(key)
                elsewhere = (here is None or here["status"] != "done") and self._is_elsewhere(key, inputs)
                if elsewhere and here is None:
                    return False
            if not self.store.claim(key):
                self.busy.add(key)
                return False
            if self.job.overwrite:
                return True
            if elsewhere or self.store.holds(key, self.hash, inputs):
                self.store.forget_error(key)
                return False
            return True
        except OutputError as error:  # an exception in the reader thread would end the run
            self.unwritable[key] = error
            return False

    def _is_elsewhere(self, key: ItemId, inputs: str) -> bool:
        """Tell whether another folder has the item; as in `gpucal.open_results`, the first with a record decides."""
        for other in self.others:
            if other.holds(key, self.hash, inputs, without_error=True):
                return True
            record = other.record(key)
            if record is not None and not is_finished(record):
                return False
        return False

    def _record(self, outcome: Outcome) -> None:
        """Write an item's outcome and count it."""
        item, result = outcome.item, outcome.result
        try:
            if error := self.unwritable.pop(item.id, None):
                self._fail(outcome, error)
            elif result is None:
                self.summary.skipped += 1
            elif isinstance(result, InputError):
                self._fail(outcome, result)
            else:
                start = time.perf_counter()
                arrays = arrays_of(result, product=self.job.product, with_variance=self.job.variance)
                self.sizes[item.detector.name] = sum(array.nbytes for array in arrays.values())
                spent = sum(outcome.seconds.values())
                self.store.commit(
                    result,
                    arrays,
                    dataset=home_of(item.obs.dataset),
                    settings=self.hash,
                    inputs=outcome.inputs,
                    seconds=spent,
                )
                self.summary.done += 1
                self.summary.decoded(outcome.pages.ways)
                self.summary.spent({**outcome.seconds, "write": time.perf_counter() - start})
                self.took.append(time.monotonic() - self.ended)
        except OutputError as error:
            self._fail(outcome, error)
        except MemoryError:
            self._fail(outcome, out_of_memory().at(str(item.id)))
        finally:
            self.ended = time.monotonic()
            self.summary.left -= 1
            self.store.free(item.id)

    def _fail(self, outcome: Outcome, error: InputError | OutputError) -> None:
        key = outcome.item.id
        line = str(error) if isinstance(error, InputError) else f"{key}: {error}"
        log.error("%s", line)
        self.summary.failed[str(key)] = line
        if isinstance(error, OutputLost):
            self.summary.stopped = self._missing_space()
        # If another run has claimed the item, that run records its outcome. If no record can be written, see the log.
        else:
            with suppress(OutputError):
                # Note no output error of an item that is finished in the folder.
                is_finished = isinstance(error, OutputError) and self.store.holds(key, self.hash, outcome.inputs)
                if self.store.claim(key) and not is_finished:
                    self.store.fail(key, line)

    def _missing_space(self) -> str:
        lost = f"{self.job.out}: nothing more can be written; "
        try:
            free = shutil.disk_usage(self.job.out).free
        except OSError as error:
            return f"{lost}its free space cannot be read ({error.strerror or error}); make it writable"
        if not self.sizes:  # no item has been calibrated yet
            return f"{lost}{free // 10**6:,} MB are free; free space, raise the quota or make it writable"
        left = self.summary.left + self.beside
        needed = left * sum(self.sizes.values()) // len(self.sizes)
        short = f"free {_megabytes(needed - free)}" if needed > free else "raise the quota or make it writable"
        return (
            f"{lost}the {left} items still to be done need about {_megabytes(needed)} "
            f"and {free // 10**6:,} MB are free; {short}"
        )


def _megabytes(size: int) -> str:
    return f"{-(-size // 10**6):,} MB"
