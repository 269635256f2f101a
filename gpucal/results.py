"""The calibrated product, and a results folder read back, lazily."""

from __future__ import annotations

import logging
import tokenize
from collections.abc import Iterable, Mapping
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

log = logging.getLogger(__name__)

# What NumPy raises on a damaged file: found by changing every byte of one's header.
_DAMAGED = (EOFError, MemoryError, OverflowError, SyntaxError, TypeError, ValueError, tokenize.TokenError)


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

    Every way of reading raises `OutputError` where a file is missing or damaged, or arrays of different shapes would
    have to be stacked.

    Parameters
    ----------
    results : Results
        The folder.
    detector : str
        The detector's name.
    kind : {'signal', 'dq'}
        Which of its arrays.
    """

    def __init__(self, results: Results, detector: str, kind: str = "signal") -> None:
        if detector not in DETECTORS:
            raise KeyError(f"no detector {detector!r}; there are {', '.join(DETECTORS)}")
        self._results = results
        self._detector = detector
        self._kind = kind

    def __len__(self) -> int:
        return len(self._results)

    def __getitem__(self, index: int | slice | tuple[Any, ...]) -> NDArray[Any]:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if not isinstance(first, slice):
            array = self._results._read(self._results.ids[first], self._detector, self._kind, mapped=bool(rest))
            return np.array(array[rest]) if rest else array
        chosen = range(*first.indices(len(self)))
        # of an empty slice the shape is still that of an observation
        return self._results._stack(self[(i, *rest)] for i in chosen or range(len(self))[:1])[: len(chosen)]

    def load(self) -> NDArray[Any]:
        """Read everything.

        Returns
        -------
        ndarray, shape (observation, time, wavelength, spatial)
            In the order of `Results.ids`.

        Raises
        ------
        OutputError
            If nothing is complete, a file is missing or damaged, or the shapes differ.
        """
        return self[:]


class Results:
    """A results folder, as `open_results` opens it: ``results["AIRS-CH0"]`` is a `ResultArray`.

    An observation is complete, and in ``ids``, if both detectors are finished and nothing failed since then. An item
    that failed is in ``failed`` with its line, even if an older result of it is still in the folder.

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
        found = {(r["planet"], r["visit"], r["detector"]): r for r in records(path)}
        if not found:
            raise OutputError(f"{path}: holds no results; make some with `gpucal calibrate DATASET {path}`")
        done = {item: r for item, r in found.items() if r["status"] == "done" and not r.get("error")}
        keys = sorted({item[:2] for item in found})
        self.ids = [key for key in keys if all((*key, name) in done for name in DETECTORS)]
        self.failed = {item: str(r.get("error", "failed")) for item, r in found.items() if item not in done}
        self._files = {item: r["files"] for item, r in done.items()}
        if (settings := len({str(r.get("settings")) for r in done.values()})) > 1:
            log.warning(
                "%s: holds %d items of %d different settings; to have one, run `gpucal calibrate DATASET %s` again",
                *(path, len(done), settings, path),
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, detector: str) -> ResultArray:
        return ResultArray(self, detector)

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

        Raises
        ------
        KeyError
            If there is no such detector.
        OutputError
            If nothing is complete, or a file is missing or damaged.
        """
        return ResultArray(self, detector, "dq").load()

    def light_curves(self) -> NDArray[np.float64]:
        """Sum every complete observation over its good spatial pixels.

        Returns
        -------
        ndarray of float64, shape (observation, time, 283)
            FGS1 first, then the AIRS-CH0 columns; electrons.

        Raises
        ------
        OutputError
            If nothing is complete, a file is missing or damaged, or bins differ in number between the detectors or
            the observations.
        """
        return self._stack(self.light_curves_of(key) for key in self.ids)

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
            If the observation is not complete, a file is missing or damaged, or the detectors' bins differ in number.
        """
        if key not in self.ids:
            raise OutputError(f"{self.path}: no complete planet {key[0]} visit {key[1]} in it; calibrate it first")
        curves = [
            light_curve(self._read(key, name, "signal"), self._read(key, name, "dq"), DETECTORS[name])
            for name in ("FGS1", "AIRS-CH0")
        ]
        if len({len(curve) for curve in curves}) > 1:
            raise OutputError(
                f"{self.path}: FGS1 and AIRS-CH0 have {[len(c) for c in curves]} bins; give them equal ones"
            )
        return np.concatenate(curves, axis=1)

    def _read(self, key: tuple[int, int], detector: str, kind: str, *, mapped: bool = False) -> NDArray[Any]:
        """Read one array of a complete observation, or map its file into memory."""
        file = self._files[(*key, detector)][kind]
        path = self.path / str(key[0]) / str(key[1]) / file["file"]
        again = f"run `gpucal calibrate DATASET {self.path}` again"
        damaged = f"{path}: is damaged; remove it and {again}"
        try:
            # Not np.load(), which takes a damaged file for a pickle or an archive, and leaves that one open.
            if mapped:
                array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
            else:
                with path.open("rb") as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
        except FileNotFoundError as error:
            raise OutputError(f"{path}: is missing; {again}") from error
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror or error}); remove it and {again}") from error
        except _DAMAGED as error:
            raise OutputError(damaged) from error
        if [[*array.shape], str(array.dtype)] != [file["shape"], file["dtype"]]:
            raise OutputError(damaged)
        return array

    def _stack(self, arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
        """Stack arrays, one an observation; none means that nothing is complete."""
        found = list(arrays)
        again = f"run `gpucal calibrate DATASET {self.path}` again"
        if not found:
            raise OutputError(f"{self.path}: no observation is complete, {len(self.failed)} items failed; {again}")
        if len(shapes := sorted({array.shape for array in found})) > 1:
            problem = f"observations differ in shape, such as {shapes[0]} and {shapes[-1]}"
            raise OutputError(f"{self.path}: {problem}; read them one by one, or {again} with one set of settings")
        return np.stack(found)


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
