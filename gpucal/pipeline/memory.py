"""The memory that items in progress may use, and the memory of one decoding thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from io import BytesIO
from pathlib import Path
from threading import Condition

from gpucal.errors import ConfigError, InputError

__all__ = ["BLOCK", "DEFAULT_MEMORY", "PROCESS", "Budget", "decode_bytes"]

DEFAULT_MEMORY = 900_000_000
"""Default limit of the peak resident memory, bytes; an item that needs more is still calibrated, alone."""

# Bytes that the process holds beside items and decoded counts: interpreter, libraries, freed memory that allocators
# keep (340 MB measured with Polars and Numba after ten observations).
PROCESS = 360_000_000

# Bytes of raw counts in a pixel block: enough to make a call's overhead negligible, few beside the result.
BLOCK = 6 * 2**20

# The most bytes of counts decoded in one call: more is little faster, see benchmarks/readers.py. The bytes that Polars
# takes to parse the footer in each call: 33 MB measured with AIRS-CH0, 11392 columns.
_UNIT, _FOOTER = 64 * 2**20, 33_000_000


def decode_bytes(unit: int) -> int:
    """Return the most bytes a thread holds while it decodes ``unit`` bytes in one call: footer, table, block, pages."""
    return _FOOTER + unit + unit // 2 + 2 * BLOCK


class Budget:
    """Limits the bytes of files and outputs in memory at once, and the bytes a thread decodes in one call.

    Without ``memory`` the limit is `DEFAULT_MEMORY`, and a single larger item may exceed it. Raises ConfigError if the
    memory is too little for any item.
    """

    def __init__(self, memory: int | None, threads: int) -> None:
        self.strict = memory is not None
        total = DEFAULT_MEMORY if memory is None else memory
        least = PROCESS + threads * decode_bytes(BLOCK)
        if self.strict and total < least:
            given = f"{total // 10**6}MB" if total >= 10**6 else f"{total} bytes"
            raise ConfigError(
                f"memory = {given}: the least is {-(-least // 10**6)}MB, as {threads} threads need {least:,} bytes "
                "beside the data; raise it, or lower workers"
            )
        share = (total - PROCESS) // (2 * threads)  # decoded counts may take half of the rest
        self.unit = max(BLOCK, min(_UNIT, (share - decode_bytes(0)) * 2 // 3))
        self.other = PROCESS + threads * decode_bytes(self.unit)
        self.total = total - self.other
        self._threads = threads
        self._used, self._closed = 0, False
        self._spare: list[BytesIO] = []
        self._changed = Condition()

    def acquire(self, wanted: int, path: Path, check_alive: Callable[[], None]) -> BytesIO | None:
        """Wait until so many bytes are free, or nothing is in use; returns a buffer to use again, if there is one.

        ``check_alive`` is called while waiting, and may raise to end the wait. Raises InputError, naming ``path``, if
        the bytes can never be free, and CancelledError after `close`.
        """
        if self.strict and wanted > self.total:
            # Decoding gets as much as files and outputs, within what it can use.
            least, most = (self._threads * decode_bytes(unit) for unit in (BLOCK, _UNIT))
            raise InputError(
                f"needs {PROCESS + wanted + min(max(wanted, least), most):,} bytes of memory, "
                f"more than the {self.total + self.other:,} allowed",
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
            spare = self._spare.pop() if self._spare else None
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
