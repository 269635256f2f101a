"""Calibrates the missing items of a data set into a results folder, and returns a summary."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from gpucal.backends import choose
from gpucal.errors import ConfigError, InputError, OutputError, RunWarning, Unstackable
from gpucal.inputs.dataset import Dataset, Observation
from gpucal.inputs.signal_file import open_signal
from gpucal.pipeline.calibrate import checked_dtype, checked_threads
from gpucal.pipeline.memory import Budget
from gpucal.results.atomic import unwritable
from gpucal.results.light_curve_table import LIGHT_CURVES, light_curves_are_current, write_light_curves
from gpucal.results.origin import require_outside, require_same_dataset
from gpucal.results.other_folders import NOTE, missing, noted_folders, write_note
from gpucal.results.reader import Results
from gpucal.results.records import record_path, records, require_records
from gpucal.results.writer import LOG, Store
from gpucal.runs.gpus import Fleet, gpus_for
from gpucal.runs.job import Job
from gpucal.runs.summary import RunFailed, Summary, logged_to
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.ids import ids_in
from gpucal.settings.rules import OPEN, PRODUCTS

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["prepare", "require_same_settings", "run"]

log = logging.getLogger(__name__)

# Stands for the files made of all items where a failure is not of one item. A key of the JSON summary.
_ALL = "what is made of all items"


def run(
    dataset: Dataset,
    out: str | Path,
    config: Calibration | None = None,
    *,
    planets: Iterable[object] | object | None = None,
    shard: tuple[int, int] | None = None,
    backend: str | None = None,
    dtype: DTypeLike = np.float32,
    product: str = "cubes",
    variance: bool = False,
    workers: int | None = None,
    memory: int | None = None,
    overwrite: bool = False,
    add: bool = False,
    resume_from: Iterable[str | Path] = (),
    time_limit: float | None = None,
    strict: bool = False,
    client: Client | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = False,
    raise_on_failure: bool = False,
) -> Summary:
    """Calibrate a data set into a results folder. Finished items are kept if their settings and inputs are the same.

    Parameters
    ----------
    dataset : Dataset
        The data set, from `gpucal.open_dataset`.
    out : str or Path
        The results folder. Several runs may share one: no item is calibrated twice.
    config : Calibration, optional
        Settings. Those left open take the preset of the data set's layout; by default all are left open.
    planets : iterable of int, or int, optional
        Calibrate only these planets; ids may be texts or numbers of any type, see `gpucal.settings.ids.as_id`.
    shard : tuple of int, optional
        ``(i, n)`` for the i-th of n parts of the planets, i from 1.
    backend, workers
        As for `gpucal.calibrate`.
    dtype : dtype
        Type of the stored arrays.
    product : {'cubes', 'light-curves'}
        Store cubes, or only light curves with their errors. Light curves are stored for each observation, and for all
        together in ``light-curves.parquet`` and ``light-curves.npy``, see
        `gpucal.results.light_curve_table.write_light_curves`.
    variance : bool
        Store the cubes' variances too.
    memory : int, optional
        Limit of the peak resident memory, bytes. By default 650 MB per process, which a single item may exceed if it
        needs more; a given limit holds. Host memory that CUDA takes is not counted.
    overwrite : bool
        Calibrate everything again, also where the folder holds results of other settings.
    add : bool
        Let the folder hold this data set's results beside another one's. A planet and visit that both have is stored
        once: this data set's result replaces the other, and a warning says so.
    resume_from : iterable of str or Path, optional
        Other results folders, such as an earlier session's. Their items with these settings and inputs count as done.
        The folders are not written to. The results folder notes the items that count, so that `gpucal.open_results` and
        later runs find them.
    time_limit : float, optional
        Seconds after which all work must have ended. An item that would end later is not begun.
    strict : bool
        Check input files fully, see `gpucal.inputs.signal_file.open_signal`.
    client : distributed.Client, optional
        Work on its Dask cluster, with a task per observation; ``workers`` and ``memory`` then apply to each worker.
    stop : callable
        Called between items. When it returns True no further item is begun, and the run ends as if interrupted.
    progress : bool
        Show a progress bar with planets a minute and the time left.
    raise_on_failure : bool
        Raise `gpucal.runs.summary.RunFailed` at the end if an item failed or is left, instead of a warning.

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
    """
    began = time.monotonic()
    job, observations = prepare(
        dataset,
        Path(out),
        config,
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
    asked = config or Calibration()
    until = None if time_limit is None else began + _seconds(time_limit)
    gpus = [] if client else gpus_for(backend, len({obs.planet for obs in observations}), memory)
    # The choice of `auto` is made later, by each process that calibrates.
    if not (client or gpus) and (named := backend or os.environ.get("GPUCAL_BACKEND") or "auto") != "auto":
        choose(named)
    stop()  # from now on signals are asked for; before, they raised an exception at any moment
    summary = Summary()
    # With several GPUs, each process writes the log itself.
    told = _told(summary, job.out, raise_on_failure, sys._getframe(1))
    with told, closing(_begun(job, asked)) as store, nullcontext() if gpus else logged_to(job.out / LOG, summary):
        _note_others(store, job)
        try:
            with _progress(progress, len(observations)) as update:
                if client:
                    from gpucal.runs.dask_cluster import spread

                    threads = None if workers is None else job.threads
                    spread(
                        client,
                        job,
                        dataset,
                        observations,
                        summary,
                        threads=threads,
                        until=until,
                        stop=stop,
                        tick=update,
                    )
                elif gpus:
                    _drive(gpus, job, dataset, observations, summary, until, stop, update)
                else:
                    tick = partial(_tick, observations, summary, update)
                    job.work(observations, summary, until=until, stop=stop, tick=tick)
        except KeyboardInterrupt:
            summary.stopped = "interrupted"
            raise
        finally:
            stop()
            _finish(store, job, summary)
            summary.seconds = time.monotonic() - began
            if summary.stopped:
                how = "run it again to continue" + " (without --overwrite, which starts over)" * overwrite
                log.warning("%s: %s; finished items are kept, %s", summary.stopped, summary.counts, how)
    return summary


def prepare(
    dataset: Dataset,
    out: Path | None,
    config: Calibration | None = None,
    *,
    planets: Iterable[object] | object | None = None,
    shard: tuple[int, int] | None = None,
    backend: str | None = None,
    dtype: DTypeLike = np.float32,
    product: str = "cubes",
    variance: bool = False,
    workers: int | None = None,
    memory: int | None = None,
    overwrite: bool = False,
    add: bool = False,
    resume_from: Iterable[str | Path] = (),
    strict: bool = False,
) -> tuple[Job, list[Observation]]:
    """Judge a request as `run` does, before anything is written; ``out`` may be None where it is not known yet.

    Parameters, and the errors of a request that cannot be met, are those of `run`.

    Returns
    -------
    job : Job
        The run's settings.
    observations : list of Observation
        What is to be calibrated.
    """
    if product not in PRODUCTS:
        raise ConfigError(f"product = {product!r}: must be one of {', '.join(PRODUCTS)}")
    chosen = _shard(
        [*dataset.planets] if planets is None else [*dict.fromkeys(dataset[one].planet for one in ids_in(planets))],
        shard,
    )
    observations = [dataset[p, visit] for p in chosen for visit in dataset.visits(p)]
    asked = config or Calibration()
    job = Job(
        out=out or Path(),
        config=asked.filled(dataset.layout.preset),
        dtype=checked_dtype(dtype).name,
        product=product,
        variance=variance and product == "cubes",  # light curves have errors anyway
        backend=backend,
        threads=checked_threads(workers),
        memory=memory,
        overwrite=overwrite,
        strict=strict,
        resume_from=tuple(require_records(Path(folder)) for folder in resume_from),
    )
    here = [] if out is None else [out]
    for folder in here:
        require_outside(dataset, folder)
    noted = noted_folders([*here, *job.resume_from], job.settings_hash)
    if here or noted:
        require_same_dataset(dataset, [*here, *noted], "give another folder", add=add)
    for folder in job.resume_from:
        made_with = {record.get("settings") for record in records(folder) if record["status"] == "done"}
        if job.settings_hash in made_with:
            require_same_dataset(dataset, [folder], "leave it out of --resume-from", add=add)
        elif made_with:
            changes = _changes(Store(folder).settings() or "", job)
            log.warning("%s: nothing in it counts as done: it has other settings (%s)", folder, changes)
    job = replace(job, resume_from=(*job.resume_from, *noted))
    if observations:
        _check_bins(observations, job.config)
    # Refuse impossible requests before anything is written.
    Budget(job.memory, job.threads)
    return job, observations


@contextmanager
def _told(summary: Summary, out: Path, raises: bool, caller: FrameType) -> Iterator[None]:
    """Warn or raise at the end of a run that leaves something undone; the warning points at the caller of `run`."""
    # Not warnings.warn(), which shows a repeated line once per process, not once per run.
    where = (caller.f_code.co_filename, caller.f_lineno, caller.f_globals.get("__name__"))
    del caller
    try:
        yield
    except KeyboardInterrupt:
        if line := summary.trouble(out):
            with suppress(RunWarning):  # a filter may raise the warning, but an exception is raised already
                warnings.warn_explicit(line, RunWarning, *where)
        raise
    if line := summary.trouble(out):
        if raises:
            raise RunFailed(line, summary)
        warnings.warn_explicit(line, RunWarning, *where)


def _check_bins(observations: list[Observation], config: Calibration) -> None:
    """Raise ConfigError for bins shorter than a pair, or longer than every observation whose file can be read."""
    for detector in DETECTORS.values():
        pairs = most = 0
        with suppress(InputError):  # every item will report that
            pairs = config.pairs_per_bin(detector, observations[0].axis(detector).pair_s)
        if pairs in (0, 1, detector.bin_pairs):  # the usual bins need no file opened
            continue
        for obs in observations:
            with suppress(InputError):
                most = max(
                    most, open_signal(obs.signal_path(detector), detector).n_frames // 2 - config.drop_last_pairs
                )
            if pairs <= most:
                break
        if 0 < most < pairs:
            problem = f"no observation has more than {most:,} pairs of reads"
            smaller = f"use smaller bins, as in --bin {detector.name}={most}"
            raise ConfigError(f"bins: {detector.name} = {config.bins[detector.name]!r}: {problem}; {smaller}")


def _begun(job: Job, asked: Calibration) -> Store:
    """Begin the run in its folder, which runs of the same settings may share.

    Raises ConfigError if the folder holds results of other settings, or a run with other settings is working there.
    """
    store = Store(job.out)

    def look() -> None:
        if require_same_settings(store, job, asked):
            _remove_light_curves(store)  # if this run is killed, no stack may outlive the old items

    try:
        if not store.begin(job.settings, look):
            changes = _changes(store.settings() or "", job)
            raise ConfigError(
                f"{store.path}: a run of other settings ({changes}) is working there; "
                "wait for it to end, or give another folder"
            )
    except BaseException:
        store.close()
        raise
    return store


def require_same_settings(store: Store, job: Job, asked: Calibration) -> bool:
    """Raise ConfigError if the folder holds results of other settings; returns whether its items are made anew."""
    before = store.settings()
    if before == job.settings and not job.overwrite:
        return False
    if before and not job.overwrite and any(record["status"] == "done" for record in records(store.path)):
        raise ConfigError(
            f"{store.path}: holds results of other settings ({_changes(before, job)}); "
            f"{_naming(before, job, asked)}give another folder, or --overwrite to make them again"
        )
    return True


def _changes(before: str, job: Job) -> str:
    changes = [f"{name} = {then} there and {now} now" for name, then, now in _differing(before, job)]
    return "; ".join(changes) or "in another order"


def _naming(before: str, job: Job, asked: Calibration) -> str:
    """Say how to resume a folder that differs only in settings left open, as a folder of 0.1 from Python may."""
    changes = list(_differing(before, job))
    if not changes or any(name not in OPEN or getattr(asked, name) is not None for name, _, _ in changes):
        return ""
    return f"name {', '.join(f'{name} = {then}' for name, then, _ in changes)} to resume it, "


def _differing(before: str, job: Job) -> Iterator[tuple[str, str, str]]:
    """List the settings that differ, with their values there and now."""
    then, now = (dict(_entries(text)) for text in (before, job.settings))
    for name in {**then, **now}:
        if then.get(name) != now.get(name):
            yield name, then.get(name, "unset"), now.get(name, "unset")


def _entries(toml: str) -> Iterator[tuple[str, str]]:
    """Split the text of `Job.settings` into names and the text of values."""
    table = ""
    for line in toml.splitlines():
        name, equals, value = line.partition(" = ")
        if line.startswith("["):
            table = line.strip("[]").removeprefix("output") + "." * (line != "[output]")
        elif equals:
            yield table + name.strip('"'), value


def _finish(store: Store, job: Job, summary: Summary) -> None:
    """Write the note, the manifest and the light curves of all items, so that no older one outlives its items."""
    try:
        _write_note(store, job)
        store.write_manifest()
        with store.alone():
            _place_light_curves(store, job)
    except Unstackable as error:  # no failure: every item is stored by itself
        summary.notes.append(f"light-curves.npy and light-curves.parquet were not written: {error}")
        log.warning("%s", summary.notes[-1])
    except OutputError as error:
        log.error("%s", error)
        summary.failed[_ALL] = str(error)


def _note_others(store: Store, job: Job) -> None:
    """Note at once which items of other folders count, as this run may be killed; warn of items that are gone."""
    if elsewhere := _write_note(store, job):
        log.warning("%s; this run calibrates those it needs again", missing(store.path, elsewhere))


def _write_note(store: Store, job: Job) -> Mapping[tuple[int, int, str], str]:
    """Write the note; where there is nothing to note the folder is left alone, as it may be full."""
    if not job.resume_from and not (store.path / NOTE).exists():
        return {}
    with store.alone():
        return write_note(store.path, job.resume_from, job.settings_hash)


def _place_light_curves(store: Store, job: Job) -> None:
    folders = (store.path, *job.resume_from)
    results = None
    if job.product == "light-curves" and any(next(records(folder), None) for folder in folders):
        results = Results(*folders, settings=job.settings_hash)
        if light_curves_are_current(results):
            return
    _remove_light_curves(store)
    if results and results.ids:
        write_light_curves(results)


def _remove_light_curves(store: Store) -> None:
    try:
        for name in LIGHT_CURVES:
            (store.path / name).unlink(missing_ok=True)
    except NotADirectoryError:
        pass  # making the folder will report that
    except OSError as error:
        raise unwritable(store.path, error) from error


def _drive(
    gpus: list[str],
    job: Job,
    dataset: Dataset,
    observations: list[Observation],
    summary: Summary,
    until: float | None,
    stop: Callable[[], bool],
    update: Callable[[int], None],
) -> None:
    """Start a process for each GPU, with its part of the planets."""
    splits = {obs.split for obs in observations}
    options = {
        "--backend": job.backend,
        "--dtype": job.dtype,
        "--workers": max(1, job.threads // len(gpus)),
        "--memory": job.memory and job.memory // len(gpus),
        "--split": splits.pop() if len(splits) == 1 else None,
        "--product": job.product,
        "--variance": job.variance,
        "--overwrite": job.overwrite,
        "--add": True,  # this process has checked the folder's data set
        "--strict": job.strict,
        "--resume-from": [*map(str, job.resume_from)],
        "--time-limit": until and f"{max(until - time.monotonic(), 0.001):.3f}s",
    }
    last = [*DETECTORS][-1]
    files = [record_path(job.out, *obs.key, last) for obs in observations]
    since = time.time() if job.overwrite else 0.0

    def tick() -> None:
        update(sum(path.exists() and path.stat().st_mtime >= since for path in files))

    fleet = Fleet(dataset.path, job.out, job.config.to_toml(), options)
    try:
        fleet.run(gpus, [*dict.fromkeys(obs.planet for obs in observations)], summary, stop=stop, tick=tick)
    finally:
        summary.failed.pop(_ALL, None)  # each process failed at its part; `_finish` writes the whole
        # A process that was killed has not reported what is left.
        summary.left = len(observations) * len(DETECTORS) - summary.done - summary.skipped - len(summary.failed)
    for line in summary.failed.values():
        log.error("%s", line)


def _tick(observations: list[Observation], summary: Summary, update: Callable[[int], None]) -> None:
    update(len(observations) - -(-summary.left // len(DETECTORS)))


@contextmanager
def _progress(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that sets a progress bar with planets a minute and the time left; log lines go above it."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
    began, logger = time.monotonic(), logging.getLogger("gpucal")
    # Most versions of tqdm replace the terminal's handler by one without filters.
    filters = [one for handler in logger.handlers if _is_terminal(handler) for one in handler.filters]
    with (
        tqdm(total=total, disable=not shown, unit="planet", bar_format=form) as bar,
        logging_redirect_tqdm([logger]) if shown else nullcontext(),
    ):
        for one in filters if shown else ():
            logger.handlers[-1].addFilter(one)

        def update(ended: int) -> None:
            bar.update(ended - bar.n)
            bar.set_postfix_str(f"{60 * ended / (time.monotonic() - began):.1f} planets/min")

        yield update


def _is_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr


def _shard(planets: list[int], shard: tuple[int, int] | None) -> list[int]:
    if shard is None:
        return planets
    try:
        part, parts = shard
        possible = all(isinstance(n, Integral) and not isinstance(n, bool) for n in shard) and 1 <= part <= parts
    except (TypeError, ValueError):
        possible = False
    if not possible:
        raise ConfigError(f"shard = {shard!r}: must be (i, n), the i-th of n parts, i from 1 to n")
    return planets[part - 1 :: parts]


def _seconds(limit: float) -> float:
    if isinstance(limit, bool) or not isinstance(limit, Real) or not 0 < float(limit) < float("inf"):
        raise ConfigError(f"time_limit = {limit!r}: must be a number of seconds above 0")
    return float(limit)
