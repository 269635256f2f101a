"""The calibrated product, and a results folder read back, lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.detectors import DETECTORS, Detector
from gpucal.errors import OutputError
from gpucal.lightcurve import light_curve
from gpucal.noise import variance
from gpucal.plan import Plan
from gpucal.store import records

__all__ = ["Calibrated", "ResultArray", "Results", "open_results"]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """One detector of one observation, calibrated and binned.

    Parameters
    ----------
    planet, visit : int
        Which observation.
    signal : ndarray of float64 or float32, shape (time, wavelength, spatial)
        Electrons.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags, see `gpucal.DQ`; 0 is good.
    wavelength : ndarray of float64, shape (wavelength,), or None
        µm, descending; None for FGS1.
    provenance : mapping
        Version, backend, what it ran on, settings and their hash, input fingerprint.
    plan : Plan
        The arrays of the formula it was made with.
    """

    planet: int
    visit: int
    signal: NDArray[Any]
    dq: NDArray[np.uint8]
    wavelength: NDArray[np.float64] | None
    provenance: Mapping[str, Any]
    plan: Plan = field(repr=False)

    @property
    def detector(self) -> Detector:
        """The detector."""
        return self.plan.detector

    @property
    def time(self) -> NDArray[np.float64]:
        """Mean time of each bin, hours, shape (time,)."""
        return self.plan.time_h

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True where any flag is set, shape (wavelength, spatial)."""
        flagged: NDArray[np.bool_] = self.dq != 0
        return flagged

    @cached_property
    def variance(self) -> NDArray[np.float64]:
        """Variance of the signal, electrons², same shape; see `gpucal.noise.variance`."""
        return variance(self.signal, self.plan)

    def light_curve(self) -> NDArray[np.float64]:
        """Sum over good pixels.

        Returns
        -------
        ndarray of float64, shape (time, 282) or (time, 1)
            Electrons.
        """
        return light_curve(self.signal, self.dq, self.detector)


class ResultArray:
    """The signals of one detector: ``len``, ``[i]`` and slices read only what they need; picklable.

    Parameters
    ----------
    paths : list of Path
        One ``.signal.npy`` an observation.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int | slice | tuple[Any, ...]) -> NDArray[Any]:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if isinstance(first, slice):
            return np.stack([self[(i, *rest)] for i in range(*first.indices(len(self)))])
        if not rest:
            whole: NDArray[Any] = np.load(self._paths[first])
            return whole
        return np.array(np.load(self._paths[first], mmap_mode="r")[rest])

    def load(self) -> NDArray[Any]:
        """Read everything.

        Returns
        -------
        ndarray, shape (observation, time, wavelength, spatial)
            In the order of `Results.ids`.
        """
        return self[:]


class Results:
    """A results folder, as `open_results` opens it: ``results["AIRS-CH0"]`` is a `ResultArray`.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    OutputError
        If it holds no results.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = list(records(path))
        if not found:
            raise OutputError(f"{path}: holds no results; make some with `gpucal calibrate DATASET {path}`")
        done = {(r["planet"], r["visit"], r["detector"]) for r in found if r["status"] == "done"}
        keys = sorted({(r["planet"], r["visit"]) for r in found})
        self.ids = [key for key in keys if all((*key, name) in done for name in DETECTORS)]
        self.failed = {(r["planet"], r["visit"], r["detector"]): r["error"] for r in found if r["status"] != "done"}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, detector: str) -> ResultArray:
        if detector not in DETECTORS:
            raise KeyError(f"no detector {detector!r}; there are {', '.join(DETECTORS)}")
        return ResultArray([self._file(key, detector, "signal") for key in self.ids])

    def dq(self, detector: str) -> NDArray[np.uint8]:
        """Return the data-quality flags of every complete observation.

        Parameters
        ----------
        detector : str
            Its name.

        Returns
        -------
        ndarray of uint8, shape (observation, wavelength, spatial)
            Flags.
        """
        return np.stack([np.load(self._file(key, detector, "dq")) for key in self.ids])

    def light_curves(self) -> NDArray[np.float64]:
        """Sum every complete observation over its good spatial pixels.

        Returns
        -------
        ndarray of float64, shape (observation, time, 283)
            FGS1 first, then the AIRS-CH0 columns; electrons.

        Raises
        ------
        OutputError
            If the detectors' bins differ in number.
        """
        return np.stack([self.light_curves_of(key) for key in self.ids])

    def light_curves_of(self, key: tuple[int, int]) -> NDArray[np.float64]:
        """Sum one complete observation over its good spatial pixels.

        Parameters
        ----------
        key : tuple of int
            Planet and visit.

        Returns
        -------
        ndarray of float64, shape (time, 283)
            FGS1 first, then the AIRS-CH0 columns; electrons.

        Raises
        ------
        OutputError
            If the observation is not complete, or the detectors' bins differ in number.
        """
        if key not in self.ids:
            raise OutputError(f"{self.path}: no complete planet {key[0]} visit {key[1]} in it; calibrate it first")
        curves = [
            light_curve(np.load(self._file(key, name, "signal")), np.load(self._file(key, name, "dq")), DETECTORS[name])
            for name in ("FGS1", "AIRS-CH0")
        ]
        if len({len(curve) for curve in curves}) > 1:
            raise OutputError(
                f"{self.path}: FGS1 and AIRS-CH0 have {[len(c) for c in curves]} bins; give them equal ones"
            )
        return np.concatenate(curves, axis=1)

    def _file(self, key: tuple[int, int], detector: str, kind: str) -> Path:
        return self.path / str(key[0]) / str(key[1]) / f"{detector}.{kind}.npy"


def open_results(path: str | Path) -> Results:
    """Open a results folder.

    Parameters
    ----------
    path : str or Path
        The folder that `run` or ``gpucal calibrate`` wrote.

    Returns
    -------
    Results
        What is complete in it, and what failed.

    Raises
    ------
    OutputError
        If it holds no results.
    """
    return Results(Path(path))
