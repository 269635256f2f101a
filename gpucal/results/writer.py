"""Writes a results folder: each item atomically, its record last, and the files about all items.

An item exists when its commit record does. Its arrays and its record are written in the folder's corner, see
`gpucal.results.corner`, flushed, and renamed, the record last. A run writes only items that it has claimed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucal.errors import OutputError
from gpucal.results.atomic import TEMPORARY, npy_writer, placing, write_atomically, writing
from gpucal.results.corner import ALL, LOCK, SETTINGS, Claims, leave, lock_of, sweep, temporary_name
from gpucal.results.records import (
    FORMAT,
    index_of,
    is_finished,
    is_whole,
    listed,
    read_record,
    record_path,
    visit_folders,
)
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.ids import ItemId

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from gpucal.pipeline.calibrated import Calibrated

__all__ = ["CONFIG", "LOG", "MANIFEST", "Store"]

log = logging.getLogger(__name__)

CONFIG, LOG, MANIFEST = "config.toml", "gpucal.log", "manifest.parquet"
"""The files of a results folder that are about all items."""


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
        shared = lock_of(self.path, SETTINGS)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with self.alone():
                with closing(Claims()) as another:
                    if another.take(lock_of(self.path, ALL)):  # though this run holds it
                        log.warning("%s: its file system has no locks; start no second run on this folder", self.path)
                if self.settings() != settings and not self._claims.take(shared):
                    return False
                before()
                self._claims.share(shared)
                self._sweep()
                self._write(self.path / CONFIG, lambda temporary: temporary.write_text(settings, encoding="utf-8"))
                return True

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

    def claim(self, item: ItemId) -> bool:
        """Claim an item; returns False if another run holds it. Raises OutputError if the folder cannot be written."""
        with writing(self.path):
            return self._claims.take(lock_of(self.path, item))

    def free(self, item: ItemId) -> None:
        """Release an item."""
        self._claims.free(lock_of(self.path, item))

    def close(self) -> None:
        """Release every item, and let runs with other settings begin."""
        self._claims.close()
        leave(self.path)

    def holds(self, item: ItemId, settings: str, inputs: str, *, without_error: bool = False) -> bool:
        """Tell whether an item was finished with these settings and inputs, and its files are whole.

        ``settings`` and ``inputs`` are the settings' hash and the inputs' fingerprint. With ``without_error``, an item
        that failed later does not count. Raises OutputError if the record cannot be read.
        """
        path = self._record(item)
        record = read_record(path)
        made = None if record is None else (record["status"], record.get("settings"), record.get("inputs"))
        if record is None or (without_error and not is_finished(record)):
            return False
        return made == ("done", settings, inputs) and is_whole(path.parent, record)

    def record(self, item: ItemId) -> dict[str, Any] | None:
        """Read an item's record, if there is one; raises OutputError if it cannot be read."""
        return read_record(self._record(item))

    def forget_error(self, item: ItemId) -> None:
        """Remove the error of an item that is finished after all, here or in another folder.

        Raises OutputError if its record cannot be read or written.
        """
        path = self._record(item)
        record = read_record(path) or {}
        if record.get("status") == "failed":
            with writing(path.parent):
                path.unlink(missing_ok=True)
        elif record.pop("error", None) is not None:
            self._write_record(item, record)

    def commit(
        self,
        cal: Calibrated,
        arrays: Mapping[str, NDArray[Any]],
        *,
        dataset: str,
        settings: str,
        inputs: str,
        seconds: float,
        quality: Mapping[str, Any],
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
        quality : mapping
            Numbers on its quality, see `gpucal.science.quality.quality`.

        Raises
        ------
        OutputError
            If it cannot be written. Earlier files of the item stay until all new ones are on the disk.
        """
        path = self._record(cal.item)
        files: dict[str, Any] = {}
        name = partial(temporary_name, self.path, cal.item)
        with placing(path.parent, name, partial(_swap, path)) as stage:
            path.parent.mkdir(parents=True, exist_ok=True)
            for kind, array in arrays.items():
                target = path.with_name(f"{path.stem}.{kind}.npy")
                temporary = stage(target)
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
                **cal.item._asdict(),
                "status": "done",
                "files": files,
                "dataset": dataset,
                "settings": settings,
                "inputs": inputs,
                "seconds": round(seconds, 4),
                "backend": cal.provenance["backend"],
                "device": cal.provenance["device"],
                "version": cal.provenance["version"],
                "quality": quality,
                "provenance": dict(cal.provenance),
            }
            _dump(record, stage(path))

    def fail(self, item: ItemId, message: str) -> None:
        """Record that an item failed; an earlier result stays, with the error noted, and counts no more.

        Raises OutputError if the record cannot be written.
        """
        blank = {**item._asdict(), "status": "failed"}
        self._write_record(item, {**(read_record(self._record(item)) or blank), "error": message})

    def write_manifest(self) -> None:
        """Rebuild ``manifest.parquet`` from the records; raises OutputError if it cannot be written."""
        target = self.path / MANIFEST
        with self.alone():  # so that the last of several runs to write it has read every record
            table = index_of(self.path)
            self._write(target, lambda temporary: _write_table(table, temporary))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the lock on the files about all items, and hold it inside the block."""
        with writing(self.path), closing(Claims()) as claims:
            claims.wait(lock_of(self.path, ALL))
            yield

    def _record(self, item: ItemId) -> Path:
        return record_path(self.path, item)

    def _write(self, target: Path, write: Callable[[Path], object], owner: ItemId | str = ALL) -> None:
        write_atomically(target, write, partial(temporary_name, self.path, owner))

    def _write_record(self, item: ItemId, record: Mapping[str, Any]) -> None:
        self._write(self._record(item), lambda temporary: _dump(record, temporary), item)

    def _sweep(self) -> None:
        """Remove what killed runs left: files of the corner, hidden files as 0.1 made them, and arrays of no record."""
        sweep(self.path)
        for file in self.path.glob(f".*{TEMPORARY}"):
            file.unlink(missing_ok=True)
        with closing(Claims()) as claims:
            for lock in (self.path / f".{CONFIG}{LOCK}", self.path / f".{MANIFEST}{LOCK}"):
                if lock.exists():
                    claims.take(lock)  # to release a lock is to remove its file
        try:
            for folder in visit_folders(self.path):
                there = _names_in(folder)
                for detector in DETECTORS:
                    if _litter(there, detector):
                        self._sweep_item(folder, detector)
        except OutputError as error:  # which costs the items in there, and not the run
            log.warning("%s; what killed runs may have left is not removed", error)

    def _sweep_item(self, folder: Path, detector: str) -> None:
        item = ItemId(int(folder.parent.name), int(folder.name), detector)
        with closing(Claims()) as claims:
            # Another run may be working on the item, of this version or of 0.1.
            if all(map(claims.take, (lock_of(self.path, item), folder / f".{detector}{LOCK}"))):
                for name in _litter(_names_in(folder), detector):
                    (folder / name).unlink(missing_ok=True)


def _names_in(folder: Path) -> list[str]:
    return [file.name for file in listed(folder, lambda _: True)]


def _litter(names: Collection[str], detector: str) -> list[str]:
    """Choose a detector's temporary and lock files, and its arrays if it has no record; others are not ours."""
    hidden, arrays = rf"\.{detector}(\..+\{TEMPORARY}|\{LOCK})", rf"{detector}\.[a-z]+\.npy"
    pattern = hidden if f"{detector}.json" in names else f"{hidden}|{arrays}"
    return [name for name in names if re.fullmatch(pattern, name)]


def _swap(path: Path, staged: Mapping[Path, Path]) -> None:
    """Rename an item's files into place, its record, at ``path``, last, and remove those of an earlier result."""
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


def _dump(record: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps({**record, "format": FORMAT}, indent=1), encoding="utf-8")
