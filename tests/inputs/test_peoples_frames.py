"""Calibration frames as people have them: gaps, dead maps of numbers, an index, no read noise. The oracle decides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from conftest import BINS, CONFIG, Made
from emulator import standin
from formulas import available, run
from hostile import ADCS, SMALL, Observation, observe, write_table
from hostile import BINS as SMALL_BINS
from numpy.typing import NDArray
from reference import assert_close

import gpucal
from gpucal import DQ, Calibration
from gpucal.cli.main import main
from gpucal.errors import ConfigError, InputError, RunWarning
from gpucal.inputs.calibration_files import read_frames, read_raw_frames
from gpucal.results.records import records
from gpucal.settings.detectors import DETECTORS

AIRS, FGS1 = DETECTORS["AIRS-CH0"], DETECTORS["FGS1"]
BEGINNING = (3, 5)
"""Spatial row and column of a pixel that a test may change, inside both crops once 39 is added for AIRS-CH0."""


def with_gaps(obs: Observation) -> Observation:
    """Take values out of every calibration frame, at dead and hot pixels too."""
    rng = np.random.default_rng(5)
    maps = {name: values.astype(float) for name, values in obs.maps.items() if name != "dead"}
    for values in maps.values():
        for at in rng.choice(values[0].size, 3, replace=False) if values.ndim == 3 else rng.choice(values.size, 3):
            values.reshape(-1)[at] = np.nan
    first = tuple(np.argwhere(obs.dead)[0])
    maps["dark"][first] = maps["flat"][first] = np.nan
    return replace(obs, **maps)


GAPPY = [
    {"bins": SMALL_BINS, **more}
    for more in (
        {},
        {"dark": False},
        {"mask": False, "flat": False},
        {"reduce": "mean", "integration": "updated"},
        {"bad_coefficients": "benign"},
        {"hot_clip": "full-frame", "linearity": False},
    )
]


@pytest.mark.parametrize("wish", GAPPY, ids=str)
@pytest.mark.parametrize("detector", SMALL)
def test_gaps_are_what_the_oracle_makes_of_them(detector: str, wish: dict[str, object]) -> None:
    config = Calibration(**{"integration": "notebook"} | wish)
    obs = with_gaps(observe(SMALL[detector], 2 * (3 * SMALL_BINS[detector] + 2), ADCS["2024"], seed=3))
    expected = obs.reference(config)
    for backend in available():
        assert_close(run(obs, config, backend), expected)
    dq = obs.plan(config).dq.reshape(expected.bad_dark.shape)
    assert expected.bad_dark.any()
    np.testing.assert_array_equal(dq & DQ.BAD_DARK != 0, expected.bad_dark & config.dark)
    lost = np.isnan(expected.signal).all(axis=0).T
    assert lost[expected.bad_dark].all() == config.dark


@pytest.mark.parametrize("wish", GAPPY[:2], ids=str)
def test_gaps_on_the_stand_in_of_a_gpu(device: standin.Machine, wish: dict[str, object]) -> None:
    config = Calibration(**{"integration": "notebook"} | wish)
    obs = with_gaps(observe(SMALL["AIRS-CH0"], 60, ADCS["2024"], seed=3))
    assert_close(run(obs, config, "cupy"), obs.reference(config))
    assert device.launches > 0


def test_a_gap_in_the_read_noise_changes_the_variance_alone() -> None:
    obs = observe(SMALL["FGS1"], 60, ADCS["2024"], seed=3)
    read = obs.read.copy()
    read[1, 2] = np.nan
    config = Calibration(bins=SMALL_BINS)
    plain, gappy = obs.plan(config), replace(obs, read=read).plan(config)
    np.testing.assert_array_equal(gappy.dq, plain.dq)
    np.testing.assert_array_equal(run(replace(obs, read=read), config), run(obs, config))
    assert np.isnan(gappy.read_noise.reshape(3, 5)[1, 2])


# How a table comes to have a gap in one pixel, and a column of one row.
def as_nan(table: pa.Table, row: int, column: int) -> pa.Table:
    values = table.column(column).to_numpy().copy()
    values[row] = np.nan
    return table.set_column(column, table.column_names[column], [values])


def as_null(table: pa.Table, row: int, column: int) -> pa.Table:
    values = table.column(column).to_pylist()
    values[row] = None
    return table.set_column(column, table.column_names[column], pa.array(values, pa.float64()))


def as_null_of_integers(table: pa.Table, row: int, column: int) -> pa.Table:
    values = pa.array([None if at == row else 3 for at in range(table.num_rows)], pa.int16())
    return table.set_column(column, table.column_names[column], values)


def by_pandas(table: pa.Table, row: int, column: int) -> pa.Table:
    frame = table.to_pandas()
    frame.iloc[row, column] = np.nan
    return pa.Table.from_pandas(frame)


GAPS = {"nan": as_nan, "null": as_null, "null of integers": as_null_of_integers, "pandas": by_pandas}
FLAGS = {"dark": DQ.BAD_DARK, "flat": DQ.BAD_FLAT, "linear_corr": DQ.BAD_LINEARITY}


@contextmanager
def changed(path: Path) -> Iterator[None]:
    content = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("how", GAPS)
@pytest.mark.parametrize("kind", [*FLAGS, "read"])
def test_a_gap_costs_its_pixel_a_flag(source: Path, kind: str, how: str) -> None:
    path = source / "train" / "17" / "FGS1_calibration" / f"{kind}.parquet"
    y, x = BEGINNING
    before = gpucal.calibrate(gpucal.open_dataset(source)[17], "FGS1", CONFIG)
    with changed(path):
        row = 2 * 32 + y if kind == "linear_corr" else y
        pq.write_table(GAPS[how](pq.read_table(path), row, x), path)
        cal = gpucal.calibrate(gpucal.open_dataset(source)[17], "FGS1", CONFIG)
    others = np.ones((32, 32), bool)
    others[x] = how != "null of integers"  # which changes the whole column
    others[x, y] = False
    np.testing.assert_array_equal(cal.signal[:, others], before.signal[:, others])
    if kind == "read":
        np.testing.assert_array_equal(cal.signal, before.signal)
        np.testing.assert_array_equal(cal.dq, before.dq)
        assert np.isnan(cal.variance[:, x, y]).all()
        assert np.isnan(cal.variance).sum() == np.isnan(before.variance).sum() + len(cal.time)
    else:
        assert cal.dq[x, y] & FLAGS[kind]
        assert np.isnan(cal.signal[:, x, y]).all()
        assert np.isnan(cal.variance[:, x, y]).all()
        assert cal.mask[x, y]
        assert np.isfinite(cal.light_curve()).all()


@pytest.mark.parametrize("gap", [np.nan, None], ids=["nan", "null"])
@pytest.mark.parametrize("kind", ["dark", "flat", "linear_corr", "read"])
def test_a_frame_without_a_value_is_an_error(source: Path, kind: str, gap: float | None) -> None:
    path = source / "train" / "17" / "AIRS-CH0_calibration" / f"{kind}.parquet"
    with changed(path):
        table = pq.read_table(path)
        rows, first = table.num_rows, table.num_rows - 32  # the last power of the linearity, or all there is
        gaps = pa.array([gap] * 32, pa.float64())
        whole = {name: [*table[name].slice(0, first).chunks, gaps] for name in table.column_names}
        pq.write_table(pa.table({name: pa.chunked_array(chunks) for name, chunks in whole.items()}), path)
        assert pq.read_metadata(path).num_rows == rows
        with pytest.raises(InputError) as error:
            gpucal.calibrate(gpucal.open_dataset(source)[17], "AIRS-CH0", CONFIG)
    assert str(error.value) == (
        f"planet 17 visit 0 AIRS-CH0: {path}: has a frame without a value: all are null or NaN; "
        "copy it again from the competition data"
    )


def test_a_column_of_no_type_is_one_of_nulls(source: Path) -> None:
    """pandas writes a column of None so."""
    path = source / "train" / "17" / "FGS1_calibration" / "flat.parquet"
    with changed(path):
        frame = pd.read_parquet(path)
        frame["column_5"] = None
        frame.to_parquet(path)
        assert pa.types.is_null(pq.read_schema(path).field("column_5").type)
        cal = gpucal.calibrate(gpucal.open_dataset(source)[17], "FGS1", CONFIG)
    assert (cal.dq[5] & DQ.BAD_FLAT).all()


MAPS = {
    "int8": lambda dead: dead.astype(np.int8),
    "uint64": lambda dead: dead.astype(np.uint64),
    "float64": lambda dead: dead.astype(np.float64),
    "float32": lambda dead: dead.astype(np.float32),
}


@pytest.mark.parametrize("kind", MAPS)
def test_a_dead_map_of_numbers(source: Path, kind: str) -> None:
    path = source / "train" / "17" / "AIRS-CH0_calibration" / "dead.parquet"
    folder = path.parent
    expected = read_frames(read_raw_frames(folder), folder, AIRS).dead
    with changed(path):
        stored = np.stack([column.to_numpy() for column in pq.read_table(path).columns], axis=1)
        write_table(path, MAPS[kind](stored))
        found = read_frames(read_raw_frames(folder), folder, AIRS)
    np.testing.assert_array_equal(found.dead, expected)
    assert found.dead.dtype == np.bool_
    assert expected.any()


NO_MAPS: Mapping[str, tuple[NDArray[np.generic] | pa.Array, str]] = {
    "two": (np.full(32, 2, np.int8), "holds 2, expected a map of dead pixels: bool, or 0 and 1"),
    "half": (np.full(32, 0.5), "holds 0.5, expected a map"),
    "minus one": (np.full(32, -1), "holds -1, expected a map"),
    "nan": (np.full(32, np.nan), "holds nan, expected a map"),
    "null": (pa.array([None] * 32, pa.int8()), "holds nulls"),
    "null of bool": (pa.array([None] * 32, pa.bool_()), "holds nulls"),
    "text": (pa.array(["True"] * 32), "holds string, expected bool, or 0 and 1"),
    "nothing": (pa.nulls(32), "holds null, expected bool, or 0 and 1"),
}


@pytest.mark.parametrize("name", NO_MAPS)
@pytest.mark.parametrize("place", [0, 100], ids=["outside the crop", "inside"])
def test_no_dead_map(source: Path, place: int, name: str) -> None:
    path = source / "train" / "17" / "AIRS-CH0_calibration" / "dead.parquet"
    column, says = NO_MAPS[name]
    with changed(path):
        pq.write_table(pq.read_table(path).set_column(place, f"column_{place}", [column]), path)
        with pytest.raises(InputError) as error:
            read_frames(read_raw_frames(path.parent), path.parent, AIRS)
    assert says in str(error.value)
    assert str(path) in str(error.value)


def pandas_index(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame.set_axis([*range(len(frame), 0, -1)]))


def named_index(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame.rename_axis(index="row").set_axis(np.arange(len(frame)) * 0.5))


def two_indices(frame: pd.DataFrame) -> pa.Table:
    frame = frame.copy()
    frame.index = pd.MultiIndex.from_arrays([np.arange(len(frame)), ["a"] * len(frame)], names=[None, "letter"])
    return pa.Table.from_pandas(frame)


def without_notes(frame: pd.DataFrame) -> pa.Table:
    """Another library has read pandas' file and written it again."""
    return pandas_index(frame).replace_schema_metadata(None)


def in_front(frame: pd.DataFrame) -> pa.Table:
    table = without_notes(frame)
    return table.select([table.num_columns - 1, *range(table.num_columns - 1)])


def reset(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame.reset_index())


def by_csv(frame: pd.DataFrame) -> pa.Table:
    """As `to_csv` and `read_csv` without an index give it."""
    frame = frame.copy()
    frame.insert(0, "Unnamed: 0", np.arange(len(frame)))
    return pa.Table.from_pandas(frame)


HOW = (pandas_index, named_index, two_indices, without_notes, in_front, reset, by_csv)
INDICES = {made.__name__: made for made in HOW}


@pytest.mark.parametrize("how", INDICES)
@pytest.mark.parametrize("file", ["flat", "dead", "linear_corr", "signal"])
def test_an_index_is_no_pixel(source: Path, file: str, how: str) -> None:
    home = source / "train" / "17"
    path = home / "FGS1_signal.parquet" if file == "signal" else home / "FGS1_calibration" / f"{file}.parquet"
    before = gpucal.calibrate(gpucal.open_dataset(source)[17], "FGS1", CONFIG)
    with changed(path):
        table = INDICES[how](pd.read_parquet(path))
        width = len(pq.read_schema(path))
        pq.write_table(table, path)
        assert pq.read_metadata(path).num_columns > width
        cal = gpucal.calibrate(gpucal.open_dataset(source)[17], "FGS1", CONFIG)
    np.testing.assert_array_equal(cal.signal, before.signal)
    np.testing.assert_array_equal(cal.dq, before.dq)


@pytest.fixture
def unread(old: Made, tmp_path: Path) -> Path:
    """A copy without any read.parquet."""
    raw = shutil.copytree(old[0], tmp_path / "unread")
    for path in raw.rglob("read.parquet"):
        path.unlink()
    return raw


def test_without_read_noise_only_errors_are_missing(
    unread: Path, planets: gpucal.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = gpucal.open_dataset(unread)
    for name in DETECTORS:
        cal, expected = gpucal.calibrate(dataset[17], name, CONFIG), gpucal.calibrate(planets[17], name, CONFIG)
        np.testing.assert_array_equal(cal.signal, expected.signal)
        np.testing.assert_array_equal(cal.dq, expected.dq)
        np.testing.assert_array_equal(cal.light_curve(), expected.light_curve())
        assert np.isnan(cal.variance).all()
        assert np.isnan(cal.light_curve_with_errors().error).all()
        with pytest.raises(
            ConfigError, match=r"weights = 'variance' need read\.parquet, which is missing; use 'plain'"
        ):
            cal.light_curve(weights="variance")
    (line,) = caplog.messages
    assert "AIRS-CH0_calibration/read.parquet: read noise is missing; copy it again from the competition data; " in line
    assert "until then errors and variances are NaN" in line


def test_a_run_without_read_noise(
    unread: Path, planets: gpucal.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = gpucal.open_dataset(unread)
    summary = gpucal.run(dataset, tmp_path / "cubes", CONFIG)
    assert (summary.done, summary.failed) == (4, {})
    assert len(caplog.messages) == 1
    assert caplog.messages[0] in (tmp_path / "cubes" / "gpucal.log").read_text()
    cubes = gpucal.open_results(tmp_path / "cubes")
    assert np.isnan(cubes.light_curves_with_errors().error).all()
    assert np.isfinite(cubes.light_curves_with_errors().flux).any()
    (told,) = {json.dumps(record["quality"]["expected_ppm"]) for record in records(tmp_path / "cubes")}
    assert told == "null"
    assert len(caplog.messages) == 1
    summary = gpucal.run(dataset, tmp_path / "curves", CONFIG, product="light-curves", dtype=float)
    assert (summary.done, summary.failed) == (4, {})
    curve = gpucal.open_results(tmp_path / "curves").light_curve_with_errors((17, 0), "FGS1")
    expected = gpucal.calibrate(planets[17], "FGS1", CONFIG).light_curve()
    np.testing.assert_array_equal(curve.flux, expected)
    assert np.isnan(curve.error).all()


REFUSED = {
    "--variance": "which --variance needs; copy it from the competition data, or calibrate without it",
    "--weights=variance": "which --weights variance needs; copy it from the competition data, or calibrate --weights",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_what_needs_the_read_noise_is_refused_by_name(
    unread: Path, old: Made, tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(
        old[0] / "train" / "17" / "FGS1_calibration" / "read.parquet", unread / "train" / "17" / "FGS1_calibration"
    )
    bins = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]
    assert main(["calibrate", str(unread), str(tmp_path / "out"), *bins, flag]) == 1
    said = capsys.readouterr().err
    assert said.count(REFUSED[flag]) == 3
    assert "planet 17 visit 0 FGS1" not in said


@pytest.mark.parametrize("ending", [".zip", ".gz"])
def test_packed_read_noise_is_named(unread: Path, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    (unread / "train" / "17" / "FGS1_calibration" / f"read.parquet{ending}").touch()
    gpucal.calibrate(gpucal.open_dataset(unread)[17], "FGS1", CONFIG)
    assert f"read noise is missing, but read.parquet{ending} is there; " in caplog.messages[0]


@pytest.mark.parametrize("kind", ["dark", "dead", "flat", "linear_corr"])
def test_the_other_frames_are_needed(unread: Path, kind: str) -> None:
    (unread / "train" / "17" / "FGS1_calibration" / f"{kind}.parquet").unlink()
    with pytest.raises(InputError, match=f"{kind}.parquet: calibration file is missing"):
        gpucal.calibrate(gpucal.open_dataset(unread)[17], "FGS1", CONFIG)


@pytest.fixture
def timeless(old: Made, tmp_path: Path) -> Path:
    """A copy without axis_info.parquet."""
    return shutil.copytree(old[0], tmp_path / "timeless", ignore=shutil.ignore_patterns("axis_info.parquet"))


@pytest.mark.parametrize("integration", ["notebook", "updated"])
def test_without_axes_the_documented_ones_do(
    timeless: Path, planets: gpucal.Dataset, integration: str, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, config = gpucal.open_dataset(timeless), CONFIG.replace(integration=integration)
    for name in DETECTORS:
        cal, expected = gpucal.calibrate(dataset[17], name, config), gpucal.calibrate(planets[17], name, config)
        np.testing.assert_array_equal(cal.signal, expected.signal)
        np.testing.assert_allclose(np.diff(cal.time), np.diff(expected.time), rtol=1e-9)
        assert cal.wavelength is None
        cal.to_xarray()
        cal.to_nddata()
    (line,) = caplog.messages
    assert line == (
        f"{timeless}: no axis_info.parquet, so times are the documented ones, from the first read, and wavelengths are "
        "not known; copy it from the competition data"
    )


@pytest.mark.parametrize("bins", [{"AIRS-CH0": "33.6 s"}, {"FGS1": "6.4s"}], ids=str)
def test_bins_in_seconds_need_no_file(timeless: Path, planets: gpucal.Dataset, bins: dict[str, str]) -> None:
    (name,) = bins
    cal = gpucal.calibrate(gpucal.open_dataset(timeless)[17], name, Calibration(bins=bins))
    assert cal.plan is not None
    assert cal.plan.pairs_per_bin == BINS[name]


def test_without_axes_from_beginning_to_end(timeless: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bins = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]
    assert main(["calibrate", str(timeless), str(out), *bins, "--variance"]) == 0
    assert main(["verify", str(out)]) == 0
    for form in ("npy", "fits", "zarr"):
        assert main(["export", str(out), str(tmp_path / form), "--format", form]) == 0
    assert json.loads((tmp_path / "npy" / "AIRS-CH0.json").read_text())["ids"] == [[17, 0], [23, 0]]
    with fits.open(tmp_path / "fits" / "17-0-AIRS-CH0.fits") as opened:
        assert "WAVELENGTH" not in opened
        assert len(opened["TIME"].data) == 4
    assert main(["calibrate", str(timeless), str(tmp_path / "curves"), *bins, "--product=light-curves"]) == 0
    to = ["--product=light-curves", "--format=parquet"]
    assert main(["export", str(tmp_path / "curves"), str(tmp_path / "tables"), *to]) == 0
    assert pq.read_metadata(tmp_path / "tables" / "light-curves.parquet").num_rows == 8


def test_more_frames_than_are_documented_are_refused(timeless: Path, tmp_path: Path) -> None:
    path = timeless / "train" / "17" / "AIRS-CH0_signal.parquet"
    write_table(path, np.ones((11_252, AIRS.n_columns), np.uint16))
    config = Calibration(bins={"AIRS-CH0": 2813, "FGS1": 16})
    with pytest.warns(RunWarning):
        summary = gpucal.run(gpucal.open_dataset(timeless), tmp_path / "out", config, planets=17)
    assert "has 11252 frames, but" in summary.failed["planet 17 visit 0 AIRS-CH0"]
