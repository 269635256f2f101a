"""The products that can be exported, the formats of each, and the function that writes it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["ALL_FORMATS", "FORMATS"]

FORMATS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "cubes": MappingProxyType(
            {
                "npy": "gpucal.results.stacks:write_npy",
                "zarr": "gpucal.results.zarr_store:write_zarr",
                "fits": "gpucal.results.export:write_fits",
            }
        ),
        "light-curves": MappingProxyType(
            {name: f"gpucal.results.curve_files:write_{name}" for name in ("npy", "parquet", "fits", "ecsv", "csv")}
        ),
    }
)
"""Product and format to module and function. The function takes the `Results` and a path, and returns what it wrote."""

ALL_FORMATS = tuple(dict.fromkeys(name for formats in FORMATS.values() for name in formats))
"""The formats of any product."""
