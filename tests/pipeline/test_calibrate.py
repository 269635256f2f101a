"""From files to `Calibrated`: the reference's numbers, for every number of threads and size of blocks."""

from __future__ import annotations

import hashlib
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import BINS, Made
from reference import assert_close

import gpucal
from gpucal import Calibration
from gpucal.errors import BackendUnavailable, ConfigError, InputError
from gpucal.pipeline import memory as budget
from gpucal.pipeline import stream

DETECTORS = ("AIRS-CH0", "FGS1")
CONFIGS = {
    "defaults": Calibration(bins=BINS),
    "updated mean": Calibration(bins=BINS, integration="updated", reduce="mean"),
    "no binning": Calibration(binning=False),
    "nothing": Calibration(mask=False, linearity=False, dark=False, flat=False, binning=False),
    "clipped": Calibration(bins=BINS, clip_negatives=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("layout", ["old", "new"])
def test_files_to_the_reference(
    layout: str, detector: str, config: Calibration, request: pytest.FixtureRequest
) -> None:
    folder, made = request.getfixturevalue(layout)
    for key, pair in made.items():
        cal = gpucal.calibrate(gpucal.open_dataset(folder)[key], detector, config)
        expected = pair[detector].reference(config.filled({"old": "ariel2024", "new": "ariel2025"}[layout]))
        assert (cal.planet, cal.visit) == key
        assert cal.signal.dtype == np.float64
        assert_close(cal.signal, expected)
        if config.mask:
            np.testing.assert_array_equal(cal.dq & gpucal.DQ.DEAD != 0, expected.dead.T)
            np.testing.assert_array_equal(cal.dq & gpucal.DQ.HOT != 0, expected.hot.T)


@pytest.mark.parametrize("detector", DETECTORS)
def test_float32_is_the_rounded_result(old: Made, detector: str) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    config = Calibration(bins=BINS)
    single = gpucal.calibrate(obs, detector, config, dtype="float32")
    assert single.signal.dtype == np.float32
    assert_close(single.signal, old[1][17, 0][detector].reference(config), rtol=1e-6)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(single.signal, gpucal.calibrate(obs, detector, config).signal.astype(np.float32))


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_threads_blocks_and_readers_do_not_change_a_bit(
    old: Made, detector: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    obs = gpucal.open_dataset(old[0])[23]
    config = Calibration(bins=BINS)
    whole = gpucal.calibrate(obs, detector, config, backend=backend, workers=1)
    for reader, (workers, block) in itertools.product(("auto", "pyarrow"), ((2, 6 * 2**20), (5, 1), (3, 10_000))):
        monkeypatch.setenv("GPUCAL_READER", reader)
        monkeypatch.setattr(stream, "COUNT_BLOCK", block)
        monkeypatch.setattr(budget, "PAGE_BLOCK", block)
        other = gpucal.calibrate(obs, detector, config, backend=backend, workers=workers)
        np.testing.assert_array_equal(other.signal, whole.signal)
        np.testing.assert_array_equal(other.dq, whole.dq)


@pytest.mark.parametrize("detector", DETECTORS)
def test_nan_marks_exactly_the_flagged_pixels(old: Made, detector: str) -> None:
    obs = gpucal.open_dataset(old[0])[17]
    keep = gpucal.calibrate(obs, detector, Calibration(bins=BINS))
    marked = gpucal.calibrate(obs, detector, Calibration(bins=BINS, bad_pixels="nan"))
    assert 0 < np.count_nonzero(marked.mask) < marked.mask.size
    np.testing.assert_array_equal(np.isnan(marked.signal), np.broadcast_to(marked.mask, marked.signal.shape))
    np.testing.assert_array_equal(marked.signal[:, ~marked.mask], keep.signal[:, ~keep.mask])
    np.testing.assert_array_equal(marked.dq, keep.dq)


def test_what_comes_with_the_signal(new: Made) -> None:
    obs = gpucal.open_dataset(new[0])[5, 1]
    config = Calibration(bins=BINS, integration="updated")
    airs = gpucal.calibrate(obs, "AIRS-CH0", config, backend="numpy")
    fgs1 = gpucal.calibrate(obs, "FGS1", config)
    assert airs.signal.shape == (4, 282, 32)
    assert fgs1.signal.shape == (4, 32, 32)
    assert airs.dq.shape == (282, 32)
    assert airs.dq.dtype == np.uint8
    assert airs.wavelength is not None
    np.testing.assert_array_equal(airs.wavelength, np.linspace(4.08, 1.63, 356)[39:321])
    assert fgs1.wavelength is None
    steps = np.cumsum(np.resize([0.1, 4.7], 56)) / 3600
    np.testing.assert_allclose(airs.time, steps.reshape(4, 14).mean(axis=1))
    assert airs.provenance["backend"] == "numpy"
    assert airs.provenance["device"].startswith("NumPy ")
    assert airs.provenance["version"] == gpucal.__version__
    assert airs.provenance["settings"] == config.to_dict()
    assert airs.provenance["settings_hash"] == config.content_hash
    copy = pickle.loads(pickle.dumps(airs))
    np.testing.assert_array_equal(copy.signal, airs.signal)
    assert copy.detector == airs.detector


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_variance_is_the_formula(old: Made, detector: str, reduce: str) -> None:
    config = Calibration(bins=BINS, reduce=reduce, integration="updated")
    obs = old[1][17, 0][detector]
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], detector, config)
    cut = (slice(None), slice(*obs.detector.crop))
    before_dark = obs.reference(config.replace(dark=False, flat=False, reduce="sum")).signal
    flat = np.where(obs.dead, 1.0, obs.flat)[cut].T
    pairs = BINS[detector]
    with np.errstate(all="ignore"):
        expected = (np.maximum(before_dark, 0) + 2 * pairs * obs.read[cut].T ** 2) / flat**2
        expected /= pairs**2 if reduce == "mean" else 1
    good = ~cal.mask
    assert cal.variance.shape == cal.signal.shape
    np.testing.assert_allclose(cal.variance[:, good], expected[:, good], rtol=1e-9)


@pytest.mark.parametrize(("detector", "width"), [("AIRS-CH0", 282), ("FGS1", 1)])
def test_light_curves_are_sums_over_good_pixels(old: Made, detector: str, width: int) -> None:
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], detector, Calibration(bins=BINS))
    curve = cal.light_curve()
    assert curve.shape == (4, width)
    for time in range(4):
        for column in range(width):
            pixels = (cal.signal[time], cal.dq) if width == 1 else (cal.signal[time, column], cal.dq[column])
            good = pixels[0][pixels[1] == 0]
            assert good.size > 0
            assert curve[time, column] == pytest.approx(good.sum(), rel=1e-12)


def test_a_column_without_good_pixels_is_nan(old: Made) -> None:
    cal = gpucal.calibrate(gpucal.open_dataset(old[0])[17], "AIRS-CH0", Calibration(bins=BINS))
    cal.dq[3] |= 1
    curve = cal.light_curve()
    np.testing.assert_array_equal(np.isnan(curve).any(axis=0), np.arange(282) == 3)


def test_stream_is_in_order(new: Made) -> None:
    dataset = gpucal.open_dataset(new[0])
    config = Calibration(bins=BINS)
    streamed = list(gpucal.stream(dataset, "FGS1", config))
    assert [(cal.planet, cal.visit) for cal in streamed] == [(5, 0), (5, 1)]
    for cal in streamed:
        alone = gpucal.calibrate(dataset[cal.planet, cal.visit], "FGS1", config)
        np.testing.assert_array_equal(cal.signal, alone.signal)
    assert list(gpucal.stream([], "FGS1")) == []


def test_inputs_are_left_alone(old: Made) -> None:
    def digests() -> dict[Path, str]:
        files = [path for path in sorted(old[0].rglob("*")) if path.is_file()]
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    gpucal.calibrate(gpucal.open_dataset(old[0])[17], "FGS1", Calibration(bins=BINS))
    assert digests() == before


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"detector": "AIRS"}, ConfigError, "no detector 'AIRS'"),
        ({"dtype": "int32"}, ConfigError, "dtype = int32"),
        ({"dtype": "nonsense"}, ConfigError, "dtype = 'nonsense': must be float32 or float64"),
        ({"dtype": "f4,("}, ConfigError, "must be float32 or float64"),
        ({"workers": 0}, ConfigError, "workers = 0"),
        ({"workers": "2"}, ConfigError, "workers = '2': must be an integer above 0"),
        ({"workers": 1.5}, ConfigError, "workers = 1.5: must be an integer above 0"),
        ({"workers": True}, ConfigError, "workers = True: must be an integer above 0"),
        ({"backend": "numpi"}, ConfigError, "backend = 'numpi'"),
        ({"device": True, "backend": "numpy"}, BackendUnavailable, "device=False"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_impossible_requests(old: Made, wrong: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        gpucal.calibrate(gpucal.open_dataset(old[0])[17], **({"detector": "FGS1"} | wrong))
    assert "\n" not in str(caught.value)


def test_too_few_frames_for_a_default_bin_says_what_to_do(old: Made) -> None:
    with pytest.raises(InputError) as caught:
        gpucal.calibrate(gpucal.open_dataset(old[0])[17], "FGS1")
    line = str(caught.value)
    assert line.startswith("planet 17 visit 0 FGS1: ")
    assert "has 140 frames, fewer than the 720 of one bin" in line
    assert line.endswith("use smaller bins, as in --bin FGS1=70")
