"""Settings: their possible values, their names in errors, and that they survive TOML, pickle and hashing."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucal.errors import ConfigError, GpucalError
from gpucal.settings.calibration import PRESETS, Calibration, read_toml
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.options import add_settings, settings_from
from gpucal.settings.rules import OPEN, PRESET_SETTINGS

DEFAULTS: Mapping[str, Any] = {
    "mask": True,
    "linearity": True,
    "dark": True,
    "flat": True,
    "binning": True,
    "bins": {"AIRS-CH0": 30, "FGS1": 360},
    "crop": {"AIRS-CH0": (39, 321), "FGS1": (0, 32)},
    "gain": "divide",
    "reduce": "sum",
    "integration": None,
    "flat_order": "after-cds",
    "bad_pixels": "keep",
    "bad_coefficients": "keep",
    "odd_frames": "error",
    "clip_negatives": False,
    "hot_clip": "cropped",
    "hot_sigma": 5.0,
    "hot_iterations": 5,
    "saturation": 65_535,
    "flat_minimum": 0.0,
    "linearity_tolerance": 0.10,
    "linearity_range": 30_000.0,
    "linearity_max_offset": 10.0,
    "weights": "plain",
    "rows": {"AIRS-CH0": (0, 32), "FGS1": (0, 32)},
    "background_rows": {"AIRS-CH0": (), "FGS1": ()},
    "drop_last_pairs": 0,
    "background": "bin",
    "columns": {"AIRS-CH0": (0, 356), "FGS1": (0, 32)},
    "cosmic_rays": 0.0,
}

OTHER: Mapping[str, Any] = {
    "mask": False,
    "linearity": False,
    "dark": False,
    "flat": False,
    "binning": False,
    "bins": {"AIRS-CH0": 31},
    "crop": {"AIRS-CH0": (0, 356)},
    "gain": "multiply",
    "reduce": "mean",
    "integration": "updated",
    "flat_order": "before-cds",
    "bad_pixels": "nan",
    "bad_coefficients": "benign",
    "odd_frames": "drop",
    "clip_negatives": True,
    "hot_clip": "full-frame",
    "hot_sigma": 5.000000000000001,
    "hot_iterations": 6,
    "saturation": 65_536,
    "flat_minimum": 0.5,
    "linearity_tolerance": 0.2,
    "linearity_range": 30_001.0,
    "linearity_max_offset": 9.0,
    "weights": "variance",
    "rows": {"FGS1": (10, 22)},
    "background_rows": {"AIRS-CH0": ((0, 8), (24, 32))},
    "drop_last_pairs": 1,
    "background": "constant",
    "columns": {"FGS1": (10, 22)},
    "cosmic_rays": 20.0,
}

FLAGS = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]
CHOICES = [name for name, value in DEFAULTS.items() if isinstance(value, str) or value is None]
BY_DETECTOR = [name for name, value in DEFAULTS.items() if isinstance(value, dict)]
FLOATS = [name for name, value in DEFAULTS.items() if isinstance(value, float)]
WHOLE = ["hot_iterations", "saturation", "drop_last_pairs"]

pairs = st.integers(1, 10**6) | st.integers(1, 10**6 - 1).map("{} s".format) | st.just("0.4 s")


@st.composite
def window(draw: st.DrawFn) -> tuple[int, int]:
    first = draw(st.integers(0, 31))
    return first, draw(st.integers(first + 1, 32))


def leaves_an_aperture(chosen: Mapping[str, Any]) -> bool:
    def rows(*windows: tuple[int, int]) -> set[int]:
        return {row for window in windows for row in range(*window)}

    def faintest_fit(rows: tuple[int, int], background: object) -> bool:
        number = int(str(background).partition(":")[2] or 0) if isinstance(background, str) else 0
        return number <= (32 - (rows[1] - rows[0]) or 31)

    windows = {
        name: {**DEFAULTS[name], **chosen.get(name, {})} for name in ("rows", "background_rows", "crop", "columns")
    }
    if any(windows["crop"][name][1] <= windows["columns"][name][0] for name in DETECTORS) or any(
        windows["columns"][name][1] <= windows["crop"][name][0] for name in DETECTORS
    ):
        return False
    both = [(windows["rows"][name], windows["background_rows"][name]) for name in DETECTORS]
    return all(
        faintest_fit(summed, sky) if isinstance(sky, str) else rows(summed) != rows(*sky) for summed, sky in both
    )


names = st.sampled_from(list(DETECTORS))
positive = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
any_settings = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(FLAGS, st.booleans()),
        **{name: st.sampled_from([DEFAULTS[name], OTHER[name]]) for name in CHOICES},
        **dict.fromkeys(FLOATS, positive | st.integers(1, 10**9)),
        "bins": st.dictionaries(names, pairs),
        "crop": st.dictionaries(names, window()),
        "rows": st.dictionaries(names, window()),
        "background_rows": st.dictionaries(
            names, st.lists(window(), max_size=3) | st.integers(1, 33).map("faintest:{}".format)
        ),
        "columns": st.dictionaries(st.just("FGS1"), window()),
        "hot_iterations": st.integers(1, 10**30),
        "saturation": st.integers(1, 65_536),
        "drop_last_pairs": st.integers(0, 10**9),
    },
).filter(leaves_an_aperture)


def refused(error: pytest.ExceptionInfo[ConfigError], *says: str) -> None:
    line = str(error.value)
    assert "\n" not in line
    for text in says:
        assert text in line


def test_defaults() -> None:
    assert Calibration().to_dict() == DEFAULTS


def test_tables_here_cover_every_setting() -> None:
    names = [setting.name for setting in dataclasses.fields(Calibration)]
    assert list(DEFAULTS) == names
    assert list(OTHER) == names
    assert sorted([*FLAGS, *CHOICES, *FLOATS, *WHOLE, *BY_DETECTOR]) == sorted(names)


@pytest.mark.parametrize(
    ("name", "integration"), [("ariel2024", "notebook"), ("ariel2024-update", "updated"), ("ariel2025", "updated")]
)
def test_presets(name: str, integration: str) -> None:
    assert Calibration.preset(name).to_dict() == {**DEFAULTS, "integration": integration}
    assert Calibration.preset(name) is PRESETS[name]
    assert Calibration.from_dict({"preset": name}) == PRESETS[name]


def test_what_presets_decide_is_open_and_all_of_them_decide_it() -> None:
    assert {name for name, value in DEFAULTS.items() if value is None} == OPEN
    assert all(decided.keys() == OPEN for decided in PRESET_SETTINGS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_filling_changes_nothing_that_was_named(name: str) -> None:
    assert Calibration().filled(name) == PRESETS[name]
    for other in PRESETS.values():
        assert other.filled(name) == other
    mine = Calibration(bins={"FGS1": 12}, flat=False).filled(name)
    assert mine == PRESETS[name].replace(bins={"FGS1": 12}, flat=False)
    assert "None" not in mine.to_toml()


def test_open_settings_stay_open_in_toml(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(Calibration(flat=False).to_toml())
    assert Calibration.from_toml(tmp_path / "a.toml") == Calibration(flat=False)
    assert Calibration.from_toml(tmp_path / "a.toml").filled("ariel2025").integration == "updated"


def test_there_are_three_presets() -> None:
    assert list(PRESETS) == ["ariel2024", "ariel2024-update", "ariel2025"]


@pytest.mark.parametrize(
    "name", ["ariel2026", "", "ARIEL2024", None, 3, ["ariel2024"], {"name": "ariel2024"}], ids=repr
)
@pytest.mark.parametrize("way", ["preset", "from_dict"])
def test_unknown_preset(way: str, name: object) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration.preset(name) if way == "preset" else Calibration.from_dict({"preset": name})
    refused(error, "preset", *PRESETS)


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_frozen(name: str) -> None:
    config = Calibration()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, OTHER[name])
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, f"{name}s_misspelt", OTHER[name])
    assert config == Calibration()


def test_bins_are_read_only_and_a_copy() -> None:
    given_bins = {"FGS1": 12}
    config = Calibration(bins=given_bins)
    with pytest.raises(TypeError):
        cast("dict[str, int]", config.bins)["FGS1"] = 13
    given_bins["FGS1"] = 13
    config.to_dict()["bins"]["FGS1"] = 14
    assert dict(config.bins) == {"AIRS-CH0": 30, "FGS1": 12}


WRONG = {
    **{name: [0, 1, 1.0, "true", None, "False", np.True_, []] for name in FLAGS},
    **{name: ["", "SUM", "both", 0, True, ["sum"], "sum\nmean", *[None] * (name not in OPEN)] for name in CHOICES},
    **{name: [0, 0.0, -1.0, math.nan, math.inf, -math.inf, "5", None, True, False, [5.0], 1j] for name in FLOATS},
    **{
        name: [-sys.float_info.min, -1.0, math.nan, math.inf, -math.inf, "0", None, True, False, [0.0], 1j]
        for name in ("flat_minimum", "cosmic_rays")
    },
    "hot_iterations": [0, -1, 5.0, "5", None, True, math.inf],
    "saturation": [0, -1, 65_537, 65_535.0, "65535", None, True, math.nan],
    "drop_last_pairs": [-1, 1.0, "1", None, True, math.nan],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}-{value!r}") for name, values in WRONG.items() for value in values],
)
def test_impossible_values(name: str, value: object) -> None:
    for make in (lambda: Calibration(**{name: value}), lambda: Calibration().replace(**{name: value})):
        with pytest.raises(ConfigError) as error:
            make()
        refused(error, f"{name} = ", "must be")


@pytest.mark.parametrize("name", FLOATS)
def test_number_beyond_any_float(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(**{name: 10**400})
    refused(error, name)


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        30.0,
        "30",
        None,
        True,
        False,
        [30],
        "",
        "s",
        "0 s",
        "0.0 s",
        "-1 s",
        "1e3 s",
        "9999999 s",
        "144 ms",
        "٣ s",
    ],
    ids=repr,
)
@pytest.mark.parametrize("detector", list(DETECTORS))
def test_impossible_pairs(detector: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(bins={detector: value})
    refused(error, "bins", detector, "integer above 0")


@pytest.mark.parametrize("text", ["144 s", "144s", "144.0 s", "0144.000s"])
def test_seconds_of_a_bin_have_one_form(text: str) -> None:
    assert Calibration(bins={"FGS1": text}) == Calibration(bins={"FGS1": "144 s"})


@pytest.mark.parametrize(
    "value", [None, 3, "8:24", [], [8], [8, 24, 30], [24, 8], [8, 8], [-1, 3], [0, 33], [0.0, 3], [True, 3], [[8, 24]]]
)
@pytest.mark.parametrize("name", ["rows", "crop"])
def test_impossible_windows(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(**{name: {"FGS1": value}})
    refused(error, f"{name}: FGS1 = ", "must be [first, stop] with 0 <= first < stop <= 32")
    with pytest.raises(ConfigError) as error:
        Calibration(crop={"AIRS-CH0": [300, 357]})
    refused(error, "crop: AIRS-CH0", "<= 356")


@pytest.mark.parametrize("value", [None, "0:8", [0], [[0, 8], [8]], [[0, 8], [24, 33]], [[0, 8], 24], {"a": 1}])
def test_impossible_background(value: object) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(background_rows={"AIRS-CH0": value})
    refused(error, "background_rows: AIRS-CH0 = ", "must be [first, stop]")


@pytest.mark.parametrize("value", [(0, 355), (1, 356), (39, 321), [8, 24]])
def test_columns_of_a_spectrum_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(columns={"AIRS-CH0": value})
    refused(error, f"columns: AIRS-CH0 = {tuple(value)}: its columns are wavelengths", "use crop, or choose columns of")
    assert Calibration(columns={"AIRS-CH0": (0, 356)}) == Calibration()


@pytest.mark.parametrize(("columns", "crop"), [((0, 10), (10, 32)), ((20, 32), (3, 20))])
def test_columns_outside_the_crop_are_refused(columns: tuple[int, int], crop: tuple[int, int]) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(columns={"FGS1": columns}, crop={"FGS1": crop})
    refused(error, f"columns: FGS1 = {columns}: none of them is in the crop, {crop}; choose others")


def test_rows_that_are_all_background_may_be_so_beside_the_columns() -> None:
    same = {"rows": {"FGS1": (10, 22)}, "background_rows": {"FGS1": (10, 22)}}
    assert Calibration(columns={"FGS1": (10, 22)}, **same).columns["FGS1"] == (10, 22)
    with pytest.raises(ConfigError, match="these are the rows that are summed"):
        Calibration(columns={"FGS1": (10, 22)}, crop={"FGS1": (11, 20)}, **same)


@pytest.mark.parametrize("value", ["", "faintest", "faintest:0", "faintest:6.5", "faintest: 6", "Faintest:6"])
def test_impossible_faintest_rows(value: str) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(background_rows={"AIRS-CH0": value})
    refused(error, f"background_rows: AIRS-CH0 = {value!r}: must be [first, stop]", 'or "faintest:6"')


@pytest.mark.parametrize(
    ("number", "rows", "says"),
    [
        (17, (8, 24), "16 rows are not summed; choose a smaller number"),
        (32, (0, 32), "there are 32 rows, and all are summed; choose a smaller number"),
        (2, (0, 31), "1 rows are not summed"),
    ],
)
def test_more_faintest_rows_than_there_are(number: int, rows: tuple[int, int], says: str) -> None:
    for name in DETECTORS:
        with pytest.raises(ConfigError) as error:
            Calibration(background_rows={name: f"faintest:{number}"}, rows={name: rows})
        refused(error, f"background_rows: {name} = 'faintest:{number}'", says)
        fewer = Calibration(background_rows={name: f"faintest:{number - 1}"}, rows={name: rows})
        assert fewer.background_rows[name] == f"faintest:{number - 1}"
        assert Calibration.from_dict(fewer.to_dict()) == fewer


@pytest.mark.parametrize("value", [[0, 8], (0, 8), [[0, 8]], ((0, 8),)])
def test_one_window_of_background_may_stand_alone(value: Any) -> None:
    assert Calibration(background_rows={"FGS1": value}).background_rows["FGS1"] == ((0, 8),)


@pytest.mark.parametrize(
    ("rows", "background"),
    [([8, 24], [8, 24]), ([8, 24], [[8, 16], [16, 24]]), (None, [[0, 20], [10, 32]]), ([31, 32], [[31, 32], [31, 32]])],
)
def test_rows_that_are_all_background(rows: Any, background: Any) -> None:
    summed = {} if rows is None else {"rows": {"FGS1": rows}}
    with pytest.raises(ConfigError) as error:
        Calibration(background_rows={"FGS1": background}, **summed)
    refused(error, "background_rows: FGS1 = ((", "these are the rows that are summed, so nothing would be left")
    Calibration(background_rows={"FGS1": background}, rows={"FGS1": [8, 25]})
    Calibration(background_rows={"AIRS-CH0": background}, rows={"FGS1": rows or [1, 2], "AIRS-CH0": [7, 24]})


@pytest.mark.parametrize("name", BY_DETECTOR)
@pytest.mark.parametrize("values", [None, 30, "FGS1", [("FGS1", 3)], True], ids=repr)
def test_settings_by_detector_that_are_no_mapping(name: str, values: object) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(**{name: values})
    refused(error, f"{name} = ", "must map")


@pytest.mark.parametrize("name", BY_DETECTOR)
@pytest.mark.parametrize("detector", ["FGS2", "fgs1", "", 1, None], ids=repr)
def test_settings_of_an_unknown_detector(name: str, detector: object) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(**{name: {detector: 3}})
    refused(error, name, repr(detector), *DETECTORS)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("linearty", "linearity"),
        ("saturaton", "saturation"),
        ("bin", "bins"),
        ("Mask", "mask"),
        ("bad-pixels", "bad_pixels"),
    ],
)
def test_unknown_setting_with_a_near_name(name: str, near: str) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration.from_dict({name: True})
    refused(error, repr(name), repr(near))


@pytest.mark.parametrize("name", ["xyzzy", "", "self", "cls", "__class__", "two\nlines"], ids=repr)
def test_unknown_setting(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration.from_dict({name: True})
    refused(error, f"unknown setting {name!r}")


def test_config_error_is_a_gpucal_error_and_a_value_error() -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(hot_sigma=-1)
    assert isinstance(error.value, GpucalError)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("name", FLOATS)
def test_whole_numbers_become_floats(name: str) -> None:
    config = Calibration(**{name: 7})
    assert type(getattr(config, name)) is float
    assert config == Calibration(**{name: 7.0})
    assert config.content_hash == Calibration(**{name: 7.0}).content_hash


@pytest.mark.parametrize(
    ("start", "change", "expected"),
    [
        ({}, {"FGS1": 12}, {"AIRS-CH0": 30, "FGS1": 12}),
        ({"AIRS-CH0": 10}, {"FGS1": 12}, {"AIRS-CH0": 10, "FGS1": 12}),
        ({"FGS1": 12}, {"AIRS-CH0": 10}, {"AIRS-CH0": 10, "FGS1": 12}),
        ({"AIRS-CH0": 10, "FGS1": 12}, {}, {"AIRS-CH0": 10, "FGS1": 12}),
        ({"AIRS-CH0": 10, "FGS1": 12}, {"FGS1": 360}, {"AIRS-CH0": 10, "FGS1": 360}),
    ],
    ids=["onto-defaults", "keeps-airs", "keeps-fgs1", "nothing", "back-to-default"],
)
def test_replace_merges_bins(start: dict[str, int], change: dict[str, int], expected: dict[str, int]) -> None:
    first = Calibration(bins=start)
    assert dict(first.replace(bins=change).bins) == expected
    assert first == Calibration(bins=start)


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_replace_changes_one_setting(name: str) -> None:
    changed = Calibration().replace(**{name: OTHER[name]})
    value = {**DEFAULTS[name], **OTHER[name]} if name in BY_DETECTOR else OTHER[name]
    expected = {**DEFAULTS, name: value}
    assert changed.to_dict() == expected
    assert changed == Calibration(**{name: OTHER[name]})
    assert changed != Calibration()
    assert changed.content_hash != Calibration().content_hash


def test_every_change_has_its_own_hash() -> None:
    hashes = {Calibration(**{name: value}).content_hash for name, value in OTHER.items()}
    assert len(hashes | {Calibration().content_hash}) == len(OTHER) + 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Calibration(bins={}),
        lambda: Calibration(bins={"FGS1": 360, "AIRS-CH0": 30}),
        lambda: Calibration(bins={"AIRS-CH0": 30}),
        lambda: Calibration(hot_sigma=5),
        lambda: Calibration.preset("ariel2024").replace(integration=None),
        lambda: Calibration.from_dict({}),
        lambda: Calibration.from_dict(dict(reversed(list(DEFAULTS.items())))),
        lambda: Calibration.preset("ariel2025").replace(integration=None),
        lambda: Calibration(flat=False).replace(flat=True),
        lambda: pickle.loads(pickle.dumps(Calibration())),
        lambda: copy.deepcopy(Calibration()),
    ],
    ids=[
        "no-bins",
        "all-bins",
        "one-bin",
        "int",
        "preset",
        "dict",
        "reversed",
        "replace",
        "and-back",
        "pickle",
        "copy",
    ],
)
def test_equal_settings_have_equal_hashes(make: Callable[[], Calibration]) -> None:
    config = make()
    assert config == Calibration()
    assert config.content_hash == Calibration().content_hash
    assert hash(config) == hash(Calibration())


@settings(deadline=None)
@given(any_settings)
def test_round_trips(tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, Any]) -> None:
    config = Calibration(**chosen)
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    for back in (
        Calibration.from_toml(path),
        Calibration.from_toml(str(path)),
        Calibration.from_dict(config.to_dict()),
        pickle.loads(pickle.dumps(config)),
        config.replace(),
    ):
        assert back == config
        assert back.content_hash == config.content_hash
    assert {config: 1}[Calibration(**chosen)] == 1


@settings(deadline=None)
@given(any_settings, any_settings)
def test_hashes_tell_settings_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = Calibration(**one), Calibration(**other)
    assert (first == second) == (first.content_hash == second.content_hash)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("\n# nothing\n", {}),
        ("flat = false\n", {"flat": False}),
        ("hot_sigma = 4\n[bins]\nFGS1 = 12\n", {"hot_sigma": 4.0, "bins": {"FGS1": 12}}),
        ('[bins]\n"AIRS-CH0" = 15\n', {"bins": {"AIRS-CH0": 15}}),
        ('preset = "ariel2025"\n', {"integration": "updated"}),
        ('flat = false\npreset = "ariel2025"\n', {"integration": "updated", "flat": False}),
        ('preset = "ariel2025"\nintegration = "notebook"\n', {"integration": "notebook"}),
        ("bins = {FGS1 = 1}\r\n", {"bins": {"FGS1": 1}}),
        ('[bins]\nFGS1 = "144 s"\n', {"bins": {"FGS1": "144 s"}}),
        ("[background_rows]\nFGS1 = [[0, 8], [24, 32]]\n", {"background_rows": {"FGS1": ((0, 8), (24, 32))}}),
    ],
    ids=[
        *("empty", "comment", "flag", "bins", "dashed", "preset", "preset-last", "preset-overruled", "inline"),
        *("seconds", "background"),
    ],
)
def test_toml(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text.encode())
    assert Calibration.from_toml(path) == Calibration(**expected)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"flat = ", "not a TOML file"),
        (b"flat = True", "not a TOML file"),
        (b"flat = false\nflat = true", "not a TOML file"),
        (b"\xff\xfe", "not a TOML file"),
        (b"linearty = true", "'linearity'"),
        (b"[calibration]\nflat = true", "'calibration'"),
        (b"bins = 3", "bins = 3"),
        (b"[bins]\nFGS2 = 3", "'FGS2'"),
        (b"saturation = 65535.0", "saturation = 65535.0"),
        (b"hot_sigma = nan", "hot_sigma = nan"),
        (b"mask = 1", "mask = 1"),
        (b"reduce = 2024-08-14", "reduce = "),
        (b'preset = "best"', "preset = 'best'"),
        (b'preset = ["ariel2024"]', "preset = "),
    ],
    ids=lambda case: repr(case) if isinstance(case, bytes) else "",
)
def test_bad_toml(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        Calibration.from_toml(path)
    refused(error, says)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_toml_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "none.toml"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(ConfigError) as error:
        read_toml(path)
    refused(error, str(path), "; give the path of a TOML file")


@pytest.mark.parametrize(("binning", "expected"), [(True, [15, 360]), (False, [1, 1])])
def test_pairs_per_bin(binning: bool, expected: list[int]) -> None:
    config = Calibration(binning=binning, bins={"AIRS-CH0": 15})
    assert [config.pairs_per_bin(detector, 0.0) for detector in DETECTORS.values()] == expected


def test_seconds_are_the_nearest_number_of_pairs() -> None:
    airs, config = DETECTORS["AIRS-CH0"], Calibration(bins={"AIRS-CH0": "144 s"})
    assert [config.pairs_per_bin(airs, pair_s) for pair_s in (4.8, 4.7, 100.0, 287.0)] == [30, 31, 1, 1]
    assert config.replace(binning=False).pairs_per_bin(airs, 300.0) == 1
    for pair_s in (289.0, 0.0):
        with pytest.raises(ConfigError, match=f"bins: AIRS-CH0 = '144 s': a pair of reads takes {pair_s:g} s; use lon"):
            config.pairs_per_bin(airs, pair_s)


def test_the_crop_is_the_detector_s_or_another() -> None:
    airs = DETECTORS["AIRS-CH0"]
    assert Calibration().cropped(airs) == airs
    assert Calibration(crop={"AIRS-CH0": [40, 50]}).cropped(airs) == dataclasses.replace(airs, crop=(40, 50))


def from_flags(*flags: str) -> Calibration:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return settings_from(parser.parse_args(flags)).filled("ariel2024")


@pytest.mark.parametrize("name", FLAGS)
def test_a_switch_overrules_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.toml"
    option = name.replace("_", "-")
    for written in (True, False):
        path.write_text(f"{name} = {str(written).lower()}\n")
        config = f"--config={path}"
        assert getattr(from_flags(config), name) is written
        assert getattr(from_flags(config, f"--{option}"), name) is True
        assert getattr(from_flags(config, f"--no-{option}"), name) is False
        assert getattr(from_flags(config, f"--no-{option}", f"--{option}"), name) is True


@pytest.mark.parametrize(
    ("flags", "pairs"),
    [
        ([], [1, 1]),
        (["--bin=AIRS-CH0=30"], [30, 60]),
        (["--bin=FGS1=12", "--bin=AIRS-CH0=5"], [5, 12]),
        (["--bin=FGS1=none"], [7, 1]),
        (["--binning"], [7, 60]),
        (["--no-binning"], [1, 1]),
    ],
    ids=str,
)
def test_bins_by_flag_are_bins(tmp_path: Path, flags: list[str], pairs: list[int]) -> None:
    """A --bin switches binning on, even where the file says binning = false."""
    path = tmp_path / "a.toml"
    path.write_text('binning = false\n[bins]\nFGS1 = 60\n"AIRS-CH0" = 7\n')
    config = from_flags(f"--config={path}", *flags)
    assert [config.pairs_per_bin(detector, 0.0) for detector in DETECTORS.values()] == pairs


@pytest.mark.parametrize("flags", [("--no-binning", "--bin=FGS1=12"), ("--bin=FGS1=12", "--no-binning")], ids=str)
def test_bins_and_no_bins_are_refused(flags: tuple[str, ...]) -> None:
    """A user who wants bins of one detector alone may write either."""
    with pytest.raises(ConfigError, match=r"--no-binning and --bin: one or the other; .*--bin FGS1=none"):
        from_flags(*flags)


def test_numbers_of_numpy_are_numbers() -> None:
    config = Calibration(
        bins={"AIRS-CH0": np.int64(5), "FGS1": "none"},
        rows={"FGS1": (np.int32(8), np.uint8(24))},
        background_rows={"AIRS-CH0": (np.int64(0), np.int64(8))},
        hot_sigma=np.float32(4.0),
        saturation=np.uint16(60_000),
    )
    plain = Calibration(
        bins={"AIRS-CH0": 5, "FGS1": 1},
        rows={"FGS1": (8, 24)},
        background_rows={"AIRS-CH0": ((0, 8),)},
        hot_sigma=4.0,
        saturation=60_000,
    )
    assert (config, config.content_hash, config.to_toml()) == (plain, plain.content_hash, plain.to_toml())
    for wrong in (np.float64(5.0), np.bool_(True), True, np.int64(0), np.array([3, 4])):
        with pytest.raises(ConfigError, match=r"bins: FGS1 = .*must be an integer above 0"):
            Calibration(bins={"FGS1": wrong})


def test_a_file_is_judged_with_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[background_rows]\nFGS1 = [[0, 32]]\n")
    assert from_flags(f"--config={path}", "--rows=FGS1=8:24").rows["FGS1"] == (8, 24)
    with pytest.raises(ConfigError, match="these are the rows that are summed"):
        from_flags(f"--config={path}")
    path.write_text("rows = 3\n")
    with pytest.raises(ConfigError, match="rows = 3: must map a detector"):
        from_flags(f"--config={path}", "--rows=FGS1=8:24")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_by_flag(name: str) -> None:
    assert from_flags(f"--preset={name}") == PRESETS[name]


def test_flags_are_light() -> None:
    script = "import sys, gpucal.settings.options\n"
    script += "print(*{'numpy', 'gpucal.settings.calibration', 'pyarrow', 'difflib'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"
