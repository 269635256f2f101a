"""What NVIDIA's compiler made of the shipped kernels, executed on the CPU: the bits are those of the source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulator import nvrtc, ptx
from emulator.cpp import Kernel
from hostile import ADCS, SMALL, observe
from launch import calibrate, cases, horner, require_compiler, require_nvrtc

from gpucal import kernels
from gpucal.config import Calibration
from gpucal.detectors import DETECTORS

CASES = cases()


class Built:
    """The kernels from source, and from the PTX of each architecture, built when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = {name: Kernel(kernels.source(name), name, self._new(name)) for name in kernels.NAMES}
        self.made: dict[str, Kernel] = {}

    def _new(self, name: str) -> Path:
        path = self.folder / f"{name}-{len(list(self.folder.iterdir()))}"
        path.mkdir()
        return path

    def ptx(self, name: str, architecture: int) -> Kernel:
        code = ptx.translate(nvrtc.compile(kernels.source(name), name, architecture).ptx, name)
        if code not in self.made:  # architectures that differ in nothing but their name share one
            self.made[code] = Kernel(code, name, self._new(name), self.source[name].signature)
        return self.made[code]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    require_compiler()
    require_nvrtc()
    return Built(tmp_path_factory.mktemp("ptx"))


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    """NaN equals NaN: which of several it is, PTX leaves open."""
    np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    known = ~np.isnan(one)
    np.testing.assert_array_equal(one[known].view(np.uint64), other[known].view(np.uint64))


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_calibrate_has_the_bits_of_its_source(built: Built, architecture: int) -> None:
    kernel = built.ptx("calibrate", architecture)
    for obs, config in CASES.values():
        plan, counts = obs.plan(config), obs.counts()
        expected, seen = calibrate(built.source["calibrate"], plan, counts), calibrate(kernel, plan, counts)
        assert_same_bits(seen[0], expected[0])
        np.testing.assert_array_equal(seen[1], expected[1])


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_horner_has_the_bits_of_its_source(built: Built, architecture: int) -> None:
    electrons = np.random.default_rng(1).normal(9000, 5000, (7, 300))
    electrons[3, :3] = np.nan, np.inf, -np.inf
    coefficients = np.random.default_rng(2).normal(1, 1e-3, (6, 300)) * np.logspace(0, -22, 6)[:, None]
    expected = horner(built.source["horner"], electrons, coefficients)
    assert_same_bits(horner(built.ptx("horner", architecture), electrons, coefficients), expected)


@pytest.mark.parametrize(("detector", "pairs"), [("AIRS-CH0", 30), ("FGS1", 360), ("AIRS-CH0", 1), ("AIRS-CH0", 5)])
def test_compiled_loads_fetch_what_they_use(built: Built, tmp_path: Path, detector: str, pairs: int) -> None:
    code = ptx.translate(nvrtc.compile(kernels.source("calibrate"), "calibrate", 75).ptx, "calibrate")
    kernel = Kernel(code, "calibrate", tmp_path, built.source["calibrate"].signature, count=True)
    small = replace(DETECTORS[detector], shape=(1, 2), crop=(0, 2))
    obs = observe(small, small.frames, ADCS["2024"])
    calibrate(kernel, obs.plan(Calibration(bins={detector: pairs})), obs.counts(), (1, 2))
    loads, _ = kernel.traffic()  # every ld.global, whatever the source calls it
    assert loads.instructions > 0
    assert min(loads.efficiency) >= 0.9


# ------------------------------------------------------------------------------------------- what it must not let pass

PLAIN = """
extern "C" __global__ void calibrate(const double *x, const double *y, double *out)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = %s;
}
"""


def run(kernel: Kernel, n: int = 1024) -> np.ndarray:
    rng = np.random.default_rng(0)
    x, y, out = rng.normal(size=n), rng.normal(size=n), np.empty(n)
    kernel((n // 128,), (128,), x, y, out)
    return out


def test_a_contraction_is_seen(tmp_path: Path) -> None:
    require_compiler()
    require_nvrtc()
    differ = {}
    for name, expression, options in (
        ("fused", "x[i] * y[i] + x[i]", ()),
        ("spelled out", "__fma_rn(x[i], y[i], x[i])", ()),
        ("rounded twice", "__dadd_rn(__dmul_rn(x[i], y[i]), x[i])", ()),
    ):
        (tmp_path / name / "ptx").mkdir(parents=True)
        source = PLAIN % expression
        written = Kernel(source, "calibrate", tmp_path / name)
        code = ptx.translate(nvrtc.compile(source, "calibrate", 75, options).ptx, "calibrate")
        compiled = Kernel(code, "calibrate", tmp_path / name / "ptx", written.signature)
        differ[name] = np.mean(run(written) != run(compiled))
    assert differ["fused"] > 0.05
    assert differ["spelled out"] == differ["rounded twice"] == 0.0


def test_arithmetic_that_the_next_compiler_may_fuse_is_refused() -> None:
    require_nvrtc()
    text = nvrtc.compile(PLAIN % "x[i] * y[i] + x[i]", "calibrate", 75, ("--fmad=false",)).ptx
    loose = text.replace("add.rn.f64", "add.f64")
    assert loose != text
    ptx.translate(text, "calibrate")
    with pytest.raises(ptx.UnknownInstruction, match=r"^add\.f64 "):
        ptx.translate(loose, "calibrate")


@pytest.mark.parametrize(
    ("expression", "instruction"),
    [("sqrt(x[i])", "sqrt.rn.f64"), ("(double)__float2half_rn(1.0f)", None), ("(double)__popc(i)", "popc.b32")],
)
def test_an_unknown_instruction_is_an_error(expression: str, instruction: str | None) -> None:
    require_nvrtc()
    if instruction is None:
        with pytest.raises(nvrtc.CompileError, match="undefined"):
            nvrtc.compile(PLAIN % expression, "calibrate", 75)
        return
    text = nvrtc.compile(PLAIN % expression, "calibrate", 75).ptx
    with pytest.raises(ptx.UnknownInstruction, match=instruction.replace(".", r"\.")):
        ptx.translate(text, "calibrate")


def test_a_kernel_that_is_not_there() -> None:
    with pytest.raises(ptx.UnknownInstruction, match="no kernel calibrate"):
        ptx.translate(".version 8.8\n", "calibrate")


def test_every_case_has_work() -> None:
    assert len(CASES) > 40
    assert {config.bins[obs.detector.name] for obs, config in CASES.values() if config.bins} == {
        1, 4, 5, 12, 30, 60, 360, 720,
    }  # fmt: skip
    assert SMALL
