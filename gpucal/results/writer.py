"""Writes a results folder: items atomically, their records last, and what is about all of them.

An item (planet, visit, detector) exists when its commit record does: arrays are written to temporary names, flushed and
renamed, and the record last. Whoever writes an item holds its claim.
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
from gpucal.results.atomic import TEMPORARY, npy_writer, place, sync, temporary_name, unwritable
from gpucal.results.locks import LOCK, Claims, holding, locks_work
from gpucal.results.records import FORMAT, index_of, is_finished, is_whole, read_record, record_path, visit_folders
from gpucal.settings.detectors import DETECTORS, Detector

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpucal.pipeline.calibrated import Calibrated

__all__ = ["CONFIG", "LOG", "MANIFEST", "Store"]

log = logging.getLogger(__name__)

CONFIG, LOG, MANIFEST = "config.toml", "gpucal.log", "manifest.parquet"
"""Files of a results folder that are about all items."""

# Of a visit's folder, the item that a temporary, lock or array file belongs to.
_LITTER = re.compile(
    rf"\.(?P<of>[^.]+)\.(?:.+\{TEMPORARY}|{LOCK.removeprefix('.')})|(?P<stem>[^.]+)\.[a-z]+\.npy", re.ASCII
)


class Store:
    """Writes a results folder, and knows which of its items this run has in hand.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._claims = Claims()

    def begin(self, settings: str, before: Callable[[], object] = lambda: None) -> bool:
        """Make the folder if it is missing, clear what killed runs left in it, and write the settings into it.

        Until `close`, no run of other settings can begin there.

        Parameters
        ----------
        settings : str
            TOML.
        before : callable
            Called before anything in the folder is touched; may raise.

        Returns
        -------
        bool
            False if a run of other settings is at work there; then nothing was touched.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        shared = self.path / f".{CONFIG}{LOCK}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not locks_work(temporary_name(self.path / CONFIG)):
                log.warning("%s: its file system has no locks; let no other run write there meanwhile", self.path)
            with self.alone():
                if self.settings() != settings and not self._claims.take(shared):
                    return False
                before()
                self._claims.share(shared)
                self._sweep()
                place(self.path / CONFIG, lambda temporary: temporary.write_text(settings, encoding="utf-8"))
                return True
        except OutputError:  # an OSError as well
            raise
        except OSError as error:
            raise unwritable(self.path, error) from error

    def sweep(self) -> None:
        """Clear what killed runs left in the folder.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        with self.alone():
            self._sweep()

    def settings(self) -> str | None:
        """Read the settings that the folder was last written with.

        Returns
        -------
        str or None
            TOML; None if there are none.

        Raises
        ------
        OutputError
            If they cannot be read.
        """
        path = self.path / CONFIG
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror or error}); make it readable") from error

    def claim(self, planet: int, visit: int, detector: Detector) -> bool:
        """Take an item in hand.

        Parameters
        ----------
        planet, visit : int
            Which observation.
        detector : Detector
            The detector.

        Returns
        -------
        bool
            False if another run has it in hand.

        Raises
        ------
        OutputError
            If nothing can be written there.
        """
        lock = self._lock(planet, visit, detector)
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            return self._claims.take(lock)
        except OSError as error:
            raise unwritable(lock.parent, error) from error

    def free(self, planet: int, visit: int, detector: Detector) -> None:
        """Let others have an item.

        Parameters
        ----------
        planet, visit : int
            Which observation.
        detector : Detector
            The detector.
        """
        self._claims.free(self._lock(planet, visit, detector))

    def close(self) -> None:
        """Let others have every item."""
        self._claims.close()

    def holds(
        self, planet: int, visit: int, detector: Detector, settings: str, inputs: str, *, without_error: bool = False
    ) -> bool:
        """Tell whether an item is finished and its files are all there.

        Parameters
        ----------
        planet, visit : int
            Which observation.
        detector : Detector
            The detector.
        settings, inputs : str
            Hash of the settings and fingerprint of the inputs it must be made from.
        without_error : bool
            Whether it must have no error noted, either.

        Returns
        -------
        bool
            False if there is no record, it has other settings or inputs, or a file is missing or of another size.

        Raises
        ------
        OutputError
            If its record cannot be read.
        """
        path = self._record(planet, visit, detector)
        record = read_record(path)
        made = None if record is None else (record["status"], record.get("settings"), record.get("inputs"))
        if record is None or (without_error and not is_finished(record)):
            return False
        return made == ("done", settings, inputs) and is_whole(path.parent, record)

    def record(self, planet: int, visit: int, detector: Detector) -> dict[str, Any] | None:
        """Read what is recorded of an item.

        Parameters
        ----------
        planet, visit : int
            Which observation.
        detector : Detector
            The detector.

        Returns
        -------
        dict or None
            None if there is no record.

        Raises
        ------
        OutputError
            If it cannot be read.
        """
        return read_record(self._record(planet, visit, detector))

    def forget_error(self, planet: int, visit: int, detector: Detector) -> None:
        """Forget an error of an item that is finished all the same, here or in another folder.

        Parameters
        ----------
        planet, visit : int
            Which observation.
        detector : Detector
            The detector.

        Raises
        ------
        OutputError
            If its record cannot be read or written.
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
        """Write an item: arrays first, its record last, each renamed into place.

        Parameters
        ----------
        cal : Calibrated
            The item.
        arrays : mapping of str to ndarray
            What is stored of it, by kind.
        dataset : str
            The competition folder; of the record alone, as the provenance goes where no path of this machine should.
        settings, inputs : str
            Hash of the settings and fingerprint of the inputs it was made from.
        seconds : float
            What it took.

        Raises
        ------
        OutputError
            If it cannot be written; until all of it is on the disk, what was there before is there still.
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
                with suppress(OSError):  # the first error is the one to tell; the next start clears it
                    temporary.unlink(missing_ok=True)

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
        path = self._record(planet, visit, detector)
        _write_record(path, {**(read_record(path) or blank), "error": message})

    def write_manifest(self) -> None:
        """Rebuild ``manifest.parquet`` from the records.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        import pyarrow.parquet as pq

        target = self.path / MANIFEST
        with self.alone():  # so that of several runs the last to write has read every record
            table = index_of(self.path)
            place(target, lambda temporary: pq.write_table(table, temporary))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other run writes what is about all items, and keep others from it.

        Yields
        ------
        None
            Once.

        Raises
        ------
        OutputError
            If nothing can be written.
        """
        try:
            with holding(self.path / f".{MANIFEST}{LOCK}"):
                yield
        except OutputError:  # an OSError as well
            raise
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _record(self, planet: int, visit: int, detector: Detector) -> Path:
        return record_path(self.path, planet, visit, detector.name)

    def _lock(self, planet: int, visit: int, detector: Detector) -> Path:
        return self._record(planet, visit, detector).with_name(f".{detector.name}{LOCK}")

    def _sweep(self) -> None:
        """Remove what killed runs left: temporary and lock files, and arrays that never got a record."""
        for file in self.path.glob(f".*{TEMPORARY}"):
            file.unlink(missing_ok=True)
        for folder in visit_folders(self.path):
            names = [file.name for file in folder.iterdir()]
            items = {found["of"] or found["stem"] for name in names if (found := _LITTER.fullmatch(name))}
            for item in items & DETECTORS.keys():  # what else is there is not ours
                self._sweep_item(folder, item)

    def _sweep_item(self, folder: Path, item: str) -> None:
        lock = folder / f".{item}{LOCK}"
        if not self._claims.take(lock):
            return  # another run is at work on it
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
    """Rename an item's files into place, its record last; those of an earlier one go."""
    path.unlink(missing_ok=True)  # from here the old item, if any, is gone, and a half-renamed one is none either
    try:
        for target, temporary in staged.items():
            if target != path:
                temporary.replace(target)
        for other in path.parent.glob(f"{path.stem}.*.npy"):
            if other not in staged:  # of another product, or a variance that is no longer wanted
                other.unlink(missing_ok=True)
        staged[path].replace(path)
    except BaseException:
        for target in staged:  # arrays without a record are nobody's
            with suppress(OSError):
                target.unlink(missing_ok=True)
        raise


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    place(path, lambda temporary: _dump(record, temporary))


def _dump(record: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps({**record, "format": FORMAT}, indent=1), encoding="utf-8")
