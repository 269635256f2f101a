"""Absurd files, such as ones that declare impossible sizes, or FIFOs: refused before any allocation or waiting."""

from __future__ import annotations

import copy
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compact
import numpy as np
import pyarrow as pa
import pytest
from compact import BINARY, I32, I64, LIST, STRUCT, Struct, Value
from fuzzing import elsewhere
from mutants import FRAMES, RAW, SMALL, Anatomy, Page, axes, calibration, corpus, packed, table, written

from gpucal.inputs.parquet.pages import MOST_ROWS

Change = Callable[[Anatomy], None]
GOOD = corpus()
COLUMN = int(SMALL.columns()[1])


def changed(change: Change, data: bytes = GOOD["pyarrow-zstd-1.0-dictionary"]) -> bytes:
    anatomy = Anatomy.of(data)
    change(anatomy)
    return anatomy.data()


def with_footer(change: Callable[[Struct], None], data: bytes = GOOD["pyarrow-zstd-1.0-dictionary"]) -> bytes:
    """Change the footer and nothing else."""
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, _ = compact.read_struct(data, begin)
    change(footer)
    end = compact.write_struct(footer)
    return data[:begin] + end + len(end).to_bytes(4, "little") + b"PAR1"


def rows_declared(rows: int) -> Callable[[Struct], None]:
    def change(footer: Struct) -> None:
        footer[3].value = footer[4].value[0].value[3].value = rows
        for column in footer[4].value[0].value[1].value:
            column.value[3].value[5].value = rows

    return change


def constant(rows: int) -> bytes:
    """A file of some hundred bytes that is right, and has so many rows: each column is one run."""

    def change(anatomy: Anatomy) -> None:
        rows_declared(rows)(anatomy.footer)
        for chunk in anatomy.chunks:
            page = chunk.pages[1]
            page.header[5].value[1].value = rows
            run = compact.varint(2 * rows) + b"\1"
            packed(chunk, page, len(run).to_bytes(4, "little") + run + b"\1" + compact.varint(2 * rows) + b"\0")

    return changed(change)


def page_says(index: int, **fields: int) -> Change:
    """Make one column's page header declare false sizes."""

    def change(anatomy: Anatomy) -> None:
        page = anatomy.chunks[COLUMN].pages[index]
        for name, value in fields.items():
            place = {"uncompressed": 2, "compressed": 3, "values": 5 if index else 7}[name]
            where = page.header[place].value[1] if name == "values" else page.header[place]
            where.value = value

    return change


def inflating(size: int, declared: int) -> Change:
    """Make a page hold many zeros, with any count in its header."""

    def change(anatomy: Anatomy) -> None:
        chunk = anatomy.chunks[COLUMN]
        packed(chunk, chunk.pages[1], bytes(size))
        chunk.pages[1].header[2].value = declared

    return change


def more_pages(count: int, size: int) -> Change:
    """Put pages without values, each of many zeros, before the others."""

    def change(anatomy: Anatomy) -> None:
        chunk = anatomy.chunks[COLUMN]
        page = copy.deepcopy(chunk.pages[1])
        page.header[5].value[1].value = 0
        packed(chunk, page, bytes(size))
        chunk.pages[1:1] = [Page(page.header, page.body)] * count

    return change


def extra(anatomy: Anatomy) -> None:
    """Give one page's header a field that Parquet does not have."""
    anatomy.chunks[COLUMN].pages[1].header[12] = Value(STRUCT, {1: Value(I64, 2**40)})


def overlapping(footer: Struct) -> None:
    chunks = [column.value[3].value for column in footer[4].value[0].value[1].value]
    for field in (6, 7, 9, 11):
        chunks[2][field] = chunks[1][field]


def said_outside_crop(footer: Struct) -> None:
    footer[4].value[0].value[1].value[0].value[3].value[7].value += 1


def of_columns(count: int) -> bytes:
    """A file of no rows and many columns."""
    root = Value(STRUCT, {4: Value(BINARY, b"schema"), 5: Value(I32, count)})
    column = Value(STRUCT, {1: Value(I32, 1), 3: Value(I32, 0), 4: Value(BINARY, b"c")})
    fields = {1: Value(I32, 2), 2: Value(LIST, [root], STRUCT), 3: Value(I64, 0), 4: Value(LIST, [], STRUCT)}
    short = compact.write_struct(fields)
    head = compact.write_value(Value(LIST, [root] * 20, STRUCT), in_list=True)[:1] + compact.varint(count + 1)
    one, rest = compact.write_value(root, in_list=True), compact.write_value(column, in_list=True)
    at = short.index(one)
    footer = short[: at - 1] + head + one + rest * count + short[at + len(one) :]
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


# 17 bytes, of which the footer's begin with a list of truth values, which have no bytes in a struct.
PROMISES = b"PAR1" + (LONG := b"\x19\xf1" + compact.varint(2**40)) + len(LONG).to_bytes(4, "little") + b"PAR1"


def encrypted(data: bytes) -> bytes:
    return b"PARE" + data[4:-4] + b"PARE"


def renamed(names: list[bytes]) -> Callable[[Struct], None]:
    def change(footer: Struct) -> None:
        for element, name in zip(footer[2].value[1:], names, strict=True):
            element.value[4].value = name
        for column, name in zip(footer[4].value[0].value[1].value, names, strict=True):
            column.value[3].value[3].value[0].value = name

    return change


def pandas_says(text: bytes) -> bytes:
    return written(table().replace_schema_metadata({b"pandas": text}))


MILLION = b'{"index_columns": [], "creator": "%s"}' % (b"x" * 10**6)
ODD = [b"\n" * 5, b"\0", b'"; drop', b"a.b", b"\x1b[31m", "№ 1".encode(), b" ", b"x" * 10**5]
NUMBERS = "AIRS-CH0_adc_gain,AIRS-CH0_adc_offset"
AXES = axes()["pyarrow"]
DARK = calibration()["dark"]

# name: content, and what is said of it by every way to read it, or by strict alone; "read" is how many values there are
N = SMALL.n_pixels
FILES: dict[str, tuple[bytes, str] | tuple[bytes, str, str]] = {
    "signal-2**40-rows": (with_footer(rows_declared(2**40)), "declares 1,099,511,627,776 rows"),
    "signal-minus-one-row": (with_footer(rows_declared(-1)), "declares -1 rows"),
    "signal-rows-of-groups": (with_footer(rows_declared(20)), ": column "),
    "signal-constant-2**31": (constant(2**31 - 1), "declares 2,147,483,647 rows"),
    "signal-constant-most": (constant(MOST_ROWS), f"read {N * MOST_ROWS}"),
    "signal-constant-more": (constant(MOST_ROWS + 1), "declares 4,194,305 rows"),
    "signal-page-2-GiB": (changed(page_says(1, uncompressed=2**31 - 1)), "more bytes or values than its rows"),
    "signal-dictionary-2-GiB": (changed(page_says(0, uncompressed=2**31 - 1)), "more bytes or values than its rows"),
    "signal-dictionary-of-2**31": (changed(page_says(0, values=2**31 - 1)), "more bytes or values than its rows"),
    "signal-page-of-2**31": (changed(page_says(1, values=2**31 - 1)), "more bytes or values than its rows"),
    "signal-page-below-nothing": (
        changed(page_says(1, uncompressed=-1)),
        "header with a negative size or count",
    ),
    "signal-values-below-nothing": (
        changed(page_says(1, values=-5)),
        "header with a negative size or count",
    ),
    "signal-stored-2-GiB": (changed(page_says(1, compressed=2**31 - 1)), "ends outside the file"),
    "signal-bomb": (changed(inflating(2**28, 2**28)), "more bytes or values than its rows"),
    "signal-hidden-bomb": (changed(inflating(2**28, 64)), "cannot be dec"),
    "signal-many-bombs": (changed(more_pages(1000, 2**20)), "more bytes than its rows can need"),
    "signal-many-pages": (changed(more_pages(5000, 0)), "more than 4,096 pages"),
    "signal-unknown-field": (changed(extra), f"read {N * FRAMES}"),
    "signal-overlapping": (with_footer(overlapping), f"read {N * FRAMES}", "overlaps another one"),
    "signal-outside-crop": (with_footer(said_outside_crop), f"read {N * FRAMES}", "column"),
    "signal-no-magic": (b"PORK" + GOOD["polars-zstd"][4:], f"read {N * FRAMES}", "does not begin as a Parquet file"),
    "signal-encrypted": (encrypted(GOOD["polars-zstd"]), "is encrypted"),
    "signal-footer-of-4-GiB": (GOOD["polars-zstd"][:-8] + b"\xff\xff\xff\xffPAR1", "not a complete Parquet file"),
    "signal-footer-of-300-MiB": (
        b"PAR1" + bytes(300 * 2**20) + (300 * 2**20).to_bytes(4, "little") + b"PAR1",
        "a footer of 314,572,800 bytes",
    ),
    "signal-footer-of-40-MiB": (b"PAR1" + bytes(40 * 2**20) + (40 * 2**20).to_bytes(4, "little") + b"PAR1", "footer"),
    "signal-list-of-2**40": (PROMISES, "its footer has a list of more items than it has bytes"),
    "dark-list-of-2**40": (PROMISES, "its footer has a list of more items than it has bytes"),
    "signal-million-columns": (of_columns(900_000), "has 900,000 columns"),
    "dark-million-columns": (of_columns(900_000), "has 900,000 columns"),
    "signal-5000-groups": (written(table(np.tile(RAW, 358)[:, :5000]), row_group_size=1), f"read {N * 5000}"),
    "signal-million-of-pandas": (pandas_says(MILLION), f"read {N * FRAMES}"),
    "signal-deep-pandas": (pandas_says(b'{"index_columns": ' + b"[" * 10**6), f"read {N * FRAMES}"),
    "signal-odd-names": (with_footer(renamed(ODD), GOOD["pyarrow-none-1.0-plain"]), f"read {N * FRAMES}"),
    "signal-no-utf-8": (with_footer(renamed([b"\xff%d" % k for k in range(8)])), "a column whose name is not UTF-8"),
    "signal-wide-struct": (
        written(
            pa.table(
                {"a" * 1000: pa.array([{f"b{k}": 1 for k in range(9)}] * 3)} | {f"c{k}": [1] * 3 for k in range(7)}
            )
        ),
        "expected raw counts",
    ),
    "dark-2**40-rows": (with_footer(rows_declared(2**40), DARK), "declares 1,099,511,627,776 rows"),
    "dark-of-strings": (written(pa.table({f"c{k}": ["x" * 2**20] * 2 for k in range(4)})), "holds string"),
    "axes-2**40-rows": (with_footer(rows_declared(2**40), AXES), "declares 1,099,511,627,776 rows"),
    "axes-page-2-GiB": (changed(page_says(1, uncompressed=2**31 - 1), AXES), "more bytes or values than its rows"),
    "adc-binary": (np.random.default_rng(0).bytes(10**5), "cannot be read"),
    "adc-nothing": (bytes(10**5), "is not a CSV file but zeros, as a download that broke off leaves"),
    "adc-no-utf-8": (b"\xff\xfe" + NUMBERS.encode("utf-16-le"), "cannot be read ('utf-8' codec"),
    "adc-large": (
        NUMBERS.encode() + b"\n" + b"1,1\n" * 2**20 + b"1",
        "bytes, more than the 4,194,304 of any ADC table",
    ),
    "adc-many-lines": (NUMBERS.encode() + b"\n" + b"1\n" * 10**6, "more than 20,000 lines"),
    "adc-many-columns": (",".join(map(str, range(500_000))).encode() + b"\n" + b"1\n" * 10**5, "more than 100 columns"),
    "adc-long-value": (f"{NUMBERS}\n{'9' * 10**5}x,1\n".encode(), "9..., not a number"),
    "adc-long-field": (f"{NUMBERS}\n{'9' * 10**6},1\n".encode(), "field larger than field limit"),
}


KINDS = ("signal", "dark", "axes", "adc")
IRREGULAR = {
    "folder": "Is a directory",
    "fifo": "not a regular file",
    "socket": "not a regular file",
    "device": "not a regular file",
    "loop": "Too many levels of symbolic links",
    "nowhere": "which does not exist; mend the link",
}
LINKS = {f"{kind}-{what}": said for kind in KINDS for what, said in IRREGULAR.items()}
TERABYTES = {f"{kind}-terabyte": "has 1,099,511,627,776 bytes, more than the" for kind in KINDS}


def put(folder: Path) -> None:
    """Put all of them into a folder."""
    for name, (content, *_) in FILES.items():
        (folder / name).write_bytes(content)
    for kind in KINDS:
        (folder / f"{kind}-folder").mkdir()
        os.mkfifo(folder / f"{kind}-fifo")
        os.mknod(folder / f"{kind}-socket", stat.S_IFSOCK | 0o600)
        for what, target in (("device", "/dev/zero"), ("loop", f"{kind}-loop"), ("nowhere", "none")):
            (folder / f"{kind}-{what}").symlink_to(target)
        with (folder / f"{kind}-terabyte").open("wb") as file:  # sparse
            file.write(b"PAR1")
            file.seek(2**40 - len(GOOD["polars-zstd"]))
            file.write(GOOD["polars-zstd"])


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the line said of each file, one file after the other."""
    work = tmp_path_factory.mktemp("absurd")
    (work / "files").mkdir()
    put(work / "files")
    return dict(elsewhere("files", range(0), work))


@pytest.mark.parametrize("name", [*FILES, *LINKS, *TERABYTES])
def test_absurd(name: str, said: dict[str, Any]) -> None:
    found = said[name]
    grown, seconds = found.pop("grown"), found.pop("seconds")
    expected = FILES[name][1:] if name in FILES else [(LINKS | TERABYTES)[name]]
    assert found
    for way, line in found.items():
        assert expected[-1 if "strict" in way else 0] in line, way
        assert line.isprintable()
        assert len(line) < 600
    # the least that the bombs would take is 256 MiB; the largest file that is read holds 16 MiB of counts
    assert grown < 1.5e8
    assert seconds < 20
