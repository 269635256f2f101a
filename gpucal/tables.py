"""Small Parquet tables, such as calibration frames: checked before they are decoded, then decoded whole by pyarrow."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpucal.errors import InputError
from gpucal.files import AGAIN, shortened
from gpucal.footer import end_of
from gpucal.pages import check_pages, read_footer

__all__ = ["read_columns"]


def read_columns(data: bytes, path: Path, choose: Callable[[pa.Schema, int], list[int]]) -> pa.Table:
    """Decode some columns.

    Parameters
    ----------
    data : bytes
        The file.
    path : Path
        Where it came from, for messages.
    choose : callable
        From the schema and the number of rows to the positions of the columns wanted, ascending; raises InputError if
        they are not as they should be. Nothing is decoded before.

    Returns
    -------
    pyarrow.Table
        These columns.

    Raises
    ------
    InputError
        If it is not Parquet, or cannot be decoded in memory in proportion to its rows.
    """
    try:
        end = end_of(BytesIO(data), path)
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            schema, n_columns = file.schema_arrow, file.metadata.num_columns
            footer = read_footer(end, len(data), n_columns, path)
            columns = choose(schema, footer.n_rows)
            if n_columns != len(schema):
                raise InputError("has a column of several", AGAIN, path)
            check_pages(data, footer, np.array(columns, np.intp), path)
            # by position, as read_table() refuses columns of one name
            table = file.reader.read_all(column_indices=columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is no readable Parquet file ({shortened(error)})", AGAIN, path) from error
    if table.num_rows != footer.n_rows:
        raise InputError("decodes to another size than its footer says", AGAIN, path)
    return table
