"""Parquet to pixel blocks: a column is a pixel, so some columns and all frames are a ``uint16 (pixel, frame)`` array.

A signal file's metadata is parsed once; every worker then opens the file for itself and decodes blocks of columns, by
position, whatever their names. Files are never memory-mapped: a file truncated under a mapping kills the process, a
failed read is one observation's error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.detectors import Detector
from gpucal.errors import InputError

__all__ = ["BlockReader", "Signal", "open_signal"]

_AGAIN = "copy it again from the competition data"
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Signal:
    """A signal file, checked but not yet decoded.

    Parameters
    ----------
    path : Path
        The Parquet file.
    n_frames : int
        Rows: detector reads, start and end reads alternating.
    columns : ndarray of intp, shape (pixel,)
        Positions of the cropped pixels' columns in the file, row by row of the frame.
    fingerprint : str
        SHA-256 of the file's size and footer. The footer holds every page's place and size, and unlike a modification
        time it survives copying and mounting elsewhere.
    metadata : pyarrow.parquet.FileMetaData
        The parsed footer.
    """

    path: Path
    n_frames: int
    columns: NDArray[np.intp]
    fingerprint: str
    metadata: Any

    @contextmanager
    def reader(self) -> Iterator[BlockReader]:
        """Open the file for one worker.

        Yields
        ------
        BlockReader
            To be used by one thread.

        Raises
        ------
        InputError
            If the file cannot be opened any more.
        """
        with _typed_errors(self.path), pq.ParquetFile(self.path, metadata=self.metadata) as file:
            yield BlockReader(self, file)

    def check_unchanged(self) -> None:
        """Make sure that the file is still the one that was opened.

        Raises
        ------
        InputError
            If it was overwritten in the meantime.
        """
        if _fingerprint(self.path) != self.fingerprint:
            raise InputError("changed while it was being read", "run again when nothing writes to it", self.path)


class BlockReader:
    """Decodes pixel blocks of one signal file, for one thread.

    Parameters
    ----------
    signal : Signal
        The file.
    file : pyarrow.parquet.ParquetFile
        This thread's own handle of it.
    """

    def __init__(self, signal: Signal, file: pq.ParquetFile) -> None:
        self._signal = signal
        self._file = file

    def read(self, pixels: slice) -> NDArray[np.uint16]:
        """Decode some pixels' whole time series.

        Parameters
        ----------
        pixels : slice
            Which of the cropped pixels.

        Returns
        -------
        ndarray of uint16, shape (pixel, frame)
            Raw counts.

        Raises
        ------
        InputError
            If the pages cannot be decoded, or hold nulls or counts that do not fit 16 bits.
        """
        signal = self._signal
        positions = signal.columns[pixels]
        # By position, as the public read(columns=) cannot tell apart columns of one name or names with dots.
        table = self._file.reader.read_all(column_indices=positions.tolist(), use_threads=False)
        if table.num_rows != signal.n_frames or table.num_columns != positions.size:
            raise InputError("decodes to another size than its footer says", _AGAIN, signal.path)
        block = np.empty((positions.size, signal.n_frames), np.uint16)
        for row, position, column in zip(block, positions, table.itercolumns(), strict=True):
            if column.null_count:
                raise InputError(f"column {position} holds {column.null_count} nulls", _AGAIN, signal.path)
            start = 0
            for chunk in column.chunks:
                row[start : start + len(chunk)] = self._counts(chunk, position)
                start += len(chunk)
        return block

    def _counts(self, chunk: pa.Array, position: int) -> NDArray[Any]:
        if pa.types.is_dictionary(chunk.type):
            chunk = chunk.dictionary_decode()
        values: NDArray[Any] = chunk.to_numpy(zero_copy_only=False)
        if values.dtype != np.uint16 and values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
            problem = f"column {position} holds counts from {values.min()} to {values.max()}, outside 0 to 65535"
            raise InputError(problem, _AGAIN, self._signal.path)
        return values


def open_signal(path: Path, detector: Detector) -> Signal:
    """Parse and check a signal file's footer; no data are decoded.

    Parameters
    ----------
    path : Path
        A Parquet file of any legal encoding: one or many row groups, any compression, dictionary or plain, any integer
        type, columns by position. Index columns that pandas wrote are not pixels.
    detector : Detector
        The detector.

    Returns
    -------
    Signal
        The file.

    Raises
    ------
    InputError
        If it is missing, not Parquet, or does not hold a column of integers for each pixel.
    """
    fingerprint = _fingerprint(path)
    with _typed_errors(path), pq.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
    index = _pandas_index(schema)
    positions = np.array([i for i, name in enumerate(schema.names) if name not in index], dtype=np.intp)
    if positions.size != detector.n_columns:
        problem = f"has {positions.size} columns, expected {detector.n_columns} ({detector.name} has one a pixel)"
        raise InputError(problem, _AGAIN, path)
    types = schema.types
    for kind in {types[position] for position in positions}:
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not pa.types.is_integer(value):
            raise InputError(f"holds {kind}, expected raw counts (unsigned 16-bit integers)", _AGAIN, path)
    return Signal(path, metadata.num_rows, positions[detector.columns()], fingerprint, metadata)


def _pandas_index(schema: pa.Schema) -> frozenset[str]:
    """Return the names of columns that hold a pandas index, according to the schema's pandas metadata."""
    text = (schema.metadata or {}).get(b"pandas")
    if text is None:
        return frozenset()
    columns = json.loads(text).get("index_columns", [])
    return frozenset(name for name in columns if isinstance(name, str))


def _fingerprint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 12:
                raise InputError(f"is no Parquet file ({size} bytes)", _AGAIN, path)
            file.seek(size - 8)
            tail = file.read(8)
            length = int.from_bytes(tail[:4], "little")
            if tail[4:] != _MAGIC or length > size - 12:
                raise InputError("is no complete Parquet file (truncated or overwritten)", _AGAIN, path)
            file.seek(size - 8 - length)
            return hashlib.sha256(f"{size} ".encode() + file.read(length)).hexdigest()
    except FileNotFoundError as error:
        raise InputError("signal file is missing", _AGAIN, path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", _AGAIN, path) from error


@contextmanager
def _typed_errors(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on damaged files into one line."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"cannot be decoded ({reason})", _AGAIN, path) from error
