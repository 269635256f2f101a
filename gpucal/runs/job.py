"""The settings of a run, the same for every item."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpucal.inputs.dataset import Observation
from gpucal.pipeline.calibrate import checked_threads
from gpucal.pipeline.stream import Item
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, ORDER
from gpucal.settings.table import BY_NOISE

__all__ = ["Job", "items_of"]


@dataclass(frozen=True)
class Job:
    """The settings of a run, the same for every item; picklable.

    Parameters
    ----------
    out : Path
        The results folder.
    config : Calibration
        The settings.
    dtype : {'float32', 'float64'}
        Type of the stored arrays.
    product : {'cubes', 'light-curves'}
        The product to store.
    variance : bool
        Store the cubes' variances too.
    backend : str, optional
        The backend that computes.
    workers : int, optional
        Threads that decode and bin, of each process; by default one for each core that it may use.
    memory : int, optional
        Limit of the peak resident memory of each process, bytes.
    overwrite : bool
        Calibrate finished items again.
    strict : bool
        Check input files fully.
    resume_from : tuple of Path
        Other results folders, whose items count as done.
    """

    out: Path
    config: Calibration
    dtype: str
    product: str
    variance: bool
    backend: str | None
    workers: int | None
    memory: int | None
    overwrite: bool = False
    strict: bool = False
    resume_from: tuple[Path, ...] = ()

    @property
    def threads(self) -> int:
        """Threads that decode and bin in this process."""
        return checked_threads(self.workers)

    @property
    def value_bytes(self) -> int:
        """Bytes that a value of a cube takes until the item is written: the value, and what is made from it."""
        stored = np.dtype(self.dtype).itemsize
        # Light curves, the sixteenth of the bins that is summed at once, and numbers on quality; of 32 rows or more.
        beside = 2
        # A variance is computed in float64 and stored like the signal.
        variance = 8 + stored if self.variance or self.config.weights in BY_NOISE else 0
        return stored + beside + variance

    @property
    def settings(self) -> str:
        """All settings that decide an item's contents, as TOML."""
        output = {"dtype": self.dtype, "product": self.product, "variance": self.variance}
        table = "\n".join(f"{name} = {json.dumps(value)}" for name, value in output.items())
        return f"{self.config.to_toml()}\n[output]\n{table}\n"

    @property
    def settings_hash(self) -> str:
        """Hash of the settings, which commit records hold."""
        identity = json.dumps([self.config.content_hash, self.dtype, self.product, self.variance])
        return hashlib.sha256(identity.encode()).hexdigest()


def items_of(job: Job, observations: Iterable[Observation]) -> Iterator[Item]:
    """Yield the items of observations in the order of a run.

    FGS1 comes first: its few long pages keep a GPU busy longest, and those of AIRS-CH0 come beside them.
    """
    detectors = [job.config.cropped(DETECTORS[name]) for name in ORDER]
    return (Item(obs, detector, job.config) for obs in observations for detector in detectors)
