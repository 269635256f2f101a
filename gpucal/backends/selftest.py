"""Test every backend that can run here: its results against NumPy's, its device, and its speed."""

from __future__ import annotations

import importlib
import statistics
import time
from dataclasses import dataclass, field

import numpy as np

from gpucal.backends import PREFERENCE, Backend, load
from gpucal.backends.agreement import difference, difference_by_pages, example
from gpucal.errors import BackendUnavailable, BrokenDevice, DeviceError

__all__ = ["PROVED", "Report", "selftest"]

PROVED = (
    "The CUDA kernels were run and measured on an NVIDIA H200; for other cards they are verified by executing NVIDIA's "
    "compiler output on a CPU. On another GPU, the output of `gpucal selftest --json` is a report worth sending."
)
"""The evidence for the kernels besides a self-test."""


@dataclass(frozen=True)
class Report:
    """Result of the self-test of one backend.

    Parameters
    ----------
    backend : str
        Its name.
    runs_on : str
        Library or device, with versions; empty if it cannot be used at all.
    unavailable : str
        The reason why it does not run, and the mend.
    parity : float, optional
        Worst difference from NumPy as a multiple of the rounding errors allowed; up to 1 the backend agrees. None if it
        did not run.
    milliseconds : dict of str to float
        Median times for 6 MiB of counts, 282 pixels of AIRS-CH0: ``block``, and on a GPU its parts.
    wrong : bool
        The device failed, or its results differ from NumPy's.
    """

    backend: str
    runs_on: str = ""
    unavailable: str = ""
    parity: float | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)
    wrong: bool = False


def selftest(rounds: int = 5) -> list[Report]:
    """Test every backend, fastest first; each timing is repeated ``rounds`` times."""
    return [_report(name, rounds) for name in PREFERENCE]


def _report(name: str, rounds: int) -> Report:
    try:
        backend = load(name)
    except BackendUnavailable as error:
        return Report(name, unavailable=str(error), wrong=isinstance(error, BrokenDevice))
    try:
        worst = difference(backend.bin_counts)
        if backend.bin_pages is not None:
            worst = max(worst, difference_by_pages(backend.bin_pages))
        return Report(name, backend.runs_on, "", worst, _timed(name, backend, rounds), not worst <= 1.0)
    except DeviceError as error:
        return Report(name, backend.runs_on, str(error), wrong=True)


def _timed(name: str, backend: Backend, rounds: int) -> dict[str, float]:
    """Return median milliseconds of a block, and of its parts if the backend has ``split``."""
    plan, counts = example()
    out = np.empty((plan.n_pixels, plan.n_bins))
    parts: dict[str, list[float]] = {}
    split = getattr(importlib.import_module(f"gpucal.backends.{name}_"), "split", None)
    for _ in range(rounds + 1):
        start = time.perf_counter()
        backend.bin_counts(plan, slice(0, plan.n_pixels), counts, out)
        times = {"block": time.perf_counter() - start} | (split(plan, counts) if split else {})
        for part, seconds in times.items():
            parts.setdefault(part, []).append(1e3 * seconds)
    return {part: statistics.median(values[1:]) for part, values in parts.items()}  # the first warms up
