"""A GPU: what it is, whether its numbers are right, how fast it is. One command, one JSON file, one table.

    python benchmarks/hardware.py OUT [--seconds 300] [--commit HASH] [--parts NAME,...] [--stand-in]

Each part is a process with a time limit of its own. A part that fails or hangs costs its own figures only, and the
file says so. Data are synthetic, of full size, and made while the first parts run. OUT/<card>-<date>.json is only
written on a card. --stand-in tries the script without one, on the tests' stand-in for CuPy and small data, and gives no
speeds. The script needs the tests beside it, and pytest. Where ncu, compute-sanitizer or PyTorch is missing, the file
says that.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import gpucal, machine, measure, planet_like

HERE = Path(__file__).resolve()
TESTS = HERE.parents[1] / "tests"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
Facts = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """The data, the number of planets to time, and whether there is a real card."""

    data: Path
    scratch: Path
    planets: int
    rounds: int
    stand_in: bool

    def keep(self, part: str, found: Facts) -> None:
        """Write what is known of a part so far."""
        whole = self.scratch / f"{part}.{os.getpid()}"  # renamed, so that a part that is killed leaves no half of it
        whole.write_text(json.dumps(found))
        whole.replace(self.scratch / f"{part}.json")


# ------------------------------------------------------------------------------------------------- what the card is


def facts(case: Case) -> Facts:
    """Describe card and host, and measure the ceilings that other figures are held against."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    found: Facts = {
        "device": {
            "name": properties["name"].decode(),
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "multiprocessors": properties.get("multiProcessorCount"),
            "memory_gib": round(cupy.cuda.Device().mem_info[1] / 2**30, 1),
            "driver": runtime.driverGetVersion(),
            "runtime": runtime.runtimeGetVersion(),
            "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
            "cupy": cupy.__version__,
        },
        "host": machine(),
    }
    case.keep("facts", found)  # files are named after the card, whatever becomes of the ceilings
    if not case.stand_in:
        found["ceilings"] = ceilings(cupy)
    return found


def ceilings(cupy: Any) -> Facts:
    """Measure copies in GB/s, each way, and double precision in TFLOP/s: medians of ten."""
    import cupyx
    import numpy as np

    size = 2**28
    there, other = cupy.empty(size, np.uint8), cupy.empty(size, np.uint8)
    pinned, pageable = cupyx.empty_pinned(size, np.uint8), np.ones(size, np.uint8)
    pinned[:], there[:] = 7, 7
    stream = cupy.cuda.Stream(non_blocking=True)
    rates = {
        "pinned_up_gb_s": lambda: there.set(pinned, stream=stream),
        "pinned_down_gb_s": lambda: there.get(stream=stream, out=pinned, blocking=False),
        "pageable_up_gb_s": lambda: there.set(pageable, stream=stream),
    }
    found: Facts = {name: size / seconds_of(cupy, stream, work) / 1e9 for name, work in rates.items()}

    def within() -> None:
        with stream:
            cupy.copyto(other, there)

    found["device_copy_gb_s"] = 2 * size / seconds_of(cupy, stream, within) / 1e9  # read and written
    code = """extern "C" __global__ void fma_loop(double* out, double x) {
        double a = threadIdx.x, b = a + 1, c = a + 2, d = a + 3;
        for (int i = 0; i < 4096; i++) {
            a = fma(a, x, 1.0); b = fma(b, x, 1.0); c = fma(c, x, 1.0); d = fma(d, x, 1.0);
        }
        out[blockIdx.x * blockDim.x + threadIdx.x] = a + b + c + d;
    }"""
    kernel, blocks = cupy.RawModule(code=code).get_function("fma_loop"), 2048
    out = cupy.empty(blocks * 256)

    def multiply() -> None:
        with stream:
            kernel((blocks,), (256,), (out, np.float64(0.5)))

    found["double_tflop_s"] = 2 * 4 * 4096 * blocks * 256 / seconds_of(cupy, stream, multiply) / 1e12
    return found


def seconds_of(cupy: Any, stream: Any, work: Callable[[], object], times: int = 10) -> float:
    """Time what is queued on a stream by events, once warm."""
    seconds = []
    for _ in range(times + 2):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        seconds.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
    return statistics.median(seconds[2:])


# ------------------------------------------------------------------------------------------- whether numbers are right


def parity(case: Case) -> Facts:
    """Run the self-test, as users do."""
    from gpucal.backends.selftest import selftest

    reports = [vars(report) for report in selftest()]
    (cupy,) = [report for report in reports if report["backend"] == "cupy"]
    return {"parity": {"ok": cupy["parity"] is not None and cupy["parity"] <= 1.0, "backends": reports}}


def tests(case: Case) -> Facts:
    """Run the tests marked gpu in several processes, but not those of full-size data; the stand-in runs a few."""
    report = case.scratch / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    command += [f"--junitxml={report}"]
    several = importlib.util.find_spec("xdist") is not None and not case.stand_in
    command += ["-n", str(min(10, os.cpu_count() or 1))] if several else []
    few = "test_streams_together or test_it_is_right_again or good_files"
    command += ["-k", few if case.stand_in else "not full_size"]
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # JAX would take most of the card's memory
    environment |= {"GPUCAL_CARD": "stand-in"} if case.stand_in else {}
    done = subprocess.run(
        [*command, str(TESTS / "hardware")], env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout[-6000:], done.stderr[-2000:])
    suite = ET.parse(report).getroot()[0]
    failed = [
        f"{one.get('classname')}::{one.get('name')}"
        for one in suite
        if one.find("failure") is not None or one.find("error") is not None
    ]
    counted = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return {"tests": {**counted, "failed": failed[:40], "seconds": float(suite.get("time", 0))}}


def sanitizers(case: Case) -> Facts:
    """Run the kernels on small hostile data under all tools at the same time."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if case.stand_in or not Path(tool).exists():
        return {"sanitizers": dict.fromkeys(TOOLS, "missing")}
    running = {}
    for name in TOOLS:
        log = case.scratch / f"{name}.txt"
        command = [tool, "--tool", name, "--print-limit", "20", "--log-file", str(log)]
        command += [sys.executable, str(HERE), str(case.scratch), "--part", "hostile", *passed_on(case)]
        running[name] = log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    verdicts = {}
    for name, (log, process) in running.items():
        printed, _ = process.communicate()
        said = log.read_text(errors="replace") if log.exists() else ""
        print(name, process.returncode, said[:3000], printed[-600:], sep="\n")
        verdicts[name] = verdict(said, process.returncode)
    return {"sanitizers": verdicts}


def verdict(said: str, code: int) -> str:
    """Return ``clean``, how many errors were found, or ``refused`` where the tool cannot run here."""
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", said)
    if re.search(r"not supported|Unable to|failed to initialize", said, re.IGNORECASE) or not found:
        return "refused"
    errors = sum(int(one or other) for one, other in found)
    return f"{errors} errors" if errors else "clean" if code == 0 else f"exit {code}"


def hostile(case: Case) -> Facts:
    """Run the three kernels on small hostile data, with each array in memory of its own that ends where it ends."""
    import cupy
    import numpy as np
    import pytest

    with_tests()
    if not case.stand_in:
        cupy.cuda.set_allocator(None)
    import test_page_kernels as pages
    from card import CardKernel
    from hostile import ADCS, SMALL, observe
    from launch import calibrate

    from gpucal.settings.calibration import Calibration

    for frames, pairs in ((1003, 29), (2100, 513), (600, 30), (70, 1)):
        obs = observe(SMALL["AIRS-CH0"], frames, ADCS["2024"])
        plan = obs.plan(Calibration(bins={"AIRS-CH0": pairs}, odd_frames="drop"))
        out, _ = calibrate(CardKernel("calibrate", guard=0), plan, obs.counts())
        assert np.isfinite(out).any()
    pages.run_frames(CardKernel("inflate", guard=0))
    with pytest.MonkeyPatch.context() as patch:
        pages.run_columns(CardKernel("bins", guard=0), patch)
    return {}


# --------------------------------------------------------------------------------------------------- how fast it is


class Clocked:
    """A kernel whose launches are timed by events."""

    def __init__(self, cupy: Any, kernel: Callable[..., None]) -> None:
        self._cupy, self._kernel = cupy, kernel
        self.events: list[tuple[Any, Any]] = []

    def __call__(self, *arguments: Any) -> None:
        """Launch on the current stream."""
        begin, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        begin.record()
        self._kernel(*arguments)
        end.record()
        self.events.append((begin, end))

    def taken(self) -> list[float]:
        """Return the milliseconds of each launch since the last call."""
        self._cupy.cuda.Device().synchronize()
        spent = [self._cupy.cuda.get_elapsed_time(*pair) for pair in self.events]
        self.events.clear()
        return spent


def loaded_planets(case: Case, memory: Callable[[int], Any], most: int) -> Iterator[tuple[str, Any, Any]]:
    """Open and read both detectors of some planets: detector, plan and file."""
    import gpucal as package
    from gpucal.inputs.signal_file import open_signal
    from gpucal.science.plan import make_plan
    from gpucal.settings.calibration import Calibration
    from gpucal.settings.detectors import DETECTORS

    dataset = package.open_dataset(case.data)
    config = Calibration().filled(dataset.layout.preset)
    for obs in list(dataset)[:most]:
        for name, detector in DETECTORS.items():
            file = open_signal(obs.signal_path(detector), detector)
            frames, adc, axis = obs.frames(detector), obs.adc(detector), obs.axis(detector)
            plan = make_plan(detector, config, frames, adc, axis, file.n_frames)
            yield name, plan, file.load(memory(file.size))


def kernels(case: Case) -> Facts:
    """Time each kernel alone, block after block, on planets in turn; compare full-size results with the CPU's bits."""
    import cupy
    import numpy as np

    from gpucal.backends import cupy_, load
    from gpucal.backends.cupy_counts import CountLane
    from gpucal.backends.cupy_pages import PageBlock
    from gpucal.pipeline.stream import pixel_blocks

    backend, cpu = load("cupy"), load("numba")
    assert backend.bin_pages is not None
    assert backend.memory is not None
    assert cpu.bin_pages is not None
    gpu = cupy_._gpu()
    clocks = {name: Clocked(cupy, getattr(gpu._page_kernels, name)) for name in ("inflate", "bins")}
    vars(gpu._page_kernels).update(clocks)
    clocks["calibrate"] = Clocked(cupy, gpu._kernel)
    gpu._kernel = clocks["calibrate"]
    items = list(loaded_planets(case, backend.memory, 2 if case.stand_in else 4))
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    copies: dict[str, list[tuple[int, float]]] = defaultdict(list)
    differ, pages_left = 0, [0, 0]
    stream = cupy.cuda.Stream(non_blocking=True)
    for n_round in range(1 if case.stand_in else 6):
        for name, plan, loaded in items:
            out = np.full((plan.n_pixels, plan.n_bins), np.nan)
            blocks = list(pixel_blocks(loaded.table.sizes, backend.page_block))
            for pixels in blocks:
                _, pages = backend.bin_pages(plan, pixels, loaded, out[pixels])
                if n_round == 0:
                    pages_left[0] += pages.own
                    pages_left[1] += pages.codec + pages.arrow
            for kernel in ("inflate", "bins"):
                spent[kernel, name].append(sum(clocks[kernel].taken()))
            if case.stand_in:
                continue
            there = cupy.empty(loaded.data.size, np.uint8)
            pieces = np.concatenate([PageBlock.of(loaded, pixels).pieces()[0] for pixels in blocks])

            def up(loaded: Any = loaded, there: Any = there, pieces: Any = pieces) -> None:
                for begin, end in pieces.tolist():
                    there[begin:end].set(loaded.data[begin:end], stream=stream)

            copies[name].append((int((pieces[:, 1] - pieces[:, 0]).sum()), seconds_of(cupy, stream, up, 3)))
            if n_round == 0:
                right = np.empty_like(out)
                for pixels in pixel_blocks(loaded.table.sizes, 2**21):
                    cpu.bin_pages(plan, pixels, loaded, right[pixels])
                others = out.view(np.uint64) != right.view(np.uint64)
                differ += int((others & ~(np.isnan(out) & np.isnan(right))).sum())
    if case.stand_in:
        return {"kernels": {name: {"median_ms": None} for name in clocks}}
    # calibrate: decoded counts of one planet, which the device holds once per block.
    for name, plan, loaded in items[:2]:
        blocks = list(pixel_blocks(np.full(plan.n_pixels, 2 * plan.used_frames), 2**26))
        counts = [next(iter(loaded.counts([pixels])))[1] for pixels in blocks]
        for _ in range(5):
            for pixels, some in zip(blocks, counts, strict=True):
                lane = CountLane()
                lane.upload(plan, pixels, some)
                lane.launch(gpu._kernel, plan)
                lane.stream.synchronize()
            spent["calibrate", name].append(sum(clocks["calibrate"].taken()))
    found: Facts = {}
    for kernel in clocks:
        by_detector = {
            name: statistics.median(values[1:] or values) for (what, name), values in spent.items() if what == kernel
        }
        found[kernel] = {
            "median_ms": sum(by_detector.values()),
            **{f"{name}_ms": ms for name, ms in by_detector.items()},
        }
    size, seconds = (sum(statistics.median(one[i] for one in values) for values in copies.values()) for i in (0, 1))
    return {
        "kernels": found,
        "copy_up": {"bytes": size, "ms": 1e3 * seconds, "gb_s": size / seconds / 1e9},
        "pages": {"decompressed by inflate": pages_left[0], "left to the host": pages_left[1]},
        "full_size": {"values that differ from the CPU's bits": differ},
    }


def limiter(case: Case) -> Facts:
    """Read hardware counters of each kernel by ncu, on blocks of full size."""
    tool = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    if case.stand_in or not Path(tool).exists():
        return {"ncu": "missing"}
    report = case.scratch / "ncu.ncu-rep"
    sections = ("SpeedOfLight", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis", "SchedulerStats")
    command = [tool, "--clock-control", "none", "--profile-from-start", "off", "--export", str(report)]
    command += [word for section in (*sections, "SourceCounters") for word in ("--section", section)]
    command += [sys.executable, str(HERE), str(case.scratch), "--part", "profiled", *passed_on(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not report.exists():
        print(done.stdout[-1500:], done.stderr[-1500:])
        return {"ncu": "refused"}
    pages = {
        "ncu": ["--page", "details"],
        "ncu-stalls": ["--page", "details", "--section", "WarpStateStats", "--print-details", "all"],
        "ncu-source": ["--page", "source", "--print-source", "sass"],
    }
    for name, page in pages.items():
        shown = subprocess.run(
            [tool, "--import", str(report), "--csv", *page], capture_output=True, text=True, check=False
        )
        print(name, shown.returncode, shown.stderr[-1500:])
        (case.scratch / f"{name}.csv").write_text(shown.stdout)
    return {"ncu": counters((case.scratch / f"{name}.csv").read_text() for name in ("ncu", "ncu-stalls"))}


def counters(printed: Iterable[str]) -> Facts:
    """Read what ncu printed. Launches of other sizes are apart, as few pages are launched beside many."""
    counted: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for text in printed:
        lines = [line for line in text.splitlines() if line.startswith('"')]
        for row in csv.DictReader(lines):
            with contextlib.suppress(ValueError):  # a word, not a number
                value = float(row["Metric Value"].replace(",", ""))
                launch = f"{row['Kernel Name'].partition('(')[0]} {row['Grid Size']}"
                counted[launch][f"{row['Metric Name']} [{row['Metric Unit']}]"].append(value)
    return {name: {what: statistics.median(some) for what, some in of.items()} for name, of in counted.items()}


def profiled(case: Case) -> Facts:
    """Launch each kernel on blocks of one planet while a profiler looks."""
    import cupy
    import numpy as np

    from gpucal.backends import load
    from gpucal.pipeline.stream import pixel_blocks

    backend = load("cupy")
    assert backend.bin_pages is not None
    assert backend.memory is not None
    for _, plan, loaded in loaded_planets(case, backend.memory, 1):
        out = np.empty((plan.n_pixels, plan.n_bins))
        blocks = list(pixel_blocks(loaded.table.sizes, backend.page_block))
        cupy.cuda.runtime.profilerStart()
        for pixels in blocks[:2]:
            backend.bin_pages(plan, pixels, loaded, out[pixels])
        few = next(pixel_blocks(np.full(plan.n_pixels, 2 * plan.used_frames), 2**26))
        ((_, counts),) = loaded.counts([few])
        backend.bin_counts(plan, few, counts, out[few])
        cupy.cuda.runtime.profilerStop()
    return {}


def steps(case: Case) -> Facts:
    """Run the seven steps of `gpucal.steps` as array operations on CuPy and on NumPy, and the kernel for comparison."""
    import cupy
    import numpy as np
    from arithmetic import GAIN, OFFSET
    from arithmetic import Case as Counts

    from gpucal import steps as seven
    from gpucal.backends import load
    from gpucal.settings.detectors import DETECTORS

    seconds: dict[str, float] = defaultdict(float)
    worst = 0.0
    for detector in DETECTORS.values():
        made = Counts(detector, 100 if case.stand_in else 1)
        dead = np.zeros(made.dark.shape, bool)

        def chain(put: Callable[[Any], Any], made: Any = made, dead: Any = dead) -> Any:
            values = seven.adc(put(made.raw), GAIN, OFFSET)
            values = seven.linearity(values, put(made.linear_corr))
            values = seven.dark(values, put(made.dark), put(made.integration_s), put(dead))
            values = seven.bin(seven.cds(values), made.detector.bin_pairs)
            return seven.flat(values, put(made.flat), put(dead))

        def there(made: Any = made) -> Any:
            result = chain(cupy.asarray, made)
            cupy.cuda.Device().synchronize()
            return result

        start = time.perf_counter()
        on_host = chain(np.asarray)
        seconds["NumPy"] += time.perf_counter() - start
        for way, work in (("CuPy", there), ("kernel", lambda made=made: made.blocks(load("cupy"), 2))):
            spent = []
            for _ in range(1 if case.stand_in else 4):
                start = time.perf_counter()
                results = work()
                spent.append(time.perf_counter() - start)
            seconds[way] += statistics.median(spent[1:] or spent)
            found = results.get() if way == "CuPy" else results.reshape(on_host.shape)
            scale = np.abs(on_host).max()
            worst = max(worst, float(np.abs(found - on_host).max() / scale))
    left_out = {} if not case.stand_in else dict.fromkeys(seconds)
    return {"steps": {"seconds, with the copy of counts up": {**seconds, **left_out}, "largest difference": worst}}


def run_once(case: Case) -> Facts:
    """Calibrate all planets into a folder as GPUCAL_HARDWARE says.

    ``seconds`` are those of a planet between the end of the first quarter of the items and the end of the last, so
    without the start of processes, and ``whole_seconds`` are those of the whole run.
    """
    import gpucal as package
    from gpucal.runs import gpus

    asked = json.loads(os.environ["GPUCAL_HARDWARE"])
    if "processes" in asked:  # otherwise as users have it
        gpus._THREADS, gpus._PLANETS, gpus._PROCESSES = 1, 1, asked["processes"]
    if asked.get("cold") and not files_are_cold():
        raise RuntimeError("the page cache cannot be emptied here")
    dataset, out = package.open_dataset(case.data), case.scratch / f"out-{os.getpid()}"
    start, cpu = time.perf_counter(), core_seconds()
    summary = package.run(dataset, out, backend=asked["backend"], workers=asked["cores"], progress=False)
    whole, cpu = time.perf_counter() - start, core_seconds() - cpu
    assert not summary.failed, summary.failed
    ends = sorted(path.stat().st_mtime for path in out.glob("*/*/*.json"))
    first, n = len(ends) // 4, len(dataset)
    digest = hashlib.sha256()
    for path in sorted(out.rglob("*.npy")):
        digest.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
    shutil.rmtree(out)
    return {
        "seconds": (ends[-1] - ends[first - 1]) / (n - first / 2),
        "whole_seconds": whole / n,
        "core_seconds": cpu / n,
        "stages": {stage: spent / n for stage, spent in summary.stages.items()},
        "bits": digest.hexdigest(),
    }


def core_seconds() -> float:
    """Return what this process and those that it started and that have ended took of all cores."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def end_to_end(case: Case) -> Facts:
    """Calibrate into a results folder with 4, all and 2 cores: the CPU backend and the GPU in turn, files warm.

    The first rounds have 4 cores alone, so that these figures are there if time ends. Signal files are links to the few
    that were made: with cold files, each of those comes from the disk once.
    """
    every = os.cpu_count() or 1
    four: dict[str, Facts] = {f"{name}, 4 cores": {"backend": name, "cores": 4} for name in ("numba", "cupy")}
    others: dict[str, Facts] = {
        f"{name}, {cores} cores": {"backend": name, "cores": cores}
        for cores in (every, 2)
        for name in ("cupy", "numba")
    }
    for name, count in (("1 process", 1), ("3 processes", 3)):
        others[f"cupy, 4 cores, {name}"] = {"backend": "cupy", "cores": 4, "processes": count}
    others |= {f"{way}, cold files": asked | {"cold": True} for way, asked in four.items()}
    rounds: dict[str, list[Facts]] = defaultdict(list)
    found: Facts = {}
    for turn, ways in enumerate([four] if case.stand_in else [four] * case.rounds + [others]):
        for way, asked in ways.items():
            try:
                done = child(case, "run_once", asked)
            except RuntimeError as error:
                print(way, error)
            else:
                rounds[way].append(done)
                print(way, done)
            if all(rounds[way] for way in four) and (turn >= min(case.rounds, 2) or case.stand_in):
                found = {"end_to_end": summed(case, rounds)}
                case.keep("end_to_end", found)
    if not case.stand_in:
        planet = str(min(int(path.name) for path in (case.data / "train").iterdir()))
        for backend in ("numba", "cupy"):
            command = gpucal("calibrate", case.data, case.scratch / f"cold-{backend}", "--planet", planet)
            found["end_to_end"][f"cold process, one planet, {backend}"] = measure(
                [*command, "--backend", backend]
            ).seconds
    return found


def files_are_cold() -> bool:
    """Empty the page cache, if this process may."""
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        return False
    return True


def summed(case: Case, rounds: dict[str, list[Facts]]) -> Facts:
    """Take medians over rounds, and of the ratio of CPU to GPU within each."""
    ways = {
        way: {
            "seconds": statistics.median(one["seconds"] for one in some),
            "whole_seconds": statistics.median(one["whole_seconds"] for one in some),
            "core_seconds": statistics.median(one["core_seconds"] for one in some),
            "stages": some[-1]["stages"],
        }
        for way, some in rounds.items()
    }
    pairs = zip(rounds["numba, 4 cores"], rounds["cupy, 4 cores"], strict=False)
    ratio = statistics.median(cpu["seconds"] / gpu["seconds"] for cpu, gpu in pairs)
    bits = {one["bits"] for some in rounds.values() for one in some}
    if case.stand_in:
        ways, ratio = {way: dict.fromkeys(of) for way, of in ways.items()}, None
    found = {"planets": case.planets, "rounds": case.rounds, "ways": ways, "same_bits": len(bits) == 1}
    return {**found, "gpu_over_cpu_4_cores": ratio}


def streamed(case: Case) -> Facts:
    """Stream results that stay on the card, with and without a step of training for each planet.

    Rates are those of the second half of the planets, when the process that opens files has long started.
    """
    import cupy

    import gpucal as package

    planets = 2 * [*package.open_dataset(case.data)]

    def streams(workers: int, *names: str) -> Any:
        given = (package.stream(planets, name, device=True, dtype="float32", workers=workers) for name in names)
        return zip(*given, strict=True)

    def seconds_each(results_of: Any, use: Callable[..., object] = lambda *results: None) -> float:
        half = len(planets) // 2
        for number, results in enumerate(results_of):
            use(*results)
            if number + 1 == half:
                cupy.cuda.Device().synchronize()
                start = time.perf_counter()
        cupy.cuda.Device().synchronize()
        return (time.perf_counter() - start) / (len(planets) - half)

    both, train = ("AIRS-CH0", "FGS1"), None if case.stand_in else training()
    ways: dict[str, Callable[[], float]] = {
        "both detectors, 2 threads each": lambda: seconds_each(streams(2, *both)),
        "AIRS-CH0, 4 threads": lambda: seconds_each(streams(4, "AIRS-CH0")),
    }
    if train is not None:
        ways["both detectors, 2 threads each, into PyTorch training"] = lambda: seconds_each(streams(2, *both), train)
    found: Facts = {"planets_per_second": {}, "training": "PyTorch" if train else "missing"}
    for way, work in ways.items():
        seconds = [work() for _ in range(1 if case.stand_in else 3)]
        found["planets_per_second"][way] = None if case.stand_in else 1 / statistics.median(seconds)
        case.keep("stream", {"stream": found})
    return {"stream": found}


def training() -> Callable[[Any, Any], object] | None:
    """Make a step of training a small convolutional network, which takes what a stream yields without a copy."""
    try:
        import torch
    except ImportError:
        return None
    layers = torch.nn.Conv1d(282, 64, 5), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten()
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 283)).cuda()
    optimiser = torch.optim.Adam(model.parameters())

    def step(airs: Any, fgs: Any) -> None:
        light = torch.nan_to_num(torch.from_dlpack(airs.signal)).sum(-1).T[None]
        white = torch.nan_to_num(torch.from_dlpack(fgs.signal)).mean()
        loss = (model(light / light.mean()) - white / white).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def notebook(case: Case) -> Facts:
    """Time the organisers' notebook, written in our own words, on this machine's processor."""
    if case.stand_in:
        return {"notebook": None}
    planet = sorted(int(path.name) for path in (case.data / "train").iterdir())[0]
    done = measure(
        [sys.executable, str(HERE.parent / "rivals" / "notebook.py"), str(case.data), "--planet", str(planet)]
    )
    return {"notebook": {"seconds": json.loads(done.output.splitlines()[-1])["seconds"], "peak": done.peak}}


# ------------------------------------------------------------------------------------------------------ how it is run


@dataclass(frozen=True)
class Part:
    """The work of a part, the seconds it may take, and whether it needs the data."""

    work: Callable[[Case], Facts]
    seconds: int
    data: bool = True


PARTS = {
    "facts": Part(facts, 30, data=False),
    "parity": Part(parity, 40, data=False),
    "kernels": Part(kernels, 40),
    "end_to_end": Part(end_to_end, 125),
    "tests": Part(tests, 110, data=False),
    "sanitizers": Part(sanitizers, 40, data=False),
    "stream": Part(streamed, 60),
    "notebook": Part(notebook, 60),
    "ncu": Part(limiter, 40),
    "steps": Part(steps, 40),
}
INNER = {"hostile": hostile, "profiled": profiled, "run_once": run_once}
"""What parts run in processes of their own."""


def with_tests() -> None:
    """Let what the tests share be imported."""
    for folder in (TESTS, TESTS / "support", TESTS / "kernels"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


@contextmanager
def card(stand_in: bool) -> Iterator[None]:
    """Have ``import cupy`` find the stand-in, if that is asked for."""
    if not stand_in:
        yield
        return
    with_tests()
    from emulator import standin

    with standin.installed(seed=1, memory=2**34):
        yield


def passed_on(case: Case) -> list[str]:
    """Give the options by which another process knows the case."""
    words = ["--data", str(case.data), "--scratch", str(case.scratch), "--planets", str(case.planets)]
    return [*words, "--rounds", str(case.rounds), *(["--stand-in"] if case.stand_in else [])]


def child(case: Case, part: str, asked: Facts) -> Facts:
    """Run one of `INNER` on some of the cores, and return its facts."""
    environment = {**os.environ, "GPUCAL_HARDWARE": json.dumps(asked)}
    cores = sorted(os.sched_getaffinity(0))[: asked["cores"]]
    command = [sys.executable, str(HERE), str(case.scratch), "--part", part, *passed_on(case)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{part} {asked}: {done.stdout[-1500:]} {done.stderr[-1500:]}")
    return json.loads((case.scratch / f"{part}.json").read_text())


@dataclass
class Data:
    """Planets of full size, made by one process each; the others are links to them in turn."""

    case: Case
    making: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def raw(self, seed: int) -> Path:
        """Return the folder of one process."""
        return self.case.data.with_name(f"{self.case.data.name}-{seed}")

    def begin(self) -> None:
        """Start to make them."""
        self.case.data.parent.mkdir(parents=True, exist_ok=True)
        for seed in range(1 if self.case.stand_in else 4):
            frames = ["--frames", "240"] if self.case.stand_in else []
            command = gpucal("synth", self.raw(seed), "--layout", "2025", "--seed", seed, *frames)
            self.making.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    def stop(self) -> None:
        """End the processes that still make some."""
        for process in self.making:
            process.kill()
            process.wait()

    def end(self, until: float) -> None:
        """Wait for them, but not longer than until then, and put them together."""
        if self.case.data.exists():
            return
        codes = [process.wait(max(0.0, until - time.monotonic())) for process in self.making]
        assert codes == [0] * len(self.making), f"gpucal synth ended with {codes}"
        (self.case.data / "train").mkdir(parents=True)
        first, *_ = folders = [self.raw(seed) for seed in range(len(self.making))]
        for entry in first.iterdir():
            if entry.name not in ("train", "truth"):
                shutil.copy(entry, self.case.data)
        made = [planet for folder in folders for planet in (folder / "train").iterdir()]
        for n in range(self.case.planets):
            planet_like(made[n % len(made)], self.case.data / "train" / str(10**9 + n))


def main() -> None:
    """Run the parts, each in its time; write what is known after each."""
    options = parsed()
    if options.part:
        case = Case(options.data, options.scratch, options.planets, options.rounds, options.stand_in)
        with card(options.stand_in):
            work = INNER.get(options.part) or PARTS[options.part].work
            found = work(case)
        case.keep(options.part, found)
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        planets = 2 if options.stand_in else options.planets
        case = Case(options.data or scratch / "data", scratch, planets, options.rounds, options.stand_in)
        results = measured(case, options)
        for log in scratch.glob("*.csv"):
            shutil.copy(log, options.out)
    print("\n" + markdown(results))


def measured(case: Case, options: argparse.Namespace) -> Facts:
    """Run the parts."""
    until = time.monotonic() + options.seconds
    results: Facts = {"commit": options.commit or commit(), "date": time.strftime("%Y-%m-%d"), "parts": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(case)
    try:
        if not case.data.exists() and any(PARTS[name].data for name in options.parts):
            data.begin()
        for name in options.parts:
            start = time.monotonic()
            if until - start < 10:
                results["parts"][name] = "left out: no time was left"
                continue
            try:
                if PARTS[name].data:
                    data.end(until)
                box = min(PARTS[name].seconds, max(0.0, until - time.monotonic())) * (4 if options.stand_in else 1)
                command = [sys.executable, str(HERE), str(case.scratch), "--part", name, *passed_on(case)]
                said = boxed(command, box, options.out / f"{name}.log")
            except (RuntimeError, AssertionError, OSError, subprocess.TimeoutExpired) as error:
                said = " ".join(str(error).split())[-600:] or type(error).__name__
                for folder in (HERE.parents[1], case.scratch):  # which mean nothing elsewhere
                    said = said.replace(f"{folder}/", "")
            known = case.scratch / f"{name}.json"
            results.update(json.loads(known.read_text()) if known.exists() else {})
            results["parts"][name] = f"{said}, {time.monotonic() - start:.0f} s"
            print(f"{name}: {results['parts'][name]}", flush=True)
            write(results, options)
    finally:
        data.stop()
    return results


def boxed(command: list[str], seconds: float, log: Path) -> str:
    """Run a process and all it starts; end them when their time is over, or this process is interrupted."""
    with (
        log.open("w") as sink,
        subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True) as process,
    ):
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise RuntimeError(f"not done in {seconds:.0f} s") from None
        except BaseException:  # a session of its own gets no interrupt of the terminal
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise RuntimeError(f"exit {code}: {log.read_text(errors='replace')[-500:]}")
    return "done"


def write(results: Facts, options: argparse.Namespace) -> None:
    """Write the figures, named after the card; without a card there is no such file."""
    name = "stand-in" if options.stand_in else results.get("device", {}).get("name")
    if name is None:
        return
    path = options.out / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{results['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def commit() -> str:
    """Name the commit that runs."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def markdown(results: Facts) -> str:
    """Format the figures."""
    device = results.get("device", {})
    rows = [("card", f"{device.get('name')}, compute capability {device.get('compute_capability')}")]
    rows += [(name, f"{value:.3g}") for name, value in results.get("ceilings", {}).items()]
    rows += [("agrees with NumPy", str(results.get("parity", {}).get("ok")))]
    if counted := results.get("tests"):
        rows += [
            (
                "tests on the card",
                "{tests} run, {failures} failed, {errors} in error, {skipped} skipped".format(**counted),
            )
        ]
    rows += [(f"compute-sanitizer {tool}", said) for tool, said in results.get("sanitizers", {}).items()]
    rows += [(f"{name}, a planet", f"{of['median_ms']} ms") for name, of in results.get("kernels", {}).items()]
    for part in ("copy_up", "pages", "full_size", "notebook"):
        rows += [(f"{part}: {name}", f"{value:.4g}") for name, value in (results.get(part) or {}).items()]
    if runs := results.get("end_to_end"):
        rows += [
            (
                f"run, {way}",
                "{seconds} s a planet, {whole_seconds} with the start, {core_seconds} core-seconds".format(**of),
            )
            for way, of in runs["ways"].items()
        ]
        rows += [(name, str(value)) for name, value in runs.items() if name not in ("ways", "planets", "rounds")]
    rows += [
        (f"stream, {way}", f"{value} planets a second")
        for way, value in results.get("stream", {}).get("planets_per_second", {}).items()
    ]
    rows += [(f"steps: {name}", str(value)) for name, value in results.get("steps", {}).items()]
    rows += [(f"part {name}", said) for name, said in results["parts"].items()]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for the JSON file and logs, such as benchmarks/hardware")
    parser.add_argument("--seconds", type=float, default=300, help="for all parts together")
    parser.add_argument("--commit", help="what runs, where git does not tell")
    parser.add_argument("--parts", help=f"some of {', '.join(PARTS)}; the first is always run")
    parser.add_argument("--planets", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stand-in", action="store_true", help="try it without a card")
    parser.add_argument("--data", type=Path, help="folder of synthetic data, made by an earlier run")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    asked = options.parts.split(",") if options.parts else [*PARTS]
    if unknown := [name for name in asked if name not in PARTS]:
        parser.error(f"--parts: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    options.parts = list(dict.fromkeys(["facts", *asked]))  # which name the file
    if options.stand_in and not options.part and options.out.resolve() == HERE.parent / "hardware":
        parser.error("benchmarks/hardware/ has figures of cards alone: name another folder")
    return options


if __name__ == "__main__":
    main()
