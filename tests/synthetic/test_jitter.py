"""Synthetic pointing jitter: what real frames show comes out, and the truth says where the image was."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_competition import AIRS, FGS1, calibrated, contents

from gpucal.cli.main import main
from gpucal.settings.detectors import DETECTORS, Detector
from gpucal.synthetic import scene
from gpucal.synthetic.competition import Truth, synthesize


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    out = tmp_path_factory.mktemp("moved") / "raw"
    (planet,) = synthesize(out, layout="2025", frames=480, seed=3, jitter=True)
    return out, planet


def truth_of(out: Path, planet: int, detector: Detector) -> Truth:
    return Truth.load(out / "truth" / str(planet) / "0" / f"{detector.name}.npz")


def test_is_what_real_frames_show(moved: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The variance of CDS pairs over the detector's own, and how start and end reads correlate, in bright pixels."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    jitter: ModuleType = importlib.import_module("jitter")
    figures = jitter.figures(moved[0], moved[1])
    assert 2.2 <= figures["AIRS-CH0"].excess <= 3.2
    assert 15 <= figures["FGS1"].excess <= 60
    assert 0.95 <= figures["FGS1"].correlation <= 0.97


@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
def test_calibrating_gives_the_moved_truth_back(moved: tuple[Path, int], detector: Detector) -> None:
    out, planet = moved
    cube, truth, _ = calibrated(out, planet, detector, 24)
    good = (~truth.dead & (truth.flat > 0.5) & (truth.read < 30))[:, slice(*detector.crop)].T
    deviations = []
    for known in (truth, replace(truth, slopes=None, pointing=None)):
        expected, variance = known.expected(detector, truth.shape.size // 24)
        deviations.append(((cube - expected) / np.sqrt(variance))[:, good].std())
    assert deviations[0] == pytest.approx(1.0, abs=0.02)
    assert deviations[1] > 1.04


def test_both_detectors_see_the_same_pointing(moved: tuple[Path, int]) -> None:
    airs, fgs1 = (truth_of(*moved, detector).pointing for detector in (AIRS, FGS1))
    assert airs is not None
    assert fgs1 is not None
    assert airs.shape == (2, 240, 2)
    assert fgs1.shape == (2, 2880, 2)
    np.testing.assert_allclose(airs[:, :, 0] / 0.03, fgs1[:, ::12, 0] / 0.055, rtol=1e-12)
    assert np.corrcoef(airs[0, :, 1], fgs1[0, :, 1].reshape(240, 12).mean(axis=1))[0, 1] > 0.8
    assert abs(np.corrcoef(fgs1[0, :, 0], fgs1[1, :, 0])[0, 1]) < 0.15


@pytest.mark.parametrize("detector", [AIRS, FGS1], ids=lambda detector: detector.name)
def test_slopes_are_those_of_a_moved_image(detector: Detector) -> None:
    target = scene.draw_target(np.random.default_rng(2))
    flat = np.ones(detector.shape)
    rate, slopes = (make(detector, target, flat, 5e4) for make in (scene.star_rate, scene.star_slopes))
    assert slopes.shape == (2, *detector.shape)
    # The light that one pixel loses, another one gets, but for the wings at the slit's ends.
    assert np.abs(slopes[0].sum(axis=0)).max() < 2e-3 * np.abs(slopes[0]).max()
    # Where the image moves to, it gets brighter; where it comes from, darker.
    for axis in (0, 1):
        against = -np.gradient(rate, axis=axis)
        assert np.corrcoef(slopes[axis].ravel(), against.ravel())[0, 1] > 0.95
        assert 0.7 < slopes[axis].std() / against.std() < 1.6


def test_the_walk_has_its_scatter_and_its_memory() -> None:
    pointing = scene.draw_pointing(np.random.default_rng(0), 27_000.0)
    assert pointing.shape == (2, 270_000)
    np.testing.assert_allclose(pointing.std(axis=1), 1.0, rtol=0.05)
    for walk in pointing:
        assert np.corrcoef(walk[:-6], walk[6:])[0, 1] == pytest.approx(np.exp(-1.0), abs=0.02)


def test_off_by_default_it_changes_nothing(tmp_path: Path) -> None:
    for name, flags in (("without", []), ("with", ["--jitter"])):
        assert main(["synth", str(tmp_path / name), "--layout", "2025", "--frames", "24", "--seed", "4", *flags]) == 0
    synthesize(tmp_path / "called", layout="2025", frames=24, seed=4)
    without, moved, called = (contents(tmp_path / name) for name in ("without", "with", "called"))
    assert without == called
    assert {name for name in without if without[name] != moved[name]} == {
        name for name in without if "_signal_" in name
    }
    planet = next((tmp_path / "with" / "truth").iterdir()).name
    for name in DETECTORS:
        files = [tmp_path / one / "truth" / planet / "0" / f"{name}.npz" for one in ("without", "with")]
        stored = [set(np.load(path).files) for path in files]
        assert stored[1] - stored[0] == {"slopes", "pointing"}
        assert stored[0] - stored[1] == set()
        assert Truth.load(files[0]).pointing is None


def test_does_not_depend_on_threads(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("three", 3)):
        synthesize(tmp_path / name, frames=24, seed=2, jitter=True, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
