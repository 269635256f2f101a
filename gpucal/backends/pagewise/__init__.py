"""From a Parquet file's pages to binned sums, compiled by Numba, without an array of raw counts.

The pipeline does not call it yet: it decodes pages with Polars or pyarrow. Only code that has found Numba imports the
modules of this package. `benchmarks/pages.py` measures it.
"""
