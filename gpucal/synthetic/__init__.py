"""Made-up data: competition folders with known truth, a demonstration, a benchmark."""
