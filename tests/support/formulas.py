"""The package's cubes of observations in memory, by every backend that can run here."""

from __future__ import annotations

import numpy as np
from hostile import Observation

from gpucal.backends import PREFERENCE, load
from gpucal.errors import BackendUnavailable
from gpucal.settings.calibration import Calibration


def available() -> list[str]:
    """Backends that can run here; a backend that cannot says why in `test_backends`."""
    names = []
    for name in PREFERENCE:
        try:
            names.append(load(name).name)
        except BackendUnavailable:
            continue
    return names


def run(obs: Observation, config: Calibration, backend: str = "numpy", block: int | None = None) -> np.ndarray:
    """The package's cube, computed in blocks of that many pixels."""
    plan, counts = obs.plan(config), obs.counts()
    out = np.empty((plan.n_pixels, plan.n_bins))
    for first in range(0, plan.n_pixels, block or plan.n_pixels):
        pixels = slice(first, min(first + (block or plan.n_pixels), plan.n_pixels))
        load(backend).bin_counts(plan, pixels, counts[pixels], out[pixels])
    return obs.cube(out)
