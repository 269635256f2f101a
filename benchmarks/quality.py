"""What part of a run's time the numbers on quality take.

    python benchmarks/quality.py [--data DIR] [--planets 6] [--rounds 3]

A run on one thread over full-size observations. The functions that make the numbers, those on pointing too, are timed
inside it, so that both times are of the same minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from measure import full_size_planets, table

import gpucal
from gpucal.runs import local


def measured(data: Path, planets: int, rounds: int) -> tuple[float, float, int]:
    """Return seconds of a run, seconds of numbers on quality in it, medians of rounds, and its observations."""
    ids = full_size_planets(data, planets)
    dataset, spent, times, parts = gpucal.open_dataset(data), [0.0], [], []

    def timed(made: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arrays: object, **how: object) -> object:
            start = time.perf_counter()
            found = made(*arrays, **how)
            spent[0] += time.perf_counter() - start
            return found

        return call

    with tempfile.TemporaryDirectory() as out, ExitStack() as stack:
        for owner, name in ((local, "quality"), (gpucal.Calibrated, "_motion")):
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))
        gpucal.run(dataset, out, planets=ids[:1], workers=1)
        for _ in range(rounds):
            spent[0], start = 0.0, time.perf_counter()
            gpucal.run(dataset, out, planets=ids, workers=1, overwrite=True)
            times.append(time.perf_counter() - start)
            parts.append(spent[0])
    return statistics.median(times), statistics.median(parts), len(ids)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the synthetic data; made if missing, kept")
    parser.add_argument("--planets", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        seconds, part, count = measured(options.data or Path(scratch) / "data", options.planets, options.rounds)
    cells = [f"{1e3 * seconds / count:.0f}", f"{1e3 * part / count:.1f}", f"{part / seconds:.1%}"]
    print(table(["ms an observation", "of that, numbers on quality", "part"], [cells]))


if __name__ == "__main__":
    main()
