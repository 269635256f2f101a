"""Writes a results folder: items atomically, their records last, and the index of them.

An item (planet, visit, detector) exists when its commit record does: arrays are written to temporary names, flushed and
renamed, and the record last.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucal.detectors import Detector
from gpucal.errors import OutputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpucal.product import Calibrated

__all__ = ["Store", "records", "temporary_name", "unwritable"]

# Columns of manifest.parquet, of the records' fields of these names.
_MANIFEST: Mapping[str, str] = MappingProxyType(
    {
        "planet": "int64",
        "visit": "int64",
        "detector": "string",
        "status": "string",
        "error": "string",
        "seconds": "float64",
        "backend": "string",
        "version": "string",
        "settings": "string",
        "inputs": "string",
    }
)

# Files that an item has at least, of either product.
_KINDS = ({"signal", "dq", "time"}, {"flux", "error", "time"})


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
            raise unwritable(self.path, error) from error
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

        Raises
        ------
        OutputError
            If it cannot be read.
        """
        return _read_record(self.path / str(planet) / str(visit) / f"{detector.name}.json")

    def keep(self, planet: int, visit: int, detector: Detector, settings: str, inputs: str) -> bool:
        """Keep an item if it is finished and its files are all there; an error noted since then is forgotten.

        Parameters
        ----------
        planet, visit : int
            Which observation.
        detector : Detector
            The detector.
        settings, inputs : str
            Hash of the settings and fingerprint of the inputs it must be made from.

        Returns
        -------
        bool
            False if it must be made (again): no record, other settings or inputs, or a file missing or of another size.

        Raises
        ------
        OutputError
            If its record cannot be read, or not be written.
        """
        record = self.record(planet, visit, detector)
        made = None if record is None else (record["status"], record.get("settings"), record.get("inputs"))
        if record is None or made != ("done", settings, inputs) or not self._is_whole(record):
            return False
        if record.pop("error", None) is not None:
            self._write_record(record)
        return True

    def _is_whole(self, record: Mapping[str, Any]) -> bool:
        folder = self.path / str(record["planet"]) / str(record["visit"])
        try:
            return all((folder / file["file"]).stat().st_size == file["bytes"] for file in record["files"].values())
        except (OSError, KeyError):  # a record without sizes is of an earlier version, which did not write them
            return False

    def commit(
        self, cal: Calibrated, arrays: Mapping[str, NDArray[Any]], *, settings: str, inputs: str, seconds: float
    ) -> None:
        """Write an item: arrays first, its record last, each renamed into place.

        Parameters
        ----------
        cal : Calibrated
            The item.
        arrays : mapping of str to ndarray
            What is stored of it, by kind.
        settings, inputs : str
            Hash of the settings and fingerprint of the inputs it was made from.
        seconds : float
            What it took.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        name = cal.detector.name
        folder = self.path / str(cal.planet) / str(cal.visit)
        files: dict[str, Any] = {}
        staged: list[tuple[Path, Path]] = []
        before = self.record(cal.planet, cal.visit, cal.detector) or {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for kind, array in arrays.items():
                target = folder / f"{name}.{kind}.npy"
                temporary = temporary_name(target)
                staged.append((temporary, target))
                with temporary.open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
                    size = os.fstat(file.fileno()).st_size
                files[kind] = {
                    "file": target.name,
                    "bytes": size,
                    "shape": array.shape,
                    "dtype": str(array.dtype),
                    "sha256": hashlib.sha256(np.ascontiguousarray(array).data).hexdigest(),
                }
            # From here the old item, if any, is gone; without a record a half-renamed one does not exist either.
            (folder / f"{name}.json").unlink(missing_ok=True)
            for kind, file in before.get("files", {}).items():
                if kind not in files:  # of another product, or a variance that is no longer wanted
                    (folder / Path(file["file"]).name).unlink(missing_ok=True)
            for temporary, target in staged:
                temporary.replace(target)
        except OSError as error:
            raise unwritable(folder, error) from error
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
            "device": cal.provenance["device"],
            "version": cal.provenance["version"],
            "provenance": dict(cal.provenance),
        }
        self._write_record(record)

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
        self._write_record(record)

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
        import pyarrow.json
        import pyarrow.parquet as pq

        schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _MANIFEST.items()])
        rows = (json.dumps({name: record.get(name) for name in _MANIFEST}) for record in records(self.path))
        lines = "\n".join(rows).encode()
        # Through JSON, as Arrow imports pandas (0.3 s) to make arrays of Python objects.
        options = pyarrow.json.ParseOptions(explicit_schema=schema)
        table = pyarrow.json.read_json(BytesIO(lines), parse_options=options) if lines else schema.empty_table()
        self._place("manifest.parquet", lambda temporary: pq.write_table(table, temporary))

    def _write_record(self, record: Mapping[str, Any]) -> None:
        name = f"{record['planet']}/{record['visit']}/{record['detector']}.json"
        self.write(name, json.dumps(record, indent=1).encode())

    def _place(self, name: str, write: Callable[[Path], object]) -> None:
        target = self.path / name
        temporary = temporary_name(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            temporary.replace(target)
        except OSError as error:
            raise unwritable(target, error) from error


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Read every commit record of a results folder.

    Parameters
    ----------
    path : Path
        The folder.

    Yields
    ------
    dict
        A record; what is no record is left out.

    Raises
    ------
    OutputError
        If a record cannot be read.
    """
    for file in sorted(path.glob("*/*/*.json")):
        record = _read_record(file)
        if record is not None:
            yield record


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
        return None  # what is not JSON is no record: the item is made again
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror or error}); make it readable") from error
    return record if _is_record(record) else None


def _is_record(found: object) -> bool:
    """Tell whether it has what readers rely on; the folder may hold other JSON files, and damaged ones."""
    if not isinstance(found, dict):
        return False
    # type() and not isinstance(), as JSON's true and false are integers to the latter
    if [type(found.get(name)) for name in ("planet", "visit", "detector", "status")] != [int, int, str, str]:
        return False
    if found["status"] != "done":
        return True
    files = found.get("files")
    return (
        isinstance(files, dict)
        and any(product <= files.keys() for product in _KINDS)
        and isinstance(found.get("provenance"), dict)
        and isinstance(found["provenance"].get("settings"), dict)
        and all(isinstance(file, dict) and {"shape", "dtype"} <= file.keys() for file in files.values())
        and all(isinstance(file.get("file"), str) for file in files.values())
    )


def temporary_name(target: Path) -> Path:
    """Return a name beside a file to write it under until it is complete.

    Parameters
    ----------
    target : Path
        The file.

    Returns
    -------
    Path
        A new name at every call.
    """
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")


def unwritable(path: Path, error: OSError) -> OutputError:
    """Say that something cannot be written.

    Parameters
    ----------
    path : Path
        What.
    error : OSError
        Why.

    Returns
    -------
    OutputError
        To be raised.
    """
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder")
