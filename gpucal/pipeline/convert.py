"""Converts a calibrated product to astropy and xarray objects, with its provenance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import MissingExtra
from gpucal.pipeline.conventions import about, attributes, axes_of, detector_axes, flag_attributes
from gpucal.pipeline.product import Product, deviation, has_variance, on_host

if TYPE_CHECKING:
    import xarray
    from astropy.nddata import NDDataRef

__all__ = ["to_nddata", "to_xarray"]


def to_nddata(cal: Product) -> NDDataRef:
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

    signal = on_host(cal)
    uncertainty = StdDevUncertainty(deviation(cal)) if has_variance(cal) else None
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


def to_xarray(cal: Product) -> xarray.Dataset:
    """Make an `xarray.Dataset`.

    Parameters
    ----------
    cal : Calibrated
        The product, on the host.

    Returns
    -------
    xarray.Dataset
        ``signal`` and, if there is one, ``variance`` over (time, wavelength, spatial); ``read_variance``, its part that
        is read noise, and ``dq`` over (wavelength, spatial). FGS1's axes are (time, x, y). Coordinates: ``time``,
        hours, with the ``time_bounds`` of each bin; ``wavelength``, µm; ``column`` and ``row`` of the detector.
        Attributes: those of CF, ``planet``, ``visit``, ``detector``, and ``provenance`` as JSON, as netCDF holds text
        and numbers only.

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
    axes = axes_of(cal.detector)
    arrays: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {"signal": (axes, on_host(cal))}
    if has_variance(cal):
        arrays["variance"] = axes, cal.variance
        if cal.read_variance is not None:
            arrays["read_variance"] = axes[1:], cal.read_variance
    arrays["dq"] = axes[1:], cal.dq
    coordinates: dict[str, tuple[str | tuple[str, ...], NDArray[Any]]]
    coordinates = {name: (name, values) for name, values in cal.axes.items()}
    coordinates |= detector_axes(cal.detector)
    if cal.time_bounds is not None:
        coordinates["time_bounds"] = ("time", "bounds"), cal.time_bounds
    made = xarray.Dataset(
        {name: (*of, attributes(name)) for name, of in arrays.items()},
        coords={name: (*of, attributes(name)) for name, of in coordinates.items()},
        attrs={
            **about(cal),
            "planet": cal.planet,
            "visit": cal.visit,
            "detector": cal.detector.name,
            "provenance": json.dumps(dict(cal.provenance)),
        },
    )
    if cal.time_bounds is not None:
        made["time"].attrs["bounds"] = "time_bounds"
    if not cal.provenance["settings"].get("cosmic_rays"):  # results of 0.1 do not have it
        made["dq"].attrs |= flag_attributes(cosmic=False)
    return made
