"""Polars reads the columns that calibration needs into Fortran-ordered arrays: no reader is known to be faster.

    python benchmarks/rivals/polars_columns.py FOLDER --planet ID [--times 4]

Both signal files of a planet, the cropped pixels' columns, on as many threads as there are cores. Prints JSON: the
shortest of several times, imports left out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("POLARS_MAX_THREADS", str(len(os.sched_getaffinity(0))))

import polars as pl

from gpucal.settings.detectors import DETECTORS


def read(folder: Path) -> float:
    """Read both files once; return the seconds."""
    start = time.perf_counter()
    for name, detector in DETECTORS.items():
        path = next(folder.glob(f"{name}_signal*.parquet"))
        frame = pl.read_parquet(path, columns=detector.columns().tolist(), use_statistics=False)
        array = frame.to_numpy(order="fortran")
        assert array.shape[1] == detector.columns().size
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--planet", required=True)
    parser.add_argument("--times", type=int, default=4)
    options = parser.parse_args()
    (planet,) = (folder for split in ("train", "test") for folder in options.folder.glob(f"{split}/{options.planet}"))
    print(json.dumps({"rival": f"Polars {pl.__version__}", "seconds": min(read(planet) for _ in range(options.times))}))


if __name__ == "__main__":
    main()
