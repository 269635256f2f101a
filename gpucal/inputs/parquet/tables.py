"""Small Parquet tables, such as calibration frames: checked before they are decoded, then decoded whole.

Pyarrow takes some 35 µs a column, 68 ms of a core for the frames of a planet (`benchmarks/pages.py`). So columns that
are stored as those of published frames are read from their pages here, in 12 ms, and pyarrow decodes the others.

`pixel_columns` finds the columns that are pixels, and their order, for these tables and for signal files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.inputs.files import AGAIN, shortened
from gpucal.inputs.parquet.arrow import read_positions
from gpucal.inputs.parquet.codec import decompress_all
from gpucal.inputs.parquet.footer import MOST_FOR_ARROW, check_length, end_of, numbered_names
from gpucal.inputs.parquet.layout import AT, CODEC, DATA, ENCODING, KIND, PLAIN, SIZE, VALUES, WANTED
from gpucal.inputs.parquet.pages import page_table, read_footer

__all__ = ["pixel_columns", "plain_columns", "read_columns"]

_BOOLEAN, _DOUBLE = 0, 5  # physical types, as parquet.thrift numbers them


# Names that pandas gives to an index that is saved: as an index, by reset_index(), and by way of CSV.
_INDEX = re.compile(r"__index_level_\d+__|index|level_\d+|Unnamed: \d+")


def pixel_columns(names: Sequence[str], pandas: bytes) -> NDArray[np.intp]:
    """Find the columns that hold pixels: all but index columns that pandas wrote, also if its notes are lost since.

    Names ``column_0`` to ``column_(n-1)``, or ``0`` to ``n-1``, give the order of the pixels, as some libraries save
    columns sorted by name. With any other names, the order in the file is the order of the pixels.

    Parameters
    ----------
    names : sequence of str
        Names of all columns of the file.
    pandas : bytes
        What pandas noted of the table, as JSON; empty if nothing.

    Returns
    -------
    ndarray of intp, shape (pixel,)
        Positions in the file, in the order of the pixels.
    """
    names = tuple(names)
    noted = _pandas_index(pandas)
    if not noted and names == numbered_names("column_", len(names)):
        return np.arange(len(names))
    alike = {name for name in names if not name.startswith("column_") and _INDEX.fullmatch(name)}
    index = noted | (alike if len(alike) < len(names) else set())
    positions = np.arange(len(names))
    if index:
        positions = np.array([i for i, name in enumerate(names) if name not in index], dtype=np.intp)
        names = tuple(names[i] for i in positions)
    numbered = numbered_names("column_" if names and names[0].startswith("column_") else "", len(names))
    if names != numbered and set(names) == set(numbered):
        position = dict(zip(names, positions, strict=True))
        positions = np.array([position[name] for name in numbered], dtype=np.intp)
    return positions


def _pandas_index(pandas: bytes) -> frozenset[str]:
    """Return the names of columns that hold a pandas index, according to what pandas noted."""
    try:
        return frozenset(name for name in json.loads(pandas)["index_columns"] if isinstance(name, str))
    except (ValueError, TypeError, KeyError, RecursionError):  # not written by pandas: no index is known
        return frozenset()


def plain_columns(data: bytes, path: Path) -> tuple[NDArray[np.generic], NDArray[np.intp]] | None:
    """Decode the pixels' columns of a file whose columns are all stored alike, plainly and without nulls.

    Parameters
    ----------
    data : bytes
        The file.
    path : Path
        Its path, for messages.

    Returns
    -------
    values : ndarray of float64 or bool, shape (row, column)
        Its columns, in the order of the pixels.
    positions : ndarray of intp, shape (column,)
        Their positions in the file.

    None is returned if columns are stored in another way, or are not sound: `read_columns` decodes or refuses them.
    """
    try:
        end = end_of(BytesIO(data), path)
        footer = read_footer(end, len(data), path)
        columns = pixel_columns(footer.names, footer.pandas)
        # what pandas notes may stand in an Arrow schema as well, and differ there: pyarrow knows which counts
        if footer.pandas or footer.nested or footer.rows.size != 1 or not columns.size:
            return None
        table = page_table(data, footer, columns, path)
    except InputError:
        return None
    n_rows, pages = footer.n_rows, table.pages
    kind, is_optional = (int(of[columns[0]]) for of in (footer.kind[0], footer.facts[:, 0]))
    levels = _all_there(n_rows) if is_optional else b""
    size = len(levels) + {_DOUBLE: 8 * n_rows, _BOOLEAN: (n_rows + 7) // 8}.get(kind, 0)
    alike = (footer.kind[0, columns] == kind) & (footer.types[columns] == kind)
    alike &= footer.facts[columns, 0] == is_optional
    if kind not in (_DOUBLE, _BOOLEAN) or is_optional not in (0, 1) or not alike.all():
        return None
    expected = (KIND, DATA), (ENCODING, PLAIN), (VALUES, n_rows), (WANTED, size)
    if table.unfit_pages or any((pages[:, of] != value).any() for of, value in expected):
        return None
    raw = np.frombuffer(data, np.uint8)
    stored = [raw[at : at + length] for at, length in pages[:, [AT, SIZE]].tolist()]
    try:
        content = decompress_all(pages[:, CODEC].tolist(), stored, [size] * len(stored)).reshape(-1, size)
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        return None
    if (content[:, : len(levels)] != np.frombuffer(levels, np.uint8)).any():
        return None
    content = np.ascontiguousarray(content[:, len(levels) :])
    if kind == _BOOLEAN:
        return np.unpackbits(content, axis=1, count=n_rows, bitorder="little").view(bool).T, columns
    return content.view("<f8").T, columns


def _all_there(n_rows: int) -> bytes:
    """Return the definition levels of a column without nulls: their length, and a run of ones."""
    run, left = b"", n_rows << 1
    while left > 127:
        run, left = run + bytes([left & 127 | 128]), left >> 7
    run += bytes([left, 1])
    return len(run).to_bytes(4, "little") + run


def read_columns(data: bytes, path: Path, choose: Callable[[pa.Schema, int], NDArray[np.intp]]) -> pa.Table:
    """Decode some columns.

    Parameters
    ----------
    data : bytes
        The file.
    path : Path
        Its path, for messages.
    choose : callable
        Returns the positions of the columns wanted, in any order, from the schema and the number of rows. It raises
        InputError if the schema is not as expected. It is called before anything is decoded.

    Returns
    -------
    pyarrow.Table
        These columns, in this order.

    Raises
    ------
    InputError
        If the file is not Parquet, or decoding would need more memory than its rows can.
    """
    try:
        end = end_of(BytesIO(data), path)
        check_length(len(end), MOST_FOR_ARROW, path)
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            schema, n_columns = file.schema_arrow, file.metadata.num_columns
            footer = read_footer(end, len(data), path)
            columns = choose(schema, footer.n_rows)
            if n_columns != len(schema):
                raise InputError("has a column of structs or lists", AGAIN, path)
            page_table(data, footer, columns, path)
            table = read_positions(file, columns)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is not a readable Parquet file ({shortened(error)})", AGAIN, path) from error
    if table.num_rows != footer.n_rows:
        raise InputError("decodes to another size than its footer says", AGAIN, path)
    return table
