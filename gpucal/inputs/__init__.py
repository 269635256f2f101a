"""Reading what the competition gives: folders, signal files, calibration frames, ADC tables and axes."""
