"""Settings: what they may be, how they are named in errors, and that they survive TOML, pickle and hashing."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucal.config import PRESETS, Calibration, read_toml
from gpucal.detectors import DETECTORS
from gpucal.errors import ConfigError, GpucalError

DEFAULTS: Mapping[str, Any] = {
    "mask": True,
    "linearity": True,
    "dark": True,
    "flat": True,
    "binning": True,
    "bins": {"AIRS-CH0": 30, "FGS1": 360},
    "reduce": "sum",
    "integration": "notebook",
    "bad_pixels": "keep",
    "odd_frames": "error",
    "clip_negatives": False,
    "hot_sigma": 5.0,
    "hot_iterations": 5,
    "saturation": 65_535,
    "linearity_tolerance": 0.10,
    "linearity_range": 30_000.0,
    "linearity_max_offset": 10.0,
}

OTHER: Mapping[str, Any] = {
    "mask": False,
    "linearity": False,
    "dark": False,
    "flat": False,
    "binning": False,
    "bins": {"AIRS-CH0": 31},
    "reduce": "mean",
    "integration": "updated",
    "bad_pixels": "nan",
    "odd_frames": "drop",
    "clip_negatives": True,
    "hot_sigma": 5.000000000000001,
    "hot_iterations": 6,
    "saturation": 65_536,
    "linearity_tolerance": 0.2,
    "linearity_range": 30_001.0,
    "linearity_max_offset": 9.0,
}

FLAGS = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]
CHOICES = ["reduce", "integration", "bad_pixels", "odd_frames"]
FLOATS = [name for name, value in DEFAULTS.items() if isinstance(value, float)]
WHOLE = ["hot_iterations", "saturation"]

pairs = st.integers(1, 10**6)
positive = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
any_settings = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(FLAGS, st.booleans()),
        **{name: st.sampled_from([DEFAULTS[name], OTHER[name]]) for name in CHOICES},
        **dict.fromkeys(FLOATS, positive | st.integers(1, 10**9)),
        "bins": st.dictionaries(st.sampled_from(list(DETECTORS)), pairs),
        "hot_iterations": st.integers(1, 10**30),
        "saturation": st.integers(1, 65_536),
    },
)


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
    assert sorted([*FLAGS, *CHOICES, *FLOATS, *WHOLE, "bins"]) == sorted(names)


@pytest.mark.parametrize(
    ("name", "integration"), [("ariel2024", "notebook"), ("ariel2024-update", "updated"), ("ariel2025", "updated")]
)
def test_presets(name: str, integration: str) -> None:
    assert Calibration.preset(name).to_dict() == {**DEFAULTS, "integration": integration}
    assert Calibration.preset(name) is PRESETS[name]
    assert Calibration.from_dict({"preset": name}) == PRESETS[name]


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
    **{name: ["", "SUM", "both", None, 0, True, ["sum"], "sum\nmean"] for name in CHOICES},
    **{name: [0, 0.0, -1.0, math.nan, math.inf, -math.inf, "5", None, True, False, [5.0], 1j] for name in FLOATS},
    "hot_iterations": [0, -1, 5.0, "5", None, True, math.inf],
    "saturation": [0, -1, 65_537, 65_535.0, "65535", None, True, math.nan],
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


@pytest.mark.parametrize("value", [0, -1, 30.0, "30", None, True, False, [30]], ids=repr)
@pytest.mark.parametrize("detector", list(DETECTORS))
def test_impossible_pairs(detector: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(bins={detector: value})
    refused(error, "bins", detector, "integer above 0")


@pytest.mark.parametrize("bins", [None, 30, "FGS1", [("FGS1", 3)], True], ids=repr)
def test_bins_that_are_no_mapping(bins: object) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(bins=bins)
    refused(error, "bins = ", "must map")


@pytest.mark.parametrize("name", ["FGS2", "fgs1", "", 1, None], ids=repr)
def test_bins_of_an_unknown_detector(name: object) -> None:
    with pytest.raises(ConfigError) as error:
        Calibration(bins={name: 3})
    refused(error, "bins", repr(name), *DETECTORS)


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
    expected = {**DEFAULTS, name: {**DEFAULTS["bins"], **OTHER["bins"]} if name == "bins" else OTHER[name]}
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
        lambda: Calibration.preset("ariel2024"),
        lambda: Calibration.from_dict({}),
        lambda: Calibration.from_dict(dict(reversed(list(DEFAULTS.items())))),
        lambda: Calibration.preset("ariel2025").replace(integration="notebook"),
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
        ('preset = "ariel2025"\nintegration = "notebook"\n', {}),
        ("bins = {FGS1 = 1}\r\n", {"bins": {"FGS1": 1}}),
    ],
    ids=["empty", "comment", "flag", "bins", "dashed", "preset", "preset-last", "preset-overruled", "inline"],
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
    assert [config.pairs_per_bin(detector) for detector in DETECTORS.values()] == expected
