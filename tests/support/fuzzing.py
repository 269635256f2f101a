"""What becomes of damaged files: counted, for so many rounds, within so much memory. tests/system/test_fuzz.py runs it:

python tests/support/fuzzing.py signals 0 2000 EMPTY_FOLDER
"""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mutants import ON_BYTES, ON_PARTS, SMALL, axes, calibration, corpus, longer, mutant
from numpy.typing import NDArray
from paged import Binned, bin_loaded, by_counts, same_bits, telling

from gpucal.backends.pagewise.intrinsics import config
from gpucal.errors import InputError
from gpucal.inputs.calibration_files import find_adc, read_adc_table, read_axis, read_frames, read_raw_frames
from gpucal.inputs.signal_file import Loaded, open_signal
from gpucal.pipeline.memory import COUNT_BLOCK

WAYS = {
    "pages": (True, False),
    "pyarrow": (False, False),
    "strict": (True, True),
    "strict by pyarrow": (False, True),
}
"""The ways to read a signal file: from its pages, where they are such as gpucal decodes, or not; with all checks."""


@dataclass(frozen=True)
class Read:
    """What a way has made of a signal file: counts, or the sums of pages, which tell of every pair of reads."""

    n_rows: int
    counts: NDArray[np.uint16] | None
    binned: Binned | None

    def holds(self, values: NDArray[Any]) -> bool:
        """Tell whether these are the values, (pixel, frame)."""
        if self.counts is not None:
            return self.counts.shape == values.shape and bool((self.counts == values).all())
        if values.shape != (SMALL.n_pixels, self.n_rows):
            return False
        if self.binned is None:  # no pair, no sum
            return True
        sums, saturated = by_counts(telling(SMALL.n_pixels, self.n_rows), values.astype(np.uint16))
        return same_bits(self.binned[0], sums) and bool((self.binned[1] == saturated).all())


def load(path: Path, way: str) -> tuple[Loaded, bool]:
    """Load a file; tell whether its pages are binned without their counts."""
    pages, strict = WAYS[way]
    loaded = open_signal(path, SMALL, strict=strict).load()
    return loaded, pages and not loaded.table.unfit


def read(path: Path, way: str) -> Read:
    """Read a signal file as the pipeline does."""
    loaded, by_pages = load(path, way)
    n_rows = loaded.table.n_rows
    if not by_pages:
        ((_, counts),) = loaded.counts([slice(0, SMALL.n_pixels)])
        assert counts.dtype == np.uint16
        return Read(n_rows, counts, None)
    if n_rows < 2:
        return Read(n_rows, None, None)
    return Read(n_rows, None, bin_loaded(telling(SMALL.n_pixels, n_rows), loaded)[:2])


@functools.lru_cache(4)
def by_pyarrow(data: bytes) -> tuple[NDArray[np.int64] | None, str]:
    """What plain pyarrow makes of a file's cropped columns, or why they hold no counts for it."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        chosen = file.reader.read_all(column_indices=SMALL.columns().tolist(), use_threads=False).columns
        values = np.stack([np.array(column.to_pylist(), np.int64) for column in chosen])
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        return None, str(error)
    counts = values.size == 0 or 0 <= values.min() <= values.max() <= 0xFFFF
    return (values, "") if counts else (None, "no counts")


def outcome(path: Path, data: bytes, way: str, right: NDArray[Any]) -> str:
    """Say what becomes of a signal file: an error, right, as pyarrow has it, or `wrong` and why."""
    try:
        found = read(path, way)
    except InputError as error:
        line = str(error)
        return "error" if "\n" not in line and len(line) < 500 and line.startswith(f"{path}: ") else f"wrong: {line!r}"
    values, refused = by_pyarrow(data)
    if values is None:
        return "right for us alone" if found.holds(right) else f"wrong: values that pyarrow refuses ({refused})"
    if not found.holds(values):
        return "wrong: other values than pyarrow's"
    return "right" if np.array_equal(values, right) else "as pyarrow"


def good_files() -> dict[str, tuple[bytes, NDArray[Any]]]:
    """Good files of every encoding, and the counts of their cropped columns."""
    made = {}
    for name, data in (corpus() | longer()).items():
        values, _ = by_pyarrow(data)
        assert values is not None
        made[name] = data, values
    return made


def signals(seeds: range, folder: Path) -> Counter[str]:
    """Damage signal files, read them in every way, and count what becomes of them."""
    path, made, counted = folder / "signal.parquet", good_files(), Counter[str]()
    good = {name: data for name, (data, _) in made.items()}
    for seed in seeds:
        name, how, data = mutant(good, seed)
        path.write_bytes(data)
        for way in WAYS:
            doing = f"{seed} {name} {how.__name__} {way}"
            with noted(folder, doing):
                became = outcome(path, data, way, made[name][1])
            if became.startswith("wrong"):
                raise AssertionError(f"{doing}: {became}")
            counted[f"{way}: {became}"] += 1
            if name.startswith("checksums") and "strict" in way and how in ON_BYTES and became == "as pyarrow":
                raise AssertionError(f"{doing}: a checksum was passed over")
    return counted


def plain_columns(data: bytes, names: Sequence[str] | None = None) -> list[NDArray[np.float64]]:
    """What plain pyarrow makes of numbers; nothing if it refuses them."""
    try:
        whole = pq.ParquetFile(pa.BufferReader(data)).read(columns=names)
        return [np.array(whole.column(k).to_pylist(), np.float64) for k in range(whole.num_columns)]
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return []


def beside(seeds: range, folder: Path) -> Counter[str]:
    """Damage calibration frames, axes and ADC tables, and count what becomes of them."""
    frames, whole_axes, counted = calibration(), axes(), Counter[str]()
    table_text = "planet_id,AIRS-CH0_adc_offset,AIRS-CH0_adc_gain\n7,-800.5,1.5\n9,-700,1.25\n" * 3
    for seed in seeds:
        what = ("frames", "axes", "adc")[seed % 3]
        good = {"frames": frames, "axes": whole_axes, "adc": {"adc": table_text.encode()}}[what]
        name, way, data = mutant(good, seed, ON_BYTES[::3] if what == "adc" else (*ON_BYTES, *ON_PARTS))
        doing = f"{seed} {what} {name} {way.__name__}"
        path = folder / {"frames": f"{name.strip()}.parquet", "axes": "axis_info.parquet", "adc": "adc_info.csv"}[what]
        path.write_bytes(data)
        with noted(folder, doing):
            try:
                values = {"frames": one_frame, "axes": three_axes, "adc": one_row}[what](path, frames)
            except InputError as error:
                line = str(error)
                assert "\n" not in line, doing
                assert line.startswith(f"{folder}"), doing
                assert len(line) < 500, doing
                counted[f"{what}: error"] += 1
                continue
        if what == "adc":
            assert all(np.isfinite(value).all() for value in values), doing
        else:
            names = None if what == "frames" else [str(name) for name in AXES]
            # pyarrow refuses some footers for statistics, which gpucal does not read: then nothing else is damaged
            plain = plain_columns(data, names) or plain_columns(good[name], names)
            expected = [np.stack(plain, axis=1)] if what == "frames" else [cut_axis(column) for column in plain]
            assert len(expected) == len(values), doing
            for mine, theirs in zip(values, expected, strict=True):
                np.testing.assert_array_equal(mine.reshape(theirs.shape), theirs, err_msg=doing)
        counted[f"{what}: {'as pyarrow' if what != 'adc' else 'values'}"] += 1
    return counted


AXES = (SMALL.time_column, SMALL.wavelength_column, SMALL.integration_column)


def cut_axis(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[: int(np.flatnonzero(np.isfinite(values))[-1]) + 1]


def one_frame(path: Path, frames: dict[str, bytes]) -> list[NDArray[Any]]:
    """Read a frame of this name among good ones, without the crop."""
    raw = {name: frames[name] for name in ("dark", "dead", "flat", "linear_corr", "read")}
    raw[path.stem] = path.read_bytes()
    found = read_frames(raw, path.parent, replace(SMALL, crop=(0, SMALL.shape[1])))
    return [getattr(found, path.stem)]


def three_axes(path: Path, frames: dict[str, bytes]) -> list[NDArray[Any]]:
    found = read_axis(path, replace(SMALL, crop=(0, SMALL.shape[1])))
    assert found.wavelength_um is not None
    assert found.integration_s is not None
    return [found.time_h, found.wavelength_um, found.integration_s]


def one_row(path: Path, frames: dict[str, bytes]) -> list[NDArray[Any]]:
    adc = find_adc(read_adc_table(path), path, 7, SMALL)
    return [np.array([adc.gain, adc.offset])]


@functools.cache
def word_in(folder: Path) -> int:
    """A file that stays open: opening it anew takes 2 ms."""
    return os.open(folder / "now", os.O_WRONLY | os.O_CREAT)


@contextmanager
def noted(folder: Path, what: str) -> Iterator[None]:
    """Leave word of what is being done, for who finds the process dead; and see that it does not take long."""
    os.pwrite(word_in(folder), what.ljust(200).encode(), 0)
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        assert seconds < 20, f"{what}: {seconds:.0f} s"


def memory(which: str) -> int:
    """Bytes of this process, by their name in its status."""
    return int(Path("/proc/self/status").read_text().partition(f"{which}:")[2].split()[0]) * 1024


def limit_memory(more: int) -> None:
    """Allow the process so many bytes more than it has now."""
    now = memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


FRAMES = {name: data for name, data in calibration().items() if not name.endswith(" ")}
"""Good calibration frames, once each."""


def told(path: Path) -> dict[str, str]:
    """What each way to read a file says of it: the error, or `read` and how much."""
    kind = path.name.partition("-")[0]
    ways: dict[str, Callable[[], Iterable[NDArray[Any]]]] = {
        "axes": lambda: three_axes(path, {}),
        "adc": lambda: one_row(path, {}),
        "dark": lambda: [read_frames(FRAMES | {"dark": _dark(path)}, path.parent, SMALL).dark],
    }

    def decode(way: str) -> Iterator[NDArray[Any]]:
        loaded, by_pages = load(path, way)
        n_rows = loaded.table.n_rows
        if by_pages:
            bin_loaded(telling(SMALL.n_pixels, n_rows), loaded)
            return iter([np.empty(SMALL.n_pixels * n_rows, np.uint16)])
        step = max(1, COUNT_BLOCK // (2 * (n_rows or 1)))  # as in a run: long columns one by one
        blocks = [slice(k, min(k + step, SMALL.n_pixels)) for k in range(0, SMALL.n_pixels, step)]
        return (counts for _, counts in loaded.counts(blocks))

    if kind == "signal":
        ways = {way: partial(decode, way) for way in WAYS}
    said = {}
    for way, use in ways.items() if kind == "signal" else [(kind, ways[kind])]:
        try:
            said[way] = f"read {sum(values.size for values in use())}"
        except InputError as error:
            said[way] = str(error)
    return said


def _dark(path: Path) -> bytes:
    """Read a file as calibration frames are."""
    folder = path.parent.with_name(f"frames of {path.name}")
    folder.mkdir()
    for name in ("dead", "flat", "linear_corr", "read"):
        (folder / f"{name}.parquet").write_bytes(calibration()[name])
    (folder / "dark.parquet").symlink_to(path)
    return read_raw_frames(folder)["dark"]


def files(seeds: range, folder: Path) -> dict[str, Any]:
    """Read every file of a folder, and say how it went, how long it took, and by how much the memory grew."""
    said: dict[str, Any] = {}
    for path in sorted((folder / "files").iterdir()):
        before, began = peak(), time.perf_counter()
        with noted(folder, path.name):
            said[path.name] = told(path)
        said[path.name] |= {"seconds": time.perf_counter() - began, "grown": peak() - before}
    return said


def elsewhere(what: str, seeds: range, folder: Path) -> Any:
    """Do all that in a process of limited memory, which nothing may end or hold up; return what it found."""
    command = [sys.executable, str(Path(__file__)), what, str(seeds.start), str(seeds.stop), str(folder)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    (folder / "now").write_text("before any of them")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300 + len(seeds))
    assert done.returncode == 0, f"{done.returncode}: {(folder / 'now').read_text().rstrip()}\n{done.stderr[-2000:]}"
    result = json.loads(done.stdout)
    # what allocators keep of many small tables, 166 MB at most; a page of a declared 2 GiB would be seen
    assert result["grown"] < 300e6
    return result["found"]


def peak() -> int:
    return memory("VmHWM")  # getrusage's is that of the process that forked it, if that was larger


def read_good_files() -> None:
    """Have every thread and allocator begin, which reserve address space when they do, 1.7 GB in all.

    Of what damaged files are allowed they may take nothing.
    """
    good = {"signal": corpus()["pyarrow-zstd-1.0-dictionary"], "axes": axes()["polars"], "dark": calibration()["dark"]}
    with TemporaryDirectory() as name:
        for kind, data in good.items():
            path = Path(name, "good", f"{kind}-.parquet")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            assert all(line.startswith("read ") for line in told(path).values()), kind


if __name__ == "__main__":
    what, first, last, work = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    read_good_files()
    limit_memory(2**30)
    least = peak()
    found = {"signals": signals, "beside": beside, "files": files}[what](range(first, last), work)
    sys.stdout.write(json.dumps({"found": found, "grown": peak() - least, "checked": bool(config.BOUNDSCHECK)}))
