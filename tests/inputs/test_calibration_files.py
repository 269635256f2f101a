"""Calibration frames, ADC table and axes: right values, cropped, read-only; every bad file one line that names it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.inputs.calibration_files import (
    DEGREE,
    Adc,
    Axis,
    CalibrationFrames,
    digest_of,
    find_adc,
    read_adc_table,
    read_axis,
    read_frames,
    read_raw_frames,
)
from gpucal.settings.detectors import DETECTORS, Detector

ROWS, WIDTH = 4, 9
AIRS = replace(DETECTORS["AIRS-CH0"], shape=(ROWS, WIDTH), crop=(2, 7))
FGS1 = replace(DETECTORS["FGS1"], shape=(ROWS, WIDTH), crop=(0, WIDTH))
INSIDE, OUTSIDE = (1, 3), (1, 8)
KINDS = ("dark", "dead", "flat", "linear_corr", "read")
Arrays = dict[str, NDArray[np.generic]]
Change = Callable[[Path], object]


def drawn(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "dark": rng.normal(size=(ROWS, WIDTH)),
        "dead": rng.random((ROWS, WIDTH)) < 0.3,
        "flat": rng.normal(1, 0.1, (ROWS, WIDTH)),
        "linear_corr": rng.normal(size=((DEGREE + 1) * ROWS, WIDTH)),
        "read": rng.random((ROWS, WIDTH)),
    }


def table(array: NDArray[np.generic]) -> pa.Table:
    return pa.table({f"column_{k}": column for k, column in enumerate(np.ascontiguousarray(array.T))})


def written(folder: Path, arrays: Arrays) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in arrays.items():
        pq.write_table(table(array), folder / f"{kind}.parquet")
    return folder


def opened(folder: Path) -> CalibrationFrames:
    return read_frames(read_raw_frames(folder), folder, AIRS)


def names_file(error: pytest.ExceptionInfo[InputError], path: Path) -> str:
    """Check that the error is one line with the file in front and a mend at the end; return the problem."""
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    problem, _, mend = line.removeprefix(f"{path}: ").rpartition("; ")
    assert problem
    assert mend.startswith(("copy it again", "correct its line", "add it to"))
    return problem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "AIRS-CH0_calibration", drawn())


def test_frames_are_cropped(folder: Path) -> None:
    frames, arrays = opened(folder), drawn()
    for kind in ("dark", "dead", "flat", "read"):
        np.testing.assert_array_equal(getattr(frames, kind), arrays[kind][:, 2:7])
    powers = [arrays["linear_corr"][power * ROWS : (power + 1) * ROWS, 2:7] for power in range(DEGREE + 1)]
    assert frames.linear_corr.shape == (6, ROWS, 5)
    for power, expected in enumerate(powers):
        np.testing.assert_array_equal(frames.linear_corr[power], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_read_only(folder: Path, kind: str) -> None:
    array = getattr(opened(folder), kind)
    assert array.dtype == (np.bool_ if kind == "dead" else np.float64)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int16(), pa.uint8(), pa.int64()], ids=str)
def test_any_number_type(folder: Path, kind: pa.DataType) -> None:
    dark = np.arange(ROWS * WIDTH).reshape(ROWS, WIDTH)
    whole = table(dark)
    pq.write_table(whole.cast(pa.schema([(name, kind) for name in whole.column_names])), folder / "dark.parquet")
    np.testing.assert_array_equal(opened(folder).dark, dark[:, 2:7])


@pytest.mark.parametrize("names", [["a"] * WIDTH, [f"a.{k}" for k in range(WIDTH)]], ids=["all-the-same", "dotted"])
def test_columns_count_by_position(folder: Path, names: list[str]) -> None:
    pq.write_table(table(drawn()["dark"]).rename_columns(names), folder / "dark.parquet")
    np.testing.assert_array_equal(opened(folder).dark, drawn()["dark"][:, 2:7])


def alphabetical(prefix: str) -> list[int]:
    """Return the order of columns in a file whose writer sorts them by name: twelve are needed to make one."""
    return sorted(range(WIDE), key=lambda k: f"{prefix}{k}")


WIDE = 12
BROAD = replace(AIRS, shape=(ROWS, WIDE), crop=(1, 11))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["column_", ""])
@pytest.mark.parametrize("how", ["alphabetical", "backwards"])
@pytest.mark.parametrize("index", [None, "time"], ids=["no-index", "index"])
def test_numbered_columns_in_any_order(tmp_path: Path, kind: str, prefix: str, how: str, index: str | None) -> None:
    rng = np.random.default_rng(5)
    arrays: Arrays = {name: rng.random((ROWS, WIDE)) for name in KINDS}
    arrays |= {"dead": rng.random((ROWS, WIDE)) < 0.5, "linear_corr": rng.random(((DEGREE + 1) * ROWS, WIDE))}
    folder = written(tmp_path / "AIRS-CH0_calibration", arrays)
    expected = getattr(read_frames(read_raw_frames(folder), folder, BROAD), kind)
    order = alphabetical(prefix) if how == "alphabetical" else list(range(WIDE))[::-1]
    assert order != list(range(WIDE))
    saved = pd.DataFrame(arrays[kind][:, order], columns=[f"{prefix}{k}" for k in order])
    if index:
        saved.index = pd.Index(np.arange(len(saved))[::-1], name=index)
    saved.to_parquet(folder / f"{kind}.parquet", row_group_size=3)
    found = read_frames(read_raw_frames(folder), folder, BROAD)
    np.testing.assert_array_equal(getattr(found, kind), expected)
    np.testing.assert_array_equal(found.whole_dark, arrays["dark"])


NEARLY = {
    "another-prefix": [f"dark_{k}" for k in range(WIDTH)],
    "from-one": [f"column_{k}" for k in range(1, WIDTH + 1)],
    "two-noughts": ["column_00", *(f"column_{k}" for k in range(1, WIDTH))],
    "space": [" 0", *map(str, range(1, WIDTH))],
    "sign": ["+0", *map(str, range(1, WIDTH))],
}


@pytest.mark.parametrize("names", NEARLY.values(), ids=NEARLY)
def test_columns_of_other_names_count_by_position(folder: Path, names: list[str]) -> None:
    pq.write_table(table(drawn()["dark"]).rename_columns(names[::-1]), folder / "dark.parquet")
    np.testing.assert_array_equal(opened(folder).dark, drawn()["dark"][:, 2:7])


def test_written_by_pandas_in_row_groups(folder: Path) -> None:
    linear = pd.DataFrame(drawn()["linear_corr"], columns=[f"column_{k}" for k in range(WIDTH)])
    linear.to_parquet(folder / "linear_corr.parquet", row_group_size=5, compression="gzip")
    np.testing.assert_array_equal(opened(folder).linear_corr, drawn()["linear_corr"].reshape(6, ROWS, WIDTH)[:, :, 2:7])


def test_digest_is_of_the_bytes(folder: Path, tmp_path: Path) -> None:
    first = digest_of(read_raw_frames(folder))
    assert opened(folder).digest == first
    assert digest_of(read_raw_frames(written(tmp_path / "copy", drawn()))) == first


@pytest.mark.parametrize("kind", KINDS)
def test_digest_changes_with_any_file(folder: Path, tmp_path: Path, kind: str) -> None:
    other = written(tmp_path / "other", {**drawn(), kind: drawn(1)[kind]})
    assert opened(other).digest != opened(folder).digest


def test_digest_changes_when_two_files_swap(folder: Path) -> None:
    raw = read_raw_frames(folder)
    assert digest_of({**raw, "dark": raw["flat"], "flat": raw["dark"]}) != digest_of(raw)


def nulls(path: Path) -> None:
    whole = pq.read_table(path)
    pq.write_table(whole.set_column(3, "holes", pa.nulls(whole.num_rows, whole.schema.types[3])), path)


def retyped(kind: pa.DataType) -> Change:
    def change(path: Path) -> None:
        whole = pq.read_table(path)
        pq.write_table(whole.set_column(3, "other", pa.nulls(whole.num_rows, pa.int8()).fill_null(1).cast(kind)), path)

    return change


def cut(rows: int, columns: int) -> Change:
    def change(path: Path) -> None:
        whole = pq.read_table(path)
        pq.write_table(whole.slice(0, whole.num_rows - rows).select(range(whole.num_columns - columns)), path)

    return change


def unlink_then_mkdir(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD: Mapping[str, tuple[Change, str]] = {
    "missing": (Path.unlink, "calibration file is missing"),
    "folder": (unlink_then_mkdir, "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "Parquet file"),
    "few-bytes": (lambda path: path.write_bytes(b"PAR1\0"), "Parquet file"),
    "nonsense": (lambda path: path.write_bytes(bytes(range(256))), "Parquet file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "Parquet file"),
    "row-short": (cut(1, 0), "has shape"),
    "column-short": (cut(0, 1), "has shape"),
    "no-rows": (cut(ROWS * 6, 0), "has shape"),
    "transposed": (lambda path: pq.write_table(table(np.zeros((WIDTH, ROWS))), path), "has shape"),
    "nulls": (nulls, "holds nulls"),
    "text": (retyped(pa.string()), "holds string"),
}


# Those of which only some are bad.
ONLY = {"nulls": {"dead"}, "missing": {*KINDS} - {"read"}}


@pytest.mark.parametrize(
    ("kind", "how"), [(kind, how) for kind in KINDS for how in BAD if kind in ONLY.get(how, KINDS)]
)
def test_bad_files(folder: Path, kind: str, how: str) -> None:
    change, says = BAD[how]
    change(folder / f"{kind}.parquet")
    with pytest.raises(InputError) as error:
        opened(folder)
    assert says in names_file(error, folder / f"{kind}.parquet")


@pytest.mark.parametrize(
    ("kind", "stored"),
    [*((kind, pa.bool_()) for kind in KINDS if kind != "dead"), ("dead", pa.string()), ("dead", pa.decimal128(5))],
    ids=str,
)
def test_wrong_types(folder: Path, kind: str, stored: pa.DataType) -> None:
    retyped(stored)(folder / f"{kind}.parquet")
    with pytest.raises(InputError) as error:
        opened(folder)
    assert f"holds {stored}, expected" in names_file(error, folder / f"{kind}.parquet")


def test_no_calibration_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        opened(tmp_path / "none")
    assert "missing" in names_file(error, tmp_path / "none" / "dark.parquet")


@pytest.mark.parametrize(
    ("kind", "value"),
    [("dark", math.inf), ("dark", -math.inf), ("read", math.inf), ("read", -1e-9)],
)
def test_values_that_are_refused_inside_the_crop_only(folder: Path, kind: str, value: float) -> None:
    arrays = drawn()
    arrays[kind][OUTSIDE] = value
    assert np.isfinite(getattr(opened(written(folder, arrays)), kind)).all()
    arrays[kind][INSIDE] = value
    with pytest.raises(InputError) as error:
        opened(written(folder, arrays))
    assert "finite" in names_file(error, folder / f"{kind}.parquet")


LET_THROUGH = {
    "dark": [0.0, -5.0, math.nan],
    "flat": [0.0, -1.0, math.nan, math.inf],
    "linear_corr": [0.0, math.nan, math.inf],
    "read": [0.0, math.nan],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in LET_THROUGH.items() for value in values])
def test_values_that_are_let_through(folder: Path, kind: str, value: float) -> None:
    arrays = drawn()
    arrays[kind][INSIDE] = value
    np.testing.assert_equal(getattr(opened(written(folder, arrays)), kind)[..., 1, 1].flat[0], value)


def adc(path: Path, text: str | bytes, planet: int = 7) -> tuple[Adc, Adc]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    rows = read_adc_table(path)
    airs, fgs1 = (find_adc(rows, path, planet, detector) for detector in (AIRS, FGS1))
    return airs, fgs1


HEADER = "planet_id,FGS1_adc_offset,FGS1_adc_gain,AIRS-CH0_adc_offset,AIRS-CH0_adc_gain,star"
ALONE = "FGS1_adc_offset,FGS1_adc_gain,AIRS-CH0_adc_offset,AIRS-CH0_adc_gain"
RIGHT = (Adc(0.44, -3.0), Adc(0.87, 0.25))
TABLES = {
    "one-planet": f"{HEADER}\n7,0.25,0.87,-3,0.44,1\n",
    "among-others": f"{HEADER}\n17,1,1,1,1,1\n7,0.25,0.87,-3,0.44,1\n77,2,2,2,2,0\n",
    "without-planets": f"{ALONE}\n0.25,0.87,-3.0,0.44\n",
    "columns-in-any-order": f"{','.join(sorted(HEADER.split(',')))}\n.44,-3,.87,.25,7,1",
    "byte-order-mark": b"\xef\xbb\xbf" + f"{HEADER}\n7,0.25,0.87,-3,0.44,1\n".encode(),
    "byte-order-mark-without-planets": b"\xef\xbb\xbf" + f"{ALONE}\n0.25,0.87,-3.0,0.44\n".encode(),
    "windows-lines": f"{HEADER}\r\n7,0.25,0.87,-3,0.44,1\r\n",
    "quoted": f'{HEADER}\n"7","0.25","0.87","-3","4.4e-1","1"\n',
    "spaces-around-the-planet": f"{HEADER}\n17,1,1,1,1,1\n 7 ,0.25,0.87,-3,0.44,1\n",
    "no-last-newline-and-blanks": f"{ALONE}\n\n 0.25, 0.87, -3.0, 0.44",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_adc(tmp_path: Path, text: str | bytes) -> None:
    assert adc(tmp_path / "adc_info.csv", text) == RIGHT


BAD_TABLES = {
    "empty": ("", "planet is not in the ADC table"),
    "header-only": (f"{HEADER}\n", "planet is not in the ADC table"),
    "planet-absent": (f"{HEADER}\n17,1,1,1,1,1\n70,1,1,1,1,1\n", "planet is not in the ADC table"),
    "nearly-ids": (f"{HEADER}\n0_7,1,1,1,1,1\n\u0667,1,1,1,1,1\n7.5,1,1,1,1,1\n-7,1,1,1,1,1\n", "planet is not in"),
    "no-gain": (f"{HEADER.replace('AIRS-CH0_adc_gain', 'gain')}\n7,1,1,1,1,1\n", "no column AIRS-CH0_adc_gain"),
    "no-offset": (f"{HEADER.replace('AIRS-CH0_adc_offset', '')}\n7,1,1,1,1,1\n", "no column AIRS-CH0_adc_offset"),
    "short-line": (f"{HEADER}\n7,1,1\n", "AIRS-CH0_adc_gain"),
    "text": (f"{HEADER}\n7,1,1,1,high,1\n", "AIRS-CH0_adc_gain is 'high', not a number"),
    "blank": (f"{HEADER}\n7,1,1,1,,1\n", "AIRS-CH0_adc_gain is '', not a number"),
    "text-of-two-lines": (f'{HEADER}\n7,1,1,1,"a\nb",1\n', "AIRS-CH0_adc_gain is 'a\\nb', not a number"),
    "not-utf-8": (f"{HEADER}\n".encode() + b"\xff\xfe,1,1,1,1,1\n", "cannot be read"),
    **{f"gain-{value}": (f"{HEADER}\n7,1,1,1,{value},1\n", "gain") for value in ("0", "-0.4", "nan", "inf", "-inf")},
    "gain-without-inverse": (f"{HEADER}\n7,1,1,1,1e-320,1\n", "ADC gain is 1e-320, must be above 0 and finite"),
    **{f"offset-{value}": (f"{HEADER}\n7,1,1,{value},1,1\n", "offset") for value in ("nan", "inf", "-inf")},
}


@pytest.mark.parametrize(("text", "says"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_adc(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(InputError) as error:
        adc(tmp_path / "adc_info.csv", text)
    assert says in names_file(error, tmp_path / "adc_info.csv")


TWICE = {
    "gains": (f"{HEADER}\n7,0,0.87,-3,0.44,1\n8,0,1,-3,1,1\n7,0,0.87,-3,0.5,1\n", "2 and 4", "gain is 0.44 and 0.5"),
    "offsets": (f"{HEADER}\n7,0,0.87,-3,0.44,1\n7,0,0.87,3,0.44,1\n", "2 and 3", "offset is -3.0 and 3.0"),
    "both": (f"{HEADER}\n7,0,1,-3,0.4,1\n7,0,1,3,0.5,1\n", "2 and 3", "gain is 0.4 and 0.5, AIRS-CH0_adc_offset is"),
    "third": (f"{HEADER}\n7,0,1,-3,0.4,1\n7,0,1,-3,.40,1\n7,0,1,-3,0.5,1\n", "2 and 4", "gain is 0.4 and 0.5"),
    "float-id": (f"{HEADER}\n7,0,1,-3,0.4,1\n7.0,0,1,-3,0.5,1\n", "2 and 3", "gain is 0.4 and 0.5"),
    "padded-id": (f"{HEADER}\n007,0,1,-3,0.4,1\n 7 ,0,1,-3,0.5,1\n", "2 and 3", "gain is 0.4 and 0.5"),
    "one-of-three": (f"{HEADER}\n7,0,1,-3,1,1\n0_7,0,1,1,9,1\n7,0,1,-3,2,1\n", "2 and 4", "gain is 1.0 and 2.0"),
    "two-lines-in-one": (f'{HEADER}\n"8\n",0,1,1,1,1\n7,0,1,-3,1,1\n7,0,1,-3,2,1\n', "4 and 5", "gain is 1.0 and 2.0"),
    "without-planets": (f"{ALONE}\n0,1,-3,0.4\n0,1,-3,0.5\n", "2 and 3", "no column planet_id"),
    "ids-of-another-name": (f"{HEADER.replace('_id', '')}\n7,0,1,-3,0.4,1\n8,0,1,-3,0.5,1\n", "2 and 3", "no column"),
}


@pytest.mark.parametrize(("text", "lines", "says"), TWICE.values(), ids=TWICE)
def test_two_lines_that_differ(tmp_path: Path, text: str, lines: str, says: str) -> None:
    path = tmp_path / "train_adc_info.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        find_adc(read_adc_table(path), path, 7, AIRS)
    line = str(error.value)
    assert line.startswith(f"{path}: lines {lines} give ")
    assert says in line
    assert line.endswith("; remove the wrong line from train_adc_info.csv")
    assert "\n" not in line


ONCE = {
    "same": f"{HEADER}\n7,0.25,0.87,-3,0.44,1\n7,0.25,0.87,-3,0.44,1\n",
    "same-as-numbers": f"{HEADER}\n7,.250,0.87,-3.0,0.440,1\n 7,0.25,87e-2,-3,0.44,1\n",
    "other-star": f"{HEADER}\n7,0.25,0.87,-3,0.44,1\n7,0.25,0.87,-3,0.44,0\n",
    "others-differ": f"{HEADER}\n8,1,1,1,1,1\n7,0.25,0.87,-3,0.44,1\n8,1,1,1,2,1\n",
    "without-planets": f"{ALONE}\n0.25,0.87,-3.0,0.44\n0.25,0.87,-3,0.440\n",
    "float-ids": f"{HEADER}\n17.0,1,1,1,1,1\n7.0,0.25,0.87,-3,0.44,1\n",
    "float-ids-otherwise": f"{HEADER}\n70.,1,1,1,1,1\n7.000e+00,0.25,0.87,-3,0.44,1\n",
    "no-ids": f"{HEADER}\nnan,1,1,1,1,1\n,2,2,2,2,2\n7,0.25,0.87,-3,0.44,1\nsnan,3,3,3,3,3\n7.5,4,4,4,4,4\n",
    "spaces-in-the-header": f"{HEADER.replace(',', ', ')}\n7,0.25,0.87,-3,0.44,1\n8,1,1,1,1,1\n",
    "blank-lines": f"{HEADER}\n\n,,,,,\n7,0.25,0.87,-3,0.44,1\n  \n",
    "blank-lines-without-planets": f"{ALONE}\n \n0.25,0.87,-3,0.44\n,,,\n,,,,,\n  \n\n",
    "blank-values-at-the-end": f"{HEADER}\n7,0.25,0.87,-3,0.44,1,, \n",
}


@pytest.mark.parametrize("text", ONCE.values(), ids=ONCE)
def test_lines_that_do_not_differ(tmp_path: Path, text: str) -> None:
    assert adc(tmp_path / "adc_info.csv", text) == RIGHT


@pytest.mark.parametrize("planet", [1103775, 4169614766, 2**53 + 1])
@pytest.mark.parametrize("form", ["{}", "{}.0", "{}.000", "+{}", "{}e0"])
def test_ids_as_numbers(tmp_path: Path, planet: int, form: str) -> None:
    text = f"{HEADER}\n{planet + 1},1,1,1,1,1\n{form.format(planet)},0.25,0.87,-3,0.44,1\n{planet - 1}.0,2,2,2,2,2\n"
    assert adc(tmp_path / "adc_info.csv", text, planet) == RIGHT


@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=["AIRS-CH0", "FGS1"])
def test_a_difference_counts_for_the_detector_that_uses_it(tmp_path: Path, detector: Detector) -> None:
    path = tmp_path / "adc_info.csv"
    for other, values in ((AIRS, "0.25,0.87,-3,0.5"), (FGS1, "0.25,0.9,-3,0.44")):
        path.write_text(f"{ALONE}\n0.25,0.87,-3,0.44\n{values}\n")
        if other is detector:
            with pytest.raises(InputError, match="different values"):
                find_adc(read_adc_table(path), path, 7, detector)
        else:
            assert find_adc(read_adc_table(path), path, 7, detector) == RIGHT[detector is FGS1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{HEADER}\n7,0,25,0,87,-3,0,44,1\n", "line 2 has more values than the header has columns"),
        (f"{ALONE}\n0.25,0.87,-3,0.44\n1,0.25,0.87,-3,0.44\n", "line 3 has more values than the header has columns"),
        (f"{HEADER}\n7,1,1\n", "line 2 ends before AIRS-CH0_adc_"),
        (f"{HEADER},AIRS-CH0_adc_gain\n7,0.25,0.87,-3,0.44,1,0.5\n", "2 columns AIRS-CH0_adc_gain"),
        (f"planet_id,{HEADER}\n8,7,0.25,0.87,-3,0.44,1\n", "2 columns planet_id"),
    ],
)
def test_a_line_that_may_mean_something_else(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "adc_info.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        find_adc(read_adc_table(path), path, 7, AIRS)
    assert says in names_file(error, path)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_no_adc_table(tmp_path: Path, what: str) -> None:
    path = tmp_path / "adc_info.csv"
    if what == "folder":
        path.mkdir()
    with pytest.raises(InputError) as error:
        read_adc_table(path)
    assert "ADC table" in names_file(error, path)


def axes() -> dict[str, NDArray[np.float64]]:
    columns = {
        "AIRS-CH0-axis0-h": np.linspace(0, 1, 12),
        "AIRS-CH0-axis2-um": np.linspace(4, 2, WIDTH),
        "AIRS-CH0-integration_time": np.resize([0.1, 4.5], 12),
        "FGS1-axis0-h": np.linspace(0, 1, 30),
    }
    return {name: np.pad(values, (0, 30 - values.size), constant_values=np.nan) for name, values in columns.items()}


def axis_file(path: Path, columns: Mapping[str, object]) -> Path:
    pq.write_table(pa.table(dict(columns)), path)
    return path


@pytest.mark.parametrize("how", ["nan", "null"])
def test_axes(tmp_path: Path, how: str) -> None:
    path = tmp_path / "axis_info.parquet"
    if how == "nan":
        axis_file(path, axes())
    else:
        pd.DataFrame(axes()).to_parquet(path)
    airs, fgs1 = read_axis(path, AIRS), read_axis(path, FGS1)
    assert isinstance(airs, Axis)
    np.testing.assert_array_equal(airs.time_h, np.linspace(0, 1, 12))
    np.testing.assert_array_equal(airs.wavelength_um, np.linspace(4, 2, WIDTH)[2:7])
    np.testing.assert_array_equal(airs.integration_s, np.resize([0.1, 4.5], 12))
    np.testing.assert_array_equal(fgs1.time_h, np.linspace(0, 1, 30))
    assert fgs1.wavelength_um is None
    assert fgs1.integration_s is None
    for values in (airs.time_h, airs.wavelength_um, airs.integration_s, fgs1.time_h):
        assert values is not None
        assert values.dtype == np.float64
        assert not values.flags.writeable


AIRS_COLUMNS = [name for name in axes() if name.startswith("AIRS")]


@pytest.mark.parametrize("name", AIRS_COLUMNS)
def test_axis_column_missing(tmp_path: Path, name: str) -> None:
    path = axis_file(tmp_path / "axis_info.parquet", {other: axis for other, axis in axes().items() if other != name})
    with pytest.raises(InputError) as error:
        read_axis(path, AIRS)
    assert names_file(error, path) == f"has no column {name!r}"
    assert read_axis(path, FGS1).time_h.size == 30


@pytest.mark.parametrize("name", AIRS_COLUMNS)
@pytest.mark.parametrize("what", ["gap", "starts-late", "infinite", "nothing", "text", "list", "nulls"])
def test_axis_column_unusable(tmp_path: Path, name: str, what: str) -> None:
    values = axes()[name]
    bad = {
        "gap": np.where(np.arange(30) == 4, np.nan, values),
        "starts-late": np.where(np.arange(30) == 0, np.nan, values),
        "infinite": np.where(np.arange(30) == 4, np.inf, values),
        "nothing": np.full(30, np.nan),
        "text": ["a"] * 30,
        "list": [[1.0, 2.0]] * 30,
        "nulls": pa.nulls(30),
    }[what]
    path = axis_file(tmp_path / "axis_info.parquet", {**axes(), name: bad})
    with pytest.raises(InputError) as error:
        read_axis(path, AIRS)
    assert repr(name) in names_file(error, path)


@pytest.mark.parametrize("count", [1, WIDTH - 1, WIDTH + 1])
def test_wrong_number_of_wavelengths(tmp_path: Path, count: int) -> None:
    um = np.where(np.arange(30) < count, 2.0, np.nan)
    path = axis_file(tmp_path / "axis_info.parquet", {**axes(), "AIRS-CH0-axis2-um": um})
    with pytest.raises(InputError) as error:
        read_axis(path, AIRS)
    assert names_file(error, path) == f"AIRS-CH0-axis2-um has {count} values, expected {WIDTH}"


def test_axis_column_twice(tmp_path: Path) -> None:
    path = tmp_path / "axis_info.parquet"
    whole = pa.table(axes())
    pq.write_table(whole.append_column("AIRS-CH0-axis0-h", whole.column(0)), path)
    with pytest.raises(InputError) as error:
        read_axis(path, AIRS)
    assert "AIRS-CH0-axis0-h" in names_file(error, path)


@pytest.mark.parametrize("content", [None, b"", b"PAR1", bytes(99)], ids=["missing", "empty", "few-bytes", "zeros"])
def test_no_axis_table(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "axis_info.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_axis(path, AIRS)
    problem = {None: "axis table is missing", b"PAR1": "is not a Parquet file ("}.get(
        content, "is not a Parquet file but "
    )
    assert names_file(error, path).startswith(problem)
