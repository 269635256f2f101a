"""Pages decompressed by pyarrow's codecs, each to exactly the size that its header says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gpucal.inputs.parquet.layout import SNAPPY, STORED, ZSTD, ZSTD_MAGIC

__all__ = ["decompress", "decompress_all"]

_MAGIC = ZSTD_MAGIC.to_bytes(4, "little")
_HEAD = 21  # bytes of a frame's longest header, and of a block's
_REPEATED = 1 << 1  # a block that is one byte, many times
_OTHER = "to another size than its header says"


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
        If the page is damaged, has another size, or is of another codec.
    """
    if codec == STORED:
        content = stored
    elif codec == ZSTD and _frame(stored[:_HEAD].tobytes())[0] == size:  # the codec sees to it that this is true
        content = np.frombuffer(pa.Codec("zstd").decompress(pa.py_buffer(stored), decompressed_size=size), np.uint8)
    elif codec == ZSTD:
        with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(stored)), "zstd") as stream:
            content = np.frombuffer(stream.read_buffer(size + 1), np.uint8)
    elif codec == SNAPPY and _snappy_size(stored) == size:
        content = np.frombuffer(pa.Codec("snappy").decompress(pa.py_buffer(stored), decompressed_size=size), np.uint8)
    elif codec == SNAPPY:
        raise ValueError(_OTHER)
    else:
        raise ValueError(f"codec {codec}")
    if content.size != size:
        raise ValueError(_OTHER)
    return content


def decompress_all(
    codecs: Sequence[int], stored: Sequence[NDArray[np.uint8]], sizes: Sequence[int]
) -> NDArray[np.uint8]:
    """Decompress pages, as `decompress` does, one behind the other; if they are zstd frames of one block, by one call.

    In each call the codec makes its tables anew, which takes as long as some pages do.

    Parameters
    ----------
    codecs : sequence of int
        Of each page.
    stored : sequence of ndarray of uint8
        The pages as they are stored.
    sizes : sequence of int
        Bytes that each has to have.

    Returns
    -------
    ndarray of uint8, shape (byte,)
        The pages.

    Raises
    ------
    OSError, ValueError, MemoryError, pyarrow.ArrowException
        As `decompress` does.
    """
    # The header of a frame of one block tells where the frame ends: a damaged one takes no bytes of others.
    pages = [*zip(codecs, stored, sizes, strict=True)]
    if {*codecs} == {ZSTD} and all(_frame(page[:_HEAD].tobytes()) == (size, page.size) for _, page, size in pages):
        frames, total = pa.py_buffer(np.concatenate(stored)), sum(sizes)
        return np.frombuffer(pa.Codec("zstd").decompress(frames, decompressed_size=total), np.uint8)
    return np.concatenate([decompress(codec, page, size) for codec, page, size in pages])


def _frame(stored: bytes) -> tuple[int, int]:
    """Return the size that the header of a zstd frame says (RFC 8878, 3.1.1), and the frame's bytes if it is one block.

    Either is -1 if the header does not tell.
    """
    if len(stored) < 9 or stored[:4] != _MAGIC:
        return -1, -1
    begin, end, more, checksum = _FORMS[stored[4]]
    block = int.from_bytes(stored[end : end + 3], "little")
    size = int.from_bytes(stored[begin:end], "little") + more if end > begin else -1
    return size, end + 3 + (1 if block & 6 == _REPEATED else block >> 3) + checksum if block & 1 else -1


def _form(descriptor: int) -> tuple[int, int, int, int]:
    """Return where a frame's size begins and ends, what is to be added to it, and the bytes of a checksum."""
    flag, is_single = descriptor >> 6, descriptor >> 5 & 1
    begin = 6 - is_single + (0, 1, 2, 4)[descriptor & 3]  # behind the window, and the number of a dictionary
    return begin, begin + (1 << flag if flag else is_single), 256 * (flag == 1), 4 * (descriptor >> 2 & 1)


_FORMS = tuple(map(_form, range(256)))


def _snappy_size(stored: NDArray[np.uint8]) -> int:
    """Return the size that compressed bytes begin with, in groups of seven bits; -1 if they do not."""
    size = 0
    for place, byte in enumerate(stored[:5].tobytes()):
        size |= (byte & 127) << 7 * place
        if byte < 128:
            return size
    return -1
