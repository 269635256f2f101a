"""How long a finished folder takes to be looked over by a second run, an observation.

    python benchmarks/again.py [--planets 60] [--frames 60] [--rounds 3]

Planets are links to one synthetic planet. It has few frames but all columns: these decide what is read of the files
of a finished observation. The time of two planets, imports and all, is taken from that of all planets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from measure import machine, machine_line

import gpucal
from gpucal.synthetic.competition import synthesize

SETTINGS = gpucal.Calibration(bins={"AIRS-CH0": 5, "FGS1": 60})


def linked(folder: Path, planets: int, frames: int) -> gpucal.Dataset:
    """Make a folder of planets that are links to one."""
    (planet,) = synthesize(folder, layout="2025", frames=frames)
    for i in range(planets - 1):
        (folder / "train" / str(planet + 1 + i)).symlink_to(str(planet))
    return gpucal.open_dataset(folder)


def seconds(dataset: gpucal.Dataset, out: Path, planets: list[int], product: str, rounds: int) -> float:
    """Time a run over finished planets: the least of some rounds."""
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        summary = gpucal.run(dataset, out, SETTINGS, planets=planets, product=product)
        took.append(time.perf_counter() - start)
        assert summary.skipped == 2 * len(planets)
    return min(took)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--planets", type=int, default=60)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        dataset = linked(Path(scratch) / "raw", options.planets, options.frames)
        for product in ("cubes", "light-curves"):
            out = Path(scratch) / product
            gpucal.run(dataset, out, SETTINGS, product=product)
            few, all_ = (
                seconds(dataset, out, dataset.planets[:n], product, options.rounds) for n in (2, options.planets)
            )
            each = 1e3 * (all_ - few) / (options.planets - 2)
            print(f"{product}: {each:.1f} ms an observation, {1e3 * few:.0f} ms for two")
    print(machine_line(machine()))


if __name__ == "__main__":
    main()
