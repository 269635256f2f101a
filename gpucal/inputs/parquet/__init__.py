"""Parquet files: their footers and pages, judged before anything is decoded."""
