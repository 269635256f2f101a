"""How a signal file in memory becomes pixel blocks: Polars where it is installed, else pyarrow.

Which is faster on which encoding, and on columns a call, is measured by benchmarks/readers.py.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpucal.errors import ConfigError, InputError, MissingExtra
from gpucal.inputs.files import AGAIN, shortened
from gpucal.inputs.parquet.arrow import in_file_order, read_positions, values_of

if TYPE_CHECKING:
    import polars as pl

__all__ = ["DECODERS", "Columns", "Loaded", "choose_decoder", "prepare_decoder", "typed_errors"]

log = logging.getLogger(__name__)

Block: TypeAlias = "tuple[slice, NDArray[np.uint16]]"
"""Which of the cropped pixels, and their raw counts, (pixel, frame)."""


@dataclass(frozen=True)
class Columns:
    """The columns to decode of a Parquet file.

    Parameters
    ----------
    path : Path
        The file, for errors.
    n_frames : int
        Rows.
    positions : ndarray of intp, shape (pixel,)
        Their positions in the file, row by row of the frame.
    metadata : pyarrow.parquet.FileMetaData or None
        The footer as pyarrow parses it; None where something else decodes.
    strict : bool
        Whether checksums of pages are verified.
    """

    path: Path
    n_frames: int
    positions: NDArray[np.intp]
    metadata: Any
    strict: bool


@dataclass(frozen=True)
class Loaded:
    """A signal file in memory.

    Parameters
    ----------
    signal : Columns
        What to decode of it.
    buffer : BytesIO
        The file.
    decoder : Decoder
        What decodes it.
    """

    signal: Columns
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
        with typed_errors(self.signal.path):
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
    whole = pa.BufferReader(loaded.buffer.getvalue())
    with pq.ParquetFile(whole, metadata=signal.metadata, page_checksum_verification=signal.strict) as file:
        for pixels in (block for unit in units for block in unit):
            positions = signal.positions[pixels]
            table = read_positions(file, positions)
            if (table.num_rows, table.num_columns) != (signal.n_frames, positions.size):
                raise InputError("decodes to another size than its footer says", AGAIN, signal.path)
            counts = _stacked(table)
            if counts is None:
                counts = np.empty((positions.size, signal.n_frames), np.uint16)
                for row, position, column in zip(counts, positions, table.itercolumns(), strict=True):
                    _no_nulls(signal, position, column.null_count)
                    row[:] = _fits(signal, position, values_of(column))
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


def _decode_polars(loaded: Loaded, units: Iterable[list[slice]]) -> Iterator[Block]:
    import polars as pl

    signal = loaded.signal
    for unit in units:
        first = unit[0].start
        positions = signal.positions[first : unit[-1].stop]
        ascending, back = in_file_order(positions)
        try:
            data = loaded.buffer.getvalue()
            table = _undisturbed(pl.read_parquet, data, columns=ascending.tolist(), use_statistics=False)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise ValueError(str(error)) from error
        if table.shape != (signal.n_frames, positions.size) or len(set(table.dtypes)) != 1:
            raise InputError("decodes to another size or type than its footer says", AGAIN, signal.path)
        table = table if back is None else table[:, back]
        for position, nulls in zip(positions, _undisturbed(table.null_count).row(0), strict=True):
            _no_nulls(signal, position, nulls)
        for pixels in unit:
            part = table[:, pixels.start - first : pixels.stop - first].to_numpy(order="fortran").T
            if part.dtype != np.uint16:
                for position, values in zip(signal.positions[pixels], part, strict=True):
                    _fits(signal, position, values)
            yield pixels, part.astype(np.uint16, copy=False)
        del table, part  # before the next unit, not after it


def _undisturbed(of_polars: Callable[..., pl.DataFrame], *args: object, **options: object) -> pl.DataFrame:
    """Call what computes, whatever signals come.

    Polars looks for SIGINT itself and raises KeyboardInterrupt in all threads that it then works for or is asked by.
    None of them is the main one, where Python's own handler has the signal too and decides what becomes of the run.
    """
    while True:
        try:
            return of_polars(*args, **options)
        except KeyboardInterrupt:
            if threading.current_thread() is threading.main_thread():
                raise


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
        See `gpucal.inputs.signal_file.Signal`.

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
            os.environ.pop("POLARS_MAX_THREADS", None)  # another thread may have done so
    if pool <= threads or os.environ.get("GPUCAL_READER") == "polars":
        return name
    log.info("decoding with pyarrow: Polars was started with %d threads before, %d are allowed now", pool, threads)
    return "pyarrow"


def _no_nulls(signal: Columns, position: int, nulls: int) -> None:
    if nulls:
        raise InputError(f"column {position} holds {nulls} nulls", AGAIN, signal.path)


def _fits(signal: Columns, position: int, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype != np.uint16 and values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
        problem = f"column {position} holds counts from {values.min()} to {values.max()}, outside 0 to 65535"
        raise InputError(problem, AGAIN, signal.path)
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
