"""Pages to binned sums: the bits of calibrate.cu's order, whatever the encoding; what is wrong with a page is said."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from emulator.cpp import Kernel
from hostile import ADCS, SMALL, Observation, observe
from launch import calibrate, cases, require_compiler
from mutants import Anatomy, packed, unpacked
from numpy.typing import NDArray
from paged import bin_loaded, by_counts, by_pages, loaded_of, planned, same_bits

from gpucal import kernels
from gpucal.backends.pagewise import bins, decode
from gpucal.backends.pagewise.bins import ASKED, STATUSES, bin_pages
from gpucal.errors import InputError
from gpucal.inputs.parquet.layout import (
    COLUMNS,
    DATA,
    DICTIONARY,
    ENCODING,
    FIRST,
    KIND,
    PADDING,
    TO,
    VALUES,
    WANTED,
)
from gpucal.science.plan import Plan
from gpucal.settings.calibration import Calibration

CASES = cases()


# ------------------------------------------------------------------------------------------------------------ the order


def fused(x: float, y: float, z: float) -> float:
    """x · y + z, rounded once."""
    return float(Fraction(x) * Fraction(y) + Fraction(z))


def literal(plan: Plan, pixel: int, reads: list[int]) -> list[float]:
    """The sums of a pixel, as calibrate.cu orders them, said as plainly as can be."""

    def electrons(count: int) -> float:
        n = plan.floor if count < plan.floor else float(count)
        c1, c2, c3, c4, c5 = plan.coefficients[1:, pixel].tolist()
        return n * fused(n, fused(n, fused(n, fused(n, c5, c4), c3), c2), c1)

    pairs = plan.pairs_per_bin
    lanes = next(lanes for lanes in (1, 2, 4, 8, 16, 32) if lanes == 32 or 15 * lanes >= pairs)
    made = []
    for b in range(plan.n_bins):
        sums = [0.0] * lanes
        for piece in range(0, pairs, 508):
            for pair in range(piece, min(piece + 508, pairs)):
                start, end = reads[2 * (b * pairs + pair)], reads[2 * (b * pairs + pair) + 1]
                sums[(pair - piece) % lanes] += electrons(end) - electrons(start)
        while len(sums) > 1:
            half = len(sums) // 2
            sums = [sums[k] + sums[k + half] for k in range(half)]
        made.append(fused(-float(plan.dark[pixel]), float(plan.tau_s[b]), sums[0]) / float(plan.divisor[pixel]))
    return made


@pytest.mark.parametrize("pairs", [1, 2, 7, 15, 16, 29, 30, 31, 60, 61, 120, 121, 240, 241, 360, 508, 509, 540, 1017])
def test_the_order_is_calibrate_cu_s(pairs: int) -> None:
    frames = 2 * pairs * (3 if pairs < 100 else 2) + 3
    plan = planned(2, frames, pairs, floor=411.25)
    counts = np.random.default_rng(pairs).integers(300, 30_000, (2, frames)).astype(np.uint16)
    out, _ = by_counts(plan, counts)
    assert same_bits(out, np.array([literal(plan, pixel, counts[pixel].tolist()) for pixel in range(2)]))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    require_compiler()
    return Kernel(kernels.source("calibrate"), "calibrate", tmp_path_factory.mktemp("calibrate"))


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_the_gpu(kernel: Kernel, case: str) -> None:
    obs, config = CASES[case]
    plan, counts = obs.plan(config), obs.counts()
    expected = calibrate(kernel, plan, counts)
    for out, saturated in (by_counts(plan, counts), by_pages(as_file(counts), plan)):
        assert same_bits(out, expected[0])
        np.testing.assert_array_equal(saturated, expected[1])


# ------------------------------------------------------------------------------------------------------- every encoding


def as_file(counts: NDArray[Any], required: bool = False, kind: pa.DataType | None = None, **options: Any) -> bytes:
    """Counts (pixel, frame) as pyarrow writes them."""
    made = pa.table({f"column_{k}": column for k, column in enumerate(counts)})
    fields = [pa.field(name, kind or made.schema.field(name).type, not required) for name in made.column_names]
    sink = io.BytesIO()
    pq.write_table(made.cast(pa.schema(fields)), sink, **({"compression": "zstd"} | options))
    return sink.getvalue()


def by_polars(counts: NDArray[Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pl.DataFrame({f"column_{k}": column for k, column in enumerate(counts)}).write_parquet(sink, **options)
    return sink.getvalue()


def reads(n_frames: int) -> NDArray[np.uint16]:
    """What columns hold that are coded in different ways: bits 0 to 16, runs of one value, both by turns."""
    rng = np.random.default_rng(n_frames)
    draw = [rng.integers(0, 1 << bits, n_frames) for bits in (0, 1, 3, 8, 10, 16)]
    runs = np.repeat(rng.integers(0, 90, n_frames), rng.integers(1, 40, n_frames))[:n_frames]
    mixed = np.where(np.arange(n_frames) % 100 < 61, 7, rng.integers(0, 300, n_frames))
    odd = np.concatenate([np.full(n_frames - n_frames // 2, 5), rng.integers(0, 3, n_frames // 2)])
    return np.stack([*draw, runs, mixed, odd, np.full(n_frames, 65_535), np.arange(n_frames) % 65_536]).astype(
        np.uint16
    )


LENGTHS = [2, 7, 8, 9, 16, 17, 63, 64, 65, 511, 1000, 1003]


@pytest.mark.parametrize("n_frames", LENGTHS)
def test_any_length(n_frames: int) -> None:
    counts = reads(n_frames)
    plan = planned(len(counts), n_frames, max(1, n_frames // 2 // 3))
    expected = by_counts(plan, counts)
    for data in (as_file(counts), as_file(counts, required=True), by_polars(counts)):
        out, saturated = by_pages(data, plan)
        assert same_bits(out, expected[0])
        np.testing.assert_array_equal(saturated, expected[1])


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("required", [True, False])
def test_any_encoding(compression: str, version: str, dictionary: bool, required: bool) -> None:
    counts = reads(1000)
    plan = planned(len(counts), 1000, 30)
    expected = by_counts(plan, counts)
    options = {"compression": compression, "data_page_version": version, "use_dictionary": dictionary}
    for more in (
        {},
        {"data_page_size": 64, "write_batch_size": 50},
        {"row_group_size": 333},
        {"dictionary_pagesize_limit": 64},
    ):
        for threads in (1, 2):
            out, saturated = by_pages(as_file(counts, required, **options, **more), plan, threads)
            assert same_bits(out, expected[0])
            np.testing.assert_array_equal(saturated, expected[1])


@pytest.mark.parametrize("options", [{}, {"row_group_size": 100}, {"data_page_size": 64}, {"compression": "snappy"}])
def test_as_polars_writes(options: dict[str, Any]) -> None:
    counts = reads(1000)
    plan = planned(len(counts), 1000, 30)
    assert same_bits(by_pages(by_polars(counts, **options), plan)[0], by_counts(plan, counts)[0])


KINDS = [pa.uint8(), pa.int8(), pa.uint16(), pa.int16(), pa.uint32(), pa.int32(), pa.uint64(), pa.int64()]


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_any_integers(kind: pa.DataType, dictionary: bool) -> None:
    limit = min(65_535, 2 ** (kind.bit_width - (not str(kind).startswith("u"))) - 1)
    counts = reads(200) % limit
    counts[0, :9] = limit
    plan = planned(len(counts), 200, 9)
    schema = kind != pa.int64()  # without which only Arrow's tells such numbers from durations
    out, _ = by_pages(as_file(counts, kind=kind, use_dictionary=dictionary, store_schema=schema), plan)
    assert same_bits(out, by_counts(plan, counts)[0])


def test_neither_blocks_nor_threads_change_a_bit() -> None:
    counts = np.tile(reads(1003), (5, 1))
    plan = planned(len(counts), 1003, 30)
    data, expected = as_file(counts), by_counts(plan, counts)[0]
    for size in (1, 3000, 10**9):
        assert same_bits(by_pages(data, plan, 1, size)[0], expected)
    assert same_bits(by_pages(data, plan, 3)[0], expected)


def test_some_columns_of_a_file() -> None:
    counts = reads(100)
    chosen = np.array([1, 3, 4, 8])
    plan = planned(4, 100, 5)
    assert same_bits(bin_loaded(plan, loaded_of(as_file(counts), chosen))[0], by_counts(plan, counts[chosen])[0])


@pytest.mark.parametrize("threshold", [1000, 40_000, 40_001, 65_535, 65_536])
@pytest.mark.parametrize("dictionary", [True, False])
def test_saturation_looks_at_used_frames_only(threshold: int, dictionary: bool) -> None:
    counts = np.full((4, 34), 999, np.uint16)
    counts[0, 0] = counts[1, 27] = 40_000
    counts[2, 28] = 65_535
    plan = planned(4, 34, 7, saturation=threshold)
    data = as_file(counts, use_dictionary=dictionary)
    for saturated in (by_counts(plan, counts)[1], by_pages(data, plan)[1]):
        assert np.flatnonzero(saturated).tolist() == ([0, 1] if threshold <= 40_000 else [])


def test_equal_reads_differ_by_nothing() -> None:
    counts = np.repeat(reads(1)[:, :1], 60, axis=1)
    plan = replace(planned(len(counts), 60, 30), dark=np.zeros(len(counts)))
    assert not by_counts(plan, counts)[0].any()
    assert not by_pages(as_file(counts), plan)[0].any()


# ------------------------------------------------------------------------------------------------------ pages by hand

PLAN = planned(1, 64, 32)
ONES = bytes([128, 1, 1])  # 64 levels of 1


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128, value >> 7]) if value > 127 else bytes([value])


def repeated(value: int, count: int, size: int = 1) -> bytes:
    return varint(count << 1) + value.to_bytes(size, "little")


def packed_run(values: list[int], width: int) -> bytes:
    groups = -(-len(values) // 8)
    bits = sum(value << k * width for k, value in enumerate(values))
    return varint(groups << 1 | 1) + bits.to_bytes(groups * width, "little")


def by_hand(
    runs: bytes,
    *,
    entries: int = 4,
    levels: bytes | None = ONES,
    width: int = 2,
    dictionary: bytes | None = None,
    lie: tuple[int, int, int] | None = None,
) -> tuple[int, NDArray[np.float64]]:
    """Bin a column of a dictionary 100, 101, ... and one page of runs; return its status and bins.

    ``lie`` is a page, a column of the table, and what it says there.
    """
    words = np.arange(100, 100 + entries, dtype=np.int32).tobytes() if dictionary is None else dictionary
    body = bytes([width]) + runs
    if levels is not None:
        body = len(levels).to_bytes(4, "little") + levels + body
    data = np.frombuffer(words + bytes(PADDING) + body + b"\xee" * PADDING, np.uint8)
    pages = np.zeros((2, COLUMNS), np.int64)
    pages[:, KIND], pages[:, ENCODING], pages[:, VALUES] = (DICTIONARY, DATA), (0, 8), (len(words) // 4, 64)
    pages[:, TO], pages[:, WANTED], pages[0, FIRST] = (7, 7 + len(words) + PADDING), (len(words), len(body)), 1
    if lie:
        pages[lie[0], lie[1]] = lie[2]
    status, out, saturated = np.zeros((1, 2), np.int64), np.empty((1, PLAN.n_bins)), np.zeros(1, np.uint8)
    facts = np.array([[levels is not None, 4, 65_535]])
    constants = decode._constants(PLAN, slice(0, 1))
    bin_pages(data, pages, np.array([0, 2]), facts, 64, *constants, out, saturated, status, *bins.workspace(64, 32))
    assert status[0, 1] == (lie[0] if lie else 1 if status[0, 0] else 2)
    return int(status[0, 0]), out


INDICES = [(7 * k * k) % 4 for k in range(64)]

SOUND = {
    "literal": (packed_run(INDICES, 2), INDICES),
    "repeated": (repeated(3, 64), [3] * 64),
    "odd runs": (repeated(1, 7) + packed_run(INDICES[:48], 2) + repeated(2, 9), [1] * 7 + INDICES[:48] + [2] * 9),
    "runs of one": (b"".join(repeated(value, 1) for value in INDICES), INDICES),
    "the last group has too many": (repeated(3, 3) + packed_run([*INDICES[:61], 3, 3, 3], 2), [3] * 3 + INDICES[:61]),
    "many groups": (packed_run(INDICES[:8], 2) * 8, INDICES[:8] * 8),
}


@pytest.mark.parametrize("what", SOUND)
@pytest.mark.parametrize("levels", [ONES, None, bytes([3, 255]) + repeated(1, 56), packed_run([1] * 64, 1)])
def test_runs(what: str, levels: bytes | None) -> None:
    runs, indices = SOUND[what]
    status, out = by_hand(runs, levels=levels)
    assert status == 0
    assert same_bits(out, by_counts(PLAN, np.array([indices], np.uint16) + np.uint16(100))[0])


@pytest.mark.parametrize("width", [0, 1, 5, 7, 8, 9, 11, 13, 15, 16])
def test_any_width(width: int) -> None:
    indices = [(977 * k * k) % (1 << width) for k in range(64)]
    status, out = by_hand(packed_run(indices, width), width=width, entries=1 << width)
    assert status == 0
    counts = (np.array([indices]) + 100).astype(np.uint16) if width < 16 else None
    if counts is not None:
        assert same_bits(out, by_counts(PLAN, counts)[0])


def test_a_value_in_the_dictionary_that_nothing_uses() -> None:
    words = np.array([100, 70_000, -5, 103], np.int32).tobytes()
    indices = [3 * (k % 2) for k in range(64)]
    status, out = by_hand(packed_run(indices, 2), dictionary=words)
    assert status == 0
    assert same_bits(out, by_counts(PLAN, np.array([indices], np.uint16) + np.uint16(100))[0])
    for wrong in (1, 2):
        assert by_hand(packed_run([*indices[:63], wrong], 2), dictionary=words)[0] == bins.RANGE


GOOD_RUN = packed_run(INDICES, 2)
WRONG: dict[str, tuple[int, dict[str, Any]]] = {
    "no levels": (bins.LEVELS_WRONG, {"runs": GOOD_RUN, "levels": b""}),
    "too few levels": (bins.LEVELS_WRONG, {"runs": GOOD_RUN, "levels": repeated(1, 63)}),
    "too many levels": (bins.LEVELS_WRONG, {"runs": GOOD_RUN, "levels": repeated(1, 65)}),
    "too many groups of levels": (bins.LEVELS_WRONG, {"runs": GOOD_RUN, "levels": packed_run([1] * 72, 1)}),
    "a byte behind the levels": (bins.LEVELS_WRONG, {"runs": GOOD_RUN, "levels": ONES + b"\0"}),
    "levels of 2": (bins.LEVELS_WRONG, {"runs": GOOD_RUN, "levels": repeated(2, 64)}),
    "a run of no levels": (bins.LEVELS_WRONG, {"runs": GOOD_RUN, "levels": repeated(1, 0) + ONES}),
    "groups of levels outside": (bins.LEVELS_WRONG, {"runs": GOOD_RUN, "levels": packed_run([1] * 64, 1)[:-1]}),
    "all null": (bins.NULLS, {"runs": GOOD_RUN, "levels": repeated(0, 64)}),
    "one null": (bins.NULLS, {"runs": GOOD_RUN, "levels": packed_run([1] * 37 + [0] + [1] * 26, 1)}),
    "a null in the last group": (
        bins.NULLS,
        {"runs": GOOD_RUN, "levels": repeated(1, 59) + packed_run([1, 1, 1, 1, 0], 1)},
    ),
    "17 bits": (bins.WIDTH, {"runs": GOOD_RUN, "width": 17}),
    "255 bits": (bins.WIDTH, {"runs": GOOD_RUN, "width": 255}),
    "no runs": (bins.RUN, {"runs": b""}),
    "a run outside": (bins.RUN, {"runs": GOOD_RUN[:-1]}),
    "a repeated value outside": (bins.RUN, {"runs": varint(128)}),
    "a head of five bytes": (bins.RUN, {"runs": b"\x80\x80\x80\x80\x01" + b"\1" * 99}),
    "a head that does not end": (bins.RUN, {"runs": b"\x80"}),
    "a run of nothing": (bins.RUN, {"runs": repeated(1, 0) + GOOD_RUN}),
    "no groups": (bins.RUN, {"runs": b"\1" + GOOD_RUN}),
    "a huge run": (bins.RUN, {"runs": b"\xff\xff\xff\x7f" + b"\1" * 40}),
    "too few values": (bins.RUN, {"runs": repeated(1, 63)}),
    "too many values": (bins.COUNT, {"runs": repeated(1, 65)}),
    "a whole group too many": (bins.COUNT, {"runs": packed_run([*INDICES, 1], 2)}),
    "a byte behind": (bins.COUNT, {"runs": GOOD_RUN + b"\0"}),
    "an index beyond": (bins.INDEX, {"runs": GOOD_RUN, "entries": 3}),
    "a repeated index beyond": (bins.INDEX, {"runs": repeated(3, 64), "entries": 3}),
    "an empty dictionary": (bins.INDEX, {"runs": repeated(0, 64), "entries": 0}),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(what: str) -> None:
    expected, arguments = WRONG[what]
    assert by_hand(**arguments)[0] == expected
    assert len(STATUSES[expected]) > 9


@pytest.mark.parametrize(
    ("expected", "lie"),
    [
        (bins.ROWS, (1, VALUES, 65)),
        (bins.DICTIONARY_GONE, (1, FIRST, 1)),
        (bins.SIZE_WRONG, (0, VALUES, 5)),
        (bins.SIZE_WRONG, (1, TO, 10**6)),
        (bins.SIZE_WRONG, (1, WANTED, 10**6)),
        (bins.ENCODED, (1, ENCODING, 5)),
    ],
)
def test_a_table_that_lies_is_refused(expected: int, lie: tuple[int, int, int]) -> None:
    assert by_hand(GOOD_RUN, lie=lie)[0] == expected


def test_every_status_has_its_words() -> None:
    assert len(STATUSES) == 1 + bins.ENCODED
    assert {bins.WIDTH, bins.COUNT} < ASKED


# ------------------------------------------------------------------------------------------- damaged, and odd but sound


def altered(data: bytes, change: Any, page: int = 1) -> bytes:
    """Change a page of column 2 before it is compressed."""
    anatomy = Anatomy.of(data)
    chunk = anatomy.chunks[2]
    body = unpacked(chunk, chunk.pages[page])
    packed(chunk, chunk.pages[page], change(body))
    return anatomy.data()


def test_a_damaged_page_is_one_line() -> None:
    counts = reads(100)
    plan = planned(len(counts), 100, 5)
    cut = altered(as_file(counts), lambda body: body[:-2])
    with pytest.raises(InputError) as error:
        by_pages(cut, plan, 2)
    line = str(error.value)
    assert line.startswith("signal.parquet: column 2: page 2 has a run that ends outside of it; copy it again")
    assert "\n" not in line


@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_what_cannot_be_decompressed_is_one_line(compression: str) -> None:
    counts = reads(100)
    anatomy = Anatomy.of(as_file(counts, compression=compression))
    page = anatomy.chunks[4].pages[1]
    for body in (b"", b"\0" * 9, page.body[:-1], page.body + b"\0", page.body[:6] + b"\xff\xff" + page.body[8:]):
        page.body = body
        page.header[3] = replace(page.header[3], value=len(body))
        with pytest.raises(
            InputError, match=r"column 4: page 2 (cannot be decompressed|has a|has runs|has an|has def)"
        ):
            by_pages(anatomy.data(), planned(len(counts), 100, 5))


def test_nulls_are_one_line() -> None:
    counts = pa.array([1, 2, None, 4] * 10, pa.uint16())
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array([3] * 40, pa.uint16()), "b": counts}), sink)
    with pytest.raises(InputError, match=r"column 1: page 2 holds nulls \(column 1 holds 10 nulls\)"):
        by_pages(sink.getvalue(), planned(2, 40, 5))


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("wrong", [-1, 65_536, 2**31 - 1])
def test_counts_outside_are_one_line(wrong: int, dictionary: bool) -> None:
    counts = reads(100).astype(np.int32)
    counts[3, 99] = wrong
    with pytest.raises(InputError, match=r"column 3: page .* holds counts outside 0 to 65535"):
        by_pages(as_file(counts, use_dictionary=dictionary), planned(len(counts), 100, 5))


def test_what_others_may_find_sound_is_left_to_them() -> None:
    counts = reads(100)
    plan = planned(len(counts), 100, 5)
    more = altered(as_file(counts), lambda body: body + b"\0\0")
    assert same_bits(by_pages(more, plan)[0], by_counts(plan, counts)[0])


def test_both_observations_as_a_whole() -> None:
    obs: Observation = observe(SMALL["FGS1"], 720 * 2 + 5, ADCS["2025"])
    plan = obs.plan(Calibration(odd_frames="drop"))
    out, saturated = by_pages(as_file(obs.counts()), plan)
    expected = by_counts(plan, obs.counts())
    assert same_bits(out, expected[0])
    np.testing.assert_array_equal(saturated, expected[1])
