"""The memory that items in progress may use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from threading import Condition
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.backends import Backend
from gpucal.errors import ConfigError, InputUnavailable
from gpucal.inputs.parquet.layout import COLUMNS
from gpucal.inputs.parquet.pages import most_bytes
from gpucal.inputs.signal_file import Signal
from gpucal.settings.arguments import from_text
from gpucal.settings.values import size

__all__ = [
    "COUNT_BLOCK",
    "DEFAULT_MEMORY",
    "DEVICE_MEMORY",
    "LEAST_BLOCK",
    "PAGE_BLOCK",
    "PROCESS",
    "THREAD",
    "Budget",
    "FileMemory",
    "checked_memory",
    "page_block_of",
    "result_bytes",
    "usual_memory",
    "working_bytes",
]

DEFAULT_MEMORY = 650_000_000
"""Default limit of the peak resident memory, bytes; an item that needs more is still calibrated, alone."""

DEVICE_MEMORY = 2_000_000_000
"""The same with a GPU: a block of its pages is a whole file, and items are read while others are calibrated. What CUDA
takes is not counted."""

# Bytes that the process holds beside items: interpreter, libraries, freed memory that allocators keep.
PROCESS = 290_000_000

# Bytes of a footer whose parsing is part of these: those of AIRS-CH0 with one row group have 1.2 MB.
_FOOTER = 2**21

# Bytes of a block of pixels, at most. Raw counts are enough to make a call's overhead negligible, and few beside the
# result. Decompressed pages are so many because the refused ones among them are one call of pyarrow's codec: of
# AIRS-CH0, 30 in 4 MB (`benchmarks/pages.py` prints how many of all).
PAGE_BLOCK, COUNT_BLOCK = 2**22, 6 * 2**20

# Bytes of a block of pages at least, and blocks that a thread has at least, so that all end at about the same time.
LEAST_BLOCK, _SHARES = 2**19, 8

# Bytes that a thread holds beside its block: a dictionary, tables of Huffman codes, a stack.
THREAD = 4_000_000


def usual_memory(backend: Backend) -> int:
    """Return the limit of the process's memory where none is given, bytes."""
    return DEFAULT_MEMORY if backend.on_device is None else DEVICE_MEMORY


def page_block_of(total: int, threads: int) -> int:
    """Return the bytes of a block of pages, where an item has so many in ``total``, decompressed."""
    return min(PAGE_BLOCK, max(LEAST_BLOCK, total // (_SHARES * threads)))


def result_bytes(values: int, dtype: np.dtype[Any], value_bytes: int) -> int:
    """Return the bytes that a result of so many values needs: ``value_bytes`` each, once it is made.

    Before, while its sums are arranged as a cube, each value is there twice.
    """
    return values * max(2 * dtype.itemsize, value_bytes)


def working_bytes(signal: Signal, threads: int, page_block: int | None = None, *, by_pages: bool) -> int:
    """Return the bytes that an item needs beside its file and its result.

    Parameters
    ----------
    signal : Signal
        Its file.
    threads : int
        Threads that bin.
    page_block : int, optional
        Bytes of a block of pages, if the backend wants another size than `page_block_of` gives.
    by_pages : bool
        Whether pages are binned without their counts; otherwise, and if the footer tells that they are of another
        kind, pyarrow decodes them.

    Returns
    -------
    int
        Bytes.
    """
    footer = signal.footer
    if by_pages and signal.by_pages:
        most = most_bytes(footer)  # a footer may say anything, and so much that its sum overflows 64 bits
        sizes = np.clip(footer.uncompressed[:, signal.columns], 0, most).sum(axis=0, dtype=np.float64)
        total = int(sizes.sum())
        usual = page_block_of(total, threads)
        block = max(page_block or usual, min(int(sizes.max(initial=0)), most))
        blocks = min(threads, -(-total // block))
        table = 2 * 8 * COLUMNS * 2 * footer.rows.size * signal.columns.size  # and what it is made from
        parsing = 8 * max(0, signal.footer_size - _FOOTER)
        return table + parsing + max(blocks * block, threads * usual) + threads * 2 * footer.n_rows
    # A block as a table, in one piece, and its pages; 19 MB for the 1.2 MB that are the footer of AIRS-CH0.
    return 16 * signal.footer_size + threads * 4 * max(COUNT_BLOCK, 2 * footer.n_rows)


@dataclass(frozen=True, eq=False)
class FileMemory:
    """Memory that files are read into, one after another. Of the usual kind, what was never written to is not held."""

    space: NDArray[np.uint8]
    written: int

    def holding(self, size: int) -> FileMemory:
        """Return the same after a file of ``size`` was read into it."""
        return FileMemory(self.space, max(size, self.written))

    def beyond(self, size: int) -> int:
        """Return the bytes that it holds more than a file of ``size`` needs."""
        return max(0, self.written - size)


class Budget:
    """Limits the bytes of files and outputs in memory at once.

    Without ``memory`` the limit is ``usual``, and a single larger item may exceed it. Raises ConfigError if the memory
    is too little for any item.
    """

    def __init__(self, memory: int | None, threads: int, usual: int = DEFAULT_MEMORY) -> None:
        self.strict = memory is not None
        total = usual if memory is None else memory
        self.other = PROCESS + threads * THREAD
        if self.strict and total < self.other:
            given = f"{total // 10**6}MB" if total >= 10**6 else f"{total} bytes"
            raise ConfigError(
                f"memory = {given}: the least is {-(-self.other // 10**6)}MB, as {threads} threads need "
                f"{self.other:,} bytes beside the data; raise it, or lower workers"
            )
        self.total = total - self.other
        self._used, self._closed = 0, False
        self._spare: list[FileMemory] = []
        self._changed = Condition()

    def acquire(
        self, wanted: int, path: Path, check_alive: Callable[[], None], size: int | None = None
    ) -> FileMemory | None:
        """Wait until so many bytes are free, or nothing is in use; return memory of ``size`` to use again, if any.

        What was written to beyond ``size`` is in use as well, and to be released with the rest.
        ``check_alive`` is called while waiting, and may raise to end the wait. Raises InputUnavailable, naming
        ``path``, if the bytes can never be free, and CancelledError after `close`.
        """
        if self.strict and wanted > self.total:
            raise InputUnavailable(
                f"needs {self.other + wanted:,} bytes of memory, more than the {self.total + self.other:,} allowed",
                "raise --memory or lower --workers",
                path,
            )
        with self._changed:
            while not (self._closed or not self._used or self._used + wanted <= self.total):
                check_alive()
                self._changed.wait(timeout=0.5)
            if self._closed:
                raise CancelledError
            need = 0 if size is None else size
            fitting = [memory for memory in self._spare if size is not None and memory.space.size >= size]
            spare = min(fitting, key=lambda memory: (memory.beyond(need), -memory.written), default=None)
            more = 0 if spare is None else spare.beyond(need)
            if (self.strict or self._used) and self._used + wanted + more > self.total:
                spare, more = None, 0
            self._used += wanted + more
            self._spare = [memory for memory in self._spare if memory is not spare]
            while self._spare and self._used + sum(memory.written for memory in self._spare) > self.total:
                self._spare.pop(0)
            return spare

    def take(self, wanted: int) -> int:
        """Take so many bytes more if they are free, without waiting; return how many were taken, all or none."""
        with self._changed:
            if self._used + sum(memory.written for memory in self._spare) + wanted > self.total:
                return 0
            self._used += wanted
            return wanted

    def release(self, returned: int, spare: FileMemory | None = None) -> None:
        """Give bytes back, with the memory among them that may be used again."""
        with self._changed:
            self._used -= returned
            if spare is not None:
                self._spare.append(spare)
            self._changed.notify_all()

    def close(self) -> None:
        """End every wait with CancelledError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def checked_memory(memory: object) -> int | None:
    """Return a limit of memory in bytes, which may be a text such as 2GB; raises ConfigError if it is neither."""
    if isinstance(memory, str):
        return from_text("memory", memory, size)
    if memory is None:
        return None
    if isinstance(memory, bool) or not isinstance(memory, Integral):
        raise ConfigError(f"memory = {memory!r}: must be a number of bytes, or a text such as '2GB'")
    return int(memory)
