"""What becomes of damaged files: counted, for so many rounds, within so much memory. tests/system/test_fuzz.py runs it:

python tests/support/fuzzing.py signals 0 2000 EMPTY_FOLDER
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mutants import ON_BYTES, ON_PARTS, RIGHT, SMALL, axes, calibration, corpus, mutant
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.inputs.calibration_files import find_adc, read_adc_table, read_axis, read_frames, read_raw_frames
from gpucal.inputs.counts import DECODERS
from gpucal.inputs.signal_file import open_signal
from gpucal.pipeline.memory import BLOCK


def by_pyarrow(data: bytes) -> tuple[NDArray[Any], str]:
    """What plain pyarrow makes of a file's cropped columns, or why it refuses it."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        chosen = file.reader.read_all(column_indices=SMALL.columns().tolist(), use_threads=False).columns
        return np.stack([np.array(column.to_pylist(), object) for column in chosen]), ""
    except (pa.ArrowException, OSError, ValueError) as error:
        return np.zeros((0, 0)), str(error)


# Polars takes fewer indices than a run announces, and definition levels that are not 0 or 1 or too few, where pyarrow
# says one of these; see gpucal.inputs.parquet.pages._for_polars.
LENIENT = ("Unexpected end of stream", "rep / def levels do not match", "Malformed levels")


def same(counts: NDArray[Any], values: NDArray[Any]) -> bool:
    return counts.shape == values.shape and bool((counts == values).all())


def outcome(path: Path, data: bytes, decoder: str, strict: bool) -> str:
    """Say what becomes of a signal file: an error, right, as pyarrow has it, or `wrong` and why."""
    try:
        signal = open_signal(path, SMALL, strict=strict)
        ((_, counts),) = signal.load(decoder).decode([[slice(0, SMALL.n_pixels)]])
    except InputError as error:
        line = str(error)
        return "error" if "\n" not in line and len(line) < 500 and line.startswith(f"{path}: ") else f"wrong: {line!r}"
    if counts.dtype != np.uint16:
        return f"wrong: {counts.dtype}"
    if same(counts, RIGHT):
        return "right"
    values, refused = by_pyarrow(data)
    if same(counts, values):
        return "as pyarrow"
    if decoder == "polars" and not strict and any(reason in refused for reason in LENIENT):
        return "lenient"
    return f"wrong: other values than pyarrow's ({refused})"


def signals(seeds: range, folder: Path) -> Counter[str]:
    """Damage signal files, decode them in every way, and count what becomes of them."""
    path, good, counted = folder / "signal.parquet", corpus(), Counter[str]()
    for seed in seeds:
        name, way, data = mutant(good, seed)
        path.write_bytes(data)
        for decoder, strict in (*product(DECODERS, [False]), ("polars", True)):
            doing = f"{seed} {name} {way.__name__} {decoder} {'strict' if strict else ''}"
            with noted(folder, doing):
                became = outcome(path, data, decoder, strict)
            if became.startswith("wrong"):
                raise AssertionError(f"{doing}: {became}")
            counted[f"{decoder}{' strict' if strict else ''}: {became}"] += 1
            if name.startswith("checksums") and strict and way in ON_BYTES and became == "as pyarrow":
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
            plain = plain_columns(data, None if what == "frames" else [str(name) for name in AXES])
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


@contextmanager
def noted(folder: Path, what: str) -> Iterator[None]:
    """Leave word of what is being done, for who finds the process dead; and see that it does not take long."""
    (folder / "now").write_text(what)
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


def told(path: Path) -> dict[str, str]:
    """What each way to read a file says of it: the error, or `read` and how much."""
    kind = path.name.partition("-")[0]
    ways: dict[str, Callable[[], Iterable[NDArray[Any]]]] = {
        "axes": lambda: three_axes(path, {}),
        "adc": lambda: one_row(path, {}),
        "dark": lambda: [read_frames({**calibration(), "dark": _dark(path)}, path.parent, SMALL).dark],
    }

    def decode(decoder: str, strict: bool) -> Iterator[NDArray[Any]]:
        signal = open_signal(path, SMALL, strict=strict)
        step = max(1, BLOCK // (2 * (signal.n_frames or 1)))  # as in a run: long columns one by one
        units = ([slice(k, min(k + step, SMALL.n_pixels))] for k in range(0, SMALL.n_pixels, step))
        return (counts for _, counts in signal.load(decoder).decode(units))

    if kind == "signal":
        ways = {decoder: partial(decode, decoder, False) for decoder in DECODERS}
        ways["strict"] = partial(decode, "polars", True)
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
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "POLARS_MAX_THREADS": "2"}
    (folder / "now").write_text("before any of them")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300 + len(seeds))
    assert done.returncode == 0, f"{done.returncode}: {(folder / 'now').read_text()}\n{done.stderr[-2000:]}"
    result = json.loads(done.stdout)
    # what allocators keep of many small tables, 166 MB at most; a page of a declared 2 GiB would be seen
    assert result["grown"] < 300e6
    return result["found"]


def peak() -> int:
    return memory("VmHWM")  # getrusage's is that of the process that forked it, if that was larger


def read_good_files() -> None:
    """Have every thread and allocator begin, which reserve address space when they do, 1.7 GB in all.

    Of what damaged files are allowed they may take nothing: 1 GiB of Arrow's, where there was just room for it, left
    Polars without a thread.
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
    sys.stdout.write(json.dumps({"found": found, "grown": peak() - least}))
