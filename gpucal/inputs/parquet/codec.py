"""Pages decompressed by pyarrow's codecs, each to exactly the size that its header says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpucal.inputs.parquet.layout import SNAPPY, STORED, ZSTD

__all__ = ["decompress", "decompress_alike"]

_MAGIC = b"\x28\xb5\x2f\xfd"


def decompress(codec: int, stored: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Decompress a page.

    Parameters
    ----------
    codec : int
        As `gpucal.inputs.parquet.layout` numbers them.
    stored : ndarray of uint8, shape (byte,)
        The page as it is stored.
    size : int
        Bytes that it has to have.

    Returns
    -------
    ndarray of uint8, shape (size,)
        The page.

    Raises
    ------
    OSError, ValueError, MemoryError, pyarrow.ArrowException
        If the page is damaged, or has another size.
    """
    if codec == STORED:
        content = stored
    elif codec == ZSTD and _zstd_size(stored[:18].tobytes()) == size:  # the codec sees that it is true
        content = np.frombuffer(pa.Codec("zstd").decompress(pa.py_buffer(stored), decompressed_size=size), np.uint8)
    elif codec == ZSTD:
        with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(stored)), "zstd") as stream:
            content = np.frombuffer(stream.read_buffer(size + 1), np.uint8)
    elif codec == SNAPPY and _snappy_size(stored) == size:
        content = np.frombuffer(pa.Codec("snappy").decompress(pa.py_buffer(stored), decompressed_size=size), np.uint8)
    else:
        raise OSError("of another size than its header says")
    if content.size != size:
        raise OSError("to another size than its header says")
    return content


def decompress_alike(codecs: Sequence[int], stored: Sequence[bytes], size: int) -> NDArray[np.uint8]:
    """Decompress pages that have one size, as `decompress` does; if they are zstd frames, by one call.

    Parameters
    ----------
    codecs : sequence of int
        Of each page.
    stored : sequence of bytes
        The pages as they are stored.
    size : int
        Bytes that each has to have.

    Returns
    -------
    ndarray of uint8, shape (page, size)
        The pages.
    """
    if {*codecs} == {ZSTD} and all(_zstd_size(page) == size for page in stored):
        frames, total = pa.py_buffer(b"".join(stored)), len(stored) * size
        return np.frombuffer(pa.Codec("zstd").decompress(frames, decompressed_size=total), np.uint8).reshape(-1, size)
    pages = zip(codecs, stored, strict=True)
    return np.stack([decompress(codec, np.frombuffer(page, np.uint8), size) for codec, page in pages])


def _zstd_size(stored: bytes) -> int:
    """Return the size that a frame's header says (RFC 8878, 3.1.1.1); -1 if it says none."""
    head = stored[:18]
    if len(head) < 9 or head[:4] != _MAGIC:
        return -1
    flag, is_single = head[4] >> 6, head[4] >> 5 & 1
    begin = 6 - is_single + (0, 1, 2, 4)[head[4] & 3]  # behind the window, and the number of a dictionary
    width = 1 << flag if flag else is_single
    return int.from_bytes(head[begin : begin + width], "little") + 256 * (flag == 1) if width else -1


def _snappy_size(stored: NDArray[np.uint8]) -> int:
    """Return the size that compressed bytes begin with, in groups of seven bits; -1 if they do not."""
    size = 0
    for place, byte in enumerate(stored[:5].tobytes()):
        size |= (byte & 127) << 7 * place
        if byte < 128:
            return size
    return -1
