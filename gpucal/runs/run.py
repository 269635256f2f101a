"""A dataset to a results folder: what is missing, spread over what there is, with an account of it in the end."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
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
from gpucal.results.other_folders import missing, noted_folders, write_note
from gpucal.results.reader import Results
from gpucal.results.records import record_path, records, require_records
from gpucal.results.writer import LOG, Store
from gpucal.runs.gpus import Fleet, gpus_for
from gpucal.runs.job import Job
from gpucal.runs.summary import RunFailed, Summary, logged_to
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.rules import OPEN, PRODUCTS

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["run"]

log = logging.getLogger(__name__)

# What failed if it was no item, but a file that is made of all of them.
_ALL = "what is made of all items"


def run(
    dataset: Dataset,
    out: str | Path,
    config: Calibration | None = None,
    *,
    planets: Iterable[int] | None = None,
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
    """Calibrate a dataset into a results folder; items already there, of these inputs, are kept.

    Parameters
    ----------
    dataset : Dataset
        From `gpucal.open_dataset`.
    out : str or Path
        The results folder. Several runs may share one: none makes what another has made or has in hand.
    config : Calibration, optional
        Settings; what they leave open, by default everything, is the preset of the dataset's layout.
    planets : iterable of int, optional
        Only these.
    shard : tuple of int, optional
        ``(i, n)`` for the i-th of n parts of the planets, i from 1.
    backend, workers
        As for `gpucal.calibrate`.
    dtype : dtype
        Of the files.
    product : {'cubes', 'light-curves'}
        Store the cubes; or light curves with their errors and nothing else, each observation's by itself and those of
        all in ``light-curves.parquet`` and ``light-curves.npy``, see
        `gpucal.results.light_curve_table.write_light_curves`.
    variance : bool
        Store the cubes' variances too.
    memory : int, optional
        Peak resident memory to stay below, bytes. By default 900 MB a process, not enforced on a single item that
        needs more; a number given is. What CUDA holds on the host comes on top.
    overwrite : bool
        Make everything again, also where the folder holds results of other settings.
    add : bool
        Let the folder hold this data set's results beside those of another one. An observation has one place, by planet
        and visit: where both data sets have one there, this one's result replaces the other's, and a warning says so.
    resume_from : iterable of str or Path, optional
        Other results folders, such as of an earlier session; what they hold of these settings and inputs counts as
        done. They are not written to. The folder notes what counts of them: `gpucal.open_results` reads that there,
        and later runs into the folder count it too.
    time_limit : float, optional
        Seconds after which everything must have ended; no item is begun that would end later.
    strict : bool
        Check input files as far as they can be, see `gpucal.inputs.signal_file.open_signal`.
    client : distributed.Client, optional
        Work on its Dask cluster, a task an observation; ``workers`` and ``memory`` are then each worker's.
    stop : callable
        Asked between items; where it says True no further one is begun, and the run ends as one that is interrupted.
    progress : bool
        Show a progress bar with planets a minute and the time left.
    raise_on_failure : bool
        Raise `gpucal.runs.summary.RunFailed` at the end where something failed or is left, instead of a warning.

    Returns
    -------
    Summary
        What was done, skipped and failed; a failed item costs no other. What is not begun when the time is over, or
        nothing more can be written, is left: the same call goes on with it.

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
        If a planet asked for is not in the dataset.
    BackendUnavailable
        If the backend asked for cannot run here.
    OutputError
        If the folder cannot be written, or one to resume from holds nothing.
    DeviceError
        If a GPU fails; of several, each has a process of its own, and whatever ends that one.
    RunFailed
        At the end, with ``raise_on_failure``; its ``summary`` is what would have been returned.
    KeyboardInterrupt
        If it is interrupted; the item being written is finished before.
    """
    began = time.monotonic()
    if product not in PRODUCTS:
        raise ConfigError(f"product = {product!r}: must be one of {', '.join(PRODUCTS)}")
    chosen = _shard([*dataset.planets] if planets is None else [*dict.fromkeys(planets)], shard)
    observations = [dataset[p, visit] for p in chosen for visit in dataset.visits(dataset[p].planet)]
    asked = config or Calibration()
    job = Job(
        out=Path(out),
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
    require_outside(dataset, job.out)
    noted = noted_folders([job.out, *job.resume_from], job.settings_hash)
    require_same_dataset(dataset, [job.out, *noted], "give another folder", add=add)
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
    until = None if time_limit is None else began + _seconds(time_limit)
    gpus = [] if client else gpus_for(backend, len(chosen), memory)
    # What cannot be is said before anything is written; where `auto` chooses, it does so beside reading.
    Budget(job.memory, job.threads)
    if not (client or gpus) and (named := backend or os.environ.get("GPUCAL_BACKEND") or "auto") != "auto":
        choose(named)
    stop()  # from now on it is asked, where a signal's exception would come at any moment
    summary = Summary()
    # The processes of a fleet write the log themselves.
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
                how = "run it again to go on" + " (without --overwrite, which begins anew)" * overwrite
                log.warning("%s: %s; what is finished is kept, %s", summary.stopped, summary.counts, how)
    return summary


@contextmanager
def _told(summary: Summary, out: Path, raises: bool, caller: FrameType) -> Iterator[None]:
    """Warn where `run` was called, or raise, at the end of a run that leaves something undone."""
    # Not by warnings.warn(), which shows the same line at the same place once a process, not once a run.
    where = (caller.f_code.co_filename, caller.f_lineno, caller.f_globals.get("__name__"))
    del caller
    try:
        yield
    except KeyboardInterrupt:
        with suppress(RunWarning):  # which a filter may make an exception, and this is one already
            warnings.warn_explicit(summary.trouble(out), RunWarning, *where)
        raise
    if line := summary.trouble(out):
        if raises and (summary.failed or summary.left or summary.stopped):
            raise RunFailed(line, summary)
        warnings.warn_explicit(line, RunWarning, *where)


def _check_bins(observations: list[Observation], config: Calibration) -> None:
    """Refuse bins that are shorter than a pair, or longer than every observation; damaged files have no say.

    Raises ConfigError.
    """
    for detector in DETECTORS.values():
        pairs = most = 0
        with suppress(InputError):  # every item will say that itself
            pairs = config.pairs_per_bin(detector, observations[0].axis(detector).pair_s)
        if pairs in (0, 1, detector.bin_pairs):  # no file is opened for what the notebook does
            continue
        for obs in observations:
            with suppress(InputError):
                most = max(most, open_signal(obs.signal_path(detector), detector).n_frames // 2)
            if pairs <= most:
                break
        if 0 < most < pairs:
            problem = f"no observation has more than {most:,} pairs of reads"
            smaller = f"use smaller bins, as in --bin {detector.name}={most}"
            raise ConfigError(f"bins: {detector.name} = {config.bins[detector.name]!r}: {problem}; {smaller}")


def _begun(job: Job, asked: Calibration) -> Store:
    """Make the folder this run's, and that of others of the same settings.

    Raises ConfigError if it holds results of other settings, or another run is making some.
    """
    store = Store(job.out)

    def look() -> None:
        before = store.settings()
        if before == job.settings and not job.overwrite:
            return
        if before and not job.overwrite and any(record["status"] == "done" for record in records(store.path)):
            raise ConfigError(
                f"{store.path}: holds results of other settings ({_changes(before, job)}); "
                f"{_naming(before, job, asked)}give another folder, or --overwrite to make them again"
            )
        _remove_light_curves(store)  # no stack of the old ones may outlive them, should this run be killed

    try:
        if not store.begin(job.settings, look):
            changes = _changes(store.settings() or "", job)
            raise ConfigError(
                f"{store.path}: a run of other settings ({changes}) is at work there; wait for it or give another one"
            )
    except BaseException:
        store.close()
        raise
    return store


def _changes(before: str, job: Job) -> str:
    changes = [f"{name} = {then} there and {now} now" for name, then, now in _differing(before, job)]
    return "; ".join(changes) or "in another order"


def _naming(before: str, job: Job, asked: Calibration) -> str:
    """Say how to resume a folder that differs only in what was not named, such as one that 0.1 made in Python."""
    changes = list(_differing(before, job))
    if not changes or any(name not in OPEN or getattr(asked, name) is not None for name, _, _ in changes):
        return ""
    return f"name {', '.join(f'{name} = {then}' for name, then, _ in changes)} to resume it, "


def _differing(before: str, job: Job) -> Iterator[tuple[str, str, str]]:
    """List the settings that differ, as they are there and now."""
    then, now = (dict(_entries(text)) for text in (before, job.settings))
    for name in {**then, **now}:
        if then.get(name) != now.get(name):
            yield name, then.get(name, "unset"), now.get(name, "unset")


def _entries(toml: str) -> Iterator[tuple[str, str]]:
    """Split what `Job.settings` has put together into names and the text of values."""
    table = ""
    for line in toml.splitlines():
        name, equals, value = line.partition(" = ")
        if line.startswith("["):
            table = line.strip("[]").removeprefix("output") + "." * (line != "[output]")
        elif equals:
            yield table + name.strip('"'), value


def _finish(store: Store, job: Job, summary: Summary) -> None:
    """Write what is made of all items together; nothing of what was there before may outlive its items."""
    try:
        with store.alone():
            write_note(store.path, job.resume_from, job.settings_hash)
        store.write_manifest()
        with store.alone():
            _place_light_curves(store, job)
    except Unstackable as error:  # as its settings want it: every item is there by itself
        summary.notes.append(f"no light curves of all together: {error}")
        log.warning("%s", summary.notes[-1])
    except OutputError as error:
        log.error("%s", error)
        summary.failed[_ALL] = str(error)


def _note_others(store: Store, job: Job) -> None:
    """Note at once what counts of other folders, as this run may be killed; warn of what is not there any longer."""
    with store.alone():
        elsewhere = write_note(store.path, job.resume_from, job.settings_hash)
    if elsewhere:
        log.warning("%s; what is asked for of them is made again", missing(store.path, elsewhere))


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
        pass  # said of the folder itself, when that is made
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
    """Have a process for each GPU do its part."""
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
        "--add": True,  # whether the folder is this data set's was asked here
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
        summary.failed.pop(_ALL, None)  # of one process's part; it is done again for the whole
        # Not all of them may have lived to say so.
        summary.left = len(observations) * len(DETECTORS) - summary.done - summary.skipped - len(summary.failed)
    for line in summary.failed.values():
        log.error("%s", line)


def _tick(observations: list[Observation], summary: Summary, update: Callable[[int], None]) -> None:
    update(len(observations) - -(-summary.left // len(DETECTORS)))


@contextmanager
def _progress(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that sets a progress bar, with planets a minute and the time left; log lines go above it."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
    began, logger = time.monotonic(), logging.getLogger("gpucal")
    # Most versions of tqdm put a handler without them in the place of the terminal's.
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
