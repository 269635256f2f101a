"""Which backends there are, which can run here, and why not.

A backend is a module with ``probe() -> str``, which raises `BackendUnavailable` with the reason and the mend, and
``bin_block(plan, pixels, counts, out) -> saturated``, the formula over one pixel block.
"""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from gpucal.errors import BackendUnavailable, ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gpucal.plan import Plan

__all__ = ["PREFERENCE", "Backend", "choose"]

log = logging.getLogger(__name__)

# Fastest first: the order in which "auto" looks.
PREFERENCE = ("cupy", "numba", "numpy")

# Names of the interface that this version does not implement, and what to do instead.
NOT_YET = ("cupy",)


class BinBlock(Protocol):
    """The formula over one pixel block; see `gpucal.backends.numpy_.bin_block`."""

    def __call__(
        self, plan: Plan, pixels: slice, counts: NDArray[np.uint16], out: NDArray[np.float64]
    ) -> NDArray[np.bool_]: ...


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
    """

    name: str
    runs_on: str
    bin_block: BinBlock


def load(name: str) -> Backend:
    """Load one backend by name.

    Parameters
    ----------
    name : str
        One of `PREFERENCE`.

    Returns
    -------
    Backend
        The backend.

    Raises
    ------
    BackendUnavailable
        If it cannot run here; the line says why, and the mend.
    """
    if name in NOT_YET:
        raise BackendUnavailable(
            f"backend {name!r} is not part of this version of gpucal; use backend 'numpy' or 'auto'"
        )
    module = importlib.import_module(f"gpucal.backends.{name}_")
    return Backend(name, module.probe(), cast("BinBlock", module.bin_block))


def choose(name: str | None = None) -> Backend:
    """Choose a backend: by name, by the environment variable GPUCAL_BACKEND, or the fastest that can run here.

    Parameters
    ----------
    name : {'auto', 'cupy', 'numba', 'numpy'}, optional
        By default GPUCAL_BACKEND, and without that ``'auto'``.

    Returns
    -------
    Backend
        The backend. ``'auto'`` logs, once, why it passed over faster ones; a name never steps down.

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
    reasons = []
    for candidate in PREFERENCE:
        try:
            backend = load(candidate)
        except BackendUnavailable as error:
            reasons.append(str(error))
        else:
            if reasons:
                log.info("backend %s: %s", backend.name, "; ".join(reasons))
            return backend
    raise BackendUnavailable("; ".join(reasons))
