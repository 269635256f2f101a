"""How many warps of a kernel a multiprocessor holds, from the limits NVIDIA publishes.

Source of the figures: CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications per Compute
Capability", and the allocation granularities of cuda_occupancy.h in the CUDA toolkit.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor. Registers are allotted in steps of 256 a warp.

    Attributes
    ----------
    warps, blocks : int
        Resident at once, at most.
    shared : int
        Bytes of shared memory.
    reserved, step : int
        Bytes of it that the system takes from each block, and the granularity.
    """

    warps: int
    blocks: int
    shared: int
    reserved: int
    step: int


REGISTERS = 65_536
KIB = 1024
LIMITS = MappingProxyType(
    {
        60: Limits(64, 32, 64 * KIB, 0, 256),
        70: Limits(64, 32, 96 * KIB, 0, 256),
        75: Limits(32, 16, 64 * KIB, 0, 256),
        80: Limits(64, 32, 164 * KIB, KIB, 128),
        86: Limits(48, 16, 100 * KIB, KIB, 128),
        89: Limits(48, 24, 100 * KIB, KIB, 128),
        90: Limits(64, 32, 228 * KIB, KIB, 128),
        100: Limits(64, 32, 228 * KIB, KIB, 128),
        120: Limits(48, 24, 100 * KIB, KIB, 128),
    }
)


def occupancy(architecture: int, threads: int, registers: int, shared: int) -> float:
    """Return resident warps over the most there can be.

    Parameters
    ----------
    architecture : int
        A key of `LIMITS`.
    threads : int
        A block's.
    registers : int
        A thread's.
    shared : int
        A block's, bytes.
    """
    limits = LIMITS[architecture]
    warps = _up(threads, 32) // 32
    # Each of four partitions has a quarter of the registers; a warp's are all in one.
    by_registers = REGISTERS // 4 // _up(32 * registers, 256) * 4 // warps
    by_shared = limits.shared // _up(max(shared + limits.reserved, 1), limits.step)
    blocks = min(limits.blocks, limits.warps // warps, by_registers, by_shared)
    return blocks * warps / limits.warps


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
