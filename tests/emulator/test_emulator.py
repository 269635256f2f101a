"""The emulator itself: warps, barriers, votes, atomics and counts behave as the device's, and misuse is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from launch import require_compiler

from emulator.cpp import Kernel, KernelError, Sanitized, on_device

KERNEL = """
extern "C" __global__ void k(const int *in, int *out)
{
    const int n = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x %% 32;
    (void)lane, (void)n, (void)in;
    %s
}
"""


def kernel(body: str, folder: Path, *, count: bool = False) -> Kernel:
    require_compiler()
    return Kernel(KERNEL % body, "k", folder, count=count)


def launched(body: str, folder: Path, blocks: int = 2, threads: int = 64) -> np.ndarray:
    """What ``out`` holds, a row a warp."""
    n = blocks * threads
    out = np.full(n, -1, np.int32)
    kernel(body, folder)((blocks,), (threads,), np.arange(n, dtype=np.int32) * 10, out)
    return out.reshape(-1, 32)


LANES = np.arange(32)


CALLS = {
    "__shfl_sync(~0u, lane, 5)": np.full(32, 5),
    "__shfl_sync(~0u, lane, 9, 8)": LANES // 8 * 8 + 1,
    "__shfl_down_sync(~0u, lane, 3)": np.where(LANES + 3 < 32, LANES + 3, LANES),
    "__shfl_down_sync(~0u, lane, 3, 8)": np.where(LANES % 8 + 3 < 8, LANES + 3, LANES),
    "__shfl_up_sync(~0u, lane, 3, 8)": np.where(LANES % 8 >= 3, LANES - 3, LANES),
    "__shfl_xor_sync(~0u, lane, 5, 8)": LANES ^ 5,
    "__shfl_xor_sync(~0u, lane, 12, 8)": np.where((LANES ^ 12) <= (LANES | 7), LANES ^ 12, LANES),
    "(int)__ballot_sync(~0u, lane == 1 || lane == 4)": np.full(32, 18),
    "__clz(lane)": np.array([32, *(32 - int(lane).bit_length() for lane in LANES[1:])]),
    "__popc(lane)": np.array([int(lane).bit_count() for lane in LANES]),
    "(int)__funnelshift_l(0x80000001u, lane, lane + 32)": ((LANES << LANES) + (1 << LANES >> 1)).astype(np.int32),
    "(int)__funnelshift_r(0x80000001u, 0, lane + 64) ": np.where(LANES, (0x80000001 >> LANES), -(2**31) + 1),
    "(int)__byte_perm(0x40302010u, lane * 0x01010101, 0x1b361)": 0x40400020 + LANES * 256,
    "__any_sync(~0u, lane == 31)": np.ones(32),
    "__all_sync(~0u, lane != 31)": np.zeros(32),
}


def test_lanes_exchange(tmp_path: Path) -> None:
    body = " ".join(f"out[{row} * 128 + n] = {call};" for row, call in enumerate(CALLS))
    out = np.full((len(CALLS), 4, 32), -1, np.int32)
    kernel(body, tmp_path)((2,), (64,), np.zeros(1, np.int32), out)
    for call, warps in zip(CALLS, out, strict=True):
        np.testing.assert_array_equal(warps, np.tile(CALLS[call], (4, 1)), err_msg=call)


def test_parts_of_a_warp_meet_for_themselves(tmp_path: Path) -> None:
    body = "if (lane < 8) out[n] = __shfl_xor_sync(0xffu, lane, 1); else out[n] = __any_sync(~0xffu, lane == 9);"
    np.testing.assert_array_equal(launched(body, tmp_path), np.tile(np.where(LANES < 8, LANES ^ 1, 1), (4, 1)))


def test_shared_memory_and_barriers(tmp_path: Path) -> None:
    body = """
    __shared__ int box[64];
    int total = 0;
    for (int turn = 0; turn < 3; ++turn) {
        box[threadIdx.x] = in[n] + turn;
        __syncthreads();
        total += box[63 - threadIdx.x];
        __syncthreads();
    }
    out[n] = total;
    """
    mirrored = np.arange(320).reshape(5, 64)[:, ::-1] * 30 + 3
    np.testing.assert_array_equal(launched(body, tmp_path, blocks=5), mirrored.reshape(-1, 32))


def test_atomics_add_up(tmp_path: Path) -> None:
    out = np.zeros(64, np.int32)
    add = kernel("atomicAdd((unsigned *)out + n % 4, 1u); atomicOr((unsigned *)out + 4, 1u << lane);", tmp_path)
    add((100,), (64,), np.zeros(1, np.int32), out)
    assert out[:4].tolist() == [1600] * 4
    assert out[4:5].view(np.uint32)[0] == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (lane < 16) __syncwarp(); else out[n] = __any_sync(~0u, 1);", "lanes of a warp meet at"),
        ("out[n] = lane < 16 ? __all_sync(~0u, 1) : __any_sync(~0u, 1);", "meet at __a.._sync and __a.._sync"),
        ("if (lane == 3)\nreturn;\n__syncwarp();", "deadlock"),
        ("if (threadIdx.x < 32) __syncthreads();", "deadlock"),
        ("if (lane < 16) __syncwarp(0xffff0000u);", "__syncwarp with mask ffff0000 by lane 0, which is not in it"),
        ("out[n] = lane < 8 ? __shfl_sync(0xffu, lane, 9) : 0;", "__shfl_sync reads lane 9, which is not in the mask"),
        ("if (n % 2)\n__syncthreads(); else\n__syncthreads();", "threads of a block meet at the barriers of lines"),
        ("if (n % 2)\n__syncthreads(); else\n__syncthreads_or(1);", "threads of a block meet at the barriers of lines"),
    ],
)
def test_misuse_is_an_error(body: str, message: str, tmp_path: Path) -> None:
    misuse = kernel(body, tmp_path)
    arrays = np.zeros(64, np.int32), np.zeros(64, np.int32)
    with pytest.raises(KernelError, match=message) as error:
        misuse((1,), (64,), *arrays)
    assert "(block 0,0,0 thread " in str(error.value)
    with pytest.raises(KernelError, match=message):  # and the next launch starts afresh
        misuse((1,), (64,), *arrays)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    return kernel("out[n] = 0;", tmp_path_factory.mktemp("nothing"))


@pytest.mark.parametrize(("grid", "block"), [((1, 65_536), (1,)), ((0,), (1,)), ((1,), (1025,)), ((1,), (32, 32, 2))])
def test_no_device_takes_such_a_launch(grid: tuple[int, ...], block: tuple[int, ...], nothing: Kernel) -> None:
    with pytest.raises(ValueError, match="a device takes"):
        nothing(grid, block, np.zeros(64, np.int32), np.zeros(64, np.int32))


def test_a_warp_may_be_short(tmp_path: Path) -> None:
    out = np.zeros(48, np.int32)
    body = "__syncwarp(); out[n] = __shfl_xor_sync(~0u, lane, 1) + 100 * __all_sync(~0u, 1);"
    kernel(body, tmp_path)((1,), (48,), np.zeros(1, np.int32), out)
    np.testing.assert_array_equal(out, (np.arange(48) % 32 ^ 1) + 100)


def test_programs_take_numbers_as_they_are(tmp_path: Path) -> None:
    require_compiler()
    source = 'extern "C" __global__ void k(double *out, double x, unsigned char a, long long b, unsigned long long c)'
    program = Sanitized(source + "{ out[0] = x; out[1] = a; out[2] = (double)b; out[3] = (double)c; }", "k", tmp_path)
    out = np.zeros(4)
    program((1,), (1,), out, np.float64("-inf"), np.uint8(7), np.int64(-(2**40)), np.uint64(2**63))
    assert out.tolist() == [-np.inf, 7.0, -(2.0**40), 2.0**63]
    with pytest.raises(TypeError, match="argument 1 of k must be float64, got float32"):
        program((1,), (1,), out, np.float32(1), np.uint8(7), np.int64(1), np.uint64(1))


def test_kernels_of_one_name_are_told_apart(tmp_path: Path) -> None:
    out = np.zeros((2, 32), np.int32)
    both = [kernel(f"out[n] = {k}; (void)__ldg(in + {32 * k} * lane);", tmp_path, count=True) for k in (1, 2)]
    for one, row in zip(both, out, strict=True):
        one((1,), (32,), np.zeros(4096, np.int32), row)
    assert out[:, 0].tolist() == [1, 2]
    assert [one.traffic()[0].instructions for one in both] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(64, np.int32),), "k takes 2 arguments, got 1"),
        ((np.zeros(64, np.int64), np.zeros(64, np.int32)), r"argument 0 of k must be const int32\*, got int64\*"),
        ((3, np.zeros(64, np.int32)), r"argument 0 of k must be const int32\*, got int"),
        ((np.int32(3), np.zeros(64, np.int32)), r"argument 0 of k must be const int32\*, got int32$"),
        ((np.zeros(64, np.int32), np.zeros(128, np.int32)[::2]), "argument 1 of k is not contiguous"),
        ((np.zeros(64, np.int32), np.frombuffer(bytes(256), np.int32)), "argument 1 of k is written to, and read-only"),
    ],
)
def test_arguments_are_checked(arguments: tuple[object, ...], message: str, nothing: Kernel) -> None:
    with pytest.raises(TypeError, match=message):
        nothing((1,), (64,), *arguments)


SECTORS = {"n": 4, "2 * n": 8, "8 * n": 32, "n + 1": 5, "n % 8": 1, "64 + (n ^ 31)": 4}


def test_sectors_by_hand(tmp_path: Path) -> None:
    body = f"const int index[] = {{{', '.join(SECTORS)}}}; out[n] = __ldg(in + index[out[32]]);"
    counting = kernel(body, tmp_path, count=True)
    for row, (index, sectors) in enumerate(SECTORS.items()):
        counting((1,), (32,), on_device(np.zeros(512, np.int32)), np.full(33, row, np.int32))
        loads, _ = counting.traffic()
        assert (loads.instructions, loads.fetched_by_load) == (1, 32 * sectors), index
        assert loads.used_by_load == (32 if index == "n % 8" else 128), index


def test_loads_of_a_loop_are_told_apart(tmp_path: Path) -> None:
    loop = kernel("for (int i = lane; i < 40; i += 32) out[n] = __ldg(in + 8 * i);", tmp_path, count=True)
    loop((1,), (32,), np.zeros(1024, np.int32), np.zeros(32, np.int32))
    assert loop.traffic()[0].instructions == 2


def test_threads_of_the_system_give_the_same(tmp_path: Path) -> None:
    require_compiler()
    body = "__shared__ int box[64]; box[threadIdx.x] = in[n]; __syncthreads(); out[n] = box[63 - threadIdx.x];"
    values, out = np.arange(128, dtype=np.int32), np.zeros(128, np.int32)
    Sanitized(KERNEL % body, "k", tmp_path)((2,), (64,), values, out)
    np.testing.assert_array_equal(out.reshape(2, 64), values.reshape(2, 64)[:, ::-1])


def test_a_kernel_that_does_not_compile_says_where(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"error: .*nothing_of_the_kind"):
        kernel("out[n] = nothing_of_the_kind;", tmp_path)
