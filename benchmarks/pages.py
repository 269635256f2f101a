"""From a signal file to binned sums, page by page: core-seconds a planet, by stage, on files as Polars writes them.

    python benchmarks/pages.py FOLDER [--rounds 5] [--threads 2] [--json FILE]

The folder is made if it is missing, and kept: one synthetic planet of full size, its two signal files written again by
Polars with its defaults, as the published ones are. Every round times each stage on one thread and the whole on as many
as asked for; medians are printed. pyarrow's zstd inflates the same pages beside it, and Polars reads the same columns.
To time compiling, let NUMBA_CACHE_DIR name an empty folder.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from measure import gpucal, measure, table, write_json
from numpy.typing import NDArray

import gpucal as package
from gpucal.science.plan import Plan, make_plan
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, Detector

# Importing these modules compiles them or loads them from the cache, and that time is one of the figures.
START = time.process_time()

from gpucal.backends.pagewise import decode  # noqa: E402
from gpucal.backends.pagewise.bins import bin_pages  # noqa: E402
from gpucal.backends.pagewise.inflate import inflate_pages  # noqa: E402
from gpucal.backends.pagewise.layout import AT, DICTIONARY, KIND, PADDING, SIZE, TO, WANTED  # noqa: E402
from gpucal.backends.pagewise.table import PageTable  # noqa: E402

COMPILING = time.process_time() - START


def prepare(folder: Path) -> tuple[dict[str, Path], dict[str, Plan]]:
    """Make the files once; give them, and the plan of each detector."""
    made = folder / "synthetic"
    if not made.exists():
        measure(gpucal("synth", made, "--layout", "2025", "--planets", 1))
    obs = next(iter(package.open_dataset(made)))
    paths, plans = {}, {}
    for name, detector in DETECTORS.items():
        paths[name] = folder / f"{name}.parquet"
        if not paths[name].exists():
            pl.read_parquet(obs.signal_path(detector)).write_parquet(paths[name])
        frames, adc, axis = obs.frames(detector), obs.adc(detector), obs.axis(detector)
        plans[name] = make_plan(detector, Calibration(), frames, adc, axis, detector.frames)
    return paths, plans


def timed(work: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    start = clock()
    work()
    return clock() - start


@dataclass
class Stages:
    """One file's pages, block by block of pixels and stage by stage."""

    pages: PageTable
    plan: Plan
    data: NDArray[np.uint8]
    seconds: Counter[str]
    left: int = 0

    def do(self, stage: str, work: Callable[..., object], *arguments: object) -> None:
        start = time.thread_time()
        work(*arguments)
        self.seconds[stage] += time.thread_time() - start

    def block(self, pixels: slice, scratch: decode.Scratch) -> None:
        pages, n = self.pages, pixels.stop - pixels.start
        first, last = int(pages.firsts[pixels.start]), int(pages.firsts[pixels.stop])
        some, status = pages.pages[first:last], np.empty(last - first, np.int64)
        inflated = scratch.inflated(int(some[-1, TO] + some[-1, WANTED] - some[0, TO]) + PADDING)
        self.do("inflate", inflate_pages, self.data, some, 0, len(some), inflated, status, *scratch.inflating)
        for page in np.flatnonzero(status).tolist():
            self.left += 1
            place = pages, self.data, first + page, int(status[page]), inflated, some[0, TO], Path()
            self.do("left to pyarrow", decode._inflate_otherwise, *place)
        out, saturated, wrong = np.empty((n, self.plan.n_bins)), np.empty(n, np.uint8), np.empty((n, 2), np.int64)
        firsts, constants = pages.firsts[pixels.start : pixels.stop + 1] - first, decode._constants(self.plan, pixels)
        what = inflated, some, firsts, pages.facts[pixels], pages.n_rows, *constants, out, saturated, wrong
        self.do("bins", bin_pages, *what, *scratch.binning)
        assert not wrong[:, 0].any()


def by_codec(pages: PageTable, data: NDArray[np.uint8]) -> float:
    """Inflate the pages that are none of a dictionary by pyarrow's zstd."""
    codec = pa.Codec("zstd")
    some = pages.pages[pages.pages[:, KIND] != DICTIONARY]
    stored = [(pa.py_buffer(data[at : at + size]), wanted) for at, size, wanted in some[:, [AT, SIZE, WANTED]].tolist()]
    return timed(lambda: [codec.decompress(page, decompressed_size=wanted) for page, wanted in stored])


def once(name: str, path: Path, plan: Plan, threads: int) -> dict[str, float]:
    """Time one detector once."""
    detector: Detector = DETECTORS[name]
    found: dict[str, float] = {}
    data = path.read_bytes()
    raw = np.frombuffer(data, np.uint8)
    start = time.thread_time()
    pages = decode.open_pages(data, detector.n_columns, detector.columns(), path)
    found["open"] = time.thread_time() - start
    stages, scratch = Stages(pages, plan, raw, Counter()), decode.Scratch(pages.n_rows, plan.pairs_per_bin)
    for pixels in decode.blocks(pages):
        stages.block(pixels, scratch)
    found |= {**stages.seconds, "pages left to pyarrow": stages.left}
    found["GB/s"] = float(pages.pages[:, WANTED].sum()) / found["inflate"] / 1e9
    data_bytes = float(pages.pages[pages.pages[:, KIND] != DICTIONARY, WANTED].sum())
    found["GB/s of pyarrow's zstd"] = data_bytes / by_codec(pages, raw) / 1e9
    whole = [timed(lambda: decode.bin_file(data, pages, plan, path, threads), clock) for clock in CLOCKS]
    found[f"pages to bins, wall, {threads} threads"], found[f"pages to bins, cores, {threads} threads"] = whole
    columns = detector.columns().tolist()
    found["Polars, wall"] = timed(
        lambda: pl.read_parquet(data, columns=columns, use_statistics=False).to_numpy(order="fortran"),
        time.perf_counter,
    )
    return found


CLOCKS = (time.perf_counter, time.process_time)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    paths, plans = prepare(options.folder)
    rows = [
        {name: once(name, paths[name], plans[name], options.threads) for name in DETECTORS}
        for _ in range(options.rounds)  # round by round, as the machine's weather changes
    ]
    medians = {
        name: {stage: statistics.median(row[name][stage] for row in rows) for stage in rows[0][name]}
        for name in DETECTORS
    }
    write_json(options.json, [{"rounds": rows, "medians": medians, "compiling": COMPILING}])
    stages = list(medians["FGS1"])
    cells = []
    for stage in stages:
        both = [medians[name][stage] for name in DETECTORS]
        total = "" if stage.startswith("GB/s") else f"{sum(both):.3f}"
        cells.append([stage, *(f"{value:.3f}" for value in both), total])
    print(table(["core-seconds but where it says otherwise", *DETECTORS, "planet"], cells))
    print(f"\ncompiling, or loading what is compiled: {COMPILING:.2f} s")


if __name__ == "__main__":
    main()
