"""From a Parquet file's pages to binned sums, compiled by Numba, without an array of raw counts.

Only code that has found Numba imports the modules of this package, but for `statuses` and `leftover`, which do without.
`benchmarks/pages.py` measures it.
"""
