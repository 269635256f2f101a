"""A product as a FITS file, read by astropy as an archive's user would: coordinates, errors, flags, cards."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty
from astropy.table import QTable
from astropy.time import Time
from astropy.wcs import WCS
from competition_01 import RESULTS
from conftest import Made
from stored import CONFIG, NAMES, STEPS

import gpucal
from gpucal import DQ, Calibrated
from gpucal.pipeline.fits import setting_cards, to_hdus

BACKGROUND = {"AIRS-CH0": [[0, 8], [24, 32]]}


@pytest.fixture(scope="module", params=NAMES)
def cal(request: pytest.FixtureRequest, new: Made) -> Calibrated:
    config = CONFIG.replace(background_rows=BACKGROUND, dark=True, integration="updated")
    return gpucal.calibrate(gpucal.open_dataset(new[0])[5, 1], request.param, config, backend="numpy", dtype="float32")


@pytest.fixture(scope="module")
def path(cal: Calibrated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product as a file. Not to be written to."""
    target = tmp_path_factory.mktemp("fits") / "5-1.fits"
    to_hdus(cal).writeto(target, checksum=True)
    return target


def test_is_valid_and_every_card_has_a_comment(path: Path) -> None:
    with fits.open(path, checksum=True) as hdus:
        hdus.verify("exception")
        told = " ".join(hdus[0].header["COMMENT"])
        for hdu in hdus:
            silent = {card.keyword for card in hdu.header.cards if not card.comment} - {"HISTORY", "COMMENT"}
            assert silent <= {"SETHASH", "INHASH"}, hdu.name
            assert all(f"{keyword} is" in told or f"{keyword} that" in told for keyword in silent)


def test_says_what_was_observed_and_from_what_it_was_made(path: Path, cal: Calibrated) -> None:
    header, name = fits.getheader(path), cal.detector.name
    observed = ("TELESCOP", "INSTRUME", "DETECTOR", "OBJECT", "PLANET", "VISIT")
    assert [header[card] for card in observed] == ["Ariel", name, name, "planet 5", 5, 1]
    files = [header[card] for card in ("SIGFILE", "CALFILE", "ADCFILE", "AXISFILE")]
    adc, axes = "adc_info.csv", "axis_info.parquet"
    assert files == [f"train/5/{name}_signal_1.parquet", f"train/5/{name}_calibration_1", adc, axes]
    assert cal.plan is not None
    pairs, taken = cal.plan.pairs_per_bin, {"AIRS-CH0": 4.5, "FGS1": 0.1}[name]
    assert (header["NBINS"], header["PAIRBIN"]) == (4, pairs)
    assert header["XPOSURE"] == pytest.approx(pairs * taken)
    assert header["EXPTIME"] == pytest.approx(4 * pairs * taken)
    assert header["DARKTIME"] == pytest.approx(cal.plan.tau_s.mean())
    assert (header["ADC_GAIN"], header["ADC_OFFS"]) == tuple(
        map(float, re.findall(r"=(-?[\d.]+)", cal.provenance["fingerprints"]["adc"]))
    )
    lines = [*header["HISTORY"]]
    assert [line.split(":")[0] for line in lines[1:]] == [
        f"{step} {done}" for step, done in cal.provenance["steps"].items()
    ]
    assert lines[0].startswith(f"gpucal {gpucal.__version__} on 20")


def test_every_setting_is_a_card(path: Path, cal: Calibrated) -> None:
    header = fits.getheader(path)
    settings = cal.provenance["settings"]
    for name, value in settings.items():
        found = {card: header[card] for card in header if re.match(rf"GPUCAL {name.upper()}( |$)", card)}
        if not isinstance(value, dict):
            assert found == {f"GPUCAL {name.upper()}": value}
        else:
            assert len(found) >= len(value)
    assert header["GPUCAL BINS FGS1"] == settings["bins"]["FGS1"]
    assert header["GPUCAL CROP AIRS-CH0"] == "39:321"
    windows = [header[f"GPUCAL BACKGROUND_ROWS AIRS-CH0 {number}"] for number in (1, 2)]
    assert (windows, header["GPUCAL BACKGROUND_ROWS FGS1"]) == (["0:8", "24:32"], "none")


def test_no_setting_is_too_long_for_a_card() -> None:
    windows = tuple((row, row + 1) for row in range(0, 32, 2))
    longest = gpucal.Calibration(
        bins={"AIRS-CH0": "123456.123456789 s"},
        background_rows={"AIRS-CH0": windows},
        linearity_max_offset=1.2345678901234567e-300,
        bad_pixels="interpolate",
    )
    header = fits.Header()
    header.extend(setting_cards(longest.to_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = header.tostring()
    read = fits.Header.fromstring(text)
    assert read["GPUCAL BACKGROUND_ROWS AIRS-CH0 16"] == "30:31"
    # A card holds 20 characters of a number; the table PROVENANCE holds all.
    assert read["GPUCAL LINEARITY_MAX_OFFSET"] == pytest.approx(1.2345678901234567e-300, rel=1e-12, abs=0)
    assert read["GPUCAL INTEGRATION"] == "none"  # left open


@pytest.mark.parametrize("pixel", [(0, 20, 2), (31, 0, 0), (5, 31, 3)])
@pytest.mark.parametrize("image", ["SCI", "ERR", "VAR_POISSON"])
def test_world_coordinates(path: Path, cal: Calibrated, image: str, pixel: tuple[int, int, int]) -> None:
    y, x, t = pixel
    with fits.open(path) as hdus:
        coordinates = WCS(hdus[image].header, hdus)
        row, along, time = coordinates.pixel_to_world(*pixel)
        assert (row.value, row.unit) == (y, units.pixel)
        assert isinstance(time, Time)
        assert time.scale == "local"
        assert time.mjd * 24.0 == pytest.approx(cal.time[t], rel=1e-12)  # times count from 0
        if cal.wavelength is None:
            assert along.value == x
        else:
            assert along.to_value("um") == pytest.approx(cal.wavelength[x], rel=1e-12)
        back = coordinates.world_to_pixel_values(*coordinates.pixel_to_world_values(*pixel))
        np.testing.assert_allclose(back, pixel, atol=1e-6)


def test_world_coordinates_of_maps(path: Path, cal: Calibrated) -> None:
    with fits.open(path) as hdus:
        for image in ("DQ", "VAR_RNOISE"):
            row, along = WCS(hdus[image].header, hdus).pixel_to_world(3, 7)
            wanted = 7 if cal.wavelength is None else cal.wavelength[7]
            assert (row.value, along.value) == (3, pytest.approx(wanted))


@pytest.mark.parametrize("n_bins", [1, 2])
def test_world_coordinates_of_few_bins(cal: Calibrated, n_bins: int) -> None:
    assert cal.time_bounds is not None
    few = {"signal": cal.signal[:n_bins], "time": cal.time[:n_bins], "time_bounds": cal.time_bounds[:n_bins]}
    hdus = to_hdus(replace(cal, **few, plan=None))
    time = WCS(hdus["SCI"].header, hdus).pixel_to_world(0, 0, n_bins - 1)[2]
    assert time.mjd * 24.0 == pytest.approx(cal.time[n_bins - 1], rel=1e-12)


def test_without_wavelengths_there_are_columns(cal: Calibrated, tmp_path: Path) -> None:
    to_hdus(replace(cal, wavelength=None)).writeto(tmp_path / "x.fits")
    with fits.open(tmp_path / "x.fits") as hdus:
        _, column, _ = WCS(hdus["SCI"].header, hdus).pixel_to_world(0, 7, 0)
        assert column.value == cal.detector.crop[0] + 7
        assert "WAVELENGTH" not in hdus


def test_times(path: Path, cal: Calibrated) -> None:
    times, header = QTable.read(path, hdu="TIME"), fits.getheader(path, "SCI")
    assert cal.time_bounds is not None
    assert {times[name].unit for name in times.colnames} == {units.h}
    np.testing.assert_array_equal(times["TIME"].value, cal.time)
    np.testing.assert_array_equal(times["BEGIN"].value, cal.time_bounds[:, 0])
    np.testing.assert_array_equal(times["END"].value, cal.time_bounds[:, 1])
    assert (times["BEGIN"][1:] > times["END"][:-1]).all()
    assert (header["TIMESYS"], header["TIMEUNIT"]) == ("LOCAL", "s")
    assert header["TSTART"] == pytest.approx(cal.time_bounds[0, 0] * 3600, abs=1e-6)
    assert header["TSTOP"] == pytest.approx(cal.time_bounds[-1, 1] * 3600, abs=1e-6)


def test_bounds_are_those_of_the_reads(new: Made, cal: Calibrated) -> None:
    assert cal.plan is not None
    assert cal.time_bounds is not None
    read_h = gpucal.open_dataset(new[0])[5, 1].axis(cal.detector).time_h
    n = 2 * cal.plan.pairs_per_bin
    expected = [(read_h[b * n], read_h[b * n + n - 1]) for b in range(4)]
    np.testing.assert_array_equal(cal.time_bounds, expected)


def test_wavelengths_have_their_columns(path: Path, cal: Calibrated) -> None:
    if cal.wavelength is None:
        with fits.open(path) as hdus:
            assert "WAVELENGTH" not in hdus
        return
    table = QTable.read(path, hdu="WAVELENGTH")
    assert table["COLUMN"].tolist() == [*range(39, 321)]
    np.testing.assert_array_equal(table["WAVELENGTH"].to_value("um"), cal.wavelength)


def test_flags_are_explained(path: Path) -> None:
    table = QTable.read(path, hdu="DQ_DEF")
    assert table.colnames == ["BIT", "VALUE", "NAME", "DESCRIPTION"]
    found = {row["NAME"]: (row["BIT"], row["VALUE"]) for row in table}
    assert found == {flag.name: (flag.value.bit_length() - 1, flag.value) for flag in DQ}
    assert found["BAD_DARK"] == (6, 64)
    assert all(len(text) > 10 for text in table["DESCRIPTION"])


def test_variance_is_its_parts(path: Path, cal: Calibrated) -> None:
    with fits.open(path) as hdus:
        photons, read, error = (hdus[name].data for name in ("VAR_POISSON", "VAR_RNOISE", "ERR"))
        assert {hdus[name].header["BUNIT"] for name in ("VAR_POISSON", "VAR_RNOISE")} == {"electron2"}
        assert read.shape == photons.shape[1:]
        known = np.isfinite(error)
        assert known.mean() > 0.9
        assert (photons[known] >= 0).all()
        np.testing.assert_allclose((photons + read)[known], error[known] ** 2, rtol=1e-6)
        np.testing.assert_array_equal(np.isfinite(photons + read), known)
        dark_only = (photons == 0.0) & known
        np.testing.assert_allclose(error[dark_only] ** 2, np.broadcast_to(read, error.shape)[dark_only], rtol=1e-6)


@pytest.mark.filterwarnings("ignore")  # it takes a header's coordinates without the file, and so leaves them out
def test_ccddata(path: Path, cal: Calibrated) -> None:
    read = CCDData.read(path, hdu_uncertainty="ERR")
    assert (read.unit, read.shape) == (units.electron, cal.signal.shape)
    np.testing.assert_array_equal(read.data, cal.signal)
    assert isinstance(read.uncertainty, StdDevUncertainty)
    np.testing.assert_array_equal(read.uncertainty.array, np.sqrt(cal.variance))
    assert read.meta["OBJECT"] == "planet 5"


def test_steps_that_were_left_out_say_so(new: Made) -> None:
    cal = gpucal.calibrate(gpucal.open_dataset(new[0])[5, 0], "FGS1", CONFIG, backend="numpy")
    header = to_hdus(cal)[0].header
    assert header["S_DARK"] == STEPS["dark"] == "SKIPPED"
    assert "dark SKIPPED: dark current subtracted" in [*header["HISTORY"]]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_0_1_has_what_was_stored(name: str, tmp_path: Path) -> None:
    results = gpucal.open_results(RESULTS / "cubes")
    cal = results.calibrated((5, 0), name)
    assert (cal.time_bounds, cal.read_variance) == (None, None)
    to_hdus(cal).writeto(tmp_path / "old.fits")
    with fits.open(tmp_path / "old.fits") as hdus:
        hdus.verify("exception")
        assert not {"VAR_POISSON", "VAR_RNOISE"} & {hdu.name for hdu in hdus}
        assert hdus["TIME"].columns.names == ["TIME"]
        assert not {"PAIRBIN", "ADC_GAIN", "EXPTIME", "SIGFILE"} & {*hdus[0].header}
        time = WCS(hdus["SCI"].header, hdus).pixel_to_world(0, 0, 0)[2]
        assert time.mjd * 24.0 == pytest.approx(cal.time[0], rel=1e-12)
