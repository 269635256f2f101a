"""The device that the CuPy backend chooses, and its messages on refused ones, on the stand-in and on real CuPy."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from typing import Any

import pytest
from conftest import BINS
from emulator import standin
from launch import cases, require, require_compiler

from gpucal.backends import choose, load
from gpucal.cli.main import main
from gpucal.errors import BackendUnavailable
from gpucal.settings.calibration import Calibration

CASES = cases()
SEEDS = range(20)
CONFIG = Calibration(bins=BINS, integration="notebook")


def test_auto_takes_the_gpu(device: standin.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    assert choose().name == "cupy"
    assert choose().runs_on.startswith("Stand-in T4 (sm_75, device 0), driver for CUDA ")
    launches = device.launches
    assert launches > 0
    load("cupy")
    assert device.launches == launches  # checked once


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"devices": 0, "status": 35}, "driver"),
        ({"devices": 0, "status": 100}, "no CUDA-capable device"),
        ({"nvrtc": False}, "libnvrtc"),
    ],
)
def test_steps_down_with_the_reason(
    options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_compiler()
    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    with standin.installed(**options), caplog.at_level(logging.INFO, "gpucal"):
        assert choose().name == "numba"
        (line,) = caplog.messages
        assert reason in line
        with pytest.raises(BackendUnavailable, match=f"backend 'cupy': .*{reason}.*; it needs an NVIDIA driver"):
            choose("cupy")


@pytest.mark.parametrize(
    "error", [ValueError("numpy.dtype size changed"), PermissionError("no .cupy here"), ImportError("no libcudart")]
)
def test_a_cupy_that_cannot_be_imported(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "cupy":
                raise error

    monkeypatch.delenv("GPUCAL_BACKEND", raising=False)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    with pytest.raises(BackendUnavailable, match=rf"cannot be imported \({error}\); pip install"):
        load("cupy")
    assert choose().name == "numba"


@pytest.mark.parametrize("status", [700, 2])
def test_a_gpu_that_faults_is_refused_loudly(
    device: standin.Machine, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(*arguments: object) -> None:
        raise standin.errors.CUDADriverError(status)

    monkeypatch.setattr(standin.kernels.Function, "__call__", fault)
    with caplog.at_level(logging.INFO, "gpucal"):
        assert choose("auto").name == "numba"
    levels = [record.levelname for record in caplog.records if "backend numba" in record.getMessage()]
    assert levels == ["ERROR" if status == 700 else "INFO"]
    assert main(["selftest"]) == (1 if status == 700 else 0)
    with pytest.raises(BackendUnavailable, match=str(status) if status == 700 else "no room for"):
        load("cupy")


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendUnavailable, match=r'cannot be imported .*; pip install "gpucal\[cuda12\]"'):
        load("cupy")


def test_the_real_cupy_without_a_driver() -> None:
    require(importlib.util.find_spec("cupy") is not None, "cupy")
    import cupy

    if cupy.cuda.is_available():
        assert load("cupy").runs_on
    else:
        with pytest.raises(BackendUnavailable, match=r"backend 'cupy': cudaError.*; it needs an NVIDIA driver"):
            load("cupy")
