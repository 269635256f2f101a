"""Pages decompressed together are those decompressed one by one, and none takes bytes of another."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from zstd_frames import block, frame, raw

from gpucal.inputs.parquet import codec
from gpucal.inputs.parquet.layout import SNAPPY, STORED, ZSTD

RNG = np.random.default_rng(5)


def as_array(page: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(page, np.uint8)


def compressed(text: bytes, name: str = "zstd") -> bytes:
    return pa.Codec(name).compress(text, asbytes=True)


TEXTS = [b"", b"a", b"the same again, " * 200, RNG.bytes(1000), bytes(5000), RNG.integers(0, 9, 20_000, "u1").tobytes()]


def together(codecs: list[int], pages: list[bytes], sizes: list[int]) -> bytes:
    return codec.decompress_all(codecs, [*map(as_array, pages)], sizes).tobytes()


def test_one_call_takes_frames_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for text in TEXTS if len(text) > 8]
    monkeypatch.setattr(codec, "decompress", None)  # which takes one page
    assert together([ZSTD] * len(texts), [*map(compressed, texts)], [*map(len, texts)]) == b"".join(texts)


@pytest.mark.parametrize("long", [bytes(300_000), RNG.bytes(300_000)])
def test_other_pages_are_taken_one_by_one(long: bytes) -> None:
    """Frames of several blocks, other codecs, and frames behind one another that make up one page."""
    pairs = [(ZSTD, compressed(text), text) for text in TEXTS]
    pairs += [(ZSTD, compressed(long), long), (ZSTD, compressed(b"one,") + compressed(b"two"), b"one,two")]
    pairs += [(STORED, b"as it is", b"as it is"), (SNAPPY, compressed(TEXTS[2], "snappy"), TEXTS[2])]
    codecs, pages, texts = ([pair[place] for pair in pairs] for place in range(3))
    assert together(codecs, pages, [*map(len, texts)]) == b"".join(texts)


def test_nothing_of_another_page_is_taken() -> None:
    """The first frame goes on in the second page, and the third page has two frames: together they have all bytes."""
    second = frame(20, raw(bytes(20)))
    first = frame(10 + len(second), block(0, bytes(10), size=10 + len(second)))
    third = frame(30, raw(bytes(30))) + frame(20, raw(bytes(20)))
    sizes = [10 + len(second), 20, 30]
    assert len(pa.Codec("zstd").decompress(first + second + third, sum(sizes), asbytes=True)) == sum(sizes)
    with pytest.raises((OSError, ValueError)):
        together([ZSTD] * 3, [first, second, third], sizes)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_page_is_an_error(which: int) -> None:
    text = TEXTS[2]
    pages = [bytearray(compressed(text)) for _ in range(3)]
    pages[which] = pages[which][:-1]
    with pytest.raises((OSError, ValueError)):
        together([ZSTD] * 3, [*map(bytes, pages)], [len(text)] * 3)
    with pytest.raises((OSError, ValueError)):
        together([ZSTD] * 3, [compressed(text)] * 3, [len(text) + (place == which) for place in range(3)])
