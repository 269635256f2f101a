"""Synthetic observations from files to results: against the loops, against the notebook, and at full size.

Calibration frames are drawn; where GPUCAL_REAL_CALIBRATION names a competition folder, or one lies in
``shared/data/ariel2024-real`` beside the checkout, its real ones are used as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hostile import Observation
from measured import measured
from reference import assert_close

import gpucal
from gpucal import Calibration
from gpucal.settings.detectors import DETECTORS, Detector
from gpucal.synthetic.competition import Truth, synthesize

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("GPUCAL_REAL_CALIBRATION", ROOT.parent / "shared" / "data" / "ariel2024-real"))
CALIBRATIONS = {"drawn": None} | ({"real": REAL} if REAL.is_dir() else {})
PAIRS = {"AIRS-CH0": 25, "FGS1": 300}
CONFIG = Calibration(bins=PAIRS)


def observed(obs: gpucal.Observation, detector: Detector, columns: slice = slice(None)) -> Observation:
    """Read an observation for the reference, by nothing of the package; only some of the stored columns."""

    def table(path: Path) -> np.ndarray:
        return pq.read_table(path).to_pandas().to_numpy()

    rows, width = detector.shape
    maps = {
        kind: table(obs.calibration_path(detector) / f"{kind}.parquet").reshape(-1, rows, width)[..., columns]
        for kind in ("dark", "dead", "flat", "read", "linear_corr")
    }
    raw = table(obs.signal_path(detector)).reshape(-1, rows, width)[..., columns]
    linear_corr = maps.pop("linear_corr")
    return Observation(
        detector, raw, linear_corr=linear_corr, adc=obs.adc(detector), **{kind: v[0] for kind, v in maps.items()}
    )


@pytest.fixture(scope="module", params=CALIBRATIONS)
def short(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A planet of 110 AIRS-CH0 frames, with drawn or with real calibration frames."""
    out = tmp_path_factory.mktemp(request.param) / "raw"
    synthesize(out, frames=110, calibration=CALIBRATIONS[request.param])
    return request.param, out


@pytest.mark.parametrize("name", DETECTORS)
def test_calibrates_to_the_reference(short: tuple[str, Path], name: str) -> None:
    which, raw = short
    dataset = gpucal.open_dataset(raw)
    obs = dataset[dataset.planets[0]]
    expected = observed(obs, DETECTORS[name]).reference(CONFIG)
    cal = gpucal.calibrate(obs, name, CONFIG)
    assert_close(cal.signal, expected)
    np.testing.assert_array_equal(cal.dq & gpucal.DQ.DEAD != 0, expected.dead.T)
    np.testing.assert_array_equal(cal.dq & gpucal.DQ.HOT != 0, expected.hot.T)
    if which == "real":
        assert np.count_nonzero(expected.hot) == {"AIRS-CH0": 34, "FGS1": 1}[name]  # 48 without the crop


def test_does_the_same_work_as_the_notebook(tmp_path: Path) -> None:
    (planet,) = synthesize(tmp_path / "raw", frames=1200)
    notebook = [sys.executable, str(ROOT / "benchmarks" / "rivals" / "notebook.py"), str(tmp_path / "raw")]
    subprocess.run([*notebook, "--planet", str(planet), "--save", str(tmp_path / "notebook")], check=True)
    obs = gpucal.open_dataset(tmp_path / "raw")[planet]
    for name in DETECTORS:
        theirs = np.load(tmp_path / "notebook" / f"{name}.npy")
        cal = gpucal.calibrate(obs, name)
        sane = ~(cal.dq & (gpucal.DQ.BAD_LINEARITY | gpucal.DQ.BAD_FLAT)).astype(bool)
        assert sane.mean() > 0.98
        np.testing.assert_allclose(cal.signal[:, sane], theirs[:, sane], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(cal.signal, theirs, rtol=1e-6, atol=1e-3)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A planet of full size: 11250 and 135000 frames."""
    out = tmp_path_factory.mktemp("full") / "raw"
    (planet,) = synthesize(out, calibration=list(CALIBRATIONS.values())[-1])
    return out, planet


@pytest.mark.slow
def test_full_size(full: tuple[Path, int], tmp_path: Path) -> None:
    raw, planet = full
    report = measured("calibrate", raw, tmp_path / "out", "--integration", "updated")
    assert report["code"] == 0
    assert report["peak"] < 900e6
    results = gpucal.open_results(tmp_path / "out")
    assert results["AIRS-CH0"].load().shape == (1, 187, 282, 32)
    assert results["FGS1"].load().shape == (1, 187, 32, 32)
    assert results.light_curves().shape == (1, 187, 283)
    obs = gpucal.open_dataset(raw)[planet]
    for name, columns in (("AIRS-CH0", slice(150, 153)), ("FGS1", slice(15, 18))):
        detector = DETECTORS[name]
        signal, dq = results[name][0], results.dq(name)[0]
        truth = Truth.load(raw / "truth" / str(planet) / "0" / f"{name}.npz")
        expected, variance = truth.expected(detector, detector.bin_pairs)
        sigma = ((signal - expected) / np.sqrt(variance))[:, dq == 0]
        assert abs(sigma.mean()) < 5 / sigma.size**0.5
        assert sigma.std() == pytest.approx(1, abs=0.01)
        part = observed(obs, detector, columns)
        window = Observation(**(vars(part) | {"detector": _window(detector, columns)}))
        exact = window.reference(Calibration(integration="updated"))
        inside = slice(columns.start - detector.crop[0], columns.stop - detector.crop[0])
        assert_close(signal[:, inside], exact, rtol=1e-6)


def _window(detector: Detector, columns: slice) -> Detector:
    from dataclasses import replace

    width = columns.stop - columns.start
    return replace(detector, shape=(detector.shape[0], width), crop=(0, width))


@pytest.mark.slow
def test_full_size_without_binning(full: tuple[Path, int], tmp_path: Path) -> None:
    raw, planet = full
    report = measured("calibrate", raw, tmp_path / "out", "--no-binning")
    assert report["code"] == 0
    airs = np.load(tmp_path / "out" / str(planet) / "0" / "AIRS-CH0.signal.npy", mmap_mode="r")
    fgs1 = np.load(tmp_path / "out" / str(planet) / "0" / "FGS1.signal.npy", mmap_mode="r")
    assert airs.shape == (5625, 282, 32)
    assert fgs1.shape == (67_500, 32, 32)
    # The larger output is 276 MB; no float64 cube of 11250 frames, 812 MB, fits beside it.
    assert fgs1.nbytes == 276_480_000
    assert report["peak"] < 900e6 + fgs1.nbytes
    whole = gpucal.calibrate(gpucal.open_dataset(raw)[planet], "AIRS-CH0", dtype="float32").signal
    binned = airs[: 187 * 30].astype(np.float64).reshape(187, 30, 282, 32).sum(axis=1)
    good = np.isfinite(whole)
    np.testing.assert_allclose(binned[good], whole[good], rtol=1e-4, atol=0.1)
