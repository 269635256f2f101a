"""Raw counts of a signal file in memory, as pyarrow decodes them: for any legal encoding, and where Numba is missing.

`gpucal.backends.pagewise` goes from pages to binned sums without them, for the pages that it takes.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.errors import ConfigError, InputError
from gpucal.inputs.files import AGAIN, shortened
from gpucal.inputs.parquet.arrow import read_positions, values_of
from gpucal.inputs.parquet.footer import MAGIC, MOST_FOR_ARROW, check_length

__all__ = ["Block", "decode_counts", "parse_metadata", "takes_pages", "typed_errors"]

log = logging.getLogger(__name__)

Block: TypeAlias = "tuple[slice, NDArray[np.uint16]]"
"""Which of the cropped pixels, and their raw counts, (pixel, frame)."""


def takes_pages() -> bool:
    """Tell whether pages may be binned without their counts, which the variable GPUCAL_READER=pyarrow rules out.

    `ConfigError` is raised if it names something else than a reader.
    """
    reader = os.environ.get("GPUCAL_READER") or "auto"
    if reader == "polars":
        _warn_of_polars()
    elif reader not in ("auto", "pyarrow"):
        raise ConfigError(f"GPUCAL_READER = {reader!r}: must be auto or pyarrow")
    return reader != "pyarrow"


@functools.cache
def _warn_of_polars() -> None:
    log.warning("GPUCAL_READER=polars: gpucal decodes pages itself since version 0.2; unset it")


def parse_metadata(end: bytes, path: Path) -> pq.FileMetaData:
    """Have pyarrow parse a file's end: 19 MB for AIRS-CH0, whose footer has 1.2 MB."""
    check_length(len(end), MOST_FOR_ARROW, path)
    with typed_errors(path), pq.ParquetFile(pa.BufferReader(MAGIC + end)) as file:
        return file.metadata


def decode_counts(
    data: NDArray[np.uint8],
    positions: NDArray[np.intp],
    blocks: Iterable[slice],
    metadata: pq.FileMetaData,
    path: Path,
    *,
    strict: bool = False,
) -> Iterator[Block]:
    """Decode blocks of columns; every thread calls this once, with an iterator of blocks that all of them share.

    Parameters
    ----------
    data : ndarray of uint8
        The file.
    positions : ndarray of intp, shape (pixel,)
        Positions in the file of all pixels' columns.
    blocks : iterable of slice
        Which pixels.
    metadata : pyarrow.parquet.FileMetaData
        The footer as pyarrow parses it.
    path : Path
        The file, for messages.
    strict : bool
        Verify checksums of pages.

    Yields
    ------
    pixels : slice
        Which pixels.
    counts : ndarray of uint16, shape (pixel, frame)
        Their raw counts.

    Raises
    ------
    InputError
        If the pages cannot be decoded, or hold nulls or counts that do not fit 16 bits.
    """
    # A handle a thread, as concurrent reads through one fail; the metadata are shared.
    with (
        typed_errors(path),
        pq.ParquetFile(pa.BufferReader(data), metadata=metadata, page_checksum_verification=strict) as file,
    ):
        for pixels in blocks:
            table = read_positions(file, positions[pixels])
            if (table.num_rows, table.num_columns) != (metadata.num_rows, positions[pixels].size):
                raise InputError("decodes to another size than its footer says", AGAIN, path)
            counts = _stacked(table)
            if counts is None:
                counts = np.empty((table.num_columns, table.num_rows), np.uint16)
                for row, position, column in zip(counts, positions[pixels], table.itercolumns(), strict=True):
                    row[:] = _counts_of(column, int(position), path)
            yield pixels, counts
            del table, counts


def _stacked(table: pa.Table) -> NDArray[np.uint16] | None:
    """Return columns of uint16 without nulls, shape (column, row), in one call: 0.2 ms for 282, one by one 2.5 ms."""
    batches = table.combine_chunks().to_batches()
    if not batches:
        return None
    try:
        counts = batches[0].to_tensor(row_major=False).to_numpy().T
    except pa.ArrowTypeError:  # nulls, or something else than numbers: the columns one by one can say which
        return None
    return counts if counts.dtype == np.uint16 else None


def _counts_of(column: pa.ChunkedArray, position: int, path: Path) -> NDArray[Any]:
    if column.null_count:
        raise InputError(f"column {position} holds {column.null_count} nulls", AGAIN, path)
    values = values_of(column)
    if values.dtype != np.uint16 and values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
        problem = f"column {position} holds counts from {values.min()} to {values.max()}, outside 0 to 65535"
        raise InputError(problem, AGAIN, path)
    return values


@contextmanager
def typed_errors(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on damaged files into one line.

    Parameters
    ----------
    path : Path
        The file.

    Yields
    ------
    None
        Once.

    Raises
    ------
    InputError
        Instead of anything else.
    """
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot be decoded ({shortened(error)})", AGAIN, path) from error
