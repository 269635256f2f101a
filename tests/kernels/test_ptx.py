"""The PTX that NVIDIA's compiler made of the shipped kernels, executed on the CPU: its bits are those of the source."""

from __future__ import annotations

import re
from collections.abc import Callable
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
    """calibrate.cu from source, and from the PTX of every architecture."""

    def __init__(self, folder: Path) -> None:
        source = kernels.source("calibrate")
        self.source = Kernel(source, "calibrate", folder)
        texts = (nvrtc.compile(source, "calibrate", number).ptx for number in nvrtc.ARCHITECTURES)
        # Architectures whose code differs in nothing but their name share one: sm_60 to 90, sm_100 and 120.
        codes = dict.fromkeys(ptx.translate(text, "calibrate") for text in texts)
        self.ptx = [Kernel(code, "calibrate", folder, self.source.signature) for code in codes]


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
    expected = calibrate(built.source, plan, counts)
    assert built.ptx
    for kernel in built.ptx:
        seen = calibrate(kernel, plan, counts)
        assert_same_bits(seen[0], expected[0])
        np.testing.assert_array_equal(seen[1], expected[1])


def test_more_threads_than_it_was_compiled_for(built: Built) -> None:
    obs, config = CASES[ALWAYS]
    for kernel in built.ptx:
        with pytest.raises(KernelError, match="a block of more than the 128 threads"):
            calibrate(kernel, obs.plan(config), obs.counts(), threads=256)


@pytest.mark.parametrize(("detector", "pairs"), [("AIRS-CH0", 30), ("FGS1", 360), ("AIRS-CH0", 1), ("AIRS-CH0", 5)])
def test_compiled_loads_fetch_what_they_use(built: Built, tmp_path: Path, detector: str, pairs: int) -> None:
    code = ptx.translate(nvrtc.compile(kernels.source("calibrate"), "calibrate", 75).ptx, "calibrate")
    kernel = Kernel(code, "calibrate", tmp_path, built.source.signature, count=True)
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


@pytest.mark.parametrize(("expression", "instruction"), [("sqrt(x[i])", "sqrt.rn.f64"), ("__brev(i)", "brev.b32")])
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
    "__clz(a)", "__clz(a >> 31)", "__popc(a)", "__funnelshift_l(a, b, i)", "__funnelshift_r(a, b, i)",
    "__byte_perm(a, b, i * 0x1357)",
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


# What becomes of a word, after an instruction that no expression is sure to become.
WORDS: dict[str, Callable[[int], int]] = {
    "bfe.u32 %s, %s, 3, 21": lambda w: w >> 3 & 0x1FFFFF,
    "bfe.u32 %s, %s, 28, 8": lambda w: w >> 28,
    "bfe.u32 %s, %s, 40, 8": lambda w: 0,
    "bfe.u32 %s, %s, 5, 0": lambda w: 0,
    "bfe.s32 %s, %s, 4, 8": lambda w: (w >> 4 & 255) | (0xFFFFFF00 if w >> 11 & 1 else 0),
    "bfe.s32 %s, %s, 28, 8": lambda w: w >> 28 | (0xFFFFFFF0 if w >> 31 else 0),
    "bfe.s32 %s, %s, 40, 3": lambda w: 0xFFFFFFFF if w >> 31 else 0,
    "bfi.b32 %s, %s, 0x12345678, 8, 12": lambda w: 0x12300078 | (w & 0xFFF) << 8,
    "bfi.b32 %s, %s, 0x12345678, 24, 12": lambda w: 0x345678 | (w & 255) << 24,
    "bfi.b32 %s, %s, 0x12345678, 32, 12": lambda w: 0x12345678,
    "prmt.b32 %s, %s, 0x12F45678, 0x6240": lambda w: 0xF4 << 24 | (w >> 16 & 255) << 16 | 0x78 << 8 | w & 255,
    "prmt.b32 %s, %s, 0x12F45678, 0xCEB3": lambda w: 0xFF0000 | (0xFF00 if w >> 31 else 0) | w >> 24,
    "shf.l.wrap.b32 %s, %s, 0x12345678, 37": lambda w: (0x12345678 << 5 | w >> 27) & 0xFFFFFFFF,
    "shf.r.wrap.b32 %s, %s, 0x12345678, 36": lambda w: (0x8 << 28) | w >> 4,
    "shf.l.wrap.b32 %s, %s, 0x12345678, 32": lambda w: 0x12345678,
}


def test_words_by_hand(tmp_path: Path) -> None:
    require_compiler()
    require_nvrtc()
    body = " ".join(f"out[{k} * 1024 + i] = __brev(i * 2654435761u + {k});" for k in range(len(WORDS)))
    text = nvrtc.compile(PLAIN.replace("out[i] = %s;", body), "calibrate", 75).ptx
    instructions = iter(WORDS)
    text, found = re.subn(r"brev\.b32 \s*(%\w+), (%\w+);", lambda m: f"{next(instructions) % m.groups()};", text)
    assert found == len(WORDS)
    signature, out = ("const float64*", "const float64*", "float64*"), np.full((len(WORDS), 1024), -1.0)
    Kernel(ptx.translate(text, "calibrate"), "calibrate", tmp_path, signature)(
        (8,), (128,), np.zeros(1), np.zeros(1), out
    )
    for k, (instruction, expected) in enumerate(WORDS.items()):
        words = [(n * 2654435761 + k) % 2**32 for n in range(1024)]
        assert out[k].tolist() == [float(expected(word)) for word in words], instruction


VOTE = """
extern "C" __global__ void calibrate(const double *x, const double *y, double *out)
{
    const int any = __syncthreads_or(x[threadIdx.x] > 0.0);
    const int other = __syncthreads_or((int)threadIdx.x == (int)y[blockIdx.x]);
    out[blockIdx.x * blockDim.x + threadIdx.x] = 2 * any + other;
}
"""


def test_a_block_votes(tmp_path: Path) -> None:
    require_compiler()
    require_nvrtc()
    written = Kernel(VOTE, "calibrate", tmp_path)
    text = nvrtc.compile(VOTE, "calibrate", 75).ptx
    compiled = Kernel(ptx.translate(text, "calibrate"), "calibrate", tmp_path, written.signature)
    for kernel in (written, compiled):
        for place, expected in ((-1, 0.0), (0, 2.0), (127, 2.0)):
            x, out = np.zeros(128), np.full((3, 128), -1.0)
            x[place:][:1] = float(place >= 0)
            kernel((3,), (128,), x, np.array([0.0, 127.0, 128.0]), out)
            assert (out == expected + np.array([[1.0], [1.0], [0.0]])).all()
    with pytest.raises(ptx.UnknownInstruction, match=r"bar\.red"):
        ptx.translate(re.sub(r"(bar\.red\.or\.pred \s*%\w+), 0", r"\1, 1", text), "calibrate")


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
