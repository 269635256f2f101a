"""Calibrates the missing items of a data set into a results folder, and returns a summary."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from gpucal._version import __version__
from gpucal.backends import choose, named
from gpucal.errors import ConfigError, RunWarning
from gpucal.inputs.dataset import Dataset, Observation, open_dataset
from gpucal.results.writer import LOG, Store
from gpucal.runs import gpus, local
from gpucal.runs.folder import claimed, finish, note_others
from gpucal.runs.interrupts import Interrupts
from gpucal.runs.job import Job
from gpucal.runs.progress import checked_progress, shown
from gpucal.runs.request import Request, prepare
from gpucal.runs.summary import RunFailed, Summary, logged_to
from gpucal.runs.watch import Watch, deadline
from gpucal.settings.arguments import path_of, require_kind, require_switches
from gpucal.settings.calibration import Calibration, settings_of

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["carry_out", "run"]

log = logging.getLogger(__name__)

Execute = Callable[[Job, list[Observation], Watch, Store], None]
"""Calibrates the missing items of observations, and tells a `Watch` of them."""


def run(
    dataset: Dataset | str | Path,
    out: str | Path,
    settings: Calibration | None = None,
    *,
    planets: Iterable[object] | object | None = None,
    shard: tuple[int, int] | str | None = None,
    backend: str | None = None,
    dtype: DTypeLike = np.float32,
    product: str = "cubes",
    variance: bool = False,
    workers: int | None = None,
    memory: int | str | None = None,
    overwrite: bool = False,
    add: bool = False,
    resume_from: Iterable[str | Path] | str | Path = (),
    time_limit: float | str | None = None,
    strict: bool = False,
    client: Client | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: bool | str = "auto",
    raise_on_failure: bool = False,
    config: Calibration | None = None,
) -> Summary:
    """Calibrate a data set into a results folder. Finished items are kept if their settings and inputs are the same.

    Parameters
    ----------
    dataset : Dataset, or str or Path
        The data set, from `gpucal.open_dataset`, or its folder.
    out : str or Path
        The results folder. Several runs may share one: no item is calibrated twice.
    settings : Calibration, optional
        Settings, such as ``dataset.settings(bins={'FGS1': '24s'})``. Those left open take the preset of the data set's
        layout; by default all are left open.
    planets : iterable of int, or int or str, optional
        Calibrate only these planets; ids may be texts or numbers of any type, see `gpucal.settings.ids.as_id`. A text
        may hold several, as in ``'17, 23'``.
    shard : tuple of int, or str, optional
        ``(i, n)``, or ``'i/n'``, for the i-th of n parts of the planets, i from 1.
    backend, workers
        As for `gpucal.calibrate`.
    dtype : dtype
        Type of the stored arrays.
    product : {'cubes', 'light-curves'}
        Store cubes and light curves with their errors, or light curves only. ``gpucal export --product light-curves``
        makes one file of all observations.
    variance : bool
        Store the cubes' variances too.
    memory : int or str, optional
        Limit of the peak resident memory: bytes, or a text such as ``'2GB'``. By default 650 MB per process, or 2 GB
        with a GPU, which a single item may exceed if it needs more; a given limit holds. Host memory that CUDA takes is
        not counted.
    overwrite : bool
        Calibrate everything again, also where the folder holds results of other settings.
    add : bool
        Let the folder hold this data set's results beside another one's. A planet and visit that both have is stored
        once: this data set's result replaces the other, and a warning says so.
    resume_from : iterable of str or Path, or one, optional
        Other results folders, such as an earlier session's. Their items with these settings and inputs count as done.
        The folders are not written to. The results folder notes the items that count, so that `gpucal.open_results` and
        later runs find them.
    time_limit : float or str, optional
        Seconds, or a text such as ``'8.5h'``, after which all work must have ended. An item that would end later is not
        begun.
    strict : bool
        Check input files fully, see `gpucal.inputs.signal_file.open_signal`.
    client : distributed.Client, optional
        Work on its Dask cluster, with a task per observation; ``workers`` and ``memory`` then apply to each worker.
    stop : callable
        Called between items. When it returns True no further item is begun, and the run ends as if interrupted.
    progress : bool or 'auto'
        Show a progress bar with the count of failures, planets a minute and the time left, if the run takes longer than
        2 s. Where there is neither a notebook nor a terminal, True writes a line a minute on the standard error output,
        and ``'auto'`` writes none. The log always has these lines.
    raise_on_failure : bool
        Raise `gpucal.runs.summary.RunFailed` at the end if an item failed or is left, instead of a warning.
    config : Calibration, optional
        The old name of ``settings``.

    Returns
    -------
    Summary
        The items done, skipped, failed and left. A failed item costs no other item. Items are left when the time is
        over, or nothing more can be written; the same call continues with them.

    Warns
    -----
    RunWarning
        Once, at the end, if something failed, is left, or could not be written: how much, and the first cause.

    Raises
    ------
    ConfigError
        If the folder holds results of other settings or of another data set, a bin is longer than every observation, or
        an argument is not possible.
    DatasetError
        If a chosen planet is not in the data set.
    BackendUnavailable
        If the chosen backend cannot run here.
    OutputError
        If the folder cannot be written, or a folder to resume from holds no results.
    DeviceError
        If a GPU fails. With several GPUs, each has its own process, and any error that ends that process counts.
    RunFailed
        At the end, with ``raise_on_failure``; its ``summary`` is the one that would have been returned.
    KeyboardInterrupt
        If the run is interrupted; the item being written is finished first.

    Examples
    --------
    >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
    >>> summary = gpucal.run(ds, "light-curves", planets=[20955726], product="light-curves")
    >>> summary.done, summary.failed
    (2, {})
    >>> gpucal.open_results("light-curves").light_curves_with_errors().error.shape
    (1, 2, 283)
    """
    asked, folder = settings_of(settings, config), path_of("out", out)
    opened = open_dataset(dataset) if isinstance(dataset, (str, Path)) else dataset
    require_kind("dataset", opened, Dataset, "gpucal.open_dataset('data')")
    require_switches(raise_on_failure=raise_on_failure)
    if not callable(stop):
        raise ConfigError(f"stop = {stop!r}: must be a function that returns True when the run is to end")
    request = Request(
        dataset=opened,
        out=folder,
        config=asked,
        planets=planets,
        shard=shard,
        backend=backend,
        dtype=dtype,
        product=product,
        variance=variance,
        workers=workers,
        memory=memory,
        overwrite=overwrite,
        add=add,
        resume_from=resume_from,
        strict=strict,
    )
    watch = Watch(Interrupts(stop), deadline(time_limit))
    caller = sys._getframe(1)
    command = f"gpucal.run, called in {caller.f_code.co_filename}, line {caller.f_lineno}"
    with _told(request, watch.summary, raise_on_failure, caller):
        del caller
        return carry_out(request, watch, client=client, progress=progress, command=command)


def carry_out(
    request: Request,
    watch: Watch,
    *,
    client: Client | None = None,
    progress: bool | str = False,
    command: str,
) -> Summary:
    """Check a request, claim the folder, execute, finish; the errors are those of `run`.

    The log begins with the version, the command and the data set.
    """
    began, summary = time.monotonic(), watch.summary
    progress = checked_progress(progress)
    job, observations = prepare(request)
    execute = _executor(job, observations, client)
    watch.interrupts.defer()
    with closing(claimed(job, request.config)) as store, logged_to(job.out / LOG, summary) as note:
        for line in _heading(request, job, command, len(observations)):
            note(line)
        note_others(store, job)
        try:
            with shown(len(observations), "planet", progress, note) as watch.show:
                execute(job, observations, watch, store)
        except KeyboardInterrupt:
            summary.stopped = "interrupted"
            raise
        finally:
            finish(store, job, summary)
            summary.seconds = time.monotonic() - began
            if summary.stopped:
                how = "run it again to continue" + " (with --overwrite, it starts over)" * job.overwrite
                log.warning("%s: %s; finished items are kept, %s", summary.stopped, summary.counts, how)
    return summary


def _heading(request: Request, job: Job, command: str, observations: int) -> Iterator[str]:
    """Give the first lines of a run's log."""
    yield f"gpucal {__version__}, Python {sys.version.split()[0]}: {command}"
    dataset = request.dataset
    what = f"{dataset.layout.name} layout, {observations:,} of its {len(dataset):,} observations"
    yield f"data set {dataset.path.absolute()}: {what}; settings {job.settings_hash[:12]}"


def _executor(job: Job, observations: list[Observation], client: Client | None) -> Execute:
    """Choose who does the work; raises BackendUnavailable if a backend that was asked for by name cannot run here."""
    if client is not None:
        from gpucal.runs import dask

        return partial(dask.execute, client)
    if devices := gpus.gpus_for(job.backend, len({obs.planet for obs in observations}), job.threads, job.memory):
        return partial(gpus.execute, devices)
    # The choice of `auto` is made later, by each process that calibrates.
    if (asked := named(job.backend)) != "auto":
        choose(asked)
    return local.execute


@contextmanager
def _told(request: Request, summary: Summary, raises: bool, caller: FrameType) -> Iterator[None]:
    """Warn or raise at the end of a run that leaves something undone; the warning points at the caller of `run`."""
    # Not warnings.warn(), which shows a repeated line once per process, not once per run.
    where = (caller.f_code.co_filename, caller.f_lineno, caller.f_globals.get("__name__"))
    del caller
    trouble = partial(summary.trouble, request.out or Path(), overwrite=request.overwrite)
    try:
        yield
    except KeyboardInterrupt:
        if line := trouble():
            with suppress(RunWarning):  # a filter may raise the warning, but an exception is raised already
                warnings.warn_explicit(line, RunWarning, *where)
        raise
    if line := trouble():
        if raises:
            raise RunFailed(line, summary)
        warnings.warn_explicit(line, RunWarning, *where)
