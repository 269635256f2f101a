"""`benchmarks/pixels.py` counts what the calibration files hold."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.stats import sigma_clip

import gpucal
from gpucal.settings.detectors import DETECTORS
from gpucal.synthetic.competition import synthesize

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pixels.py"


@pytest.mark.parametrize("layout", ["2024", "2025"])
def test_counts_are_those_of_the_files(layout: str, tmp_path: Path) -> None:
    synthesize(tmp_path / "raw", layout=layout, planets=1, frames=60)
    expected = []
    for name, detector in DETECTORS.items():
        (folder,) = [obs.calibration_path(name) for obs in gpucal.open_dataset(tmp_path / "raw")]
        dark, dead, flat = (pd.read_parquet(folder / f"{kind}.parquet").to_numpy() for kind in ("dark", "dead", "flat"))
        hot, used = (
            np.count_nonzero(sigma_clip(dark[:, slice(*crop)], sigma=5, maxiters=5).mask)
            for crop in ((0, dark.shape[1]), detector.crop)
        )
        assert hot > 0
        counts = f"{np.count_nonzero(dead)} / {hot} | {np.count_nonzero(flat <= 0)} | {used}"
        expected.append(f"| {name} | {dark.size:,} | {counts} | 1 |")
    assert [*runpy.run_path(str(SCRIPT))["rows"](tmp_path / "raw")][2:] == expected
