"""Parquet to pixel blocks: a column is a pixel, so some columns and all frames are a ``uint16 (pixel, frame)`` array.

A signal file is read once, front to back, and decoded from memory by column position; `pixel_columns` finds the
positions. The file is never memory-mapped: a file truncated under a mapping kills the process, while a failed read is
one observation's error.
Polars decodes plain integer columns about twice as fast as pyarrow and is used where it is installed (`DECODERS`).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.inputs.counts import DECODERS, Columns, Loaded, choose_decoder, typed_errors
from gpucal.inputs.files import AGAIN, missing, open_regular, shortened
from gpucal.inputs.parquet.footer import MAGIC, Footer, end_of
from gpucal.inputs.parquet.pages import check_chunks, check_pages, read_footer
from gpucal.inputs.parquet.tables import pixel_columns
from gpucal.settings.detectors import Detector

__all__ = ["Signal", "fingerprint_of", "open_signal"]


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
        Column names are unique, and the pixels' columns have one type, which is not a dictionary. Polars needs this.
    fingerprint : str
        SHA-256 of the file's size and footer. The footer holds the position and size of every page. Unlike a
        modification time, the fingerprint stays the same when the file is copied or mounted elsewhere.
    metadata : pyarrow.parquet.FileMetaData or None
        The footer as pyarrow parses it, of `metadata_bytes`; None for other decoders.
    footer : Footer
        The footer as gpucal parses it.
    strict : bool
        Check more than decoding needs; see `open_signal`.
    """

    path: Path
    size: int
    n_frames: int
    columns: NDArray[np.intp]
    plain: bool
    fingerprint: str
    metadata: Any
    footer: Footer
    strict: bool

    def load(self, decoder: str | None = None, buffer: BytesIO | None = None) -> Loaded:
        """Read the whole file into memory, front to back.

        Parameters
        ----------
        decoder : {'polars', 'pyarrow'}, optional
            By default the variable GPUCAL_READER, else the fastest that is installed. pyarrow decodes a file that
            Polars may decode differently, such as one with inconsistent page headers, whatever is asked for.
        buffer : BytesIO, optional
            Memory to read into, such as the buffer of a file that is done. Memory already in use saves two thirds of
            the time of fresh pages (0.02 s against 0.07 s for AIRS-CH0).

        Returns
        -------
        Loaded
            The file's bytes, and their decoder.

        Raises
        ------
        InputError
            If the file cannot be read, has changed since it was opened, or has pages that are not safe to decode:
            headers that cannot be parsed, or that declare more values or bytes than the file's rows need.
        ConfigError
            If there is no decoder of that name.
        MissingExtra
            If the decoder asked for is not installed.
        """
        choose_decoder(decoder)  # a wrong name is an error before anything is read
        buffer = BytesIO() if buffer is None else buffer
        try:
            complete = _read_into(buffer, self.path, self.size)
        except (OSError, MemoryError) as error:
            raise _unreadable(error, self.path) from error
        data = buffer.getvalue()
        if not complete or _fingerprint(end_of(BytesIO(data), self.path), self.size) != self.fingerprint:
            raise InputError("changed while it was being read", "run again when nothing writes to it", self.path)
        columns = np.arange(self.footer.data.shape[1]) if self.strict else self.columns
        sound = check_pages(data, self.footer, columns, self.path, strict=self.strict)
        name = choose_decoder(decoder, plain=self.plain and sound and not self.strict)
        metadata = self.metadata if name == "pyarrow" else None
        chosen = Columns(self.path, self.n_frames, self.columns, metadata, self.strict)
        return Loaded(chosen, buffer, DECODERS[name])

    @property
    def metadata_bytes(self) -> int:
        """Memory of the parsed footer: 19 MB for AIRS-CH0, whose footer has 1.2 MB."""
        return 16 * int(self.metadata.serialized_size) if self.metadata else 0


def _read_into(buffer: BytesIO, path: Path, size: int) -> bool:
    """Fill a buffer with a file; return False if the file's size is no longer ``size``."""
    buffer.seek(size - 1)
    buffer.write(b"\0")
    buffer.truncate()
    read = 0
    with open_regular(path) as file, buffer.getbuffer() as space:
        while count := file.readinto(space[read:]):
            read += count
        return read == size == os.fstat(file.fileno()).st_size


def _unreadable(error: OSError | MemoryError, path: Path) -> InputError:
    if isinstance(error, FileNotFoundError):
        return missing(path, "signal file")
    reason = error.strerror or error if isinstance(error, OSError) else "no memory left"
    return InputError(f"cannot be read ({reason})", AGAIN, path)


def open_signal(path: Path, detector: Detector, *, strict: bool = False) -> Signal:
    """Parse and check a signal file's footer; no data are decoded.

    Parameters
    ----------
    path : Path
        A Parquet file of any legal encoding: one or many row groups, any compression, dictionary or plain, any integer
        type, columns in the order of `gpucal.inputs.parquet.tables.pixel_columns`.
    detector : Detector
        The detector.
    strict : bool
        Check more than decoding needs: the mark at the file's beginning; value counts, sizes and positions of all
        column chunks, also outside the crop; that chunks do not overlap, and pages fill each; and, while decoding, the
        checksums of pages that have one. The checks take 3 % longer. Only pyarrow verifies checksums, so it must
        decode, which takes 1.3 to 1.6 times as long as Polars for files of AIRS-CH0.

    Returns
    -------
    Signal
        The file.

    Raises
    ------
    InputError
        If the file is missing, not a regular file, or not Parquet, has more frames than
        `gpucal.inputs.parquet.pages.MOST_ROWS`, or does not hold a column of integers for each pixel.
    """
    try:
        with BufferedReader(open_regular(path)) as stream:
            end, size = end_of(stream, path), stream.seek(0, 2)
            stream.seek(0)
            if strict and stream.read(4) != MAGIC:
                raise InputError("does not begin as a Parquet file does", AGAIN, path)
    except OSError as error:
        raise _unreadable(error, path) from error
    with typed_errors(path), pq.ParquetFile(pa.BufferReader(MAGIC + end)) as file:
        metadata, schema = file.metadata, file.schema_arrow
        names, types, optional = schema.names, schema.types, [field.nullable for field in schema]
    footer = read_footer(end, size, metadata.num_columns, path)
    positions = pixel_columns(schema)
    if positions.size != detector.n_columns:
        problem = f"has {positions.size} columns, expected {detector.n_columns} ({detector.name} has one a pixel)"
        raise InputError(problem, AGAIN, path)
    kinds = {types[position] for position in positions}
    for kind in kinds:
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not pa.types.is_integer(value):
            raise InputError(f"holds {shortened(kind)}, expected raw counts (unsigned 16-bit integers)", AGAIN, path)
    if metadata.num_columns != len(names):  # of an index, such as a struct: positions would mean other columns
        raise InputError("has a column of structs or lists", AGAIN, path)
    chosen = positions[detector.columns()]
    # All columns must be of one kind: if one's type or nullability is damaged, Polars may decode it differently.
    alike = len(kinds) == 1 and len({optional[position] for position in positions}) == 1
    plain = alike and len(set(names)) == len(names) and not any(map(pa.types.is_dictionary, kinds))
    if strict:
        check_chunks(footer, np.arange(len(names)), size - len(end), path)
    return Signal(path, size, footer.n_rows, chosen, plain, _fingerprint(end, size), metadata, footer, strict)


def fingerprint_of(path: Path) -> str:
    """Return a file's `Signal.fingerprint` without checking its content."""
    try:
        with BufferedReader(open_regular(path)) as stream:
            return _fingerprint(end_of(stream, path), stream.seek(0, 2))
    except OSError as error:
        raise _unreadable(error, path) from error


def _fingerprint(end: bytes, size: int) -> str:
    return hashlib.sha256(f"{size} ".encode() + end[:-8]).hexdigest()
