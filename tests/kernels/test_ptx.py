"""The PTX that NVIDIA's compiler made of the shipped kernels, executed on the CPU: its bits are those of the source."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from emulator import nvrtc, ptx
from emulator.cpp import Kernel, KernelError
from hostile import ADCS, observe
from launch import calibrate, cases, require_compiler, require_nvrtc

from gpucal import kernels
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS

CASES = cases()

ALWAYS = "AIRS-CH0-30-1+0"
"""The case that runs with every run of the tests."""


class Built:
    """The kernels from source, and from the PTX of every architecture."""

    def __init__(self, folder: Path) -> None:
        self.source = {name: Kernel(kernels.source(name), name, folder) for name in kernels.NAMES}
        self.ptx: dict[str, list[Kernel]] = {name: [] for name in kernels.NAMES}
        for name, source in self.source.items():
            texts = (nvrtc.compile(kernels.source(name), name, number).ptx for number in nvrtc.ARCHITECTURES)
            # Architectures whose code differs in nothing but their name share one: sm_60 to 90, sm_100 and 120.
            for code in dict.fromkeys(ptx.translate(text, name) for text in texts):
                self.ptx[name].append(Kernel(code, name, folder, source.signature))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    require_compiler()
    require_nvrtc()
    return Built(tmp_path_factory.mktemp("ptx"))


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    """NaN equals NaN: PTX leaves open which NaN an instruction returns."""
    np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    known = ~np.isnan(one)
    np.testing.assert_array_equal(one[known].view(np.uint64), other[known].view(np.uint64))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == ALWAYS else pytest.mark.slow) for case in CASES]
)
def test_calibrate_has_the_bits_of_its_source(built: Built, case: str) -> None:
    obs, config = CASES[case]
    plan, counts = obs.plan(config), obs.counts()
    expected = calibrate(built.source["calibrate"], plan, counts)
    assert built.ptx["calibrate"]
    for kernel in built.ptx["calibrate"]:
        seen = calibrate(kernel, plan, counts)
        assert_same_bits(seen[0], expected[0])
        np.testing.assert_array_equal(seen[1], expected[1])


def test_more_threads_than_it_was_compiled_for(built: Built) -> None:
    obs, config = CASES[ALWAYS]
    for kernel in built.ptx["calibrate"]:
        with pytest.raises(KernelError, match="a block of more than the 128 threads"):
            calibrate(kernel, obs.plan(config), obs.counts(), threads=256)


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


@pytest.mark.slow
def test_a_contraction_is_seen(tmp_path: Path) -> None:
    require_compiler()
    require_nvrtc()
    differ = {}
    for name, expression, options in (
        ("fused", "x[i] * y[i] + x[i]", ()),
        ("spelled out", "__fma_rn(x[i], y[i], x[i])", ()),
        ("rounded twice", "__dadd_rn(__dmul_rn(x[i], y[i]), x[i])", ()),
    ):
        source = PLAIN % expression
        written = Kernel(source, "calibrate", tmp_path)
        code = ptx.translate(nvrtc.compile(source, "calibrate", 75, options).ptx, "calibrate")
        compiled = Kernel(code, "calibrate", tmp_path, written.signature)
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


@pytest.mark.parametrize(("expression", "instruction"), [("sqrt(x[i])", "sqrt.rn.f64"), ("__popc(i)", "popc.b32")])
def test_an_unknown_instruction_is_an_error(expression: str, instruction: str) -> None:
    require_nvrtc()
    text = nvrtc.compile(PLAIN % expression, "calibrate", 75).ptx
    with pytest.raises(ptx.UnknownInstruction, match=re.escape(instruction)):
        ptx.translate(text, "calibrate")


INTEGERS = (
    "a / b", "a % b", "(unsigned)a * (unsigned)b + (unsigned)a", "(unsigned)a << (b & 31)", "a >> (b & 31)",
    "(unsigned)a >> (b & 31)", "(long long)a * b",
    "(long long)a * b + 7", "(unsigned long long)(unsigned)a * (unsigned)b >> 32", "min(a, b)",
    "max((unsigned)a, (unsigned)b)", "a < b ? a : b", "(unsigned)a < (unsigned)b", "(short)a * (short)b",
    "(signed char)a", "(unsigned char)a + (unsigned short)b", "(a ^ ~b) | (a & b)", "~a", "(int)((long long)a >> 3)",
)  # fmt: skip
DOUBLES = (
    "x[i] < y[i] || x[i] > y[i]", "x[i] != y[i]", "x[i] == y[i]", "!(x[i] < y[i])", "floor(x[i])", "ceil(x[i])",
    "trunc(x[i])", "rint(x[i])", "(double)__double2uint_ru(x[i])",
    "__ddiv_rn(x[i], y[i])", "-x[i]", "(double)(float)i",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["integers", "doubles"])
def test_instructions_have_the_bits_of_their_source(batch: str, tmp_path: Path) -> None:
    """The PTX of each expression gives the bits of the expression, except for the last, whose PTX is unknown."""
    require_compiler()
    require_nvrtc()
    known = INTEGERS if batch == "integers" else DOUBLES[:-1]
    body = " ".join(f"out[{k} * 1024 + i] = {expression};" for k, expression in enumerate(known))
    values = f"const int a = __double2uint_ru(x[i]), b = __double2uint_ru(y[i]) | 1; (void)a, (void)b; {body} //"
    source = PLAIN.replace("out[i] = %s;", values)
    written = Kernel(source, "calibrate", tmp_path)
    translated = ptx.translate(nvrtc.compile(source, "calibrate", 75).ptx, "calibrate")
    compiled = Kernel(translated, "calibrate", tmp_path, written.signature)
    rng = np.random.default_rng(4)
    x, y = rng.normal(0, 1, (2, 1024)) * 10.0 ** rng.integers(-3, 10, (2, 1024))
    x[10:99] = y[10:99]
    x[:6], y[3:9] = [np.nan, np.inf, -np.inf, -1.5, 0.0, -0.0], [np.nan, np.inf, -np.inf, 2.5, -0.0, 1e300]
    outs = [np.full((len(known), 1024), -1.0) for _ in "wc"]
    for kernel, out in zip((written, compiled), outs, strict=True):
        kernel((8,), (128,), x, y, out)
    for expression, one, other in zip(known, *outs, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=expression)
    with pytest.raises(ptx.UnknownInstruction):
        ptx.translate(nvrtc.compile(PLAIN % DOUBLES[-1], "calibrate", 75).ptx, "calibrate")


SHARED = """
extern "C" __global__ void calibrate(const double *x, const double *y, double *out)
{
    __shared__ double box[128];
    if (x[0] > 0.0)
        box[threadIdx.x] = 1.0;
    %s
    out[blockIdx.x * blockDim.x + threadIdx.x] = box[threadIdx.x + (int)y[0]];
}
"""


def test_shared_memory_is_poisoned_and_fenced(tmp_path: Path) -> None:
    require_compiler()
    require_nvrtc()
    signature = ("const float64*", "const float64*", "float64*")
    code = ptx.translate(nvrtc.compile(SHARED % "__syncthreads();", "calibrate", 75).ptx, "calibrate")
    kernel = Kernel(code, "calibrate", tmp_path, signature)
    out = np.zeros(256)
    kernel((2,), (128,), np.ones(1), np.zeros(1), out)
    assert (out == 1.0).all()
    kernel((2,), (128,), np.zeros(1), np.zeros(1), out)
    assert (out.view(np.uint64) == 0xA5A5A5A5A5A5A5A5).all()
    for beyond in (-1.0, 1.0, 2.0**28):
        with pytest.raises(KernelError, match="shared memory"):
            kernel((1,), (128,), np.ones(1), np.array([beyond]), out)


@pytest.mark.parametrize("line", ["bar.sync 1", "barrier.sync 0, 64", "ld.param.f64 %fd1, [calibrate_param_0+8]"])
def test_what_is_known_in_part_is_refused_in_part(line: str) -> None:
    require_nvrtc()
    text = nvrtc.compile(SHARED % "__syncthreads();", "calibrate", 75).ptx
    assert text.count("bar.sync \t0;") == 1
    with pytest.raises(ptx.UnknownInstruction, match=re.escape(line.split()[0])):
        ptx.translate(text.replace("bar.sync \t0;", f"{line};"), "calibrate")


def test_a_kernel_that_is_not_there() -> None:
    with pytest.raises(ptx.UnknownInstruction, match="no kernel calibrate"):
        ptx.translate(".version 8.8\n", "calibrate")
