"""Hands the observations of a run to the workers of a Dask cluster, a task each, and keeps the account of them."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpucal._version import __version__
from gpucal.errors import ClusterError, GpucalError, OutputError
from gpucal.inputs.dataset import Dataset, Observation
from gpucal.results.records import read_record, record_path
from gpucal.results.writer import Store
from gpucal.runs.dask_tasks import Errand, calibrate_one, halt, opened, process_id
from gpucal.runs.job import Job
from gpucal.runs.summary import Summary
from gpucal.settings.detectors import DETECTORS

if TYPE_CHECKING:
    from distributed import Future

__all__ = ["ANSWER", "Foreman"]

log = logging.getLogger(__name__)

ANSWER = 10.0
"""Seconds that a scheduler has to answer."""

# Seconds: between looks at which workers there are; without any; for what is in hand to end when nothing else begins.
_LOOK, _ALONE, _GRACE = 1.0, 300.0, 30.0

# How often Dask tries again what failed, but not with an error of gpucal's. What goes with its worker is tried again
# as often as the scheduler's ``allowed-failures`` says.
_RETRIES = 2

# Of keys of tasks.
_OPEN, _AGAIN = "open-", "-again"


@dataclass
class Foreman:
    """The observations of one run on their way through a cluster.

    Parameters
    ----------
    client, job, dataset, waiting, summary, threads, until
        As for `gpucal.runs.dask_cluster.spread`.
    """

    client: Any  # distributed has few types
    job: Job
    dataset: Dataset
    waiting: deque[Observation]
    summary: Summary
    threads: int | None
    until: float | None
    # In hand, by key of the task; and those that killed workers, or were beside such, for when nothing else is in hand.
    flying: dict[str, tuple[Any, Observation]] = field(default_factory=dict)
    suspects: deque[Observation] = field(default_factory=deque)
    ended: SimpleQueue[str] = field(default_factory=SimpleQueue)
    # Seconds that observations took lately; few enough to forget those that compiled something.
    took: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    workers: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    wrong: ClusterError | None = None
    lost: bool = False

    def __post_init__(self) -> None:
        others = tuple(folder.absolute() for folder in self.job.resume_from)
        self.job = replace(self.job, out=self.job.out.absolute(), resume_from=others)
        self.errand = Errand(uuid.uuid4().hex, self.job, self.threads, __version__, process_id())
        self.total = len(self.waiting)
        self.splits = {obs.split for obs in self.waiting}
        self.summary.left = self.total * len(DETECTORS)
        self.since, self.looked = time.time(), time.monotonic()
        self.peopled, self.patience = self.looked, _GRACE

    def drive(self, stop: Callable[[], bool], tick: Callable[[int], None]) -> None:
        """Calibrate until nothing is waiting, or the time is over.

        Parameters
        ----------
        stop, tick : callable
            As for `gpucal.runs.dask_cluster.spread`.

        Raises
        ------
        GpucalError
            What ends the run.
        """
        if not self.waiting:
            return
        # Every step is made in another thread, as an interrupt reaches the main one only: it splits no count.
        with ThreadPoolExecutor(1, "gpucal-dask") as pool:
            try:
                pool.submit(self._begin).result()
                while pool.submit(self._step).result():
                    tick(self.total - -(-self.summary.left // len(DETECTORS)))
                    if stop():
                        self._end_in(pool)
                        if self.summary.left:
                            self.summary.stopped = "interrupted"
                        break
                tick(self.total - -(-self.summary.left // len(DETECTORS)))
            except BaseException:
                self._end_in(pool)
                raise
            finally:
                pool.submit(self._let_go).result()

    def _end_in(self, pool: ThreadPoolExecutor) -> None:
        try:
            pool.submit(self._end).result()
        except BaseException:  # interrupted again: nothing is waited for
            self.patience = 0.0
            raise

    def _begin(self) -> None:
        """Have a worker list the dataset. Every task depends on that, and Dask does it again where it is lost."""
        self.address = self.client.scheduler.address
        path, split = str(self.dataset.path.absolute()), self.splits.pop() if len(self.splits) == 1 else None
        with self._reached():
            self._look()
            key = f"{_OPEN}{self.errand.run}"
            self.listing = self.client.submit(opened, path, split, key=key, pure=False, retries=_RETRIES)

    def _step(self) -> bool:
        """Keep the workers busy for a while; tell whether there is more to do."""
        with self._reached():
            self._fill()
            for key in self._next_ended():
                error = self._take(key)
                if error:
                    raise error
            if time.monotonic() >= self.looked + _LOOK:
                self._look()
        over = self.until is not None and time.monotonic() >= self.until
        if over and self.flying:
            self.summary.stopped, self.patience = "time limit", 0.0
        if over or self.summary.stopped not in ("", "time limit"):
            self._end()
            return False
        return bool(self.flying or ((self.waiting or self.suspects) and not self.summary.stopped))

    def _fill(self) -> None:
        """Submit what keeps the workers busy until the next look, and no more."""
        most = (1 if self.until and not self.took else 2) * len(self.workers) or 8
        crowd = max(Counter(urlsplit(address).hostname for address in self.workers).values(), default=1)
        while not self.summary.stopped:
            again = not self.waiting and not self.flying and bool(self.suspects)
            if not again and (not self.waiting or len(self.flying) >= most):
                return
            if self._is_late():
                self.summary.stopped = "time limit"
                return
            obs = (self.suspects if again else self.waiting).popleft()
            key = f"calibrate-{obs.planet}-{obs.visit}-{self.errand.run}{_AGAIN if again else ''}"
            arguments = (self.listing, self.errand, *obs.key, crowd, self.summary.left - len(DETECTORS))
            future = self.client.submit(calibrate_one, *arguments, key=key, pure=False, retries=_RETRIES)
            self.flying[key] = future, obs
            future.add_done_callback(self._note)

    def _note(self, ended: Future[Any]) -> None:
        self.ended.put(str(ended.key))

    def _is_late(self) -> bool:
        """Tell whether an observation submitted now would end too late: it waits for those before it."""
        if self.until is None:
            return False
        rounds = len(self.flying) // max(1, len(self.workers)) + 1
        return time.monotonic() + rounds * max(self.took, default=0.0) >= self.until

    def _next_ended(self) -> Iterator[str]:
        """Wait a little for tasks to end."""
        wait = _LOOK if self.until is None else min(_LOOK, max(0.05, self.until - time.monotonic()))
        while self.flying:
            try:
                key = self.ended.get(timeout=wait)
            except Empty:
                return
            wait = 0.0
            if key in self.flying:
                yield key

    def _take(self, key: str) -> BaseException | None:
        """Count what became of an observation; return what ends the run."""
        from distributed import KilledWorker, TimeoutError

        future, obs = self.flying[key]
        if future.status in ("cancelled", "lost"):
            raise self._gone("it has been started again, or is not reached")
        error: BaseException | None = future.exception() if future.status == "error" else None
        record: dict[str, Any] = {}
        if error is None:
            try:
                record = future.result(timeout=ANSWER)
            except (TimeoutError, KilledWorker):  # the account went with its worker, and is made again
                future.add_done_callback(self._note)
                return None
        del self.flying[key]
        if error is None:
            return self._count(record)
        if not isinstance(error, KilledWorker):
            return self._named(error)
        if str(error.task).startswith(_OPEN):
            return ClusterError(f"{self.dataset.path}: every worker that listed it died; see their logs")
        if key.endswith(_AGAIN):
            self._give_up(obs)
        else:
            self.suspects.append(obs)
        return None

    def _count(self, record: dict[str, Any]) -> BaseException | None:
        self.summary.left -= len(DETECTORS)
        self.summary.add({**record, "stopped": ""})
        if record["done"]:
            self.took.append(record["took"])
        # One that was halted has items left, and says no more than that.
        if record["stopped"] not in ("", "interrupted"):
            self.summary.stopped = record["stopped"]
        if not record["heard"]:
            for line in record["failed"].values():
                log.error("%s", line)
            for line in record["warnings"]:
                self._warn(f"{record['worker']}: {line}")
        error: BaseException | None = record["error"]
        return error

    def _named(self, error: BaseException) -> BaseException:
        """Return an error of gpucal's for what says that gpucal is not there."""
        if isinstance(error, ImportError) or "deserializ" in str(error):
            what = " ".join(f"{error}{'' if error.__cause__ is None else f' {error.__cause__}'}".split())
            return ClusterError(f"{self.address}: {what}; install gpucal {__version__} for its scheduler and workers")
        return error

    def _give_up(self, obs: Observation) -> None:
        """Count what no worker survived as failed, but for an item of it that is finished."""
        store = Store(self.job.out)
        with closing(store):
            for detector in DETECTORS.values():
                self.summary.left -= 1
                key = obs.item(detector)
                path = record_path(self.job.out, key)
                record = read_record(path)
                there = record is not None and store.holds(key, self.job.settings_hash, record.get("inputs", ""))
                new = there and path.stat().st_mtime >= self.since
                if new or (there and not self.job.overwrite):
                    self.summary.done += new
                    self.summary.skipped += not new
                    continue
                line = f"{key}: every worker that had it died; see their logs, or give them more memory"
                log.error("%s", line)
                self.summary.failed[str(key)] = line
                with suppress(OutputError):
                    if store.claim(key):
                        store.fail(key, line)

    def _look(self) -> None:
        """See which workers there are."""
        if self.client.status in ("closing", "closed"):
            raise self._gone("its client is closed")
        self.workers = set(self.client.nthreads(callback_timeout=ANSWER))
        if new := self.workers - self.known:
            self.known |= new
            check = Thread(target=self._check, args=(sorted(new),), daemon=True)
            check.start()
            check.join(ANSWER)
        if self.wrong:
            raise self.wrong
        self.looked = now = time.monotonic()
        if self.workers:
            self.peopled = now
        elif now - self.peopled > _ALONE:
            raise ClusterError(f"{self.address}: it has no workers; start some, as by `dask worker {self.address}`")
        else:
            self._warn(f"{self.address}: it has no workers; waiting for some")

    def _check(self, workers: list[str]) -> None:
        """Look for workers without gpucal: a task would end them, one after the other, and say nothing."""
        with suppress(Exception):  # of workers that are gone meanwhile
            specs = self.client.run(find_spec, calibrate_one.__module__, workers=workers, on_error="return")
            lacking = [worker for worker, spec in specs.items() if spec is None or isinstance(spec, ImportError)]
            if lacking:
                what = f"the worker {lacking[0]} has no gpucal {__version__}; install it for every worker"
                self.wrong = ClusterError(what)

    def _warn(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            log.warning("%s", line)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raise ClusterError if the scheduler is not there any longer."""
        try:
            yield
        except GpucalError:  # some are an OSError as well
            raise
        except (OSError, CancelledError) as error:
            raise self._gone(" ".join(str(error).split())) from error

    def _gone(self, why: str) -> ClusterError:
        self.lost = True
        return ClusterError(f"{self.address}: the scheduler is lost ({why}); what is finished is kept, run it again")

    def _end(self) -> None:
        """Let nothing more begin; count what is in hand and ends soon."""
        if self.lost or not self.flying or not self.workers:
            return
        Thread(target=self._halt_workers, daemon=True).start()  # not waited for: one may not answer
        began = time.monotonic()
        with suppress(ClusterError), self._reached():
            while self.flying and time.monotonic() < began + self.patience:
                for key in self._next_ended():
                    self._take(key)

    def _halt_workers(self) -> None:
        with suppress(Exception):  # of a client that is closed before the last has answered
            self.client.run(halt, self.errand.run, on_error="ignore")

    def _let_go(self) -> None:
        """Have Dask forget what is not begun, and clear what workers that died have left."""
        if self.lost:
            return
        with suppress(ClusterError), self._reached():
            if self.flying:
                self.client.cancel([future for future, _ in self.flying.values()])
            self._look()
        if self.known - self.workers:
            with suppress(OutputError):
                Store(self.job.out).sweep()
