"""Pages of Snappy inflated: its format is that of ``format_description.txt`` in https://github.com/google/snappy.

Counts of 32 bits without a dictionary become copies of four bytes nearly all, so that a loop for short copies is faster
than any for long ones. Whatever does not end exactly at the end of its page, in what goes in and in what comes out, is
left to pyarrow's codec.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import Lock

from gpucal.backends.pagewise.intrinsics import (
    apart,
    bits_from,
    compiled,
    copy,
    get,
    inlined,
    int64,
    load64,
    put,
    put64,
    uint64,
)
from gpucal.backends.pagewise.statuses import DONE, OTHER
from gpucal.inputs.parquet.layout import AT, CODEC, PREFIX, SIZE, SNAPPY, TO, WANTED, Array

__all__ = ["inflate_snappy"]


@inlined
def _frame(data: Array, at: int, stop: int, out: Array, to: int, wanted: int) -> bool:
    """Inflate a page; tell whether it was exactly as many bytes."""
    apart()
    size = shift = 0
    byte = 128
    while byte >= 128:
        if at >= stop or shift > 28:
            return False
        byte = get(data, at)
        size |= (byte & 127) << shift
        shift += 7
        at += 1
    if size != wanted:
        return False
    first, end = to, to + wanted
    while at < stop:
        # Copies of 4 to 11 bytes from at least 8 bytes before, one after the other; 16 are written of each.
        while at + 2 <= stop and to + 16 <= end:
            word = int64(load64(data, at) & uint64(0xFFFF))
            back = word >> 5 << 8 & 0x700 | word >> 8
            if word & 3 != 1 or back < 8 or back > to - first:
                break
            put64(out, to, load64(out, to - back))
            put64(out, to + 8, load64(out, to + 8 - back))
            at += 2
            to += (word >> 2 & 7) + 4
        if at == stop:
            break
        tag = get(data, at)
        at += 1
        kind, size = tag & 3, (tag >> 2) + 1
        if not kind:  # bytes as they are
            if size > 60:
                more = size - 60
                size = bits_from(data, 8 * at, 8 * more) + 1
                at += more
            if size > stop - at or size > end - to:
                return False
            copy(out, to, data, at, size)
            at += size
        else:  # bytes that were there before; among them are those that this very copy writes
            word = bits_from(data, 8 * at, 32)
            if kind == 1:
                size, back = (tag >> 2 & 7) + 4, tag >> 5 << 8 | word & 255
                at += 1
            elif kind == 2:
                back = word & 0xFFFF
                at += 2
            else:
                back = word
                at += 4
            if at > stop or not back or back > to - first or size > end - to:
                return False
            for k in range(to, to + size):
                put(out, k, get(out, k - back))
        to += size
    return at == stop and to == end


def _inflate_snappy(data: Array, pages: Array, out: Array, status: Array) -> None:
    base = pages[0, TO] if pages.shape[0] else 0
    for page in range(pages.shape[0]):
        if status[page] == OTHER and pages[page, CODEC] == SNAPPY:
            at, prefix, to = pages[page, AT], pages[page, PREFIX], pages[page, TO] - base
            stop, wanted = at + pages[page, SIZE], pages[page, WANTED]
            if _frame(data, at + prefix, stop, out, to + prefix, wanted - prefix):
                status[page] = DONE


_COMPILING = Lock()


@functools.cache
def _compiled() -> Callable[..., None]:
    """Compile it when it is first needed: published files never do."""
    array = "Array({}, {}, 'C', readonly=True)".format
    return compiled(f"void({array('u1', 1)}, {array('i8', 2)}, u1[::1], i8[::1])")(_inflate_snappy)


def inflate_snappy(data: Array, pages: Array, out: Array, status: Array) -> None:
    """Inflate the pages of Snappy among those that `gpucal.backends.pagewise.inflate.inflate_pages` has left.

    Parameters
    ----------
    data : ndarray of uint8, shape (byte,)
        What holds them as they are stored.
    pages : ndarray of int64, shape (page, COLUMNS)
        The table, which `inflate_pages` has found inside of both arrays; see `gpucal.inputs.parquet.layout`.
    out : ndarray of uint8, shape (byte,)
        Where they are put.
    status : ndarray of int64, shape (page,)
        What `inflate_pages` wrote; set to 0 for the pages of Snappy that are done.
    """
    with _COMPILING:  # of several threads, the first compiles
        inflate = _compiled()
    inflate(data, pages, out, status)
