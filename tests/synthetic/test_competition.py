"""The forward model: layouts, physics, statistics and reproducibility, at sizes that take seconds."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.stats import sigma_clip
from numpy.polynomial.polynomial import polyval

import gpucal
from gpucal.errors import ConfigError, DatasetError, OutputError
from gpucal.results.export import export
from gpucal.settings.detectors import DETECTORS, Detector
from gpucal.synthetic import competition, scene
from gpucal.synthetic.competition import Truth, synthesize

AIRS, FGS1 = DETECTORS["AIRS-CH0"], DETECTORS["FGS1"]
KINDS = ("dark", "dead", "flat", "linear_corr", "read")
SMALL = 24


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def columns(path: Path) -> np.ndarray:
    return np.stack([column.to_numpy() for column in pq.read_table(path).columns], axis=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.suffix != ".npz"}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    out = tmp_path_factory.mktemp("y2024")
    return out, synthesize(out, planets=2, frames=SMALL, seed=5, splits=("train", "test"), workers=1)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    out = tmp_path_factory.mktemp("y2025") / "made"
    return out, synthesize(out, layout="2025", frames=480, seed=1, visits=2)


def calibrated(out: Path, planet: int, detector: Detector, bins: int) -> tuple[np.ndarray, Truth, np.ndarray]:
    """The organisers' steps in double precision with the true integration times, and the raw reads."""
    folder = out / "train" / str(planet)
    raw = columns(folder / f"{detector.name}_signal_0.parquet").reshape(-1, *detector.shape)
    frames = {kind: columns(folder / f"{detector.name}_calibration_0" / f"{kind}.parquet") for kind in KINDS}
    truth = Truth.load(out / "truth" / str(planet) / "0" / f"{detector.name}.npz")
    linear = frames["linear_corr"].reshape(6, *detector.shape)
    dark = np.where(frames["dead"], 0, frames["dark"])
    flat = np.where(frames["dead"], 1, frames["flat"])
    charge = polyval(raw / truth.gain + truth.offset, linear[:, None], tensor=False)
    charge -= dark * np.resize(detector.true_integration_s, len(raw))[:, None, None]
    cds = (charge[1::2] - charge[::2]) / flat
    cube = cds.reshape(bins, -1, *detector.shape).sum(axis=1)[:, :, slice(*detector.crop)]
    return cube.transpose(0, 2, 1), truth, raw


def test_layout_2024(old: tuple[Path, list[int]]) -> None:
    out, ids = old
    assert len(set(ids)) == 4
    assert all(10_000 <= planet < 2**32 for planet in ids)
    for split, of_split in (("train", ids[:2]), ("test", ids[2:])):
        assert {int(p.name) for p in (out / split).iterdir()} == set(of_split)
        rows = table(out / f"{split}_adc_info.csv")
        assert ",".join(rows[0]) == "planet_id,FGS1_adc_offset,FGS1_adc_gain,AIRS-CH0_adc_offset,AIRS-CH0_adc_gain,star"
        assert [int(row["planet_id"]) for row in rows] == of_split
        for row in rows:
            low, high = ((1.496, 1.526), (0.923, 0.940))[int(row["star"])]
            assert low <= float(row["AIRS-CH0_adc_gain"]) <= high
            assert -493 <= float(row["FGS1_adc_offset"]) <= -313
        for name in DETECTORS:
            first, second = (out / split / str(planet) / f"{name}_calibration" for planet in of_split)
            assert sorted(p.stem for p in first.iterdir()) == sorted(KINDS)
            assert contents(first) == contents(second)
    assert not (out / "test_labels.csv").exists()
    assert not (out / "adc_info.csv").exists()


def test_labels_are_the_depths(old: tuple[Path, list[int]]) -> None:
    out, ids = old
    um = np.array([float(v) for v in table(out / "wavelengths.csv")[0].values()])
    labels = table(out / "train_labels.csv")
    assert [int(row.pop("planet_id")) for row in labels] == ids[:2]
    assert um.shape == (283,)
    assert list(labels[0]) == [f"wl_{k}" for k in range(1, 284)]
    axis = pq.read_table(out / "axis_info.parquet")["AIRS-CH0-axis2-um"].to_numpy()
    np.testing.assert_array_equal(um[1:], axis[39:321])
    for planet, row in zip(ids[:2], labels, strict=True):
        depth = np.array([float(v) for v in row.values()])
        assert 0.004 < depth.min() < depth.max() < 0.016
        fgs1, airs = (Truth.load(out / "truth" / str(planet) / "0" / f"{name}.npz") for name in ("FGS1", "AIRS-CH0"))
        np.testing.assert_array_equal(fgs1.depth, np.full(32, depth[0]))
        np.testing.assert_array_equal(airs.depth[slice(*AIRS.crop)], depth[1:])


def test_axis_info(old: tuple[Path, list[int]]) -> None:
    stored = pq.read_table(old[0] / "axis_info.parquet")
    axes = {name: stored[name].to_numpy() for name in stored.column_names}
    assert all(axis.dtype == np.float64 and axis.shape == (356,) for axis in axes.values())
    airs, fgs1 = axes["AIRS-CH0-axis0-h"], axes["FGS1-axis0-h"]
    assert np.isfinite(airs).sum() == SMALL
    assert np.isfinite(fgs1).sum() == 12 * SMALL
    np.testing.assert_allclose(np.diff(airs[:5]) * 3600, [0.1, 4.7, 0.1, 4.7], atol=1e-9)
    np.testing.assert_allclose(np.diff(fgs1[:5]) * 3600, [0.1, 0.3, 0.1, 0.3], atol=1e-9)
    np.testing.assert_array_equal(axes["AIRS-CH0-integration_time"][:4], [0.1, 4.5, 0.1, 4.5])
    um = axes["AIRS-CH0-axis2-um"]
    np.testing.assert_allclose(um[[0, 1, -2, -1]], [4.07846314, 4.07402259, 1.64258801, 1.63325272], atol=2e-5)
    assert (np.diff(um) < 0).all()


def test_layout_2025(new: tuple[Path, list[int]]) -> None:
    out, (planet,) = new
    names = {p.name for p in (out / "train" / str(planet)).iterdir()}
    assert names == {
        f"{d}_{what}" for d in DETECTORS for k in (0, 1) for what in (f"signal_{k}.parquet", f"calibration_{k}")
    }
    (adc,) = table(out / "adc_info.csv")
    assert {k: float(v) for k, v in adc.items()} == {
        f"{d}_adc_{what}": value for d in DETECTORS for what, value in (("offset", -1000.0), ("gain", 0.4369))
    }
    assert [int(row["planet_id"]) for row in table(out / "train.csv")] == [planet]
    assert list(table(out / "train_star_info.csv")[0]) == ["planet_id", "Rs", "Ms", "Ts", "Mp", "e", "P", "sma", "i"]
    first, second = (pq.read_table(out / "train" / str(planet) / f"FGS1_signal_{k}.parquet") for k in (0, 1))
    assert not first.equals(second)


def test_signal_files(new: tuple[Path, list[int]]) -> None:
    out, (planet,) = new
    for detector, frames in ((AIRS, 480), (FGS1, 5760)):
        stored = pq.ParquetFile(out / "train" / str(planet) / f"{detector.name}_signal_0.parquet")
        assert stored.num_row_groups == 1
        assert stored.metadata.num_rows == frames
        assert stored.schema_arrow.names == [f"column_{k}" for k in range(detector.n_columns)]
        assert {str(kind) for kind in stored.schema_arrow.types} == {"uint16"}
        column = stored.metadata.row_group(0).column(0)
        assert column.compression == "ZSTD"
        assert not column.has_dictionary_page  # the footer does not say so
        assert stored.metadata.created_by == "Polars"
    linear = pq.read_table(out / "train" / str(planet) / "AIRS-CH0_calibration_0" / "linear_corr.parquet")
    assert (linear.num_rows, linear.num_columns) == (192, 356)


@pytest.mark.parametrize("detector", DETECTORS.values(), ids=DETECTORS)
def test_calibrating_gives_the_truth_back(new: tuple[Path, list[int]], detector: Detector) -> None:
    out, (planet,) = new
    bins = 8
    cube, truth, _ = calibrated(out, planet, detector, bins)
    signal, variance = truth.expected(detector, truth.shape.size // bins)
    assert signal.shape == variance.shape == cube.shape == (bins, detector.width, 32)
    assert signal.dtype == variance.dtype == np.float64
    z = (cube - signal) / np.sqrt(variance)
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert z.std() == pytest.approx(1, abs=6 / np.sqrt(2 * z.size))
    assert np.abs(z).max() < 6.5
    bright = signal.mean(axis=0) > 0.2 * signal.max()
    assert z[:, bright].std() == pytest.approx(1, abs=6 / np.sqrt(2 * bright.sum() * bins))
    assert abs(z[:, bright].mean()) < 5 / np.sqrt(bright.sum() * bins)


def test_statistics_are_those_of_the_real_frames(new: tuple[Path, list[int]]) -> None:
    out, (planet,) = new
    for detector, even, odd, peak in ((AIRS, 452, 1128, 26871), (FGS1, 531, 625, 23892)):
        _, truth, raw = calibrated(out, planet, detector, 8)
        assert raw[::2].mean() == pytest.approx(even, abs=5)
        assert raw[1::2].mean() == pytest.approx(odd, rel=0.08)
        assert raw.max() == pytest.approx(peak, rel=0.08)
        if detector is AIRS:
            below = raw[:, :, slice(*AIRS.crop)] / truth.gain + truth.offset < 0
            assert below.mean() == pytest.approx(0.16, abs=0.02)


def test_start_and_end_reads_share_their_charge(new: tuple[Path, list[int]]) -> None:
    _, truth, raw = calibrated(new[0], new[1][0], FGS1, 8)
    y, x = np.unravel_index(truth.rate.argmax(), truth.rate.shape)
    quiet = np.flatnonzero(truth.shape == 0)
    start, end = raw[2 * quiet, y, x].astype(float), raw[2 * quiet + 1, y, x].astype(float)
    assert np.corrcoef(start, end)[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.06)
    shot = np.sqrt(end.mean() / truth.gain + truth.offset)
    assert np.diff(end).std() / np.sqrt(2) / truth.gain == pytest.approx(shot, rel=0.1)


def test_dead_pixels_hold_noise_only(new: tuple[Path, list[int]]) -> None:
    cube, truth, raw = calibrated(new[0], new[1][0], AIRS, 8)
    assert (truth.rate[truth.dead] == 0).all()
    signal, variance = truth.expected(AIRS, 30)
    at = truth.dead[:, slice(*AIRS.crop)].T
    assert at.any()
    assert (signal[:, at] == 0).all()
    assert (np.abs(cube[:, at]) < 6 * np.sqrt(variance[:, at])).all()
    assert raw[1::2][:, truth.dead].mean() < 600


def test_2024_peak_stays_below_the_ceiling(old: tuple[Path, list[int]]) -> None:
    peaks = {p.name: int(columns(p).max()) for p in old[0].glob("train/*/*_signal.parquet")}
    assert all(30_000 < peak < 60_000 for peak in peaks.values()), peaks


@pytest.mark.parametrize(
    ("series", "name", "dead", "hot"),
    [
        ("2024-train", "AIRS-CH0", 15, 48),
        ("2024-train", "FGS1", 1, 1),
        ("2024-test", "AIRS-CH0", 32, 95),
        ("2025", "AIRS-CH0", 12, 82),
        ("2025", "FGS1", 3, 11),
    ],
)
def test_calibration_statistics(series: str, name: str, dead: int, hot: int) -> None:
    for seed in range(3):
        detector = DETECTORS[name]
        frames = scene.draw_frames(np.random.default_rng(seed), detector, series)
        found = sigma_clip(frames.dark[:, slice(*detector.crop)], sigma=5, maxiters=5).mask
        assert frames.dead.sum() == dead
        assert found.sum() == pytest.approx(hot, abs=2)
        assert np.median(frames.dark) == pytest.approx(0.0068, abs=6e-4)
        assert np.median(frames.read) == pytest.approx(13.2, abs=0.5)
        assert 1 <= (frames.flat <= 0).sum() <= 13
        assert np.median(frames.linear[1]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", DETECTORS)
def test_inverse_linearity(name: str) -> None:
    frames = scene.draw_frames(np.random.default_rng(3), DETECTORS[name], "2024-train")
    linear = frames.linear.reshape(6, -1)
    low, high = np.full(linear.shape[1], -100.0), np.full(linear.shape[1], 64_000.0)
    inverse = scene.invert_linearity(linear, low, high)
    s = np.linspace(-1, 1, 301)[:, None]
    q = 0.5 * (low + high) + 0.5 * (high - low) * s
    error = polyval(q + polyval(np.broadcast_to(s, q.shape), inverse, tensor=False), linear, tensor=False) - q
    sane = np.abs(linear[0]) < 5
    assert sane.mean() > 0.98
    assert np.abs(error[:, sane]).max() < 0.01
    assert np.abs(error).max() < 5


def test_inverse_of_senseless_coefficients_is_finite() -> None:
    linear = np.array(
        [[0, 1e9, np.nan, 5], [-1, 0, 1, 1], [1e-3, 0, 0, -1e-4], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    inverse = scene.invert_linearity(linear, np.full(4, -90.0), np.full(4, 60_000.0))
    assert np.isfinite(inverse).all()


def test_transit_shape() -> None:
    target = scene.draw_target(np.random.default_rng(0))
    phase = np.linspace(0, 1, 1001)
    shape = target.shape(phase)
    assert shape.min() == 0
    assert shape.max() == pytest.approx(1, abs=1e-3)
    assert (shape[np.abs(phase - target.centre) > target.half_duration + 1e-3] == 0).all()
    falling = shape[phase > target.centre]
    assert (np.diff(falling) <= 1e-12).all()


@pytest.mark.parametrize(
    ("level", "drop"), [(0.01, 0.0001), (0.3, 0.004), (6.0, 0.08), (24.0, 0.3), (26.0, 0.3), (900.0, 9.0)]
)
def test_arrivals_are_poisson(level: float, drop: float) -> None:
    shape = np.repeat([0.0, 1.0], 40_000)
    out = np.empty((1, shape.size), dtype=np.float32)
    scene._arrivals(np.random.default_rng(2), np.array([level]), np.array([drop]), shape, out)
    for part, mean in ((out[0, :40_000], level), (out[0, 40_000:], level - drop)):
        assert part.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / 40_000))
        assert part.var() == pytest.approx(mean, abs=5 * np.sqrt((mean + 2 * mean**2) / 40_000) + 0.1 * (mean > 24))
        np.testing.assert_array_equal(part, np.rint(part))


@pytest.mark.slow
def test_result_does_not_depend_on_threads_and_does_on_seed(tmp_path: Path) -> None:
    runs = {}
    for name, seed, workers in (("one", 3, 1), ("two", 3, 2), ("other", 4, 2)):
        ids = synthesize(tmp_path / name, layout="2025", frames=120, seed=seed, workers=workers)
        runs[name] = contents(tmp_path / name)
        assert len(ids) == 1
    assert runs["one"] == runs["two"]
    assert runs["one"] != runs["other"]


def test_ids_are_spread_as_real_ones_are() -> None:
    ids = competition._draw_ids(3, 1100)
    assert len(set(ids)) == 1100
    assert all(10_000 <= planet < 2**32 for planet in ids)
    assert 460 < sum(planet >= 2**31 for planet in ids) < 640
    assert competition._draw_ids(3, 1100) == ids != competition._draw_ids(4, 1100)


@pytest.mark.slow
def test_ids_of_more_than_31_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competition, "_IDS", (2**32 - 2, 2**32))
    ids = synthesize(tmp_path / "raw", planets=2, frames=24)
    assert sorted(ids) == [2**32 - 2, 2**32 - 1]
    dataset = gpucal.open_dataset(tmp_path / "raw")
    assert dataset.planets == sorted(ids)
    config = gpucal.Calibration(bins={"AIRS-CH0": 3, "FGS1": 36})
    summary = gpucal.run(dataset, tmp_path / "out", config, variance=True)
    assert not summary.failed
    keys = [(planet, 0) for planet in sorted(ids)]
    results = gpucal.open_results(tmp_path / "out")
    assert [tuple(key) for key in results.ids] == keys
    for form in ("npy", "parquet"):
        export(results, tmp_path / "to", form, "light-curves")
    np.testing.assert_array_equal(np.load(tmp_path / "to" / "light-curves.ids.npy"), keys)
    assert set(pq.read_table(tmp_path / "to" / "light-curves.parquet")["planet_id"].to_pylist()) == set(ids)


def test_smallest_and_progress(tmp_path: Path) -> None:
    lines: list[str] = []
    (planet,) = synthesize(tmp_path / "a", frames=2, progress=lines.append)
    assert len(lines) == 2
    assert pq.read_metadata(tmp_path / "a" / "train" / str(planet) / "FGS1_signal.parquet").num_rows == 24


def test_calibration_is_copied(old: tuple[Path, list[int]], tmp_path: Path) -> None:
    source, ids = old
    for name, folder in (("competition", source), ("planet", source / "train" / str(ids[0]))):
        (planet,) = synthesize(tmp_path / name, layout="2025", frames=2, calibration=folder)
        for detector in DETECTORS:
            there = source / "train" / str(ids[0]) / f"{detector}_calibration"
            copy = tmp_path / name / "train" / str(planet) / f"{detector}_calibration_0"
            assert contents(copy) == contents(there)


def test_truth_round_trip(old: tuple[Path, list[int]], tmp_path: Path) -> None:
    truth = Truth.load(old[0] / "truth" / str(old[1][0]) / "0" / "FGS1.npz")
    truth.save(tmp_path / "deep" / "copy.npz")
    again = Truth.load(tmp_path / "deep" / "copy.npz")
    for name in truth.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(truth, name))
    assert isinstance(again.gain, float)
    assert again.exposure_s.tolist() == [0.1, 0.2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 3},
        {"frames": 0},
        {"layout": "2023"},
        {"visits": 2},
        {"planets": 0},
        {"seed": -1},
        {"workers": 0},
        {"splits": ()},
        {"splits": ("valid",)},
    ],
    ids=str,
)
def test_impossible_settings(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        synthesize(tmp_path / "out", **wrong)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folders_in_use_or_without_calibration(old: tuple[Path, list[int]], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not an empty folder") as caught:
        synthesize(old[0], frames=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="AIRS-CH0 calibration") as missing:
        synthesize(tmp_path / "out", frames=2, calibration=tmp_path)
    assert "\n" not in str(missing.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        synthesize(tmp_path / "file", frames=2)
