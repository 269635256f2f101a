"""Predicts the time for a whole competition folder on this machine from a few calibrated observations."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gpucal.errors import InputError
from gpucal.inputs.dataset import Dataset, open_dataset
from gpucal.runs.run import run
from gpucal.settings.detectors import DETECTORS

__all__ = ["COMPETITIONS", "Bench", "bench", "bench_synthetic"]

COMPETITIONS = {"2024 train": 673, "2024 test, about": 800, "2025 train": 1100}
"""Planets in the published folders, and in the hidden one as its organisers state it."""


@dataclass(frozen=True)
class Bench:
    """Times of a few observations.

    Parameters
    ----------
    observations : int
        Number of timed observations, after one that warmed up.
    seconds : float
        Time of each, both detectors, from Parquet to results.
    megabytes : float
        Size of each observation's signal files.
    stages : dict of str to float
        Seconds an observation spent opening, reading, decoding, binning and writing, summed over threads.
    backend : str
        The backend that ran.
    """

    observations: int
    seconds: float
    megabytes: float
    stages: dict[str, float]
    backend: str

    def predicted_s(self, observations: int) -> float:
        """Predict the seconds for more observations of this size: the time grows in proportion."""
        return self.seconds * observations


def bench(dataset: Dataset, observations: int = 4, *, backend: str | None = None, workers: int | None = None) -> Bench:
    """Time the first observations of a data set, with results in a temporary folder.

    Parameters
    ----------
    dataset : Dataset
        The data set, from `gpucal.open_dataset`.
    observations : int
        How many to time, after one that warms up. A smaller data set gives fewer; a single observation is timed itself.
    backend, workers
        As for `gpucal.calibrate`.

    Returns
    -------
    Bench
        The figures.

    Raises
    ------
    InputError
        If an observation cannot be calibrated.
    """
    planets = dataset.planets[1 : observations + 1] or dataset.planets[:1]
    timed = [obs for obs in dataset if obs.planet in planets]
    with tempfile.TemporaryDirectory(prefix="gpucal-bench-") as out:
        run(dataset, out, planets=dataset.planets[:1], backend=backend, workers=workers)
        start = time.perf_counter()
        summary = run(dataset, out, planets=planets, backend=backend, workers=workers, overwrite=True)
        seconds = time.perf_counter() - start
    if summary.failed:
        raise InputError(next(iter(summary.failed.values())), "time a folder without damaged files")
    size = sum(obs.signal_path(detector).stat().st_size for obs in timed for detector in DETECTORS.values())
    stages = {stage: spent / len(timed) for stage, spent in summary.stages.items()}
    return Bench(len(timed), seconds / len(timed), size / len(timed) / 1e6, stages, summary.backend)


def bench_synthetic(*, backend: str | None = None, workers: int | None = None) -> Bench:
    """Time a synthetic observation of full size, three times after one that warms up; parameters as for `bench`."""
    from gpucal.synthetic.competition import synthesize

    with tempfile.TemporaryDirectory(prefix="gpucal-bench-") as scratch:
        raw = Path(scratch) / "raw"
        (planet,) = synthesize(raw, layout="2025")
        for i in range(3):  # the same files under other names; a run calibrates each
            (raw / "train" / str(planet + 1 + i)).symlink_to(str(planet))
        return bench(open_dataset(raw), 3, backend=backend, workers=workers)
