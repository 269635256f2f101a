"""Transit depths from light curves: a weighted linear fit of a known transit shape, every wavelength at once.

    flux[b] = F₀ · (1 − depth · shape[b])

is a straight line in the shape. Both its parameters are fitted with weights 1 / error², and the depth is their ratio.
The flux errors are not rescaled to the scatter, so χ² tests them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpucal.errors import ConfigError
from gpucal.settings.arguments import kind_of

__all__ = ["DepthFit", "fit_depth"]


class DepthFit(NamedTuple):
    """A fit of each light curve.

    Parameters
    ----------
    depth, error : ndarray of float64, shape (...)
        Fraction of the light lost where the shape is 1, and its standard deviation according to the flux errors.
    level : ndarray of float64, shape (...)
        F₀, flux out of transit.
    chi2 : ndarray of float64, shape (...)
        Of the residuals in time.
    dof : ndarray of int, shape (...)
        Bins used, less the two parameters.
    """

    depth: NDArray[np.float64]
    error: NDArray[np.float64]
    level: NDArray[np.float64]
    chi2: NDArray[np.float64]
    dof: NDArray[np.intp]


def fit_depth(flux: ArrayLike, error: ArrayLike, shape: ArrayLike) -> DepthFit:
    """Fit the depth of a transit of known shape.

    Parameters
    ----------
    flux, error : array of float64, shape (time, ...)
        Light curves and their standard deviations, such as `gpucal.Calibrated.light_curve_with_errors` gives. A bin
        that is not finite, or whose error is not above 0, is left out.
    shape : array of float64, shape (time,)
        Transit shape in each bin, 0 outside; its unit is that of the depth.

    Returns
    -------
    DepthFit
        Of each light curve; NaN if fewer than two bins can be used, or all of them have the same shape value.

    Raises
    ------
    ConfigError
        If an argument is not an array of real numbers, or the shapes do not fit.
    """
    values, sigma, template = _numbers("flux", flux), _numbers("error", error), _numbers("shape", shape)
    if not values.ndim or template.shape != values.shape[:1]:
        raise ConfigError(
            f"shape: has shape {template.shape}, expected {values.shape[:1] or '(time,)'}, a number a bin"
        )
    try:
        sigma = np.broadcast_to(sigma, values.shape)
    except ValueError as error_:
        raise ConfigError(f"error: has shape {sigma.shape}, expected {values.shape}, that of flux") from error_
    template = template.reshape(-1, *[1] * (values.ndim - 1))
    used = np.isfinite(values) & np.isfinite(sigma) & (sigma > 0.0)
    values = np.where(used, values, 0.0)
    weight = np.where(used, 1.0 / np.where(used, sigma, 1.0) ** 2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weight.sum(axis=0)
        # about the weighted means the two parameters of the line are independent
        centre, middle = (weight * template).sum(axis=0) / total, (weight * values).sum(axis=0) / total
        offset = template - centre
        spread = (weight * offset**2).sum(axis=0)
        slope = (weight * offset * (values - middle)).sum(axis=0) / spread
        level = middle - slope * centre
        depth = -slope / level
        # depth = −slope / level: d(depth) = −((1 − depth · centre) · d(slope) + depth · d(middle)) / level
        sigma_depth = np.sqrt((1.0 - depth * centre) ** 2 / spread + depth**2 / total) / np.abs(level)
        chi2 = (weight * (values - middle - slope * offset) ** 2).sum(axis=0)
    # By the shapes themselves: their mean is rounded, so that equal ones may seem to have a spread.
    lowest = np.where(used, template, np.inf).min(axis=0, initial=np.inf)
    highest = np.where(used, template, -np.inf).max(axis=0, initial=-np.inf)
    depth, sigma_depth, level, chi2 = (
        np.where(lowest < highest, one, np.nan) for one in (depth, sigma_depth, level, chi2)
    )
    return DepthFit(depth, sigma_depth, level, chi2, used.sum(axis=0) - 2)


def _numbers(name: str, given: object) -> NDArray[np.float64]:
    try:
        if np.asarray(given).dtype.kind == "c":
            raise TypeError("complex numbers")
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: is {kind_of(given)}, must be an array of real numbers") from error
