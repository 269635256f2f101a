"""Modules that had another name in 0.1 and are called from notebooks: found by it until 0.3, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType

__all__ = ["MOVED", "find_moved"]

MOVED: Mapping[str, str] = MappingProxyType(
    {
        "gpucal.config": "gpucal.settings.calibration",
        "gpucal.containers": "gpucal.pipeline.convert",
        "gpucal.dataset": "gpucal.inputs.dataset",
        "gpucal.detectors": "gpucal.settings.detectors",
        "gpucal.export": "gpucal.results.export",
        "gpucal.frames": "gpucal.inputs.calibration_files",
        "gpucal.light_curve_files": "gpucal.results.light_curve_table",
        "gpucal.lightcurve": "gpucal.science.light_curves",
        "gpucal.noise": "gpucal.science.noise",
        "gpucal.plan": "gpucal.science.plan",
        "gpucal.plotting": "gpucal.results.plot",
        "gpucal.product": "gpucal.pipeline.calibrated",
        "gpucal.reader": "gpucal.inputs.signal_file",
        "gpucal.repair": "gpucal.science.bad_pixels",
        "gpucal.selftest": "gpucal.backends.selftest",
        "gpucal.steps": "gpucal.science.steps",
        "gpucal.synth": "gpucal.synthetic.competition",
        "gpucal.transit": "gpucal.science.transit",
        "gpucal.verify": "gpucal.results.verify",
    }
)
"""Name in 0.1 and name now."""


class _Moved(MetaPathFinder, Loader):
    """Imports a moved module in place of the one that is asked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        line = f"{old} is {MOVED[old]} since 0.2; the old name goes with 0.3"
        warnings.warn(line, DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(MOVED[old])


def find_moved() -> None:
    """Have Python find them, after everything that is there by its own name."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
