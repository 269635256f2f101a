"""How many pixels are dead, hot or have a flat that is not above 0, in the calibration files of a competition folder.

    python benchmarks/pixels.py DATASET

Whole frames are counted, as they are in the files. gpucal itself crops AIRS-CH0 first, as the notebook does: its clip
of the dark then has other limits, and finds the hot pixels of the fifth column. Observations with equal counts share a
row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import gpucal
from gpucal.science.plan import hot_pixels
from gpucal.settings.detectors import DETECTORS, Detector


def counted(obs: gpucal.Observation, detector: Detector) -> tuple[int, ...]:
    """Return pixels of a whole frame: all, dead, hot, flat not above 0; and hot ones of the cropped frame."""
    settings = gpucal.Calibration()
    whole, cropped = (
        settings.replace(crop={detector.name: crop}).cropped(detector)
        for crop in ((0, detector.shape[1]), detector.crop)
    )
    frames, inside = obs.frames(whole), obs.frames(cropped)
    hot, used = (hot_pixels(one.dark, settings.hot_sigma, settings.hot_iterations) for one in (frames, inside))
    maps = (np.ones(detector.shape), frames.dead, hot, ~(frames.flat > 0.0), used)
    return tuple(int(np.count_nonzero(one)) for one in maps)


def rows(data: Path) -> Iterator[str]:
    """Yield the lines of a table."""
    yield "| detector | pixels | dead / hot | flat ≤ 0 | hot within the crop | observations |"
    yield "| --- | --- | --- | --- | --- | --- |"
    ds = gpucal.open_dataset(data)
    for detector in DETECTORS.values():
        found: dict[tuple[int, ...], int] = {}
        for obs in ds:
            numbers = counted(obs, detector)
            found[numbers] = found.get(numbers, 0) + 1
        for (pixels, dead, hot, flat, used), times in found.items():
            yield f"| {detector.name} | {pixels:,} | {dead} / {hot} | {flat} | {used} | {times:,} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    print("\n".join(rows(parser.parse_args().data)))


if __name__ == "__main__":
    main()
