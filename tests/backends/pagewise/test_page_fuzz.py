"""Damaged files: binned as pyarrow decodes them, or refused; and no place outside an array is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_fuzzing import fuzz, outcome, taken, whole

GOOD = taken()


@pytest.mark.parametrize("name", GOOD)
def test_good_files_are_binned(name: str) -> None:
    assert outcome(GOOD[name], GOOD[name], whole(GOOD[name])) == "right"


def test_damaged_files_are_as_pyarrow_has_them_or_refused() -> None:
    counted = fuzz(range(600))
    assert {"error", "right", "as pyarrow"} <= counted.keys(), counted


@pytest.mark.slow
def test_many_more_damaged_files() -> None:
    assert fuzz(range(600, 25_000)).total() == 24_400


@pytest.mark.slow
def test_no_place_outside_is_touched() -> None:
    """As compiled with every place checked."""
    script = Path(__file__).parents[2] / "support" / "page_fuzzing.py"
    env = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), "0", "500"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout[:8]) == (0, "checked "), done.stderr[-2000:]
