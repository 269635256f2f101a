"""The memory that items in progress may use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from io import BytesIO
from numbers import Integral
from pathlib import Path
from threading import Condition

from gpucal.errors import ConfigError, InputError
from gpucal.inputs.parquet.layout import COLUMNS
from gpucal.inputs.parquet.pages import most_bytes
from gpucal.inputs.signal_file import Signal
from gpucal.settings.arguments import from_text
from gpucal.settings.values import size

__all__ = [
    "COUNT_BLOCK",
    "DEFAULT_MEMORY",
    "PAGE_BLOCK",
    "PROCESS",
    "THREAD",
    "Budget",
    "checked_memory",
    "working_bytes",
]

DEFAULT_MEMORY = 650_000_000
"""Default limit of the peak resident memory, bytes; an item that needs more is still calibrated, alone."""

# Bytes that the process holds beside items: interpreter, libraries, freed memory that allocators keep.
PROCESS = 290_000_000

# Bytes of a footer whose parsing is part of these: those of AIRS-CH0 with one row group have 1.2 MB.
_FOOTER = 2**21

# Bytes of a block of pixels. Decompressed pages stay in a core's second cache. Raw counts are enough to make a call's
# overhead negligible, and few beside the result.
PAGE_BLOCK, COUNT_BLOCK = 2**19, 6 * 2**20

# Bytes that a thread holds beside its block: a dictionary, tables of Huffman codes, a stack.
THREAD = 4_000_000


def working_bytes(signal: Signal, threads: int, page_block: int | None = None, *, by_pages: bool) -> int:
    """Return the bytes that an item needs beside its file and its result.

    Parameters
    ----------
    signal : Signal
        Its file.
    threads : int
        Threads that bin.
    page_block : int, optional
        Bytes of a block of pages, if the backend wants another size than `PAGE_BLOCK`.
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
        longest = int(footer.uncompressed[:, signal.columns].sum(axis=0).max(initial=0))
        longest = min(longest, most_bytes(footer))  # a footer may say anything
        table = 2 * 8 * COLUMNS * 2 * footer.rows.size * signal.columns.size  # and what it is made from
        parsing = 8 * max(0, signal.footer_size - _FOOTER)
        return table + parsing + threads * (max(page_block or PAGE_BLOCK, longest) + 2 * footer.n_rows)
    # A block as a table, in one piece, and its pages; 19 MB for the 1.2 MB that are the footer of AIRS-CH0.
    return 16 * signal.footer_size + threads * 4 * max(COUNT_BLOCK, 2 * footer.n_rows)


class Budget:
    """Limits the bytes of files and outputs in memory at once.

    Without ``memory`` the limit is `DEFAULT_MEMORY`, and a single larger item may exceed it. Raises ConfigError if the
    memory is too little for any item.
    """

    def __init__(self, memory: int | None, threads: int) -> None:
        self.strict = memory is not None
        total = DEFAULT_MEMORY if memory is None else memory
        self.other = PROCESS + threads * THREAD
        if self.strict and total < self.other:
            given = f"{total // 10**6}MB" if total >= 10**6 else f"{total} bytes"
            raise ConfigError(
                f"memory = {given}: the least is {-(-self.other // 10**6)}MB, as {threads} threads need "
                f"{self.other:,} bytes beside the data; raise it, or lower workers"
            )
        self.total = total - self.other
        self._used, self._closed = 0, False
        self._spare: list[BytesIO] = []
        self._changed = Condition()

    def acquire(
        self, wanted: int, path: Path, check_alive: Callable[[], None], size: int | None = None
    ) -> BytesIO | None:
        """Wait until so many bytes are free, or nothing is in use; returns a buffer to use again, if there is one.

        The buffer is the one whose size is nearest to ``size``.
        ``check_alive`` is called while waiting, and may raise to end the wait. Raises InputError, naming ``path``, if
        the bytes can never be free, and CancelledError after `close`.
        """
        if self.strict and wanted > self.total:
            raise InputError(
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
            self._used += wanted
            # The nearest in size: a larger file would move into new memory, and a smaller one leave some unused.
            nearest = min(
                self._spare, key=lambda buffer: abs(buffer.getbuffer().nbytes - (size or wanted)), default=None
            )
            spare = None if nearest is None else self._spare.pop(self._spare.index(nearest))
            while self._spare and self._used + sum(buffer.getbuffer().nbytes for buffer in self._spare) > self.total:
                self._spare.pop()
            return spare

    def release(self, returned: int, spare: BytesIO | None = None) -> None:
        """Give bytes back, with the buffer among them that may be used again."""
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
