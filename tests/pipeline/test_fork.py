"""A process that has calibrated can fork, and its children calibrate: Linux's default for workers up to Python 3.13."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import BINS, Made

import gpucal
from gpucal import Calibration

# From Python 3.12 on a fork warns where there are threads; those of the pipeline have ended.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")

CONFIG = Calibration(bins=BINS, integration="notebook")


def calibrated(folder: Path, planet: int, backend: str) -> bytes:
    return gpucal.calibrate(
        gpucal.open_dataset(folder)[planet], "FGS1", CONFIG, backend=backend, workers=2
    ).signal.tobytes()


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_children_calibrate_after_their_parent(old: Made, backend: str) -> None:
    expected = [calibrated(old[0], planet, backend) for planet in (17, 23)]
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        waiting = [pool.apply_async(calibrated, (old[0], planet, backend)) for planet in (17, 23)]
        assert [work.get(timeout=60) for work in waiting] == expected
    with ProcessPoolExecutor(2, context) as executor:
        assert list(executor.map(calibrated, [old[0]] * 2, (17, 23), [backend] * 2, timeout=60)) == expected


def test_a_child_of_a_stream_in_progress_calibrates(old: Made) -> None:
    """As a DataLoader's workers are, if they are started while the parent takes results."""
    expected = calibrated(old[0], 23, "numba")
    stream = gpucal.stream(gpucal.open_dataset(old[0]), "FGS1", CONFIG, workers=2)
    next(stream)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(calibrated, (old[0], 23, "numba")).get(timeout=60) == expected
    assert next(stream).signal.tobytes() == expected


RUNS = """
import multiprocessing, sys
import gpucal
from pathlib import Path
raw, out = map(Path, sys.argv[1:3])
config = gpucal.Calibration(bins={"AIRS-CH0": 7, "FGS1": 16}, integration="notebook")
def work(planet):
    return gpucal.run(gpucal.open_dataset(raw), out / str(planet), config, planets=[planet], workers=2).done
assert work(17) == 2
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map_async(work, [23, 17]).get(60))
"""


def test_runs_in_children_after_a_run(old: Made, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", RUNS, str(old[0]), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert (run.returncode, run.stdout) == (0, "[2, 0]\n"), run.stderr
    arrays = [np.load(tmp_path / planet / planet / "0" / "FGS1.signal.npy") for planet in ("17", "23")]
    assert arrays[0].shape == arrays[1].shape
