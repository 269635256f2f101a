"""From a Parquet file's pages to binned sums, compiled by Numba, without an array of raw counts.

Only code that has found Numba imports the modules of this package. `benchmarks/pages.py` measures it.
"""
