"""`inflate` and `bins` on the CPU: every test of the compiled functions again, and the same bits of damaged pages."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstd_frames as z
from backends.pagewise import test_inflate, test_page_bins
from emulator import nvrtc, ptx
from emulator.cpp import Kernel, KernelError, Sanitized
from fuzzing import good_files
from launch import require_compiler, require_nvrtc
from launch_pages import Launch, binning, frames, inflated, inflating
from mutants import SMALL
from numpy.typing import NDArray
from paged import loaded_of, planned, same_bits, table_of
from times import TIMES

import gpucal
from gpucal import kernels
from gpucal.backends.pagewise import bins, decode, inflate
from gpucal.backends.pagewise.leftover import foreseen, inflate_by_codec
from gpucal.cli.main import main
from gpucal.inputs.parquet.layout import COLUMNS, PADDING, TO, WANTED
from gpucal.inputs.signal_file import Loaded, open_signal
from gpucal.pipeline.stream import pixel_blocks
from gpucal.science.plan import Plan, make_plan
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS

Function = Callable[..., None]
WORK = inflate.workspace()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Function]:
    require_compiler()
    made = {name: Kernel(kernels.source(name), name, tmp_path_factory.mktemp(name)) for name in ("inflate", "bins")}
    return {"inflate": inflating(made["inflate"]), "bins": binning(made["bins"])}


ALIKE = {60: (60,), 75: (70, 75, 80, 86, 89, 90), 100: (100, 120)}
"""Architectures whose PTX is the same but for their name, and the one of them that is run."""


@pytest.fixture(scope="module", params=[75, *(pytest.param(number, marks=pytest.mark.slow) for number in (60, 100))])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Function]:
    """The same from the PTX that NVIDIA's compiler makes of them."""
    require_compiler()
    require_nvrtc()
    made = {}
    for name in ("inflate", "bins"):
        signature = Kernel(kernels.source(name), name, tmp_path_factory.mktemp(name)).signature
        code = ptx.translate(nvrtc.compile(kernels.source(name), name, request.param).ptx, name)
        made[name] = Kernel(code, name, tmp_path_factory.mktemp(name), signature)
    return {"inflate": inflating(made["inflate"]), "bins": binning(made["bins"])}


# ------------------------------------------------------------------------- all that the compiled functions have to pass


@pytest.fixture
def by_kernels(built: dict[str, Function], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernels do what the compiled functions do."""
    for module in (test_inflate, decode):
        monkeypatch.setattr(module, "inflate_pages", built["inflate"])
    for module in (test_page_bins, bins):
        monkeypatch.setattr(module, "bin_pages", built["bins"])


OTHERWISE = {
    "test_no_place_outside_is_touched",  # sanitizers see to that
    "test_damaged_frames_are_as_libzstd_has_them_or_refused",  # many at once, below
    "test_many_more_damaged_frames",
    "test_nothing_is_foreseen_of_what_is_inflated",
    "test_the_bits_are_those_of_the_gpu",  # of counts
}

globals().update(
    {
        f"{name}_by_kernels": pytest.mark.usefixtures("by_kernels")(test)
        for module in (test_inflate, test_page_bins)
        for name, test in vars(module).items()
        if name.startswith("test_") and callable(test) and name not in OTHERWISE
    }
)

# ------------------------------------------------------------------------------------------------------ damaged frames


def damaged_frames(seeds: range) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    good = test_inflate.good_frames()
    made = []
    for seed in seeds:
        page, wanted = good[seed % len(good)]
        made.append((test_inflate.mutated(page, np.random.default_rng(seed)), wanted))
    return frames(made)


def compare_frames(inflate_pages: Function, seeds: range) -> Counter[int]:
    """Demand the statuses and bytes of the compiled function, and count the statuses."""
    counted: Counter[int] = Counter()
    for first in range(seeds.start, seeds.stop, 1000):
        batch = damaged_frames(range(first, min(first + 1000, seeds.stop)))
        (status, pages), (expected, right) = (
            inflated(inflate_pages, *batch),
            inflated(inflate.inflate_pages, *batch, *WORK),
        )
        np.testing.assert_array_equal(status, expected)
        assert pages == right
        counted.update(status.tolist())
    return counted


def test_damaged_frames_have_the_same_bytes_and_statuses(built: dict[str, Function]) -> None:
    counted = compare_frames(built["inflate"], range(100_000, 105_000))
    assert set(counted) >= set(range(8))
    assert counted[0] > 500


@pytest.mark.slow
def test_many_damaged_frames(built: dict[str, Function]) -> None:
    n = 4_500 * TIMES
    assert compare_frames(built["inflate"], range(105_000, 105_000 + n)).total() == n


# ------------------------------------------------------------------------------------ streams that are cut into parts

EVENS = z.weights_of([2, 2, *[4] * 8])
THREES = z.weights_of([3, 3, 3, 3, 2, 2])
"""Its last symbol is two ones. Many of these, read from the second one on, are as many of them."""

WEIGHTS = {
    "one length": test_inflate.WIDE, "one bit": test_inflate.EVEN, "even lengths": EVENS, "threes": THREES,
    "skewed": test_inflate.SKEWED, "deep": test_inflate.DEEP,
}  # fmt: skip


def stubborn(rng: np.random.Generator, n: int, weights: list[int]) -> Iterator[bytes]:
    """Symbols whose codes meet late or never: one repeated, that with few others in between, and any."""
    for symbol in (len(weights) - 1, len(weights) // 2, 0):
        yield bytes([symbol]) * n
        some = np.where(rng.integers(max(n // 5, 2), size=n) == 0, rng.integers(len(weights), size=n), symbol)
        yield some.astype(np.uint8).tobytes()
    yield rng.integers(0, len(weights), n).astype(np.uint8).tobytes()


def in_parts(sizes: Sequence[int], weights: list[int], form: int) -> list[tuple[bytes, int]]:
    """Frames of such symbols: sound ones, and ones of a symbol less or more than their streams hold."""
    rng, made = np.random.default_rng(len(sizes)), []
    for n in sizes:
        tail = test_inflate.TAIL * (1 + n // 500)  # no block is larger than the content
        for text in stubborn(rng, n, weights):
            body = z.direct(weights) + (z.streams if form else z.stream)(text, weights)
            for said in (n, n - 1, n + 1):
                block = z.block(2, z.head(2, said, len(body), form) + body + b"\0", False)
                made.append((z.frame(said + len(tail), block, z.raw(tail)), said + len(tail)))
    return made


def cut(n: int, weights: list[int]) -> tuple[bytes, int]:
    """A frame of one stream that lacks the last bit of its last symbol, which is found all the same."""
    last = max(range(len(weights)), key=lambda symbol: z.codes(weights)[symbol][1])
    whole = int.from_bytes(z.stream(bytes([last]) * n, weights), "little")
    body = z.direct(weights) + z.backwards(whole >> 1, whole.bit_length() - 2)
    tail = test_inflate.TAIL
    block = z.block(2, z.head(2, n, len(body), 0) + body + b"\0", False)
    return z.frame(n + len(tail), block, z.raw(tail)), n + len(tail)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_stream_without_its_last_bit_is_refused(built: dict[str, Function], name: str) -> None:
    batch = frames([cut(n, WEIGHTS[name]) for n in (1, 7, 90)])
    for function, work in ((built["inflate"], ()), (inflate.inflate_pages, WORK)):
        assert inflated(function, *batch, *work)[0].tolist() == [inflate.STREAMS] * 3


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(("form", "sizes"), [(0, (1, 2, 5, 31, 32, 33, 500)), (3, (6, 8, 31, 33, 64, 300, 3000))])
def test_parts_of_streams_that_do_not_meet(
    built: dict[str, Function], name: str, form: int, sizes: Sequence[int]
) -> None:
    batch = frames(in_parts(sizes, WEIGHTS[name], form))
    (status, pages), (expected, right) = (
        inflated(built["inflate"], *batch),
        inflated(inflate.inflate_pages, *batch, *WORK),
    )
    np.testing.assert_array_equal(status, expected)
    assert pages == right
    assert not status[::3].any()
    assert np.isin(status[1::3], (inflate.DONE, inflate.STREAMS)).all()


# ------------------------------------------------------------------------------------------------------- damaged pages

Arguments = list[Any]
"""What `bins.bin_pages` is given."""


def given(data: bytes, pairs: int, chosen: NDArray[np.intp], monkeypatch: pytest.MonkeyPatch) -> Arguments:
    """What a file's columns become before they are binned."""
    seen: list[Arguments] = []
    loaded = loaded_of(data, chosen)
    plan = planned(len(chosen), loaded.table.n_rows, pairs)
    with monkeypatch.context() as patch:
        compiled = bins.bin_pages
        patch.setattr(bins, "bin_pages", lambda *arguments: seen.append(list(arguments)) or compiled(*arguments))
        test_page_bins.bin_loaded(plan, loaded, block=10**9)
    (arguments,) = seen
    arguments[0] = arguments[0].copy()  # memory of a thread, used again
    return arguments


def damaged(arguments: Arguments, seed: int) -> Arguments:
    """Change a byte or two of every page, mostly where levels and heads are."""
    rng, data = np.random.default_rng(seed), arguments[0].copy()
    base = int(arguments[1][0, TO])
    for to, wanted in arguments[1][:, [TO, WANTED]].tolist():
        for _ in range(int(rng.integers(3)) if wanted else 0):
            at = to - base + int(rng.integers(min(wanted, 24) if rng.integers(3) else wanted))
            data[at] = int(rng.integers(256)) if rng.integers(2) else data[at] ^ 1 << int(rng.integers(8))
    return [data, *arguments[1:]]


def outcome(bin_pages: Function, arguments: Arguments) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.int64]]:
    """Bin: sums of the columns that are sound, which pixels are saturated, and statuses."""
    *before, out, saturated, status = arguments[:15]
    out, saturated, status = np.full_like(out, np.nan), np.full_like(saturated, 9), np.full_like(status, -1)
    bin_pages(*before, out, saturated, status, *arguments[15:])
    out[status[:, 0] > 0] = 0.0
    return out, saturated, status


def compare_columns(bin_pages: Function, arguments: Arguments) -> Counter[int]:
    """Demand the statuses and bits of the compiled function, and count the statuses."""
    found, expected = outcome(bin_pages, arguments), outcome(bins.bin_pages, arguments)
    np.testing.assert_array_equal(found[2], expected[2])
    np.testing.assert_array_equal(found[1], expected[1])
    assert same_bits(found[0], expected[0])
    return Counter(found[2][:, 0].tolist())


def some_columns(monkeypatch: pytest.MonkeyPatch, n_frames: int = 203) -> list[Arguments]:
    """Columns of all encodings, in one page and in several, with levels and without."""
    counts, made = test_page_bins.reads(n_frames), []
    for pairs, options in (
        (1, {}),
        (7, {"data_page_version": "2.0", "data_page_size": 64, "write_batch_size": 50}),
        (30, {"required": True}),
        (101, {"row_group_size": 70}),
        (4, {"use_dictionary": False}),
        (11, {"dictionary_pagesize_limit": 64, "write_batch_size": 50}),
    ):
        data = test_page_bins.as_file(counts, compression="none", **options)
        made.append(given(data, pairs, np.arange(len(counts)), monkeypatch))
    made.append(given(test_page_bins.by_polars(counts), 30, np.arange(len(counts)), monkeypatch))
    return made


def compare_damaged(bin_pages: Function, columns: list[Arguments], seeds: range) -> tuple[Counter[int], int]:
    """The same of many damaged pages; return how often there was each status, and how many pages there were."""
    counted: Counter[int] = Counter()
    pages = 0
    for seed in seeds:
        some = columns[seed % len(columns)]
        counted += compare_columns(bin_pages, damaged(some, seed))
        pages += len(some[1])
    return counted, pages


def test_damaged_pages_have_the_same_bits_and_statuses(
    built: dict[str, Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = some_columns(monkeypatch)
    for some in columns:
        assert not any(compare_columns(built["bins"], some) - Counter({0: 10**9}))
    counted, pages = compare_damaged(built["bins"], columns, range(150))
    assert pages >= 5_000
    assert {0, bins.LEVELS_WRONG, bins.NULLS, bins.WIDTH, bins.RUN, bins.COUNT, bins.INDEX, bins.RANGE} <= set(counted)


ODD = (0, 1, 2, 3, 16, 17, 128, 129, 255)
SHORT = [bytes(body) for n in range(4) for body in itertools.product(ODD, repeat=n)]
"""Heads of runs, and what follows them, in all ways."""


@pytest.mark.parametrize("what", ["levels", "runs"])
def test_short_pages_have_the_same_statuses(
    what: str, built: dict[str, Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    def statuses() -> list[int]:
        others = {"runs": test_page_bins.GOOD_RUN} if what == "levels" else {}
        return [test_page_bins.by_hand(**{what: body}, **others)[0] for body in SHORT]

    expected = statuses()
    monkeypatch.setattr(test_page_bins, "bin_pages", built["bins"])
    assert statuses() == expected
    assert len(set(expected)) >= 3


@pytest.mark.slow
def test_many_damaged_pages(built: dict[str, Function], monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = range(150, 150 + 140 * TIMES)
    assert compare_damaged(built["bins"], some_columns(monkeypatch), rounds)[1] >= 4_500 * TIMES


@pytest.mark.parametrize("entries", [1, 2, 1023, 1024, 1025, 5000])
def test_dictionaries_in_shared_memory_and_beyond(
    built: dict[str, Function], monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    rng = np.random.default_rng(entries)
    counts = (rng.permutation(2 * 5000)[:8] + rng.integers(0, entries, (9, 10_000))[..., None])[..., 0]
    data = test_page_bins.as_file(np.minimum(counts, 65_535).astype(np.uint16))
    for pairs in (30, 360, 508, 509, 2032, 2033, 5000):
        compare_columns(built["bins"], given(data, pairs, np.arange(9), monkeypatch))


TAKEN = [name for name, (data, _) in good_files().items() if not table_of(data, SMALL.columns()).unfit]


@pytest.mark.parametrize("name", TAKEN)
def test_good_files_of_every_encoding(built: dict[str, Function], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data, _ = good_files()[name]
    counted = compare_columns(built["bins"], given(data, 3, SMALL.columns(), monkeypatch))
    assert set(counted) == {0}


# ------------------------------------------------------------------------------------------ observations as a whole


def compare_all(built: dict[str, Function], loaded: Loaded, plan: Plan) -> Counter[int]:
    """Demand of a file what the compiled functions, pyarrow's codec and pyarrow's counts give; count the statuses."""
    counted: Counter[int] = Counter()
    table = loaded.table
    for pixels in pixel_blocks(table.sizes, 2**23):
        first, last = (int(table.firsts[place]) for place in (pixels.start, pixels.stop))
        pages = table.pages[first:last].copy()
        pages[:, TO] -= pages[0, TO]
        (status, found), (expected, right) = (
            inflated(built["inflate"], loaded.data, pages),
            inflated(inflate.inflate_pages, loaded.data, pages, *WORK),
        )
        np.testing.assert_array_equal(status, expected)
        assert found == right
        early = foreseen(loaded.data, pages)
        assert status[early != inflate.DONE].all()
        content = np.zeros(int(pages[-1, TO] + pages[-1, WANTED]) + PADDING, np.uint8)
        inflate_by_codec(table, loaded.data, np.arange(first, last), content, pages[:, TO], loaded.path)
        for page, (to, wanted) in enumerate(pages[:, [TO, WANTED]].tolist()):
            assert found[page] in (None, content[to : to + wanted].tobytes())
        counted.update(status.tolist())
        out = np.empty((pixels.stop - pixels.start, plan.n_bins))
        saturated, wrong = np.empty(len(out), np.uint8), np.empty((len(out), 2), np.int64)
        firsts, facts = table.firsts[pixels.start : pixels.stop + 1] - first, table.facts[pixels]
        constants = decode._constants(plan, pixels)
        built["bins"](content, pages, firsts, facts, table.n_rows, *constants, out, saturated, wrong)
        assert not wrong[:, 0].any()
        ((_, counts),) = loaded.counts([pixels])
        sums = np.empty_like(out)
        np.testing.assert_array_equal(saturated != 0, decode.bin_counts(plan, pixels, counts, sums))
        assert same_bits(out, sums)
        decode.bin_pages(plan, pixels, loaded, sums, decode.Scratch())
        assert same_bits(out, sums)
    return counted


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["2024", "2025"])
def test_every_page_of_a_full_size_observation(built: dict[str, Function], layout: str, tmp_path: Path) -> None:
    assert main(["synth", str(tmp_path / "raw"), "--layout", layout, "--planets", "1"]) == 0
    obs = next(iter(gpucal.open_dataset(tmp_path / "raw")))
    config = Calibration().filled(obs.dataset.layout.preset)
    for (name, detector), columns in zip(DETECTORS.items(), (9024, 1024), strict=True):
        signal = open_signal(obs.signal_path(detector), detector)
        frames, adc, axis = obs.frames(detector), obs.adc(detector), obs.axis(detector)
        plan = make_plan(detector, config, frames, adc, axis, signal.n_frames)
        counted = compare_all(built, signal.load(), plan)
        assert counted.total() == 2 * columns
        assert counted[inflate.DONE] > (0.7 if name == "AIRS-CH0" else 0.95) * counted.total()


# ------------------------------------------------------------------------------------------------------------- as PTX


@pytest.mark.parametrize("name", ["inflate", "bins"])
def test_every_architecture_has_the_code_of_one_that_is_run(name: str) -> None:
    require_nvrtc()
    assert sorted(sum(ALIKE.values(), ())) == sorted(nvrtc.ARCHITECTURES)
    for run, alike in ALIKE.items():
        codes = {ptx.translate(nvrtc.compile(kernels.source(name), name, number).ptx, name) for number in (run, *alike)}
        assert len(codes) == 1


def test_compiled_inflate_has_the_bytes_of_its_source(compiled: dict[str, Function]) -> None:
    assert compare_frames(compiled["inflate"], range(1000))[0] > 100
    pages = [(page, wanted) for _, page, wanted in test_inflate.WRONG.values()]
    texts = test_inflate.TEXTS.values()
    pages.extend((test_inflate.CODEC_.compress(text, asbytes=True), len(text)) for text in texts)
    status, content = inflated(compiled["inflate"], *frames(pages))
    expected, right = inflated(inflate.inflate_pages, *frames(pages), *WORK)
    np.testing.assert_array_equal(status, expected)
    assert content == right


def test_compiled_bins_has_the_bits_of_its_source(
    compiled: dict[str, Function], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = some_columns(monkeypatch)
    for some in columns:
        assert set(compare_columns(compiled["bins"], some)) == {0}
    compare_damaged(compiled["bins"], columns, range(30))
    counts = np.random.default_rng(3).integers(0, 1500, (3, 5000)).astype(np.uint16)
    for pairs in (30, 509, 2033):
        some = given(test_page_bins.as_file(counts), pairs, np.arange(3), monkeypatch)
        assert set(compare_columns(compiled["bins"], some)) == {0}


# ------------------------------------------------------------------------------------------------------------- sectors


def test_stored_bytes_are_fetched_once(tmp_path: Path) -> None:
    require_compiler()
    kernel = Kernel(kernels.source("inflate"), "inflate", tmp_path, count=True)
    text = np.random.default_rng(0).normal(128, 30, 6000).astype(np.uint8).tobytes()
    page = test_inflate.CODEC_.compress(text, asbytes=True)
    status, (content,) = inflated(inflating(kernel), *frames([(page, len(text))]))
    assert (status[0], content) == (0, text)
    loads, _ = kernel.traffic()
    assert loads.fetched_by_block <= 1.02 * len(page) + 32 * COLUMNS
    assert loads.efficiency[1] >= 0.98


def test_streams_are_loaded_twice(tmp_path: Path) -> None:
    require_compiler()
    kernel = Kernel(kernels.source("inflate"), "inflate", tmp_path, count=True)
    text = np.random.default_rng(0).normal(128, 30, 60_000).astype(np.uint8).tobytes()
    page = test_inflate.CODEC_.compress(text, asbytes=True)
    assert inflated(inflating(kernel), *frames([(page, len(text))]))[1] == [text]
    loads, _ = kernel.traffic()
    assert 2 * len(page) <= loads.used_by_load <= 2.15 * len(page)


def test_pages_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    kernel = Kernel(kernels.source("bins"), "bins", tmp_path, count=True)
    counts = np.clip(np.random.default_rng(1).normal(300, 40, (1, 6000)), 0, 900).astype(np.uint16)
    some = given(test_page_bins.as_file(counts), 30, np.arange(1), monkeypatch)
    assert set(compare_columns(binning(kernel), some)) == {0}
    loads, _ = kernel.traffic()
    constants_and_tau = 64 + 8 * 100
    assert loads.fetched_by_block <= 1.05 * int(some[1][:, WANTED].sum()) + constants_and_tau + 32 * COLUMNS
    assert loads.efficiency[1] >= 0.95


# ---------------------------------------------------------------------------------------------------------- sanitizers

SANITIZERS = ["address", *(pytest.param(name, marks=pytest.mark.slow) for name in ("undefined", "thread"))]


def hostile_frames() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Frames with any one thing wrong, sound ones and damaged ones."""
    some = [(page, wanted) for _, page, wanted in test_inflate.WRONG.values() if wanted < 2000]
    long = np.random.default_rng(8).normal(128, 30, 1500).astype(np.uint8).tobytes()  # chunk after chunk
    pages = [*test_inflate.good_frames(), *some, (test_inflate.CODEC_.compress(long, asbytes=True), len(long))]
    pages += in_parts([1500], THREES, 3) + in_parts([6000], test_inflate.DEEP, 3)[:3] + [cut(40, test_inflate.DEEP)]
    pages.extend(test_inflate.good_frames())
    for seed in range(60):
        page, wanted = pages[seed % len(pages)]
        pages.append((test_inflate.mutated(page, np.random.default_rng(seed)) if page else page, wanted))
    return frames(pages)


def run_frames(program: Launch) -> None:
    batch = hostile_frames()
    (status, pages), (expected, right) = (
        inflated(inflating(program), *batch),
        inflated(inflate.inflate_pages, *batch, *WORK),
    )
    np.testing.assert_array_equal(status, expected)
    assert pages == right


def run_columns(program: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, some in enumerate(some_columns(monkeypatch, 210)):
        few = [*some[:2], some[2][:4], *some[3:]]  # three pixels
        for place in (3, 5, 8, 10, 12, 13, 14):  # facts, constants, dark, divisor, out, saturated, status
            few[place] = few[place][:3]
        compare_columns(binning(program), damaged(few, seed))
    counts = test_page_bins.reads(9000)[[3, 7]]  # of several tiles
    for pairs in (30, 4400):
        some = given(test_page_bins.as_file(counts), pairs, np.arange(2), monkeypatch)
        assert set(compare_columns(binning(program), some)) == {0}
    monkeypatch.setattr(test_page_bins, "bin_pages", binning(program))
    for place in (20, 21):  # either read of a pair
        indices = [3 if k == place else k % 3 for k in range(64)]
        assert test_page_bins.by_hand(test_page_bins.packed_run(indices, 2), entries=3)[0] == bins.INDEX


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizers_are_silent_on_inflate(sanitizer: str, tmp_path: Path) -> None:
    require_compiler()
    run_frames(Sanitized(kernels.source("inflate"), "inflate", tmp_path, sanitizer))


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizers_are_silent_on_bins(sanitizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    run_columns(Sanitized(kernels.source("bins"), "bins", tmp_path, sanitizer), monkeypatch)


# What is planted, where, and the sanitizer that sees it; none for what other bytes and statuses tell.
BUGS = {
    "no barrier before a tree": ("inflate", "    __syncwarp(); // all lanes have used the last tree\n", "", "thread"),
    "no barrier behind weights": ("inflate", "    __syncwarp(); // weights are there", "    // weights", "thread"),
    "no barrier behind sorting": ("inflate", "        __syncwarp(); // they are in order\n", "", "thread"),
    "no barrier behind constants": ("bins", "        __syncthreads(); // constants are there\n", "", "thread"),
    "no barrier before a sum": ("bins", "        __syncthreads(); // the tile is filled\n", "", "thread"),
    "no barrier behind a sum": ("bins", "        __syncthreads(); // the tile is used\n", "", "thread"),
    "an index beyond": ("bins", "read = min(read, (unsigned)max(column.entries - 1, 0));", "read *= 4097;", "address"),
    "no barrier before the ring": (
        "inflate",
        "    __syncwarp(); // the table is there, and what was in the ring is used\n",
        "",
        "thread",
    ),
    "bits from before the data": ("inflate", "wanted && k >= first ?", "wanted ?", "address"),
    "words of another lane": ("inflate", "ring += 4 * lane;", "ring += 4 * (lane % 16);", "thread"),
    "a chunk too late": ("inflate", "room = now < chunk + 3", "room = now < chunk + 2", ""),
    "a chunk too early": ("inflate", "room = now < chunk + 3", "room = now < chunk + 4", ""),
    "no second chunk": ("inflate", "more = now < chunk + 2", "more = false", ""),
    "guesses that are kept": ("inflate", "part ? right : start;", "part > 31 ? right : start;", ""),
    "symbols that are not counted": ("inflate", "symbols += old == top ? -1 : 1;", "symbols += old != top;", ""),
    "ends that are not passed on": ("inflate", "__any_sync(ALL, changed)", "__any_sync(ALL, changed && part < 5)", ""),
    "a stream not used up": ("inflate", " && end == lowest;", ";", ""),
    "a run beyond": ("bins", "    if (bytes > (unsigned)(stop - at))\n        return RUN;\n", "", ""),
    "only ends of pairs checked": ("bins", "most = max(most, max(start, end));", "most = max(most, end);", ""),
    "words of another turn": ("bins", "turn * (THREADS / 16) * step", "turn * (THREADS / 32) * step", ""),
    "a pair too many": ("bins", "all || pair + (k << share) < stop ? differences[k] : 0.0", "differences[k]", ""),
    "pairs at odd places": ("bins", " && place % 2 == 0;", ";", ""),
    "lanes that go on": (
        "bins",
        "int pair = piece + member",
        "int pair = ((piece + member) >> share << share) + member",
        "",
    ),
}
SAYS = {"thread": "data race", "address": "AddressSanitizer"}


@pytest.mark.parametrize("bug", [pytest.param(bug, marks=pytest.mark.slow if BUGS[bug][3] else ()) for bug in BUGS])
def test_planted_bugs_are_seen(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    name, right, wrong, sanitizer = BUGS[bug]
    source = kernels.source(name)
    assert source.count(right) == 1
    source = source.replace(right, wrong)
    program = Sanitized(source, name, tmp_path, sanitizer) if sanitizer else Kernel(source, name, tmp_path)

    def run() -> None:
        for _ in range(3 if sanitizer == "thread" else 1):  # whether threads meet is chance, on a busy machine
            run_frames(program) if name == "inflate" else run_columns(program, monkeypatch)

    with pytest.raises(KernelError if sanitizer else AssertionError, match=SAYS.get(sanitizer)):
        run()


# A vote that is missing: what one thread has found, the others do not know.
VOTES = {
    "of nulls": ("bins", "__syncthreads_or(null)", "null"),
    "of values that are no counts": ("bins", "__syncthreads_or(no_count)", "no_count"),
    "of bright values": ("bins", "__syncthreads_or(high)", "high"),
    "of indices beyond": (
        "bins",
        "__syncthreads_or(!plain && most >= column.entries)",
        "!plain && most >= column.entries",
    ),
    "of wrong values": ("bins", "__syncthreads_or(wrong)", "wrong"),
    "of saturated reads": ("bins", "__syncthreads_or(seen & HIT)", "seen & HIT"),
    "of marks": ("inflate", "__all_sync(ALL, mark && n > 0)", "(mark && n > 0)"),
    "of ends": ("inflate", "__any_sync(ALL, changed)", "changed"),
    "of sound streams": ("inflate", "__all_sync(ALL, part < parts - 1 || sound)", "(part < parts - 1 || sound)"),
}


def run_what_differs_by_thread(program: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns in which one thread finds what the others do not."""
    compare_damaged(binning(program), some_columns(monkeypatch), range(30))
    for module in (test_page_bins, bins):
        monkeypatch.setattr(module, "bin_pages", binning(program))
    for what in test_page_bins.WRONG:
        test_page_bins.test_what_is_wrong_is_said(what)
    for threshold in (1000, 40_000):
        test_page_bins.test_saturation_looks_at_used_frames_only(threshold, dictionary=True)
        test_page_bins.test_saturation_looks_at_used_frames_only(threshold, dictionary=False)


@pytest.mark.slow
@pytest.mark.parametrize("vote", VOTES)
def test_no_vote_is_needless(vote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    name, right, wrong = VOTES[vote]
    source = kernels.source(name)
    assert source.count(right) == 1
    source = source.replace(right, wrong)  # streams that are not sound may then be written anywhere
    program = Kernel(source, name, tmp_path) if name == "bins" else Sanitized(source, name, tmp_path, "address")
    with pytest.raises((AssertionError, KernelError)):
        run_frames(program) if name == "inflate" else run_what_differs_by_thread(program, monkeypatch)
