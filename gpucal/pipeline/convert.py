"""Converts a calibrated product to astropy, xarray and FITS objects, with its provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpucal._version import __version__
from gpucal.errors import ConfigError, MissingExtra
from gpucal.pipeline.provenance import card_of
from gpucal.science.plan import DQ
from gpucal.settings.detectors import Detector

if TYPE_CHECKING:
    import xarray
    from astropy.io import fits
    from astropy.nddata import NDDataRef

__all__ = ["UNITS", "axes_of", "flag_attributes", "to_hdus", "to_nddata", "to_xarray"]

# "hour", not "hours": xarray reads a coordinate in "hours" as time differences.
UNITS = {"signal": "electron", "variance": "electron2", "time": "hour", "wavelength": "um"}
"""The unit of each array, as exported attributes name it."""


class _Product(Protocol):
    """The attributes of `Calibrated` that these functions read; its methods import them, so they cannot import it."""

    @property
    def planet(self) -> int: ...

    @property
    def visit(self) -> int: ...

    @property
    def detector(self) -> Detector: ...

    @property
    def signal(self) -> NDArray[Any]: ...

    @property
    def dq(self) -> NDArray[np.uint8]: ...

    @property
    def time(self) -> NDArray[np.float64]: ...

    @property
    def wavelength(self) -> NDArray[np.float64] | None: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    @property
    def plan(self) -> object: ...

    @property
    def stored_variance(self) -> object: ...

    @property
    def mask(self) -> NDArray[np.bool_]: ...

    @property
    def variance(self) -> NDArray[np.float64]: ...

    @property
    def axes(self) -> Mapping[str, NDArray[np.float64]]: ...

    @property
    def where(self) -> str: ...


def axes_of(detector: Detector) -> tuple[str, str, str]:
    """Return the names of a cube's axes; a photometer has no wavelengths, so its axes are ``time``, ``x`` and ``y``."""
    return ("time", "x", "y") if detector.photometer else ("time", "wavelength", "spatial")


def to_nddata(cal: _Product) -> NDDataRef:
    """Make an `astropy.nddata.NDDataRef`, the `NDData` with arithmetic and slices.

    Parameters
    ----------
    cal : Calibrated
        The product, on the host.

    Returns
    -------
    NDDataRef
        ``data`` is the signal itself, shape (time, wavelength, spatial), unit electron. ``mask`` has the same shape and
        is read-only. ``uncertainty`` holds standard deviations, or is None where no variance was stored. ``meta`` holds
        ``planet``, ``visit``, ``detector`` (its name), ``time_h``, ``wavelength_um`` (None for FGS1), ``dq`` and
        ``provenance``.

    Raises
    ------
    ConfigError
        If the signal was left on a device.
    """
    from astropy.nddata import NDDataRef, StdDevUncertainty

    signal = _on_host(cal)
    uncertainty = StdDevUncertainty(_deviation(cal)) if _has_variance(cal) else None
    meta = {
        "planet": cal.planet,
        "visit": cal.visit,
        "detector": cal.detector.name,
        "time_h": cal.time,
        "wavelength_um": cal.wavelength,
        "dq": cal.dq,
        "provenance": dict(cal.provenance),
    }
    mask = np.broadcast_to(cal.mask, signal.shape)
    return NDDataRef(signal, uncertainty=uncertainty, mask=mask, unit="electron", meta=meta)


def to_xarray(cal: _Product) -> xarray.Dataset:
    """Make an `xarray.Dataset`.

    Parameters
    ----------
    cal : Calibrated
        The product, on the host.

    Returns
    -------
    xarray.Dataset
        ``signal`` and, if there is one, ``variance`` over (time, wavelength, spatial), ``dq`` over (wavelength,
        spatial); FGS1's axes are (time, x, y). Coordinates ``time``, hours, and ``wavelength``, µm. Attributes
        ``planet``, ``visit``, ``detector``, and ``provenance`` as JSON, as netCDF holds text and numbers only.

    Raises
    ------
    ConfigError
        If the signal was left on a device.
    MissingExtra
        If xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise MissingExtra('xarray is not installed; pip install "gpucal[xarray]"') from error
    arrays: dict[str, NDArray[Any]] = {"signal": _on_host(cal)}
    if _has_variance(cal):
        arrays["variance"] = cal.variance
    axes = axes_of(cal.detector)
    looked = bool(cal.provenance["settings"].get("cosmic_rays"))  # results of 0.1 do not have it
    return xarray.Dataset(
        {name: (axes, array, {"units": UNITS[name]}) for name, array in arrays.items()}
        | {"dq": (axes[1:], cal.dq, flag_attributes(cosmic=looked))},
        coords={name: (name, values, {"units": UNITS[name]}) for name, values in cal.axes.items()},
        attrs={
            "planet": cal.planet,
            "visit": cal.visit,
            "detector": cal.detector.name,
            "provenance": json.dumps(dict(cal.provenance)),
        },
    )


def to_hdus(cal: _Product) -> fits.HDUList:
    """Lay out a product as a FITS file.

    Parameters
    ----------
    cal : Calibrated
        The product, on the host.

    Returns
    -------
    HDUList
        The primary header has CREATOR, DATE (of the file), PLANET, VISIT, DETECTOR, CAL_VER, CAL_DATE, BACKEND and
        SETHASH. Cards S_ADC, S_MASK, ... say of each step whether it is COMPLETE or SKIPPED. The images are SCI and
        ERR, in electrons, and DQ; ERR has standard deviations, where there is a variance. Their axes are in FITS's
        reversed order. The tables are TIME (h), WAVELENGTH (µm; not for FGS1), and PROVENANCE, one cell of JSON.

    Raises
    ------
    ConfigError
        If the signal was left on a device.
    """
    from astropy.io import fits

    def table(name: str, form: str, values: object, unit: str | None = None) -> fits.BinTableHDU:
        return fits.BinTableHDU.from_columns([fits.Column(name, form, unit, array=values)], name=name)

    signal, history = _on_host(cal), cal.provenance
    primary, science, quality = fits.PrimaryHDU(), fits.ImageHDU(signal, name="SCI"), fits.ImageHDU(cal.dq, name="DQ")
    cards = {
        "CREATOR": f"gpucal {__version__}",
        "DATE": _date(datetime.now(UTC).isoformat(timespec="seconds")),
        "PLANET": cal.planet,
        "VISIT": cal.visit,
        "DETECTOR": cal.detector.name,
        "CAL_VER": f"gpucal {history['version']}",
        "CAL_DATE": _date(history["created"]),
        "BACKEND": history["backend"],
        "SETHASH": history["settings_hash"],
        **{card_of(step): done for step, done in history["steps"].items()},
    }
    for card, value in cards.items():
        primary.header[card] = value
    for bit, flag in enumerate(DQ):
        quality.header[f"DQBIT{bit}"] = flag.name
    images = [science]
    if _has_variance(cal):
        images.append(fits.ImageHDU(_deviation(cal), name="ERR"))
    for image in images:
        image.header["BUNIT"] = "electron"
    tables = [table("TIME", "D", cal.time, "h")]
    if cal.wavelength is not None:
        tables.append(table("WAVELENGTH", "D", cal.wavelength, "um"))
    text = json.dumps(dict(history))
    tables.append(table("PROVENANCE", f"{len(text)}A", [text]))
    return fits.HDUList([primary, *images, quality, *tables])


def flag_attributes(*, cosmic: bool = True) -> dict[str, Any]:
    """Return the CF attributes that explain a data-quality array: ``flag_masks`` and ``flag_meanings``.

    CF requires the masks to have the array's type, uint8. The meanings are words in the order of the masks. Without
    ``cosmic`` COSMIC is not among them: NetCDF-3 files, which have no unsigned numbers, cannot hold its 128.
    """
    flags = [flag for flag in DQ if cosmic or flag != DQ.COSMIC]
    masks = np.array([flag.value for flag in flags], np.uint8)
    return {"flag_masks": masks, "flag_meanings": " ".join(str(flag.name).lower() for flag in flags)}


def _has_variance(cal: _Product) -> bool:
    return cal.plan is not None or cal.stored_variance is not None


def _deviation(cal: _Product) -> NDArray[Any]:
    with np.errstate(invalid="ignore"):  # pixels without a usable flat have no variance
        deviation: NDArray[Any] = np.sqrt(cal.variance)
    return deviation


def _date(moment: str) -> str:
    """Write a UTC time without its zone, as FITS does."""
    return moment.removesuffix("+00:00")


def _on_host(cal: _Product) -> NDArray[Any]:
    """Return the signal, or refuse one on a device: only the caller may ask for a copy to the host."""
    if not isinstance(cal.signal, np.ndarray):
        raise ConfigError(f"{cal.where}: its signal is on a device; call to_host() first")
    return cal.signal
