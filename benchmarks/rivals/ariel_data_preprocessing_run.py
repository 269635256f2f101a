"""The PyPI package ariel-data-preprocessing on one observation of a 2025-layout folder, timed.

It drops 11 of 12 FGS1 frames (``downsample_fgs``; without it version 1.5 does not end), does not bin, and sums spectra
instead of keeping cubes, so it does less than gpucal. It needs an environment of its own::

    pip install --no-deps ariel-data-preprocessing && pip install astropy h5py "pandas<3" pyarrow scipy
    python benchmarks/rivals/ariel_data_preprocessing_run.py DATASET
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import tempfile
import time
from pathlib import Path

from ariel_data_preprocessing.data_preprocessing import DataProcessor


def main() -> None:
    """Run it on the first planet and print seconds and the largest process's peak memory as one line of JSON."""
    parser = argparse.ArgumentParser(description="ariel-data-preprocessing, timed on one observation")
    parser.add_argument("dataset", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        DataProcessor(
            input_data_path=str(options.dataset), output_data_path=out, n_cpus=1, n_planets=1, downsample_fgs=True
        ).run()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"rival": "ariel-data-preprocessing", "seconds": round(seconds, 3), "peak_rss_bytes": peak}))


if __name__ == "__main__":
    main()
