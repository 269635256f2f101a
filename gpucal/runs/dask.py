"""A Dask cluster: a task for each observation. Ids travel to the workers, and a small account comes back.

The workers see the dataset and the results folder under the same names as the client, and write there themselves: what
they have finished does not die with them. A worker process has one observation in hand at a time, on all of its threads
and within all of its memory, as a run without Dask has; further Dask threads of the process wait for their turn.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpucal._version import __version__
from gpucal.errors import ClusterError, ConfigError, DatasetError, GpucalError, InputUnavailable, OutputError
from gpucal.inputs.dataset import Dataset, Observation, open_dataset
from gpucal.pipeline.machine import usable_cores
from gpucal.results.writer import CONFIG, Store
from gpucal.runs import local
from gpucal.runs.interrupts import Interrupts
from gpucal.runs.job import Job
from gpucal.runs.summary import Summary
from gpucal.runs.watch import Watch
from gpucal.settings.detectors import DETECTORS

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["ALONE", "ANSWER", "GRACE", "LOOK", "Account", "calibrate_one", "execute", "opened"]

log = logging.getLogger(__name__)

ANSWER, LOOK, ALONE, GRACE = 10.0, 1.0, 300.0, 30.0
"""Seconds: that a scheduler has to answer; between looks at which workers there are; that a run goes without any; that
observations in hand have to end when no other begins."""

# How often Dask repeats a task that failed, but not with an error of gpucal's. How often it repeats one whose worker
# died is the scheduler's ``allowed-failures``.
_RETRIES = 2

# Parts of the keys of tasks.
_OPEN, _AGAIN = "open-", "-again"

_ID = uuid.uuid4().hex
_turn = threading.Lock()  # resources would do the same, but only for workers that were started with them


def _process_id() -> str:
    """Return what tells this process from every other, on any machine."""
    return f"{os.getpid()}-{_ID}"


@dataclass(frozen=True)
class Errand:
    """The data that all tasks of a run share; paths are absolute."""

    run: str
    job: Job
    version: str
    client: str


@dataclass(frozen=True)
class Account:
    """The outcome of an observation, and the lines that the client is to log."""

    summary: Summary
    error: GpucalError | None
    logged: list[logging.LogRecord]
    worker: str
    seconds: float


def opened(path: str, split: str | None) -> Dataset:
    """Open a dataset on a worker; the others get its listing from there. Raises ClusterError if it is not there."""
    try:
        return open_dataset(path, split)
    except (DatasetError, OSError) as error:
        raise _other_files(path) from error


def calibrate_one(dataset: Dataset, errand: Errand, planet: int, visit: int, crowd: int, beside: int) -> Account:
    """Calibrate what is missing of an observation; ``crowd`` worker processes share the machine.

    ``beside`` is how many items the run has still to make beside these. Raises ClusterError for an error that is not
    one of gpucal's, which Dask then repeats.
    """
    from distributed import Event

    watch = Watch(Interrupts(Event(errand.run).is_set), beside=beside)
    watch.expect(1)
    error = None
    with _turn, _logged(errand) as logged:
        began = time.monotonic()
        try:
            _check(dataset, errand)
            job = replace(errand.job, workers=errand.job.workers or _threads(crowd))
            with closing(Store(job.out)) as store:
                local.execute(job, [dataset[planet, visit]], watch, store)
        except GpucalError as raised:
            error = raised
        except Exception as raised:
            # The client waits for ever for an error that cannot be unpickled there.
            what = " ".join(f"planet {planet} visit {visit}: {type(raised).__name__}: {raised}".split())
            raise ClusterError(f"{what}; the log of {_worker()} says where") from raised
    return Account(watch.summary, error, logged, _worker(), time.monotonic() - began)


@contextmanager
def _logged(errand: Errand) -> Iterator[list[logging.LogRecord]]:
    """Keep what is logged, unless the client is in the same process, where it is logged already."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logged: list[logging.LogRecord] = []
    handler, logger = QueueHandler(records), logging.getLogger("gpucal")
    handler.setLevel(logging.WARNING if errand.client != _process_id() else logging.CRITICAL + 1)
    logger.addHandler(handler)
    try:
        yield logged
    finally:
        logger.removeHandler(handler)
        while not records.empty():
            logged.append(records.get())


def _check(dataset: Dataset, errand: Errand) -> None:
    """Raise ClusterError where this process would do something else than the client wants."""
    if errand.version != __version__:
        raise ClusterError(
            f"gpucal {__version__} on {_worker()} and {errand.version} here: install the same on every worker"
        )
    for path in (dataset.path, errand.job.out / CONFIG, *errand.job.resume_from):
        if not path.exists():
            raise _other_files(path)


def _other_files(path: object) -> ClusterError:
    return ClusterError(f"{path}: not there on {_worker()}; give a folder that every worker sees by the same name")


def _worker() -> str:
    from distributed import get_worker

    return f"the worker {get_worker().address}"


def _threads(crowd: int) -> int:
    """Return the threads that Dask gives this worker; one, as with a GPU, stands for its share of the cores."""
    from distributed import get_worker

    own: int = get_worker().state.nthreads
    return own if own > 1 else max(1, usable_cores() // crowd)


def execute(client: Client, job: Job, observations: list[Observation], watch: Watch, store: Store) -> None:
    """Calibrate the missing items on the cluster of a client. The job's threads and memory are those of each worker.

    Raises ConfigError if the client cannot be used. Raises ClusterError if the cluster is lost or without workers for
    long, or its workers see other files or have another gpucal. What ends the work of a worker is raised too.
    """
    from distributed import Client

    if not isinstance(client, Client) or client.asynchronous:
        kind = "an asynchronous client" if isinstance(client, Client) else f"a {type(client).__name__}"
        raise ConfigError(f"client: {kind} cannot be used; give a distributed.Client made outside of coroutines")
    if client.status in ("closing", "closed"):
        raise ClusterError("client: it is closed; give one that is connected")
    watch.expect(len(observations))
    if observations:
        others = tuple(folder.absolute() for folder in job.resume_from)
        job = replace(job, out=job.out.absolute(), resume_from=others)
        _Spread(client, job, watch, store, deque(observations)).drive()


@dataclass
class _Spread:
    """The observations of a run on their way through a cluster.

    Those that kill their workers, and those beside them, are ``suspects``. Dask gives up on them; here they are tried
    again, one by one, when nothing else is in hand.
    """

    client: Any  # distributed has few types
    job: Job
    watch: Watch
    store: Store
    waiting: deque[Observation]
    flying: dict[Future[Account], Observation] = field(default_factory=dict)
    suspects: deque[Observation] = field(default_factory=deque)
    # Seconds that observations took lately; few enough to forget those that compiled something.
    took: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    workers: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    wrong: ClusterError | None = None
    is_late: bool = False
    is_lost: bool = False

    def __post_init__(self) -> None:
        from distributed import Event, as_completed

        self.summary, self.shield = self.watch.summary, self.watch.interrupts.shield
        self.errand = Errand(f"gpucal-{uuid.uuid4().hex}", self.job, __version__, _process_id())
        self.halt = Event(self.errand.run, self.client)
        self.ended = as_completed(loop=self.client.loop)
        self.address = self.client.scheduler.address
        self.since, self.peopled, self.looked = time.time(), time.monotonic(), 0.0

    def drive(self) -> None:
        """Calibrate until nothing is waiting, or the time is over."""
        try:
            self.shield(self._begin)
            while self._has_more() and not self.watch.interrupts.requested():
                self.shield(self._step)
                self.watch.update()
        finally:
            try:
                self._end()
            finally:
                self.shield(self._let_go)
        if self.summary.left and not self.summary.stopped:
            self.summary.stopped = "time limit" if self.is_late else "interrupted"

    def _has_more(self) -> bool:
        if self.summary.stopped:
            return False
        more = bool(self.flying or ((self.waiting or self.suspects) and not self.is_late))
        self.is_late |= more and self.watch.is_over()
        return more and not self.watch.is_over()

    def _begin(self) -> None:
        """Have a worker list the dataset. Every task depends on that, and Dask does it again where it is lost."""
        dataset, splits = self.waiting[0].dataset, {obs.split for obs in self.waiting}
        path, split = str(dataset.path.absolute()), splits.pop() if len(splits) == 1 else None
        with self._reached():
            self._look()
            self.listing = self.client.submit(
                opened, path, split, key=f"{_OPEN}{self.errand.run}", pure=False, retries=_RETRIES
            )

    def _step(self) -> None:
        """Keep the workers busy until the next look at them, at the latest."""
        with self._reached():
            self._fill()
            self._collect()
            if time.monotonic() >= self.looked + LOOK:
                self._look()

    def _fill(self) -> None:
        """Submit what keeps the workers busy until the next look, and no more."""
        most = (1 if self.watch.until and not self.took else 2) * len(self.workers) or 8
        crowd = max(Counter(urlsplit(address).hostname for address in self.workers).values(), default=1)
        while not self.is_late:
            again = not self.waiting and not self.flying and bool(self.suspects)
            if not again and (not self.waiting or len(self.flying) >= most):
                return
            # An observation submitted now waits for those before it.
            rounds = len(self.flying) // max(1, len(self.workers)) + 1
            if self.watch.is_over(rounds * max(self.took, default=0.0)):
                self.is_late = True
                return
            obs = (self.suspects if again else self.waiting).popleft()
            key = f"calibrate-{obs.planet}-{obs.visit}-{self.errand.run}{_AGAIN if again else ''}"
            arguments = (self.listing, self.errand, *obs.key, crowd, self.summary.left - len(DETECTORS))
            future = self.client.submit(calibrate_one, *arguments, key=key, pure=False, retries=_RETRIES)
            self._await(future, obs)

    def _await(self, future: Future[Account], obs: Observation) -> None:
        self.flying[future] = obs
        self.ended.add(future)

    def _collect(self) -> None:
        """Wait a little for tasks to end, and count them."""
        until = time.monotonic() + LOOK
        while self.flying and not self.ended.has_ready() and time.monotonic() < until and not self.watch.is_over():
            time.sleep(0.01)
        while self.ended.has_ready():
            self._take(next(self.ended))

    def _take(self, future: Future[Account]) -> None:
        """Count what became of an observation; raise what ends the run."""
        from distributed import KilledWorker, TimeoutError

        obs, status = self.flying.pop(future), future.status
        if status == "cancelled":
            raise self._gone("it has been started again, or is not reached")
        if status in ("lost", "pending"):  # the account went with its worker, and is made again
            self._await(future, obs)
            return
        if status != "error":
            try:
                account = future.result(timeout=ANSWER)
            except (TimeoutError, KilledWorker):  # it went just now
                self._await(future, obs)
            else:
                self._count(account)
            return
        error = future.exception()
        if not isinstance(error, KilledWorker):
            raise self._named(error)
        if str(error.task).startswith(_OPEN):
            raise ClusterError(f"{obs.dataset.path}: every worker that listed it died; see their logs")
        if not str(future.key).endswith(_AGAIN):
            self.suspects.append(obs)
            return
        died = InputUnavailable("every worker that had it died", "see their logs, or give them more memory")
        local.give_up(self.job, obs, died, self.watch, self.store, self.since)

    def _count(self, account: Account) -> None:
        ended = account.summary
        # A worker that was halted has items left, and says no more than that.
        stopped = "" if ended.stopped == "interrupted" else ended.stopped
        self.summary.left -= len(DETECTORS)
        self.summary.add(replace(ended, stopped=stopped))
        if ended.done:
            self.took.append(account.seconds)
        for record in account.logged:
            if (said := f"{account.worker}: {record.msg}") not in self.said:
                self.said.add(said)
                local.relay(record, account.worker)
        if account.error:
            raise account.error

    def _named(self, error: BaseException) -> BaseException:
        """Return an error of gpucal's for what says that gpucal is not there."""
        if isinstance(error, ImportError) or "deserializ" in str(error):
            what = " ".join(f"{error}{'' if error.__cause__ is None else f' {error.__cause__}'}".split())
            return ClusterError(f"{self.address}: {what}; install gpucal {__version__} for its scheduler and workers")
        return error

    def _look(self) -> None:
        """See which workers there are."""
        if self.client.status in ("closing", "closed"):
            raise self._gone("its client is closed")
        self.workers = set(self.client.nthreads(callback_timeout=ANSWER))
        if new := self.workers - self.known:
            self.known |= new
            check = threading.Thread(target=self._check, args=(sorted(new),), daemon=True)
            check.start()
            check.join(ANSWER)
        if self.wrong:
            raise self.wrong
        self.looked = now = time.monotonic()
        if self.workers:
            self.peopled = now
        elif now - self.peopled > ALONE:
            raise ClusterError(f"{self.address}: it has no workers; start some, as by `dask worker {self.address}`")
        else:
            self._warn(f"{self.address}: it has no workers; waiting for some")

    def _check(self, workers: list[str]) -> None:
        """Look for workers without gpucal: a task would end them, one after the other, and say nothing.

        Dask's ``get_versions`` reads what an installer has noted, and not what the worker would import.
        """
        try:
            specs = self.client.run(find_spec, __name__, workers=workers, on_error="return")
        except Exception:  # of any type, from workers or a scheduler that are gone meanwhile
            log.debug("%s: new workers could not be asked for gpucal", self.address, exc_info=True)
            return
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
        self.is_lost = True
        return ClusterError(f"{self.address}: the scheduler is lost ({why}); what is finished is kept, run it again")

    def _end(self) -> None:
        """Let nothing more begin; count what is in hand and ends soon."""
        until = time.monotonic() + (0.0 if self.watch.is_over() else GRACE)
        if self.flying and self.workers:
            self.shield(self._quietly, self.halt.set)
        while self.flying and self.workers and not self.is_lost and time.monotonic() < until:
            self.shield(self._quietly, self._collect)
        self.watch.update()

    def _quietly(self, call: Callable[[], object]) -> None:
        """Make a call when the run ends anyway."""
        if not self.is_lost:
            with suppress(GpucalError), self._reached():
                call()

    def _let_go(self) -> None:
        """Have Dask forget what is not begun, and clear what workers that died have left."""
        if self.flying:
            self._quietly(lambda: self.client.cancel([*self.flying]))
        self._quietly(self._look)
        if self.known - self.workers and not self.is_lost:
            with suppress(OutputError):
                self.store.sweep()
