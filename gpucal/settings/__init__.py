"""What is asked for: detectors, calibration settings, their rules and their flags."""
