"""The request for a run, and the check that it can be met."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from gpucal.backends import named
from gpucal.errors import ConfigError, InputError
from gpucal.inputs.dataset import Dataset, Observation
from gpucal.inputs.signal_file import open_signal
from gpucal.pipeline.calibrate import checked_dtype, checked_threads
from gpucal.pipeline.memory import Budget, checked_memory
from gpucal.results.origin import require_outside, require_same_dataset
from gpucal.results.other_folders import noted_folders
from gpucal.results.records import records, require_records
from gpucal.results.writer import Store
from gpucal.runs.folder import changes
from gpucal.runs.job import Job
from gpucal.settings.arguments import from_text, path_of, require_switches
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, Detector
from gpucal.settings.ids import ids_in
from gpucal.settings.rules import PRODUCTS
from gpucal.settings.values import part as part_of

__all__ = ["Request", "prepare"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The parameters of `gpucal.run` that say what to calibrate, how, and into which folder.

    ``out`` is None where it is not known yet.
    """

    dataset: Dataset
    out: Path | None
    config: Calibration = field(default_factory=Calibration)
    planets: Iterable[object] | object | None = None
    shard: tuple[int, int] | str | None = None
    backend: str | None = None
    dtype: DTypeLike = np.float32
    product: str = "cubes"
    variance: bool = False
    workers: int | None = None
    memory: int | str | None = None
    overwrite: bool = False
    add: bool = False
    resume_from: Iterable[str | Path] | str | Path = ()
    strict: bool = False


def prepare(request: Request) -> tuple[Job, list[Observation]]:
    """Judge a request before anything is written; return the run's settings, and what is to be calibrated.

    Raises the errors of `gpucal.run` for a request that cannot be met.
    """
    if not isinstance(request.product, str) or request.product not in PRODUCTS:
        raise ConfigError(f"product = {request.product!r}: must be one of {', '.join(PRODUCTS)}")
    names = ("variance", "overwrite", "add", "strict")
    require_switches(**{name: getattr(request, name) for name in names})
    named(request.backend)
    dataset, out, memory = request.dataset, request.out, checked_memory(request.memory)
    planets: Iterable[int] = dataset.planets
    if request.planets is not None:
        planets = dict.fromkeys(dataset[one].planet for one in ids_in(request.planets))
    chosen = _shard([*planets], request.shard)
    observations = [dataset[p, visit] for p in chosen for visit in dataset.visits(p)]
    job = Job(
        out=out or Path(),
        config=request.config.filled(dataset.layout.preset),
        dtype=checked_dtype(request.dtype).name,
        product=request.product,
        variance=request.variance and request.product == "cubes",  # light curves have errors anyway
        backend=request.backend,
        workers=None if request.workers is None else checked_threads(request.workers),
        memory=memory,
        overwrite=request.overwrite,
        strict=request.strict,
        resume_from=tuple(require_records(folder) for folder in _folders(request.resume_from)),
    )
    here = [] if out is None else [out]
    for folder in here:
        require_outside(dataset, folder)
    noted = noted_folders([*here, *job.resume_from], job.settings_hash)
    if here or noted:
        require_same_dataset(dataset, [*here, *noted], "give another folder", add=request.add)
    for folder in job.resume_from:
        made_with = {record.get("settings") for record in records(folder) if record["status"] == "done"}
        if job.settings_hash in made_with:
            require_same_dataset(dataset, [folder], "leave it out of --resume-from", add=request.add)
        elif made_with:
            differing = changes(Store(folder).settings() or "", job)
            log.warning("%s: nothing in it counts as done: it has other settings (%s)", folder, differing)
    job = replace(job, resume_from=(*job.resume_from, *noted))
    if observations:
        _check_bins(observations, job.config)
    # Refuse impossible requests before anything is written.
    Budget(job.memory, job.threads)
    return job, observations


def _check_bins(observations: list[Observation], config: Calibration) -> None:
    """Raise ConfigError for bins shorter than a pair, or longer than all that is used of any file that can be read."""
    dropped = config.drop_last_pairs
    for detector in DETECTORS.values():
        pairs = most = 0
        with suppress(InputError):  # every item will report that
            pairs = config.pairs_per_bin(detector, observations[0].axis(detector).pair_s)
        if pairs == 0 or (pairs in (1, detector.bin_pairs) and not dropped):  # usual settings need no file opened
            continue
        for obs in observations:
            with suppress(InputError):
                most = max(most, open_signal(obs.signal_path(detector), detector).n_frames // 2)
            if pairs + dropped <= most:
                break
        if 0 < most < pairs + dropped:
            raise _too_long(detector, config, pairs, most)


def _too_long(detector: Detector, config: Calibration, pairs: int, most: int) -> ConfigError:
    """Return the error of a bin that no observation fills, of which the longest has ``most`` pairs of reads."""
    name, dropped = detector.name, config.drop_last_pairs
    problem, left = f"no observation has more than {most:,} pairs of reads", most - dropped
    if pairs <= most:
        needs = f"of {name}, and a bin has {pairs:,}; drop at most {most - pairs:,}"
        return ConfigError(f"drop_last_pairs = {dropped}: {problem} {needs}")
    problem += f", and the last {dropped:,} are left out" if dropped else ""
    smaller = f"use smaller bins, as in --bin {name}={left}" if left > 0 else "use smaller bins, and leave out fewer"
    return ConfigError(f"bins: {name} = {config.bins[name]!r}: {problem}; {smaller}")


def _folders(resume_from: object) -> list[Path]:
    if isinstance(resume_from, (str, bytes)) or not isinstance(resume_from, Iterable):
        resume_from = [resume_from]
    return [path_of("resume_from", folder) for folder in resume_from]


def _shard(planets: list[int], shard: tuple[int, int] | str | None) -> list[int]:
    if shard is None:
        return planets
    if isinstance(shard, str):
        shard = from_text("shard", shard, part_of)
    try:
        part, parts = shard
        possible = all(isinstance(n, Integral) and not isinstance(n, bool) for n in shard) and 1 <= part <= parts
    except (TypeError, ValueError):
        possible = False
    if not possible:
        raise ConfigError(f"shard = {shard!r}: must be (i, n) or 'i/n', the i-th of n parts, i from 1 to n")
    return planets[part - 1 :: parts]
