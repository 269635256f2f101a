"""Fits of transits; what they find is compared with the truth in tests/system/test_closure.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpucal.errors import ConfigError
from gpucal.science.transit import fit_depth


@pytest.mark.parametrize("name", ["flux", "error", "shape"])
@pytest.mark.parametrize("wrong", [[1.0, 2.0j, 1.0], np.ones(3, complex), "curve"], ids=repr)
def test_fit_takes_real_numbers(name: str, wrong: object) -> None:
    given: dict[str, Any] = {"flux": np.ones(3), "error": np.ones(3), "shape": [0.0, 1.0, 0.0], name: wrong}
    with pytest.raises(ConfigError, match=f"^{name}: is an? .*, must be an array of real numbers$"):
        fit_depth(**given)
