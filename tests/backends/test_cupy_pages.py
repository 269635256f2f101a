"""The CuPy backend on pages, on the strict stand-in for CuPy, which runs the shipped kernels on the CPU."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zstd_frames as z
from backends.pagewise import test_page_bins
from compact import I32, Value
from conftest import BINS, Made
from emulator import standin
from launch import require_compiler
from mutants import Anatomy
from paged import by_counts, loaded_of, planned, same_bits
from planted import planted

import gpucal
from gpucal.backends import Pages, cupy_pages, load
from gpucal.backends.agreement import difference_by_pages
from gpucal.backends.pagewise.leftover import foreseen
from gpucal.errors import BackendUnavailable, ConfigError, DeviceError, InputError
from gpucal.inputs.signal_file import Loaded
from gpucal.science.plan import Plan
from gpucal.settings.calibration import Calibration

COUNTS = test_page_bins.reads(300)
PLAN = planned(len(COUNTS), 300, 30)
ALL = np.arange(len(COUNTS))
CONFIG = Calibration(bins=BINS, integration="notebook")

Binned = tuple[np.ndarray, np.ndarray, Pages]


def binned(backend: Any, loaded: Loaded, plan: Plan = PLAN, edges: tuple[int, ...] = (0, 2, 9, 12)) -> Binned:
    """Bin a file's pages in three blocks; the second use of a lane has another size."""
    out, saturated, total = np.full((plan.n_pixels, plan.n_bins), np.nan), np.zeros(plan.n_pixels, bool), Pages()
    memory = backend.destination(device=False).memory(loaded.data.size)
    memory[:] = loaded.data
    loaded = replace(loaded, data=memory)
    for pixels in map(slice, edges, edges[1:]):
        pixels = slice(pixels.start, min(pixels.stop, plan.n_pixels))
        saturated[pixels], pages = backend.bin_pages(plan, pixels, loaded, out[pixels])
        total += pages
    memory[:] = 0xEE  # as for another file
    assert total.own + total.codec + total.arrow == len(loaded.table.pages)
    return out, saturated, total


def assert_right(found: Binned, plan: Plan = PLAN, counts: np.ndarray = COUNTS) -> None:
    expected, saturated = by_counts(plan, counts)
    assert same_bits(found[0], expected)
    np.testing.assert_array_equal(found[1], saturated)


FILES: dict[str, dict[str, Any]] = {
    "zstd": {},
    "not compressed": {"compression": "none"},
    "snappy": {"compression": "snappy"},
    "version 2": {"data_page_version": "2.0"},
    "snappy, version 2": {"compression": "snappy", "data_page_version": "2.0"},
    "no dictionary": {"use_dictionary": False},
    "many pages": {"data_page_size": 64, "write_batch_size": 50},
    "row groups": {"row_group_size": 70},
    "required": {"required": True},
}


@pytest.mark.parametrize("gap", [0, 4096])
@pytest.mark.parametrize("name", FILES)
def test_the_bits_are_those_of_counts(
    device: standin.Machine, name: str, gap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cupy_pages, "_GAP", gap)
    loaded = loaded_of(test_page_bins.as_file(COUNTS, **FILES[name]), ALL)
    found = binned(load("cupy"), loaded)
    assert_right(found)
    assert found[2].arrow == 0
    assert (found[2].codec == 0) == (name in ("not compressed", "required")) or "snappy" in name or found[2].own


def test_whatever_the_schedule() -> None:
    require_compiler()
    loaded = loaded_of(test_page_bins.as_file(COUNTS), ALL)
    for seed in range(12):
        with standin.installed(seed):
            assert_right(binned(load("cupy"), loaded))


def test_two_blocks_are_in_flight(device: standin.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, loaded = load("cupy"), loaded_of(test_page_bins.as_file(COUNTS), ALL)
    run, looking = cupy_pages.PageLane.run, threading.Condition()
    busy, seen = [0], [0]

    def counted(*block: Any) -> tuple[int, float]:
        with looking:
            busy[0] += 1
            seen.append(busy[0])
            looking.notify_all()
            assert looking.wait_for(lambda: max(seen) >= 2, timeout=30)
            looking.wait_for(lambda: max(seen) > 2, timeout=0.02)
        found = run(*block)
        with looking:
            busy[0] -= 1
        return found

    monkeypatch.setattr(cupy_pages.PageLane, "run", counted)
    with ThreadPoolExecutor(5) as pool:
        for found in pool.map(lambda _: binned(backend, loaded), range(5)):
            assert_right(found)
    assert max(seen) == 2


def bent(data: bytes, change: Any, column: int = 2) -> bytes:
    """Change the second page of a column before it is compressed."""
    anatomy = Anatomy.of(data)
    chunk = anatomy.chunks[column]
    body = test_page_bins.unpacked(chunk, chunk.pages[1])
    test_page_bins.packed(chunk, chunk.pages[1], change(body))
    return anatomy.data()


def test_what_others_may_find_sound_is_left_to_them(device: standin.Machine) -> None:
    loaded = loaded_of(bent(test_page_bins.as_file(COUNTS), lambda body: body + b"\0\0"), ALL)
    found = binned(load("cupy"), loaded)
    assert_right(found)
    assert found[2].arrow == 2


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda body: b"\2\0\0\0\0\0" + body[6:], r"column 2: page 2 holds nulls \(.*\)"),
        (lambda body: body[:-2], r"column 2: page 2 has a run that ends outside of it; copy it again"),
        (lambda body: b"\2\0\0\0\0\3" + body[6:], r"column 2: page 2 has definition levels .* \(.*\)"),
    ],
)
def test_a_damaged_page_is_the_line_of_the_cpu(device: standin.Machine, change: Any, line: str) -> None:
    data = bent(test_page_bins.as_file(COUNTS), change)
    lines = []
    cupy = load("cupy")
    for backend in (load("numba"), cupy):
        with pytest.raises(InputError, match=line) as error:
            binned(backend, loaded_of(data, ALL))
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert_right(binned(cupy, loaded_of(test_page_bins.as_file(COUNTS), ALL)))  # the lane is as good as new


def test_what_cannot_be_decompressed_is_the_line_of_the_cpu(device: standin.Machine) -> None:
    anatomy = Anatomy.of(test_page_bins.as_file(COUNTS))
    page = anatomy.chunks[4].pages[1]
    page.body = page.body[:6] + b"\xff\xff" + page.body[8:]
    cupy, lines = load("cupy"), []
    for backend in (load("numba"), cupy):
        with pytest.raises(InputError, match=r"column 4: page 2 ") as error:
            binned(backend, loaded_of(anatomy.data(), ALL))
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert_right(binned(cupy, loaded_of(test_page_bins.as_file(COUNTS), ALL)))


def unforeseeable(data: bytes) -> bytes:
    """Have an empty block in front of every frame's first, so that what that one is cannot be told from the head."""
    anatomy = Anatomy.of(data)
    for chunk in anatomy.chunks:
        for page in chunk.pages:
            head = 5 + (1 << (page.body[4] >> 6))
            page.body = page.body[:head] + z.raw(b"", last=False) + page.body[head:]
            page.header[3] = Value(I32, len(page.body))
    return anatomy.data()


def test_pages_not_foreseen_are_found_out(device: standin.Machine) -> None:
    data = test_page_bins.as_file(COUNTS)
    plain, other = loaded_of(data, ALL), loaded_of(unforeseeable(data), ALL)
    assert foreseen(plain.data, plain.table.pages).any()
    assert not foreseen(other.data, other.table.pages).any()
    found, again = (binned(load("cupy"), loaded) for loaded in (plain, other))
    assert_right(found)
    assert_right(again)
    assert found[2].ways == again[2].ways


def test_checksums_are_verified(device: standin.Machine) -> None:
    good = loaded_of(test_page_bins.as_file(COUNTS, write_page_checksum=True), ALL)
    strict = replace(good, strict=True)
    assert_right(binned(load("cupy"), strict))
    strict.table.pages[7, -1] ^= 1
    with pytest.raises(InputError, match="page 2 has another checksum than its header says"):
        binned(load("cupy"), strict)


# ------------------------------------------------------------------------------------------- what must not go unnoticed

BUGS = {
    "no synchronisation before statuses are read": (
        "            self.finish()\n            by_codec",
        "            by_codec",
    ),
    "no synchronisation before results are read": (
        "            lane.finish()\n            np.copyto",
        "            np.copyto",
    ),
    "a file uploaded on another stream": ("loaded.data[begin:end], stream=self.stream)", "loaded.data[begin:end])"),
    "pages foreseen forgotten": ("self._patch_in(kernels, block, early, inflated)", "len(early)"),
    "pages not foreseen forgotten": (
        "self._patch_in(kernels, block, np.where(early != DONE, DONE, became), inflated)",
        "len(became)",
    ),
    "bins on another stream": (
        "        with self.stream:\n            kernels.bins",
        "        if n:\n            kernels.bins",
    ),
    "inflate on another stream": (
        "        with self.stream:\n            kernels.inflate",
        "        if n_pages:\n            kernels.inflate",
    ),
    "an int64 for an int32": ("np.int32(n_pages), inflated", "np.int64(n_pages), inflated"),
    "a Python number": ("np.uint32(plan.saturation), self.out, saturated", "plan.saturation, self.out, saturated"),
    "pages that pyarrow decompressed forgotten": (
        "        self._inflate(kernels, on_device, pages, len(parts)",
        "        (kernels, on_device, pages, len(parts)",
    ),
    "pieces at wrong places": ("starts + moved[np.cumsum(new) - 1]", "starts - starts[0]"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str) -> None:
    require_compiler()
    made = [test_page_bins.as_file(COUNTS, row_group_size=150, compression=how) for how in ("zstd", "snappy")]
    files = [loaded_of(data, ALL) for data in (made[0], unforeseeable(made[0]), made[1])]
    with standin.installed():
        good = [binned(load("cupy"), loaded)[2] for loaded in files]
    right, wrong = BUGS[bug]
    caught = 0
    for seed in range(6):
        with standin.installed(seed), planted(right, wrong) as modules:
            vars(modules["cupy_pages"])["_GAP"] = 0
            vars(modules["cupy_"])["difference_by_pages"] = lambda bin_pages: 0.0
            try:
                for loaded, pages in zip(files, good, strict=True):
                    found = binned(modules["cupy_"].connect(), loaded)
                    assert_right(found)
                    assert found[2].ways == pages.ways
            except (AssertionError, TypeError, ValueError, InputError, DeviceError, IndexError):
                caught += 1
    assert caught


def test_wrong_numbers_are_refused_loudly(device: standin.Machine) -> None:
    device.spoil("bins")
    with pytest.raises(BackendUnavailable, match=r"Stand-in T4 .* gives other numbers than NumPy, .*; do not use"):
        load("cupy")


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("kind", ["device", pytest.param("pinned", marks=pytest.mark.slow)])
def test_every_allocation_may_fail(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    require_compiler()
    loaded = loaded_of(test_page_bins.as_file(COUNTS, compression="snappy"), ALL)
    with standin.installed() as device:
        cupy = load("cupy")
        before = device.allocations if kind == "device" else device.pinned_allocations
        binned(cupy, loaded)
        total = (device.allocations if kind == "device" else device.pinned_allocations) - before
    assert total >= 5
    for n in range(1, total + 1):
        with standin.installed() as device:
            cupy = load("cupy")
            (device.fail_allocation if kind == "device" else device.fail_pinned)(n)
            assert_right(binned(cupy, loaded))
    assert "is short of memory: a block of" in caplog.text


def test_a_device_too_small_is_one_line() -> None:
    require_compiler()
    counts = np.random.default_rng(1).integers(0, 60_000, (12, 60_000)).astype(np.uint16)
    plan = planned(12, 60_000, 100)
    loaded = loaded_of(test_page_bins.as_file(counts), np.arange(12))
    with standin.installed(memory=1_500_000) as device:
        assert_right(binned(load("cupy"), loaded, plan), plan, counts)  # in pieces
        assert device.memory[0].peak <= 1_500_000
    with standin.installed(memory=300_000), pytest.raises(DeviceError, match=r"no room for [\d,]+ bytes of pages"):
        binned(load("cupy"), loaded, plan)


# ---------------------------------------------------------------------------------------------------- the whole package


@pytest.mark.parametrize("seed", [0, 3])
def test_calibrate_on_the_device_and_off_it(seed: int, new: Made) -> None:
    require_compiler()
    obs = next(iter(gpucal.open_dataset(new[0])))
    expected = gpucal.calibrate(obs, "FGS1", CONFIG, backend="numba")
    with standin.installed(seed):
        import cupy

        host = gpucal.calibrate(obs, "FGS1", CONFIG, backend="cupy", workers=2)
        stays = gpucal.calibrate(obs, "FGS1", CONFIG, device=True, workers=2)
        assert isinstance(stays.signal, cupy.ndarray)
        for cal, signal in ((host, host.signal), (stays, stays.signal.get())):
            assert same_bits(signal, expected.signal)
            np.testing.assert_array_equal(cal.dq, expected.dq)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(stays.variance.get(), expected.variance, rtol=1e-12)
            np.testing.assert_allclose(stays.light_curve().get(), expected.light_curve(), rtol=1e-12)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_stream_stays_on_the_device(seed: int, new: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read into memory from which others were uploaded, whatever the schedule."""
    require_compiler()
    dataset = gpucal.open_dataset(new[0])
    observations = 3 * list(dataset)
    expected = [cal.signal for cal in gpucal.stream(dataset, "FGS1", CONFIG, backend="numba")]
    made, plain = [], standin.cuda.PinnedMemory.__init__

    def counted(memory: Any, size: int) -> None:
        made.append(size)
        plain(memory, size)

    monkeypatch.setattr(standin.cuda.PinnedMemory, "__init__", counted)
    with standin.installed(seed):
        signals = [cal.signal.get() for cal in gpucal.stream(observations, "FGS1", CONFIG, device=True, workers=2)]
    assert 0 < len(made) < len(observations)
    for signal, other in zip(signals, 3 * expected, strict=True):
        assert same_bits(signal, other)


def test_the_variable_decides(
    device: standin.Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = load("cupy")
    assert backend.bin_pages is not None
    assert backend.page_block is not None
    assert backend.destination(device=True).place_pages is not None
    monkeypatch.setenv("GPUCAL_PAGES", "host")
    with caplog.at_level(logging.INFO, "gpucal"):
        backend = load("cupy")
    assert backend.bin_pages is None
    assert backend.destination(device=True).place_pages is None
    assert "GPUCAL_PAGES=host" in caplog.text
    monkeypatch.setenv("GPUCAL_PAGES", "device")
    with pytest.raises(ConfigError, match="GPUCAL_PAGES = 'device': must be auto or host"):
        load("cupy")


def test_a_check_of_no_page_is_none() -> None:
    numba = load("numba").bin_pages
    assert numba is not None
    assert difference_by_pages(numba) <= 1.0

    def counted_as_others(*arguments: Any) -> tuple[np.ndarray, Pages]:
        return numba(*arguments)[0], Pages(arrow=1)

    assert difference_by_pages(counted_as_others) == float("inf")
