"""Parquet files: footers and pages are checked before anything is decoded."""
