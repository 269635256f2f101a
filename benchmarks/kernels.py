"""The CUDA kernels without a GPU: what NVIDIA's compiler made of them, the bytes they move, the times that follow.

    python benchmarks/kernels.py [--json FILE]

Registers and spills are the compiler's. Bytes are counted by the emulator (tests/emulator) on two pixels of each
detector, full time series, default bins. Times are ESTIMATES from published peak rates, not measurements: each is what
that resource alone would take, and the longest is the least a device could need. Needs g++ and nvidia-cuda-nvrtc-cu12.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measure import table, write_json

from gpucal import kernels
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from emulator import nvrtc
from emulator.cpp import Kernel
from emulator.occupancy import occupancy
from hostile import ADCS, observe
from launch import calibrate

NAMES = {
    60: "P100",
    70: "V100",
    75: "T4",
    80: "A100",
    86: "A10",
    89: "L4",
    90: "H100",
    100: "B200",
    120: "RTX 50",
}


@dataclass(frozen=True)
class Device:
    """Published peaks: memory in GB/s, double precision in TFLOP/s (two an operation), bus in GB/s one way."""

    memory: float
    double: float
    bus: float


# NVIDIA's data sheets: P100 PCIe 16 GB, T4, A100 PCIe 40 GB, H100 SXM; T4's double rate is 1/32 of its 8.1 TFLOP/s.
# PCIe x16 of generations 3, 4 and 5 moves 15.75, 31.5 and 63 GB/s at most.
DEVICES = {
    "P100": Device(732, 4.7, 15.75),
    "T4": Device(320, 8.1 / 32, 15.75),
    "A100": Device(1555, 9.7, 31.5),
    "H100": Device(3350, 33.5, 63.0),
}

# Of a pair, in calibrate.cu: 2 conversions, 8 fused multiply-adds, 2 products, a difference and a sum.
PER_PAIR = 14


def compiled() -> list[dict[str, Any]]:
    """Compile the kernels for every architecture."""
    rows = []
    for name in kernels.NAMES:
        for architecture in nvrtc.ARCHITECTURES:
            made = nvrtc.compile(kernels.source(name), name, architecture)
            resident = occupancy(architecture, kernels.THREADS[name], made.registers, made.shared)
            row = {"kernel": name, "architecture": architecture, "registers": made.registers, "spills": made.spills}
            rows.append({**row, "shared": made.shared, "occupancy": resident})
    return rows


def moved() -> list[dict[str, Any]]:
    """Count what calibrate moves for an observation of each detector, against the least possible."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        kernel = Kernel(kernels.source("calibrate"), "calibrate", Path(folder), count=True)
        for name, detector in DETECTORS.items():
            two = replace(detector, shape=(1, 2), crop=(0, 2))
            obs = observe(two, detector.frames, ADCS["2024"])
            plan = obs.plan(Calibration())
            calibrate(kernel, plan, obs.counts(), (1, 2))
            loads, _ = kernel.traffic()
            pixels = detector.n_pixels
            rows.append(
                {
                    "detector": name,
                    "pairs": pixels * plan.used_frames // 2,
                    "read": loads.fetched_by_load / 2 * pixels,
                    "written": 8 * plan.n_bins * pixels,  # by the code: a double a bin
                    "least": (2 * plan.used_frames + 8 * plan.n_bins) * pixels,
                    "used_by_load": loads.efficiency[0],
                    "used_by_block": loads.efficiency[1],
                    "sent": 2 * detector.frames * pixels,
                }
            )
    return rows


def predicted(detectors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Estimate what memory, arithmetic and bus would each take for an observation, both detectors, in seconds."""
    total = {key: sum(row[key] for row in detectors) for key in ("pairs", "read", "written", "sent")}
    return [
        {
            "device": name,
            "memory": (total["read"] + total["written"]) / (device.memory * 1e9),
            "arithmetic": PER_PAIR * total["pairs"] / (device.double * 1e12 / 2),
            "bus": total["sent"] / (device.bus * 1e9),
        }
        for name, device in DEVICES.items()
    ]


def markdown(made: list[dict[str, Any]], detectors: list[dict[str, Any]], estimates: list[dict[str, Any]]) -> str:
    """Format the three tables."""
    by_kernel = {name: [row for row in made if row["kernel"] == name] for name in kernels.NAMES}
    cells = [
        [
            f"sm_{row[0]['architecture']} ({NAMES[row[0]['architecture']]})",
            *(f"{r['registers']}, {r['spills']}, {r['occupancy']:.0%}" for r in row),
        ]
        for row in zip(*by_kernel.values(), strict=True)
    ]
    first = table(["registers, bytes spilled, occupancy", *kernels.NAMES], cells)
    cells = [
        [
            row["detector"],
            f"{row['read'] / 1e6:.1f} MB",
            f"{row['written'] / 1e6:.1f} MB",
            f"{(row['read'] + row['written']) / row['least']:.3f}",
            f"{row['used_by_load']:.1%}, {row['used_by_block']:.1%}",
        ]
        for row in detectors
    ]
    header = [
        "calibrate, one observation",
        "read",
        "written",
        "times the least",
        "fetched bytes used, by load, by block",
    ]
    second = table(header, cells)
    cells = [
        [row["device"], *(f"{1e3 * row[key]:.2f} ms" for key in ("memory", "arithmetic", "bus"))] for row in estimates
    ]
    third = table(["ESTIMATE, not measured", "memory alone", "arithmetic alone", "bus alone"], cells)
    return "\n\n".join([first, second, third])


def main() -> None:
    """Compile, count, estimate and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json")
    options = parser.parse_args()
    made, detectors = compiled(), moved()
    estimates = predicted(detectors)
    write_json(options.json, [*made, *detectors, *estimates])
    print(markdown(made, detectors, estimates))


if __name__ == "__main__":
    main()
