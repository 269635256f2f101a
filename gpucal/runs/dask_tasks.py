"""The work of a Dask worker: one observation, from its ids to files and a small account of it.

A worker process has one observation in hand at a time, on all of its threads and within all of its memory, as a run
without Dask has; further Dask threads of the process wait for their turn.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpucal._version import __version__
from gpucal.errors import ClusterError, DatasetError, GpucalError
from gpucal.inputs.dataset import Dataset, open_dataset
from gpucal.pipeline.machine import usable_cores
from gpucal.results.writer import CONFIG, Store
from gpucal.runs.job import Job
from gpucal.runs.summary import Summary
from gpucal.settings.detectors import DETECTORS

__all__ = ["Errand", "calibrate_one", "halt", "opened", "process_id"]

_ID = uuid.uuid4().hex
_turn = threading.Lock()
_halted: set[str] = set()


def process_id() -> str:
    """Return what tells this process from every other, on any machine.

    Returns
    -------
    str
        The same at every call.
    """
    return f"{os.getpid()}-{_ID}"


@dataclass(frozen=True)
class Errand:
    """The settings that all tasks of a run share; small, and picklable.

    Parameters
    ----------
    run : str
        What tells it from other runs.
    job : Job
        What is made of every observation; paths are absolute.
    threads : int, optional
        Threads of each worker; by default what Dask gives it, or its share of the machine where that is one.
    version : str
        The client's gpucal.
    client : str
        The client's `process_id`.
    """

    run: str
    job: Job
    threads: int | None
    version: str
    client: str


def opened(path: str, split: str | None) -> Dataset:
    """Open a dataset on a worker; the others get its listing from there.

    Parameters
    ----------
    path : str
        The folder, absolute.
    split : {'train', 'test'}, optional
        Only this split.

    Returns
    -------
    Dataset
        Pickled without what was read since.

    Raises
    ------
    ClusterError
        If the worker does not see it.
    """
    try:
        return open_dataset(path, split)
    except (DatasetError, OSError) as error:
        raise _other_files(path) from error


def calibrate_one(dataset: Dataset, errand: Errand, planet: int, visit: int, crowd: int, beside: int) -> dict[str, Any]:
    """Calibrate what is missing of an observation.

    Parameters
    ----------
    dataset : Dataset
        From `opened`.
    errand : Errand
        What the run is about.
    planet, visit : int
        Which observation.
    crowd : int
        How many worker processes share this machine.
    beside : int
        How many items the run has still to make beside these.

    Returns
    -------
    dict
        The fields of a `gpucal.runs.summary.Summary`, and with them ``error``, what ends the run or None; ``warnings``,
        lines that were logged beside the items' errors; ``heard``, whether the client has logged it all; ``took``,
        seconds; ``worker``, which one it was.

    Raises
    ------
    ClusterError
        If something else went wrong than gpucal knows; Dask tries it again.
    """
    summary = Summary(left=len(DETECTORS))
    error = None
    heard = errand.client == process_id()
    lines = _Lines()
    with _turn:
        began = time.monotonic()
        if errand.run not in _halted:
            try:
                _check(dataset, errand)
                job = replace(errand.job, threads=errand.threads or _threads(crowd))
                with _heard_by(lines, heard), closing(Store(job.out)) as store:
                    job.work(
                        [dataset[planet, visit]],
                        summary,
                        store=store,
                        beside=beside,
                        stop=lambda: errand.run in _halted,
                    )
            except GpucalError as raised:
                error = raised
            except Exception as raised:
                # Of a type and with a traceback that certainly travel: what cannot be unpickled, its client waits for.
                what = " ".join(f"planet {planet} visit {visit}: {type(raised).__name__}: {raised}".split())
                raise ClusterError(f"{what}; the log of {_worker()} says where") from raised
    took = time.monotonic() - began
    return {**vars(summary), "error": error, "warnings": lines.said, "heard": heard, "took": took, "worker": _worker()}


def halt(run: str) -> None:
    """Let this process begin no further item of a run, and wait for none that another run has in hand.

    Parameters
    ----------
    run : str
        As its `Errand` has it.
    """
    _halted.add(run)


def _check(dataset: Dataset, errand: Errand) -> None:
    """Raise ClusterError where this process would do something else than the client wants."""
    if errand.version != __version__:
        raise ClusterError(
            f"gpucal {__version__} on {_worker()} and {errand.version} here: install the same on every worker"
        )
    for path in (dataset.path, errand.job.out / CONFIG, *errand.job.resume_from):
        if not path.exists():
            raise _other_files(path)


def _other_files(path: str | Path) -> ClusterError:
    return ClusterError(f"{path}: not there on {_worker()}; give a folder that every worker sees by the same name")


def _worker() -> str:
    from distributed import get_worker

    return f"the worker {get_worker().address}"


def _threads(crowd: int) -> int:
    """Return the threads that Dask gives this worker; one, as with a GPU, stands for its share of the cores."""
    from distributed import get_worker

    own: int = get_worker().state.nthreads
    return own if own > 1 else max(1, usable_cores() // crowd)


class _Lines(logging.Handler):
    """Keeps the warnings of a task; the errors of its items are in its summary."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            self.said.append(record.getMessage())


@contextmanager
def _heard_by(lines: _Lines, heard: bool) -> Iterator[None]:
    """Keep what is logged, unless the client's own handlers, in the same process, have it."""
    logger = logging.getLogger("gpucal")
    if not heard:
        logger.addHandler(lines)
    try:
        yield
    finally:
        logger.removeHandler(lines)
