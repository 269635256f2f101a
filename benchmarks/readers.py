"""How fast which encoding is read: by gpucal to binned sums or to counts, by Polars and pyarrow to arrays of counts.

    python benchmarks/readers.py [--data DIR] [--rounds 3] [--beside NAME=PROGRAM] [--json FILE]

One full-size observation, re-encoded: dictionary and plain, zstd and snappy, one row group and many, as pyarrow and as
Polars write them. gpucal runs on one thread a core. The libraries' own ways to read the same columns into one array
stand beside it. File bytes are in memory. --beside "0.1=ENVIRONMENT/bin/gpucal" adds whole runs into a results folder,
of this version and another: seconds for each further planet, in processes of their own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from measure import full_size_planets, gpucal, measure, planet_like, table, write_json

from gpucal import Calibration, open_dataset
from gpucal.backends import load
from gpucal.inputs.signal_file import Loaded, open_signal
from gpucal.pipeline.machine import usable_cores
from gpucal.pipeline.memory import COUNT_BLOCK, PAGE_BLOCK
from gpucal.pipeline.stream import pixel_blocks
from gpucal.science.plan import Plan, make_plan
from gpucal.settings.detectors import DETECTORS, Detector


@dataclass(frozen=True)
class Encoding:
    """How to write a table again."""

    writer: str
    options: Mapping[str, Any]
    row_groups: int = 1


ENCODINGS = MappingProxyType(
    {
        "dictionary, zstd": Encoding("pyarrow", {"compression": "zstd"}),
        "dictionary, snappy": Encoding("pyarrow", {"compression": "snappy"}),
        "plain, snappy": Encoding("pyarrow", {"compression": "snappy", "use_dictionary": False}),
        "dictionary, zstd, 9 row groups": Encoding("pyarrow", {"compression": "zstd"}, 9),
        "as Polars writes": Encoding("polars", {}),
    }
)


def encode(original: pa.Table, encoding: Encoding, path: Path) -> None:
    """Write a table in an encoding."""
    if encoding.writer == "polars":
        pl.from_arrow(original).write_parquet(path, **encoding.options)
    else:
        size = -(-original.num_rows // encoding.row_groups)
        pq.write_table(original, path, row_group_size=size, **encoding.options)


def by_gpucal(plan: Plan, loaded: Loaded, *, by_pages: bool) -> None:
    """Bin pages, or decode counts, as a run does, and drop the results."""
    bin_pages = load("numba").bin_pages
    assert bin_pages is not None
    by_pages = by_pages and not loaded.table.unfit
    sizes = loaded.table.sizes if by_pages else np.full(plan.n_pixels, 2 * loaded.table.n_rows)
    blocks = iter(list(pixel_blocks(sizes, PAGE_BLOCK if by_pages else COUNT_BLOCK)))

    def work() -> None:
        if by_pages:
            for pixels in blocks:
                bin_pages(plan, pixels, loaded, np.empty((pixels.stop - pixels.start, plan.n_bins)))
        else:
            for _ in loaded.counts(blocks):
                pass

    with ThreadPoolExecutor(usable_cores()) as pool:
        for done in [pool.submit(work) for _ in range(usable_cores())]:
            done.result()


def ways(plan: Plan, path: Path) -> dict[str, Callable[[], object]]:
    """Give every way to read one file."""
    data, signal = path.read_bytes(), open_signal(path, plan.detector)
    positions = signal.columns.tolist()
    names = [signal.footer.names[position] for position in positions]
    return {
        "gpucal, pages to bins": partial(by_gpucal, plan, signal.load(), by_pages=True),
        "gpucal, counts by pyarrow": partial(by_gpucal, plan, signal.load(), by_pages=False),
        "Polars, all at once": lambda: pl.read_parquet(data, columns=positions).to_numpy(order="fortran").T,
        "pyarrow, all at once": lambda: np.stack(
            [column.to_numpy() for column in pq.ParquetFile(pa.BufferReader(data)).read(columns=names).columns]
        ),
    }


def plan_of(data: Path, planet: int, detector: Detector) -> Plan:
    """Make the plan of an observation."""
    obs = open_dataset(data)[planet]
    frames, adc, axis = obs.frames(detector), obs.adc(detector), obs.axis(detector)
    config = Calibration().filled(obs.dataset.layout.preset)
    return make_plan(detector, config, frames, adc, axis, detector.frames)


def whole_runs(
    data: Path, planet: int, encoding: Encoding, folder: Path, rounds: int, beside: Mapping[str, str]
) -> dict[str, float]:
    """Time runs over a re-encoded planet and eight like it; medians over rounds of what a further planet adds."""
    home, here = data / "train" / str(planet), folder / "data" / "train" / "1"
    here.mkdir(parents=True)
    for entry in data.resolve().iterdir():
        if entry.name != "train":
            (folder / "data" / entry.name).symlink_to(entry)
    for entry in home.resolve().iterdir():
        if entry.suffix == ".parquet":
            encode(pq.read_table(entry), encoding, here / entry.name)
        else:
            (here / entry.name).symlink_to(entry)
    for name in range(2, 10):
        planet_like(here, here.with_name(str(name)))
    programs = {"gpucal": gpucal()} | {name: [program] for name, program in beside.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for name, program in programs.items():  # which may compile
        measure([*program, "calibrate", str(folder / "data"), str(folder / name), "--planet", "1"])
    for turn in range(rounds):
        for name, program in programs.items():
            run = [*program, "calibrate", str(folder / "data"), str(folder / f"{name} {turn}")]
            one = measure([*run, "--planet", "1"]).seconds
            seconds[name].append((measure(run).seconds - one) / 8)
    return {f"{name}, whole run": statistics.median(times) for name, times in seconds.items()}


def measured(data: Path, rounds: int, beside: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Time every way on every encoding; medians over rounds, of the sum over detectors."""
    planet = full_size_planets(data, 1)[0]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for label, encoding in ENCODINGS.items():
            seconds: dict[str, list[float]] = {}
            megabytes = 0.0
            for detector in DETECTORS.values():
                path = Path(scratch) / "signal.parquet"
                encode(
                    pq.read_table(data / "train" / str(planet) / f"{detector.name}_signal_0.parquet"), encoding, path
                )
                megabytes += path.stat().st_size / 1e6
                for way, decode in ways(plan_of(data, planet, detector), path).items():
                    times = []
                    for _ in range(rounds):
                        start = time.perf_counter()
                        decode()
                        times.append(time.perf_counter() - start)
                    seconds.setdefault(way, []).append(statistics.median(times))
            if beside:
                with tempfile.TemporaryDirectory() as folder:
                    runs = whole_runs(data, planet, encoding, Path(folder), rounds, beside)
                seconds |= {way: [time_] for way, time_ in runs.items()}
            rows += [
                {"encoding": label, "megabytes": megabytes, "way": way, "seconds": sum(times)}
                for way, times in seconds.items()
            ]
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format one row an encoding, one column a way."""
    by_way = list(dict.fromkeys(row["way"] for row in rows))
    cells = []
    for encoding in dict.fromkeys(row["encoding"] for row in rows):
        mine = {row["way"]: row for row in rows if row["encoding"] == encoding}
        size = f"{next(iter(mine.values()))['megabytes']:.0f} MB"
        cells.append([encoding, size, *(f"{mine[way]['seconds']:.2f}" for way in by_way)])
    return table(["seconds, both detectors", "", *by_way], cells)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the synthetic data; made if missing, kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=PROGRAM", help="another gpucal")
    parser.add_argument("--json")
    options = parser.parse_args()
    beside = dict(pair.split("=", 1) for pair in options.beside)
    with tempfile.TemporaryDirectory() as scratch:
        rows = measured(options.data or Path(scratch) / "data", options.rounds, beside)
    write_json(options.json, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
