"""Commit records: what a results folder says of its items, and the index that is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpucal._version import __version__
from gpucal.errors import OutputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "FORMAT",
    "NOTE",
    "index_of",
    "is_finished",
    "is_whole",
    "read_record",
    "record_path",
    "records",
    "require_records",
    "visit_folders",
]

FORMAT = 1
"""The format of the records that this version writes; it reads older ones, and those of 0.1, which name none."""

NOTE = "resumed-from.json"
"""File of a results folder that says what of other folders counts in it, see `gpucal.results.other_folders`."""

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

# What says which item a record is of, in every format.
_KEY = ("planet", "visit", "detector")

# Files that an item has at least, of either product.
_KINDS = ({"signal", "dq", "time"}, {"flux", "error", "time"})


def visit_folders(path: Path) -> Iterator[Path]:
    """List the folders of visits; a results folder may lie in one that holds other things too.

    Parameters
    ----------
    path : Path
        The results folder.

    Yields
    ------
    Path
        ``<planet>/<visit>``, sorted as text.
    """
    for folder in sorted(path.glob("[0-9]*/[0-9]*")):
        if all(name.isdecimal() and name.isascii() for name in folder.parts[-2:]) and folder.is_dir():
            yield folder


def record_path(out: Path, planet: int, visit: int, detector_name: str) -> Path:
    """Name the file of an item's commit record.

    Parameters
    ----------
    out : Path
        The results folder.
    planet, visit : int
        Which observation.
    detector_name : str
        The detector's.

    Returns
    -------
    Path
        The file, which need not exist.
    """
    return out / str(planet) / str(visit) / f"{detector_name}.json"


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
    for file in (file for folder in visit_folders(path) for file in sorted(folder.glob("*.json"))):
        record = read_record(file)
        if record is not None:
            yield record


def read_record(path: Path) -> dict[str, Any] | None:
    """Read an item's commit record.

    Parameters
    ----------
    path : Path
        The file, see `record_path`.

    Returns
    -------
    dict or None
        None if there is none, or it is no record: the item is made again.

    Raises
    ------
    OutputError
        If it cannot be read, or a newer gpucal wrote it in another format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror or error}); make it readable") from error
    # A folder copied under another name holds records of what is not in it.
    if not isinstance(record, dict) or [str(record.get(name)) for name in _KEY] != [*path.parts[-3:-1], path.stem]:
        return None
    number = record.get("format", 0)
    if type(number) is int and number > FORMAT:
        problem = f"is a record of format {number}, and this gpucal reads formats up to {FORMAT}"
        raise OutputError(f"{path}: {problem}; update gpucal, which is {__version__} here")
    return record if _is_record(record) else None


def is_finished(record: Mapping[str, Any]) -> bool:
    """Tell whether an item is finished and nothing failed since.

    Parameters
    ----------
    record : mapping
        Its record.

    Returns
    -------
    bool
        False if an error is recorded, even of an item that has a result.
    """
    return record["status"] == "done" and not record.get("error")


def require_records(path: Path) -> Path:
    """Refuse a folder to read results of an earlier session from that holds none: its name may be mistyped.

    Parameters
    ----------
    path : Path
        The folder.

    Returns
    -------
    Path
        The same.

    Raises
    ------
    OutputError
        If it holds no record, and counts none of another folder.
    """
    if next(records(path), None) is None and not (path / NOTE).is_file():
        raise OutputError(f"{path}: holds no results to resume from; give a folder that `gpucal calibrate` wrote")
    return path


def is_whole(folder: Path, record: Mapping[str, Any]) -> bool:
    """Tell whether an item's files are all there, in the sizes its record says.

    Parameters
    ----------
    folder : Path
        Where the record is.
    record : mapping
        The record.

    Returns
    -------
    bool
        False if one is missing or of another size.
    """
    try:
        return all((folder / file["file"]).stat().st_size == file["bytes"] for file in record["files"].values())
    except (OSError, KeyError):  # a record without sizes is of an earlier version, which did not write them
        return False


def index_of(path: Path) -> pa.Table:
    """Make the table that ``manifest.parquet`` holds of a results folder's records.

    Parameters
    ----------
    path : Path
        The folder.

    Returns
    -------
    pyarrow.Table
        A row an item.

    Raises
    ------
    OutputError
        If a record cannot be read.
    """
    import pyarrow as pa
    import pyarrow.json

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _MANIFEST.items()])
    rows = (json.dumps({name: _encodable(record.get(name)) for name in _MANIFEST}) for record in records(path))
    lines = "\n".join(rows).encode()
    # Through JSON, as Arrow imports pandas (0.3 s) to make arrays of Python objects.
    options = pyarrow.json.ParseOptions(explicit_schema=schema)
    return pyarrow.json.read_json(BytesIO(lines), parse_options=options) if lines else schema.empty_table()


def _encodable(value: object) -> object:
    """Spell out what is no text, as a path in an error may not be."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _is_record(found: Mapping[str, Any]) -> bool:
    """Tell whether it has what readers rely on; the folder may hold other JSON files, and damaged ones."""
    # type() and not isinstance(), as JSON's true and false are integers to the latter
    if [type(found.get(name)) for name in (*_KEY, "status")] != [int, int, str, str]:
        return False
    if type(found.get("format", 0)) is not int:
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
