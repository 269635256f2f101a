"""Environments that people have: no home folder, warnings as errors, event loops, threads, CuPy that cannot work.

What cannot be had here is made with fakes at the boundary.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BINS, CONFIG, Made
from emulator import standin
from launch import require, require_compiler

import gpucal
from gpucal.backends import choose, load
from gpucal.cli.main import main
from gpucal.errors import BackendUnavailable

FLAGS = [f"--bin={name}={pairs}" for name, pairs in BINS.items()]
HOMES = {"not there": "/dev/null/none", "a file": "/etc/passwd", "of nobody": "/proc/1"}


def python(*argv: object, home: str, **more: str) -> subprocess.CompletedProcess[str]:
    gone = {"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "CUPY_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment | {"HOME": home} | more)


@pytest.mark.parametrize("home", HOMES)
def test_a_home_that_cannot_be_written(home: str, old: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = python("-m", "gpucal", "calibrate", old[0], out, *FLAGS, "--planet=17", home=HOMES[home])
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""
    assert len(gpucal.open_results(out)) == 1
    made = python("-m", "gpucal", "plot", out, 17, home=HOMES[home])
    assert made.returncode == 0, made.stderr
    assert (out / "17-0.png").exists()


@pytest.mark.parametrize(("variable", "there"), [("CUPY_CACHE_DIR", False), ("CUPY_CACHE_DIR", True)])
def test_the_real_cupy_needs_a_folder_for_kernels(variable: str, there: bool, tmp_path: Path) -> None:
    """Its error says which variable names one, and that does."""
    require(importlib.util.find_spec("cupy") is not None, "cupy")
    said = python("-m", "gpucal", "info", home="/dev/null/none", **{variable: str(tmp_path)} if there else {})
    assert said.returncode == 0
    mend = "; let CUPY_CACHE_DIR name a folder that can be written"
    assert (mend in said.stdout) == (not there)
    assert ("cannot be imported" in said.stdout) == (not there)


EVERY = "import gpucal; [getattr(gpucal, name) for name in gpucal.__all__]"


@pytest.mark.parametrize(
    "code", [EVERY, "from gpucal.cli.main import main; main(['info'])", "import gpucal.runs.check, gpucal.results.plot"]
)
def test_warnings_are_errors(code: str, tmp_path: Path) -> None:
    made = python("-W", "error", "-c", code, home=str(tmp_path))
    assert made.returncode == 0, made.stderr
    assert made.stderr == ""


def in_a_loop(work: Callable[[], Any]) -> Any:
    async def job() -> Any:
        return work()

    return asyncio.run(job())


def beside_a_loop(work: Callable[[], Any]) -> Any:
    async def job() -> Any:
        first, second = await asyncio.gather(asyncio.to_thread(work), asyncio.to_thread(work))
        np.testing.assert_array_equal(first, second)
        return first

    return asyncio.run(job())


def in_a_thread(work: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(60)
    return results[0]


@pytest.mark.parametrize("where", [in_a_loop, beside_a_loop, in_a_thread])
def test_other_places_than_the_main_thread(where: Callable[..., Any], old: Made, tmp_path: Path) -> None:
    dataset = gpucal.open_dataset(old[0])
    expected = gpucal.calibrate(dataset[17], "FGS1", CONFIG).signal
    np.testing.assert_array_equal(where(lambda: gpucal.calibrate(dataset[17], "FGS1", CONFIG).signal), expected)
    streamed = where(lambda: np.stack([cal.signal for cal in gpucal.stream(dataset, "FGS1", CONFIG)]))
    np.testing.assert_array_equal(streamed[0], expected)
    if where is not beside_a_loop:
        assert where(lambda: gpucal.run(dataset, tmp_path / "out", CONFIG, variance=True).done) == 4
        assert where(lambda: main(["verify", str(tmp_path / "out")])) == 0
        assert where(lambda: main(["calibrate", str(old[0]), str(tmp_path / "cli"), *FLAGS])) == 0


WHEELS = (["cupy-cuda11x", "cupy-cuda12x"], ["cupy", "cupy-cuda13x"])


class _Refuses:
    """Fails to import CuPy."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "cupy":
            raise self.error


@pytest.mark.parametrize("wheels", WHEELS, ids=" ".join)
@pytest.mark.parametrize("how", ["error", "warning"])
def test_two_wheels_of_cupy(how: str, wheels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy warns of them, which is an exception where warnings are errors; or it fails in its own ways."""
    for wheel in wheels:
        about = tmp_path / f"{wheel.replace('-', '_')}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 1.0\n")
    module = importlib.import_module("gpucal.backends.cupy_")  # the stand-in for CuPy has it imported anew
    monkeypatch.setattr(module, "distributions", lambda: [PathDistribution(about) for about in tmp_path.iterdir()])
    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    said = "\n----\n\n  CuPy may not function correctly because multiple CuPy packages are installed\n  in it"
    error = UserWarning(said) if how == "warning" else ImportError("libcudart.so.11.0: cannot open")
    monkeypatch.setattr(sys, "meta_path", [_Refuses(error), *sys.meta_path])
    with pytest.raises(BackendUnavailable) as caught:
        load("cupy")
    line = str(caught.value)
    assert line.startswith(f"backend 'cupy' cannot be imported ({'CuPy may not' if how == 'warning' else 'libcudart'}")
    assert line.endswith(f"{wheels[0]} and {wheels[1]} are installed together: pip uninstall all but one")
    assert "\n" not in line
    assert choose().name == "numba"


@pytest.mark.parametrize(("version", "says"), [(11_040, "CUDA 11.4"), (10_020, "CUDA 10.2"), (0, "")])
def test_a_driver_that_is_too_old(version: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    with standin.installed(devices=0, status=35):
        import cupy

        monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: version)
        with pytest.raises(BackendUnavailable) as caught:
            load("cupy")
    newer = f" newer than the one here, which is for {says}" if says else ""
    assert f"it needs an NVIDIA driver{newer}, a GPU and NVRTC" in str(caught.value)


def test_results_are_loaded_without_shared_memory(old: Made, tmp_path: Path) -> None:
    """As in a container with 64 MB of it: what a worker reads is its own memory, and maps no file in /dev/shm."""
    out = tmp_path / "out"
    gpucal.run(gpucal.open_dataset(old[0]), out, CONFIG)
    code = (
        "import multiprocessing as m, sys, gpucal\n"
        "def read(i):\n"
        "    array = gpucal.open_results(sys.argv[1])['AIRS-CH0'][i]\n"
        "    shared = [l for l in open('/proc/self/maps') if '/dev/shm/' in l and '/dev/shm/sem.' not in l]\n"
        "    return array.shape, shared\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'spawn'):\n"
        "        with m.get_context(method).Pool(2) as pool:\n"
        "            assert pool.map(read, [0, 1]) == [((4, 282, 32), [])] * 2\n"
    )
    (tmp_path / "load.py").write_text(code)
    made = python("-W", "ignore", tmp_path / "load.py", out, home=str(tmp_path))
    assert made.returncode == 0, made.stderr


def test_importing_is_quiet_whatever_the_filters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpucal.Calibration().bins["FGS1"] == 360
