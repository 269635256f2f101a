"""Ariel Data Challenge detector calibration: the organisers' seven steps, exact, fast, in bounded memory.

The public names load their modules when first used, so that ``import gpucal`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpucal.config import Calibration
    from gpucal.dataset import Dataset, Observation, open_dataset
    from gpucal.errors import GpucalError
    from gpucal.pipeline import calibrate, stream
    from gpucal.plan import DQ
    from gpucal.product import Calibrated
    from gpucal.report import Summary
    from gpucal.results import Results, open_results
    from gpucal.runs import run

__version__ = "0.1.0"

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
    "open_dataset",
    "open_results",
    "run",
    "stream",
]

_ROOMS = {
    "DQ": "plan",
    "Calibrated": "product",
    "Calibration": "config",
    "Dataset": "dataset",
    "GpucalError": "errors",
    "Observation": "dataset",
    "Results": "results",
    "Summary": "report",
    "calibrate": "pipeline",
    "open_dataset": "dataset",
    "open_results": "results",
    "run": "runs",
    "stream": "pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'gpucal' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gpucal.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
