"""zstd frames made by hand (RFC 8878), of blocks without sequences: sound ones, and ones with any one thing wrong."""

from __future__ import annotations

from collections.abc import Sequence


def frame(content: int, *blocks: bytes, descriptor: int | None = None, magic: int = 0xFD2FB528) -> bytes:
    """A frame of one segment, whose content has so many bytes."""
    form = 0 if content < 256 else 1 if content < 65_792 else 2
    size = (content - (256 if form == 1 else 0)).to_bytes((1, 2, 4)[form], "little")
    head = form << 6 | 0x20 if descriptor is None else descriptor
    return magic.to_bytes(4, "little") + bytes([head]) + size + b"".join(blocks)


def block(kind: int, body: bytes, last: bool = True, size: int | None = None) -> bytes:
    """A block: raw 0, one byte repeated 1, compressed 2."""
    return (last | kind << 1 | (len(body) if size is None else size) << 3).to_bytes(3, "little") + body


def raw(body: bytes, last: bool = True) -> bytes:
    return block(0, body, last)


def literals(body: bytes, form: int = 3) -> bytes:
    """Literals as they are, with the number of sequences: none."""
    return plain_head(0, len(body), form) + body + b"\0"


def plain_head(kind: int, size: int, form: int = 3) -> bytes:
    """The head of literals as they are, 0, or of one byte repeated, 1, in one byte, two or three."""
    if form == 0:
        return bytes([kind | size << 3])
    return (kind | form << 2 | size << 4).to_bytes(2 if form == 1 else 3, "little")


def head(kind: int, size: int, stored: int, form: int) -> bytes:
    """The head of coded literals: 2 with a tree, 3 without; form 0 one stream, 1 to 3 four of them."""
    bits = (10, 10, 14, 18)[form]
    return (kind | form << 2 | size << 4 | stored << (4 + bits)).to_bytes((2 * bits + 4 + 7) // 8, "little")


def weights_of(lengths: Sequence[int]) -> list[int]:
    """The weights of symbols by the bits of their codes; 0 where a symbol has none."""
    deepest = max(lengths)
    return [deepest + 1 - length if length else 0 for length in lengths]


def direct(weights: Sequence[int]) -> bytes:
    """A tree whose weights, all but the last, have four bits each."""
    listed = list(weights[:-1]) + [0] * ((len(weights) - 1) % 2)
    return bytes([126 + len(weights)]) + bytes(a << 4 | b for a, b in zip(listed[::2], listed[1::2], strict=True))


def codes(weights: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Code and bits of every symbol: those of the longest codes come first, and from 0 on."""
    deepest = (sum(1 << weight >> 1 for weight in weights)).bit_length() - 1
    found, place = {}, 0
    for weight in range(1, max(weights) + 1):
        for symbol, its in enumerate(weights):
            if its == weight:
                found[symbol] = place >> (weight - 1), deepest + 1 - weight
                place += 1 << (weight - 1)
    return found


def backwards(bits: int, count: int) -> bytes:
    """Bits, the first read ones highest, behind an end mark."""
    return (bits | 1 << count).to_bytes(count // 8 + 1, "little")


def stream(symbols: bytes, weights: Sequence[int]) -> bytes:
    table = codes(weights)
    bits = count = 0
    for symbol in symbols:
        code, length = table[symbol]
        bits, count = bits << length | code, count + length
    return backwards(bits, count)


def streams(symbols: bytes, weights: Sequence[int]) -> bytes:
    """Four of them and the table of their sizes."""
    quarter = (len(symbols) + 3) // 4
    parts = [stream(symbols[k * quarter : (k + 1) * quarter], weights) for k in range(4)]
    return b"".join(len(part).to_bytes(2, "little") for part in parts[:3]) + b"".join(parts)


def coded(symbols: bytes, weights: Sequence[int], form: int = 3, tree: bytes | None = None) -> bytes:
    """Literals with a tree, and no sequences."""
    body = (direct(weights) if tree is None else tree) + (streams if form else stream)(symbols, weights)
    return head(2, len(symbols), len(body), form) + body + b"\0"


def treeless(symbols: bytes, weights: Sequence[int], form: int = 3) -> bytes:
    """Literals without a tree, and no sequences."""
    body = (streams if form else stream)(symbols, weights)
    return head(3, len(symbols), len(body), form) + body + b"\0"
