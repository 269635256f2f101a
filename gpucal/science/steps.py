"""The seven steps as pure functions: the readable specification, for any array namespace (NumPy, CuPy, array API).

Raw detector reads come as ``(frame, spatial, wavelength)``; the result of each step is the input of the next:

    electrons = adc(raw, gain, offset)
    masked    = mask(electrons, dead | hot)            # only to make masked samples NaN
    electrons = linearity(electrons, coefficients)
    electrons = dark(electrons, dark_map, integration_s, dead)
    pairs     = cds(electrons)
    bins      = bin(pairs, 30)
    signal    = flat(bins, flat_map, dead)

Everything is float64, no input is changed, and results stay on the device of the inputs. The source of each formula is
the organisers' calibration notebook of 14 August 2024.

Examples
--------
>>> reads = np.array([[[1000]], [[1500]], [[1000]], [[1700]]], np.uint16)
>>> electrons = gpucal.steps.adc(reads, gain=2.0, offset=-100.0)
>>> pairs = gpucal.steps.cds(electrons)
>>> gpucal.steps.bin(pairs, 2)[:, 0, 0]
array([600.])
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, TypeAlias

import numpy as np

from gpucal.errors import ConfigError

__all__ = ["STEPS", "Array", "adc", "bin", "cds", "dark", "flat", "linearity", "mask", "namespace", "time_parts"]

STEPS: Mapping[str, str | None] = MappingProxyType(
    {
        "adc": None,
        "mask": "mask",
        "linearity": "linearity",
        "dark": "dark",
        "cds": None,
        "bin": "binning",
        "flat": "flat",
    }
)
"""The steps in the notebook's order, and the setting that leaves one out; None where there is no such setting."""

Array: TypeAlias = Any
"""An array of any namespace that follows the array API standard."""

# Values in a slice of `time_parts`: 2 MiB in float64.
_PART = 2**18

P = ParamSpec("P")


def _step(step: Callable[P, Array]) -> Callable[P, Array]:
    """Have arguments of a wrong type or shape be a ConfigError of one line that names the step."""

    @wraps(step)
    def checked(*args: P.args, **options: P.kwargs) -> Array:
        try:
            return step(*args, **options)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            problem = " ".join(str(error).split())
            mend = "give arrays of one library, in the shapes that help() shows"
            raise ConfigError(f"gpucal.steps.{step.__name__}: {problem}; {mend}") from error

    return checked


@_step
def adc(raw: Array, gain: float, offset: float, *, clip_negatives: bool = False) -> Array:
    """Turn raw counts into electrons: ``raw / gain + offset``.

    Parameters
    ----------
    raw : array of unsigned integer, shape (frame, spatial, wavelength)
        Raw counts.
    gain : float
        Counts an electron. The 2024 documentation says multiply; every official notebook divides.
    offset : float
        Electrons.
    clip_negatives : bool
        Raise negative results to zero.

    Returns
    -------
    array of float64, shape (frame, spatial, wavelength)
        Electrons.

    Examples
    --------
    >>> gpucal.steps.adc(np.full((2, 1, 1), 100, np.uint16), gain=0.5, offset=-1000.0).ravel()
    array([-800., -800.])
    """
    xp, raw = _float64(raw)
    electrons = raw / gain + offset
    return xp.where(electrons < 0.0, xp.zeros_like(electrons), electrons) if clip_negatives else electrons


@_step
def mask(electrons: Array, bad: Array) -> Array:
    """Set the samples of bad pixels to NaN, so that no later step can lose the mask.

    The notebook builds a masked array here and loses the mask in the next assignment. `gpucal` keeps values and mask
    apart (the data-quality map); this step is for users who want both in one array.

    Parameters
    ----------
    electrons : array of float64, shape (frame, spatial, wavelength)
        Electrons.
    bad : array of bool, shape (spatial, wavelength)
        Pixels to mask.

    Returns
    -------
    array of float64, shape (frame, spatial, wavelength)
        Electrons, NaN at bad pixels.

    Examples
    --------
    >>> gpucal.steps.mask(np.ones((2, 1, 2)), np.array([[False, True]])).ravel()
    array([ 1., nan,  1., nan])
    """
    xp, electrons = _float64(electrons)
    return xp.where(bad[None, :, :], xp.full_like(electrons, xp.nan), electrons)


@_step
def linearity(electrons: Array, coefficients: Array) -> Array:
    """Undo the non-linearity: ``Σ_k coefficients[k] · electrons**k``, by Horner's rule over all pixels at once.

    Parameters
    ----------
    electrons : array of float64, shape (frame, spatial, wavelength)
        Electrons.
    coefficients : array of float64, shape (degree + 1, spatial, wavelength)
        Ascending powers.

    Returns
    -------
    array of float64, shape (frame, spatial, wavelength)
        Linearised electrons.

    Examples
    --------
    >>> gpucal.steps.linearity(np.full((1, 1, 1), 2.0), np.array([0.0, 1.0, 0.5]).reshape(3, 1, 1)).ravel()
    array([4.])
    """
    xp, electrons = _float64(electrons)
    result = xp.zeros_like(electrons) + coefficients[-1, ...]
    for power in range(coefficients.shape[0] - 2, -1, -1):
        result = result * electrons + coefficients[power, ...]
    return result


@_step
def dark(electrons: Array, dark_map: Array, integration_s: Array, dead: Array) -> Array:
    """Subtract the dark current of each frame: ``electrons − dark_map · integration_s``.

    Parameters
    ----------
    electrons : array of float64, shape (frame, spatial, wavelength)
        Electrons.
    dark_map : array of float64, shape (spatial, wavelength)
        Dark current, electrons a second.
    integration_s : array of float64, shape (frame,)
        Integration time of each frame, s.
    dead : array of bool, shape (spatial, wavelength)
        Dead pixels, which are left alone. (The notebook subtracts their dark without the time; CDS cancels that.)

    Returns
    -------
    array of float64, shape (frame, spatial, wavelength)
        Electrons without dark current.

    Examples
    --------
    >>> electrons, seconds = np.full((2, 1, 1), 10.0), np.array([0.1, 4.6])
    >>> gpucal.steps.dark(electrons, np.array([[2.0]]), seconds, np.array([[False]])).ravel()
    array([9.8, 0.8])
    """
    xp, electrons = _float64(electrons)
    used = xp.where(dead, xp.zeros_like(dark_map), dark_map)
    return electrons - used[None, :, :] * integration_s[:, None, None]


@_step
def cds(electrons: Array) -> Array:
    """Correlated double sampling: end read minus start read, ``electrons[1::2] − electrons[0::2]``.

    Parameters
    ----------
    electrons : array of float64, shape (frame, spatial, wavelength)
        An even number of frames.

    Returns
    -------
    array of float64, shape (pair, spatial, wavelength)
        Electrons gathered between the two reads.

    Raises
    ------
    ConfigError
        If the number of frames is odd.

    Examples
    --------
    >>> gpucal.steps.cds(np.array([1.0, 5.0, 2.0, 8.0]).reshape(4, 1, 1)).ravel()
    array([4., 6.])
    """
    _, electrons = _float64(electrons)  # whole numbers without a sign would wrap
    if electrons.shape[0] % 2:
        raise ValueError(f"needs an even number of frames, got {electrons.shape[0]}")
    return electrons[1::2, ...] - electrons[0::2, ...]


@_step
def bin(pairs: Array, pairs_per_bin: int, *, reduce: str = "sum") -> Array:
    """Sum or average whole bins of consecutive CDS pairs; pairs past the last whole bin are dropped.

    Parameters
    ----------
    pairs : array of float64, shape (pair, spatial, wavelength)
        CDS pairs, electrons.
    pairs_per_bin : int
        Pairs in a bin.
    reduce : {'sum', 'mean'}
        A bin holds the sum of its pairs, or their mean.

    Returns
    -------
    array of float64, shape (bin, spatial, wavelength)
        Electrons.

    Examples
    --------
    >>> gpucal.steps.bin(np.array([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1), 2).ravel()
    array([3., 7.])
    """
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce = {reduce!r}, must be sum or mean")
    xp, pairs = _float64(pairs)
    n_bins = pairs.shape[0] // pairs_per_bin
    grouped = xp.reshape(pairs[: n_bins * pairs_per_bin, ...], (n_bins, pairs_per_bin, *pairs.shape[1:]))
    total = xp.sum(grouped, axis=1)
    return total / pairs_per_bin if reduce == "mean" else total


@_step
def flat(bins: Array, flat_map: Array, dead: Array) -> Array:
    """Divide by the flat field: ``bins / flat_map``; dead pixels are left alone, as in the notebook.

    Parameters
    ----------
    bins : array of float64, shape (bin, spatial, wavelength)
        Electrons.
    flat_map : array of float64, shape (spatial, wavelength)
        Relative response. Where it is zero the result is infinite or NaN: such pixels are flagged BAD_FLAT.
    dead : array of bool, shape (spatial, wavelength)
        Dead pixels.

    Returns
    -------
    array of float64, shape (bin, spatial, wavelength)
        Flat-fielded electrons.

    Examples
    --------
    >>> gpucal.steps.flat(np.full((1, 1, 2), 6.0), np.array([[2.0, 3.0]]), np.zeros((1, 2), bool)).ravel()
    array([3., 2.])
    """
    xp, bins = _float64(bins)
    with np.errstate(divide="ignore", invalid="ignore"):
        return bins / xp.where(dead, xp.ones_like(flat_map), flat_map)[None, :, :]


def _float64(array: Array) -> tuple[Array, Array]:
    """Return an array's namespace, and the array as float64."""
    xp = namespace(array)
    return xp, xp.asarray(array, dtype=xp.float64)


def namespace(array: Array) -> Array:
    """Return an array's own namespace, such as NumPy; arrays of NumPy 1.26 and of CuPy tell it by their type alone."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    home = sys.modules[type(array).__module__.partition(".")[0]]
    if not hasattr(home, "asarray"):
        raise TypeError(f"{type(array).__name__} is not a kind of array")
    return home


def time_parts(cube: Array) -> Iterator[slice]:
    """Cut the time axis of a cube into slices, so that work on one slice needs little memory beside the cube.

    A slice has at most a sixteenth of the bins, and no more values than a processor's cache holds.
    """
    n, *frame = cube.shape
    step = max(1, min(n // 16, _PART // max(1, math.prod(frame))))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
