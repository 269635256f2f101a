"""Files as libraries write them, taken apart, damaged in one place or another, and put together again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import compact
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from compact import I32, I64, LIST, STRUCT, Struct, Value
from numpy.typing import NDArray

from gpucal.settings.detectors import DETECTORS

SMALL = replace(DETECTORS["AIRS-CH0"], shape=(2, 4), crop=(1, 3))
FRAMES = 14
RAW = np.random.default_rng(3).integers(0, 65_535, (SMALL.n_columns, FRAMES), np.uint16, endpoint=True)
RIGHT = RAW[SMALL.columns()]

TRUTH = Value(compact.TRUE, compact.TRUE)
CODECS = {0: None, 1: "snappy", 2: "gzip", 6: "zstd", 7: "lz4_raw"}


def table(raw: NDArray[Any] = RAW) -> pa.Table:
    return pa.table({f"column_{k}": column for k, column in enumerate(raw)})


def written(raw: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(raw, sink, **options)
    return sink.getvalue()


def written_by_polars(raw: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pl.from_arrow(raw).write_parquet(sink, **options)
    return sink.getvalue()


def corpus() -> dict[str, bytes]:
    """Good files of the same counts."""
    made = {}
    for compression, version, dictionary in product(
        ("none", "snappy", "zstd", "gzip", "lz4"), ("1.0", "2.0"), (True, False)
    ):
        options: dict[str, Any] = {"compression": compression, "data_page_version": version}
        options |= {"use_dictionary": dictionary, "write_statistics": compression == "snappy"}
        options |= {"row_group_size": 5 if compression in ("snappy", "gzip") else 1000}
        made[f"pyarrow-{compression}-{version}-{'dictionary' if dictionary else 'plain'}"] = written(table(), **options)
    for encoding in ("DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"):
        options = {"column_encoding": encoding, "use_dictionary": False, "compression": "zstd"}
        made[f"pyarrow-{encoding}"] = written(table(), **options)
    for compression in ("none", "zstd"):
        options = {"compression": compression, "write_page_checksum": True, "data_page_size": 8, "write_batch_size": 4}
        made[f"checksums-{compression}"] = written(table(), **options)
    required = table().cast(pa.schema([pa.field(name, pa.uint16(), False) for name in table().column_names]))
    made["pyarrow-required"] = written(required, compression="snappy")
    made["pyarrow-int64"] = written(table(RAW.astype(np.int64)), compression="snappy")
    for polars in ("uncompressed", "snappy", "zstd", "lz4", "gzip"):
        made[f"polars-{polars}"] = written_by_polars(table(), compression=polars)
    made["polars-groups"] = written_by_polars(table(), compression="zstd", row_group_size=5, data_page_size=10)
    return made


def longer() -> dict[str, bytes]:
    """Good files of longer columns, whose runs are of every kind, in every encoding that gpucal decodes itself."""
    rng = np.random.default_rng(6)
    counts = rng.normal(4000, 30, (SMALL.n_columns, 700)).astype(np.uint16)
    counts[:, 100:230], counts[2], counts[3, ::2] = 4000, 9, rng.integers(0, 65_535, 350)
    nullable = table(counts)
    required = nullable.cast(pa.schema([field.with_nullable(False) for field in nullable.schema]))
    made = {}
    for codec, version, dictionary, (null, raw), many in product(
        ("none", "snappy", "zstd"),
        ("1.0", "2.0"),
        (True, False),
        {"nullable": nullable, "required": required}.items(),
        (False, True),
    ):
        options: dict[str, Any] = {"compression": codec, "data_page_version": version, "use_dictionary": dictionary}
        if many:
            options |= {"row_group_size": 300, "data_page_size": 100, "write_batch_size": 60}
            options |= {"write_page_checksum": codec == "snappy", "dictionary_pagesize_limit": 2**9}
        name = f"{codec}-{version}-{'dictionary' if dictionary else 'plain'}-{null}-{'many' if many else 'one'}"
        made[f"long-{name}"] = written(raw, **options)
    for codec, many in product(("uncompressed", "snappy", "zstd"), (False, True)):
        options = {"row_group_size": 300, "data_page_size": 100} if many else {}
        made[f"long-polars-{codec}-{'many' if many else 'one'}"] = written_by_polars(
            nullable, compression=codec, **options
        )
    return made


@dataclass
class Page:
    """A page: its header, and what follows as it is stored."""

    header: Struct
    body: bytes

    def number(self, *place: int) -> int:
        fields = self.header
        for field in place[:-1]:
            fields = fields[field].value
        return int(fields[place[-1]].value)

    @property
    def values(self) -> int:
        return self.number({0: 5, 2: 7, 3: 8}[self.number(1)], 1)


@dataclass
class Chunk:
    """A column chunk: its place in the footer, and its pages."""

    metadata: Struct
    pages: list[Page]

    @property
    def codec(self) -> str | None:
        return CODECS[self.metadata[4].value]


def pages_at(data: bytes, metadata: Struct, values: int) -> Iterator[Page]:
    """Read the pages of a column chunk."""
    at = min(metadata[place].value for place in (9, 11) if place in metadata)
    while values > 0:
        header, after = compact.read_struct(data, at)
        at = after + header[3].value
        page = Page(header, data[after:at])
        values -= page.values if page.number(1) != 2 else 0
        yield page


@dataclass
class Anatomy:
    """A file, taken apart."""

    footer: Struct
    chunks: list[Chunk]

    @classmethod
    def of(cls, data: bytes) -> Anatomy:
        begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        footer, _ = compact.read_struct(data, begin)
        chunks = []
        for group in footer[4].value:
            for column in group.value[1].value:
                facts = column.value[3].value
                try:
                    pages = list(pages_at(data, facts, group.value[3].value))
                except (IndexError, KeyError, AssertionError):  # damaged already
                    pages = []
                chunks.append(Chunk(facts, pages))
                for index in (4, 5, 6, 7):  # of pages, which will be elsewhere
                    column.value.pop(index, None)
        return cls(footer, chunks)

    def data(self) -> bytes:
        """Put it together, with a footer that tells the truth of places and sizes."""
        out = bytearray(b"PAR1")
        for chunk in self.chunks:
            start, whole = len(out), 0
            chunk.metadata.pop(11, None)
            for page in chunk.pages:
                where = 11 if page.number(1) == 2 else 9
                if where == 11 or page is next((p for p in chunk.pages if p.number(1) != 2), None):
                    chunk.metadata[where] = Value(I64, len(out))
                header = compact.write_struct(page.header)
                out += header + page.body
                whole += len(header) + page.number(2)
            chunk.metadata[6], chunk.metadata[7] = Value(I64, whole), Value(I64, len(out) - start)
        footer = compact.write_struct(self.footer)
        return bytes(out) + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def in_front(page: Page) -> int:
    """Bytes of levels, which stay as they are whatever the codec: those of the second version of data pages."""
    return page.number(8, 5) if page.number(1) == 3 else 0


def stored(chunk: Chunk, page: Page) -> bool:
    """Tell whether a page is not compressed."""
    return chunk.codec is None or (page.number(1) == 3 and page.header[8].value.get(7, TRUTH).kind == compact.FALSE)


def unpacked(chunk: Chunk, page: Page) -> bytes:
    """A page's body as it is when decompressed."""
    if stored(chunk, page):
        return page.body
    levels = in_front(page)
    size = page.number(2) - levels
    return page.body[:levels] + (bytes(pa.decompress(page.body[levels:], size, chunk.codec)) if size else b"")


def packed(chunk: Chunk, page: Page, body: bytes) -> None:
    """Give a page another body, and a header that tells the truth of its sizes."""
    levels = min(in_front(page), len(body))
    page.body = body if stored(chunk, page) else body[:levels] + bytes(pa.compress(body[levels:], chunk.codec))
    page.header[2], page.header[3] = Value(I32, len(body)), Value(I32, len(page.body))


ABSURD = (0, 1, -1, 2, 7, 8, 255, 65_536, 2**20, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, -(2**62))


def scribbled(data: bytes, rng: np.random.Generator, first: int, last: int) -> bytes:
    """Change up to three places between two, by a bit, a byte, or up to eight bytes."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4)) if last > first else 0):
        at = int(rng.integers(first, last))
        match rng.integers(4):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                out[at] = int(rng.choice([0, 1, 2, 127, 128, 255]))
            case 2:
                out[at] = int(rng.integers(256))
            case _:
                size = min(int(rng.integers(1, 9)), last - at)
                out[at : at + size] = rng.bytes(size)
    return bytes(out)


def renumbered(fields: Struct, rng: np.random.Generator) -> None:
    """Change a number of a struct, at any depth."""
    numbers = compact.numbers(fields)
    number = numbers[int(rng.integers(len(numbers)))]
    near = [number.value + 1, number.value - 1, 2 * number.value, number.value // 2, int(rng.integers(256))]
    number.value = int(rng.choice(np.array([*near, *ABSURD], object)))


def any_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    return scribbled(data, rng, 0, len(data))


def in_footer(data: bytes, rng: np.random.Generator) -> bytes:
    return scribbled(data, rng, len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data))


def in_pages(data: bytes, rng: np.random.Generator) -> bytes:
    return scribbled(data, rng, 4, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))


def cut_or_grown(data: bytes, rng: np.random.Generator) -> bytes:
    """Leave some bytes out, or put some in."""
    first, last = sorted(int(at) for at in rng.integers(0, len(data), 2))
    middle = [b"", bytes(last - first), rng.bytes(int(rng.integers(1, 9))), data[first:last] * 2][rng.integers(4)]
    return data[:first] + middle + data[last:]


def footer_number(data: bytes, rng: np.random.Generator) -> bytes:
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, _ = compact.read_struct(data, begin)
    renumbered(footer, rng)
    end = compact.write_struct(footer)
    return data[:begin] + end + len(end).to_bytes(4, "little") + b"PAR1"


def footer_field(data: bytes, rng: np.random.Generator) -> bytes:
    """Leave a field of the footer out, or give it another kind."""
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, _ = compact.read_struct(data, begin)
    structs = list(structs_in(Value(STRUCT, footer)))
    fields = structs[int(rng.integers(len(structs)))]
    field = int(rng.choice(list(fields)))
    if rng.integers(2) and fields[field].kind in (I32, I64):
        fields[field].kind = I32 + I64 - fields[field].kind
    else:
        del fields[field]
    end = compact.write_struct(footer)
    return data[:begin] + end + len(end).to_bytes(4, "little") + b"PAR1"


def structs_in(value: Value) -> Iterator[Struct]:
    """Every struct that is not empty, at any depth."""
    inside = value.value.values() if value.kind == STRUCT else value.value if value.kind == LIST else []
    if value.kind == STRUCT and value.value:
        yield value.value
    for item in inside:
        yield from structs_in(item)


def some_page(anatomy: Anatomy, rng: np.random.Generator) -> tuple[Chunk, Page]:
    chunk = anatomy.chunks[int(rng.integers(len(anatomy.chunks)))]
    return chunk, chunk.pages[int(rng.integers(len(chunk.pages)))]


def page_number(data: bytes, rng: np.random.Generator) -> bytes:
    """Let a page header lie in a footer that tells the truth, as far as it goes."""
    anatomy = Anatomy.of(data)
    renumbered(some_page(anatomy, rng)[1].header, rng)
    return anatomy.data()


def page_body(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage what a page holds, before it is compressed."""
    anatomy = Anatomy.of(data)
    chunk, page = some_page(anatomy, rng)
    body = unpacked(chunk, page)
    # mostly where levels, bit widths and the headers of encodings are
    body = scribbled(body, rng, 0, len(body) if rng.integers(2) else min(len(body), 12))
    if not rng.integers(4):
        body = body[: int(rng.integers(len(body) + 1))] + rng.bytes(int(rng.integers(0, 9)))
    packed(chunk, page, body)
    return anatomy.data()


def pages_moved(data: bytes, rng: np.random.Generator) -> bytes:
    """Leave a page out, repeat it, or put it into another column."""
    anatomy = Anatomy.of(data)
    (chunk, page), (other, _) = some_page(anatomy, rng), some_page(anatomy, rng)
    match rng.integers(3):
        case 0:
            chunk.pages.remove(page)
        case 1:
            other.pages.insert(int(rng.integers(len(other.pages) + 1)), page)
        case _:
            chunk.pages, other.pages = other.pages, chunk.pages
    return anatomy.data()


Mutation = Callable[[bytes, np.random.Generator], bytes]
ON_BYTES: tuple[Mutation, ...] = (any_bytes, in_footer, in_pages, cut_or_grown)
ON_PARTS: tuple[Mutation, ...] = (footer_number, footer_field, page_number, page_body, pages_moved)


def mutant(
    good: dict[str, bytes], seed: int, ways: Sequence[Mutation] = (*ON_BYTES, *ON_PARTS)
) -> tuple[str, Mutation, bytes]:
    """Damage one of some good files in one way."""
    rng = np.random.default_rng(seed)
    names = sorted(good)
    name = names[int(rng.integers(len(names)))]
    way = ways[int(rng.integers(len(ways)))]
    return name, way, way(good[name], rng)


def calibration() -> dict[str, bytes]:
    """Good calibration frames by name, as Polars and as pyarrow write them."""
    rng = np.random.default_rng(4)
    rows, width = SMALL.shape
    drawn = {name: rng.random((rows, width)) for name in ("dark", "flat", "read")}
    drawn |= {"dead": rng.random((rows, width)) < 0.3, "linear_corr": rng.normal(size=(6 * rows, width))}
    tables = {name: table(np.ascontiguousarray(values.T)) for name, values in drawn.items()}
    by_polars = {name: written_by_polars(values, compression="zstd") for name, values in tables.items()}
    return by_polars | {f"{name} ": written(values, row_group_size=3) for name, values in tables.items()}


def axes() -> dict[str, bytes]:
    """Good axes."""
    columns = {name: np.linspace(1, 2, FRAMES) for name in (SMALL.time_column, SMALL.integration_column)}
    columns[SMALL.wavelength_column] = np.pad(
        np.linspace(4, 2, SMALL.shape[1]), (0, FRAMES - 4), constant_values=np.nan
    )
    whole = pa.table({str(name): values for name, values in columns.items()})
    return {"pyarrow": written(whole), "polars": written_by_polars(whole, compression="snappy")}
