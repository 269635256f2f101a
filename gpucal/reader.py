"""Parquet to pixel blocks: a column is a pixel, so some columns and all frames are a ``uint16 (pixel, frame)`` array.

A signal file is read once, front to back, and decoded from memory by column position, whatever the columns' names. It
is never memory-mapped: a file truncated under a mapping kills the process, a failed read is one observation's error.
Polars decodes plain integer columns about twice as fast as pyarrow and is used where it is installed (`DECODERS`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.detectors import Detector
from gpucal.errors import ConfigError, InputError, MissingExtra

log = logging.getLogger(__name__)

__all__ = ["DECODERS", "Loaded", "Signal", "choose_decoder", "open_signal", "prepare_decoder"]

Block: TypeAlias = "tuple[slice, NDArray[np.uint16]]"
"""Which of the cropped pixels, and their raw counts, (pixel, frame)."""

_AGAIN = "copy it again from the competition data"
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
            raise InputError(f"cannot be read ({error.strerror or error})", _AGAIN, self.path) from error
        if not complete or _footer(BytesIO(buffer.getvalue()), self.path)[1] != self.fingerprint:
            raise InputError("changed while it was being read", "run again when nothing writes to it", self.path)
        return Loaded(self, buffer, DECODERS[chosen])


@dataclass(frozen=True)
class Loaded:
    """A signal file in memory.

    Parameters
    ----------
    signal : Signal
        Which one.
    buffer : BytesIO
        The file.
    decoder : Decoder
        What decodes it.
    """

    signal: Signal
    buffer: BytesIO
    decoder: Decoder

    def units(self, blocks: Iterable[slice], unit_bytes: int) -> Iterator[list[slice]]:
        """Group pixel blocks into what is decoded in one call.

        Parameters
        ----------
        blocks : iterable of slice
            Consecutive pixel blocks.
        unit_bytes : int
            Raw counts to decode in one call, at most, where that is more than one block.

        Yields
        ------
        list of slice
            Blocks decoded together.
        """
        unit: list[slice] = []
        for block in blocks:
            pixels = block.stop - (unit[0].start if unit else block.start)
            if unit and not (self.decoder.in_units and 2 * pixels * self.signal.n_frames <= unit_bytes):
                yield unit
                unit = []
            unit.append(block)
        if unit:
            yield unit

    def decode(self, units: Iterable[list[slice]]) -> Iterator[Block]:
        """Decode units of blocks; every thread calls this once, with an iterator of units that all of them share.

        Parameters
        ----------
        units : iterable of list of slice
            From `units`.

        Yields
        ------
        pixels : slice
            Which of the cropped pixels.
        counts : ndarray of uint16, shape (pixel, frame)
            Their raw counts.

        Raises
        ------
        InputError
            If the pages cannot be decoded, or hold nulls or counts that do not fit 16 bits.
        """
        with _typed_errors(self.signal.path):
            yield from self.decoder.decode(self, units)


@dataclass(frozen=True)
class Decoder:
    """One way to decode a loaded signal.

    Parameters
    ----------
    decode : callable
        From a loaded signal and units to blocks, for one thread.
    in_units : bool
        Whether a call costs so much that several blocks are decoded in one.
    """

    decode: Callable[[Loaded, Iterable[list[slice]]], Iterator[Block]]
    in_units: bool


def _decode_arrow(loaded: Loaded, units: Iterable[list[slice]]) -> Iterator[Block]:
    signal = loaded.signal
    # A handle a thread, as concurrent reads through one fail; the metadata are shared.
    with pq.ParquetFile(pa.BufferReader(loaded.buffer.getvalue()), metadata=signal.metadata) as file:
        for pixels in (block for unit in units for block in unit):
            positions = signal.columns[pixels]
            # By position, as the public read(columns=) cannot tell apart columns of one name or names with dots.
            table = file.reader.read_all(column_indices=positions.tolist(), use_threads=False)
            if (table.num_rows, table.num_columns) != (signal.n_frames, positions.size):
                raise InputError("decodes to another size than its footer says", _AGAIN, signal.path)
            counts = np.empty((positions.size, signal.n_frames), np.uint16)
            for row, position, column in zip(counts, positions, table.itercolumns(), strict=True):
                _no_nulls(signal, position, column.null_count)
                start = 0
                for chunk in column.chunks:
                    plain = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
                    row[start : start + len(chunk)] = _fits(signal, position, plain.to_numpy(zero_copy_only=False))
                    start += len(chunk)
            yield pixels, counts


def _decode_polars(loaded: Loaded, units: Iterable[list[slice]]) -> Iterator[Block]:
    import polars as pl

    signal = loaded.signal
    for unit in units:
        first = unit[0].start
        positions = signal.columns[first : unit[-1].stop]
        try:
            table = pl.read_parquet(loaded.buffer.getvalue(), columns=positions.tolist(), use_statistics=False)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise ValueError(str(error)) from error
        if table.shape != (signal.n_frames, positions.size):
            raise InputError("decodes to another size than its footer says", _AGAIN, signal.path)
        for position, nulls in zip(positions, table.null_count().row(0), strict=True):
            _no_nulls(signal, position, nulls)
        for pixels in unit:
            part = table[:, pixels.start - first : pixels.stop - first].to_numpy(order="fortran").T
            if part.dtype != np.uint16:
                for position, values in zip(signal.columns[pixels], part, strict=True):
                    _fits(signal, position, values)
            yield pixels, part.astype(np.uint16, copy=False)


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        # Polars parses the footer again in every call: 0.02 to 0.08 s for AIRS-CH0.
        "polars": Decoder(_decode_polars, in_units=True),
        "pyarrow": Decoder(_decode_arrow, in_units=False),
    }
)


def choose_decoder(name: str | None = None, *, plain: bool = True) -> str:
    """Choose what decodes signal files.

    Parameters
    ----------
    name : {'auto', 'polars', 'pyarrow'}, optional
        By default the environment variable GPUCAL_READER, and without that ``'auto'``: polars where it is installed.
        A file that is not plain is decoded by pyarrow whatever the name.
    plain : bool
        See `Signal`.

    Returns
    -------
    str
        A key of `DECODERS`.

    Raises
    ------
    ConfigError
        If there is no decoder of that name.
    MissingExtra
        If polars is asked for and not installed.
    """
    wanted = name or os.environ.get("GPUCAL_READER") or "auto"
    if wanted not in ("auto", *DECODERS):
        raise ConfigError(f"reader = {wanted!r}: must be one of auto, {', '.join(DECODERS)}")
    installed = importlib.util.find_spec("polars") is not None
    if wanted == "polars" and not installed:
        raise MissingExtra('polars is not installed; pip install "gpucal[fast]"')
    return "polars" if plain and installed and wanted != "pyarrow" else "pyarrow"


def prepare_decoder(threads: int) -> str:
    """Choose what decodes signal files on so many threads, and import it.

    Polars fixes the size of its own pool when that is first used, which is here, unless something else has used it.

    Parameters
    ----------
    threads : int
        Threads it may use.

    Returns
    -------
    str
        A key of `DECODERS`; where Polars already has more threads and was not asked for by name, pyarrow.

    Raises
    ------
    ConfigError
        If GPUCAL_READER names no decoder.
    MissingExtra
        If it names polars, which is not installed.
    """
    name = choose_decoder()
    if name != "polars":
        return name
    before = os.environ.get("POLARS_MAX_THREADS")
    os.environ.setdefault("POLARS_MAX_THREADS", str(threads))
    try:
        import polars as pl

        pool = pl.thread_pool_size()
    finally:
        if before is None:
            del os.environ["POLARS_MAX_THREADS"]
    if pool <= threads or os.environ.get("GPUCAL_READER") == "polars":
        return name
    log.info("decoding with pyarrow: Polars was started with %d threads before, %d are allowed now", pool, threads)
    return "pyarrow"


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


def _no_nulls(signal: Signal, position: int, nulls: int) -> None:
    if nulls:
        raise InputError(f"column {position} holds {nulls} nulls", _AGAIN, signal.path)


def _fits(signal: Signal, position: int, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype != np.uint16 and values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
        problem = f"column {position} holds counts from {values.min()} to {values.max()}, outside 0 to 65535"
        raise InputError(problem, _AGAIN, signal.path)
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
    try:
        with path.open("rb") as stream:
            footer, fingerprint = _footer(stream, path)
            size = stream.seek(0, 2)
    except FileNotFoundError as error:
        raise InputError("signal file is missing", _AGAIN, path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", _AGAIN, path) from error
    with _typed_errors(path), pq.ParquetFile(pa.BufferReader(footer)) as file:
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
        raise InputError(f"is no Parquet file ({size} bytes)", _AGAIN, path)
    file.seek(size - 8)
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > size - 12:
        raise InputError("is no complete Parquet file (truncated or overwritten)", _AGAIN, path)
    file.seek(size - 8 - length)
    footer = file.read(length)
    return _MAGIC + footer + tail, hashlib.sha256(f"{size} ".encode() + footer).hexdigest()


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
