"""The backends: which of them can run here, and why the others cannot.

A backend is a module with ``probe() -> str``, which raises `BackendUnavailable` with the reason and the mend, and
``bin_block(plan, pixels, counts, out) -> saturated``, the formula over one pixel block. A backend for devices has
``bind()`` instead, which returns such a function for the current device, and ``OnDevice``, a `Memory` there.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from gpucal.errors import BackendUnavailable, BrokenDevice, ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpucal.science.plan import Plan
    from gpucal.science.steps import Array

__all__ = ["PREFERENCE", "Backend", "BinBlock", "InMemory", "Memory", "choose", "load"]

log = logging.getLogger(__name__)

# Every backend, fastest first: the order in which "auto" looks. The command line reads this: it imports no NumPy.
PREFERENCE = (
    "cupy",
    "numba",
    "numpy",
)


class BinBlock(Protocol):
    """The formula over one pixel block; see `gpucal.backends.numpy_.bin_block`."""

    def __call__(
        self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Fill ``out``; return which pixels are saturated."""


class Memory(Protocol):
    """The place of results, and the way a block gets there."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Make an array for a result (time, wavelength, spatial)."""

    def bin_into(self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], target: Array) -> NDArray[np.bool_]:
        """Bin a block into ``target`` (bin, pixel), part of such an array; return which pixels are saturated."""

    def change(self, signal: Array, how: Callable[[Array], None]) -> None:
        """Call ``how`` on a result, in the memory where it is."""


@dataclass(frozen=True)
class InMemory:
    """Results are NumPy arrays, made with a backend's ``bin_block``."""

    bin_block: BinBlock

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """See `Memory.empty`."""
        import numpy as np

        return np.empty(shape, dtype)

    def bin_into(
        self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], target: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """See `Memory.bin_into`."""
        import numpy as np

        binned = np.empty((len(counts), plan.n_bins))
        saturated = self.bin_block(plan, pixels, counts, binned)
        with np.errstate(over="ignore", invalid="ignore"):  # float64 outliers beyond float32's range
            target[...] = binned.T
        return saturated

    def change(self, signal: NDArray[Any], how: Callable[[NDArray[Any]], None]) -> None:
        """See `Memory.change`."""
        how(signal)


@dataclass(frozen=True)
class Backend:
    """A backend that can run here.

    Parameters
    ----------
    name : str
        One of `PREFERENCE`.
    runs_on : str
        Library or device, and version.
    bin_block : callable
        The formula over one pixel block.
    on_device : callable, optional
        Makes the `Memory` that keeps results on its device; None for a backend without a device.
    """

    name: str
    runs_on: str
    bin_block: BinBlock
    on_device: Callable[[], Memory] | None = None

    def memory(self, device: bool) -> Memory:
        """Return the memory for results: the backend's device, or the host.

        `BackendUnavailable` is raised if a device is asked for and the backend has none.
        """
        if not device:
            return InMemory(self.bin_block)
        if self.on_device is None:
            raise BackendUnavailable(
                f"device=True: backend {self.name!r} leaves no result on a device; use device=False"
            )
        return self.on_device()


def load(name: str) -> Backend:
    """Load a backend of `PREFERENCE` by name; if it cannot run here, `BackendUnavailable` gives reason and mend."""
    module = importlib.import_module(f"gpucal.backends.{name}_")
    runs_on = module.probe()
    bin_block = module.bind() if hasattr(module, "bind") else module.bin_block
    return Backend(name, runs_on, cast("BinBlock", bin_block), getattr(module, "OnDevice", None))


def choose(name: str | None = None) -> Backend:
    """Choose a backend: by name, by the environment variable GPUCAL_BACKEND, or the fastest that can run here.

    Parameters
    ----------
    name : {'auto', 'cupy', 'numba', 'numpy'}, optional
        By default GPUCAL_BACKEND, and without that ``'auto'``.

    Returns
    -------
    Backend
        The backend. ``'auto'`` logs, once, why faster backends cannot run. A backend asked for by name is never
        replaced by another.

    Raises
    ------
    ConfigError
        If there is no backend of that name.
    BackendUnavailable
        If the backend asked for by name cannot run here.
    """
    wanted = name or os.environ.get("GPUCAL_BACKEND") or "auto"
    if wanted not in ("auto", *PREFERENCE):
        raise ConfigError(f"backend = {wanted!r}: must be one of auto, {', '.join(PREFERENCE)}")
    if wanted != "auto":
        return load(wanted)
    reasons, level = [], logging.INFO
    for candidate in PREFERENCE:
        try:
            backend = load(candidate)
        except BackendUnavailable as error:
            reasons.append(str(error))
            if isinstance(error, BrokenDevice):
                level = logging.ERROR
        else:
            if reasons:
                log.log(level, "backend %s: %s", backend.name, "; ".join(reasons))
            return backend
    raise BackendUnavailable("; ".join(reasons))
