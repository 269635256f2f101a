"""zstd frames without sequences: what is inflated, what is refused and why, and that it is as libzstd has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstd_frames as z
from numpy.typing import NDArray

from gpucal.backends.pagewise.inflate import (
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
    inflate_pages,
    workspace,
)
from gpucal.backends.pagewise.leftover import foreseen
from gpucal.inputs.parquet.layout import AT, CODEC, COLUMNS, PADDING, PREFIX, SIZE, SNAPPY, STORED, TO, WANTED, ZSTD

RNG = np.random.default_rng(17)
WORK = workspace()
CODEC_ = pa.Codec("zstd")

# Trees: of two symbols; of six, some rarer than others; as deep as may be; of 16 with four bits each.
EVEN = z.weights_of([1, 1])
SKEWED = z.weights_of([1, 2, 3, 4, 5, 5])
DEEP = z.weights_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11])
WIDE = z.weights_of([4] * 16)

# Behind other blocks, as none may be larger than the content of its frame.
TAIL = RNG.bytes(300)


def inflated(page: bytes, wanted: int, codec: int = ZSTD, prefix: int = 0) -> tuple[int, bytes]:
    """Inflate a page in the middle of others' bytes; what is outside of it must not change."""
    data = np.frombuffer(b"\xa5" * 5 + page + b"\x5a" * PADDING, np.uint8)
    pages = np.zeros((1, COLUMNS), np.int64)
    pages[0, [AT, SIZE, CODEC, PREFIX, WANTED]] = 5, len(page), codec, prefix, wanted
    out, status = np.full(wanted + PADDING, 77, np.uint8), np.full(1, -1)
    inflate_pages(data, pages, 0, 1, out, status, *WORK)
    assert (out[wanted:] == 77).all()
    return int(status[0]), out[:wanted].tobytes()


def agreed(page: bytes, wanted: int) -> bool:
    """Tell whether a frame is inflated, and see that it then is what libzstd makes of it."""
    status, mine = inflated(page, wanted)
    if status == DONE:
        assert mine == CODEC_.decompress(page, decompressed_size=wanted, asbytes=True)
    return status == DONE


def symbols(n: int, weights: list[int]) -> bytes:
    return RNG.integers(0, len(weights), n).astype(np.uint8).tobytes()


# -------------------------------------------------------------------------------------------------------- what is taken


@pytest.mark.parametrize("weights", [EVEN, SKEWED, DEEP, WIDE], ids=["even", "skewed", "deep", "wide"])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 63, 64, 65, 255, 256, 1000])
def test_one_stream(weights: list[int], n: int) -> None:
    text = symbols(n, weights)
    page = z.frame(n + len(TAIL), z.block(2, z.coded(text, weights, 0), False), z.raw(TAIL))
    assert inflated(page, n + len(TAIL)) == (DONE, text + TAIL)
    assert agreed(page, n + len(TAIL))


@pytest.mark.parametrize("weights", [EVEN, SKEWED, DEEP, WIDE], ids=["even", "skewed", "deep", "wide"])
@pytest.mark.parametrize("n", [6, 7, 8, 9, 10, 19, 20, 21, 255, 257, 1003, 1023, 5000, 60_001])
def test_four_streams(weights: list[int], n: int) -> None:
    text = symbols(n, weights)
    for form in (1, 2, 3):
        if n < (1024, 1024, 16_384, 1 << 18)[form] and n < 20_000:
            page = z.frame(n + len(TAIL), z.block(2, z.coded(text, weights, form), False), z.raw(TAIL))
            assert inflated(page, n + len(TAIL)) == (DONE, text + TAIL)
            assert agreed(page, n + len(TAIL))


@pytest.mark.parametrize("form", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 20, 31])
def test_literals_as_they_are(form: int, n: int) -> None:
    text = RNG.bytes(n)
    for body, expected in ((z.plain_head(0, n, form) + text, text), (z.plain_head(1, n, form) + b"x", b"x" * n)):
        page = z.frame(n + len(TAIL), z.block(2, body + b"\0", False), z.raw(TAIL))
        assert inflated(page, n + len(TAIL)) == (DONE, expected + TAIL)
        assert agreed(page, n + len(TAIL))


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_791, 65_792, 1 << 17])
def test_raw_and_repeated_blocks_of_any_size(size: int) -> None:
    text = RNG.bytes(size)
    assert inflated(z.frame(size, z.raw(text)), size) == (DONE, text)
    assert inflated(z.frame(size, z.block(1, b"q", size=size)), size) == (DONE, b"q" * size)
    halves = [z.raw(text[: size // 2], False), z.raw(text[size // 2 :])]
    assert inflated(z.frame(size, *halves), size) == (DONE, text)


def test_a_tree_serves_the_blocks_behind_it() -> None:
    one, two = symbols(900, SKEWED), symbols(700, SKEWED)
    first = z.block(2, z.coded(one, SKEWED), False)
    for between, bytes_between in (
        ([], b""),
        ([z.raw(b"as is", False)], b"as is"),
        ([z.block(1, b"r", False, 9)], b"r" * 9),
    ):
        size = 1600 + len(bytes_between)
        page = z.frame(size, first, *between, z.block(2, z.treeless(two, SKEWED)))
        assert inflated(page, size) == (DONE, one + bytes_between + two)
        assert agreed(page, size)


def test_other_pages_and_prefixes() -> None:
    page = z.frame(40, z.raw(b"b" * 40))
    assert inflated(b"level" + page, 45, prefix=5) == (DONE, b"level" + b"b" * 40)
    assert inflated(b"just so", 7, STORED) == (DONE, b"just so")
    assert inflated(b"level..", 100, SNAPPY, prefix=5)[0] == OTHER
    assert inflated(b"", 0, STORED) == (DONE, b"")


def texts() -> dict[str, bytes]:
    """What pages hold, and what they do not."""
    made = {f"noise {n}": RNG.bytes(n) for n in (0, 1, 7, 8, 9, 1000, 131_072, 131_073)}
    for spread in (1, 4, 30, 300):
        for n in (64, 257, 5_000, 140_000, 300_000):
            made[f"normal {spread} {n}"] = RNG.normal(128, spread, n).astype(np.uint8).tobytes()
    made["none"], made["one"], made["words"] = b"\0" * 5000, b"\0" * 999 + b"\1", b"the same again, " * 99
    return made


TEXTS = texts()


@pytest.mark.parametrize("level", [1, 3, 9])
@pytest.mark.parametrize("name", TEXTS)
def test_as_libzstd(name: str, level: int) -> None:
    page = pa.Codec("zstd", compression_level=level).compress(TEXTS[name], asbytes=True)
    taken = agreed(page, len(TEXTS[name]))
    if name.startswith("noise"):
        assert taken


def bit_packed(n: int, width: int) -> bytes:
    """A page's indices: nothing in it repeats."""
    rng = np.random.default_rng(1)  # anew, as a draw in ten of six bits has a repetition by chance
    values = np.clip(rng.normal(2 ** (width - 1), 2 ** (width - 4), n), 0, 2**width - 1).astype(np.uint16)
    bits = (values[:, None] >> np.arange(width)) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


@pytest.mark.parametrize("width", [6, 7, 8, 9, 10, 11, 12])
def test_pages_as_published_are_taken(width: int) -> None:
    text = bit_packed(11_250, width)
    page = pa.Codec("zstd", compression_level=3).compress(text, asbytes=True)
    assert agreed(page, len(text))


def test_many_pages_at_once() -> None:
    bodies = [bit_packed(100 + 37 * k, 6 + k % 7) for k in range(30)]
    stored = [pa.Codec("zstd").compress(body, asbytes=True) for body in bodies]
    stored[4], stored[9] = b"broken", stored[9][:-1]
    pages = np.zeros((30, COLUMNS), np.int64)
    pages[:, SIZE], pages[:, WANTED], pages[:, CODEC] = list(map(len, stored)), list(map(len, bodies)), ZSTD
    pages[1:, AT] = np.cumsum(pages[:-1, SIZE])
    pages[:, TO] = 1000 + np.cumsum(pages[:, WANTED] + PADDING) - pages[:, WANTED]
    data = np.frombuffer(b"".join(stored) + bytes(PADDING), np.uint8)
    out, status = np.zeros(int(pages[-1, TO] + pages[-1, WANTED]), np.uint8), np.full(27, -1)
    inflate_pages(data, pages, 2, 29, out, status, *WORK)
    assert np.flatnonzero(status).tolist() == [2, 7]
    for k in range(2, 29):
        begin = pages[k, TO] - pages[2, TO]
        if k not in (4, 9):
            assert out[begin : begin + len(bodies[k])].tobytes() == bodies[k]


# -------------------------------------------------------------------------------------------- what a head tells already


def told(page: bytes, wanted: int, codec: int = ZSTD, prefix: int = 0) -> int:
    """What the head of a page tells, in the middle of others' bytes."""
    pages = np.zeros((1, COLUMNS), np.int64)
    pages[0, [AT, SIZE, CODEC, PREFIX, WANTED]] = 5, len(page), codec, prefix, wanted
    return int(foreseen(np.frombuffer(b"\xa5" * 5 + page + b"\x5a" * PADDING, np.uint8), pages)[0])


@pytest.mark.parametrize("level", [1, 3, 19])
def test_what_the_first_block_tells_is_foreseen(level: int) -> None:
    codec, seen = pa.Codec("zstd", compression_level=level), set()
    for text in [*TEXTS.values(), *(bit_packed(n, width) for n in (200, 3000, 11_250) for width in (6, 9))]:
        page = codec.compress(text, asbytes=True)
        became, status = told(page, len(text)), inflated(page, len(text))[0]
        assert told(b"level" + page, len(text) + 5, prefix=5) == became
        assert told(page, len(text) + 1) == DONE  # of another size than the page, which is worse than sequences
        assert became == status or len(text) > 1 << 17
        seen.add(became)
    assert seen == {DONE, SEQUENCES}


def test_every_form_of_literals_is_passed() -> None:
    for form in range(4):
        weights, n = (SKEWED, 250) if form < 3 else (WIDE, 600)
        bodies = [(z.coded(symbols(n, weights), weights, form), n), (z.treeless(symbols(n, weights), weights, form), n)]
        if form != 2:
            bodies += [(z.plain_head(0, 20, form) + bytes(20) + b"\0", 20), (z.plain_head(1, 20, form) + b"x\0", 20)]
        for body, size in bodies:
            for behind, became in ((b"\0", DONE), (b"\1", SEQUENCES), (b"\xff", SEQUENCES)):
                page = z.frame(size + 300, z.block(2, body[:-1] + behind, False), z.raw(TAIL))
                assert told(page, size + 300) == became


@pytest.mark.parametrize(("codec", "became"), [(STORED, DONE), (SNAPPY, OTHER), (ZSTD, DONE)])
def test_other_codecs_are_foreseen(codec: int, became: int) -> None:
    assert told(z.frame(5, z.raw(b"right")), 5, codec) == became
    assert told(b"", 0, codec) == became


def test_nothing_is_foreseen_of_what_is_inflated() -> None:
    """Nor is any place outside of the file looked at, whatever a head says."""
    good = good_frames()
    for seed in range(3000):
        page, wanted = good[seed % len(good)]
        page = mutated(page, np.random.default_rng(seed))
        assert not told(page, wanted) or inflated(page, wanted)[0]
    assert foreseen(np.zeros(8, np.uint8), np.zeros((0, COLUMNS), np.int64)).shape == (0,)


# ------------------------------------------------------------------------------------------------------ what is refused

TEXT = b"\0\1\2\3\4\5" * 40
GOOD = z.coded(TEXT, SKEWED)
BODY = z.direct(SKEWED) + z.streams(TEXT, SKEWED)


Case = tuple[int, bytes, int]


def of(status: int, body: bytes, size: int = 240, *, form: int = 3) -> Case:
    """A frame with a block of literals with such a body, what becomes of it, and how many bytes it should hold."""
    block = z.block(2, z.head(2, size, len(body), form) + body + b"\0", False)
    return status, z.frame(size + len(TAIL), block, z.raw(TAIL)), size + len(TAIL)


def with_tree(tree: bytes) -> Case:
    return of(TREE, tree + z.streams(TEXT, SKEWED))


def with_streams(*parts: bytes) -> Case:
    table = b"".join(len(part).to_bytes(2, "little") for part in parts[:3])
    return of(STREAMS, z.direct(SKEWED) + table + b"".join(parts))


def five(status: int, *blocks: bytes, content: int = 5, descriptor: int | None = None, magic: int = 0xFD2FB528) -> Case:
    """A frame that should hold five bytes."""
    return status, z.frame(content, *blocks, descriptor=descriptor, magic=magic), 5


def more(status: int, *blocks: bytes) -> Case:
    """A frame that should hold 600."""
    return status, z.frame(600, *blocks), 600


PARTS = [z.stream(TEXT[60 * k : 60 * k + 60], SKEWED) for k in range(4)]
MORE = [*PARTS[:2], z.stream(TEXT[120:180] + b"\0", SKEWED), PARTS[3]]
FEWER = [z.stream(TEXT[:59], SKEWED), *PARTS[1:]]

WRONG: dict[str, Case] = {
    "magic": five(HEADER, z.raw(b"right"), magic=0xFD2FB527),
    "skippable": five(HEADER, z.raw(b"right"), magic=0x184D2A50),
    "several segments": five(HEADER, z.raw(b"right"), descriptor=0x00),
    "checksum": five(HEADER, z.raw(b"right"), descriptor=0x24),
    "dictionary": five(HEADER, z.raw(b"right"), descriptor=0x21),
    "reserved bit": five(HEADER, z.raw(b"right"), descriptor=0x28),
    "unused bit": five(HEADER, z.raw(b"right"), descriptor=0x30),
    "nothing": (SIZES, b"", 5),
    "magic alone": (SIZES, z.frame(5)[:4], 5),
    "no block": five(SIZES, b"\0\0"),
    "another size": five(SIZES, z.raw(b"right"), content=6),
    "trailing byte": five(SIZES, z.raw(b"right"), b"\0"),
    "not full": five(SIZES, z.raw(b"righ")),
    "too full": five(SIZES, z.raw(b"rightly")),
    "no last block": five(SIZES, z.raw(b"right", False)),
    "block outside": five(SIZES, z.block(0, b"righ", size=5)),
    "repeated byte outside": five(SIZES, z.block(1, b"", size=5)),
    "block type": five(BLOCK, z.block(3, b"right")),
    "block too large": (BLOCK, z.frame((1 << 17) + 1, z.raw(bytes((1 << 17) + 1))), (1 << 17) + 1),
    "repeated too often": (BLOCK, z.frame((1 << 17) + 1, z.block(1, b"q", size=(1 << 17) + 1)), (1 << 17) + 1),
    "block of two bytes": five(BLOCK, z.block(2, b"\x08q")),
    "block larger than the content": five(BLOCK, z.block(2, z.literals(b"right"))),
    "literals outside": more(LITERALS, z.block(2, z.plain_head(0, 5) + b"righ")),
    "literals without the number of sequences": more(LITERALS, z.block(2, z.plain_head(0, 5) + b"right")),
    "more literals than room": more(LITERALS, z.block(2, z.plain_head(1, 601) + b"r\0")),
    "repeated literal outside": more(LITERALS, z.block(2, z.plain_head(1, 5))),
    "coded literals outside": more(LITERALS, z.block(2, z.head(2, 240, 999, 3) + BODY + b"\0")),
    "a sequence": more(SEQUENCES, z.block(2, z.plain_head(0, 5) + b"right\1")),
    "behind the literals": more(SEQUENCES, z.block(2, z.literals(b"right") + b"\0")),
    "no tree": of(TREE, b""),
    "tree outside": of(TREE, bytes([255]) + b"\x11" * 9),
    "coded tree outside": of(TREE, bytes([100]) + b"\x11" * 9),
    "coded tree of a byte": of(TREE, bytes([1]) + b"\x11" * 9),
    "deeper than 11": with_tree(z.direct(z.weights_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12]))),
    "weight above 12": with_tree(z.direct([13, 1, 1])),
    "weights of nothing": with_tree(z.direct([0, 0, 1])),
    "no power of two": with_tree(z.direct([1, 1, 4, 0])),
    "no longest code": with_tree(z.direct([2, 2, 2])),
    "log of 7": with_tree(bytes([3, 0x12, 0x34, 0x81])),
    "states that do not add up": with_tree(bytes([3, 0x10, 0, 0])),
    "weights without an end mark": with_tree(bytes([4, 0x30, 0x6F, 0x9B, 0x00])),
    "no end mark": with_streams(PARTS[0][:-1] + b"\0", *PARTS[1:]),
    "no end mark at last": with_streams(*PARTS[:3], PARTS[3][:-1] + b"\0"),
    "empty stream": with_streams(PARTS[0], b"", *PARTS[2:]),
    "jumps outside": of(STREAMS, z.direct(SKEWED) + b"\xff\xff" * 3 + b"".join(PARTS)),
    "no room for jumps": of(STREAMS, z.direct(SKEWED) + b"\1" * 9),
    "a symbol too many": with_streams(*MORE),
    "a symbol too few": with_streams(*FEWER),
    "five symbols in four": of(STREAMS, z.direct(EVEN) + b"\1\0\1\0\1\0\2\2\2\2", 5),
    "nothing in one stream": of(STREAMS, z.direct(EVEN), 9, form=0),
    "no symbols": of(STREAMS, z.direct(EVEN) + b"\1", 0, form=0),
    "one stream not consumed": of(STREAMS, z.direct(EVEN) + b"\x0f", 2, form=0),
    "one stream too short": of(STREAMS, z.direct(EVEN) + b"\x03", 2, form=0),
    "treeless": more(TREELESS, z.block(2, z.treeless(TEXT, SKEWED))),
    "treeless after raw": more(TREELESS, z.raw(b"right", False), z.block(2, z.treeless(TEXT, SKEWED))),
    "treeless after literals as they are": more(
        TREELESS, z.block(2, z.literals(b"right"), False), z.block(2, z.treeless(TEXT, SKEWED))
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_refused(what: str) -> None:
    expected, page, wanted = WRONG[what]
    assert inflated(page, wanted)[0] == expected


def test_the_frames_that_wrong_ones_are_made_of_are_right() -> None:
    assert inflated(z.frame(5, z.raw(b"right")), 5) == (DONE, b"right")
    for _, page, wanted in (of(DONE, BODY), with_streams(*PARTS)):
        assert inflated(page, wanted) == (DONE, TEXT + TAIL)
        assert agreed(page, wanted)
    assert inflated(*of(DONE, z.direct(EVEN) + b"\x07", 2, form=0)[1:]) == (DONE, b"\1\1" + TAIL)
    tree = z.direct(z.weights_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11]))
    assert inflated(*of(DONE, tree + z.stream(b"\7\1", DEEP), 2, form=0)[1:]) == (DONE, b"\7\1" + TAIL)


@pytest.mark.parametrize("place", [AT, SIZE, PREFIX, WANTED])
@pytest.mark.parametrize("value", [-1, 10**6, 2**62, -(2**62)])
def test_a_table_that_lies_is_refused(place: int, value: int) -> None:
    page = z.frame(5, z.raw(b"right"))
    for codec in (ZSTD, STORED, SNAPPY):
        pages = np.zeros((1, COLUMNS), np.int64)
        pages[0, [SIZE, CODEC, WANTED]] = len(page), codec, 5 if codec == ZSTD else len(page)
        pages[0, place] = value
        status = np.full(1, -1)
        inflate_pages(
            np.frombuffer(page + bytes(PADDING), np.uint8), pages, 0, 1, np.zeros(40, np.uint8), status, *WORK
        )
        assert status[0] == SIZES


def test_without_padding_nothing_is_read() -> None:
    page = z.frame(5, z.raw(b"right"))
    for behind, room, expected in ((PADDING, 5 + PADDING, DONE), (PADDING - 1, 99, SIZES), (99, 4 + PADDING, SIZES)):
        pages = np.zeros((1, COLUMNS), np.int64)
        pages[0, [SIZE, CODEC, WANTED]] = len(page), ZSTD, 5
        status = np.full(1, -1)
        data = np.frombuffer(page + bytes(behind), np.uint8)
        inflate_pages(data, pages, 0, 1, np.zeros(room, np.uint8), status, *WORK)
        assert status[0] == expected


# ------------------------------------------------------------------------------------------------------------- fuzzing


def good_frames() -> list[tuple[bytes, int]]:
    rng = np.random.default_rng(5)
    made = [of(DONE, BODY)[1:], with_streams(*PARTS)[1:]]
    two = z.frame(480, z.block(2, GOOD, False), z.block(2, z.treeless(TEXT, SKEWED)))
    made += [(two, 480), (z.frame(31, z.block(2, z.coded(TEXT[:31], SKEWED, 0))), 31)]
    for n, spread in ((300, 20), (900, 40), (3000, 60)):
        text = rng.normal(128, spread, n).astype(np.uint8).tobytes()
        made.append((pa.Codec("zstd").compress(text, asbytes=True), n))
    return made


def mutated(page: bytes, rng: np.random.Generator) -> bytes:
    """Change up to three bytes, mostly where headers and trees are; or cut, or repeat some."""
    out = bytearray(page)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(min(len(out), 60) if rng.integers(4) else len(out)))
        out[at] = int(rng.integers(256)) if rng.integers(2) else out[at] ^ 1 << int(rng.integers(8))
    match rng.integers(12):
        case 0:
            del out[int(rng.integers(len(out))) :]
        case 1:
            out += rng.bytes(int(rng.integers(1, 4)))
    return bytes(out)


def fuzz(seeds: range) -> NDArray[np.int64]:
    """Damage frames; what is inflated all the same has to be what libzstd makes of it. Count the statuses."""
    good, counted = good_frames(), np.zeros(OTHER + 1, np.int64)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        page, wanted = good[seed % len(good)]
        page = mutated(page, rng)
        status, mine = inflated(page, wanted)
        counted[status] += 1
        if status == DONE:
            assert mine == CODEC_.decompress(page, decompressed_size=wanted, asbytes=True), seed
    return counted


def test_damaged_frames_are_as_libzstd_has_them_or_refused() -> None:
    counted = fuzz(range(3000))
    assert (counted[[DONE, HEADER, SIZES, BLOCK, LITERALS, TREE, STREAMS, SEQUENCES]] > 0).all(), counted


@pytest.mark.slow
def test_many_more_damaged_frames() -> None:
    assert fuzz(range(3000, 60_000)).sum() == 57_000


@pytest.mark.slow
def test_no_place_outside_is_touched() -> None:
    """As compiled with every place checked."""
    script = (
        "import test_inflate as t; from gpucal.backends.pagewise import intrinsics as i; assert i.config.BOUNDSCHECK; "
        "print(t.fuzz(range(1500)).sum()); "
        "[t.inflated(page, wanted) for _, page, wanted in t.WRONG.values()]"
    )
    env = {
        **os.environ,
        "NUMBA_BOUNDSCHECK": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "1500"), done.stderr[-2000:]
