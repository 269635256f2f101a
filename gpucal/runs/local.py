"""The work of one process: it calibrates missing items in order, while there is time."""

from __future__ import annotations

import logging
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from gpucal.backends import choose
from gpucal.errors import InputError, InputUnavailable, OutputError, OutputLost
from gpucal.inputs.dataset import Observation
from gpucal.pipeline.calibrated import arrays_of
from gpucal.pipeline.process import relog
from gpucal.pipeline.stream import Item, Opened, Outcome, Pipeline, failed, has_fingerprints, open_items, out_of_memory
from gpucal.results.origin import home_of
from gpucal.results.records import is_finished, is_whole, record_path
from gpucal.results.writer import Store
from gpucal.runs.job import Job, items_of
from gpucal.runs.watch import Watch
from gpucal.science.quality import quality
from gpucal.settings.ids import ItemId

__all__ = ["execute", "give_up", "relay"]

log = logging.getLogger(__name__)

# Bytes of a block of most disks, and of an item's record.
_BLOCK, _RECORD = 4096, 8192

# Seconds between looks at items that other runs have claimed.
_PATIENCE = 0.5


def execute(job: Job, observations: Sequence[Observation], watch: Watch, store: Store) -> None:
    """Calibrate the missing items of both detectors in this process.

    The store writes them into the results folder; the caller closes it.

    Raises BackendUnavailable if the chosen backend cannot run here, and OutputError if the folder cannot be written at
    all.
    """
    watch.expect(len(observations))
    _Work(job, watch, store, deque(items_of(job, observations))).do()


def give_up(job: Job, observation: Observation, error: InputError, watch: Watch, store: Store, since: float) -> None:
    """Count the items of an observation that no process survived as failed, but for those that are finished.

    ``since`` is the time at which the run began: an item finished later is one that it has done.
    """
    work = _Work(job, watch, store, deque())
    for item in items_of(job, [observation]):
        work.give_up(item, error, since)


def relay(record: logging.LogRecord, process: str) -> None:
    """Log what another process has logged, and say which; the errors of items name those already."""
    if record.name != __name__:
        record.msg = f"{process}: {record.msg}"
    relog(record)


@dataclass
class _Work:
    """The items of one process, and its progress."""

    job: Job
    watch: Watch
    store: Store
    waiting: deque[Item]
    busy: set[ItemId] = field(default_factory=set)
    unwritable: dict[ItemId, OutputError] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.summary = self.watch.summary
        self.others = [Store(folder) for folder in self.job.resume_from]
        self.hash = self.job.settings_hash
        # The pipeline's thread that opens begins items, and this one ends them: neither counts the other's.
        self.begun_items = self.ended_items = 0
        self.is_late = False
        self.ended = time.monotonic()
        self.took: deque[float] = deque(maxlen=8)  # seconds of the last items, each from the end of the one before

    def do(self) -> None:
        """Calibrate until nothing is waiting; items that another run has claimed are looked at again."""
        job, kind = self.job, np.dtype(self.job.dtype)
        while self.waiting and self._goes_on():
            self.busy.clear()
            backend = choose(job.backend)
            self.summary.backend = backend.name
            pipeline = Pipeline(
                self._missing(),
                backend,
                dtype=kind,
                threads=job.threads,
                memory=job.memory,
                value_bytes=job.value_bytes,
            )
            with pipeline:
                for outcome in pipeline.outcomes():
                    if outcome.result is None and outcome.item.id in self.busy:
                        self.waiting.append(outcome.item)
                        self.ended = time.monotonic()
                        self.ended_items += 1
                        continue
                    self.watch.interrupts.shield(self._record, outcome)
                    self.ended_items += 1  # once written: until then it is in flight
                    del outcome  # free its output, so that the next item may use the memory
                    self.watch.update()
                    if not self._goes_on():
                        break
            if self.is_late and not self.summary.stopped:
                self.summary.stopped = "time limit"
            if self.busy and not self.summary.stopped:
                time.sleep(_PATIENCE)
                self.ended = time.monotonic()

    def _goes_on(self) -> bool:
        """Tell whether to begin further items."""
        if self.summary.left and self.watch.interrupts.requested():
            self.summary.stopped = "interrupted"
        return not self.summary.stopped

    def give_up(self, item: Item, error: InputError, since: float) -> None:
        """Count an item as `give_up` says."""
        record = self.store.record(item.id)
        is_there = record is not None and self.store.holds(item.id, self.hash, record.get("inputs", ""))
        path = record_path(self.job.out, item.id)
        if is_there and path.stat().st_mtime >= since:
            self.summary.done += 1
            self.summary.left -= 1
            self.summary.end(item.id, "calibrated")
        else:
            is_kept = is_there and not self.job.overwrite
            self._record(Outcome(item, None if is_kept else error.at(str(item.id)), "", {}))

    def _missing(self) -> Iterator[Opened | Outcome]:
        """Open items while there is time, claim those that are missing, and pass over those that are not."""
        for item in self._begin():
            if (inputs := self._finished_inputs(item)) is not None:
                yield Outcome(item, None, inputs, {})
                continue
            for opened in open_items([item], strict=self.job.strict, variance=self.job.variance):
                yield self._judged(opened)

    def _judged(self, opened: Opened | Outcome) -> Opened | Outcome:
        """Claim an opened item if it is missing, else pass over it."""
        if isinstance(opened, Outcome):
            return opened
        try:
            missing = self._is_missing(opened.item, opened.inputs)
        except MemoryError as error:
            return failed(opened.item, error, opened.inputs)
        return opened if missing else Outcome(opened.item, None, opened.inputs, {})

    def _finished_inputs(self, item: Item) -> str | None:
        """Return the fingerprint of a finished item's inputs, if they are seen to be the same without parsing them.

        Opening an item takes five times as long, and reports errors: here they only end the look.
        """
        if self.job.overwrite or self.job.strict:
            return None
        with suppress(InputError, MemoryError, OutputError):
            for store in (self.store, *self.others):  # the first with a record decides
                if (record := store.record(item.id)) is not None:
                    break
            else:
                return None
            known = record.get("provenance", {}).get("fingerprints")
            # Records without a format are of 0.1, which took columns by position.
            is_ours = is_finished(record) and record.get("format") and record.get("settings") == self.hash
            is_there = is_ours and is_whole(record_path(store.path, item.id).parent, record)
            if is_there and isinstance(known, dict) and has_fingerprints(item, known):
                return str(record["inputs"])
        return None

    def _begin(self) -> Iterator[Item]:
        for _ in range(len(self.waiting)):
            if self._would_be_late():
                self.is_late = True  # items already begun end in time
                return
            self.begun_items += 1
            yield self.waiting.popleft()

    def _would_be_late(self) -> bool:
        """Tell whether an item begun now would end too late, as it must wait for the items in progress."""
        in_flight = self.begun_items - self.ended_items
        return self.watch.is_over((in_flight + 1) * max(self.took, default=0.0))

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
        except OutputError as error:  # an exception in the pipeline's thread would end the run
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
                self.summary.end(item.id, "finished before")
            elif isinstance(result, InputError):
                self._fail(outcome, result)
            else:
                start = time.perf_counter()
                arrays = arrays_of(result, product=self.job.product, with_variance=self.job.variance)
                on_quality = quality(
                    result.signal,
                    result.dq,
                    arrays["flux"],
                    arrays["error"],
                    photometer=item.detector.photometer,
                )
                on_quality |= result._motion()
                self.sizes[item.detector.name] = sum(_on_disk(array.nbytes) for array in arrays.values()) + _RECORD
                spent = sum(outcome.seconds.values())
                self.store.commit(
                    result,
                    arrays,
                    dataset=home_of(item.obs.dataset),
                    settings=self.hash,
                    inputs=outcome.inputs,
                    seconds=spent,
                    quality=on_quality,
                )
                log.info("%s: calibrated in %.2f s, %d pixels flagged", item.id, spent, np.count_nonzero(result.dq))
                self.summary.done += 1
                self.summary.end(item.id, "calibrated")
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
        self.summary.end(key, "failed")
        if isinstance(error, OutputLost):
            self.summary.stopped = self._missing_space()
        # If another run has claimed the item, that run records its outcome. If no record can be written, see the log.
        else:
            with suppress(OutputError):
                if self.store.claim(key) and not self._still_counts(outcome, error):
                    self.store.fail(key, line)

    def _still_counts(self, outcome: Outcome, error: InputError | OutputError) -> bool:
        """Tell whether an earlier result of a failed item is right all the same: the error says nothing against it.

        Where the item was opened, its inputs are known, and have to be those of the result.
        """
        key = outcome.item.id
        if isinstance(error, OutputError):
            return self.store.holds(key, self.hash, outcome.inputs)
        if not isinstance(error, InputUnavailable):
            return False
        for store in (self.store, *self.others):  # the first with a record decides
            if (record := store.record(key)) is not None:
                return store.holds(key, self.hash, outcome.inputs or str(record.get("inputs")), without_error=True)
        return False

    def _missing_space(self) -> str:
        lost = f"{self.job.out}: nothing more can be written; "
        try:
            free = shutil.disk_usage(self.job.out).free
        except OSError as error:
            return f"{lost}its free space cannot be read ({error.strerror or error}); make it writable"
        if not self.sizes:  # no item has been calibrated yet
            return f"{lost}{free // 10**6:,} MB are free; free space, raise the quota or make it writable"
        left = self.summary.left + self.watch.beside
        needed = left * sum(self.sizes.values()) // len(self.sizes)
        short = f"free {_megabytes(needed - free)}" if needed > free else "raise the quota or make it writable"
        return (
            f"{lost}the {left} items still to be done need about {_megabytes(needed)} "
            f"and {free // 10**6:,} MB are free; {short}"
        )


def _on_disk(size: int) -> int:
    """Bytes that a file takes: disks give whole blocks."""
    return -(-size // _BLOCK) * _BLOCK


def _megabytes(size: int) -> str:
    return f"{-(-size // 10**6):,} MB"
