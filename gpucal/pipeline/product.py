"""The attributes of a calibrated product that conversions read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import ConfigError
from gpucal.settings.detectors import Detector

__all__ = ["Product", "deviation", "has_variance", "on_host"]


class Product(Protocol):
    """The attributes of `Calibrated` that are read; its methods import the conversions, which cannot import it."""

    @property
    def planet(self) -> int:
        """The planet's id."""

    @property
    def visit(self) -> int:
        """The number of the observation, from 0."""

    @property
    def detector(self) -> Detector:
        """The detector, with its crop."""

    @property
    def signal(self) -> NDArray[Any]:
        """Electrons, (time, wavelength, spatial)."""

    @property
    def dq(self) -> NDArray[np.uint8]:
        """Data-quality flags, (wavelength, spatial)."""

    @property
    def time(self) -> NDArray[np.float64]:
        """Mean time of each bin, hours."""

    @property
    def wavelength(self) -> NDArray[np.float64] | None:
        """Wavelengths, µm, or None."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How it was made."""

    @property
    def plan(self) -> object:
        """The formula's arrays, or None."""

    @property
    def stored_variance(self) -> object:
        """Reads a stored variance, or None."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Unusable pixels, (wavelength, spatial)."""

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance of the signal, electrons²."""

    @property
    def read_variance(self) -> NDArray[np.float64] | None:
        """Its part that is read noise, (wavelength, spatial), or None."""

    @property
    def time_bounds(self) -> NDArray[np.float64] | None:
        """First and last read of each bin, hours, (time, 2), or None."""

    @property
    def axes(self) -> Mapping[str, NDArray[np.float64]]:
        """The axes by name."""

    @property
    def where(self) -> str:
        """Planet, visit and detector, for messages."""


def has_variance(cal: Product) -> bool:
    """Tell whether there is a variance, computed or stored."""
    return cal.plan is not None or cal.stored_variance is not None


def deviation(cal: Product) -> NDArray[Any]:
    """Return the standard deviations of the signal, electrons."""
    with np.errstate(invalid="ignore"):  # pixels without a usable flat have no variance
        result: NDArray[Any] = np.sqrt(cal.variance)
    return result


def on_host(cal: Product) -> NDArray[Any]:
    """Return the signal, or refuse one on a device: only the caller may ask for a copy to the host."""
    if not isinstance(cal.signal, np.ndarray):
        raise ConfigError(f"{cal.where}: its signal is on a device; call to_host() first")
    return cal.signal
