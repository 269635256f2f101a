"""The calibrated product of one detector of one observation, and its light curves, errors and conversions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from gpucal.display.shown import Shown
from gpucal.display.svg import white_light as white_light_svg
from gpucal.errors import ConfigError, GpucalError, OutputError
from gpucal.pipeline.plots import Curves, draw, figure_of
from gpucal.science.bad_pixels import Mends, find_mends, mean_profile, mends_of, unusable
from gpucal.science.light_curves import (
    Aperture,
    Choices,
    LightCurve,
    light_curve,
    light_curve_of_plan,
    light_curve_with_errors,
    white_light,
)
from gpucal.science.noise import noise_excess, read_variance, variance
from gpucal.science.plan import DQ, Plan
from gpucal.science.pointing import Pointing, pointing
from gpucal.science.quality import motion
from gpucal.science.rejected import NONE, Rejected
from gpucal.science.steps import namespace
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import Detector
from gpucal.settings.ids import ItemId
from gpucal.settings.table import BY_NOISE

if TYPE_CHECKING:
    import xarray
    from astropy.nddata import NDData
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

__all__ = ["Calibrated", "arrays_of"]


@dataclass(frozen=True, eq=False, repr=False)
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
    stored_read_variance : callable, optional
        The same for `read_variance`.
    time_bounds : ndarray of float64, shape (time, 2), optional
        Times of the first and the last read of each bin, hours; None in folders that older versions wrote.
    stored_light_curve : callable, optional
        Reads the light curves with errors that a results folder holds beside the signal.
    rejections : Rejected
        Bins with pairs that cosmic rays hit; `rejected` has the counts of all bins.

    Examples
    --------
    >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
    >>> cal = gpucal.calibrate(obs, "AIRS-CH0")
    >>> cal
    <gpucal Calibrated planet 20955726 visit 0 AIRS-CH0
      signal      (2, 282, 32) (time, wavelength, spatial), electrons, float64
      time        0.01937 to 0.05938 h
      wavelength  3.895 to 1.952 µm
      flags       ... of 9,024 pixels: DEAD ...
      settings    ariel2025
      made        ..., gpucal ...>
    >>> cal.variance.shape, cal.mask.shape
    ((2, 282, 32), (282, 32))
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
    stored_read_variance: Callable[[], NDArray[Any]] | None = field(default=None, repr=False)
    time_bounds: NDArray[np.float64] | None = field(default=None, repr=False)
    stored_light_curve: Callable[[], LightCurve] | None = field(default=None, repr=False)
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
    def item(self) -> ItemId:
        """Planet, visit and detector."""
        return ItemId(self.planet, self.visit, self.detector.name)

    @property
    def where(self) -> str:
        """Planet, visit and detector, for messages."""
        return str(self.item)

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
        return variance(self.signal, self.plan, self.dq, self.rejections, self._mends)

    @cached_property
    def read_variance(self) -> NDArray[np.float64] | None:
        """The part of `variance` that is read noise, shape (wavelength, spatial): it is the same in every bin.

        In a bin with `rejected` pairs the variance is larger as a whole, as its sum was scaled up.

        None if the product was read from a results folder that does not hold it.
        """
        if self.stored_read_variance is not None:
            return self.stored_read_variance()
        return None if self.plan is None else read_variance(self.plan, self.dq, self._mends)

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

        Examples
        --------
        >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
        >>> cal = gpucal.calibrate(obs, "AIRS-CH0")
        >>> cal.light_curve().shape, cal.light_curve(rows=(8, 24)).shape
        ((2, 282), (2, 282))
        """
        aperture = self._aperture(choices)
        if aperture.weights not in BY_NOISE:
            return light_curve(self.signal, self.dq, aperture, mends=self._mends)
        if self.plan is None and self.stored_variance is None and self._is_stored(aperture):
            return self.light_curve_with_errors().flux
        return light_curve(self.signal, self.dq, aperture, self.variance, self._mends)

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
            As for `light_curve`. From a results folder, errors for other choices than those of the settings need its
            variance too.

        Examples
        --------
        >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
        >>> cal = gpucal.calibrate(obs, "AIRS-CH0")
        >>> flux, error = cal.light_curve_with_errors()
        >>> bool((error < flux).all())
        True
        """
        aperture = self._aperture(choices)
        if self.stored_light_curve is not None and self._is_stored(aperture):
            return self.stored_light_curve()
        if self.plan is not None and not aperture.needs_variances and isinstance(self.signal, np.ndarray):
            return light_curve_of_plan(self.signal, self.dq, aperture, self.plan, self.rejections, self._mends)
        return light_curve_with_errors(self.signal, self.dq, aperture, self.variance, self._mends)

    @cached_property
    def _mends(self) -> Mends:
        """The pixels that each bad one was made of, as the signal still shows them."""
        if self.provenance["settings"].get("bad_pixels") == "profile" and (self.dq & np.uint8(DQ.INTERPOLATED)).any():
            return find_mends(self.dq, mean_profile(self.signal))
        return mends_of(self.dq)

    def _is_stored(self, aperture: Aperture) -> bool:
        return self.stored_light_curve is not None and aperture == self._aperture({})

    def _aperture(self, choices: Choices) -> Aperture:
        if unknown := choices.keys() - Choices.__annotations__.keys():
            possible = ", ".join(Choices.__annotations__)
            raise ConfigError(f"light curves: unknown choice {', '.join(sorted(unknown))}; there are {possible}")
        aperture = replace(Aperture.of(self.detector, self.provenance["settings"]), **choices)
        if aperture.weights in BY_NOISE and self.plan is not None and np.isnan(self.plan.read_noise).all():
            need = f"weights = {aperture.weights!r} need"
            raise ConfigError(f"{self.where}: {need} read.parquet, which is missing; use 'plain'")
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

        Examples
        --------
        >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
        >>> cal = gpucal.calibrate(obs, "AIRS-CH0")
        >>> cal.noise_excess(per="wavelength").shape
        (282,)
        """
        if not isinstance(per, str) or per not in ("pixel", "wavelength"):
            raise ConfigError(f"per = {per!r}: must be one of pixel, wavelength")
        if per == "pixel":
            excess: NDArray[np.float64] = noise_excess(self.signal, self.variance)
            return excess
        curve = self.light_curve_with_errors()
        of_curves: NDArray[np.float64] = noise_excess(curve.flux, curve.error**2)
        return of_curves

    def pointing(self) -> Pointing:
        """Measure how the image moves, from a fit of its own mean and of that mean's derivatives.

        Returns
        -------
        Pointing
            ``dx``, ``dy``, ``dx_error``, ``dy_error``, each (time,), pixels, relative to the median, along axes 1 and 2
            of the signal; see `gpucal.science.pointing`. AIRS-CH0 is measured along the slit alone: its ``dx`` is NaN.
            All are NaN where no star is seen.

        Raises
        ------
        ConfigError
            If the read noise is missing.
        OutputError
            If the product was read from a results folder that holds no variances.

        Examples
        --------
        >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
        >>> cal = gpucal.calibrate(obs, "FGS1")
        >>> dx, dy, dx_error, dy_error = cal.pointing()
        >>> bool((dx_error < 0.01).all())
        True
        """
        if self.plan is not None and np.isnan(self.plan.read_noise).all():
            raise ConfigError(f"{self.where}: pointing needs read.parquet, which is missing; copy it to its folder")
        return self._pointing()

    def _motion(self) -> dict[str, Any]:
        """Numbers on the pointing for records; of a spectrum every eighth wavelength, as it costs less."""
        return motion(self._pointing(every=8), photometer=self.detector.photometer)

    def _pointing(self, every: int = 1) -> Pointing:
        """Measure it, of a spectrum at every so many wavelengths; NaN without read noise."""
        of = slice(None) if self.detector.photometer else slice(None, None, every)
        signal = namespace(self.signal).ascontiguousarray(self.signal[:, of])  # read twice, and faster in one piece
        image = np.zeros(self.dq.shape)
        image[of] = _time_mean(signal)
        if self.plan is None:
            noise = _time_mean(self.variance)
        else:  # that of the mean, which needs no cube of variances
            with np.errstate(over="ignore"):
                one_bin = replace(self.plan, tau_s=self.plan.tau_s[:1])
                noise = variance(image[None], one_bin, self.dq, mends=self._mends)[0]
        return pointing(signal, self.dq[of], noise[of], photometer=self.detector.photometer, image=image[of])

    def plot(self, figure: FigureBase | None = None) -> dict[str, Axes]:
        """Draw the product: white light with errors and scatter, wavelengths over time, mean spectrum, flags.

        Parameters
        ----------
        figure : matplotlib Figure or SubFigure, optional
            An empty one with a constrained layout; by default a new one of ``matplotlib.pyplot``.

        Returns
        -------
        dict of str to Axes
            ``white``, ``residuals``, ``flags``, and ``image`` and ``spectrum``, or ``mean`` for FGS1.

        Raises
        ------
        MissingExtra
            If matplotlib is not installed.

        Examples
        --------
        >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
        >>> cal = gpucal.calibrate(obs, "AIRS-CH0")
        >>> axes = cal.plot()
        >>> sorted(axes)
        ['flags', 'image', 'residuals', 'spectrum', 'white']
        >>> axes["white"].figure.figure.savefig("light-curve.png")
        """
        drawn = draw(figure_of(figure, 8.0), self.where, [self.to_host()._curves()])
        return drawn[self.detector.name]

    def _curves(self) -> Curves:
        """Compute what is drawn, with errors where a variance is known."""
        has_errors = any(of is not None for of in (self.plan, self.stored_variance, self.stored_light_curve))
        flux, error = self.light_curve_with_errors() if has_errors else (self.light_curve(), None)
        with np.errstate(invalid="ignore", over="ignore"):  # of bad pixels
            image = np.where(self.mask, np.nan, self.signal.mean(axis=0, dtype=np.float64))
        return Curves(self.detector, self.time, flux, error, self.wavelength, self.dq, image)

    def __repr__(self) -> str:
        return self._shown().text()

    def _repr_html_(self) -> str:
        shown = self._shown()
        if not isinstance(self.signal, np.ndarray):
            return Shown(shown.title, {**shown.facts, "white light": "on the device; to_host() copies it"}).html()
        try:
            white, _ = white_light(self.light_curve())
        except GpucalError as error:
            return Shown(shown.title, {**shown.facts, "white light": str(error)}).html()
        return Shown(shown.title, shown.facts, white_light_svg({self.detector.name: (self.time, white)})).html()

    def _shown(self) -> Shown:
        axes = "(time, x, y)" if self.detector.photometer else "(time, wavelength, spatial)"
        counts = {str(flag.name): int(((self.dq & np.uint8(flag)) != 0).sum()) for flag in DQ}
        flags = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
        facts = {"signal": f"{self.signal.shape} {axes}, electrons, {self.signal.dtype}"}
        facts |= {
            name: _span(values, unit) for (name, values), unit in zip(self.axes.items(), ("h", "µm"), strict=False)
        }
        facts["flags"] = f"{int((self.dq != 0).sum()):,} of {self.dq.size:,} pixels" + (f": {flags}" if flags else "")
        history = self.provenance
        facts["settings"] = Calibration.from_dict(history["settings"]).summary
        facts["made"] = f"{history['created']}, gpucal {history['version']}, {history['backend']}"
        return Shown(f"Calibrated {self.where}", facts)

    def to_host(self) -> Calibrated:
        """Copy a result that was left on a device to NumPy arrays.

        Returns
        -------
        Calibrated
            The copy, or this object if its arrays are NumPy arrays.

        Examples
        --------
        >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
        >>> cal = gpucal.calibrate(obs, "AIRS-CH0")
        >>> cal.to_host() is cal  # it was not left on a device
        True
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

        Examples
        --------
        >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
        >>> cal = gpucal.calibrate(obs, "AIRS-CH0")
        >>> cal.to_nddata().unit
        Unit("electron")
        """
        from gpucal.pipeline.convert import to_nddata

        return to_nddata(self)

    def to_xarray(self) -> xarray.Dataset:
        """Make an `xarray.Dataset`: named axes, time and wavelength as coordinates, units.

        Returns
        -------
        xarray.Dataset
            ``signal``, ``variance``, ``dq``; see `gpucal.pipeline.convert.to_xarray`.

        Examples
        --------
        >>> obs = gpucal.open_dataset("ariel-data-challenge-2025")[20955726]
        >>> cal = gpucal.calibrate(obs, "AIRS-CH0")
        >>> cal.to_xarray()["signal"].dims
        ('time', 'wavelength', 'spatial')
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


def _time_mean(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean over time, on the host."""
    xp = namespace(values)
    with np.errstate(invalid="ignore", over="ignore"):
        mean: Any = xp.sum(values, axis=0, dtype=xp.float64) / len(values)
    host: NDArray[np.float64] = mean.get() if hasattr(mean, "get") else mean
    return host


def _span(values: NDArray[np.float64], unit: str) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g} {unit}" if values.size else "none"


def arrays_of(cal: Calibrated, product: str, with_variance: bool) -> dict[str, NDArray[Any]]:
    """Return the arrays that a results folder stores for an item, by kind.

    All have ``flux`` and ``error``, ``dq``, ``time``, ``bounds`` (of the bins) and ``wavelength``. Where cosmic rays
    were looked for, all have ``rejected`` too: `Rejected.table`. Cubes have ``signal``, and with ``with_variance``,
    ``variance`` and its part ``readvariance``.
    """
    kind = cal.signal.dtype
    axes: dict[str, NDArray[Any]] = cal.axes | ({} if cal.time_bounds is None else {"bounds": cal.time_bounds})
    if cal.provenance["settings"]["cosmic_rays"] > 0:
        axes |= {"rejected": cal.rejections.table(cal.detector.width)}
    with np.errstate(over="ignore"):  # outliers may exceed float32's range
        curve = cal.light_curve_with_errors()
        curves = {"flux": curve.flux.astype(kind), "error": curve.error.astype(kind)}
        if product == "light-curves":
            return {**curves, "dq": cal.dq, **axes}
        variances = {"variance": cal.variance, "readvariance": cal.read_variance} if with_variance else {}
        stored = {name: values.astype(kind) for name, values in variances.items() if values is not None}
    return {"signal": cal.signal, "dq": cal.dq, **stored, **curves, **axes}
