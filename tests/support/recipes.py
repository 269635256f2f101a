"""What becomes of a package that a recipe of CONTRIBUTING.md was applied to: run with that package first on the path.

Usage: python recipes.py RECIPE FOLDER RAW, where RAW is a competition folder with planet 17 in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from astropy.io import fits
from hostile import ADCS, Observation, observe, write
from reference import assert_close

import gpucal
from gpucal import Calibrated, Calibration
from gpucal.backends.selftest import selftest
from gpucal.cli.main import main
from gpucal.science import steps
from gpucal.settings.detectors import DETECTORS, Detector

BINS = {"AIRS-CH0": 7, "FGS1": 16}
STORED = ("--planet=17", "--variance", "--dtype=float64", "--json")

HASH = "e21d28be7a75334a02495a63abd26343a14336dfc5034f201509f95048a9fdac"
"""Of the settings of the notebook, as 0.1 has it."""


def frames(detector: Detector) -> int:
    return 140 if detector.name == "FGS1" else 60


def competition(folder: Path) -> dict[str, Observation]:
    """Write planet 17, with files of every detector that there is."""
    made = [observe(detector, frames(detector), ADCS["2024"], seed) for seed, detector in enumerate(DETECTORS.values())]
    write(made, folder, 17)
    path = folder / "axis_info.parquet"
    table = pq.read_table(path)
    for detector in DETECTORS.values():
        axes = {detector.time_column: np.arange(frames(detector)) / 100, detector.wavelength_column: None}
        if detector.wavelength_column:
            axes[detector.wavelength_column] = np.linspace(2.0, 1.0, detector.shape[1])
        for name, values in axes.items():
            if name and name not in table.column_names:
                whole = np.pad(values, (0, len(table) - values.size), constant_values=np.nan)
                table = table.append_column(name, [whole])
    pq.write_table(table, path)
    return {obs.detector.name: obs for obs in made}


def gpucal_(*words: object, expected: int = 0) -> str:
    """Run the command line in this process; return what it says."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            code = main([*map(str, words)])
        except SystemExit as end:
            code = int(end.code or 0)
    assert code == expected, f"{words}: {code}\n{said.getvalue()}"
    return said.getvalue()


def calibrated(raw: Path, out: Path, *flags: object) -> gpucal.Results:
    bins = [f"--bin={name}={BINS.get(name, 7)}" for name in DETECTORS]
    summary = json.loads(gpucal_("calibrate", raw, out, *bins, *STORED, *flags))
    assert summary["done"] == len(DETECTORS)
    assert np.isclose(summary["planets_per_hour"] * summary["seconds"], 3600)
    return gpucal.open_results(out)


def product(raw: Path, backend: str = "numpy", **settings: Any) -> Calibrated:
    return gpucal.calibrate(gpucal.open_dataset(raw)[17], "FGS1", Calibration(bins=BINS, **settings), backend=backend)


def detector(folder: Path, _: Path) -> None:
    raw = folder / "raw"
    made = competition(raw)
    results = calibrated(raw, folder / "out", "--backend=numpy")
    config = Calibration(bins={**BINS, "NIR": 7}, integration="notebook")
    cal = results.calibrated((17, 0), "NIR")
    assert_close(cal.signal, made["NIR"].reference(config))
    assert cal.provenance["steps"]["flat"] == "COMPLETE"
    assert results.light_curves().shape == (1, 4, 1 + 282 + 8)
    curves = [results.light_curve((17, 0), name) for name in ("FGS1", "AIRS-CH0", "NIR")]
    np.testing.assert_array_equal(results.light_curves()[0], np.concatenate(curves, axis=1))

    kept = calibrated(raw, folder / "curves", "--backend=numpy", "--product=light-curves")
    np.testing.assert_array_equal(kept.light_curves(), results.light_curves())
    gpucal_("export", folder / "curves", folder / "tables", "--product=light-curves", "--format=parquet")
    table = pq.read_table(folder / "tables" / "light-curves.parquet")
    names = [f"wl_{k}" for k in range(1, 1 + 1 + 282 + 8)]
    assert table.column_names[4:] == [*names, *(f"{name}_error" for name in names)]
    np.testing.assert_array_equal(table["time"], kept.axes((17, 0), "AIRS-CH0")["time"])
    um = [float(table.field(name).metadata[b"wavelength_um"]) for name in names[-8:]]
    assert um == np.linspace(2.0, 1.0, 12)[2:10].tolist()

    told = json.loads(gpucal_("report", folder / "out", "--json"))
    assert [(one["planet_id"], one["detector"], one["status"]) for one in told] == [
        (17, name, "done") for name in sorted(DETECTORS)
    ]
    assert "1 observations complete, 0 items failed" in gpucal_("report", folder / "out")
    gpucal_("verify", folder / "out")
    gpucal_("plot", folder / "out", 17)
    gpucal_("export", folder / "out", folder / "npy")
    assert np.load(folder / "npy" / "NIR.signal.npy").shape == (1, 4, 8, 8)
    gpucal_("export", folder / "out", folder / "fits", "--format=fits")
    assert (folder / "fits" / "17-0-NIR.fits").is_file()
    for verb in (("synth", folder / "synthetic"), ("demo", folder / "demo")):
        (line,) = gpucal_(*verb, expected=2).splitlines()
        assert "the brightness of NIR is not known; use real data" in line


def backend(folder: Path, raw: Path) -> None:
    results = calibrated(raw, folder / "out", "--backend=dummy")
    history = results.calibrated((17, 0), "FGS1").provenance
    assert (history["backend"], history["device"]) == ("dummy", "any machine")
    np.testing.assert_array_equal(product(raw, "dummy").signal, product(raw).signal)
    assert "dummy: available, any machine\n" in gpucal_("info")
    assert "dummy" in gpucal_("calibrate", "--help")
    for verb in ("calibrate", "bench"):
        assert "'dumy' is not one of" in (said := gpucal_(verb, raw, "--backend=dumy", expected=2))
        assert "did you mean dummy?" in said
    (report,) = [report for report in selftest(1) if report.backend == "dummy"]
    assert (report.runs_on, report.wrong, report.unavailable) == ("any machine", False, "")


def step(folder: Path, raw: Path) -> None:
    plain, done = product(raw), product(raw, throughput=True)
    np.testing.assert_array_equal(done.signal, steps.throughput(plain.signal, 0.5))
    np.testing.assert_allclose(done.variance, 4 * plain.variance)
    order = ["adc", "mask", "linearity", "dark", "cds", "bin", "flat", "throughput", "interpolate"]
    assert list(done.provenance["steps"]) == list(plain.provenance["steps"]) == order
    assert [cal.provenance["steps"]["throughput"] for cal in (plain, done)] == ["SKIPPED", "COMPLETE"]
    check_setting("throughput")
    results = calibrated(raw, folder / "out", "--throughput", "--backend=numpy")
    np.testing.assert_array_equal(results["FGS1"][0], done.signal)
    assert gpucal_("calibrate", raw, folder / "out", "--no-throughput", expected=2).count("throughput = ") == 1
    gpucal_("export", folder / "out", folder / "fits", "--format=fits")
    assert fits.getheader(folder / "fits" / "17-0-FGS1.fits")["S_THROUG"] == "COMPLETE"


def correction(folder: Path, raw: Path) -> None:
    plain, done = product(raw), product(raw, stripes=True)
    np.testing.assert_array_equal(done.signal, plain.signal - np.median(plain.signal, axis=2, keepdims=True))
    assert not np.array_equal(done.signal, plain.signal)
    assert list(done.provenance["steps"])[-2:] == ["stripes", "interpolate"]
    assert [cal.provenance["steps"]["stripes"] for cal in (plain, done)] == ["SKIPPED", "COMPLETE"]
    check_setting("stripes")
    results = calibrated(raw, folder / "out", "--stripes", "--backend=numpy")
    np.testing.assert_array_equal(results["FGS1"][0], done.signal)


def export(folder: Path, raw: Path) -> None:
    results = calibrated(raw, folder / "out", "--backend=numpy")
    gpucal_("export", folder / "out", folder / "csv", "--format=csv")
    read = np.loadtxt(folder / "csv" / "17-0.csv", delimiter=",")
    np.testing.assert_allclose(read, results.light_curves()[0])
    refused = gpucal_("export", "a", "b", "--format=tiff", expected=2)
    assert "is not one of npy, zarr, fits, csv, parquet and ecsv" in refused


def check_setting(name: str) -> None:
    """See that a switch is off by default and then changes no hash, and that files and the page have it."""
    on = Calibration.preset("ariel2024").replace(**{name: True})
    assert Calibration.preset("ariel2024").content_hash == HASH != on.content_hash
    assert name not in Calibration().to_toml()
    assert f"{name} = true" in on.to_toml()
    assert Calibration.from_dict(on.to_dict()) == on
    page = Path(gpucal.__file__).parents[1] / "examples" / "settings.md"
    assert f"| `{name}` |" in page.read_text(encoding="utf-8")


RECIPES: dict[str, Callable[[Path, Path], None]] = {
    "A detector": detector,
    "A backend": backend,
    "A step": step,
    "A correction after the cube": correction,
    "An export format": export,
}


if __name__ == "__main__":
    RECIPES[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
