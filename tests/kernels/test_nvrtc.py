"""NVIDIA's compiler on the shipped kernels, for every architecture, with the options CuPy passes."""

from __future__ import annotations

import importlib.util

import pytest
from emulator import nvrtc
from emulator.occupancy import LIMITS, occupancy
from launch import require, require_nvrtc

from gpucal import kernels

REGISTERS = {"calibrate": 64, "inflate": 80, "bins": 80}

# By architecture. P100 and T4 are bounded by shared memory, 7 blocks of 8.3 KiB, the others by registers. Each of
# calibrate's warps has 2 KB of loads under way: 28 of them 57 KB, where 8 KB a multiprocessor hide the latency of a
# P100's memory (732 GB/s over 56 of them, some 600 ns). inflate's blocks are single warps: shared memory holds 10 of
# 6 KB on a P100 or T4, and all of the 32 blocks that an H100 may have. bins has 16.4 KB of it: room for 3 to 5 blocks
# on cards other than the A100, H100 and B200, where 64 registers make it 8: an H100 takes FGS1's 1,024 columns at once.
OCCUPANCY = {
    "calibrate": {60: 0.43, 70: 0.5, 75: 0.87, 80: 0.5, 86: 0.66, 89: 0.66, 90: 0.5, 100: 0.5, 120: 0.66},
    "inflate": {60: 0.15, 70: 0.25, 75: 0.31, 80: 0.35, 86: 0.29, 89: 0.29, 90: 0.5, 100: 0.5, 120: 0.29},
    "bins": {60: 0.25, 70: 0.37, 75: 0.5, 80: 0.5, 86: 0.41, 89: 0.41, 90: 0.5, 100: 0.5, 120: 0.41},
}


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("name", kernels.NAMES)
def test_registers_spills_and_occupancy(name: str, architecture: int) -> None:
    require_nvrtc()
    compiled = nvrtc.compile(kernels.source(name), name, architecture)
    assert (compiled.spills, compiled.stack) == (0, 0)
    assert compiled.registers <= REGISTERS[name]
    assert compiled.threads == kernels.THREADS[name]
    resident = occupancy(architecture, kernels.THREADS[name], compiled.registers, compiled.shared)
    assert resident >= OCCUPANCY[name][architecture]


def test_spills_are_seen() -> None:
    require_nvrtc()
    calibrate = kernels.source("calibrate")
    crowded = nvrtc.compile(calibrate.replace("#define BLOCKS 8 ", "#define BLOCKS 16 "), "calibrate", 90)
    assert crowded.spills > 0
    assert crowded.stack > 0
    assert crowded.registers <= 32


def test_errors_name_the_file_and_its_line() -> None:
    require_nvrtc()
    source = kernels.source("calibrate")
    wrong = source.replace("double sum = 0.0;", "doubt sum = 0.0;")
    line = source[: source.index("double sum = 0.0;")].count("\n")
    with pytest.raises(nvrtc.CompileError, match=rf'calibrate\.cu\({line}\): error: identifier "doubt" is undefined'):
        nvrtc.compile(wrong, "calibrate", 75)


def test_options_are_those_of_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    require(importlib.util.find_spec("cupy") is not None, "cupy")
    from cupy.cuda import compiler

    seen = []

    class Recorder(compiler._NVRTCProgram):
        def compile(self, options: tuple[str, ...] = (), log_stream: object = None) -> tuple[bytes, object]:
            seen.append((self.method, options))
            return super().compile(options, log_stream)

    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    monkeypatch.setattr(compiler, "_NVRTCProgram", Recorder)
    unbound = compiler._get_arch_for_options_for_nvrtc.__wrapped__  # its cache asks which device is current
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", unbound)
    with pytest.raises(RuntimeError, match="cudaError"):  # loading what was compiled needs a driver
        compiler._compile_module_with_cache('extern "C" __global__ void f() {}', (), arch="75")
    assert seen[-1] == ("cubin", nvrtc.cupy_options(75))


def test_occupancy_by_hand() -> None:
    assert occupancy(75, 128, 64, 0) == 1.0  # 8 blocks of 4 warps: 65,536 registers and 32 warps, both exactly full
    assert occupancy(75, 128, 65, 0) == 28 / 32  # 72 registers a thread are allotted
    assert occupancy(60, 128, 32, 8512) == 28 / 64  # 7 blocks of 8,704 bytes in 64 KiB
    assert occupancy(80, 128, 32, 8512) == 1.0  # 16 blocks; 17 would fit 164 KiB
    assert occupancy(90, 1024, 32, 0) == 1.0
    assert occupancy(90, 1024, 33, 0) == 0.5
    assert occupancy(86, 32, 16, 0) == 16 / 48  # 16 blocks are the most
    assert occupancy(89, 64, 48, 0) == 40 / 48  # a quarter's 16,384 registers hold 10 warps of 1,536
    assert occupancy(90, 64, 40, 0) == 48 / 64
    warps_and_kib = {arch: (limits.warps, limits.shared // 1024) for arch, limits in LIMITS.items()}
    assert warps_and_kib == {
        60: (64, 64), 70: (64, 96), 75: (32, 64), 80: (64, 164), 86: (48, 100),
        89: (48, 100), 90: (64, 228), 100: (64, 228), 120: (48, 100),
    }  # fmt: skip
