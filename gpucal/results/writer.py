"""Writes a results folder: each item atomically, its record last, and the files about all items.

An item (planet, visit, detector) exists when its commit record does. Its arrays are written under temporary names,
flushed and renamed, and then its record is. A run writes only items that it has claimed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucal.errors import OutputError
from gpucal.results.atomic import TEMPORARY, npy_writer, sync, temporary_name, unwritable, write_atomically
from gpucal.results.locks import LOCK, Claims, holding, locks_work
from gpucal.results.records import FORMAT, index_of, is_finished, is_whole, read_record, record_path, visit_folders
from gpucal.settings.detectors import DETECTORS, Detector

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from gpucal.pipeline.calibrated import Calibrated

__all__ = ["CONFIG", "LOG", "MANIFEST", "Store"]

log = logging.getLogger(__name__)

CONFIG, LOG, MANIFEST = "config.toml", "gpucal.log", "manifest.parquet"
"""The files of a results folder that are about all items."""

# Matches temporary, lock and array files in a visit's folder, and names their item.
_LITTER = re.compile(
    rf"\.(?P<of>[^.]+)\.(?:.+\{TEMPORARY}|{LOCK.removeprefix('.')})|(?P<stem>[^.]+)\.[a-z]+\.npy", re.ASCII
)


class Store:
    """Writes a results folder, and holds this run's claims on its items."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._claims = Claims()

    def begin(self, settings: str, before: Callable[[], object] = lambda: None) -> bool:
        """Make the folder if needed, remove leftovers of killed runs, and write the settings, which are TOML.

        ``before`` is called before anything in the folder changes, and may raise. Returns False, and changes nothing,
        if a run with other settings is working there; until `close`, none can begin. Raises OutputError if the folder
        cannot be written.
        """
        shared = self.path / f".{CONFIG}{LOCK}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not locks_work(temporary_name(self.path / CONFIG)):
                log.warning("%s: its file system has no locks; start no second run on this folder", self.path)
            with self.alone():
                if self.settings() != settings and not self._claims.take(shared):
                    return False
                before()
                self._claims.share(shared)
                self._sweep()
                write_atomically(self.path / CONFIG, lambda temporary: temporary.write_text(settings, encoding="utf-8"))
                return True
        except OutputError:  # an OSError too
            raise
        except OSError as error:
            raise unwritable(self.path, error) from error

    def sweep(self) -> None:
        """Remove what killed runs left in the folder; raises OutputError if it cannot be written."""
        with self.alone():
            self._sweep()

    def settings(self) -> str | None:
        """Read the TOML settings that the folder was last written with; raises OutputError if that fails."""
        path = self.path / CONFIG
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror or error}); make it readable") from error

    def claim(self, planet: int, visit: int, detector: Detector) -> bool:
        """Claim an item; returns False if another run holds it. Raises OutputError if its folder cannot be written."""
        lock = self._lock(planet, visit, detector)
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            return self._claims.take(lock)
        except OSError as error:
            raise unwritable(lock.parent, error) from error

    def free(self, planet: int, visit: int, detector: Detector) -> None:
        """Release an item."""
        self._claims.free(self._lock(planet, visit, detector))

    def close(self) -> None:
        """Release every item, and let runs with other settings begin."""
        self._claims.close()

    def holds(
        self, planet: int, visit: int, detector: Detector, settings: str, inputs: str, *, without_error: bool = False
    ) -> bool:
        """Tell whether an item was finished with these settings and inputs, and its files are whole.

        ``settings`` and ``inputs`` are the settings' hash and the inputs' fingerprint. With ``without_error``, an item
        that failed later does not count. Raises OutputError if the record cannot be read.
        """
        path = self._record(planet, visit, detector)
        record = read_record(path)
        made = None if record is None else (record["status"], record.get("settings"), record.get("inputs"))
        if record is None or (without_error and not is_finished(record)):
            return False
        return made == ("done", settings, inputs) and is_whole(path.parent, record)

    def record(self, planet: int, visit: int, detector: Detector) -> dict[str, Any] | None:
        """Read an item's record, if there is one; raises OutputError if it cannot be read."""
        return read_record(self._record(planet, visit, detector))

    def forget_error(self, planet: int, visit: int, detector: Detector) -> None:
        """Remove the error of an item that is finished after all, here or in another folder.

        Raises OutputError if its record cannot be read or written.
        """
        path = self._record(planet, visit, detector)
        record = read_record(path) or {}
        if record.get("status") == "failed":
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(path.parent, error) from error
        elif record.pop("error", None) is not None:
            _write_record(path, record)

    def commit(
        self,
        cal: Calibrated,
        arrays: Mapping[str, NDArray[Any]],
        *,
        dataset: str,
        settings: str,
        inputs: str,
        seconds: float,
    ) -> None:
        """Write an item: first its arrays, then its record, each renamed into place.

        Parameters
        ----------
        cal : Calibrated
            The item.
        arrays : mapping of str to ndarray
            The arrays to store, by kind.
        dataset : str
            The competition folder. Only the record names it: provenance is exported, and must hold no path of this
            machine.
        settings, inputs : str
            Hash of the settings, and fingerprint of the inputs.
        seconds : float
            Time that the item took.

        Raises
        ------
        OutputError
            If it cannot be written. Earlier files of the item stay until all new ones are on the disk.
        """
        name = cal.detector.name
        path = self._record(cal.planet, cal.visit, cal.detector)
        files: dict[str, Any] = {}
        staged: dict[Path, Path] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for kind, array in arrays.items():
                target = path.with_name(f"{name}.{kind}.npy")
                temporary = staged[target] = temporary_name(target)
                with npy_writer(temporary, array.shape, array.dtype) as append:
                    append(array)
                files[kind] = {
                    "file": target.name,
                    "bytes": temporary.stat().st_size,
                    "shape": array.shape,
                    "dtype": str(array.dtype),
                    "sha256": hashlib.sha256(np.ascontiguousarray(array).data).hexdigest(),
                }
            record = {
                "planet": cal.planet,
                "visit": cal.visit,
                "detector": name,
                "status": "done",
                "files": files,
                "dataset": dataset,
                "settings": settings,
                "inputs": inputs,
                "seconds": round(seconds, 4),
                "backend": cal.provenance["backend"],
                "device": cal.provenance["device"],
                "version": cal.provenance["version"],
                "provenance": dict(cal.provenance),
            }
            staged[path] = temporary_name(path)
            _dump(record, staged[path])
            sync(staged[path])
            _swap(path, staged)
        except OSError as error:
            raise unwritable(path.parent, error) from error
        finally:
            for temporary in staged.values():
                with suppress(OSError):  # report the first error; the next run removes the file
                    temporary.unlink(missing_ok=True)

    def fail(self, planet: int, visit: int, detector: Detector, message: str) -> None:
        """Record that an item failed; an earlier result stays, with the error noted.

        Raises OutputError if the record cannot be written.
        """
        blank = {"planet": planet, "visit": visit, "detector": detector.name, "status": "failed"}
        path = self._record(planet, visit, detector)
        _write_record(path, {**(read_record(path) or blank), "error": message})

    def write_manifest(self) -> None:
        """Rebuild ``manifest.parquet`` from the records; raises OutputError if it cannot be written."""
        target = self.path / MANIFEST
        with self.alone():  # so that the last of several runs to write it has read every record
            table = index_of(self.path)
            write_atomically(target, lambda temporary: _write_table(table, temporary))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the lock on the files about all items, and hold it inside the block."""
        try:
            with holding(self.path / f".{MANIFEST}{LOCK}"):
                yield
        except OutputError:  # an OSError too
            raise
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _record(self, planet: int, visit: int, detector: Detector) -> Path:
        return record_path(self.path, planet, visit, detector.name)

    def _lock(self, planet: int, visit: int, detector: Detector) -> Path:
        return self._record(planet, visit, detector).with_name(f".{detector.name}{LOCK}")

    def _sweep(self) -> None:
        """Remove leftovers of killed runs: temporary files, lock files, and arrays without a record."""
        for file in self.path.glob(f".*{TEMPORARY}"):
            file.unlink(missing_ok=True)
        for folder in visit_folders(self.path):
            names = [file.name for file in folder.iterdir()]
            items = {found["of"] or found["stem"] for name in names if (found := _LITTER.fullmatch(name))}
            for item in items & DETECTORS.keys():  # any other file is not ours
                self._sweep_item(folder, item)

    def _sweep_item(self, folder: Path, item: str) -> None:
        lock = folder / f".{item}{LOCK}"
        if not self._claims.take(lock):
            return  # another run is working on it
        try:
            names = [file.name for file in folder.iterdir()]
            for name in names:
                found = _LITTER.fullmatch(name)
                hidden = found is not None and found["of"] == item and name != lock.name
                if hidden or (found is not None and found["stem"] == item and f"{item}.json" not in names):
                    (folder / name).unlink(missing_ok=True)
        finally:
            self._claims.free(lock)


def _swap(path: Path, staged: Mapping[Path, Path]) -> None:
    """Rename an item's files into place, its record last, and remove those of an earlier result."""
    path.unlink(missing_ok=True)  # an item without a record does not exist, even if it is half renamed
    try:
        for target, temporary in staged.items():
            if target != path:
                temporary.replace(target)
        for other in path.parent.glob(f"{path.stem}.*.npy"):
            if other not in staged:  # from another product, or a variance that is not wanted now
                other.unlink(missing_ok=True)
        staged[path].replace(path)
    except BaseException:
        for target in staged:  # arrays without a record belong to no item
            with suppress(OSError):
                target.unlink(missing_ok=True)
        raise


def _write_table(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    with path.open("wb") as stream:  # pyarrow takes no path that is not UTF-8
        pq.write_table(table, stream)


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    write_atomically(path, lambda temporary: _dump(record, temporary))


def _dump(record: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps({**record, "format": FORMAT}, indent=1), encoding="utf-8")
