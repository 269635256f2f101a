"""Pages of Snappy: every kind of element by hand, what is refused, and that the rest is as pyarrow's codec has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gpucal.backends.pagewise.inflate import inflate_pages, workspace
from gpucal.backends.pagewise.snappy import inflate_snappy
from gpucal.backends.pagewise.statuses import DONE, OTHER
from gpucal.inputs.parquet.layout import AT, CODEC, COLUMNS, PADDING, PREFIX, SIZE, SNAPPY, TO, WANTED, ZSTD

WORK = workspace()
LIBRARY = pa.Codec("snappy")


def inflated(page: bytes, wanted: int, prefix: int = 0) -> tuple[int, bytes]:
    """Inflate a page in the middle of others' bytes; what is outside of it must not change."""
    data = np.frombuffer(b"\xa5" * 5 + page + b"\x5a" * PADDING, np.uint8)
    pages = np.zeros((1, COLUMNS), np.int64)
    pages[0, [AT, SIZE, CODEC, PREFIX, WANTED]] = 5, len(page), SNAPPY, prefix, wanted
    out, status = np.full(wanted + PADDING, 77, np.uint8), np.full(1, -1)
    inflate_pages(data, pages, 0, 1, out, status, *WORK)
    assert status[0] == OTHER
    inflate_snappy(data, pages, out, status)
    assert (out[wanted:] == 77).all()
    return int(status[0]), out[:wanted].tobytes()


def agreed(page: bytes, wanted: int) -> bool:
    """Tell whether a page is inflated, and see that it then is what the library makes of it."""
    status, mine = inflated(page, wanted)
    if status == DONE:
        assert mine == LIBRARY.decompress(page, decompressed_size=wanted, asbytes=True)
    return status == DONE


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def literal(text: bytes, width: int = 0) -> bytes:
    """Write bytes as they are; their number has a width of its own if it is asked for, or they are many."""
    n = len(text) - 1
    if not width and n >= 60:
        width = (n.bit_length() + 7) // 8
    return (bytes([59 + width << 2]) + n.to_bytes(width, "little") if width else bytes([n << 2])) + text


def copied(size: int, back: int, kind: int) -> bytes:
    if kind == 1:
        return bytes([back >> 8 << 5 | size - 4 << 2 | 1, back & 255])
    return bytes([size - 1 << 2 | kind]) + back.to_bytes(2 if kind == 2 else 4, "little")


def page_of(*elements: bytes, wanted: int) -> bytes:
    return varint(wanted) + b"".join(elements)


TEXT = bytes(range(100, 200))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 60, 61, 256, 257, 70_000])
@pytest.mark.parametrize("width", [0, 3, 4])
def test_bytes_as_they_are(size: int, width: int) -> None:
    text = np.random.default_rng(size).bytes(size)
    assert inflated(page_of(literal(text, width), wanted=size), size) == (DONE, text)


@pytest.mark.parametrize("kind", [1, 2, 3])
@pytest.mark.parametrize("back", [1, 2, 3, 4, 7, 8, 9, 15, 16, 99, 100])
@pytest.mark.parametrize("size", [4, 5, 8, 9, 11])
def test_copies_near_and_far(kind: int, back: int, size: int) -> None:
    for behind in (b"", b"x", b"y" * 40):  # copies at the end of the page, and before it
        expected = bytearray(TEXT)
        for _ in range(size):
            expected.append(expected[-back])
        expected += behind
        page = page_of(
            literal(TEXT), copied(size, back, kind), *([literal(behind)] if behind else []), wanted=len(expected)
        )
        assert inflated(page, len(expected)) == (DONE, bytes(expected))


@pytest.mark.parametrize("size", [1, 12, 64])
def test_copies_of_any_length(size: int) -> None:
    page = page_of(literal(TEXT), copied(size, 1, 2), wanted=100 + size)
    assert inflated(page, 100 + size) == (DONE, TEXT + TEXT[-1:] * size)


def test_a_prefix_stays_as_it_is() -> None:
    assert inflated(b"\1\2\3" + page_of(literal(TEXT), wanted=100), 103, prefix=3) == (DONE, b"\1\2\3" + TEXT)


WRONG = {
    "another size": (page_of(literal(TEXT), wanted=99), 100),
    "a size without an end": (b"\xff" * 6, 100),
    "nothing": (b"", 0),
    "fewer bytes": (page_of(literal(TEXT[:99]), wanted=100), 100),
    "more bytes": (page_of(literal(TEXT + b"x"), wanted=100), 100),
    "bytes left": (page_of(literal(TEXT), b"\0", wanted=100), 100),
    "a literal cut": (page_of(literal(TEXT)[:50], wanted=100), 100),
    "a length cut": (page_of(b"\xfc\1\0", wanted=100), 100),
    "a copy from nowhere": (page_of(copied(4, 1, 1), wanted=4), 4),
    "a copy of itself": (page_of(literal(TEXT), copied(4, 0, 2), wanted=104), 104),
    "a copy from before": (page_of(literal(TEXT), copied(4, 101, 1), wanted=104), 104),
    "a copy from before, in front of others": (
        page_of(literal(TEXT), copied(4, 101, 1), literal(TEXT), wanted=204),
        204,
    ),
    "a copy too long": (page_of(literal(TEXT), copied(11, 20, 1), wanted=105), 105),
    "a copy cut": (page_of(literal(TEXT), copied(4, 20, 2)[:2], wanted=104), 104),
    "a short copy cut": (page_of(literal(TEXT), copied(4, 20, 1)[:1], wanted=104), 104),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_left(what: str) -> None:
    page, wanted = WRONG[what]
    assert inflated(page, wanted)[0] == OTHER


def test_other_pages_are_not_touched() -> None:
    page = page_of(literal(TEXT), wanted=100)
    data = np.frombuffer(page + bytes(PADDING), np.uint8)
    pages = np.zeros((2, COLUMNS), np.int64)
    pages[:, [SIZE, WANTED]] = len(page), 100
    pages[:, CODEC], pages[:, TO] = (ZSTD, SNAPPY), (0, 100)
    out, status = np.full(200 + PADDING, 77, np.uint8), np.array([3, DONE])
    inflate_snappy(data, pages, out, status)
    assert status.tolist() == [3, DONE]
    assert (out == 77).all()


# ------------------------------------------------------------------------------------------------------------- fuzzing


def written(seed: int) -> list[tuple[bytes, int]]:
    """Compress what pages hold, by the library: integers, indices, text that repeats, and noise."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 3_000))
    texts = [
        rng.normal(1_000, 30, n).astype(np.int32).tobytes(),
        rng.integers(0, 65_536, n).astype(np.int64).tobytes(),
        rng.integers(0, 3, n).astype(np.uint8).tobytes(),
        bytes(n),
        rng.bytes(n),
        (rng.bytes(7) * n)[:n],
    ]
    return [(LIBRARY.compress(text, asbytes=True), len(text)) for text in texts]


@pytest.mark.parametrize("seed", range(40))
def test_what_the_library_writes_is_taken(seed: int) -> None:
    assert all(agreed(page, wanted) for page, wanted in written(seed))


def mutate(rounds: int, seed: int) -> tuple[int, int]:
    """Damage pages; count those that are taken all the same, and those that are left to the library."""
    rng = np.random.default_rng(seed)
    found = [0, 0]
    good = [pair for number in range(4) for pair in written(number) if len(pair[0]) < 4_000]
    for _ in range(rounds):
        page, wanted = good[rng.integers(len(good))]
        damaged = bytearray(page)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(damaged)))
            match rng.integers(4):
                case 0:
                    damaged[place] = int(rng.integers(256))
                case 1:
                    damaged[place] ^= 1 << int(rng.integers(8))
                case 2:
                    del damaged[place:]
                case 3:
                    damaged[place:place] = rng.bytes(int(rng.integers(1, 9)))
            if not damaged:
                break
        found[agreed(bytes(damaged), wanted)] += 1
    return found[1], found[0]


def test_damaged_pages_are_as_the_library_has_them_or_left() -> None:
    taken, left = mutate(4_000, 7)
    assert taken > 500
    assert left > 500


@pytest.mark.slow
def test_damaged_pages_never_leave_their_place(tmp_path: Path) -> None:
    """Compiled with bounds checks, an access outside of an array raises IndexError."""
    script = "import sys; sys.path[:0] = sys.argv[1:]; import test_snappy; print(*test_snappy.mutate(20_000, 8))"
    here = Path(__file__).parent
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(here), str(here.parents[1] / "support")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    taken, left = map(int, done.stdout.split())
    assert min(taken, left) > 2_000
