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


@pytest.mark.parametrize("shapes", [[0.0, 0.7, 0.7, 0.7, 0.0], [0.0, 0.1, 0.1, 0.1, 0.0], [1.0, 0.3, 0.3, 0.3, 0.2]])
@pytest.mark.parametrize("unused", [[0, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]])
def test_bins_of_one_shape_tell_nothing(shapes: list[float], unused: list[int]) -> None:
    flux = np.array([[990.0, 1000.0, 1003.0, 998.0, 1010.0]] * 2).T
    flux[unused, 0] = np.nan
    fit = fit_depth(flux, np.array([[3.0, 3.1, 2.9, 3.3, 3.0]] * 2).T, shapes)
    for name in ("depth", "error", "level", "chi2"):
        assert np.isnan(getattr(fit, name)[0])
        assert np.isfinite(getattr(fit, name)[1])
    assert fit.dof.tolist() == [3 - len(unused), 3]
