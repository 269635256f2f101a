"""Signal files that Polars wrote with its default options, `data/polars`, and the counts in them.

The published files are of these versions: 0.20.31, 1.0.0 (both of 2024) and 1.31.0 (of 2025). A file was made with
`python tests/support/polars_files.py` where that version of Polars is installed; needs nothing else but NumPy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "data" / "polars"
VERSIONS = {"0.20.31": "2024", "1.0.0": "2024", "1.31.0": "2025"}
"""Each version, and the year of its files."""


def columns(kind: str) -> np.ndarray:
    """Counts (column, row), by arithmetic: `long` columns of two literal runs, or `short` ones of 300 rows."""
    rows = {"long": 8192 + 41, "short": 300}[kind]
    row = np.arange(rows)
    hashed = (row * 2654435761 % 2**32) >> 16
    noise = 430 + hashed % 4 + (hashed >> 4) % 4 + (hashed >> 8) % 4
    still = np.where(row % 1000 < 950, 431 + row // 1000, noise)  # the same count for a long time
    if kind == "long":
        made = [noise, np.full(rows, 417), 65_535 * (hashed % 2), still]
    else:
        made = [row[::-1] + 500, noise, hashed, np.zeros(rows), 1000 + row % 250, 1000 + row // 2]
    return np.array(made).astype(np.uint16)


def path_of(version: str, kind: str) -> Path:
    return FOLDER / f"{version}-{kind}.parquet"


if __name__ == "__main__":
    import polars as pl

    for kind in ("long", "short"):
        frame = pl.DataFrame({f"column_{k}": column for k, column in enumerate(columns(kind))})
        frame.write_parquet(path_of(pl.__version__, kind))
