"""Arrow columns as NumPy arrays, without pandas: Arrow's own ``to_numpy`` imports it, 0.3 s of a cold start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = ["in_file_order", "read_positions", "values_of"]


def read_positions(file: pq.ParquetFile, positions: NDArray[np.intp]) -> pa.Table:
    """Decode the columns at these positions of an open file, in any order; the table has the same order."""
    ascending, back = in_file_order(positions)
    # By position, as the public read(columns=) cannot tell apart columns of one name or names with dots.
    table = file.reader.read_all(column_indices=ascending.tolist(), use_threads=False)
    return table if back is None else table.select(back)


def in_file_order(positions: NDArray[np.intp]) -> tuple[NDArray[np.intp], list[int] | None]:
    """Sort column positions for a decoder, as decoders differ in the order they return columns in.

    Parameters
    ----------
    positions : ndarray of intp
        Positions of columns in a file.

    Returns
    -------
    ascending : ndarray of intp
        The same, sorted.
    back : list of int, or None
        Index of each of `positions` among the sorted ones; None if they were sorted.
    """
    if (positions[1:] > positions[:-1]).all():
        return positions, None
    order = np.argsort(positions)
    return positions[order], np.argsort(order).tolist()


def values_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of numbers or booleans as one array.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Integers, floating-point numbers (nulls become NaN), booleans (as 0 and 1), or dictionaries of them.

    Returns
    -------
    ndarray, shape (row,)
        Read-only if it shares the column's memory.

    Raises
    ------
    TypeError
        If the column holds another type, or a null among integers or booleans.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    kind = column.type
    if not (pa.types.is_floating(kind) or (pa.types.is_integer(kind) and not column.null_count)):
        raise TypeError(f"{kind} with {column.null_count} nulls, expected numbers")
    filled = [chunk for chunk in column.chunks if len(chunk)] or [pa.nulls(0, kind)]
    chunks = [_with_nan(chunk) if chunk.null_count else np.from_dlpack(chunk) for chunk in filled]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _with_nan(chunk: pa.Array) -> NDArray[Any]:
    """Return floating-point numbers with NaN for null; Arrow's own fill_null had none for half floats before 19."""
    holed = pa.Array.from_buffers(chunk.type, len(chunk), [None, chunk.buffers()[1]], offset=chunk.offset)
    values = np.array(np.from_dlpack(holed))
    values[np.from_dlpack(chunk.is_null().cast(pa.uint8())).view(bool)] = np.nan
    return values
