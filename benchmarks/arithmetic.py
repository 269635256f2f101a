"""The arithmetic alone, full size, both detectors: each backend beside one float64 cube in place.

    python benchmarks/arithmetic.py [--rounds 5] [--json FILE]

Counts are in memory and random. Backends work on pixel blocks with one thread a core, as in a run; the cube is one
NumPy expression after another, as people write it. Results are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from measure import table, write_json
from numpy.typing import NDArray
from rivals import numpy_cube

from gpucal.backends import PREFERENCE, Backend, load
from gpucal.errors import BackendUnavailable
from gpucal.inputs.calibration_files import Adc, Axis, CalibrationFrames
from gpucal.pipeline.machine import usable_cores
from gpucal.pipeline.memory import COUNT_BLOCK
from gpucal.pipeline.stream import pixel_blocks
from gpucal.science.plan import Plan, make_plan
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, Detector

GAIN, OFFSET = 0.4369, -1000.0


class Case:
    """One detector's counts and calibration frames, as the plan wants them and as a cube wants them."""

    def __init__(self, detector: Detector, part: int = 1) -> None:
        rng = np.random.default_rng(0)
        shape = (detector.shape[0], detector.width)
        centres = (0.1, 1.0, 1e-8, 1.2e-11, -6e-17, 1.3e-22)
        self.detector = detector
        self.frames = detector.frames // part // 2 * 2
        self.linear_corr = np.stack([rng.normal(centre, abs(centre) * 0.01, shape) for centre in centres])
        self.dark = rng.normal(0.007, 0.001, shape)
        self.flat = rng.normal(1.0, 0.02, shape)
        self.integration_s = np.resize([0.1, 4.5], self.frames)
        dead = np.zeros(shape, bool)
        frames = CalibrationFrames(self.dark, dead, self.flat, self.linear_corr, np.full(shape, 13.0), self.dark, "")
        axis = Axis(np.arange(self.frames) / 3600, None, self.integration_s)
        self.plan: Plan = make_plan(
            detector, Calibration.preset("ariel2024"), frames, Adc(GAIN, OFFSET), axis, self.frames
        )
        self.counts = rng.integers(400, 30_000, (self.plan.n_pixels, self.frames), dtype=np.uint16)
        self.raw = np.ascontiguousarray(self.counts.T).reshape(-1, *shape)

    def cube(self) -> NDArray[np.float64]:
        """Calibrate as one cube; (bin, pixel)."""
        d, frames = self.detector, (self.linear_corr, self.dark, self.flat)
        result = numpy_cube.calibrate(self.raw, GAIN, OFFSET, *frames, self.integration_s, d.bin_pairs)
        return result.reshape(len(result), -1)

    def blocks(self, backend: Backend, threads: int) -> NDArray[np.float64]:
        """Calibrate pixel block by pixel block; (bin, pixel)."""
        out = np.empty((self.plan.n_pixels, self.plan.n_bins))

        def work(pixels: slice) -> None:
            backend.bin_counts(self.plan, pixels, self.counts[pixels], out[pixels])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, pixel_blocks(np.full(self.plan.n_pixels, 2 * self.frames), COUNT_BLOCK)))
        return out.T


def available() -> dict[str, Backend]:
    """Give the backends that can run here."""
    found = {}
    for name in PREFERENCE:
        try:
            found[name] = load(name)
        except BackendUnavailable:
            continue
    return found


def timed(function: Callable[[], object]) -> float:
    """Time one call, in seconds."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measured(rounds: int) -> list[dict[str, Any]]:
    """Time every way in every round; medians over rounds, and of the ratio to the cube within each."""
    cases = [Case(detector) for detector in DETECTORS.values()]
    ways: dict[str, Callable[[Case], object]] = {"float64 cube in place": Case.cube}
    for name, backend in available().items():
        for threads in dict.fromkeys((1, usable_cores())):
            label = f"{name}, {threads} thread{'s' * (threads > 1)}"
            ways[label] = partial(Case.blocks, backend=backend, threads=threads)
    for case in cases:
        for name, backend in available().items():
            np.testing.assert_allclose(case.blocks(backend, 2), case.cube(), rtol=1e-9, atol=1e-6, err_msg=name)
    seconds = [
        {way: sum(timed(partial(run, case)) for case in cases) for way, run in ways.items()} for _ in range(rounds)
    ]
    cube = "float64 cube in place"
    return [
        {
            "way": way,
            "seconds": statistics.median(r[way] for r in seconds),
            "times_faster": statistics.median(r[cube] / r[way] for r in seconds),
        }
        for way in ways
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format one row a way."""
    cells = [[row["way"], f"{row['seconds']:.3f} s", f"{row['times_faster']:.1f}"] for row in rows]
    return table(["arithmetic alone, both detectors", "time", "times the cube"], cells)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = measured(options.rounds)
    write_json(options.json, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
