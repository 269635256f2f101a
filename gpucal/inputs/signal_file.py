"""A signal file: opened and checked, then read into memory; a column is a pixel.

Decoders find columns in memory by position, and `pixel_columns` finds the positions.
It is never memory-mapped: a file truncated under a mapping kills the process, while a failed read is one observation's
error.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.errors import InputError, InputUnavailable
from gpucal.inputs.counts import Block, decode_counts, parse_metadata, typed_errors
from gpucal.inputs.files import AGAIN, mend_of, missing, open_regular, shortened
from gpucal.inputs.parquet.footer import (
    MAGIC,
    MOST_FOR_ARROW,
    Footer,
    check_length,
    count_rows,
    end_of,
    footer_length,
)
from gpucal.inputs.parquet.pages import PageTable, check_chunks, page_table, ranges_of, read_footer, unfit_columns
from gpucal.inputs.parquet.tables import pixel_columns
from gpucal.inputs.parquet.thrift import Unreadable
from gpucal.settings.detectors import Detector

__all__ = ["Loaded", "Signal", "ends_of", "fingerprint_of", "frames_in", "open_signal"]

# Bytes that one thread reads at a time.
_PART = 2**24

# Bytes of a footer that hold the schema of AIRS-CH0, as most writers have it.
_SCHEMA = 2**19


@dataclass(frozen=True, eq=False)
class Signal:
    """A signal file, checked but not yet read.

    Parameters
    ----------
    path : Path
        The Parquet file.
    size : int
        Bytes.
    columns : ndarray of intp, shape (pixel,)
        Positions of the cropped pixels' columns in the file, row by row of the frame.
    fingerprint : str
        SHA-256 of the file's size and footer. The footer holds the position and size of every page. Unlike a
        modification time, the fingerprint stays the same when the file is copied or mounted elsewhere.
    footer : Footer
        The footer.
    end : bytes
        The same as bytes, with its length and the closing mark: to see that the file has not changed since.
    strict : bool
        Check more than decoding needs; see `open_signal`.
    """

    path: Path
    size: int
    columns: NDArray[np.intp]
    fingerprint: str
    footer: Footer
    end: bytes = field(repr=False)
    strict: bool

    @property
    def n_frames(self) -> int:
        """Rows: detector reads, start and end reads alternating."""
        return self.footer.n_rows

    @property
    def footer_size(self) -> int:
        """Bytes of the file's end."""
        return len(self.end)

    @property
    def by_pages(self) -> bool:
        """Whether gpucal's decoder takes the pages, as far as the footer tells."""
        return not unfit_columns(self.footer, self.columns)

    def load(self, memory: NDArray[np.uint8] | None = None) -> Loaded:
        """Read the pixels' columns of the file into memory, each to its place, in parts at the same time.

        Everything is read for a strict check, and where pyarrow has to decode what gpucal's decoder does not take.

        Parameters
        ----------
        memory : ndarray of uint8, optional
            Memory to read into, of the file's size or more, such as that of a file that is done. Fresh memory takes
            longer, as the system zeroes it first.

        Returns
        -------
        Loaded
            The file in memory.

        Raises
        ------
        InputError
            If the file cannot be read, has changed since it was opened, or has pages that are not safe to decode:
            headers that cannot be parsed, or that declare more values or bytes than the file's rows need.
        """
        if not self.strict and self.by_pages:
            stop = self.size - self.footer_size
            data = self._read(ranges_of(self.footer, self.columns, self.size, stop, self.path), memory)
            with suppress(InputError):  # which may come from bytes that were not read: the whole file tells
                loaded = self._loaded(data)
                if not loaded.table.unfit:  # else pyarrow decodes, and reads behind chunks of old writers' files
                    return loaded
        return self._loaded(self._read([(0, self.size)], memory))

    def _read(self, ranges: list[tuple[int, int]], memory: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """Read ranges of the file, its end among them, each to its place."""
        try:
            data = (np.empty(self.size, np.uint8) if memory is None else memory)[: self.size]
            complete = _read_into(data, ranges, self.path)
        except (OSError, MemoryError) as error:
            raise _unreadable(error, self.path) from error
        end = np.frombuffer(self.end, np.uint8)
        if not complete or not np.array_equal(data[-end.size :], end):
            raise InputError("changed while it was being read", "run again when nothing writes to it", self.path)
        return data

    def _loaded(self, data: NDArray[np.uint8]) -> Loaded:
        """Make the table of the pages that were read."""
        content = cast("bytes", data.data)  # a memoryview, of which all that is asked here bytes have, too
        if self.strict:
            page_table(content, self.footer, np.arange(len(self.footer.names)), self.path, strict=True)
        return Loaded(self.path, data, page_table(content, self.footer, self.columns, self.path), self.strict)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A signal file in memory.

    Parameters
    ----------
    path : Path
        The file, for messages.
    data : ndarray of uint8
        Its bytes; those between columns of pixels may be missing, see `Signal.load`.
    table : PageTable
        The pages of the cropped pixels' columns.
    strict : bool
        Whether checksums of pages are verified.
    """

    path: Path
    data: NDArray[np.uint8]
    table: PageTable
    strict: bool
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        """The footer as pyarrow parses it, which takes some 0.1 s and 19 MB for AIRS-CH0; `counts` needs it."""
        length = int.from_bytes(self.data[-8:-4].tobytes(), "little")
        return parse_metadata(self.data[-8 - length :].tobytes(), self.path)

    def counts(self, blocks: Iterable[slice]) -> Iterator[Block]:
        """Decode blocks of pixels by pyarrow; see `gpucal.inputs.counts.decode_counts`."""
        with self._lock:  # parsed once, by the thread that comes first
            metadata = self.metadata
        yield from decode_counts(self.data, self.table.columns, blocks, metadata, self.path, strict=self.strict)


def _read_into(space: NDArray[np.uint8], ranges: list[tuple[int, int]], path: Path) -> bool:
    """Fill memory with ranges of a file; return False if the file's size is no longer that of the memory.

    Half of the cores read, as a core has to copy what is in the page cache already.
    """
    with open_regular(path) as file:

        def fill(part: tuple[int, int]) -> bool:
            begin, end = part
            left = space[begin:end].data
            while left.nbytes and (count := os.preadv(file.fileno(), [left], begin)):
                begin, left = begin + count, left[count:]
            return not left.nbytes

        parts = [(at, min(at + _PART, end)) for begin, end in ranges for at in range(begin, end, _PART)]
        readers = min(4, len(os.sched_getaffinity(0)) // 2, len(parts))
        if readers > 1:
            with ThreadPoolExecutor(readers, "gpucal-part") as pool:
                complete = all(pool.map(fill, parts))
        else:
            complete = all(map(fill, parts))
        return complete and os.fstat(file.fileno()).st_size == space.size


def _unreadable(error: OSError | MemoryError, path: Path) -> InputError:
    if isinstance(error, FileNotFoundError):
        return missing(path, "signal file")
    reason = error.strerror or error if isinstance(error, OSError) else "no memory left"
    return InputUnavailable(f"cannot be read ({reason})", mend_of(error), path)


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
        checksums of pages that have one.

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
    footer = read_footer(end, size, path)
    positions = pixel_columns(footer.names, footer.pandas)
    if footer.nested or not footer.facts[positions, 1].all():  # pyarrow can name the types, and knows more of them
        positions = _judged_by_arrow(end, detector, path)
    else:
        _require(positions, detector, path)
    if strict:
        check_chunks(footer, np.arange(len(footer.names)), size - len(end), path)
    return Signal(path, size, positions[detector.columns()], _fingerprint(end, size), footer, end, strict)


def _require(positions: NDArray[np.intp], detector: Detector, path: Path) -> None:
    """Refuse a file that does not have a column for each pixel."""
    if positions.size != detector.n_columns:
        problem = f"has {positions.size} columns, expected {detector.n_columns} ({detector.name} has one a pixel)"
        raise InputError(problem, AGAIN, path)


def _judged_by_arrow(end: bytes, detector: Detector, path: Path) -> NDArray[np.intp]:
    """Find the pixels' columns in pyarrow's schema, and refuse types that are no counts."""
    check_length(len(end), MOST_FOR_ARROW, path)
    with typed_errors(path), pq.ParquetFile(pa.BufferReader(MAGIC + end)) as file:
        schema, n_columns = file.schema_arrow, file.metadata.num_columns
        names, types, pandas = schema.names, schema.types, (schema.metadata or {}).get(b"pandas", b"")
    positions = pixel_columns(names, pandas)
    _require(positions, detector, path)
    for kind in {types[position] for position in positions}:
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not pa.types.is_integer(value):
            raise InputError(f"holds {shortened(kind)}, expected raw counts (unsigned 16-bit integers)", AGAIN, path)
    if n_columns != len(names):  # of an index, such as a struct: positions would mean other columns
        raise InputError("has a column of structs or lists", AGAIN, path)
    return positions


def fingerprint_of(path: Path) -> str:
    """Return a file's `Signal.fingerprint` without checking its content."""
    try:
        with BufferedReader(open_regular(path)) as stream:
            return _fingerprint(end_of(stream, path), stream.seek(0, 2))
    except OSError as error:
        raise _unreadable(error, path) from error


def frames_in(path: Path) -> int:
    """Return the number of frames that a signal file's footer gives, without checking the rest of it.

    Raises InputError if the file is missing, or its footer cannot be read.
    """
    try:
        with BufferedReader(open_regular(path)) as stream:
            length = footer_length(stream, path)
            for size in (min(_SCHEMA, length), length):
                stream.seek(-8 - length, 2)
                try:
                    return count_rows(stream.read(size) + bytes(8), size)
                except Unreadable as error:
                    problem = f"is not a readable Parquet file: its footer {error}"
    except OSError as error:
        raise missing(path, "signal") if isinstance(error, FileNotFoundError) else _unreadable(error, path) from error
    raise InputError(problem, AGAIN, path)


def ends_of(path: Path, name: str) -> tuple[int, int, bool]:
    """Return the bytes of a Parquet file and of its footer, and whether it begins with the mark that it should have.

    Raises InputError if the file is missing or not Parquet by its last bytes; ``name`` is its kind, for messages.
    """
    try:
        with open_regular(path) as file:
            length, size = footer_length(file, path), file.seek(0, 2)
            file.seek(0)
            is_marked = file.read(4) == MAGIC
    except OSError as error:
        raise missing(path, name) if isinstance(error, FileNotFoundError) else _unreadable(error, path) from error
    return size, length, is_marked


def _fingerprint(end: bytes, size: int) -> str:
    digest = hashlib.sha256(f"{size} ".encode())
    digest.update(memoryview(end)[:-8])
    return digest.hexdigest()
