"""Provenance of a result: steps done, settings, inputs, versions, backend, date."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal._version import __version__
from gpucal.inputs.calibration_files import Adc
from gpucal.science.corrections import CORRECTIONS
from gpucal.science.plan import Plan
from gpucal.science.steps import STEPS
from gpucal.settings.calibration import Calibration

__all__ = ["EVERY_STEP", "card_of", "provenance", "steps_done"]

_STEPS = [*STEPS.items()]
_STEPS.insert([*STEPS].index("bin"), ("reject", "cosmic_rays"))

EVERY_STEP: Mapping[str, str | None] = MappingProxyType(
    {**dict(_STEPS), **{correction.step: correction.setting for correction in CORRECTIONS}}
)
"""The notebook's steps, the one among them that it lacks, and those after the cube, with the setting that decides."""

# Libraries whose version may change a number; only loaded ones are listed.
_LIBRARIES = ("numpy", "pyarrow", "numba", "cupy")


def card_of(step: str) -> str:
    """Return the FITS card of a step; a FITS keyword has eight characters."""
    return f"S_{step.upper()[:6]}"


def steps_done(config: Calibration, plan: Plan, dq: NDArray[np.uint8]) -> dict[str, str]:
    """Tell for each step, in order, whether it was done.

    Parameters
    ----------
    config : Calibration
        The settings.
    plan : Plan
        The plan for this detector. A bin of one pair means that nothing was binned.
    dq : ndarray of uint8, shape (wavelength, spatial)
        Data-quality flags of the result.

    Returns
    -------
    dict of str to str
        Step to ``'COMPLETE'`` or ``'SKIPPED'``.
    """
    names = list(STEPS)
    if config.flat_order == "before-cds":
        names.remove("flat")
        names.insert(names.index("cds"), "flat")
    if config.cosmic_rays:  # 0.1 did not have this step: it is named where it is done
        names.insert(names.index("bin"), "reject")
    done = {name: (setting := EVERY_STEP[name]) is None or getattr(config, setting) for name in names}
    done["bin"] = plan.pairs_per_bin > 1
    done |= {correction.step: correction.is_done(config, dq) for correction in CORRECTIONS}
    return {name: "COMPLETE" if yes else "SKIPPED" for name, yes in done.items()}


def provenance(
    config: Calibration,
    plan: Plan,
    dq: NDArray[np.uint8],
    *,
    adc: Adc,
    files: Mapping[str, str],
    inputs: str,
    fingerprints: Mapping[str, object],
    backend: str,
    device: str,
) -> dict[str, Any]:
    """Describe a result made now, in plain values that JSON can hold.

    ``config``, ``plan`` and ``dq`` are as for `steps_done`. ``adc`` has gain and offset. ``files`` names each input in
    the data set, ``inputs`` is the fingerprint of all inputs together, ``fingerprints`` has one per input. ``backend``
    computed on ``device``.
    """
    modules = {name: sys.modules.get(name) for name in _LIBRARIES}
    loaded = {name: str(module.__version__) for name, module in modules.items() if module is not None}
    return {
        "version": __version__,
        "versions": {"gpucal": __version__, "python": platform.python_version(), **loaded},
        "backend": backend,
        "device": device,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "steps": steps_done(config, plan, dq),
        "settings": config.to_dict(),
        "settings_hash": config.content_hash,
        "constants": {
            "adc_gain": adc.gain,
            "adc_offset": adc.offset,
            "pairs_per_bin": plan.pairs_per_bin,
            "integration_s": float(plan.tau_s.mean()),
        },
        "files": dict(files),
        "inputs": inputs,
        "fingerprints": dict(fingerprints),
    }
