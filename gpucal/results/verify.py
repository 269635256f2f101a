"""Reads every file of a results folder and reports where it differs from the records."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpucal.errors import OutputError
from gpucal.results.atomic import TEMPORARY
from gpucal.results.light_curve_table import LIGHT_CURVES, new_names
from gpucal.results.other_folders import Found, gather, missing
from gpucal.results.reader import DAMAGED, Results
from gpucal.results.records import index_of, listed, read_record, record_path, visit_folders
from gpucal.results.writer import CONFIG, MANIFEST
from gpucal.settings.arguments import path_of

__all__ = ["verify"]

log = logging.getLogger(__name__)


def verify(path: str | Path, show: Callable[[int, int], object] = lambda ended, total: None) -> Iterator[str]:
    """Compare every file of a results folder with its record.

    Arrays are compared with the size, shape, dtype and SHA-256 of their commit record, the manifest with the records,
    and the stacks of light curves with the items. If the folder was resumed from others, the items that count there are
    compared too. A warning is logged if such a folder is gone.

    Parameters
    ----------
    path : str or Path
        The results folder.
    show : callable
        Called with the number of items that were compared, and of all.

    Yields
    ------
    str
        A line for each mismatch: the file, and what is wrong with it.

    Raises
    ------
    OutputError
        If the folder holds no results, or a file in it cannot be read.
    """
    path = path_of("path", path)
    folders = list(visit_folders(path))
    files = [file for folder in folders for file in listed(folder, lambda _: True)]
    items = [file for file in files if file.suffix == ".json"]
    arrays = {file for file in files if file.suffix == ".npy"}
    if not items and not arrays and not (path / CONFIG).exists():
        raise OutputError(f"{path}: holds no results; make some with `gpucal calibrate DATASET {path}`")
    known: set[Path] = set()
    for ended, file in enumerate(items, 1):
        show(ended - 1, len(items))
        record = read_record(file)
        if record is None:
            yield f"{file}: is not a commit record"
            continue
        known |= {file.with_name(stored["file"]) for stored in record.get("files", {}).values()}
        yield from _about_item(file, record)
    show(len(items), len(items))
    files += listed(path, lambda _: True)
    litter = {file for file in files if file.name.startswith(".") and file.name.endswith(TEMPORARY)}
    for file in sorted((arrays | litter) - known):
        yield f"{file}: belongs to no record"
    noted = Found()
    try:
        noted = gather(path)
    except OutputError as error:  # raised by a note, as the records have been read
        yield str(error)
    for item, (home, record) in noted.done.items():
        if home != path:
            yield from _about_item(record_path(home, item), record)
    if noted.elsewhere:
        log.warning("%s", missing(path, noted.elsewhere))
    yield from _about_all(path, any_found=bool(noted.first))


def _about_item(file: Path, record: dict[str, Any]) -> Iterator[str]:
    """Compare an item's files with its record."""
    for stored in record.get("files", {}).values():
        if problem := _problem(file.with_name(stored["file"]), stored):
            yield f"{file.with_name(stored['file'])}: {problem}"


def _problem(file: Path, stored: dict[str, Any]) -> str | None:
    """Return what is wrong with an array's file."""
    try:
        size = file.stat().st_size
        if size != stored.get("bytes"):
            return f"has {size} bytes, its record says {stored.get('bytes')}"
        with file.open("rb") as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except DAMAGED as error:
        return f"is not a NumPy file ({str(error).partition(chr(10))[0]})"
    if [[*array.shape], str(array.dtype)] != [stored["shape"], stored["dtype"]]:
        return f"is {array.dtype} {array.shape}, its record says {stored['dtype']} {tuple(stored['shape'])}"
    # hash the bytes as stored, so that a header with swapped axes is found too
    digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return None if digest == stored.get("sha256") else "holds other values than its record says (SHA-256)"


def _about_all(path: Path, *, any_found: bool) -> Iterator[str]:
    """Compare the manifest and the stacks of light curves with the items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = path / MANIFEST
    try:
        with manifest.open("rb") as stream:  # pyarrow takes no path that is not UTF-8
            stored = pq.read_table(stream).to_pylist()
        if stored != index_of(path).to_pylist():
            yield f"{manifest}: does not agree with the records"
    except FileNotFoundError:
        yield f"{manifest}: is missing"
    except (OSError, ValueError, pa.ArrowException) as error:  # UnicodeDecodeError is a ValueError
        yield f"{manifest}: cannot be read ({str(error).partition(chr(10))[0]})"
    if any((path / name).exists() for name in LIGHT_CURVES):
        try:
            yield from _about_light_curves(path, Results(path) if any_found else None)
        except (*DAMAGED, OSError, LookupError, pa.ArrowException) as error:
            yield f"{path / LIGHT_CURVES[-1]}: light curves cannot be read ({str(error).partition(chr(10))[0]})"


def _about_light_curves(path: Path, results: Results | None) -> Iterator[str]:
    """Compare the stacks of light curves with the items', one observation at a time."""
    import pyarrow.parquet as pq

    flux, errors, order, table = (path / name for name in LIGHT_CURVES)
    stacks = {file: np.load(file, mmap_mode="r") for file in (flux, errors)}
    listed = np.load(order).tolist()
    left = set(results.ids if results else ())
    if len({len(stack) for stack in stacks.values()} | {len(listed)}) > 1:
        yield f"{flux}: holds another number of observations than {errors.name} or {order.name}"
    n = 0  # observations so far; all three files have the same order
    with table.open("rb") as stream, pq.ParquetFile(stream) as opened:
        for group in map(opened.read_row_group, range(opened.num_row_groups)):
            group = group.rename_columns(new_names(group.column_names))
            ids = np.stack([group["planet_id"].to_numpy(), group["visit"].to_numpy()], axis=1)
            values = np.stack([column.to_numpy() for column in group.columns[4:]], axis=1)
            half = values.shape[1] // 2
            for planet, visit in dict.fromkeys(map(tuple, ids.tolist())):
                rows = values[(ids == (planet, visit)).all(axis=1)]
                try:
                    known = results if (planet, visit) in left else None
                    curve = None if known is None else known.light_curves_with_errors_of((planet, visit))
                except OutputError:
                    curve = None  # the damaged item has been reported
                expected = rows if curve is None else np.concatenate(curve, axis=1).astype(values.dtype)
                parts = {table: (rows, expected), flux: (stacks[flux][n], expected[:, :half])}
                for file, (there, made) in {**parts, errors: (stacks[errors][n], expected[:, half:])}.items():
                    if not np.array_equal(there, made, equal_nan=True):
                        yield f"{file}: its light curves of planet {planet} visit {visit} differ from the items"
                if listed[n : n + 1] != [[planet, visit]]:
                    yield f"{order}: does not list planet {planet} visit {visit} as observation {n}"
                left.discard((planet, visit))
                n += 1
    if n < len(listed):
        yield f"{table}: lacks {len(listed) - n} of the observations in {order.name}"
    for planet, visit in sorted(left):
        yield f"{table}: lacks planet {planet} visit {visit}"
