"""The formula compiled by Numba: one pass over the counts, in registers. On a CPU with Numba, it is the default."""

from __future__ import annotations

import functools
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import BackendUnavailable
from gpucal.inputs.calibration_files import DEGREE
from gpucal.science.plan import Plan

__all__ = ["bin_block", "probe"]

log = logging.getLogger(__name__)

_IN = "Array({}, {}, 'C', readonly=True)".format
_SIGNATURE = (
    f"void({_IN('u2', 2)}, {_IN('f8', 2)}, f8, i8, {_IN('f8', 1)}, {_IN('f8', 1)}, {_IN('f8', 1)}, f8[:, ::1], u2[::1])"
)

# Sums may be reordered and multiplications fused with additions. Full fastmath would assume away NaN and infinity.
_RELAXED = {"contract", "reassoc"}

# Errors of unpickling a damaged cache.
_DAMAGED = (EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, ImportError)


def probe() -> str:
    """Compile the formula, or load it from the cache, and return Numba's version."""
    _compiled()
    import numba

    return f"Numba {numba.__version__}"


def bin_block(plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Evaluate the formula over one pixel block.

    ``out[p, b] = (Σ_pairs [P(n_end) − P(n_start)] − dark·τ[b]) / divisor``; P's constant cancels and is left out.

    Parameters
    ----------
    plan : Plan
        The arrays of the formula.
    pixels : slice
        The plan's pixels that the block holds.
    counts : ndarray of uint16, shape (pixel, frame)
        Raw counts, C-contiguous.
    out : ndarray of float64, shape (pixel, bin)
        Filled with electrons; C-contiguous.

    Returns
    -------
    ndarray of bool, shape (pixel,)
        True where a used count is saturated.
    """
    # The last operation is an addition, of a zero c0. So LLVM cannot fuse a multiplication into the difference of two
    # reads, and equal reads differ by exactly 0.
    coefficients = np.zeros((len(counts), DEGREE + 1))
    coefficients[:, 1 : len(plan.coefficients)] = plan.coefficients[1:, pixels].T
    highest = np.empty(len(counts), np.uint16)
    dark, divisor = plan.dark[pixels], plan.divisor[pixels]
    _compiled()(counts, coefficients, plan.floor, plan.pairs_per_bin, dark, plan.tau_s, divisor, out, highest)
    saturated: NDArray[np.bool_] = highest >= plan.saturation
    return saturated


def _bin_pixels(
    counts: NDArray[np.uint16],
    coefficients: NDArray[np.float64],
    floor: float,
    pairs_per_bin: int,
    dark: NDArray[np.float64],
    tau_s: NDArray[np.float64],
    divisor: NDArray[np.float64],
    out: NDArray[np.float64],
    highest: NDArray[np.uint16],
) -> None:
    for p in range(counts.shape[0]):
        c0, c1, c2, c3, c4, c5 = coefficients[p]
        top = 0
        for b in range(out.shape[1]):
            first = 2 * pairs_per_bin * b
            total = 0.0
            for i in range(pairs_per_bin):
                start, end = counts[p, first + 2 * i], counts[p, first + 2 * i + 1]
                top = max(top, max(start, end))
                x, y = float(start), float(end)
                x = x if x > floor else floor
                y = y if y > floor else floor
                start_e = ((((c5 * x + c4) * x + c3) * x + c2) * x + c1) * x + c0
                end_e = ((((c5 * y + c4) * y + c3) * y + c2) * y + c1) * y + c0
                total += end_e - start_e
            out[p, b] = (total - dark[p] * tau_s[b]) / divisor[p]
        highest[p] = top


@functools.cache
def _compiled() -> Callable[..., None]:
    try:
        import numba
    except ImportError as error:  # Numba raises this, too, beside a NumPy that it does not support
        reason = str(error).partition("\n")[0]
        raise BackendUnavailable(
            f"backend 'numba' cannot be imported ({reason}); pip install \"gpucal[fast]\""
        ) from error

    options: dict[str, Any] = {"nogil": True, "fastmath": _RELAXED, "error_model": "numpy"}
    try:
        # Numba's cache lies beside this file or, if that folder is read-only, in the user's cache folder.
        function: Callable[..., None] = numba.njit(_SIGNATURE, cache=True, **options)(_bin_pixels)
    except (RuntimeError, OSError, *_DAMAGED) as error:
        log.info("compiling without a cache (%s); let NUMBA_CACHE_DIR name a writable folder", error)
        function = numba.njit(_SIGNATURE, **options)(_bin_pixels)
    return function
