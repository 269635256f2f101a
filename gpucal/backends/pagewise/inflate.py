"""Pages inflated: those stored as they are, and zstd frames without sequences, which nearly all published pages are.

Pages of bit-packed indices hold nothing that repeats, so that zstd finds no sequences and leaves Huffman coding of the
literals: RFC 8878, sections 3.1.1.3.1 and 4.2. Whatever is not exactly that is refused, and never read or written
outside of the page; a number says why. What is refused here may be sound, and is left to a whole zstd.
"""

from __future__ import annotations

import numpy as np

from gpucal.backends.pagewise.intrinsics import (
    apart,
    bits_before,
    bits_from,
    compiled,
    copy,
    fill,
    get,
    highest,
    inlined,
    int64,
    load64,
    put,
    put64,
    trailing_zeros,
    uint64,
)
from gpucal.backends.pagewise.statuses import (
    BLOCK,
    DONE,
    HEADER,
    LITERALS,
    OTHER,
    SEQUENCES,
    SIZES,
    STREAMS,
    TREE,
    TREELESS,
)
from gpucal.inputs.parquet.layout import AT, CODEC, PADDING, PREFIX, SIZE, STORED, TO, WANTED, ZSTD, ZSTD_MAGIC, Array

__all__ = ["inflate_pages", "workspace"]

_MOST = 1 << 17  # bytes a block holds
_DEEPEST = 11  # bits of a symbol
_MOST_WEIGHT, _MOST_LOG = 12, 6  # of a weight, and of the states of their coding

# Places in a small array of int64: what is counted, states, and the bits of the longest code.
_COUNTS, _STATES, _DEPTH, _WORK = 0, 16, 16 + (1 << _MOST_LOG), 17 + (1 << _MOST_LOG)


@inlined
def _states(data: Array, at: int, stop: int, work: Array) -> tuple[int, int]:
    """Read how weights are coded (RFC 8878, 4.1.1) into states: next state · 65536 + bits to read · 256 + symbol.

    Returns the bits of a state and where the description ends; 0 bits if it is not sound.
    """
    log = (get(data, at) & 15) + 5
    if log > _MOST_LOG:
        return 0, at
    size = 1 << log
    bit, last = 8 * at + 4, 8 * stop
    left, threshold, width = size + 1, size, log + 1
    symbol, again = 0, False
    while left > 1:
        if symbol > _MOST_WEIGHT or bit > last:
            return 0, at
        word = bits_from(data, bit, 16)
        if again:  # how many symbols more do not occur
            again = word & 3 == 3
            for _ in range(word & 3):
                put(work, _COUNTS + symbol, 0)
                symbol += 1
            bit += 2
            continue
        short = 2 * threshold - 1 - left
        count = word & (threshold - 1)
        if count < short:
            bit += width - 1
        else:
            count = word & (2 * threshold - 1)
            if count >= threshold:
                count -= short
            bit += width
        count -= 1
        left -= abs(count)
        put(work, _COUNTS + symbol, count)
        symbol += 1
        again = count == 0
        while left < threshold:
            threshold >>= 1
            width -= 1
    if left != 1 or bit > last or symbol > _MOST_WEIGHT + 1:
        return 0, at

    top = size - 1
    for s in range(symbol):  # the least likely ones have one state each, at the end
        if get(work, _COUNTS + s) == -1:
            put(work, _STATES + top, s)
            top -= 1
    step, place = (size >> 1) + (size >> 3) + 3, 0
    for s in range(symbol):
        for _ in range(get(work, _COUNTS + s)):
            put(work, _STATES + place, s)
            place = (place + step) & (size - 1)
            while place > top:
                place = (place + step) & (size - 1)
    for k in range(size):
        s = get(work, _STATES + k)
        following = abs(get(work, _COUNTS + s))
        put(work, _COUNTS + s, following + 1)
        bits = log - highest(following)
        put(work, _STATES + k, ((following << bits) - size) << 16 | bits << 8 | s)
    return log, (bit + 7) >> 3


@inlined
def _tree(data: Array, at: int, stop: int, work: Array, weights: Array, table: Array) -> int:
    """Read a Huffman tree into a table of as many bits as its longest code has: symbol · 256 + bits of it.

    Returns where it ends; -1 if it is not sound.
    """
    apart()
    if at >= stop:
        return -1
    head: int = get(data, at)
    at += 1
    if head >= 128:  # weights of four bits each
        n = head - 127
        end = at + (n + 1) // 2
        if end > stop:
            return -1
        for k in range(n):
            put(weights, k, get(data, at + (k >> 1)) >> (0 if k & 1 else 4) & 15)
    else:  # coded by two states in turn
        end = at + head
        if end > stop or head < 2:
            return -1
        log, begin = _states(data, at, end, work)
        mark = get(data, end - 1)
        if not log or begin >= end or not mark:
            return -1
        first, bit = 8 * begin, 8 * (end - 1) + highest(mark) - 2 * log
        if bit < first:
            return -1
        both = bits_from(data, bit, 16)
        state, other = both >> log & ((1 << log) - 1), both & ((1 << log) - 1)
        n, more = 0, True
        while more and n < 255:
            # nine weights from one word: at most six bits each, of at least 56
            word, used = bits_before(data, bit), 0
            for _ in range(9):
                entry = get(work, _STATES + state)
                put(weights, n, entry)
                n += 1
                bits = entry >> 8 & 255
                used += bits
                if bit - used < first:
                    more = False
                    break
                state, other = other, (entry >> 16) + int64(word >> uint64(1) >> uint64(63 - bits))
                word <<= uint64(bits)
            bit -= used
        if more:
            return -1
        put(weights, n, get(work, _STATES + other))
        n += 1
        if n > 255:
            return -1

    for weight in range(_MOST_WEIGHT + 2):
        put(work, _COUNTS + weight, 0)
    for k in range(n):
        weight = get(weights, k)
        if weight > _MOST_WEIGHT:
            return -1
        put(work, _COUNTS + weight, get(work, _COUNTS + weight) + 1)
    total = 0
    for weight in range(1, _MOST_WEIGHT + 1):
        total += get(work, _COUNTS + weight) << (weight - 1)
    if total == 0:
        return -1
    depth = highest(total) + 1
    rest = (1 << depth) - total
    if depth > _DEEPEST or rest & (rest - 1):
        return -1
    last = highest(rest) + 1  # the last symbol's weight is not written
    put(weights, n, last)
    put(work, _COUNTS + last, get(work, _COUNTS + last) + 1)
    if get(work, _COUNTS + 1) < 2 or get(work, _COUNTS + 1) & 1:
        return -1
    put(work, _DEPTH, depth)

    # Symbols by weight, as their codes are; then the entries of each, four at a time: those too many are written over.
    place = 0
    for weight in range(1, depth + 1):
        count = get(work, _COUNTS + weight)
        put(work, _COUNTS + weight, place)
        place += count
    put(work, _COUNTS, place)  # symbols that do not occur come behind
    for k in range(n + 1):
        weight = get(weights, k)
        place = get(work, _COUNTS + weight)
        put(work, _COUNTS + weight, place + 1)
        put(weights, 256 + place, k)
    place, k = 0, 0
    for weight in range(1, depth + 1):
        size, last = 1 << (weight - 1), get(work, _COUNTS + weight)
        while k < last:
            four = uint64(get(weights, 256 + k) << 8 | (depth + 1 - weight)) * uint64(0x0001_0001_0001_0001)
            for entry in range(place, place + size, 4):
                put64(table, entry, four)
            place += size
            k += 1
    return end


@inlined
def _streams(
    data: Array, at: int, stop: int, count: int, depth: int, table: Array, out: Array, to: int, size: int
) -> bool:
    """Decode one stream, or four at the same time, each of a quarter of the symbols."""
    apart()
    last = stop - 1
    shift = uint64(64 - depth)
    if count == 4:
        if stop - at < 10 or size < 6:
            return False
        jumps = bits_from(data, 8 * at, 48)
        s0 = at + 6
        s1 = s0 + (jumps & 0xFFFF)
        s2 = s1 + (jumps >> 16 & 0xFFFF)
        s3 = s2 + (jumps >> 32)
        quarter = (size + 3) // 4
    else:
        s0 = s1 = s2 = s3 = at
        quarter = size
    if s3 > last:
        return False
    o0, o1, o2, o3 = to, to + quarter, to + 2 * quarter, to + 3 * quarter
    end = to + size
    m0, m1, m2, m3 = get(data, s1 - 1), get(data, s2 - 1), get(data, s3 - 1), get(data, last)
    p3 = 8 * last + highest(m3)  # a stream is read from its end, which a one bit marks
    if count == 4:
        if s0 == s1 or s1 == s2 or s2 == s3 or not (m0 and m1 and m2 and m3) or o3 > end:
            return False
        p0, p1, p2 = 8 * (s1 - 1) + highest(m0), 8 * (s2 - 1) + highest(m1), 8 * (s3 - 1) + highest(m2)

        # Five symbols of every stream a round, from one word each: at most 55 of at least 56 bits. As many rounds as
        # are safe whatever the symbols, then as many as are safe after them, and so on.
        while True:
            bits = min(min(p0 - 8 * s0, p1 - 8 * s1), min(p2 - 8 * s2, p3 - 8 * s3))
            rounds = min(bits // 55, (end - o3) // 5)
            if rounds <= 0:
                break
            for _ in range(rounds):
                # A one bit behind the word: the zeros behind it tell how many bits were used.
                w0 = bits_before(data, p0) | uint64(1)
                w1 = bits_before(data, p1) | uint64(1)
                w2 = bits_before(data, p2) | uint64(1)
                w3 = bits_before(data, p3) | uint64(1)
                for k in range(5):
                    e0, e1 = get(table, int64(w0 >> shift)), get(table, int64(w1 >> shift))
                    e2, e3 = get(table, int64(w2 >> shift)), get(table, int64(w3 >> shift))
                    w0, w1 = w0 << uint64(e0 & 63), w1 << uint64(e1 & 63)
                    w2, w3 = w2 << uint64(e2 & 63), w3 << uint64(e3 & 63)
                    put(out, o0 + k, e0 >> 8)
                    put(out, o1 + k, e1 >> 8)
                    put(out, o2 + k, e2 >> 8)
                    put(out, o3 + k, e3 >> 8)
                p0, p1 = p0 - trailing_zeros(w0), p1 - trailing_zeros(w1)
                p2, p3 = p2 - trailing_zeros(w2), p3 - trailing_zeros(w3)
                o0, o1, o2, o3 = o0 + 5, o1 + 5, o2 + 5, o3 + 5
    elif m3:
        p0, o0, quarter = p3, to, size
        p1 = p2 = p0
    else:
        return False

    # What is left of each stream, symbol by symbol, which has to end exactly at its beginning.
    for k in range(count):
        bit, first, place = p0, 8 * s0, o0
        until = min(to + (k + 1) * quarter, end)
        while place < until:
            word = bits_before(data, bit)
            left = bit - first
            if left < depth:  # what comes before the stream counts as zeros
                word &= ~uint64(0) << uint64(64 - left) if left else uint64(0)
            entry = get(table, int64(word >> shift))
            bit -= entry & 255
            if bit < first:
                return False
            put(out, place, entry >> 8)
            place += 1
        if bit != first:
            return False
        p0, p1, p2 = p1, p2, p3
        s0, s1, s2 = s1, s2, s3
        o0, o1, o2 = o1, o2, o3
    return True


@inlined
def _frame(
    data: Array, at: int, stop: int, out: Array, to: int, wanted: int, work: Array, weights: Array, table: Array
) -> int:
    """Inflate a zstd frame of so many bytes; return a status."""
    apart()
    if stop - at < 9:
        return SIZES
    head = get(data, at + 4)
    # one segment; no reserved or unused bit, checksum or dictionary
    if bits_from(data, 8 * at, 32) != ZSTD_MAGIC or head & 0b0011_1111 != 0b0010_0000:
        return HEADER
    width = 1 << (head >> 6)
    at += 5
    if stop - at < width + 3:
        return SIZES
    size = int64(load64(data, at))
    if width < 8:
        size &= (1 << 8 * width) - 1
    if width == 2:
        size += 256
    if size != wanted:
        return SIZES
    at += width
    end = to + wanted
    has_tree, last = False, 0
    while not last:
        if stop - at < 3:
            return SIZES
        head = bits_from(data, 8 * at, 24)
        at += 3
        last, kind, size = head & 1, head >> 1 & 3, head >> 3
        stored = 1 if kind == 1 else size
        if kind == 3 or size > _MOST:
            return BLOCK
        if stored > stop - at:
            return SIZES
        behind = at + stored  # this block
        compressed = kind == 2
        if compressed:  # nothing but literals, and no sequences
            if size < 3 or size > wanted:
                return BLOCK
            head = bits_from(data, 8 * at, 40)
            kind, form = head & 3, head >> 2 & 3
            if kind < 2:  # as they are, or one byte repeated
                width = 1 if not form & 1 else 2 if form == 1 else 3
                size = (head & ((1 << 8 * width) - 1)) >> (3 if width == 1 else 4)
                stored = 1 if kind else size
            else:
                bits = 10 if form < 2 else 14 if form == 2 else 18
                width = (4 + 2 * bits + 7) >> 3
                size, stored = head >> 4 & ((1 << bits) - 1), head >> (4 + bits) & ((1 << bits) - 1)
            at += width
            after = at + stored
            if size > min(end - to, _MOST) or after >= behind:
                return LITERALS
            if after + 1 != behind or get(data, after):
                return SEQUENCES
        if kind < 2:
            if size > end - to:
                return SIZES
            if kind:
                fill(out, to, get(data, at), size)
            else:
                copy(out, to, data, at, size)
        else:
            if kind == 2:
                at = _tree(data, at, after, work, weights, table)
                if at < 0:
                    return TREE
                has_tree = True
            elif not has_tree:
                return TREELESS
            if not size or not _streams(data, at, after, 4 if form else 1, get(work, _DEPTH), table, out, to, size):
                return STREAMS
        to += size
        at = behind
    return DONE if at == stop and to == end else SIZES


def workspace() -> tuple[Array, Array, Array]:
    """Make what `inflate_pages` works in, for one thread.

    Returns
    -------
    tuple of ndarray
        Its last arguments.
    """
    return np.empty(_WORK, np.int64), np.empty(512, np.uint8), np.empty((1 << _DEEPEST) + 3, np.uint16)


@compiled(
    "void(Array(u1, 1, 'C', readonly=True), Array(i8, 2, 'C', readonly=True), i8, i8, u1[::1], i8[::1],"
    " i8[::1], u1[::1], u2[::1])"
)
def inflate_pages(
    data: Array,
    pages: Array,
    first: int,
    last: int,
    out: Array,
    status: Array,
    work: Array,
    weights: Array,
    table: Array,
) -> None:
    """Inflate some pages of a table.

    Parameters
    ----------
    data : ndarray of uint8, shape (byte,)
        What holds them as they are stored.
    pages : ndarray of int64, shape (page, COLUMNS)
        The table; see `gpucal.inputs.parquet.layout`.
    first, last : int
        Which pages.
    out : ndarray of uint8, shape (byte,)
        Where they are put, the first at its beginning; with `PADDING` bytes behind the last.
    status : ndarray of int64, shape (last - first,)
        What became of each.
    work, weights, table : ndarray
        Memory to work in, see `workspace`.
    """
    base = pages[first, TO] if first < last else 0
    for page in range(first, last):
        at, size, codec, prefix = pages[page, AT], pages[page, SIZE], pages[page, CODEC], pages[page, PREFIX]
        to, wanted = pages[page, TO] - base, pages[page, WANTED]
        plain = size if codec == STORED else prefix
        # each by itself, as a sum of 64-bit numbers may be anything; one sign bit shows in all of them together
        outside = (at | size | prefix | to | wanted) < 0 or prefix > size or prefix > wanted
        outside |= size > data.size - PADDING or at > data.size - PADDING - size
        outside |= wanted > out.size - PADDING or to > out.size - PADDING - wanted
        if outside or (codec == STORED and size != wanted):
            status[page - first] = SIZES
            continue
        copy(out, to, data, at, plain)
        if codec == ZSTD:
            at, to, wanted, stop = at + prefix, to + prefix, wanted - prefix, at + size
            status[page - first] = _frame(data, at, stop, out, to, wanted, work, weights, table)
        else:
            status[page - first] = DONE if codec == STORED else OTHER
