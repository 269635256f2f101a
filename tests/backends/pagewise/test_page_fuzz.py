"""Damaged pages touch no place outside an array; tests/system/test_fuzz.py sees what values they give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import good_files, outcome, read
from mutants import SMALL
from paged import bin_loaded, loaded_of, telling

GOOD = good_files()
OTHERS = ("gzip", "lz4", "DELTA", "BYTE_STREAM", "int64")  # which pyarrow decodes


@pytest.mark.parametrize("name", GOOD)
def test_good_files_are_binned(tmp_path: Path, name: str) -> None:
    (data, right), path = GOOD[name], tmp_path / "signal.parquet"
    path.write_bytes(data)
    assert outcome(path, data, "pages", right) == "right"
    own = not any(word in name for word in OTHERS)
    assert (read(path, "pages").counts is None) == own
    if own:
        _, _, pages = bin_loaded(telling(SMALL.n_pixels, right.shape[1]), loaded_of(data, SMALL.columns()))
        assert pages.arrow == 0
        assert pages.codec == 0 or "snappy" in name or "zstd" in name or name == "pyarrow-required"


@pytest.mark.slow
def test_no_place_outside_is_touched(tmp_path: Path) -> None:
    """As compiled with every place checked."""
    script = Path(__file__).parents[2] / "support" / "fuzzing.py"
    env = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), "signals", "0", "1000", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["checked"]
    assert found["found"]["pages: error"] > 300
