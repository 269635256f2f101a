"""From signal files to binned sums, page by page: core-seconds a planet, by stage, on files as they are published.

    python benchmarks/pages.py FOLDER [--rounds 5] [--threads 2] [--json FILE]

The folder is made if it is missing, and kept: one synthetic planet of full size. Every round times each stage on one
thread and the whole on as many as asked for; medians are printed. pyarrow's zstd inflates the same pages beside it. To
time compiling, let NUMBA_CACHE_DIR name an empty folder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import gpucal, measure, table, write_json
from numpy.typing import NDArray

import gpucal as package
from gpucal.backends import load
from gpucal.inputs import calibration_files
from gpucal.inputs.parquet.layout import AT, DICTIONARY, KIND, PADDING, SIZE, TO, WANTED
from gpucal.inputs.parquet.pages import page_table
from gpucal.inputs.signal_file import Loaded, open_signal
from gpucal.pipeline.calibrated import arrays_of
from gpucal.pipeline.memory import PAGE_BLOCK
from gpucal.pipeline.stream import pixel_blocks
from gpucal.results.writer import Store
from gpucal.science.plan import Plan, make_plan
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS, Detector

GPU_PAGES = 2**27
"""Bytes of a GPU's block of pages."""

CLOCKS = (time.perf_counter, time.process_time)


def timed(work: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    start = clock()
    work()
    return clock() - start


@dataclass
class Stages:
    """One file's pages, block by block of pixels and stage by stage, as `gpucal.backends.pagewise.decode` does it."""

    plan: Plan
    loaded: Loaded
    seconds: Counter[str] = field(default_factory=Counter)
    left: int = 0

    def do(self, stage: str, work: Callable[..., object], *arguments: object) -> None:
        start = time.thread_time()
        work(*arguments)
        self.seconds[stage] += time.thread_time() - start

    def block(self, pixels: slice) -> None:
        from gpucal.backends.pagewise import bins, decode
        from gpucal.backends.pagewise.inflate import inflate_pages
        from gpucal.backends.pagewise.leftover import inflate_by_codec

        table, n, scratch = self.loaded.table, pixels.stop - pixels.start, decode.Scratch()
        raw = self.loaded.data
        first, last = int(table.firsts[pixels.start]), int(table.firsts[pixels.stop])
        some, status = table.pages[first:last], np.empty(last - first, np.int64)
        inflated = scratch.inflated(int(some[-1, TO] + some[-1, WANTED] - some[0, TO]) + PADDING)
        self.do("inflate", inflate_pages, raw, some, 0, len(some), inflated, status, *scratch.inflating)
        others = np.flatnonzero(status)
        self.left += len(others)
        places = some[others, TO] - some[0, TO]
        self.do("inflate by pyarrow's codec", inflate_by_codec, table, raw, first + others, inflated, places, Path())
        out, saturated, wrong = np.empty((n, self.plan.n_bins)), np.empty(n, np.uint8), np.empty((n, 2), np.int64)
        firsts, constants = table.firsts[pixels.start : pixels.stop + 1] - first, decode._constants(self.plan, pixels)
        what = inflated, some, firsts, table.facts[pixels], table.n_rows, *constants, out, saturated, wrong
        self.do("unpack and sum", bins.bin_pages, *what, *scratch.binning(table.n_rows, self.plan.pairs_per_bin))
        assert not wrong[:, 0].any()


def for_a_gpu(plan: Plan, loaded: Loaded) -> dict[str, float]:
    """Time what is left to the host of a GPU's work: a block's pages found and judged, refused ones, sums to places.

    Without a GPU it is the compiled function that refuses pages: the same ones.
    """
    from gpucal.backends import Backend
    from gpucal.backends.cupy_buffers import constants_of
    from gpucal.backends.cupy_pages import PageBlock
    from gpucal.backends.pagewise import decode
    from gpucal.backends.pagewise.inflate import inflate_pages
    from gpucal.backends.pagewise.leftover import foreseen, inflate_by_codec
    from gpucal.backends.pagewise.statuses import DONE

    found, scratch = Counter[str](), decode.Scratch()
    sums, detector = np.zeros((plan.n_pixels, plan.n_bins)), plan.detector

    def copied(plan: Plan, pixels: slice, source: object, out: NDArray[np.float64]) -> None:
        np.copyto(out, sums[pixels])

    destination = Backend("", "", copied).destination(device=False)
    binned = np.zeros(sums.shape, np.float32)
    for pixels in pixel_blocks(loaded.table.sizes, GPU_PAGES):
        start = time.thread_time()
        block = PageBlock.of(loaded, pixels)
        pieces, places = block.pieces()
        early = foreseen(loaded.data, block.pages)
        block.pages.copy()[:, AT] = places
        constants_of(plan, pixels)
        found["for a GPU: judged"] += time.thread_time() - start
        found["for a GPU: MB up"] += (int((pieces[:, 1] - pieces[:, 0]).sum()) + block.pages.nbytes) / 1e6
        found["for a GPU: MB decompressed there"] += float(block.pages[:, WANTED].sum()) / 1e6
        found["for a GPU: pages"] += len(block.pages)
        status = np.empty(len(block.pages), np.int64)
        last, memory = block.first + len(block.pages), scratch.inflated(block.room)
        inflate_pages(loaded.data, loaded.table.pages, block.first, last, memory, status, *scratch.inflating)
        assert status[early != DONE].all()
        for when, refused in (("meanwhile", early), ("afterwards", np.where(early != DONE, DONE, status))):
            start, others = time.thread_time(), np.flatnonzero(refused)
            places = block.pages[others, TO]
            inflate_by_codec(loaded.table, loaded.data, block.first + others, memory, places, loaded.path)
            found[f"for a GPU: decompressed by pyarrow {when}"] += time.thread_time() - start
            found[f"for a GPU: pages decompressed {when}"] += len(others)
        start = time.thread_time()
        destination.place_counts(plan, pixels, None, binned[pixels])
        found["for a GPU: sums put in place"] += time.thread_time() - start
    arrange = partial(destination.arranged, binned, (detector.shape[0], detector.width))
    found["for a GPU: sums put in place"] += timed(arrange)
    return dict(found)


def writing(obs: package.Observation, detector: Detector) -> float:
    """Time writing a result, as a run does it."""
    cal = package.calibrate(obs, detector.name, dtype="float32")
    arrays = arrays_of(cal, product="cubes", with_variance=False)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        return timed(lambda: store.commit(cal, arrays, dataset="", settings="", inputs="", seconds=0.0, quality={}))


def by_pyarrow(raw: Mapping[str, bytes], folder: Path, detector: Detector) -> None:
    """Decode calibration frames as those are that are not stored as published."""
    for name, data in raw.items():
        frame = calibration_files._FRAMES[name]
        shape = (frame.planes * detector.shape[0], detector.shape[1])
        calibration_files._decoded(data, folder / f"{name}.parquet", frame, shape)


def by_codec(loaded: Loaded) -> tuple[float, float]:
    """Inflate the data pages by pyarrow's zstd; return their bytes and the seconds."""
    codec, data = pa.Codec("zstd"), loaded.data
    some = loaded.table.pages[loaded.table.pages[:, KIND] != DICTIONARY]
    stored = [(pa.py_buffer(data[at : at + size]), wanted) for at, size, wanted in some[:, [AT, SIZE, WANTED]].tolist()]
    seconds = timed(lambda: [codec.decompress(page, decompressed_size=wanted) for page, wanted in stored])
    return float(some[:, WANTED].sum()), seconds


def once(obs: package.Observation, detector: Detector, threads: int) -> dict[str, float]:
    """Time one detector once."""
    path, bin_pages = obs.signal_path(detector), load("numba").bin_pages
    assert bin_pages is not None
    found: dict[str, float] = {}
    _ = obs.axis(detector), obs.adc(detector)  # read once for a data set
    start = time.thread_time()
    signal = open_signal(path, detector)
    config = Calibration().filled(obs.dataset.layout.preset)
    frames, adc, axis = obs.frames(detector), obs.adc(detector), obs.axis(detector)
    plan = make_plan(detector, config, frames, adc, axis, signal.n_frames)
    found["open"] = time.thread_time() - start
    folder = obs.calibration_path(detector)
    raw = calibration_files.read_raw_frames(folder)
    found["of which frames"] = timed(lambda: calibration_files.read_frames(raw, folder, detector))
    found["frames decoded by pyarrow instead"] = timed(lambda: by_pyarrow(raw, folder, detector))
    memory = np.ones(signal.size, np.uint8)
    start = time.thread_time()
    loaded = signal.load(memory)  # which is in use already
    found["read and table of pages"] = time.thread_time() - start
    content = memory.tobytes()
    found["of which table"] = timed(lambda: page_table(content, signal.footer, signal.columns, path))
    stages, blocks = Stages(plan, loaded), list(pixel_blocks(loaded.table.sizes, PAGE_BLOCK))
    for pixels in blocks:
        stages.block(pixels)
    found |= {**stages.seconds, "pages for pyarrow's codec": stages.left}
    found["GB/s"] = float(loaded.table.pages[:, WANTED].sum()) / found["inflate"] / 1e9
    found |= for_a_gpu(plan, loaded)
    found["write"] = writing(obs, detector)
    parts = [stage for stage in found if stage.startswith("for a GPU: ") and "MB" not in stage and "pages" not in stage]
    found["host of a GPU, all"] = sum(found[part] for part in ("open", "read and table of pages", "write", *parts))
    size, seconds = by_codec(loaded)
    found["GB/s of pyarrow's zstd"] = size / seconds / 1e9

    def whole() -> None:
        left = iter(blocks)

        def work() -> None:
            for pixels in left:
                bin_pages(plan, pixels, loaded, np.empty((pixels.stop - pixels.start, plan.n_bins)))

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work) for _ in range(threads)]:
                done.result()

    wall, cores = (timed(whole, clock) for clock in CLOCKS)
    found[f"pages to bins, wall, {threads} threads"], found[f"pages to bins, cores, {threads} threads"] = wall, cores
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    options = parser.parse_args()
    if not options.folder.exists():
        measure(gpucal("synth", options.folder, "--layout", "2025", "--planets", 1))
    compiling = timed(lambda: load("numba"), time.process_time)
    rows = [
        {name: once(obs, detector, options.threads) for name, detector in DETECTORS.items()}
        for _ in range(options.rounds)  # round by round, as the machine's weather changes
        for obs in [next(iter(package.open_dataset(options.folder)))]  # which does not know the frames yet
    ]
    medians = {
        name: {stage: statistics.median(row[name][stage] for row in rows) for stage in rows[0][name]}
        for name in DETECTORS
    }
    write_json(options.json, [{"rounds": rows, "medians": medians, "compiling": compiling}])
    stages = list(medians["FGS1"])
    cells = []
    for stage in stages:
        both = [medians[name][stage] for name in DETECTORS]
        total = "" if stage.startswith("GB/s") else f"{sum(both):.3f}"
        cells.append([stage, *(f"{value:.3f}" for value in both), total])
    print(table(["core-seconds but where it says otherwise", *DETECTORS, "planet"], cells))
    print(f"\nimporting and compiling, or loading what is compiled: {compiling:.2f} s")


if __name__ == "__main__":
    main()
