"""The calibrated product of one detector of one observation, and its light curves, errors and conversions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import ConfigError, OutputError
from gpucal.science.bad_pixels import unusable
from gpucal.science.light_curves import Aperture, Choices, LightCurve, light_curve, light_curve_with_errors
from gpucal.science.noise import noise_excess, variance
from gpucal.science.plan import Plan
from gpucal.science.rejected import NONE, Rejected
from gpucal.settings.detectors import Detector

if TYPE_CHECKING:
    import xarray
    from astropy.nddata import NDData

__all__ = ["Calibrated", "arrays_of"]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """One detector of one observation, calibrated and binned.

    Array libraries read the signal by DLPack: ``torch.from_dlpack(cal)``, ``np.from_dlpack(cal)``.

    Parameters
    ----------
    planet, visit : int
        The observation's planet and visit.
    detector : Detector
        The detector, with the crop that was used.
    signal : ndarray of float64 or float32, shape (time, wavelength, spatial)
        Electrons. A NumPy array, or a CuPy array where the result was left on a device.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags, see `gpucal.DQ`; 0 is good.
    time : ndarray of float64, shape (time,)
        Mean time of each bin, hours.
    wavelength : ndarray of float64, shape (wavelength,), or None
        µm, descending; None for FGS1, and where ``axis_info.parquet`` is missing.
    provenance : mapping
        Steps, settings and their hash, input fingerprints, versions, backend, device, date; see
        `gpucal.pipeline.provenance`.
    plan : Plan, optional
        The formula's arrays; None where the product was read from a results folder.
    stored_variance : callable, optional
        Reads the variance from the results folder, where it is stored there.
    rejections : Rejected
        Bins with pairs that cosmic rays hit; `rejected` has the counts of all bins.
    """

    planet: int
    visit: int
    detector: Detector
    signal: NDArray[Any]
    dq: NDArray[np.uint8]
    time: NDArray[np.float64]
    wavelength: NDArray[np.float64] | None
    provenance: Mapping[str, Any]
    plan: Plan | None = field(default=None, repr=False)
    stored_variance: Callable[[], NDArray[Any]] | None = field(default=None, repr=False)
    rejections: Rejected = field(default=NONE, repr=False)

    @property
    def rejected(self) -> NDArray[np.int32]:
        """Pairs of each bin that were left out as hit by cosmic rays, shape (time, wavelength, spatial)."""
        return self.rejections.counts(self.signal.shape)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Unusable pixels, shape (wavelength, spatial): True where a pixel has a flag and was not interpolated."""
        return unusable(self.dq)

    @property
    def where(self) -> str:
        """Planet, visit and detector, for messages."""
        return f"planet {self.planet} visit {self.visit} {self.detector.name}"

    @property
    def axes(self) -> dict[str, NDArray[np.float64]]:
        """The axes by name: ``time``, hours, and ``wavelength``, µm, which a photometer does not have."""
        return {"time": self.time} | ({} if self.wavelength is None else {"wavelength": self.wavelength})

    @cached_property
    def variance(self) -> NDArray[np.float64]:
        """Variance of the signal, electrons², same shape; see `gpucal.science.noise.variance`.

        Raises
        ------
        OutputError
            If the product was read from a results folder that holds no variances.
        """
        if self.stored_variance is not None:
            return self.stored_variance()
        if self.plan is None:
            raise OutputError(f"{self.where}: its folder holds no variance; calibrate with --variance")
        return variance(self.signal, self.plan, self.dq, self.rejections)

    def light_curve(self, **choices: Unpack[Choices]) -> NDArray[np.float64]:
        """Sum the signal over usable pixels, see `gpucal.science.light_curves`.

        Parameters
        ----------
        **choices
            ``weights``, ``rows``, ``background_rows``, ``background``, ``columns`` of
            `gpucal.science.light_curves.Aperture`. The settings decide the choices that are not given.

        Returns
        -------
        ndarray of float64, shape (time, wavelength) or (time, 1)
            Electrons, on the signal's device. NaN where no pixel is usable, or none of the chosen background rows.

        Raises
        ------
        ConfigError
            If a choice is not possible.
        OutputError
            If weights need a variance that was not stored.
        """
        aperture = self._aperture(choices)
        variances = self.variance if aperture.weights == "variance" else None
        return light_curve(self.signal, self.dq, aperture, variances)

    def light_curve_with_errors(self, **choices: Unpack[Choices]) -> LightCurve:
        """Sum the signal over usable pixels, with errors.

        Parameters
        ----------
        **choices
            As for `light_curve`.

        Returns
        -------
        LightCurve
            ``flux`` and ``error``, each (time, wavelength) or (time, 1), electrons, on the signal's device.

        Raises
        ------
        ConfigError, OutputError
            As for `light_curve`; errors need the variance too.
        """
        return light_curve_with_errors(self.signal, self.dq, self._aperture(choices), self.variance)

    def _aperture(self, choices: Choices) -> Aperture:
        if unknown := choices.keys() - Choices.__annotations__.keys():
            possible = ", ".join(Choices.__annotations__)
            raise ConfigError(f"light curves: unknown choice {', '.join(sorted(unknown))}; there are {possible}")
        aperture = replace(Aperture.of(self.detector, self.provenance["settings"]), **choices)
        if aperture.weights == "variance" and self.plan is not None and np.isnan(self.plan.read_noise).all():
            raise ConfigError(f"{self.where}: weights = 'variance' need read.parquet, which is missing; use 'plain'")
        return aperture

    def noise_excess(self, per: str = "pixel") -> NDArray[np.float64]:
        """Compare the scatter of consecutive bins with the noise formula.

        A value of 1 is the detector's own noise; larger values are jitter.

        Parameters
        ----------
        per : {'pixel', 'wavelength'}
            Compare each pixel, or each light curve.

        Returns
        -------
        ndarray of float64, shape (wavelength, spatial) or (wavelength,)
            Measured over expected standard deviation, see `gpucal.science.noise.noise_excess`. FGS1's light curve has
            shape (1,).

        Raises
        ------
        ConfigError
            If ``per`` is neither of the two.
        """
        if per not in ("pixel", "wavelength"):
            raise ConfigError(f"per = {per!r}: must be one of pixel, wavelength")
        if per == "pixel":
            excess: NDArray[np.float64] = noise_excess(self.signal, self.variance)
            return excess
        curve = self.light_curve_with_errors()
        of_curves: NDArray[np.float64] = noise_excess(curve.flux, curve.error**2)
        return of_curves

    def to_host(self) -> Calibrated:
        """Copy a result that was left on a device to NumPy arrays.

        Returns
        -------
        Calibrated
            The copy, or this object if its arrays are NumPy arrays.
        """
        signal = self.signal
        if isinstance(signal, np.ndarray):
            return self
        return replace(self, signal=signal.get())

    def to_nddata(self) -> NDData:
        """Make an `astropy.nddata.NDData` with electrons, mask and standard deviations; ``meta`` has the rest.

        Returns
        -------
        NDData
            Axes (time, wavelength, spatial); see `gpucal.pipeline.convert.to_nddata`.
        """
        from gpucal.pipeline.convert import to_nddata

        return to_nddata(self)

    def to_xarray(self) -> xarray.Dataset:
        """Make an `xarray.Dataset`: named axes, time and wavelength as coordinates, units.

        Returns
        -------
        xarray.Dataset
            ``signal``, ``variance``, ``dq``; see `gpucal.pipeline.convert.to_xarray`.
        """
        from gpucal.pipeline.convert import to_xarray

        return to_xarray(self)

    def __dlpack__(self, **how: object) -> object:
        signal: Any = self.signal
        capsule: object = signal.__dlpack__(**how)
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self.signal.__dlpack_device__()
        return int(kind), int(number)


def arrays_of(cal: Calibrated, product: str, with_variance: bool) -> dict[str, NDArray[Any]]:
    """Return the arrays that a results folder stores for an item, by kind.

    Cubes have ``signal`` and, with ``with_variance``, ``variance``; light curves have ``flux`` and ``error``. Both have
    ``dq``, ``time`` and ``wavelength``, and where cosmic rays were looked for, ``rejected``: `Rejected.table`.
    """
    kind = cal.signal.dtype
    looked = cal.provenance["settings"]["cosmic_rays"] > 0
    rejected = {"rejected": cal.rejections.table(cal.detector.width)} if looked else {}
    with np.errstate(over="ignore"):  # outliers may exceed float32's range
        if product == "light-curves":
            curve = cal.light_curve_with_errors()
            return {
                "flux": curve.flux.astype(kind),
                "error": curve.error.astype(kind),
                "dq": cal.dq,
                **rejected,
                **cal.axes,
            }
        variances = {"variance": cal.variance.astype(kind)} if with_variance else {}
    return {"signal": cal.signal, "dq": cal.dq, **variances, **rejected, **cal.axes}
