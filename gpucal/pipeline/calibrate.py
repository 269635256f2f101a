"""One observation to a `Calibrated`, or many of them in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gpucal.backends import choose
from gpucal.errors import ConfigError, InputError
from gpucal.inputs.dataset import Observation
from gpucal.pipeline.calibrated import Calibrated
from gpucal.pipeline.machine import usable_cores
from gpucal.pipeline.stream import Item, Line
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS

__all__ = ["calibrate", "checked_dtype", "checked_threads", "stream"]


def calibrate(
    obs: Observation,
    detector: str,
    config: Calibration | None = None,
    *,
    backend: str | None = None,
    device: bool = False,
    dtype: DTypeLike = np.float64,
    workers: int | None = None,
) -> Calibrated:
    """Calibrate one detector of one observation.

    ``signal = (Σ over a bin's pairs of [P(n_end) − P(n_start)] − dark·τ) / flat``, see `gpucal.science.plan`.

    Parameters
    ----------
    obs : Observation
        From `gpucal.open_dataset`.
    detector : {'AIRS-CH0', 'FGS1'}
        Which detector.
    config : Calibration, optional
        Settings; what they leave open, by default everything, is the preset of the dataset's layout.
    backend : {'auto', 'cupy', 'numba', 'numpy'}, optional
        By default GPUCAL_BACKEND, else the fastest that can run here.
    device : bool
        Leave the result on the device; needs the cupy backend.
    dtype : dtype
        Of the result, float64 or float32; the arithmetic is float64.
    workers : int, optional
        Threads that decode and bin; by default one a usable core.

    Returns
    -------
    Calibrated
        Signal (time, wavelength, spatial) in electrons, dq, and what goes with them.

    Raises
    ------
    ConfigError
        If the detector or dtype is unknown.
    BackendUnavailable
        If the backend asked for cannot run here.
    InputError
        If the observation's input is unusable.
    """
    (cal,) = stream([obs], detector, config, backend=backend, device=device, dtype=dtype, workers=workers)
    return cal


def stream(
    observations: Iterable[Observation],
    detector: str,
    config: Calibration | None = None,
    *,
    backend: str | None = None,
    device: bool = False,
    dtype: DTypeLike = np.float64,
    workers: int | None = None,
    memory: int | None = None,
) -> Iterator[Calibrated]:
    """Calibrate observations in order; the next ones are read and decoded while one is being consumed.

    Parameters
    ----------
    observations : iterable of Observation
        Such as a `Dataset`.
    detector : {'AIRS-CH0', 'FGS1'}
        Which detector.
    config, backend, device, dtype, workers
        As for `calibrate`.
    memory : int, optional
        As for `run`.

    Yields
    ------
    Calibrated
        One an observation.
    """
    if detector not in DETECTORS:
        raise ConfigError(f"no detector {detector!r}; there are {', '.join(DETECTORS)}")
    kind, threads = checked_dtype(dtype), checked_threads(workers)
    asked = config or Calibration()
    settings = ((obs, asked.filled(obs.dataset.layout.preset)) for obs in observations)
    items = (Item(obs, chosen.cropped(DETECTORS[detector]), chosen) for obs, chosen in settings)
    with Line(items, dtype=kind, threads=threads, memory=memory, device=device) as line:
        if not device:
            line.wait_for_data()
        chosen = choose("cupy" if device and backend is None else backend)
        for outcome in line.outcomes(chosen):
            result = outcome.result
            del outcome
            if isinstance(result, InputError):
                raise result
            assert result is not None  # everything is wanted here
            yield result
            del result  # the caller's alone now: nothing here keeps it while the next one is made


def checked_threads(workers: int | None) -> int:
    """Return how many threads decode and bin.

    Parameters
    ----------
    workers : int, optional
        As asked for.

    Returns
    -------
    int
        By default one a usable core.

    Raises
    ------
    ConfigError
        If it is no number of threads.
    """
    if workers is None:
        return usable_cores()
    if isinstance(workers, bool) or not isinstance(workers, Integral) or workers < 1:
        raise ConfigError(f"workers = {workers!r}: must be an integer above 0")
    return int(workers)


def checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return what results are stored or returned as.

    Parameters
    ----------
    dtype : dtype
        As asked for.

    Returns
    -------
    dtype
        float32 or float64.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:  # the last as "f4,(" is parsed as Python
        raise ConfigError(f"dtype = {dtype!r}: must be float32 or float64") from error
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ConfigError(f"dtype = {kind}: must be float32 or float64")
    return kind
