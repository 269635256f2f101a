"""Calibrates one observation, or a stream of observations in order."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice, repeat
from numbers import Integral
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gpucal.backends import Pages, choose
from gpucal.errors import ConfigError, InputError
from gpucal.inputs.dataset import Dataset, Observation, open_dataset
from gpucal.pipeline.calibrated import Calibrated
from gpucal.pipeline.machine import usable_cores
from gpucal.pipeline.memory import checked_memory
from gpucal.pipeline.opening import open_beside
from gpucal.pipeline.stream import AHEAD, Item, Opened, Outcome, Pipeline, open_items
from gpucal.settings.arguments import require_kind, require_switches
from gpucal.settings.calibration import Calibration, settings_of
from gpucal.settings.detectors import DETECTORS, Detector, detector_of

__all__ = ["calibrate", "checked_dtype", "checked_threads", "decoded_pages", "stream"]


def calibrate(
    obs: Observation,
    detector: str,
    settings: Calibration | None = None,
    *,
    backend: str | None = None,
    device: bool = False,
    dtype: DTypeLike = np.float64,
    workers: int | None = None,
    config: Calibration | None = None,
) -> Calibrated:
    """Calibrate one detector of one observation.

    ``signal = (Σ over a bin's pairs of [P(n_end) − P(n_start)] − dark·τ) / flat``, see `gpucal.science.plan`.

    Parameters
    ----------
    obs : Observation
        An observation of a data set that `gpucal.open_dataset` opened.
    detector : {'AIRS-CH0', 'FGS1'}
        The detector's name.
    settings : Calibration, optional
        Settings, such as ``obs.dataset.settings(bins={'FGS1': '24s'})``. Those left open take the preset of the data
        set's layout; by default all are left open.
    backend : {'auto', 'cupy', 'numba', 'numpy'}, optional
        The backend that computes. By default GPUCAL_BACKEND, else the fastest that can run here.
    device : bool
        Leave the result on the device; needs the cupy backend.
    dtype : dtype
        Type of the result, float64 or float32. The arithmetic is always float64.
    workers : int, optional
        Threads that decode and bin. By default one per usable core.
    config : Calibration, optional
        The old name of ``settings``.

    Returns
    -------
    Calibrated
        Signal (time, wavelength, spatial) in electrons, with its flags, axes and provenance.

    Raises
    ------
    ConfigError
        If the detector or dtype is unknown, or an argument is of a wrong type.
    BackendUnavailable
        If the chosen backend cannot run here.
    InputError
        If the observation's files cannot be used.

    Examples
    --------
    >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
    >>> cal = gpucal.calibrate(obs, "AIRS-CH0")
    >>> cal.signal.shape
    (2, 282, 32)
    >>> gpucal.calibrate(obs, "FGS1", gpucal.Calibration(bins={"FGS1": "24s"})).signal.shape
    (12, 32, 32)
    """
    require_kind("obs", obs, Observation, "ds[17]")
    asked = settings_of(settings, config)
    (cal,) = stream([obs], detector, asked, backend=backend, device=device, dtype=dtype, workers=workers)
    return cal


def stream(
    observations: Iterable[Observation] | str | Path,
    detector: str,
    settings: Calibration | None = None,
    *,
    backend: str | None = None,
    device: bool = False,
    dtype: DTypeLike = np.float64,
    workers: int | None = None,
    memory: int | str | None = None,
    config: Calibration | None = None,
) -> Iterator[Calibrated]:
    """Calibrate observations in order. The next ones are read and decoded while the caller uses one.

    Parameters
    ----------
    observations : iterable of Observation, or str or Path
        The observations, such as a `Dataset` or its path.
    detector : {'AIRS-CH0', 'FGS1'}
        The detector's name.
    settings, backend, device, dtype, workers, config
        As for `calibrate`.
    memory : int or str, optional
        As for `run`.

    Returns
    -------
    iterator of Calibrated
        One result per observation.

    Raises
    ------
    ConfigError, BackendUnavailable, InputError
        As for `calibrate`. Those of observations come when their turn has come.

    Examples
    --------
    >>> ds = gpucal.open_dataset("ariel-data-challenge-2025")
    >>> for cal in gpucal.stream(ds, "FGS1"):
    ...     print(cal.planet, cal.signal.shape)
    20955726 (2, 32, 32)
    2355445450 (2, 32, 32)
    """
    asked, named = settings_of(settings, config), detector_of(detector)
    require_switches(device=device)
    kind, threads, limit = checked_dtype(dtype), checked_threads(workers), checked_memory(memory)
    if isinstance(observations, (str, Path)):
        observations = open_dataset(observations)
    if not isinstance(observations, Iterable):
        require_kind("observations", observations, Dataset, "gpucal.open_dataset('data')")
    return _streamed(
        observations, named, asked, "cupy" if device and backend is None else backend, device, kind, threads, limit
    )


def _streamed(
    observations: Iterable[Observation],
    detector: Detector,
    asked: Calibration,
    backend: str | None,
    device: bool,
    kind: np.dtype[Any],
    threads: int,
    memory: int | None,
) -> Iterator[Calibrated]:
    def item_of(obs: Observation) -> Item:
        require_kind("observations", obs, Observation, "ds[17]")
        filled = asked.filled(obs.dataset.layout.preset)
        return Item(obs, filled.cropped(detector), filled)

    items = map(item_of, observations)
    # This thread asks the caller's iterable, which may belong to it; the pipeline's thread opens what it gives.
    waiting: SimpleQueue[Item | None] = SimpleQueue()
    for item in islice(chain(items, repeat(None)), AHEAD):  # None is the end
        waiting.put(item)
    pipeline: Pipeline | None = None

    def asked_for() -> Iterator[Item]:
        while True:
            try:
                item = waiting.get(timeout=0.5)
            except Empty:
                if pipeline is not None:
                    pipeline.check_alive()
            else:
                if item is None:
                    return
                yield item

    computes = choose(backend)
    opened = (open_items if computes.on_device is None else open_beside)(asked_for())
    with (
        _closed(opened),
        Pipeline(opened, computes, dtype=kind, threads=threads, memory=memory, device=device) as running,
        _ended(waiting),
    ):
        pipeline = running
        for outcome in pipeline.outcomes():
            result = outcome.result
            del outcome
            waiting.put(next(items, None))
            if isinstance(result, InputError):
                raise result
            assert result is not None  # every item is wanted here
            yield result
            del result  # the caller alone holds it while the next one is made


@contextmanager
def _closed(opened: Generator[Opened | Outcome, None, None]) -> Iterator[None]:
    """End what opens items; but where an interrupt leaves a thread in it, that thread does."""
    try:
        yield
    finally:
        with suppress(ValueError):
            opened.close()


@contextmanager
def _ended(waiting: SimpleQueue[Item | None]) -> Iterator[None]:
    """Have a reader that waits for items find the end, however this ends."""
    try:
        yield
    finally:
        waiting.put(None)


def decoded_pages(obs: Observation, detector: str) -> Pages:
    """Calibrate one detector of one observation, and tell how many pages of its file were decoded in which way."""
    config = Calibration().filled(obs.dataset.layout.preset)
    items = open_items([Item(obs, config.cropped(DETECTORS[detector]), config)])
    with Pipeline(items, choose(), dtype=np.dtype(np.float64), threads=usable_cores()) as pipeline:
        outcome = next(pipeline.outcomes())
    if isinstance(outcome.result, InputError):
        raise outcome.result
    return outcome.pages


def checked_threads(workers: int | None) -> int:
    """Return the number of threads, one per usable core by default; raises ConfigError if it is not above 0."""
    if workers is None:
        return usable_cores()
    if isinstance(workers, bool) or not isinstance(workers, Integral) or workers < 1:
        raise ConfigError(f"workers = {workers!r}: must be an integer above 0")
    return int(workers)


def checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return float32 or float64 as a dtype; raises ConfigError for any other."""
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:  # SyntaxError: NumPy parses "f4,(" as Python
        raise ConfigError(f"dtype = {dtype!r}: must be float32 or float64") from error
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ConfigError(f"dtype = {kind}: must be float32 or float64")
    return kind
