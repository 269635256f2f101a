"""Dictionary indices as literal runs and runs of one index, divided and filled up as Polars does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["hybrid", "literal_runs", "may_repeat", "pack", "varint"]

# Indices of a literal run at most. An index that is repeated more often than eight times becomes a run of its own.
_LITERAL, _REPEATS = 8192, 8


def may_repeat(indices: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Tell which columns may repeat an index more than eight times; the others certainly do not.

    Parameters
    ----------
    indices : ndarray of uint16, shape (column, row)
        Indices of at least one row.

    Returns
    -------
    ndarray of bool, shape (column,)
        Whether it may; few columns without such repeats are among them.
    """
    n_columns, n_rows = indices.shape
    same = np.zeros((n_columns, (n_rows + 3) // 4 * 4), np.bool_)
    np.equal(indices[:, 1:], indices[:, :-1], out=same[:, : n_rows - 1])
    # among eight pairs that are the same, four begin at a multiple of four
    return np.asarray((same.view(np.uint32) == 0x01010101).any(axis=1))


def hybrid(indices: NDArray[np.uint16], bits: int) -> bytes:
    """Encode a column's indices as literal runs, and as runs of one index where it is repeated often.

    Parameters
    ----------
    indices : ndarray of uint16, shape (row,)
        Indices of at least one row.
    bits : int
        Bits of an index, 0 to 16.

    Returns
    -------
    bytes
        The runs, each behind its header.
    """

    def literal(piece: NDArray[np.uint16]) -> bytes:
        return literal_runs(pack(piece[None], np.array([bits]))[0], piece.size, bits)

    edges = np.concatenate([[0], np.flatnonzero(indices[1:] != indices[:-1]) + 1, [indices.size]])
    often = np.flatnonzero(np.diff(edges) > _REPEATS)
    parts, at = [], 0
    for start, stop in zip(edges[often].tolist(), edges[often + 1].tolist(), strict=True):
        filled = (start - at) % _LITERAL
        if filled > _LITERAL - _REPEATS:  # the literal run is full before the repeats are noticed
            start, filled = start + _LITERAL - filled, 0
        start += -filled % 8  # a literal run has whole groups of eight
        if stop - start > _REPEATS:
            index = int(indices[start]).to_bytes(2, "little")[: (bits + 7) // 8]
            parts += [literal(indices[at:start]), varint((stop - start) << 1), index]
            at = stop
    return b"".join([*parts, literal(indices[at:])])


def literal_runs(packed: bytes, size: int, bits: int) -> bytes:
    """Cut a column's packed indices into literal runs, each behind its header."""
    parts = []
    for first in range(0, size, _LITERAL):
        groups, at = (min(_LITERAL, size - first) + 7) // 8, first // 8 * bits
        parts += [varint(groups << 1 | 1), packed[at : at + groups * bits]]
    return b"".join(parts)


def pack(indices: NDArray[np.uint16], bits: NDArray[np.integer]) -> list[bytes]:
    """Pack indices, the lowest bit first, in whole groups of eight.

    Parameters
    ----------
    indices : ndarray of uint16, shape (column, row)
        Indices of several columns.
    bits : ndarray of int, shape (column,)
        Bits of an index in each column, 0 to 16.

    Returns
    -------
    list of bytes
        The packed indices of each column.
    """
    n_columns, n_rows = indices.shape
    if lacking := -n_rows % 8:  # what Polars' memory still holds of 32 indices before
        filler = np.zeros((n_columns, lacking), np.uint16)
        if n_rows % _LITERAL >= 32:
            filler = indices[:, n_rows - 32 : n_rows - 32 + lacking]
        indices = np.concatenate([indices, filler], axis=1)
    width = bits.astype(np.uint64)[:, None]
    twos = indices.view("<u4")
    fours = ((twos & 0xFFFF) | (twos >> 16 << width.astype(np.uint32))).view("<u8")
    fours = (fours & 0xFFFFFFFF) | (fours >> 32 << 2 * width)
    eights = np.empty((n_columns, fours.shape[1] // 2, 2), "<u8")
    eights[:, :, 0] = fours[:, ::2] | fours[:, 1::2] << 4 * width
    eights[:, :, 1] = fours[:, 1::2] >> 64 - 4 * width
    sizes = bits.tolist()
    return [
        np.ndarray(len(column), f"V{size}", column, strides=(16,)).tobytes() if size else b""
        for column, size in zip(eights, sizes, strict=True)
    ]


def varint(value: int) -> bytes:
    """Write a number that is not negative, seven bits a byte."""
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
