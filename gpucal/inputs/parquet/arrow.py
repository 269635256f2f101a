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
    if column.null_count and pa.types.is_floating(column.type):
        nan = pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(np.float64("nan").tobytes())])
        column = column.fill_null(nan.cast(column.type)[0])  # pa.scalar() imports pandas
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise TypeError(f"{column.type} with {column.null_count} nulls, expected numbers")
    filled = [chunk for chunk in column.chunks if len(chunk)] or [pa.nulls(0, column.type)]
    chunks = [np.from_dlpack(chunk) for chunk in filled]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
