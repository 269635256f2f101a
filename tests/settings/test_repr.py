"""The repr of settings: what differs from a preset, as Python that makes equal settings."""

from __future__ import annotations

import pytest

from gpucal import Calibration
from gpucal.settings.calibration import PRESETS
from gpucal.settings.detectors import DETECTORS

CASES = {
    "Calibration()": Calibration(),
    "Calibration(dark=False)": Calibration(dark=False),
    "Calibration(bins={'FGS1': '24 s'})": Calibration(bins={"FGS1": "24 s"}),
    "Calibration.preset('ariel2024')": Calibration.preset("ariel2024"),
    "Calibration.preset('ariel2025')": Calibration.preset("ariel2025"),
    "Calibration.preset('ariel2025').replace(bins={'FGS1': '24 s'}, rows={'AIRS-CH0': (8, 24)})": Calibration.preset(
        "ariel2025"
    ).replace(bins={"FGS1": "24 s"}, rows={"AIRS-CH0": (8, 24)}),
    "Calibration.preset('ariel2024').replace(hot_sigma=4.0)": Calibration(integration="notebook", hot_sigma=4.0),
}


@pytest.mark.parametrize(("text", "settings"), CASES.items())
def test_says_what_differs(text: str, settings: Calibration) -> None:
    assert repr(settings) == text
    assert eval(text) == settings


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_python(name: str) -> None:
    assert eval(repr(Calibration.preset(name))) == Calibration.preset(name)


def test_all_changed_is_still_short() -> None:
    windows = {name: tuple((k, k + 1) for k in range(0, 32, 2)) for name in DETECTORS}
    settings = Calibration(
        background_rows=windows,
        rows=dict.fromkeys(DETECTORS, (1, 2)),
        **{name: not value for name, value in Calibration().to_dict().items() if isinstance(value, bool)},
    )
    assert 400 < len(repr(settings)) <= 800
    assert "\n" not in repr(settings)


def test_html_and_summary() -> None:
    settings = Calibration.preset("ariel2025").replace(dark=False, hot_sigma=4.0)
    assert settings.summary == "ariel2025 with dark=False, hot_sigma=4.0"
    html = settings._repr_html_()
    assert "<td" in html
    for part in ("ariel2025", "dark", "False", "hot_sigma", "4.0"):
        assert part in html
    assert "none" in Calibration.preset("ariel2024")._repr_html_()
    assert Calibration().summary == "defaults"
