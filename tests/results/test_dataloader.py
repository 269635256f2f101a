"""An open results folder in the worker processes of a PyTorch DataLoader, and in similar ones."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import queue
import shutil
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BINS, Made

import gpucal
from gpucal import Calibration, Results
from gpucal.errors import OutputError

# From Python 3.12 on a fork warns where a library has threads; the workers here use NumPy alone.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

METHODS = ["fork", "forkserver", "spawn"]
READS = 240


@pytest.fixture(scope="module")
def finished(old: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of planets 17 and 23, cubes with their variances. Not to be written to."""
    out = tmp_path_factory.mktemp("loaded") / "out"
    assert gpucal.run(gpucal.open_dataset(old[0]), out, Calibration(bins=BINS), variance=True).done == 4
    return out


class Both:
    """The dataset that a user would write: both detectors of an observation, and its key."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.airs, self.fgs1 = results["AIRS-CH0"], results["FGS1"]

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        return self.airs[index], self.fgs1[index, :, 3:5], self.results.ids[index][0]


def open_files(folder: Path) -> set[str]:
    """Return the files of a folder that this process holds open or mapped."""
    held = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor that lists the folder
            held.add(str(descriptor.readlink()))
    return {name for name in held if name.startswith(str(folder))}


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def work(dataset: Any, folder: Path, todo: Any, done: Any) -> None:
    """Work as a DataLoader's worker: indices from one queue, samples into another, until None."""
    while (index := todo.get()) is not None:
        done.put((index, dataset[index]))
    gc.collect()
    done.put((None, open_files(folder)))


def load(dataset: Any, folder: Path, method: str, workers: int, reads: int) -> list[tuple[int, Any]]:
    """Read by worker processes, as a DataLoader does; they must end in order, with no file left open."""
    context: Any = multiprocessing.get_context(method)
    done = context.Queue()
    queues = [context.Queue() for _ in range(workers)]
    processes: list[BaseProcess] = [
        context.Process(target=work, args=(dataset, folder, todo, done), daemon=True) for todo in queues
    ]
    for process in processes:
        process.start()
    for number in range(reads):
        queues[number % workers].put(number % len(dataset))
    for todo in queues:
        todo.put(None)
    samples, left_open = [], []
    try:
        while len(left_open) < workers:
            index, sample = done.get(timeout=100)
            if index is None:
                left_open.append(sample)
            else:
                samples.append((index, sample))
    except queue.Empty:
        pytest.fail(f"{len(samples)} of {reads} samples came; exit codes {[p.exitcode for p in processes]}")
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    assert [process.exitcode for process in processes] == [0] * workers
    assert left_open == [set()] * workers
    return samples


@pytest.mark.parametrize("method", METHODS)
def test_workers_read_what_is_there(finished: Path, method: str) -> None:
    results = gpucal.open_results(finished)
    dataset = Both(results)
    expected = [dataset[index] for index in range(len(dataset))]
    assert not np.array_equal(expected[0][0], expected[1][0])
    samples = load(dataset, finished, method, workers=6, reads=48)
    assert sorted(index for index, _ in samples) == sorted([0, 1] * 24)
    for index, (airs, fgs1, planet) in samples:
        np.testing.assert_array_equal(airs, np.load(finished / str(planet) / "0" / "AIRS-CH0.signal.npy"))
        np.testing.assert_array_equal(fgs1, expected[index][1])
        assert planet == (17, 23)[index]


@pytest.mark.parametrize("method", METHODS)
def test_workers_open_the_files_by_themselves(finished: Path, tmp_path: Path, method: str) -> None:
    """Workers read the current file, even if the parent has read an earlier one."""
    out = shutil.copytree(finished, tmp_path / "out")
    airs = gpucal.open_results(out)["AIRS-CH0"]
    before = airs[0]
    path = out / "17" / "0" / "AIRS-CH0.signal.npy"
    np.save(tmp_path / "new.npy", before + 1)
    (tmp_path / "new.npy").replace(path)
    for index, sample in load(airs, out, method, workers=2, reads=4):
        np.testing.assert_array_equal(sample, before + 1 if index == 0 else airs[1])


def test_a_copy_by_pickle_reads_the_same(finished: Path) -> None:
    results = gpucal.open_results(finished)
    data = pickle.dumps(Both(results))
    assert len(data) < 16_000 * len(results)  # records only: a cube has 140,000 bytes and more
    copy = pickle.loads(data)
    for mine, other in zip(copy[1], Both(results)[1], strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (copy.results.ids, copy.results.path) == (results.ids, results.path)


def read_of(results: Results, name: str) -> Callable[[], object]:
    airs, key = results["AIRS-CH0"], results.ids[1]
    reads: dict[str, Callable[[], object]] = {
        "item": lambda: airs[1],
        "part of an item": lambda: airs[1, 1:3, ::7],
        "slice": lambda: airs[:, 0],
        "everything": airs.load,
        "flags": lambda: results.dq("FGS1"),
        "product": lambda: results.calibrated(key, "FGS1").variance,
        "light curves": lambda: results.light_curves_with_errors_of(key),
    }
    return reads[name]


@pytest.mark.parametrize("name", ["item", "part of an item", "slice", "everything", "flags", "product", "light curves"])
def test_many_reads_leave_no_file_open(finished: Path, name: str) -> None:
    read = read_of(gpucal.open_results(finished), name)
    read()
    gc.collect()
    before = descriptors()
    gc.disable()  # what only the collector would close is a leak in a loop of big arrays
    try:
        for _ in range(READS if name != "everything" else 20):
            read()
        assert open_files(finished) == set()
        assert descriptors() == before
    finally:
        gc.enable()


def test_what_is_held_is_seen(finished: Path) -> None:
    path = finished / "17" / "0" / "FGS1.signal.npy"
    with path.open("rb"):
        assert open_files(finished) == {str(path)}
    mapped = np.load(path, mmap_mode="r")
    assert open_files(finished) == {str(path)}
    del mapped
    assert open_files(finished) == set()


def test_failed_reads_leave_no_file_open(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    airs = gpucal.open_results(out)["AIRS-CH0"]
    path = out / "23" / "0" / "AIRS-CH0.signal.npy"
    path.write_bytes(path.read_bytes()[:-500])
    for _ in range(READS):
        for index in (1, (1, 0), slice(None)):
            with pytest.raises(OutputError, match="is damaged"):
                airs[index]
    gc.collect()
    assert open_files(out) == set()


@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_dataloader(finished: Path, method: str | None) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    results = gpucal.open_results(finished)
    how = {} if method is None else {"num_workers": 2, "multiprocessing_context": method, "persistent_workers": True}
    cubes = DataLoader(results["AIRS-CH0"], batch_size=2, **how)
    for _ in range(2):
        (batch,) = cubes
        assert batch.dtype == torch.float32
        np.testing.assert_array_equal(batch.numpy(), results["AIRS-CH0"].load())
    loader = DataLoader(Both(results), batch_size=1, shuffle=True, **how)
    seen = {int(planet): (airs[0].numpy(), fgs1[0].numpy()) for airs, fgs1, planet in loader}
    assert sorted(seen) == [17, 23]
    for index, (planet, _) in enumerate(results.ids):
        for mine, expected in zip(seen[planet], Both(results)[index][:2], strict=True):
            np.testing.assert_array_equal(mine, expected)
    del cubes, loader


def shared() -> set[str]:
    """Return the files in shared memory that this process maps, which 64 MB of it limit."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {name for line in lines if "/dev/shm/" in (name := line.split(maxsplit=5)[-1]) and "/sem." not in name}


class Stacked:
    """Batches as ``collate_fn=np.stack`` makes them, and what the worker shares while it has one."""

    def __init__(self, results: Results, detector: str) -> None:
        self.cubes = results[detector]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, set[str]]:
        return np.stack([self.cubes[place] for place in range(len(self.cubes))]), shared()


@pytest.mark.parametrize("detector", ["AIRS-CH0", "FGS1"])
@pytest.mark.parametrize("method", METHODS)
def test_stacked_batches_need_no_shared_memory(finished: Path, method: str, detector: str) -> None:
    """They come through a pipe, whatever /dev/shm holds."""
    results, before = gpucal.open_results(finished), shared()
    for _, (batch, of_worker) in load(Stacked(results, detector), finished, method, workers=2, reads=2):
        np.testing.assert_array_equal(batch, results[detector].load())
        assert of_worker | shared() <= before


@pytest.mark.parametrize("method", METHODS)
def test_a_dataloader_of_stacked_batches(finished: Path, method: str) -> None:
    """PyTorch's own way to make batches puts them into shared memory; this one does not."""
    pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    cubes, before = gpucal.open_results(finished)["AIRS-CH0"], shared()
    (own,) = DataLoader(cubes, batch_size=2, num_workers=2, multiprocessing_context=method)
    assert own.is_shared()
    del own
    (batch,) = DataLoader(cubes, batch_size=2, num_workers=2, multiprocessing_context=method, collate_fn=np.stack)
    assert isinstance(batch, np.ndarray)
    np.testing.assert_array_equal(batch, cubes.load())
    assert shared() <= before
