"""Everything a user can ask for: detectors, calibration settings, their rules and their flags."""
