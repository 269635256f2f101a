"""Ariel Data Challenge detector calibration: the organisers' seven steps, exact, fast, in bounded memory.

Public names load their modules when they are first used, so that ``import gpucal`` is fast.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from gpucal._moved import find_moved
from gpucal._version import __version__ as __version__

if TYPE_CHECKING:
    from gpucal.backends.versions import show_versions
    from gpucal.errors import GpucalError
    from gpucal.inputs.dataset import Dataset, Observation, open_dataset
    from gpucal.pipeline.calibrate import calibrate, stream
    from gpucal.pipeline.calibrated import Calibrated
    from gpucal.pipeline.integration import check_integration
    from gpucal.results.reader import Results, open_results
    from gpucal.results.submission import submission
    from gpucal.runs.run import run
    from gpucal.runs.summary import Summary
    from gpucal.science import steps
    from gpucal.science.plan import DQ
    from gpucal.settings.calibration import Calibration

__all__ = [
    "DQ",
    "Calibrated",
    "Calibration",
    "Dataset",
    "GpucalError",
    "Observation",
    "Results",
    "Summary",
    "calibrate",
    "check_integration",
    "open_dataset",
    "open_results",
    "run",
    "show_versions",
    "steps",
    "stream",
    "submission",
]

if not Path(__file__).with_name("kernels").is_dir():
    # In a checkout gpucal.kernels is the folder beside this one; an installed package has it inside.
    __path__.append(str(Path(__file__).parents[1]))

find_moved()

_ROOMS = {
    "DQ": "science.plan",
    "Calibrated": "pipeline.calibrated",
    "Calibration": "settings.calibration",
    "Dataset": "inputs.dataset",
    "GpucalError": "errors",
    "Observation": "inputs.dataset",
    "Results": "results.reader",
    "Summary": "runs.summary",
    "calibrate": "pipeline.calibrate",
    "check_integration": "pipeline.integration",
    "open_dataset": "inputs.dataset",
    "open_results": "results.reader",
    "run": "runs.run",
    "show_versions": "backends.versions",
    "stream": "pipeline.calibrate",
    "submission": "results.submission",
}

_MODULES = {"steps": "science.steps"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"gpucal.{_MODULES[name]}")
    if name not in _ROOMS:
        raise AttributeError(f"module 'gpucal' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gpucal.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
