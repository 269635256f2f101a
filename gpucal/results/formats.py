"""The export formats, and the function that writes each; the command line reads this table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["FORMATS"]

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "npy": "gpucal.results.export:write_npy",
        "zarr": "gpucal.results.export:write_zarr",
        "fits": "gpucal.results.export:write_fits",
    }
)
"""Format to module and function. The function takes the `Results` and a path, and returns what it wrote."""
