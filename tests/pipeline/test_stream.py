"""The pipeline keeps items in order through failures, early exits and small memory, and leaves nothing behind."""

from __future__ import annotations

import gc
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BINS, Made, until
from hostile import ADCS, FGS1, observe, write
from paged import planned

import gpucal
from gpucal import Calibration, backends
from gpucal.backends import Backend, Destination, load, numpy_
from gpucal.errors import ConfigError, InputError
from gpucal.inputs import signal_file
from gpucal.pipeline import memory as budget
from gpucal.pipeline import stream
from gpucal.pipeline.stream import Item, Opened, Outcome, Pipeline, open_items, pixel_blocks
from gpucal.science.plan import Plan

CONFIG = Calibration(bins=BINS, integration="notebook")
PLANETS = tuple(range(1, 8))
OUTPUT = 4 * 32 * 32 * 2 * 8  # twice, while sums are arranged
FLOAT64 = np.dtype(np.float64)

PATIENCE = 60.0
"""Seconds after which something hangs."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven planets of FGS1 alone. Not to be written to."""
    folder = tmp_path_factory.mktemp("many") / "raw"
    for planet in PLANETS:
        write([observe(FGS1, 140, ADCS["2024"], planet)], folder, planet)
    return folder


@pytest.fixture
def own(many: Path, tmp_path: Path) -> Path:
    """A copy of the seven planets, to be damaged."""
    return Path(shutil.copytree(many, tmp_path / "own"))


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    assert ours() == []
    yield
    assert ours() == []


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gpucal")]


def signal_of(folder: Path, planet: int) -> Path:
    return folder / "train" / str(planet) / "FGS1_signal.parquet"


def items_of(folder: Path) -> list[Item]:
    return [Item(obs, FGS1, CONFIG) for obs in gpucal.open_dataset(folder)]


def opened(folder: Path, backend: str = "numpy", **options: Any) -> Pipeline:
    return Pipeline(open_items(items_of(folder)), load(backend), dtype=FLOAT64, **({"threads": 2} | options))


def outcomes_of(folder: Path, threads: int = 2, backend: Backend | None = None, **options: Any) -> list[Outcome]:
    items, backend = open_items(items_of(folder)), backend or load("numba")
    with Pipeline(items, backend, dtype=FLOAT64, threads=threads, **options) as pipeline:
        return list(pipeline.outcomes())


def tight(threads: int, space: int) -> int:
    """Return the memory that leaves so many bytes to files and outputs."""
    memory = budget.PROCESS + threads * budget.THREAD + space
    assert budget.Budget(memory, threads).total == space
    return memory


def need_of(folder: Path, threads: int = 2, *, by_pages: bool = False) -> int:
    """Return the bytes that the largest item reserves."""
    needs = []
    for planet in PLANETS:
        with suppress(InputError):
            signal = signal_file.open_signal(signal_of(folder, planet), FGS1)
            needs.append(signal.size + budget.working_bytes(signal, threads, by_pages=by_pages))
    return max(needs) + OUTPUT


def sleepy(seconds: float, spent: list[float] | None = None) -> Backend:
    """A backend that sleeps while it bins, so that other threads can run."""

    def bin_counts(plan: Any, pixels: slice, counts: np.ndarray, out: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        time.sleep(seconds)
        if spent is not None:
            spent.append(time.perf_counter() - start)
        return numpy_.bin_counts(plan, pixels, counts, out)

    return Backend("sleepy", "tests", bin_counts)


class Watched(budget.Budget):
    """A budget that records the bytes in use after each change, and the number of items."""

    seen: list[tuple[int, int, int]]
    last: Watched

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sharers = 0
        Watched.last = self

    def acquire(self, *arguments: Any) -> Any:
        spare = super().acquire(*arguments)
        self.sharers += 1
        kept = sum(memory.written for memory in self._spare)
        self.seen.append((self._used + kept, self.total, self.sharers))
        return spare

    def release(self, returned: int, spare: Any = None) -> None:
        self.sharers -= returned > 0
        super().release(returned, spare)


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr(stream, "Budget", Watched)
    Watched.seen = []
    return Watched


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_failing_item_costs_only_itself(own: Path, many: Path, threads: int) -> None:
    whole = {outcome.item.obs.planet: outcome.result for outcome in outcomes_of(many)}
    signal_of(own, 2).unlink()
    damaged = bytearray(signal_of(own, 3).read_bytes())
    damaged[1000:60_000] = bytes(59_000)  # the footer is whole, the pages are not
    signal_of(own, 3).write_bytes(damaged)
    (own / "train" / "5" / "FGS1_calibration" / "dark.parquet").write_bytes(b"dark")
    outcomes = outcomes_of(own, threads)
    assert [outcome.item.obs.planet for outcome in outcomes] == list(PLANETS)
    for outcome in outcomes:
        planet = outcome.item.obs.planet
        if planet in (2, 3, 5):
            assert isinstance(outcome.result, InputError)
            assert str(outcome.result).startswith(f"planet {planet} visit 0 FGS1: ")
        else:
            expected = whole[planet]
            assert isinstance(outcome.result, gpucal.Calibrated)
            assert isinstance(expected, gpucal.Calibrated)
            np.testing.assert_array_equal(outcome.result.signal, expected.signal)
            np.testing.assert_array_equal(outcome.result.dq, expected.dq)


@pytest.mark.slow
def test_a_failed_item_s_memory_is_free_at_once(own: Path) -> None:
    damaged = bytearray(signal_of(own, 1).read_bytes())
    damaged[1000:60_000] = bytes(59_000)
    signal_of(own, 1).write_bytes(damaged)
    gc.collect()
    gc.disable()
    try:
        for backend in ("numpy", "numba"):
            items = open_items(items_of(own)[:1])
            with Pipeline(items, load(backend), dtype=FLOAT64, threads=2) as pipeline:
                outcome = next(pipeline.outcomes())
                assert isinstance(outcome.result, InputError)
                assert [kept for kept in gc.get_objects() if isinstance(kept, stream._Flight)] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("spare", [0, 1.5, 3.5, 1000])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_memory_and_workers_do_not_change_a_bit(many: Path, workers: int, spare: float) -> None:
    dataset = gpucal.open_dataset(many)
    need = need_of(many, workers, by_pages=True)
    memory = tight(workers, int(spare * need)) if 0 < spare < 100 else None if spare else 2 * 10**9
    for cal in gpucal.stream(dataset, "FGS1", CONFIG, workers=workers, memory=memory):
        alone = gpucal.calibrate(dataset[cal.planet], "FGS1", CONFIG, workers=1)
        np.testing.assert_array_equal(cal.signal, alone.signal)
        np.testing.assert_array_equal(cal.dq, alone.dq)


def test_what_cannot_be_allocated_is_given_back(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the memory were not returned, the next items would wait for ever."""
    plain, calls = Backend.destination, []

    def destination(backend: Backend, device: bool) -> Destination:
        def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
            calls.append(shape)
            if len(calls) <= 2:
                raise MemoryError
            return made.allocate(shape, dtype)

        made = plain(backend, device)
        return replace(made, allocate=allocate)

    monkeypatch.setattr(Backend, "destination", destination)
    with opened(many) as pipeline:
        outcomes = list(pipeline.outcomes())
        assert pipeline._budget._used == 0
    failed = [outcome.result for outcome in outcomes if isinstance(outcome.result, InputError)]
    assert ["ran out of memory" in str(error) for error in failed] == [True, True]
    assert len(outcomes) == len(PLANETS)


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("part", [1, 999, 10**4, 10**9])
def test_a_file_is_read_in_parts(part: int, cores: int, many: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(signal_file, "_PART", part * 50)
    monkeypatch.setattr(signal_file.os, "sched_getaffinity", lambda process: set(range(cores)))
    obs, path = items_of(many)[0].obs, tmp_path / "signal.parquet"
    content = obs.signal_path(FGS1).read_bytes()
    path.write_bytes(content)
    signal = signal_file.open_signal(path, FGS1)
    assert signal.load().data.tobytes() == content
    for other in (content + b"x", content[:-1], content[:1], b"x" + content[:-1]):
        path.write_bytes(other)
        with pytest.raises(InputError, match="changed while it was being read"):
            signal.load()


def test_one_item_is_opened_ahead_of_the_one_that_is_read(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, ahead, plain = [0], [], signal_file._read_into

    def items() -> Iterator[Opened | Outcome]:
        for item in open_items(items_of(many)):
            taken[0] += 1
            yield item

    def reading(space: np.ndarray, ranges: list[tuple[int, int]], path: Path) -> bool:
        number = len(ahead)
        until(lambda: taken[0] > min(number + 1, len(PLANETS) - 1))
        time.sleep(0.005)  # for another, which would be one too many
        ahead.append(taken[0] - number - 1)
        return plain(space, ranges, path)

    monkeypatch.setattr(signal_file, "_read_into", reading)
    with Pipeline(items(), load("numpy"), dtype=FLOAT64, threads=2) as pipeline:
        outcomes = list(pipeline.outcomes())
    assert len(outcomes) == len(PLANETS)
    assert ahead == [1] * (len(PLANETS) - 1) + [0]


def test_what_is_not_wanted_is_not_read(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, plain = [], signal_file._read_into
    monkeypatch.setattr(
        signal_file, "_read_into", lambda buffer, ranges, path: read.append(path) or plain(buffer, ranges, path)
    )

    def wanted() -> Iterator[Opened | Outcome]:
        for item in open_items(items_of(many)):
            assert isinstance(item, Opened)
            yield item if item.item.obs.planet % 2 == 0 else Outcome(item.item, None, item.inputs, {})

    with Pipeline(wanted(), load("numpy"), dtype=FLOAT64, threads=2) as pipeline:
        outcomes = list(pipeline.outcomes())
    assert [outcome.result is None for outcome in outcomes] == [planet % 2 == 1 for planet in PLANETS]
    assert len({outcome.inputs for outcome in outcomes}) == len(PLANETS)
    assert read == [signal_of(many, planet) for planet in (2, 4, 6)]


def test_reads_ahead_and_not_too_far(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, plain = [], stream.open_signal
    monkeypatch.setattr(
        stream, "open_signal", lambda path, *how, **more: seen.append(path) or plain(path, *how, **more)
    )
    with opened(many) as pipeline:
        for taken, _ in enumerate(pipeline.outcomes(), start=1):
            expected = min(len(PLANETS), taken + stream.AHEAD + 1)  # the last is opened beside the reading before it
            until(lambda expected=expected: len(seen) >= expected, 20)
            time.sleep(0.05)
            assert seen == [signal_of(many, planet) for planet in PLANETS[:expected]]


@pytest.mark.parametrize("said", [2**61, -(2**61), 0, 1])
def test_whatever_a_footer_says_an_item_needs_memory(many: Path, said: int) -> None:
    signal = signal_file.open_signal(signal_of(many, 1), FGS1)
    footer = replace(signal.footer, uncompressed=np.full_like(signal.footer.uncompressed, said))
    lying = replace(signal, footer=footer)
    assert lying.by_pages
    one, four = (budget.working_bytes(lying, threads, by_pages=True) for threads in (1, 4))
    assert one >= budget.LEAST_BLOCK
    assert four - one >= 3 * (budget.LEAST_BLOCK + 2 * footer.n_rows)


@pytest.mark.parametrize("share", [1.0, 2.5, 3.2])
def test_the_budget_is_kept_and_given_back(own: Path, budgets: type[Watched], share: float) -> None:
    signal_of(own, 4).write_bytes(b"PAR1")
    damaged = bytearray(signal_of(own, 6).read_bytes())
    damaged[1000:60_000] = bytes(59_000)
    signal_of(own, 6).write_bytes(damaged)
    memory = tight(2, int(share * need_of(own)))
    with opened(own, memory=memory) as pipeline:
        until(lambda: len(budgets.seen) == int(share), 20)  # before any is taken
        outcomes = list(pipeline.outcomes())
    assert [isinstance(outcome.result, InputError) for outcome in outcomes] == [p in (4, 6) for p in PLANETS]
    assert len(budgets.seen) == 6
    assert all(used <= total for used, total, _ in budgets.seen)
    assert max(sharers for *_, sharers in budgets.seen) == int(share)
    assert budgets.last._used == 0


def test_buffers_to_use_again_are_within_the_budget() -> None:
    def acquire(wanted: int, size: int = 30) -> budget.FileMemory | None:
        return shared.acquire(wanted, Path("signal.parquet"), lambda: None, size)

    shared = budget.Budget(tight(1, 100), 1)
    assert [acquire(30) for _ in range(3)] == [None] * 3
    for _ in range(3):
        shared.release(30, budget.FileMemory(np.empty(30, np.uint8), 30))
    assert acquire(60) is not None
    assert len(shared._spare) == 1
    assert acquire(40) is not None
    assert shared._spare == []


def test_a_file_is_read_into_the_memory_that_holds_the_least_beyond_it() -> None:
    def acquire(wanted: int, size: int) -> int:
        memory = shared.acquire(wanted, Path("signal.parquet"), lambda: None, size)
        return 0 if memory is None else memory.space.size

    shared = budget.Budget(tight(1, 200), 1)
    for size in (50, 20, 30):
        shared.release(0, budget.FileMemory(np.empty(size, np.uint8), size))
    assert acquire(60, 51) == 0
    assert acquire(40, 25) == 30
    assert shared._used == 105  # five bytes are in use that nobody needs
    shared.release(105)
    assert acquire(140, 10) == 20
    assert acquire(45, 40) == 0  # with the ten bytes more of that memory there would be too many


def test_memory_that_costs_nothing_more_comes_first() -> None:
    shared = budget.Budget(tight(1, 200), 1)
    for space, written in ((60, 45), (61, 20), (62, 30)):
        shared.release(0, budget.FileMemory(np.empty(space, np.uint8), written))
    shared._used = 100
    memory = shared.acquire(98, Path("signal.parquet"), lambda: None, 40)
    assert memory is not None
    assert (memory.space.size, memory.written, shared._used) == (62, 30, 198)


@pytest.mark.parametrize(("size", "in_use"), [(90, 100), (40, 60), (25, 60)])
def test_memory_counts_as_far_as_it_was_written_to(size: int, in_use: int) -> None:
    shared = budget.Budget(tight(1, 200), 1)
    shared.release(0, budget.FileMemory(np.empty(100, np.uint8), 50))
    wanted = size + 10
    memory = shared.acquire(wanted, Path("signal.parquet"), lambda: None, size)
    assert memory is not None
    memory = memory.holding(size)
    assert (memory.space.size, memory.written) == (100, max(size, 50))
    assert shared._used == in_use
    shared.release(in_use, memory)
    assert shared.acquire(180, Path("signal.parquet"), lambda: None, 101) is None
    assert shared._spare == []  # with what it holds there would be too many


def test_files_of_almost_one_size_are_read_into_the_same_memory(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, plain = [], backends._memory
    monkeypatch.setattr(backends, "_memory", lambda size: made.append(size) or plain(size))
    results = [outcome.result for outcome in outcomes_of(own, 1, memory=tight(1, 3 * need_of(own)))]
    assert all(isinstance(result, gpucal.Calibrated) for result in results)
    assert 0 < len(made) <= 3 < len(results)  # as many as are read at the same time


def test_by_default_a_larger_item_goes_alone(
    many: Path, budgets: type[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "DEFAULT_MEMORY", tight(2, 1000))
    assert all(isinstance(outcome.result, gpucal.Calibrated) for outcome in outcomes_of(many))
    assert [sharers for *_, sharers in budgets.seen] == [1] * len(PLANETS)
    assert budgets.last._used == 0


def test_too_little_memory_says_how_much_would_do(old: Made, tmp_path: Path) -> None:
    dataset = gpucal.open_dataset(old[0])
    with pytest.raises(ConfigError, match="threads need") as caught:
        gpucal.run(dataset, tmp_path / "none", CONFIG, workers=3, memory=1000)
    assert not (tmp_path / "none").exists()
    memory = number_in(r"need ([\d,]+)", str(caught.value))
    with pytest.raises(ConfigError):
        gpucal.run(dataset, tmp_path / "none", CONFIG, workers=3, memory=memory - 1)
    failed = gpucal.run(dataset, tmp_path / "out", CONFIG, workers=3, memory=memory).failed
    assert len(failed) == 4
    needs = sorted(number_in(r"needs ([\d,]+) bytes", line) for line in failed.values())
    some = gpucal.run(dataset, tmp_path / "out", CONFIG, workers=3, memory=needs[1])
    assert (some.done, len(some.failed)) == (2, 2)
    assert all("AIRS-CH0" in key and "raise --memory or lower --workers" in line for key, line in some.failed.items())
    every = gpucal.run(dataset, tmp_path / "out", CONFIG, workers=3, memory=needs[-1])
    assert (every.done, every.skipped, every.failed) == (2, 2, {})


@pytest.mark.parametrize("options", [{"variance": True}, {"product": "light-curves"}], ids=str)
@pytest.mark.slow
def test_variances_need_memory_of_their_own(old: Made, tmp_path: Path, options: dict[str, Any]) -> None:
    dataset, least = gpucal.open_dataset(old[0]), tight(2, 0)
    cubes = {"out": tmp_path / "cubes", "settings": CONFIG, "workers": 2, "planets": [17]}
    failed = gpucal.run(dataset, **cubes, memory=least).failed
    needs = {name: number_in(r"needs ([\d,]+) bytes of memory", line) for name, line in failed.items()}
    enough = max(needs.values())
    summary = gpucal.run(dataset, **cubes, memory=enough)
    assert (summary.done, summary.failed) == (2, {})
    more = cubes | options | {"out": tmp_path / "more"}
    failed = gpucal.run(dataset, **more, memory=least).failed
    for name, values in (("AIRS-CH0", 4 * 282 * 32), ("FGS1", 4 * 32 * 32)):
        key = f"planet 17 visit 0 {name}"
        # A variance is made in float64 and stored in float32; errors of light curves are summed without one. A cube
        # and what is beside it take 6 bytes a value, and 8 while sums are arranged: only the larger counts.
        more_bytes = (6 + 8 + 4 - 8) * values if "variance" in options else 0
        assert number_in(r"needs ([\d,]+) bytes of memory", failed[key]) == needs[key] + more_bytes
    if "variance" not in options:
        assert gpucal.run(dataset, **more, memory=enough).failed == {}
        return
    failed = gpucal.run(dataset, **more, memory=enough).failed
    (line,) = failed.values()
    assert "AIRS-CH0" in line
    assert "raise --memory or lower --workers" in line
    enough = number_in(r"needs ([\d,]+) bytes of memory", line)
    assert gpucal.run(dataset, **more, memory=enough).failed == {}


def number_in(pattern: str, line: str) -> int:
    match = re.search(pattern, line)
    assert match, line
    assert "\n" not in line
    return int(match[1].replace(",", ""))


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("wanted", [1, 10**6, 116 * 10**6, 250 * 10**6, 10**9])
def test_the_number_an_item_asks_for_is_enough_and_needed(threads: int, wanted: int) -> None:
    def ask(memory: int) -> None:
        budget.Budget(memory, threads).acquire(wanted, Path("signal.parquet"), lambda: None)

    with pytest.raises(InputError) as caught:
        ask(tight(threads, 0))
    needed = number_in(r"needs ([\d,]+) bytes", str(caught.value))
    ask(needed)
    with pytest.raises((InputError, ConfigError)):
        ask(needed - 100)


def test_holding_all_results_hangs_nothing(many: Path) -> None:
    dataset = gpucal.open_dataset(many)
    held = list(gpucal.stream(dataset, "FGS1", CONFIG, workers=2, memory=tight(2, need_of(many))))
    assert [cal.planet for cal in held] == list(PLANETS)


@pytest.mark.parametrize("share", [1.2, 1000])
@pytest.mark.parametrize("leave", [RuntimeError, KeyboardInterrupt, StopIteration])
def test_leaving_early(many: Path, share: float, leave: type[BaseException]) -> None:
    memory = tight(2, int(1.2 * need_of(many))) if share < 100 else None
    start = time.monotonic()
    with suppress(leave):
        for cal in gpucal.stream(gpucal.open_dataset(many), "FGS1", CONFIG, workers=2, memory=memory):
            assert cal.planet == 1
            if leave is StopIteration:
                break
            raise leave
    assert ours() == []
    assert time.monotonic() - start < 20


def test_an_interrupt_while_waiting(many: Path) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        outcomes_of(many, backend=sleepy(0.2))  # 2 s in all
    timer.join()


def test_a_backend_that_raises_ends_the_run(many: Path) -> None:
    def bin_counts(plan: Any, pixels: slice, counts: np.ndarray, out: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("the backend's own")

    with pytest.raises(ZeroDivisionError, match="the backend's own"):
        outcomes_of(many, backend=Backend("broken", "tests", bin_counts))


def test_pages_that_fail_end_an_item_and_a_backend_that_raises_the_run(many: Path) -> None:
    def bin_pages(plan: Any, pixels: slice, loaded: Any, out: np.ndarray) -> Any:
        raise ZeroDivisionError("the backend's own")

    with pytest.raises(ZeroDivisionError, match="the backend's own"):
        outcomes_of(many, backend=Backend("broken", "tests", numpy_.bin_counts, bin_pages))


@pytest.mark.parametrize("good", [0, 1, 5])
def test_observations_that_raise(many: Path, good: int) -> None:
    def observations() -> Iterator[gpucal.Observation]:
        yield from list(gpucal.open_dataset(many))[:good]
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        list(gpucal.stream(observations(), "FGS1", CONFIG))


def test_a_backend_that_cannot_be_had(many: Path) -> None:
    with pytest.raises(ConfigError):
        list(gpucal.stream(gpucal.open_dataset(many), "FGS1", CONFIG, backend="numpi"))


LEFT_OPEN = """
import sys
import time
import gpucal
dataset = gpucal.open_dataset(sys.argv[1])
config = gpucal.Calibration(bins={"AIRS-CH0": 7, "FGS1": 16})
stream = gpucal.stream(dataset, "FGS1", config, workers=2, memory=int(sys.argv[2]))
print(next(stream).planet)
time.sleep(float(sys.argv[3]))
"""


@pytest.mark.parametrize("waits_for", ["memory", "the caller"])
def test_the_interpreter_exits_with_a_stream_left_open(many: Path, waits_for: str) -> None:
    memory, seconds = (tight(2, int(1.2 * need_of(many))), 0) if waits_for == "memory" else (10**9, 1)
    command = [sys.executable, "-c", LEFT_OPEN, str(many), str(memory), str(seconds)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "1\n"


def test_reading_and_working_go_on_at_the_same_time(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work on every other item ends while the next is read, and the reading behind the others during the work."""
    blocks, last = 32, len(PLANETS) - 1
    began, was_read, worked = ([threading.Event() for _ in PLANETS] for _ in range(3))
    plans: list[Any] = []
    done = [0] * len(PLANETS)
    lock, both = threading.Lock(), threading.Barrier(2)
    plain = signal_file._read_into

    def reading(space: np.ndarray, ranges: list[tuple[int, int]], path: Path) -> bool:
        number = sum(event.is_set() for event in began)
        began[number].set()
        assert number % 2 == 0 or worked[number - 1].wait(PATIENCE)
        complete = plain(space, ranges, path)
        was_read[number].set()
        return complete

    def working(plan: Any, pixels: slice, counts: np.ndarray, out: np.ndarray) -> np.ndarray:
        both.wait(PATIENCE)  # two threads work at the same time
        with lock:
            if not any(plan is other for other in plans):
                plans.append(plan)
            number = next(place for place, other in enumerate(plans) if plan is other)
        assert number == last or (was_read if number % 2 else began)[number + 1].wait(PATIENCE)
        saturated = numpy_.bin_counts(plan, pixels, counts, out)
        with lock:
            done[number] += 1
            if done[number] == blocks:
                worked[number].set()
        return saturated

    monkeypatch.setattr(signal_file, "_read_into", reading)
    monkeypatch.setattr(stream, "pixel_blocks", lambda sizes, most: map(slice, range(0, 1024, 32), range(32, 1056, 32)))
    outcomes = outcomes_of(many, threads=2, backend=Backend("two at a time", "threads", working))
    assert [type(outcome.result) for outcome in outcomes] == [gpucal.Calibrated] * len(PLANETS)
    assert done == [blocks] * len(PLANETS)


def test_the_caller_s_thread_asks_for_observations(many: Path) -> None:
    """What an iterable holds, such as a database cursor or a file, may belong to that thread."""
    asked = []

    def observations() -> Iterator[gpucal.Observation]:
        for obs in gpucal.open_dataset(many):
            asked.append(threading.current_thread())
            yield obs

    assert len(list(gpucal.stream(observations(), "FGS1", CONFIG))) == len(PLANETS)
    assert set(asked) == {threading.current_thread()}
    assert list(gpucal.stream([], "FGS1", CONFIG)) == []


def test_a_failed_item_s_memory_is_free_when_its_threads_have_ended(own: Path, budgets: type[Watched]) -> None:
    """Its other threads may still use the file, so the next file must not be read over it."""
    working: set[int] = set()

    def bin_counts(plan: Any, pixels: slice, counts: np.ndarray, out: np.ndarray) -> np.ndarray:
        if pixels.start == 0:
            raise InputError("cannot be used", "copy it again", signal_of(own, 1))
        working.add(threading.get_ident())
        time.sleep(0.3)
        working.discard(threading.get_ident())
        return numpy_.bin_counts(plan, pixels, counts, out)

    seen = []
    with Pipeline(
        open_items(items_of(own)[:1]), Backend("slow", "tests", bin_counts), dtype=FLOAT64, threads=2
    ) as pipeline:
        for outcome in pipeline.outcomes():
            assert isinstance(outcome.result, InputError)
            seen.append(set(working))
    assert seen == [set()]


# --------------------------------------------------------------------------------------------------- blocks of pixels


@pytest.mark.parametrize("most", [1, 30, 99, 100, 101, 250, 300, 499, 500, 10**9])
def test_blocks_are_all_pixels_in_order(most: int) -> None:
    blocks = list(pixel_blocks(np.full(50, 10), most))
    assert [pixel for block in blocks for pixel in range(block.start, block.stop)] == list(range(50))
    assert all(10 * (block.stop - block.start) <= max(most, 10) for block in blocks)
    expected = {1: 50, 30: 17, 99: 6, 100: 5, 101: 5, 250: 2, 300: 2, 499: 2, 500: 1, 10**9: 1}
    assert len(blocks) == expected[most]
    assert [*pixel_blocks(np.array([40, 10, 10, 30, 5]), 30)] == [slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 5)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("most", [10, 70, 500])
def test_every_sum_comes_to_its_place(most: int, dtype: str) -> None:
    """Also where a block begins in the middle of a row, or is of several; other pixels are left alone."""
    plan = planned(50, 64, 4)

    def numbered(plan: Plan, pixels: slice, counts: np.ndarray, out: np.ndarray) -> np.ndarray:
        out[:] = np.arange(pixels.start, pixels.stop)[:, None] + np.arange(plan.n_bins) / 256
        return np.zeros(len(out), bool)

    place = Backend("numbered", "tests", numbered).destination(device=False)
    binned = place.allocate((50, plan.n_bins), np.dtype(dtype))
    for block in pixel_blocks(np.full(50, 10), most):
        binned[block.stop :] = -1.0
        place.place_counts(plan, block, np.empty((0, 0), np.uint16), binned[block])
        assert (binned[block.stop :] == -1.0).all()
    signal = place.arranged(binned, (5, 10))
    assert signal.shape == (plan.n_bins, 10, 5)
    assert signal.dtype == dtype
    assert signal.flags.c_contiguous
    for bin_, column, row in np.ndindex(signal.shape):
        assert signal[bin_, column, row] == 10 * row + column + bin_ / 256
