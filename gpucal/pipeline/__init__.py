"""One observation, or a stream of them, from files to calibrated products."""
