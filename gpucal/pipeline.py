"""One observation to a `Calibrated`, and a dataset to a results folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

import gpucal
from gpucal.backends import Backend, choose
from gpucal.config import Calibration
from gpucal.dataset import Dataset, Observation
from gpucal.detectors import DETECTORS, Detector
from gpucal.errors import BackendUnavailable, ConfigError, InputError
from gpucal.frames import CalibrationFrames
from gpucal.plan import DQ, Plan, make_plan
from gpucal.reader import Loaded, Signal, open_signal
from gpucal.results import Calibrated, Store

__all__ = ["Summary", "calibrate", "run", "stream"]

log = logging.getLogger(__name__)

# Bytes of raw counts in a pixel block: enough that a decode call's overhead vanishes, little beside the result.
_BLOCK = 6 * 2**20


@dataclass(frozen=True)
class Summary:
    """What a run did, counted in items (an observation's detector).

    Parameters
    ----------
    done, skipped : int
        Items calibrated, and items that were there already.
    failed : mapping of str to str
        Planet, visit and detector to the one line that says why.
    seconds : float
        Wall time.
    backend : str
        Which backend ran.
    """

    done: int
    skipped: int
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    backend: str = ""


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

    ``signal = (Σ over a bin's pairs of [P(n_end) − P(n_start)] − dark·τ) / flat``, see `gpucal.plan`.

    Parameters
    ----------
    obs : Observation
        From `gpucal.open_dataset`.
    detector : {'AIRS-CH0', 'FGS1'}
        Which detector.
    config : Calibration, optional
        Settings; by default the preset of the dataset's layout.
    backend : {'auto', 'cupy', 'numba', 'numpy'}, optional
        By default GPUCAL_BACKEND, else the fastest that can run here.
    device : bool
        Leave the result on the device; needs the cupy backend.
    dtype : dtype
        Of the result, float64 or float32; the arithmetic is float64.
    workers : int, optional
        Threads; by default one a usable core.

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
    if detector not in DETECTORS:
        raise ConfigError(f"no detector {detector!r}; there are {', '.join(DETECTORS)}")
    chosen = choose(backend)
    if device:
        raise BackendUnavailable(f"device=True: backend {chosen.name!r} leaves no result on a device; use device=False")
    settings = config or Calibration.preset(obs.dataset.layout.preset)
    facts = DETECTORS[detector]
    try:
        return _calibrate(
            obs, facts, settings, chosen, _checked_dtype(dtype), _threads(workers), _Inputs.open(obs, facts)
        )
    except InputError as error:
        raise error.at(obs.where(facts)) from error


def stream(
    observations: Iterable[Observation],
    detector: str,
    config: Calibration | None = None,
    *,
    backend: str | None = None,
    device: bool = False,
    dtype: DTypeLike = np.float64,
    workers: int | None = None,
) -> Iterator[Calibrated]:
    """Calibrate observations in order, one ahead of what is being consumed.

    Parameters
    ----------
    observations : iterable of Observation
        Such as a `Dataset`.
    detector : {'AIRS-CH0', 'FGS1'}
        Which detector.
    config, backend, device, dtype, workers
        As for `calibrate`.

    Yields
    ------
    Calibrated
        One an observation.
    """
    with ThreadPoolExecutor(1) as ahead:
        waiting = None
        for obs in observations:
            following = ahead.submit(
                calibrate, obs, detector, config, backend=backend, device=device, dtype=dtype, workers=workers
            )
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def run(
    dataset: Dataset,
    out: str | Path,
    config: Calibration | None = None,
    *,
    planets: Iterable[int] | None = None,
    backend: str | None = None,
    dtype: DTypeLike = np.float32,
    variance: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Calibrate a dataset into a results folder; items already there, of these settings and inputs, are kept.

    Parameters
    ----------
    dataset : Dataset
        From `gpucal.open_dataset`.
    out : str or Path
        The results folder.
    config : Calibration, optional
        Settings; by default the preset of the dataset's layout.
    planets : iterable of int, optional
        Only these.
    backend, workers
        As for `calibrate`.
    dtype : dtype
        Of the files.
    variance : bool
        Write variances too.
    overwrite : bool
        Make everything again.
    progress : bool
        Show a progress bar with planets a minute and the time left.

    Returns
    -------
    Summary
        What was done, skipped and failed; a failed item costs no other.

    Raises
    ------
    DatasetError
        If a planet asked for is not in the dataset.
    BackendUnavailable
        If the backend asked for cannot run here.
    OutputError
        If the folder cannot be written.
    """
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    chosen_planets = dataset.planets if planets is None else dict.fromkeys(planets)
    wanted = [dataset[p, visit] for p in chosen_planets for visit in dataset.visits(dataset[p].planet)]
    chosen, kind, threads = choose(backend), _checked_dtype(dtype), _threads(workers)
    settings = config or Calibration.preset(dataset.layout.preset)
    store = Store(Path(out))
    store.write("config.toml", settings.to_toml().encode())
    identity = json.dumps([settings.content_hash, kind.name, variance])
    settings_hash = hashlib.sha256(identity.encode()).hexdigest()
    done = skipped = 0
    failed: dict[str, str] = {}
    began = time.perf_counter()
    form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
    with (
        tqdm(wanted, disable=not progress, unit="planet", bar_format=form) as bar,
        logging_redirect_tqdm([logging.getLogger("gpucal")]) if progress else nullcontext(),
    ):
        for count, obs in enumerate(bar, 1):
            for detector in DETECTORS.values():
                start = time.perf_counter()
                try:
                    inputs = _Inputs.open(obs, detector)
                    if not overwrite and _is_done(store.record(*obs.key, detector), settings_hash, inputs.fingerprint):
                        skipped += 1
                        continue
                    cal = _calibrate(obs, detector, settings, chosen, kind, threads, inputs)
                except InputError as error:
                    line = str(error.at(obs.where(detector)))
                    log.error("%s", line)
                    failed[obs.where(detector)] = line
                    store.fail(*obs.key, detector, line)
                    continue
                seconds = time.perf_counter() - start
                store.commit(
                    cal, settings=settings_hash, inputs=inputs.fingerprint, seconds=seconds, with_variance=variance
                )
                done += 1
            bar.set_postfix_str(f"{60 * count / (time.perf_counter() - began):.1f} planets/min")
    store.write_manifest()
    return Summary(done, skipped, failed, time.perf_counter() - began, chosen.name)


@dataclass(frozen=True)
class _Inputs:
    """Everything one item is made from, opened but not decoded, and its fingerprint."""

    signal: Signal
    frames: CalibrationFrames
    fingerprint: str

    @classmethod
    def open(cls, obs: Observation, detector: Detector) -> _Inputs:
        signal = open_signal(obs.signal_path(detector), detector)
        frames = obs.frames(detector)
        content = hashlib.sha256(f"{signal.fingerprint} {frames.digest} {obs.adc(detector)}".encode())
        axis = obs.axis(detector)
        for values in (axis.time_h, axis.wavelength_um, axis.integration_s):
            content.update(b"-" if values is None else values.tobytes())
        return cls(signal, frames, content.hexdigest())


def _calibrate(
    obs: Observation,
    detector: Detector,
    config: Calibration,
    backend: Backend,
    dtype: np.dtype[Any],
    threads: int,
    inputs: _Inputs,
) -> Calibrated:
    axis = obs.axis(detector)
    try:
        plan = make_plan(detector, config, inputs.frames, obs.adc(detector), axis, inputs.signal.n_frames)
    except InputError as error:
        raise InputError(error.problem, error.mend, error.path or inputs.signal.path) from error
    signal, saturated = _all_blocks(plan, inputs.signal.load(), backend, dtype, threads)
    dq = plan.dq.copy()
    dq[saturated] |= np.uint8(DQ.SATURATED)
    dq = np.ascontiguousarray(dq.reshape(detector.shape[0], detector.width).T)
    if config.bad_pixels == "nan":
        signal[:, dq != 0] = np.nan
    provenance = {
        "version": gpucal.__version__,
        "backend": backend.name,
        "device": backend.runs_on,
        "settings": config.to_dict(),
        "settings_hash": config.content_hash,
        "inputs": inputs.fingerprint,
    }
    return Calibrated(*obs.key, signal, dq, axis.wavelength_um, provenance, plan)


def _all_blocks(
    plan: Plan, loaded: Loaded, backend: Backend, dtype: np.dtype[Any], threads: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Decode and bin every pixel block; memory is the file, the output and what each thread decodes at once."""
    height, width = plan.detector.shape[0], plan.detector.width
    out = np.empty((plan.n_bins, width, height), dtype)
    saturated = np.zeros(plan.n_pixels, bool)
    step = min(width, max(1, _BLOCK // (2 * loaded.signal.n_frames)))
    # A block stays inside one spatial row, so that its result is a plain slice of the output.
    blocks = (
        slice(y * width + x, y * width + min(x + step, width)) for y in range(height) for x in range(0, width, step)
    )
    units = iter(list(loaded.units(blocks)))  # a list's iterator may be advanced by several threads

    def work() -> None:
        for pixels, counts in loaded.decode(units):
            binned = np.empty((len(counts), plan.n_bins))
            saturated[pixels] = backend.bin_block(plan, pixels, counts, binned)
            y, first = divmod(pixels.start, width)
            with np.errstate(over="ignore", invalid="ignore"):  # float64 outliers beyond float32's range
                out[:, first : first + len(counts), y] = binned.T

    with ThreadPoolExecutor(threads) as pool:
        for worker in [pool.submit(work) for _ in range(threads)]:
            worker.result()
    return out, saturated


def _is_done(record: dict[str, Any] | None, settings: str, inputs: str) -> bool:
    return record is not None and (record["status"], record.get("settings"), record.get("inputs")) == (
        "done",
        settings,
        inputs,
    )


def _threads(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise ConfigError(f"workers = {workers}: must be an integer above 0")
    return workers or len(os.sched_getaffinity(0))


def _checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ConfigError(f"dtype = {kind}: must be float32 or float64")
    return kind
