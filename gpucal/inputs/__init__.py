"""A competition folder, read and judged: data set, calibration files, signal files."""
