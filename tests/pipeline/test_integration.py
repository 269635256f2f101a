"""The check of integration times: on synthetic data of both years, and where nothing can be told."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gpucal
from gpucal import Calibration
from gpucal.errors import ConfigError, InputError, IntegrationWarning
from gpucal.synthetic.competition import synthesize

BINS = {"AIRS-CH0": 10, "FGS1": 120}


@pytest.fixture(scope="module", params=["2024", "2025"])
def obs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> gpucal.Observation:
    folder = tmp_path_factory.mktemp("raw")
    (planet,) = synthesize(folder, layout=request.param, frames=60)
    return gpucal.open_dataset(folder)[planet]


@pytest.mark.parametrize("change", [{}, {"linearity": False}, {"gain": "multiply"}, {"bad_pixels": "nan"}], ids=str)
def test_updated_times_fit(obs: gpucal.Observation, change: dict[str, object]) -> None:
    found = gpucal.check_integration(obs, Calibration(bins=BINS, integration="updated", **change))
    assert [*found] == ["AIRS-CH0", "FGS1"]
    for check, ratio in zip(found.values(), (46.0, 2.0), strict=True):
        assert check.used == pytest.approx(ratio, rel=1e-12)
        assert check.measured == pytest.approx(ratio, rel=0.02)
        assert 0.0 < check.error < 0.01 * ratio
        assert check.fits


def test_a_preset_that_does_not_fit_is_warned_of(obs: gpucal.Observation) -> None:
    """FGS1 by a factor of 2, AIRS-CH0 by 2 %."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = gpucal.check_integration(obs, Calibration.preset("ariel2024").replace(bins=BINS))
    assert not found["FGS1"].fits
    assert found["FGS1"].used == 1.0
    assert found["AIRS-CH0"].used == pytest.approx(45.0)
    lines = [str(one.message) for one in caught if one.category is IntegrationWarning]
    assert len(lines) == len(caught) == sum(not check.fits for check in found.values())
    pattern = (
        rf"planet {obs.planet} visit 0 FGS1: end reads of bright pixels have (1\.9\d+|2(\.0\d+)?) times the charge of "
        "start reads, but integration = 'notebook' has 1; set integration = 'updated'"
    )
    assert re.fullmatch(pattern, lines[-1])


def test_the_preset_of_the_data_set_decides(obs: gpucal.Observation) -> None:
    settings = Calibration(bins=BINS)
    if obs.dataset.layout.preset == "ariel2025":
        assert all(check.fits for check in gpucal.check_integration(obs, settings).values())
    else:
        with pytest.warns(IntegrationWarning) as caught:
            gpucal.check_integration(obs, settings)
        assert all(str(one.message).endswith("; set integration = 'updated'") for one in caught)


def test_times_that_no_setting_has(tmp_path: Path) -> None:
    """An ADC table with an offset that is not theirs: then neither value fits, and the line says where to look."""
    (planet,) = synthesize(tmp_path, layout="2025", frames=60)
    table = tmp_path / "adc_info.csv"
    table.write_text(table.read_text().replace("-1000", "-600"))
    settings = Calibration(bins=BINS)
    with pytest.warns(IntegrationWarning, match=r"no value of it fits: check axis_info\.parquet and the ADC table"):
        gpucal.check_integration(gpucal.open_dataset(tmp_path)[planet], settings)


def test_without_any_light_nothing_can_be_told(tmp_path: Path) -> None:
    (planet,) = synthesize(tmp_path, layout="2025", frames=60)
    obs = gpucal.open_dataset(tmp_path)[planet]
    path = obs.signal_path("AIRS-CH0")
    table = pq.read_table(path)
    pq.write_table(pa.table({name: np.zeros(len(table), np.uint16) for name in table.column_names}), path)
    with pytest.raises(
        InputError, match=f"planet {planet} visit 0 AIRS-CH0: .* no usable pixel has charge in its start"
    ):
        gpucal.check_integration(obs, Calibration(bins=BINS))
    with pytest.raises(ConfigError, match="obs: is an int, must be an Observation"):
        gpucal.check_integration(planet)
