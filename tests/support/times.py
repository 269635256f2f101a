"""How many rounds of what is drawn at random."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("GPUCAL_FUZZ", "1"))
"""How often the rounds of the slow tests are to be had, all of them others."""
