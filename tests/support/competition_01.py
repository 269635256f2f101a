"""A small competition folder whose bytes depend on no library, and folders of results that gpucal 0.1.0 made of it.

An input fingerprint is of a file's bytes. Those that pyarrow writes change with its version, these never do: columns
of one PLAIN page, uncompressed, and values by arithmetic. `data/results-0.1.0` holds what 0.1.0 (commit 408be25) wrote
when this file was run with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from compact import BINARY, I32, I64, LIST, STRUCT, Struct, Value, write_struct
from numpy.typing import NDArray

RESULTS = Path(__file__).parents[1] / "data" / "results-0.1.0"
"""`cubes` is by `gpucal calibrate --variance`; `notebook` by Python, which took the times of the 2024 notebook."""

PLANETS = (5, 4_169_614_766)
"""Whole ones; planet 6 lacks its signal files."""

SETTINGS = {"bins": {"AIRS-CH0": 2, "FGS1": 3}, "crop": {"AIRS-CH0": (100, 104), "FGS1": (10, 12)}}

_SHAPES = {"AIRS-CH0": (32, 356), "FGS1": (32, 32)}
_FRAMES = {"AIRS-CH0": 9, "FGS1": 13}  # a last pair is left over, and one read
_TYPES = {"bool": (0, None), "uint16": (1, 12), "float64": (5, None)}  # physical type, converted type


def _parquet(columns: NDArray[np.generic], names: list[str]) -> bytes:
    """Write a column for each row of an array."""
    physical, converted = _TYPES[columns.dtype.name]
    out, chunks = bytearray(b"PAR1"), []
    schema: list[Struct] = [{4: Value(BINARY, b"schema"), 5: Value(I32, len(columns))}]
    for name, values in zip(names, columns, strict=True):
        if physical == 0:
            data = np.packbits(values.astype(bool), bitorder="little").tobytes()
        else:
            data = values.astype("<i4" if physical == 1 else "<f8").tobytes()
        about: Struct = {1: Value(I32, values.size), 2: Value(I32, 0), 3: Value(I32, 3), 4: Value(I32, 3)}
        head = {1: 0, 2: len(data), 3: len(data)}
        page = write_struct({**{n: Value(I32, size) for n, size in head.items()}, 5: Value(STRUCT, about)}) + data
        element: Struct = {1: Value(I32, physical), 3: Value(I32, 0), 4: Value(BINARY, name.encode())}
        if converted is not None:
            element[6] = Value(I32, converted)
        schema.append(element)
        meta: Struct = {
            1: Value(I32, physical),
            2: Value(LIST, [Value(I32, 0), Value(I32, 3)], I32),
            3: Value(LIST, [Value(BINARY, name.encode())], BINARY),
            4: Value(I32, 0),
            5: Value(I64, values.size),
            6: Value(I64, len(page)),
            7: Value(I64, len(page)),
            9: Value(I64, len(out)),
        }
        chunks.append(Value(STRUCT, {2: Value(I64, len(out)), 3: Value(STRUCT, meta)}))
        out += page
    n_rows = columns.shape[1]
    group: Struct = {1: Value(LIST, chunks, STRUCT), 2: Value(I64, len(out) - 4), 3: Value(I64, n_rows)}
    footer = write_struct(
        {
            1: Value(I32, 1),
            2: Value(LIST, [Value(STRUCT, element) for element in schema], STRUCT),
            3: Value(I64, n_rows),
            4: Value(LIST, [Value(STRUCT, group)], STRUCT),
            6: Value(BINARY, b"plain"),
        }
    )
    return bytes(out) + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _write(path: Path, columns: NDArray[np.generic], names: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_parquet(columns, names or [f"column_{i}" for i in range(len(columns))]))


def _noise(size: int, seed: int) -> NDArray[np.int64]:
    """Numbers from 0 to 65535 without a pattern, by integer arithmetic alone."""
    mixed = (np.arange(size, dtype=np.uint64) + np.uint64(1000003 * (seed + 1))) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(48)).astype(np.int64)


def write_competition(folder: Path) -> Path:
    """Write the folder, 2025 layout."""
    for number, planet in enumerate((*PLANETS, 6)):
        for name, (rows, width) in _SHAPES.items():
            seed, home = 10 * number + width, folder / "train" / str(planet)
            frames = home / f"{name}_calibration_0"
            pixels = rows * width
            unit = _noise(pixels, seed).reshape(rows, width) / 65536
            for kind, values in {
                "dark": 0.01 * unit + 5.0 * (unit > 0.999),
                "dead": unit < 0.004,
                "flat": 0.9 + 0.2 * unit,
                "read": 12.0 + unit,
                "linear_corr": np.concatenate(
                    [0.1 * unit, 1.0 + 0.001 * unit, 1e-8 * unit, 1e-11 * unit, -6e-17 * unit, 1e-22 * unit]
                ),
            }.items():
                _write(frames / f"{kind}.parquet", values.T)
            if planet in PLANETS:
                counts = 400 + _noise(pixels * _FRAMES[name], seed + 1).reshape(pixels, -1) // 128
                counts[:, 1::2] += 3000
                _write(home / f"{name}_signal_0.parquet", counts.astype(np.uint16))
    reads = np.arange(16.0)
    axes = {
        "AIRS-CH0-axis0-h": reads / 1000,
        "AIRS-CH0-axis2-um": 4.08 - 0.006875 * np.arange(356.0),
        "AIRS-CH0-integration_time": np.where(reads % 2, 4.5, 0.1),
        "FGS1-axis0-h": reads / 12_000,
    }
    padded = np.full((4, 356), np.nan)
    for row, values in zip(padded, axes.values(), strict=True):
        row[: values.size] = values
    _write(folder / "axis_info.parquet", padded, list(axes))
    columns = ("FGS1_adc_offset", "FGS1_adc_gain", "AIRS-CH0_adc_offset", "AIRS-CH0_adc_gain")
    (folder / "adc_info.csv").write_text(",".join(columns) + "\n-1000.0,0.4369,-1000.0,0.4369\n", encoding="utf-8")
    return folder


if __name__ == "__main__":  # with gpucal 0.1.0, in an empty folder: python .../tests/support/competition_01.py
    import gpucal
    from gpucal.cli.main import main

    write_competition(Path("raw"))
    bins = [f"--bin={name}={pairs}" for name, pairs in SETTINGS["bins"].items()]
    crop = [f"--crop={name}={first}:{stop}" for name, (first, stop) in SETTINGS["crop"].items()]
    odd = "--odd-frames=drop"
    assert main(["calibrate", "raw", "cubes", *bins, *crop, odd, "--variance", "--backend=numpy"]) == 1
    settings = gpucal.Calibration(odd_frames="drop", **SETTINGS)
    summary = gpucal.run(
        gpucal.open_dataset("raw"), "notebook", settings, product="light-curves", backend="numpy", planets=PLANETS
    )
    assert (summary.done, summary.failed) == (4, {}), summary
    sys.stdout.write(f"gpucal {gpucal.__version__}: {summary}\n")
