"""Inflated pages, or counts, to binned sums in one order, that of ``kernels/calibrate.cu``: the same bits either way.

    out[p, b] = ( Σ over the bin's pairs of [ P(n_end) − P(n_start) ]  −  dark · τ[b] ) / divisor

P is evaluated once for each value of a dictionary, and pairs look their reads up. A bin's pairs are added by 1, 2, 4 …
32 lanes, as few as leave each at most 15: lane m adds pairs m, m + lanes, …; a bin of more than 508 pairs comes in
pieces of so many, and every piece begins with lane 0; then the upper half of the lanes is added to the lower, and so
on. Everything that a page says is checked before it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import Lock

import numpy as np

from gpucal.backends.pagewise.intrinsics import (
    apart,
    compiled,
    fma,
    get,
    inlined,
    int64,
    load64,
    put,
    put64,
    uint64,
)
from gpucal.backends.pagewise.statuses import (
    ASKED,
    COUNT,
    DICTIONARY_GONE,
    DONE,
    ENCODED,
    INDEX,
    LEVELS_WRONG,
    NULLS,
    RANGE,
    ROWS,
    RUN,
    SIZE_WRONG,
    STATUSES,
    WIDTH,
)
from gpucal.inputs.parquet.layout import (
    DATA_2,
    DICTIONARY,
    ENCODING,
    FIRST,
    KIND,
    LEVELS,
    PADDING,
    PLAIN,
    PLAIN_DICTIONARY,
    RLE_DICTIONARY,
    TO,
    VALUES,
    WANTED,
    Array,
)

__all__ = ["ASKED", "STATUSES", "bin_counts", "bin_pages", "count_pages", "workspace"]

_LANES, _A_LANE, _PIECE = 32, 15, 508  # of calibrate.cu
_TILE = 1024  # pairs whose differences stay in the nearest cache
_GROUPS = 128  # of eight indices, that are unpacked at a time
_ENTRIES = 1 << 16


@inlined
def _head(page: Array, at: int, stop: int) -> tuple[int, int]:
    """Read the head of a run; return it and where it ends, or 0 if it is not there or has more than four bytes."""
    head = shift = 0
    while at < stop and shift < 28:
        byte = get(page, at)
        at += 1
        head |= (byte & 127) << shift
        if byte < 128:
            return head, at
        shift += 7
    return 0, at


@inlined
def _check_levels(page: Array, at: int, stop: int, values: int) -> int:
    """Check that definition levels are all 1, and as many as there are values."""
    left = values
    while left > 0:
        head, at = _head(page, at, stop)
        count = head >> 1
        if head & 1:  # in groups of eight, of which the last may hold more than there are
            if count > stop - at or 8 * count - left >= 8:
                return LEVELS_WRONG
            here = min(8 * count, left)
            whole = True
            for k in range(here >> 3):
                whole &= get(page, at + k) == 255
            rest = (1 << (here & 7)) - 1
            if rest:
                whole &= get(page, at + (here >> 3)) & rest == rest
            if not whole:
                return NULLS
            at += count
            left -= here
        else:
            if at >= stop or count > left:
                return LEVELS_WRONG
            level = get(page, at)
            if level != 1:
                return LEVELS_WRONG if level else NULLS
            at += 1
            left -= count
        if not count:
            return LEVELS_WRONG
    return DONE if at == stop else LEVELS_WRONG


@inlined
def _unpack(page: Array, at: int, stop: int, values: int, entries: int, reads: Array, row: int, work: Array) -> int:
    """Decode indices of a dictionary; return a status."""
    apart()
    if not values and at == stop:
        return DONE
    if at >= stop:
        return RUN
    width = get(page, at)
    at += 1
    if width > 16:
        return WIDTH
    # Fields of 16 bits in a word: where the first of four neighbours goes, and by how much the others have to move.
    one = uint64((1 << width) - 1)
    two, three, four = one << uint64(16), one << uint64(32), one << uint64(48)
    by, by2, by3 = uint64(16 - width), uint64(32 - 2 * width), uint64(48 - 3 * width)
    odd, half = uint64(4 * (width & 1)), width >> 1
    end = row + values
    place = row
    while place < end:
        head, at = _head(page, at, stop)
        count = head >> 1
        if not count:
            return RUN
        if head & 1:
            if count * width > stop - at:
                return RUN
            here = min(8 * count, end - place)
            if 8 * count - here >= 8:
                return COUNT
            for begin in range(0, (here + 7) >> 3, _GROUPS):
                # Two words a group of eight; and then, many at once, four fields of each.
                words = 2 * min(_GROUPS, ((here + 7) >> 3) - begin)
                first = at + begin * width
                for k in range(0, words, 2):
                    put(work, k, load64(page, first))
                    put(work, k + 1, load64(page, first + half) >> odd)
                    first += width
                for k in range(words):
                    word = uint64(get(work, k))
                    word = word & one | word << by & two | word << by2 & three | word << by3 & four
                    put64(reads, place + 8 * begin + 4 * k, word)
            at += count * width
            place += here
        else:
            if count > end - place:
                return COUNT
            size = (width + 7) >> 3
            if size > stop - at:
                return RUN
            value = int64(load64(page, at)) & ((1 << 8 * size) - 1)
            if value >= _ENTRIES:
                return INDEX
            for k in range(place, place + count):
                put(reads, k, value)
            at += size
            place += count
    if at != stop:
        return COUNT
    top = np.uint16(0)
    for k in range(row, end):
        top = max(top, reads[uint64(k)])
    return DONE if int64(top) < entries or not values else INDEX


@inlined
def _value(page: Array, at: int, width: int) -> int:
    """Read an integer of 32 or 64 bits."""
    word: int = int64(load64(page, at))
    return word if width == 8 else word << 32 >> 32


@inlined
def _column(
    data: Array,
    pages: Array,
    base: int,
    first: int,
    last: int,
    facts: Array,
    n_rows: int,
    reads: Array,
    values: Array,
    work: Array,
) -> tuple[int, int, int, int]:
    """Decode a column's pages: status, page, entries of the dictionary that reads are indices of, highest count.

    Reads become indices where one dictionary has all values, and counts otherwise: then, there are -1 entries.
    """
    apart()
    optional, width, limit = facts[0], facts[1], facts[2]
    dictionaries, coded = 0, True
    for page in range(first, last):
        if pages[page, TO] - base > data.size - PADDING - pages[page, WANTED] or pages[page, TO] < base:
            return SIZE_WRONG, page, -1, 0
        if pages[page, KIND] == DICTIONARY:
            dictionaries += 1
        else:
            coded &= pages[page, ENCODING] != PLAIN
    coded &= dictionaries == 1
    row, entries = int64(0), int64(-1)  # not literals, which functions would be compiled for as well
    above, highest = False, 0
    for page in range(first, last):
        at, size, count, encoding = (
            pages[page, TO] - base,
            pages[page, WANTED],
            pages[page, VALUES],
            pages[page, ENCODING],
        )
        stop = at + size
        if pages[page, FIRST]:
            entries = int64(-1)
        if pages[page, KIND] == DICTIONARY:
            if count * width != size:
                return SIZE_WRONG, page, -1, 0
            if count > _ENTRIES:
                return WIDTH, page, -1, 0
            above = False
            for k in range(count):
                value = _value(data, at + k * width, width)
                if value < 0 or value > limit:  # no count; it may be there if nothing uses it
                    above, value = True, -1
                put(values, k, value)
                highest = max(highest, value)
            entries = count
            continue
        if count > n_rows - row:
            return ROWS, page, -1, 0
        if optional:
            levels = pages[page, LEVELS]
            if pages[page, KIND] != DATA_2:
                if size < 4:
                    return LEVELS_WRONG, page, -1, 0
                levels = int64(load64(data, at) & uint64(0xFFFF_FFFF))
                at += 4
            if levels > stop - at:
                return LEVELS_WRONG, page, -1, 0
            status = _check_levels(data, at, at + levels, count)
            if status:
                return status, page, -1, 0
            at += levels
        if encoding == PLAIN:
            if count * width != stop - at:
                return SIZE_WRONG, page, -1, 0
            wrong = False
            for k in range(count):
                value = _value(data, at + k * width, width)
                wrong |= value < 0 or value > limit
                highest = max(highest, value)
                put(reads, row + k, value)
            if wrong:
                return RANGE, page, -1, 0
        elif encoding != RLE_DICTIONARY and encoding != PLAIN_DICTIONARY:
            return ENCODED, page, -1, 0
        else:
            if entries < 0:
                return DICTIONARY_GONE, page, -1, 0
            status = _unpack(data, at, stop, count, entries, reads, row, work)
            if status:
                return status, page, -1, 0
            if above or not coded:
                wrong = False
                for k in range(row, row + count):
                    value = get(values, get(reads, k))
                    wrong |= value < 0
                    if not coded:
                        put(reads, k, value)
                if wrong:
                    return RANGE, page, -1, 0
        row += count
    return (DONE, last, entries if coded else -1, highest) if row == n_rows else (ROWS, last - 1, -1, 0)


@inlined
def _count_differences(reads: Array, first: int, pairs: int, constants: Array, floor: float, out: Array) -> None:
    """Evaluate P(n_end) − P(n_start) of some pairs of counts, without P's constant."""
    c1, c2, c3, c4, c5 = constants
    for pair in range(pairs):
        start = float(get(reads, 2 * (first + pair)))
        end = float(get(reads, 2 * (first + pair) + 1))
        start = floor if start < floor else start
        end = floor if end < floor else end
        from_ = start * fma(start, fma(start, fma(start, fma(start, c5, c4), c3), c2), c1)
        to = end * fma(end, fma(end, fma(end, fma(end, c5, c4), c3), c2), c1)
        put(out, pair, to - from_)


@inlined
def _difference(reads: Array, table: Array, pair: int) -> float:
    """Look up P(n_end) − P(n_start) of a pair."""
    difference: float = get(table, get(reads, 2 * pair + 1)) - get(table, get(reads, 2 * pair))
    return difference


@inlined
def _add_bins(
    reads: Array,
    table: Array,
    coded: bool,
    constants: Array,
    floor: float,
    pairs_per_bin: int,
    dark: float,
    tau_s: Array,
    divisor: float,
    differences: Array,
    sums: Array,
    out: Array,
) -> None:
    """Sum the bins of one pixel, whose reads are places in a table of P, or counts."""
    apart()
    lanes = 1
    while lanes < _LANES and lanes * _A_LANE < pairs_per_bin:
        lanes *= 2
    n_bins = out.size
    step = max(1, _TILE // pairs_per_bin)
    few, other = lanes <= 2, lanes - 1
    whole = pairs_per_bin // lanes * lanes
    for tile in range(0, n_bins, step):
        bins = min(step, n_bins - tile)
        first, pairs = tile * pairs_per_bin, bins * pairs_per_bin
        if not coded:
            _count_differences(reads, first, pairs, constants, floor, differences)
        elif not few:
            for pair in range(pairs):
                put(differences, pair, _difference(reads, table, first + pair))
        for bin_ in range(bins):
            begin = bin_ * pairs_per_bin
            if few:  # one lane or two, the second of which adds what is not used if there is one
                low = high = 0.0
                if coded:
                    for pair in range(first + begin, first + begin + whole, lanes):
                        low += _difference(reads, table, pair)
                        high += _difference(reads, table, pair + other)
                    if whole < pairs_per_bin:
                        low += _difference(reads, table, first + begin + whole)
                else:
                    for pair in range(begin, begin + whole, lanes):
                        low += get(differences, pair)
                        high += get(differences, pair + other)
                    if whole < pairs_per_bin:
                        low += get(differences, begin + whole)
                put(out, tile + bin_, low + high if other else low)
                continue
            for lane in range(lanes):
                put(sums, lane, 0.0)
            for done in range(0, pairs_per_bin, _PIECE):
                here = min(_PIECE, pairs_per_bin - done)
                for turn in range(0, here, lanes):
                    for lane in range(min(lanes, here - turn)):
                        put(sums, lane, get(sums, lane) + get(differences, begin + done + turn + lane))
            half = lanes >> 1
            while half:
                for lane in range(half):
                    put(sums, lane, get(sums, lane) + get(sums, lane + half))
                half >>= 1
            put(out, tile + bin_, sums[0])
    for bin_ in range(n_bins):
        put(out, bin_, fma(-dark, get(tau_s, bin_), get(out, bin_)) / divisor)


_IN = "Array({}, {}, 'C', readonly=True)".format
_PLAN = f"{_IN('f8', 2)}, f8, i8, {_IN('f8', 1)}, {_IN('f8', 1)}, {_IN('f8', 1)}, i8, f8[:, ::1], u1[::1]"
_WORK = "u2[::1], i4[::1], f8[::1], f8[::1], f8[::1], u8[::1]"


def workspace(n_rows: int, pairs_per_bin: int) -> tuple[Array, ...]:
    """Make what `bin_counts` and `bin_pages` work in, for one thread.

    Parameters
    ----------
    n_rows : int
        Values of a column.
    pairs_per_bin : int
        CDS pairs in a bin.

    Returns
    -------
    tuple of ndarray
        Their last arguments: a column's reads, a dictionary and P of it, differences of pairs, sums of lanes, and words
        to be unpacked.
    """
    differences = np.empty(max(_TILE, pairs_per_bin))
    dictionary = np.empty(_ENTRIES, np.int32), np.empty(_ENTRIES)
    return np.empty(n_rows + 8, np.uint16), *dictionary, differences, np.empty(_LANES), np.empty(2 * _GROUPS, np.uint64)


def _bin_counts(
    counts: Array,
    constants: Array,
    floor: float,
    pairs_per_bin: int,
    dark: Array,
    tau_s: Array,
    divisor: Array,
    saturation: int,
    out: Array,
    saturated: Array,
    reads: Array,
    values: Array,
    table: Array,
    differences: Array,
    sums: Array,
    work: Array,
) -> None:
    used = 2 * pairs_per_bin * out.shape[1]
    for pixel in range(out.shape[0]):
        top = np.uint16(0)
        for k in range(used):  # copied, so that sums are compiled once for these and for pages
            read = counts[pixel, uint64(k)]
            put(reads, k, read)
            top = max(top, read)
        saturated[pixel] = int64(top) >= saturation
        _add_bins(
            reads, table, used < 0, constants[pixel], floor, pairs_per_bin,
            dark[pixel], tau_s, divisor[pixel], differences, sums, out[pixel],
        )  # fmt: skip


_COMPILING = Lock()


@functools.cache
def _compiled_bin_counts() -> Callable[..., None]:
    """Compile it when it is first needed: published files never do."""
    return compiled(f"void({_IN('u2', 2)}, {_PLAN}, {_WORK})")(_bin_counts)


def bin_counts(counts: Array, *plan_and_work: Array | float) -> None:
    """Bin counts.

    Parameters
    ----------
    counts : ndarray of uint16, shape (pixel, frame)
        Raw counts.
    *plan_and_work
        In this order:
    constants : ndarray of float64, shape (pixel, 5)
        P in raw counts, from the first power on.
    floor : float
        Counts below are raised to it.
    pairs_per_bin : int
        CDS pairs in a bin.
    dark, divisor : ndarray of float64, shape (pixel,)
        As of `gpucal.science.plan.Plan`.
    tau_s : ndarray of float64, shape (bin,)
        As of `gpucal.science.plan.Plan`.
    saturation : int
        Counts from which on a used read saturates a pixel.
    out : ndarray of float64, shape (pixel, bin)
        Filled.
    saturated : ndarray of uint8, shape (pixel,)
        Set to 1 where a pixel is saturated, else to 0.
    reads, values, table, differences, sums, work : ndarray
        Memory to work in, see `workspace`.
    """
    with _COMPILING:  # of several threads, the first compiles
        compiled_bin_counts = _compiled_bin_counts()
    compiled_bin_counts(counts, *plan_and_work)


@compiled(f"void({_IN('u1', 1)}, {_IN('i8', 2)}, {_IN('i8', 1)}, {_IN('i8', 2)}, i8, {_PLAN}, i8[:, ::1], {_WORK})")
def bin_pages(
    data: Array,
    pages: Array,
    firsts: Array,
    facts: Array,
    n_rows: int,
    constants: Array,
    floor: float,
    pairs_per_bin: int,
    dark: Array,
    tau_s: Array,
    divisor: Array,
    saturation: int,
    out: Array,
    saturated: Array,
    status: Array,
    reads: Array,
    values: Array,
    table: Array,
    differences: Array,
    sums: Array,
    work: Array,
) -> None:
    """Bin inflated pages, a column a pixel.

    Parameters
    ----------
    data : ndarray of uint8, shape (byte,)
        The pages, inflated, as `gpucal.backends.pagewise.inflate.inflate_pages` puts them.
    pages : ndarray of int64, shape (page, COLUMNS)
        The table; see `gpucal.inputs.parquet.layout`.
    firsts : ndarray of int64, shape (pixel + 1,)
        Where the pages of each column begin in it, and the last ones end.
    facts : ndarray of int64, shape (pixel, 3)
        Of each column: whether it has definition levels, bytes of a value, and the highest value its type has.
    n_rows : int
        Values of every column; at least those of the bins.
    constants, floor, pairs_per_bin, dark, tau_s, divisor, saturation, out, saturated
        As of `bin_counts`.
    status : ndarray of int64, shape (pixel, 2)
        Filled with what is wrong with each column, see `STATUSES`, and in which page; its bins are not to be used then.
    reads, values, table, differences, sums, work
        As of `bin_counts`.
    """
    used = 2 * pairs_per_bin * out.shape[1]
    base = pages[firsts[0], TO] if firsts[0] < firsts[-1] else 0
    for pixel in range(out.shape[0]):
        saturated[pixel] = 0
        first, last = firsts[pixel], firsts[pixel + 1]
        wrong, page, entries, highest = _column(
            data, pages, base, first, last, facts[pixel], n_rows, reads, values, work
        )
        status[pixel, 0], status[pixel, 1] = wrong, page
        if wrong:
            continue
        c1, c2, c3, c4, c5 = constants[pixel]
        coded = entries >= 0
        for k in range(entries):
            n = float(get(values, k))
            n = floor if n < floor else n
            put(table, k, n * fma(n, fma(n, fma(n, fma(n, c5, c4), c3), c2), c1))
        if highest >= saturation:
            for k in range(used):
                count = get(reads, k)
                if coded:
                    count = get(values, count)
                saturated[pixel] |= count >= saturation
        _add_bins(
            reads, table, coded, constants[pixel], floor, pairs_per_bin,
            dark[pixel], tau_s, divisor[pixel], differences, sums, out[pixel],
        )  # fmt: skip


def _count_pages(
    data: Array,
    pages: Array,
    firsts: Array,
    facts: Array,
    n_rows: int,
    out: Array,
    status: Array,
    reads: Array,
    values: Array,
    table: Array,
    differences: Array,
    sums: Array,
    work: Array,
) -> None:
    base = pages[firsts[0], TO] if firsts[0] < firsts[-1] else 0
    for pixel in range(out.shape[0]):
        wrong, page, entries, _ = _column(
            data, pages, base, firsts[pixel], firsts[pixel + 1], facts[pixel], n_rows, reads, values, work
        )
        status[pixel, 0], status[pixel, 1] = wrong, page
        if wrong:
            continue
        row = out[pixel]
        if entries >= 0:
            for k in range(n_rows):
                put(row, k, get(values, get(reads, k)))
        else:
            for k in range(n_rows):
                put(row, k, get(reads, k))


@functools.cache
def _compiled_count_pages() -> Callable[..., None]:
    """Compile it when it is first needed: without a search for cosmic rays it never is."""
    inflated = f"{_IN('u1', 1)}, {_IN('i8', 2)}, {_IN('i8', 1)}, {_IN('i8', 2)}"
    return compiled(f"void({inflated}, i8, u2[:, ::1], i8[:, ::1], {_WORK})")(_count_pages)


def count_pages(data: Array, *pages_and_work: Array | int) -> None:
    """Decode inflated pages to counts.

    Parameters
    ----------
    data, pages, firsts, facts, n_rows
        As of `bin_pages`.
    out : ndarray of uint16, shape (pixel, frame)
        Filled with the counts.
    status, reads, values, table, differences, sums, work
        As of `bin_pages`.
    """
    with _COMPILING:
        compiled_count_pages = _compiled_count_pages()
    compiled_count_pages(data, *pages_and_work)
