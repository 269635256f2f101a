"""A product as astropy, xarray and FITS objects, each checked with its own library."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.nddata import NDData, StdDevUncertainty
from conftest import Made
from stored import CONFIG, NAMES, check_history

import gpucal
from gpucal import DQ, Calibrated
from gpucal.errors import ConfigError, MissingExtra
from gpucal.pipeline.convert import to_nddata, to_xarray
from gpucal.pipeline.fits import to_hdus
from gpucal.results.reader import Results


@pytest.fixture(scope="module", params=NAMES)
def visits(request: pytest.FixtureRequest, new: Made) -> list[Calibrated]:
    """One detector of both visits, with plans."""
    dataset = gpucal.open_dataset(new[0])
    return [gpucal.calibrate(dataset[5, v], request.param, CONFIG, backend="numpy") for v in (0, 1)]


@pytest.fixture
def cal(visits: list[Calibrated]) -> Calibrated:
    return visits[1]


@pytest.fixture(scope="module", params=[(True, "float32"), (False, "float64")], ids=["variance-f32", "plain-f64"])
def stored(request: pytest.FixtureRequest, new: Made, tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("stored")
    variance, dtype = request.param
    gpucal.run(gpucal.open_dataset(new[0]), out, CONFIG, backend="numpy", variance=variance, dtype=dtype)
    return gpucal.open_results(out)


def test_nddata(cal: Calibrated) -> None:
    data = cal.to_nddata()
    assert isinstance(data, NDData)
    assert data.unit == units.electron
    assert data.data is cal.signal
    assert data.mask.shape == cal.signal.shape
    for plane in data.mask:
        np.testing.assert_array_equal(plane, cal.mask)
    assert isinstance(data.uncertainty, StdDevUncertainty)
    np.testing.assert_array_equal(data.uncertainty.array, np.sqrt(cal.variance))
    meta = data.meta
    assert (meta["planet"], meta["visit"], meta["detector"]) == (5, 1, cal.detector.name)
    np.testing.assert_array_equal(meta["time_h"], cal.time)
    np.testing.assert_array_equal(meta["dq"], cal.dq)
    if cal.wavelength is None:
        assert meta["wavelength_um"] is None
    else:
        np.testing.assert_array_equal(meta["wavelength_um"], cal.wavelength)
    check_history(meta["provenance"])


def test_nddata_hides_what_is_flagged(new: Made) -> None:
    kept = CONFIG.replace(bad_pixels="keep")
    cal = gpucal.calibrate(gpucal.open_dataset(new[0])[5, 0], "FGS1", kept, backend="numpy")
    assert 0 < cal.mask.sum() < cal.mask.size
    np.testing.assert_array_equal(to_nddata(cal).mask, np.stack([cal.dq != 0] * len(cal.time)))


def test_nddata_arithmetic_keeps_uncertainty(visits: list[Calibrated]) -> None:
    first, second = (to_nddata(cal) for cal in visits)
    total = first.add(second)
    assert total.unit == units.electron
    np.testing.assert_array_equal(total.data, visits[0].signal + visits[1].signal)
    np.testing.assert_array_equal(total.mask, first.mask | second.mask)
    with np.errstate(invalid="ignore"):
        expected = np.sqrt(visits[0].variance + visits[1].variance)
    np.testing.assert_allclose(total.uncertainty.array, expected, rtol=1e-12)
    assert first[1:3].uncertainty.array.shape[0] == 2


@pytest.mark.parametrize("name", NAMES)
def test_stored_products(stored: Results, name: str) -> None:
    cal = stored.calibrated((5, 1), name)
    data, cube = to_nddata(cal), to_xarray(cal)
    has = cal.stored_variance is not None
    assert data.data.dtype == cube.signal.dtype == (np.float32 if has else np.float64)
    assert (data.uncertainty is not None) == ("variance" in cube) == has
    if has:
        np.testing.assert_array_equal(data.uncertainty.array, np.sqrt(cal.variance))
        np.testing.assert_array_equal(cube.variance, cal.variance)
    check_history(data.meta["provenance"])
    check_history(json.loads(cube.provenance))


def test_xarray(cal: Calibrated) -> None:
    cube = cal.to_xarray()
    axes = ("x", "y") if cal.detector.photometer else ("wavelength", "spatial")
    assert cube.signal.dims == cube.variance.dims == ("time", *axes)
    assert cube.dq.dims == axes
    assert np.shares_memory(cube.signal.values, cal.signal)
    np.testing.assert_array_equal(cube.variance, cal.variance)
    np.testing.assert_array_equal(cube.dq, cal.dq)
    np.testing.assert_array_equal(cube.time, cal.time)
    np.testing.assert_array_equal(cube.read_variance, cal.read_variance)
    assert cube.read_variance.dims == axes
    assert {name: cube[name].units for name in ("signal", "variance", "time")} == {
        "signal": "electron",
        "variance": "electron2",
        "time": "hour",
    }
    places = {"time", "time_bounds", "column", "row"}
    assert set(cube.coords) == (places if cal.wavelength is None else places | {"wavelength"})
    if cal.wavelength is not None:
        np.testing.assert_array_equal(cube.wavelength, cal.wavelength)
        assert cube.wavelength.units == "um"
        assert cube.signal.sel(wavelength=3.0, method="nearest").shape == (4, 32)
    flags = dict(zip(cube.dq.flag_meanings.split(), cube.dq.flag_masks.tolist(), strict=True))
    assert flags == {flag.name.lower(): flag.value for flag in DQ if flag != DQ.COSMIC}
    looked = replace(cal, provenance={**cal.provenance, "settings": {"cosmic_rays": 20.0}})
    assert to_xarray(looked).dq.flag_masks.tolist() == [flag.value for flag in DQ]
    assert cube.dq.flag_masks.dtype == cube.dq.dtype
    assert (cube.planet, cube.visit, cube.detector) == (5, 1, cal.detector.name)
    check_history(json.loads(cube.provenance))


def test_xarray_follows_cf(cal: Calibrated) -> None:
    cube = cal.to_xarray()
    assert all(cube[name].long_name for name in cube.variables)
    assert cube.Conventions.startswith("CF-1.")
    assert cube.title == f"Planet 5, visit 1, {cal.detector.name}: calibrated signal in time bins"
    assert f"{cal.provenance['created']} gpucal {gpucal.__version__}: adc=COMPLETE" in cube.history
    assert (cube.time.bounds, cube.time.axis) == ("time_bounds", "T")
    np.testing.assert_array_equal(cube.time_bounds, cal.time_bounds)
    assert (cube.time_bounds[:, 0] < cube.time).all()
    assert (cube.time < cube.time_bounds[:, 1]).all()
    along, across = cube.dq.dims
    assert (cube.column.dims, cube.row.dims) == ((along,), (across,))
    assert cube.column.values.tolist() == [*range(*cal.detector.crop)]
    assert cube.row.values.tolist() == [*range(32)]


def test_xarray_survives_netcdf(cal: Calibrated) -> None:
    import xarray

    made = to_xarray(cal)
    with xarray.open_dataset(io.BytesIO(made.to_netcdf(engine="scipy")), engine="scipy") as read:
        for name in ("signal", "variance", "dq", *made.coords):
            np.testing.assert_array_equal(read[name], made[name])
        check_history(json.loads(read.provenance))
        assert read.signal.units == "electron"


def test_xarray_survives_zarr(cal: Calibrated, tmp_path: Path) -> None:
    import xarray

    made = to_xarray(cal)
    made.to_zarr(tmp_path / "cube.zarr", zarr_format=3, consolidated=False)
    with xarray.open_zarr(tmp_path / "cube.zarr", consolidated=False) as read:
        xarray.testing.assert_equal(read.load(), made)
        check_history(json.loads(read.provenance))


def test_dlpack_shares_memory(cal: Calibrated) -> None:
    assert np.shares_memory(np.from_dlpack(cal), cal.signal)


def test_fits(cal: Calibrated) -> None:
    file = io.BytesIO()
    to_hdus(cal).writeto(file, checksum=True)
    file.seek(0)
    with fits.open(file, checksum=True) as hdus:
        axis = [] if cal.wavelength is None else ["WAVELENGTH"]
        images, tables = ["SCI", "ERR", "VAR_POISSON", "VAR_RNOISE", "DQ"], ["DQ_DEF", "TIME", *axis, "WCS-TABLE"]
        assert [hdu.name for hdu in hdus] == ["PRIMARY", *images, *tables, "PROVENANCE"]
        np.testing.assert_array_equal(hdus["SCI"].data, cal.signal)
        np.testing.assert_array_equal(hdus["ERR"].data, np.sqrt(cal.variance))
        np.testing.assert_array_equal(hdus["DQ"].data, cal.dq)
        assert hdus["SCI"].header["BUNIT"] == hdus["ERR"].header["BUNIT"] == "electron"
        check_history(json.loads(hdus["PROVENANCE"].data["PROVENANCE"][0]))


def test_fits_is_checked_against_damage(cal: Calibrated) -> None:
    file = io.BytesIO()
    to_hdus(cal).writeto(file, checksum=True)
    changed = file.getvalue().replace(b"SKIPPED ", b"COMPLETE")
    assert changed != file.getvalue()
    with pytest.warns(match="(Checksum|Datasum) verification failed"):
        fits.open(io.BytesIO(changed), checksum=True)


class OnDevice:
    """A device array, which NumPy must not try to read."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise AssertionError("copied to the host unasked")

    def get(self) -> np.ndarray:
        return np.zeros((4, 3, 2))


@pytest.mark.parametrize("convert", [to_nddata, to_xarray, to_hdus])
def test_a_device_result_is_never_copied_unasked(visits: list[Calibrated], convert: Any) -> None:
    small = replace(visits[0].detector, shape=(2, 3), crop=(0, 3))
    made = {"signal": OnDevice(), "dq": np.zeros((3, 2), np.uint8), "detector": small}
    there = replace(visits[0], **made, plan=None, wavelength=None)
    with pytest.raises(ConfigError, match=r"planet 5 visit 0 .*: its signal is on a device; call to_host\(\) first$"):
        convert(there)
    here = replace(there, time=np.arange(4.0)).to_host()
    assert convert(here) is not None


def test_without_xarray(cal: Calibrated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingExtra, match=r'^xarray is not installed; pip install "gpucal\[xarray\]"$'):
        cal.to_xarray()
