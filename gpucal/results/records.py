"""Commit records, which describe each item of a results folder, and the index made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpucal._version import __version__
from gpucal.errors import OutputError
from gpucal.inputs.files import may_be_folder
from gpucal.settings.ids import ItemId

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "FORMAT",
    "NOTE",
    "index_of",
    "is_finished",
    "is_whole",
    "item_of",
    "listed",
    "read_record",
    "record_path",
    "records",
    "require_records",
    "visit_folders",
]

FORMAT = 1
"""The format of the records that this version writes; it reads older ones, and those of 0.1, which name none."""

NOTE = "resumed-from.json"
"""The file that names other folders whose items count here, see `gpucal.results.other_folders`."""

# Columns of manifest.parquet: the records' fields of the same names.
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

# The fewest arrays of an item, for either product.
_KINDS = ({"signal", "dq", "time"}, {"flux", "error", "time"})


def visit_folders(path: Path) -> Iterator[Path]:
    """List the folders ``<planet>/<visit>``, sorted as text; other folders beside them are ignored.

    Raises OutputError if one of them cannot be read.
    """
    for planet in listed(path, _is_numbered_folder):
        yield from listed(planet, _is_numbered_folder)


def _is_numbered_folder(entry: os.DirEntry[str]) -> bool:
    return entry.name.isdecimal() and entry.name.isascii() and may_be_folder(entry)


def listed(folder: Path, keep: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    """List what is kept of a folder, sorted; nothing if there is no such folder.

    Raises OutputError if it cannot be read. `Path.glob` would pass over such a folder without a word.
    """
    try:
        with os.scandir(folder) as entries:
            return [folder / name for name in sorted(entry.name for entry in entries if keep(entry))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        where = error.filename or folder
        raise OutputError(f"{where}: cannot be read ({error.strerror or error}); make it readable") from error


def record_path(out: Path, item: ItemId) -> Path:
    """Return the path of an item's commit record."""
    return out / f"{item.path}.json"


def item_of(record: Mapping[str, Any]) -> ItemId:
    """Return the item that a record is of."""
    return ItemId(*(record[name] for name in ItemId._fields))


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Read every commit record of a results folder; raises OutputError if one cannot be read."""
    for file in (file for folder in visit_folders(path) for file in listed(folder, _is_json)):
        record = read_record(file)
        if record is not None:
            yield record


def _is_json(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".json")


def read_record(path: Path) -> dict[str, Any] | None:
    """Read an item's commit record.

    Returns None if there is no file, or the file is not a valid record: the item is then calibrated again. Raises
    OutputError if the file cannot be read, or a newer gpucal wrote it in another format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror or error}); make it readable") from error
    # A folder copied under another name holds records of another planet or visit.
    folder = [*path.parts[-3:-1], path.stem]
    if not isinstance(record, dict) or [str(record.get(name)) for name in ItemId._fields] != folder:
        return None
    number = record.get("format", 0)
    if type(number) is int and number > FORMAT:
        problem = f"is a record of format {number}, and this gpucal reads formats up to {FORMAT}"
        raise OutputError(f"{path}: {problem}; update gpucal, which is {__version__} here")
    return record if _is_record(record) else None


def is_finished(record: Mapping[str, Any]) -> bool:
    """Tell whether an item is finished and has not failed since; a record may hold a result and a later error."""
    return record["status"] == "done" and not record.get("error")


def require_records(path: Path) -> Path:
    """Return a folder to resume from; raises OutputError if it holds and notes no records, as its name may be wrong."""
    if next(records(path), None) is None and not (path / NOTE).is_file():
        raise OutputError(f"{path}: holds no results to resume from; give a folder that `gpucal calibrate` wrote")
    return path


def is_whole(folder: Path, record: Mapping[str, Any]) -> bool:
    """Tell whether an item's files are all there, in the sizes that its record gives."""
    try:
        return all((folder / file["file"]).stat().st_size == file["bytes"] for file in record["files"].values())
    except (OSError, KeyError):  # an earlier version wrote records without sizes
        return False


def index_of(path: Path) -> pa.Table:
    """Make the table of ``manifest.parquet``, with a row per record; raises OutputError if a record cannot be read."""
    import pyarrow as pa
    import pyarrow.json

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in _MANIFEST.items()])
    rows = (json.dumps({name: _encodable(record.get(name)) for name in _MANIFEST}) for record in records(path))
    lines = "\n".join(rows).encode()
    # Through JSON, as Arrow imports pandas (0.3 s) to make arrays of Python objects.
    options = pyarrow.json.ParseOptions(explicit_schema=schema)
    return pyarrow.json.read_json(BytesIO(lines), parse_options=options) if lines else schema.empty_table()


def _encodable(value: object) -> object:
    """Escape characters that UTF-8 cannot encode, as in an error that names an odd path."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _is_record(found: Mapping[str, Any]) -> bool:
    """Tell whether a JSON object has the fields that are read later: the folder may hold other or damaged files."""
    # type(), not isinstance(), to which JSON's true and false are integers
    if [type(found.get(name)) for name in (*ItemId._fields, "status")] != [int, int, str, str]:
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
