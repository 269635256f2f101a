"""Parquet to pixel blocks: a column is a pixel, so some columns and all frames are a ``uint16 (pixel, frame)`` array.

A signal file is read once, front to back, and decoded from memory by column position, whatever the columns' names. It
is never memory-mapped: a file truncated under a mapping kills the process, a failed read is one observation's error.
Polars decodes plain integer columns about twice as fast as pyarrow and is used where it is installed (`DECODERS`).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.decoders import AGAIN, DECODERS, Loaded, choose_decoder, typed_errors
from gpucal.detectors import Detector
from gpucal.errors import InputError

__all__ = ["Signal", "open_signal"]

_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Signal:
    """A signal file, checked but not yet read.

    Parameters
    ----------
    path : Path
        The Parquet file.
    size : int
        Bytes.
    n_frames : int
        Rows: detector reads, start and end reads alternating.
    columns : ndarray of intp, shape (pixel,)
        Positions of the cropped pixels' columns in the file, row by row of the frame.
    plain : bool
        Whether column names are unique and no column is dictionary-typed, as Polars wants it.
    fingerprint : str
        SHA-256 of the file's size and footer. The footer holds every page's place and size, and unlike a modification
        time it survives copying and mounting elsewhere.
    metadata : pyarrow.parquet.FileMetaData
        The parsed footer.
    """

    path: Path
    size: int
    n_frames: int
    columns: NDArray[np.intp]
    plain: bool
    fingerprint: str
    metadata: Any

    def load(self, decoder: str | None = None, buffer: BytesIO | None = None) -> Loaded:
        """Read the whole file into memory, front to back.

        Parameters
        ----------
        decoder : {'polars', 'pyarrow'}, optional
            By default the variable GPUCAL_READER, else the fastest that is installed and can decode this file.
        buffer : BytesIO, optional
            Where to read it to, such as that of a file that is done with: memory that is in use already costs a third
            of the time of fresh pages (0.02 s and 0.07 s for AIRS-CH0).

        Returns
        -------
        Loaded
            The file's bytes and how to decode them.

        Raises
        ------
        InputError
            If the file cannot be read, or is no longer the one that was opened.
        ConfigError
            If there is no decoder of that name.
        MissingExtra
            If the decoder asked for is not installed.
        """
        chosen = choose_decoder(decoder, plain=self.plain)
        buffer = BytesIO() if buffer is None else buffer
        try:
            complete = _read_into(buffer, self.path, self.size)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror or error})", AGAIN, self.path) from error
        if not complete or _footer(BytesIO(buffer.getvalue()), self.path)[1] != self.fingerprint:
            raise InputError("changed while it was being read", "run again when nothing writes to it", self.path)
        return Loaded(self, buffer, DECODERS[chosen])


def _read_into(buffer: BytesIO, path: Path, size: int) -> bool:
    """Make a buffer hold a file; False if that is not of the size it was."""
    buffer.seek(size - 1)
    buffer.write(b"\0")
    buffer.truncate()
    read = 0
    with path.open("rb", buffering=0) as file, buffer.getbuffer() as space:
        while count := file.readinto(space[read:]):
            read += count
        return read == size == os.fstat(file.fileno()).st_size


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
    try:
        with path.open("rb") as stream:
            footer, fingerprint = _footer(stream, path)
            size = stream.seek(0, 2)
    except FileNotFoundError as error:
        raise InputError("signal file is missing", AGAIN, path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", AGAIN, path) from error
    with typed_errors(path), pq.ParquetFile(pa.BufferReader(footer)) as file:
        metadata, schema = file.metadata, file.schema_arrow
    index = _pandas_index(schema)
    positions = np.array([i for i, name in enumerate(schema.names) if name not in index], dtype=np.intp)
    if positions.size != detector.n_columns:
        problem = f"has {positions.size} columns, expected {detector.n_columns} ({detector.name} has one a pixel)"
        raise InputError(problem, AGAIN, path)
    types = schema.types
    for kind in {types[position] for position in positions}:
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not pa.types.is_integer(value):
            raise InputError(f"holds {kind}, expected raw counts (unsigned 16-bit integers)", AGAIN, path)
    plain = len(set(schema.names)) == len(schema.names) and not any(map(pa.types.is_dictionary, types))
    return Signal(path, size, metadata.num_rows, positions[detector.columns()], plain, fingerprint, metadata)


def _pandas_index(schema: pa.Schema) -> frozenset[str]:
    """Return the names of columns that hold a pandas index, according to the schema's pandas metadata."""
    text = (schema.metadata or {}).get(b"pandas")
    if text is None:
        return frozenset()
    try:
        return frozenset(name for name in json.loads(text)["index_columns"] if isinstance(name, str))
    except (ValueError, TypeError, KeyError):  # not what pandas writes, so nothing is known of an index
        return frozenset()


def _footer(file: BinaryIO, path: Path) -> tuple[bytes, str]:
    """Return a file's footer, a Parquet file by itself as far as metadata go, and the file's fingerprint."""
    size = file.seek(0, 2)
    if size < 12:
        raise InputError(f"is no Parquet file ({size} bytes)", AGAIN, path)
    file.seek(size - 8)
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > size - 12:
        raise InputError("is no complete Parquet file (truncated or overwritten)", AGAIN, path)
    file.seek(size - 8 - length)
    footer = file.read(length)
    return _MAGIC + footer + tail, hashlib.sha256(f"{size} ".encode() + footer).hexdigest()
