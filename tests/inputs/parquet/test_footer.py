"""Footers and page headers: parsed here as pyarrow parses them, in any layout, and among bytes that look like them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import compact
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compact import BINARY, I32, I64, LIST, STRUCT, Struct, Value
from mutants import Anatomy, axes, calibration, corpus, table, written, written_by_polars

from gpucal.inputs.parquet.footer import Footer, parse_footer
from gpucal.inputs.parquet.thrift import ABSENT, Unreadable, parse_structs

GOOD = corpus() | axes() | calibration()
# the beginning of a column chunk, as a column's name and as what somebody says beside
DECOY = b"\x26\x00\x1c\x15\x02\x19\x25\x00\x06\x19\x18\x01a"


def parsed(data: bytes) -> tuple[Footer, pq.FileMetaData]:
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return parse_footer(data, begin, len(data) - 8), metadata


def check(data: bytes) -> None:
    footer, metadata = parsed(data)
    assert footer.n_rows == metadata.num_rows
    assert footer.rows.tolist() == [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert footer.data.shape == (metadata.num_row_groups, metadata.num_columns)
    schema = metadata.schema.to_arrow_schema()
    assert list(footer.names) == [metadata.schema.column(k).name for k in range(len(schema))]
    assert footer.nested == (len(schema) != metadata.num_columns)
    assert footer.facts.shape == (metadata.num_columns, 3)
    assert footer.pandas == (schema.metadata or {}).get(b"pandas", b"")
    for (group, column), place in np.ndenumerate(footer.data):
        chunk = metadata.row_group(group).column(column)
        dictionary = chunk.dictionary_page_offset
        assert place == chunk.data_page_offset
        assert footer.dictionary[group, column] == (ABSENT if dictionary is None else dictionary)
        assert footer.values[group, column] == chunk.num_values
        assert footer.compressed[group, column] == chunk.total_compressed_size
        assert footer.uncompressed[group, column] == chunk.total_uncompressed_size


def rewritten(data: bytes, footer: Struct) -> bytes:
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    end = compact.write_struct(footer)
    return data[:begin] + end + len(end).to_bytes(4, "little") + b"PAR1"


def chunks_of(footer: Struct) -> Iterator[Struct]:
    for group in footer[4].value:
        for column in group.value[1].value:
            yield column.value


@pytest.mark.parametrize("name", GOOD)
def test_as_pyarrow_has_it(name: str) -> None:
    check(GOOD[name])


def test_many_columns_and_row_groups() -> None:
    wide = pa.table({f"c{k}": np.arange(7, dtype=np.uint16) for k in range(900)})
    check(written(wide, row_group_size=2))
    check(written_by_polars(wide, row_group_size=3))
    check(written(wide.slice(0, 0)))
    check(written(wide.replace_schema_metadata({"note": DECOY * 50}), row_group_size=3))
    check(written(wide.rename_columns([DECOY.decode("latin-1") + "x" * k for k in range(900)]), row_group_size=3))


@pytest.mark.parametrize("statistics", [True, False])
def test_layouts_that_no_pattern_knows(statistics: bool) -> None:
    data = written(table(), row_group_size=4, write_statistics=statistics)
    footer = Anatomy.of(data).footer
    for number, chunk in enumerate(chunks_of(footer)):
        chunk[1] = Value(BINARY, b"elsewhere") if number % 3 == 0 else Value(BINARY, b"")
        metadata = chunk[3].value
        # one of a kind each, more than are followed at once
        metadata[8] = Value(LIST, [Value(STRUCT, {1: Value(BINARY, b"k")})] * number, STRUCT)
        metadata[10] = Value(I64, 4)
        if number % 2:
            chunk.pop(1)
    for element in footer[2].value[1:]:
        element.value[9] = Value(I32, 3)
        element.value[4].value = element.value[4].value * 20
    footer[5] = Value(LIST, [Value(STRUCT, {1: Value(BINARY, DECOY), 2: Value(BINARY, DECOY)})] * 40, STRUCT)
    check(rewritten(data, footer))


def test_fields_of_another_kind_or_twice() -> None:
    data = GOOD["pyarrow-zstd-1.0-plain"]
    for field in (1, 4, 5, 6, 7, 9):
        footer = Anatomy.of(data).footer
        next(chunks_of(footer))[3].value[field].kind = I64 if field in (1, 4) else I32
        with pytest.raises(Unreadable):
            parsed_without_pyarrow(rewritten(data, footer))
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    # field 3, the rows, a second time, by its number written out
    footer_bytes = data[begin:-9] + b"\x06\x06\x08\0"
    again = data[:begin] + footer_bytes + len(footer_bytes).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(Unreadable, match="out of order"):
        parsed_without_pyarrow(again)


def parsed_without_pyarrow(data: bytes) -> Footer:
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return parse_footer(data, begin, len(data) - 8)


@pytest.mark.parametrize("columns", [0, 7, 9])
def test_another_number_of_columns(columns: int) -> None:
    data = GOOD["polars-zstd"]
    footer = Anatomy.of(data).footer
    root, *others = footer[2].value
    footer[2].value = [root, *(others * 2)[:columns]]
    with pytest.raises(Unreadable, match=f"has a row group of 8 columns, not {columns}"):
        parsed_without_pyarrow(rewritten(data, footer))


def test_structs_of_many_layouts_and_numbers() -> None:
    rng = np.random.default_rng(6)
    structs, expected = [], []
    for k in range(3000):
        number = int(rng.integers(-(2**40), 2**40)) >> int(rng.integers(40))
        fields: Struct = {2: Value(I64, number)}
        if k % 3:
            fields[1] = Value(BINARY, rng.bytes(int(rng.integers(200))))
        if k % 7 == 0:
            fields[4] = Value(STRUCT, {1: Value(I64, 3 * number)})
        if k % 11 == 0:
            fields[9] = Value(LIST, [Value(I32, k)] * (k % 40), I32)
        structs.append(compact.write_struct(fields))
        expected.append((number, 3 * number if k % 7 == 0 else ABSENT))
    at = np.cumsum([0, *map(len, structs)])
    data = b"".join(structs) + bytes(8)
    found, ends, layouts = parse_structs(data, at[:-1], len(data) - 8, {(2,): I64, (4, 1): I64})
    assert found.T.tolist() == [list(pair) for pair in expected]
    np.testing.assert_array_equal(ends, at[1:])
    assert 16 < len(layouts) < len(structs)


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_struct_cut_short_is_told_from_the_others(cut: int) -> None:
    one = compact.write_struct(
        {1: Value(I32, 5), 3: Value(STRUCT, {2: Value(BINARY, b"x" * 20), 5: Value(I64, 2**40)})}
    )
    data = one * 5
    stop = len(data) - cut
    with pytest.raises(Unreadable) as error:
        parse_structs(data + bytes(8), np.arange(5) * len(one), stop, {(1,): I32})
    assert error.value.which == 4


def numbered(k: int, rng: np.random.Generator) -> Struct:
    """A struct of one of two layouts, some of whose numbers and sizes are those of most others."""
    fields = {
        1: Value(I32, int(rng.integers(-3, 3))),
        2: Value(I64, int(rng.integers(2**60) >> rng.integers(60))),
        3: Value(BINARY, b"\0" * int(rng.integers(5) // 4 * 150)),
        4: Value(STRUCT, {1: Value(compact.TRUE, 1), 2: Value(compact.DOUBLE, rng.bytes(8)), 3: Value(I32, k // 900)}),
        5: Value(BINARY, rng.bytes(4)),
        6: Value(LIST, [Value(I32, 8), Value(I32, 2)], I32),
        7: Value(I32, 11_250),
    }
    return fields if k % 5 else {**fields, 9: Value(compact.BYTE, k % 256)}


@pytest.mark.parametrize("seed", range(6))
def test_structs_are_parsed_together_as_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    structs = [numbered(k, rng) for k in rng.integers(2000, size=2500)]
    parts = [compact.write_struct(struct) for struct in structs]
    begins = np.cumsum([0, *map(len, parts)])
    wanted = {(1,): I32, (2,): I64, (4, 3): I32, (6, 0): I32, (7,): I32, (8,): I32}
    found, ends, layouts = parse_structs(b"".join(parts) + bytes(8), begins[:-1], begins[-1], wanted)
    assert found.T.tolist() == [
        [one[1].value, one[2].value, one[4].value[3].value, 8, 11_250, ABSENT] for one in structs
    ]
    assert ends.tolist() == begins[1:].tolist()
    assert {(9,) in layout.kinds for layout in layouts} == {True, False}


@pytest.mark.parametrize("which", [0, 7, 2998, 2999])
def test_the_first_struct_that_cannot_be_read_is_named(which: int) -> None:
    parts = [compact.write_struct({1: Value(I32, 5), 2: Value(I64, k)}) for k in range(3000)]
    at = np.cumsum([0, *map(len, parts)])[:-1]
    parts[which] = b"\x01" + parts[which][1:]  # fields out of order
    parts[2999] = b"\x01" + parts[2999][1:]
    with pytest.raises(Unreadable, match="out of order") as error:
        parse_structs(b"".join(parts) + bytes(8), at, sum(map(len, parts)), {(1,): I32})
    assert error.value.which == which


# ------------------------------------------------------------------------- what pyarrow refuses is refused here as well


Place = tuple[int, ...]


def at(footer: Struct, place: Place) -> Struct:
    """The struct at a place, by numbers of fields and of items."""
    fields: Any = footer
    for step in place:
        fields = fields[step].value
    return cast("Struct", fields)


FILE, ELEMENT, NOTE, GROUP, CHUNK = (), (2, 3), (5, 0), (4, 0), (4, 0, 1, 2)
NEEDED: list[tuple[Place, int]] = [
    *((FILE, field) for field in (1, 2, 3, 4)),
    (ELEMENT, 4),
    (NOTE, 1),
    *((GROUP, field) for field in (1, 2, 3)),
    *((CHUNK, field) for field in (2, 3)),
    *(((*CHUNK, 3), field) for field in (1, 2, 3, 4, 5, 6, 7, 9)),
    *(((*CHUNK, 3, 13, 0), field) for field in (1, 2, 3)),
]


def refused_by_pyarrow(data: bytes) -> bool:
    try:
        pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError):
        return True
    return False


@pytest.mark.parametrize("way", ["removed", "of another kind"])
@pytest.mark.parametrize(("place", "field"), NEEDED, ids=str)
def test_a_field_that_every_footer_has(place: Place, field: int, way: str) -> None:
    data = GOOD["pyarrow-zstd-1.0-dictionary"]
    footer = Anatomy.of(data).footer
    fields = at(footer, place)
    if way == "removed":
        del fields[field]
    elif fields[field].kind in (I32, I64):
        fields[field].kind = I32 + I64 - fields[field].kind
    else:
        fields[field] = Value(I32, 1)
    damaged = rewritten(data, footer)
    assert refused_by_pyarrow(damaged) or (place, field) == (CHUNK, 3)  # which it misses when it reads the column
    with pytest.raises(Unreadable):
        parsed_without_pyarrow(damaged)


@pytest.mark.parametrize(("field", "kind"), [(2, BINARY), (3, I32), (13, I32)])
def test_lists_of_other_items(field: int, kind: int) -> None:
    data = GOOD["pyarrow-zstd-1.0-dictionary"]
    footer = Anatomy.of(data).footer
    value = {BINARY: b"x", I32: 1, STRUCT: {}}[kind]
    at(footer, (*CHUNK, 3))[field] = Value(LIST, [Value(kind, value)], kind)
    damaged = rewritten(data, footer)
    assert refused_by_pyarrow(damaged)
    with pytest.raises(Unreadable, match="has a column chunk that lacks a field"):
        parsed_without_pyarrow(damaged)


@pytest.mark.parametrize("orders", [0, 1, 7])
def test_fewer_orders_than_columns(orders: int) -> None:
    data = GOOD["pyarrow-zstd-1.0-dictionary"]
    footer = Anatomy.of(data).footer
    del footer[7].value[orders:]
    damaged = rewritten(data, footer)
    assert refused_by_pyarrow(damaged)
    with pytest.raises(Unreadable, match="has fewer orders than columns"):
        parsed_without_pyarrow(damaged)


@pytest.mark.parametrize("note", [b"", b"x", b"!!!!", b"AAAA", b"/////wAAAA=="], ids=repr)
def test_an_arrow_schema_that_is_none(note: bytes) -> None:
    data = GOOD["pyarrow-zstd-1.0-dictionary"]
    footer = Anatomy.of(data).footer
    (entry,) = (entry.value for entry in footer[5].value if entry.value[1].value == b"ARROW:schema")
    entry[2].value = note
    damaged = rewritten(data, footer)
    assert refused_by_pyarrow(damaged)
    with pytest.raises(Unreadable, match="has an Arrow schema that cannot be read"):
        parsed_without_pyarrow(damaged)


@pytest.mark.parametrize("children", [None, 0, 1, 7, 9, -1])
def test_a_schema_of_other_columns_than_it_says_is_left_to_pyarrow(children: int | None) -> None:
    data = GOOD["pyarrow-zstd-1.0-dictionary"]
    footer = Anatomy.of(data).footer
    assert not parsed_without_pyarrow(data).nested
    footer[2].value[0].value.pop(5)
    if children is not None:
        footer[2].value[0].value[5] = Value(I32, children)
    assert parsed_without_pyarrow(rewritten(data, footer)).nested


@pytest.mark.parametrize("field", [1, 3, 6])
def test_a_number_of_another_kind_is_not_there(field: int) -> None:
    data = GOOD["pyarrow-zstd-1.0-dictionary"]
    footer = Anatomy.of(data).footer
    footer[2].value[3].value[field].kind = I64
    facts = parsed_without_pyarrow(rewritten(data, footer)).facts
    assert facts[[0, 1, 3], 1].tolist() == [4] * 3
    assert facts[2, 1] == 0
