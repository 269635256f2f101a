"""The calibrated product, and the results folder: written atomically, indexed, resumable, read back lazily.

An item (planet, visit, detector) exists when its commit record does: arrays are written to temporary names, flushed and
renamed, and the record last.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
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

__all__ = ["Calibrated", "ResultArray", "Results", "Store", "open_results"]


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


class Store:
    """Writes a results folder.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, settings: str) -> None:
        """Make the folder if it is missing, and write the settings into it.

        Parameters
        ----------
        settings : str
            TOML.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.write("config.toml", settings.encode())

    def record(self, planet: int, visit: int, detector: Detector) -> dict[str, Any] | None:
        """Read an item's commit record.

        Parameters
        ----------
        planet, visit : int
            Which observation.
        detector : Detector
            The detector.

        Returns
        -------
        dict or None
            None if there is none, or it is no record.
        """
        return _read_record(self.path / str(planet) / str(visit) / f"{detector.name}.json")

    def commit(self, cal: Calibrated, *, settings: str, inputs: str, seconds: float, with_variance: bool) -> None:
        """Write an item: arrays first, its record last, each renamed into place.

        Parameters
        ----------
        cal : Calibrated
            The item.
        settings, inputs : str
            Hash of the settings and fingerprint of the inputs it was made from.
        seconds : float
            What it took.
        with_variance : bool
            Whether to write the variance too.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        name = cal.detector.name
        arrays = {"signal": cal.signal, "dq": cal.dq}
        if with_variance:
            arrays["variance"] = cal.variance.astype(cal.signal.dtype)
        folder = self.path / str(cal.planet) / str(cal.visit)
        files: dict[str, Any] = {}
        staged: list[tuple[Path, Path]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for kind, array in arrays.items():
                target = folder / f"{name}.{kind}.npy"
                temporary = _temporary(target)
                staged.append((temporary, target))
                with temporary.open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
                digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
                files[kind] = {"file": target.name, "shape": array.shape, "dtype": str(array.dtype), "sha256": digest}
            # From here the old item, if any, is gone; without a record a half-renamed one does not exist either.
            (folder / f"{name}.json").unlink(missing_ok=True)
            for temporary, target in staged:
                temporary.replace(target)
        except OSError as error:
            raise _unwritable(folder, error) from error
        finally:
            for temporary, _ in staged:
                temporary.unlink(missing_ok=True)
        record = {
            "planet": cal.planet,
            "visit": cal.visit,
            "detector": name,
            "status": "done",
            "files": files,
            "settings": settings,
            "inputs": inputs,
            "seconds": round(seconds, 4),
            "backend": cal.provenance["backend"],
            "version": cal.provenance["version"],
        }
        self.write(f"{cal.planet}/{cal.visit}/{name}.json", json.dumps(record, indent=1).encode())

    def fail(self, planet: int, visit: int, detector: Detector, message: str) -> None:
        """Record that an item failed; a finished result of other settings or inputs is kept, with the error noted.

        Parameters
        ----------
        planet, visit : int
            Which observation.
        detector : Detector
            The detector.
        message : str
            The one line.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        blank = {"planet": planet, "visit": visit, "detector": detector.name, "status": "failed"}
        record = {**(self.record(planet, visit, detector) or blank), "error": message}
        self.write(f"{planet}/{visit}/{detector.name}.json", json.dumps(record, indent=1).encode())

    def write(self, name: str, data: bytes) -> None:
        """Write a file and rename it into place.

        Parameters
        ----------
        name : str
            Path inside the folder.
        data : bytes
            Its content.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        self._place(name, lambda temporary: temporary.write_bytes(data))

    def write_manifest(self) -> None:
        """Rebuild ``manifest.parquet`` from the records.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = (
            "planet",
            "visit",
            "detector",
            "status",
            "error",
            "seconds",
            "backend",
            "version",
            "settings",
            "inputs",
        )
        kinds = (pa.int64(), pa.int64(), *[pa.string()] * 3, pa.float64(), *[pa.string()] * 4)
        rows = [{name: record.get(name) for name in names} for record in _records(self.path)]
        table = pa.Table.from_pylist(rows, schema=pa.schema(list(zip(names, kinds, strict=True))))
        self._place("manifest.parquet", lambda temporary: pq.write_table(table, temporary))

    def _place(self, name: str, write: Callable[[Path], object]) -> None:
        target = self.path / name
        temporary = _temporary(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            temporary.replace(target)
        except OSError as error:
            raise _unwritable(target, error) from error


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
        records = list(_records(path))
        if not records:
            raise OutputError(f"{path}: holds no results; make some with `gpucal calibrate DATASET {path}`")
        done = {(r["planet"], r["visit"], r["detector"]) for r in records if r["status"] == "done"}
        keys = sorted({(r["planet"], r["visit"]) for r in records})
        self.ids = [key for key in keys if all((*key, name) in done for name in DETECTORS)]
        self.failed = {(r["planet"], r["visit"], r["detector"]): r["error"] for r in records if r["status"] != "done"}

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


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(path.glob("*/*/*.json")):
        record = _read_record(file)
        if record is not None:
            yield record


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None  # an unreadable record is no record: the item is made again
    return record if isinstance(record, dict) and {"planet", "visit", "detector", "status"} <= record.keys() else None


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder")
