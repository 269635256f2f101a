"""What becomes of damaged files whose pages are binned: counted, for so many rounds.

tests/backends/pagewise/test_page_fuzz.py runs `python tests/support/page_fuzzing.py 0 2000`.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gpucal.backends.pagewise.table import Unfit
from mutants import FRAMES, RIGHT, SMALL, corpus, mutant, table, written, written_by_polars
from numpy.typing import NDArray
from test_page_bins import by_counts, planned, same_bits

from gpucal.backends.pagewise import decode
from gpucal.backends.pagewise.intrinsics import config
from gpucal.errors import InputError

PATH = Path("signal.parquet")
PLAN = planned(SMALL.n_pixels, FRAMES)


def taken() -> dict[str, bytes]:
    """Good files of what is decoded: the common corpus's, and longer columns that have runs of every kind."""
    rng = np.random.default_rng(6)
    made = {name: data for name, data in corpus().items() if not name.startswith(("pyarrow-DELTA", "pyarrow-BYTE"))}
    made = {name: data for name, data in made.items() if not any(codec in name for codec in ("gzip", "lz4"))}
    counts = rng.normal(4000, 30, (SMALL.n_columns, 700)).astype(np.uint16)
    counts[:, 100:230], counts[2] = 4000, 9
    long = table(counts)
    made["long polars"] = written_by_polars(long)
    for version in ("1.0", "2.0"):
        made[f"long pyarrow {version}"] = written(long, compression="zstd", data_page_version=version)
        made[f"long plain {version}"] = written(long, data_page_version=version, use_dictionary=False)
    made["long groups"] = written(long, compression="zstd", row_group_size=300)
    return made


def by_pyarrow(data: bytes) -> NDArray[np.int64] | None:
    """What pyarrow makes of the cropped columns, if it takes them and they hold counts."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        chosen = file.reader.read_all(column_indices=SMALL.columns().tolist(), use_threads=False).columns
        values = np.stack([np.array(column.to_pylist(), np.int64) for column in chosen])
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return None
    return values if values.size and 0 <= values.min() <= values.max() <= 0xFFFF else None


def with_footer_of(good: bytes, data: bytes) -> bytes:
    """Put a good footer behind damaged pages: pyarrow refuses some files for what footers say to Arrow, or of names."""
    pages, footer = (whole[-8 - int.from_bytes(whole[-8:-4], "little") :] for whole in (data, good))
    return data[: len(data) - len(pages)] + footer


def outcome(data: bytes, good: bytes, right: NDArray[np.uint16]) -> str:
    """Say what becomes of a file: left to others, an error, right, as pyarrow has it, or wrong."""
    try:
        pages = decode.open_pages(data, SMALL.n_columns, SMALL.columns(), PATH)
        if pages.n_rows < 2:
            return "few rows"
        plan = planned(SMALL.n_pixels, pages.n_rows)
        out, _ = decode.bin_file(data, pages, plan, PATH)
    except Unfit:
        return "left"
    except InputError as error:
        line = str(error)
        return "error" if "\n" not in line and len(line) < 500 and line.startswith(f"{PATH}: ") else f"wrong: {line!r}"
    if pages.n_rows == right.shape[1] and same_bits(out, by_counts(plan, right)[0]):
        return "right"
    values = by_pyarrow(data)
    values = by_pyarrow(with_footer_of(good, data)) if values is None else values
    if values is not None and values.shape[1] == pages.n_rows:
        return "as pyarrow" if same_bits(out, by_counts(plan, values.astype(np.uint16))[0]) else "wrong: other values"
    return "wrong: pyarrow refuses it"


def fuzz(seeds: range) -> Counter[str]:
    """Damage files, bin them, and count what becomes of them."""
    good, counted = taken(), Counter[str]()
    rights = {name: RIGHT if "long" not in name else whole(data) for name, data in good.items()}
    for seed in seeds:
        name, way, data = mutant(good, seed)
        became = outcome(data, good[name], rights[name])
        if became.startswith("wrong"):
            raise AssertionError(f"{seed} {name} {way.__name__}: {became}")
        counted[became] += 1
    return counted


def whole(data: bytes) -> NDArray[np.uint16]:
    values = by_pyarrow(data)
    assert values is not None
    return values.astype(np.uint16)


if __name__ == "__main__":
    found = fuzz(range(int(sys.argv[1]), int(sys.argv[2])))
    sys.stdout.write(f"{'checked ' if config.BOUNDSCHECK else ''}{dict(found)}\n")
