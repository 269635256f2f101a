"""One observation to a `Calibrated`, and a dataset to a results folder."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gpucal.backends import choose
from gpucal.config import PRESETS, Calibration
from gpucal.dataset import Dataset, Observation
from gpucal.detectors import DETECTORS
from gpucal.errors import ConfigError, InputError, OutputError
from gpucal.export import LIGHT_CURVES, write_light_curves
from gpucal.fleet import Fleet, gpus_for
from gpucal.limits import usable_cores
from gpucal.overlap import Item, Line, Outcome
from gpucal.product import Calibrated, arrays_of
from gpucal.results import open_results
from gpucal.rules import PRODUCTS
from gpucal.store import Store

__all__ = ["Summary", "calibrate", "run", "stream"]

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a run did, counted in items (an observation's detector).

    Parameters
    ----------
    done, skipped : int
        Items calibrated, and items that were there already.
    failed : dict of str to str
        Planet, visit and detector to the one line that says why.
    seconds : float
        Wall time.
    stages : dict of str to float
        Seconds spent opening, reading, decoding, binning and writing, summed over threads; they overlap.
    backend : str
        Which backend ran.
    """

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
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
    kind, threads = _checked_dtype(dtype), _threads(workers)
    presets = {name: config or preset for name, preset in PRESETS.items()}
    settings = ((obs, presets[obs.dataset.layout.preset]) for obs in observations)
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


def run(
    dataset: Dataset,
    out: str | Path,
    config: Calibration | None = None,
    *,
    planets: Iterable[int] | None = None,
    backend: str | None = None,
    dtype: DTypeLike = np.float32,
    product: str = "cubes",
    variance: bool = False,
    workers: int | None = None,
    memory: int | None = None,
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
    product : {'cubes', 'light-curves'}
        Store the cubes; or light curves with their errors and nothing else, each observation's by itself and those of
        all in ``light-curves.parquet`` and ``light-curves.npy``, see `gpucal.export.write_light_curves`.
    variance : bool
        Store the cubes' variances too.
    memory : int, optional
        Peak resident memory to stay below, bytes. By default 900 MB a process, not enforced on a single item that
        needs more; a number given is. What CUDA holds on the host comes on top.
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
    DeviceError
        If a GPU fails; of several, each has a process of its own, and whatever ends that one.
    """
    chosen_planets = dataset.planets if planets is None else dict.fromkeys(planets)
    observations = [dataset[p, visit] for p in chosen_planets for visit in dataset.visits(dataset[p].planet)]
    kind, threads, began = _checked_dtype(dtype), _threads(workers), time.perf_counter()
    if product not in PRODUCTS:
        raise ConfigError(f"product = {product!r}: must be one of {', '.join(PRODUCTS)}")
    settings = config or Calibration.preset(dataset.layout.preset)
    identity = json.dumps([settings.content_hash, kind.name, product, variance])
    settings_hash = hashlib.sha256(identity.encode()).hexdigest()
    store = Store(Path(out))
    if gpus := gpus_for(backend, len(chosen_planets), memory):
        splits = {obs.split for obs in observations}
        options = {
            "--backend": backend,
            "--dtype": kind.name,
            "--workers": max(1, threads // len(gpus)),
            "--memory": memory and memory // len(gpus),
            "--split": splits.pop() if len(splits) == 1 else None,
            "--product": product,
            "--variance": variance,
            "--overwrite": overwrite,
        }
        store.create(settings.to_toml())
        last = [*DETECTORS][-1]
        records = [store.path / str(obs.planet) / str(obs.visit) / f"{last}.json" for obs in observations]
        since = time.time() if overwrite else 0.0
        with _progress(progress, len(observations)) as bar:
            fleet = Fleet(dataset.path, store.path, settings.to_toml(), options)
            reports = fleet.run(gpus, [*chosen_planets], lambda: bar.update(_written(records, since) - bar.n))
        summary = _summed(reports, time.perf_counter() - began)
        _finish(store, product, summary)
        return summary

    def missing(item: Item, inputs: str) -> bool:
        return overwrite or not store.keep(*item.obs.key, item.detector, settings_hash, inputs)

    detectors = [settings.cropped(detector) for detector in DETECTORS.values()]
    items = [Item(obs, detector, settings) for obs in observations for detector in detectors]
    needs_variance = variance or product == "light-curves"
    # A variance is computed in float64 and stored like the signal.
    value_bytes = kind.itemsize + needs_variance * (8 + kind.itemsize)
    with Line(items, dtype=kind, threads=threads, memory=memory, value_bytes=value_bytes, wanted=missing) as line:
        line.wait_for_data()
        chosen = choose(backend)
        store.create(settings.to_toml())
        summary = Summary(backend=chosen.name)
        with _progress(progress, len(observations)) as bar:
            for outcome in line.outcomes(chosen):
                _take(
                    outcome, store, summary, settings_hash, partial(arrays_of, product=product, with_variance=variance)
                )
                if outcome.item.detector is detectors[-1]:
                    bar.update()
                    bar.set_postfix_str(f"{60 * bar.n / (time.perf_counter() - began):.1f} planets/min")
                del outcome  # its output is memory that the next item may use
    _finish(store, product, summary)
    summary.seconds = time.perf_counter() - began
    return summary


def _finish(store: Store, product: str, summary: Summary) -> None:
    """Write what is made of all items together; nothing of what was there before may outlive its items."""
    store.write_manifest()
    files = [store.path / name for name in LIGHT_CURVES]
    results = open_results(store.path) if product == "light-curves" else None
    if results and results.ids and not summary.done and all(file.exists() for file in files):
        return
    for file in files:
        file.unlink(missing_ok=True)
    if results and results.ids:
        try:
            write_light_curves(results)
        except OutputError as error:  # what differs in shape has no stack; every item is there by itself
            log.error("%s", error)
            summary.failed["light curves of all"] = str(error)


def _take(
    outcome: Outcome,
    store: Store,
    summary: Summary,
    settings_hash: str,
    arrays: Callable[[Calibrated], dict[str, NDArray[Any]]],
) -> None:
    """Write what became of an item, and count it."""
    obs, detector = outcome.item.obs, outcome.item.detector
    if outcome.result is None:
        summary.skipped += 1
    elif isinstance(outcome.result, InputError):
        line = str(outcome.result)
        log.error("%s", line)
        summary.failed[obs.where(detector)] = line
        store.fail(*obs.key, detector, line)
    else:
        start = time.perf_counter()
        spent = sum(outcome.seconds.values())
        cal = outcome.result
        store.commit(cal, arrays(cal), settings=settings_hash, inputs=outcome.inputs, seconds=spent)
        summary.done += 1
        for stage, seconds in {**outcome.seconds, "write": time.perf_counter() - start}.items():
            summary.stages[stage] = summary.stages.get(stage, 0.0) + seconds


def _written(records: list[Path], since: float) -> int:
    """Count records that other processes have written by now."""
    return sum(path.exists() and path.stat().st_mtime >= since for path in records)


def _summed(reports: list[dict[str, Any]], seconds: float) -> Summary:
    """Add up what several processes did."""
    backends = dict.fromkeys(report["backend"] for report in reports)
    total = Summary(seconds=seconds, backend=", ".join(backends))
    for report in reports:
        total.done += report["done"]
        total.skipped += report["skipped"]
        total.failed |= report["failed"]
        for stage, spent in report["stages"].items():
            total.stages[stage] = total.stages.get(stage, 0.0) + spent
    for line in total.failed.values():
        log.error("%s", line)
    return total


@contextmanager
def _progress(shown: bool, total: int) -> Iterator[Any]:
    """Give a progress bar with planets a minute and the time left; log lines go above it."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left{postfix}]"
    with (
        tqdm(total=total, disable=not shown, unit="planet", bar_format=form) as bar,
        logging_redirect_tqdm([logging.getLogger("gpucal")]) if shown else nullcontext(),
    ):
        yield bar


def _threads(workers: int | None) -> int:
    if workers is None:
        return usable_cores()
    if isinstance(workers, bool) or not isinstance(workers, Integral) or workers < 1:
        raise ConfigError(f"workers = {workers!r}: must be an integer above 0")
    return int(workers)


def _checked_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:  # the last as "f4,(" is parsed as Python
        raise ConfigError(f"dtype = {dtype!r}: must be float32 or float64") from error
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ConfigError(f"dtype = {kind}: must be float32 or float64")
    return kind
