"""Results folders of gpucal 0.1.0: still opened, resumed, verified, exported and reported."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from competition_01 import PLANETS, RESULTS, SETTINGS, write_competition

import gpucal
from gpucal import Calibration
from gpucal.cli.main import main
from gpucal.results.export import export
from gpucal.results.records import records
from gpucal.results.verify import verify

IDS = [(planet, 0) for planet in PLANETS]
KEYS = [(*key, name) for key in IDS for name in ("AIRS-CH0", "FGS1")]

SETTINGS_HASHES = {
    "ariel2024": "e21d28be7a75334a02495a63abd26343a14336dfc5034f201509f95048a9fdac",
    "ariel2024-update": "5049eeda22de70cac700f5fc3fccacfda52851380bcf0a86a902060b55a9cfcb",
    "ariel2025": "5049eeda22de70cac700f5fc3fccacfda52851380bcf0a86a902060b55a9cfcb",
}

INPUTS = {
    (5, "AIRS-CH0"): "6f2b9aab1c2f3cca5cc20809e2f98016991061414bfc8d8d10a764f3c57100e6",
    (5, "FGS1"): "1ea0d2b486be11162a4cd457e0ad4efe95f8b81ca989752ae1629edbb250ccb9",
    (4_169_614_766, "AIRS-CH0"): "599a090d784a27b7e95cd9fe3611c1fde9980cc1373f9a1904b9cf8d297f2555",
    (4_169_614_766, "FGS1"): "88896592d7336b620cd2ccd81e1a7992a1af90eccf565279e139b9c7cec91af1",
}

NOTEBOOK = Calibration(odd_frames="drop", integration="notebook", **SETTINGS)
UPDATED = NOTEBOOK.replace(integration="updated")


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_competition(tmp_path_factory.mktemp("competition-01") / "raw")


@pytest.fixture
def cubes(tmp_path: Path) -> Path:
    return shutil.copytree(RESULTS / "cubes", tmp_path / "cubes")


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return shutil.copytree(RESULTS / "notebook", tmp_path / "notebook")


def test_settings_hashes_are_those_of_0_1() -> None:
    assert {name: Calibration.preset(name).content_hash for name in SETTINGS_HASHES} == SETTINGS_HASHES
    stored = {
        record["provenance"]["settings_hash"] for record in records(RESULTS / "cubes") if record["status"] == "done"
    }
    assert stored == {UPDATED.content_hash}
    stored = {record["provenance"]["settings_hash"] for record in records(RESULTS / "notebook")}
    assert stored == {NOTEBOOK.content_hash}


def test_input_fingerprints_are_those_of_0_1(competition: Path) -> None:
    """Of files that no library wrote, so that they are the same bytes everywhere."""
    dataset = gpucal.open_dataset(competition)
    made = {
        (planet, name): gpucal.calibrate(dataset[planet], name, UPDATED).provenance["inputs"] for planet, name in INPUTS
    }
    assert made == INPUTS
    for record in records(RESULTS / "cubes"):
        assert record.get("inputs") == INPUTS.get((record["planet"], record["detector"]))


def test_opening(cubes: Path, notebook: Path) -> None:
    results = gpucal.open_results(cubes)
    assert results.ids == IDS
    assert [*results.failed] == [(6, 0, "AIRS-CH0"), (6, 0, "FGS1")]
    assert results["AIRS-CH0"].load().shape == (2, 2, 4, 32)
    assert np.isfinite(results.light_curves_with_errors().error).all()
    assert gpucal.open_results(notebook).light_curves().shape == (2, 2, 5)


def test_resuming(competition: Path, cubes: Path, notebook: Path) -> None:
    before = {path: path.read_bytes() for folder in (cubes, notebook) for path in folder.glob("*/*/*.npy")}
    dataset = gpucal.open_dataset(competition)
    summary = gpucal.run(dataset, cubes, UPDATED, variance=True)
    assert (summary.done, summary.skipped, len(summary.failed)) == (0, 4, 2)
    summary = gpucal.run(dataset, notebook, NOTEBOOK, product="light-curves", planets=PLANETS)
    assert (summary.done, summary.skipped, summary.failed) == (0, 4, {})
    assert {path: path.read_bytes() for path in before} == before


def test_cubes_without_a_variance(
    competition: Path, cubes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their errors are NaN, which is said once; they count as finished, and verify finds nothing wrong with them."""
    identity = json.dumps([UPDATED.content_hash, "float32", "cubes", False])
    for path in cubes.glob("*/*/*.json"):
        record = json.loads(path.read_text())
        if record["status"] == "done":
            del record["files"]["variance"]
            record["settings"] = hashlib.sha256(identity.encode()).hexdigest()
            path.write_text(json.dumps(record))
    for path in cubes.glob("*/*/*.variance.npy"):
        path.unlink()
    settings = cubes / "config.toml"
    settings.write_text(settings.read_text().replace("variance = true", "variance = false"))
    summary = gpucal.run(gpucal.open_dataset(competition), cubes, UPDATED, planets=PLANETS)
    assert (summary.done, summary.skipped, summary.failed) == (0, 4, {})
    assert [*verify(cubes)] == []
    caplog.clear()
    results = gpucal.open_results(cubes)
    flux, error = results.light_curves_with_errors()
    np.testing.assert_array_equal(flux, results.light_curves())
    assert np.isfinite(flux).any()
    assert np.isnan(error).all()
    assert np.isnan(results.calibrated(IDS[0], "FGS1").light_curve_with_errors().error).all()
    (line,) = caplog.messages
    assert line.startswith(f"{cubes}: holds cubes of an older version without errors, which are NaN here; ")
    written = export(results, tmp_path / "to", "npy", "light-curves")
    assert np.isnan(np.load(written[1])).all()


def test_the_numbers_are_those_of_0_1(competition: Path, cubes: Path) -> None:
    """Within the agreement of DESIGN; stored as float32."""
    dataset, results = gpucal.open_dataset(competition), gpucal.open_results(cubes)
    for planet, visit, name in KEYS:
        cal = gpucal.calibrate(dataset[planet, visit], name, UPDATED)
        stored = results.calibrated((planet, visit), name)
        assert np.array_equal(cal.dq, stored.dq)
        np.testing.assert_allclose(stored.signal, cal.signal, rtol=1e-6)
        np.testing.assert_allclose(stored.variance, cal.variance, rtol=1e-6)


def test_verifying(cubes: Path, notebook: Path) -> None:
    assert [*verify(cubes)] == [*verify(notebook)] == []
    assert main(["verify", str(cubes)]) == 0
    (cubes / "5" / "0" / "FGS1.dq.npy").unlink()
    assert main(["verify", str(cubes)]) == 1


def test_exporting(cubes: Path, tmp_path: Path) -> None:
    assert main(["export", str(cubes), str(tmp_path / "stacks")]) == 0
    assert np.array_equal(np.load(tmp_path / "stacks" / "FGS1.signal.npy"), gpucal.open_results(cubes)["FGS1"].load())


def test_reporting(cubes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(cubes), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["planet_id"], one["visit"], one["detector"]) for one in told if one["status"] == "done"] == KEYS
    assert all(one["white_flux"] > 0 for one in told if one["status"] == "done")
    assert len([one["error"] for one in told if one["status"] == "failed"]) == 2
