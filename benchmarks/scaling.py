"""How the time grows with planets, frames, threads and bins; straight lines are fitted where they are expected.

    python benchmarks/scaling.py [--data DIR] [--rounds 3] [--json FILE]

Calls of `gpucal.run` in one process on full-size observations (or shorter ones, for frames), after one that warms up;
for threads, processes. Each point is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import full_size_planets, gpucal, measure, table, write_json

import gpucal as package
from gpucal.pipeline.machine import usable_cores
from gpucal.settings.detectors import DETECTORS

FULL = DETECTORS["AIRS-CH0"].frames


def point(
    dataset: package.Dataset,
    planets: list[int],
    rounds: int,
    config: package.Calibration | None = None,
) -> float:
    """Time a run over some planets, in seconds."""
    times = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as out:
            start = time.perf_counter()
            package.run(dataset, out, config, planets=planets)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def with_threads(data: Path, planets: list[int], rounds: int, threads: int) -> float:
    """Time what planets add to the first, in processes."""
    times = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as out:
            command = gpucal("calibrate", data, out, "--overwrite", "--workers", threads, "--json", "--planet")
            one, many = (json.loads(measure([*command, *map(str, some)]).output) for some in (planets[:1], planets))
            times.append(many["seconds"] - one["seconds"])
    return statistics.median(times)


def line_fit(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Fit y = a + b x by least squares; a, b and R²."""
    b, a = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (a + b * np.asarray(x))
    return float(a), float(b), float(1 - residual.var() / np.var(y))


def measured(data: Path, rounds: int) -> list[dict[str, Any]]:
    """Measure every axis."""
    planets = full_size_planets(data, 8)
    dataset = package.open_dataset(data)
    point(dataset, planets[:1], 1)
    rows: list[dict[str, Any]] = []

    def add(axis: str, value: object, planets_run: int, seconds: float) -> None:
        rows.append({"axis": axis, "value": value, "planets": planets_run, "seconds": seconds})

    for count in (1, 2, 4, 8):
        add("planets", count, count, point(dataset, planets[:count], rounds))
    with tempfile.TemporaryDirectory() as scratch:
        for part in (8, 4, 2, 1):
            folder = data
            if part > 1:
                folder = Path(scratch) / str(part)
                frames = FULL // part // 2 * 2
                measure(gpucal("synth", folder, "--layout", "2025", "--frames", frames))
            short = package.open_dataset(folder)
            add("frames", FULL // part // 2 * 2, 1, point(short, short.planets[:1], rounds))
    for threads in sorted({1, 2, usable_cores()}):
        add("threads", threads, 4, with_threads(data, planets[:5], rounds, threads))
    for airs, fgs1 in ((1, 12), (5, 60), (30, 360), (120, 1440)):
        config = package.Calibration.preset("ariel2025").replace(bins={"AIRS-CH0": airs, "FGS1": fgs1})
        add("pairs in a bin", f"{airs} and {fgs1}", 4, point(dataset, planets[:4], rounds, config=config))
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format all points, and the fits."""
    cells = [
        [row["axis"], str(row["value"]), f"{row['seconds']:.2f} s", f"{row['seconds'] / row['planets']:.2f} s"]
        for row in rows
    ]
    lines = [table(["axis", "value", "time", "a planet"], cells), ""]
    for axis in ("planets", "frames"):
        mine = [row for row in rows if row["axis"] == axis]
        a, b, r2 = line_fit([row["value"] for row in mine], [row["seconds"] for row in mine])
        lines.append(f"{axis}: {a:.2f} s + {b:.3g} s each, R² = {r2:.4f}")
    by_threads = {row["value"]: row["seconds"] for row in rows if row["axis"] == "threads"}
    lines.append(f"two threads: {by_threads[1] / by_threads[2]:.2f} times as fast as one")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the synthetic data; made if missing, kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        rows = measured(options.data or Path(scratch) / "data", options.rounds)
    write_json(options.json, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
