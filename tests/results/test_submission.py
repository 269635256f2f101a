"""The competition's submission: in the sample's order, and every mistake one line that names it."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stored import FULL, files, one_line

import gpucal
from gpucal import submission
from gpucal.errors import ConfigError, GpucalError, InputError, OutputError

IDS = [1103775, 7, 4169614766]
COLUMNS = ["planet_id", *(f"{kind}_{k}" for kind in ("wl", "sigma") for k in range(1, 284))]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """As the competition's: a row a planet, all with the same numbers."""
    path = tmp_path / "in" / "sample_submission.csv"
    path.parent.mkdir()
    rows = [f"{planet},{','.join(['0.001'] * 566)}\n" for planet in IDS]
    path.write_text(",".join(COLUMNS) + "\n" + "".join(rows))
    return path


@pytest.fixture
def spectra() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(0.001, 0.02, (3, 283)), rng.uniform(1e-5, 1e-3, (3, 283))


def test_rows_and_columns_are_the_sample_s(sample: Path, tmp_path: Path, spectra: tuple[np.ndarray, ...]) -> None:
    mean, sigma = spectra
    given = [7, "4169614766", 1103775.0]  # in any order, and of any type
    made = submission(given, mean, sigma, sample, tmp_path / "submission.csv")
    read = pd.read_csv(tmp_path / "submission.csv")
    pd.testing.assert_frame_equal(made, read)
    assert [*read.columns] == COLUMNS
    assert read.shape == (3, 567)
    assert read.planet_id.tolist() == IDS
    exact = np.loadtxt(tmp_path / "submission.csv", delimiter=",", skiprows=1)  # pandas rounds, in some versions
    for row, place in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(exact[row, 1:284], mean[place])
        np.testing.assert_array_equal(exact[row, 284:], sigma[place])


@pytest.mark.parametrize("index", [False, True])
def test_a_sample_that_is_read_already(
    sample: Path, tmp_path: Path, spectra: tuple[np.ndarray, ...], index: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = pd.read_csv(sample, index_col="planet_id" if index else None)
    made = submission(IDS, spectra[0].tolist(), 1e-4, table)
    assert [*made.columns] == COLUMNS
    assert (made.iloc[:, 284:] == 1e-4).all(axis=None)
    pd.testing.assert_frame_equal(pd.read_csv("submission.csv"), made)
    assert files(tmp_path) == {"in/sample_submission.csv", "submission.csv"}


def test_nothing_is_written_unless_a_file_is_named(
    sample: Path, tmp_path: Path, spectra: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    submission(IDS, *spectra, sample, None)
    assert files(tmp_path) == {"in/sample_submission.csv"}


def test_columns_in_another_order_keep_their_meaning(sample: Path, spectra: tuple[np.ndarray, ...]) -> None:
    table = pd.read_csv(sample)
    names = ["planet_id", *reversed(COLUMNS[1:])]
    made = submission(IDS, *spectra, table[names], None)
    assert [*made.columns] == names
    np.testing.assert_array_equal(made["wl_7"], spectra[0][:, 6])
    np.testing.assert_array_equal(made["sigma_283"], spectra[1][:, 282])


def changed(values: np.ndarray, at: tuple[int, int], value: float) -> np.ndarray:
    copy = values.copy()
    copy[at] = value
    return copy


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"ids": IDS[:1], "rows": 1}, r"ids: 2 planets \(7, 4169614766\) are in the sample, but missing here; "),
    "one missing": ({"ids": IDS[:2], "rows": 2}, r"ids: planet 4169614766 is in the sample, but missing here; "),
    "unknown": ({"ids": [1103776, *IDS[1:]]}, r"ids: planet 1103776 is not in the sample; did you mean 1103775\?"),
    "two": ({"ids": [98, 99, IDS[0]]}, r"ids: 2 planets \(98, 99\) are not in the sample; leave them out"),
    "far": ({"ids": [99, *IDS[1:]]}, "ids: planet 99 is not in the sample; leave it out"),
    "twice": ({"ids": [7, 7, 1103775]}, "ids: planet 7 is there twice; give one row for a planet"),
    "with visits": ({"ids": [(7, 0), (7, 1), (8, 0)]}, r"ids: \(7, 0\) is not a planet id .*one row for all visits"),
    "no id": ({"ids": [*IDS[:2], "b"]}, "ids: 'b' is not a planet id"),
    "sigma 0": ({"sigma": (2, 6, 0.0)}, r"sigma: 1 of 849 values, such as 0 for planet 4169614766, wavelength 7, must"),
    "sigma below 0": (
        {"sigma": (0, 0, -1e-5)},
        "such as -1e-05 for planet 1103775, wavelength 1, must be finite and above",
    ),
    "sigma NaN": (
        {"sigma": (0, 1, np.nan)},
        "such as nan for planet 1103775, wavelength 2, must be finite and above 0",
    ),
    "mean NaN": (
        {"mean": (1, 1, np.nan)},
        "mean: 1 of 849 values, such as nan for planet 7, wavelength 2, must be finite",
    ),
    "mean infinite": ({"mean": (1, 1, np.inf)}, "such as inf for planet 7"),
    "mean below 0": ({"mean": (1, 1, -0.1)}, "such as -0.1 for planet 7, wavelength 2, must be finite and 0 or above"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(sample: Path, tmp_path: Path, spectra: tuple[np.ndarray, ...], mistake: str) -> None:
    change, problem = MISTAKES[mistake]
    values = dict(zip(("mean", "sigma"), spectra, strict=True))
    for name in values.keys() & change.keys():
        row, column, value = change[name]
        values[name] = changed(values[name], (row, column), value)
    values = {name: array[: change.get("rows", 3)] for name, array in values.items()}
    with pytest.raises(ConfigError, match=f"^.*{problem}") as caught:
        submission(change.get("ids", IDS), values["mean"], values["sigma"], sample, tmp_path / "submission.csv")
    one_line(caught.value)
    assert files(tmp_path) == {"in/sample_submission.csv"}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (
            "mean",
            np.ones((3, 282)),
            r"mean: has shape \(3, 282\), expected \(3, 283\), for 3 planets and 283 wavelengths",
        ),
        ("mean", 0.01, r"mean: has shape \(\), expected \(3, 283\)"),
        ("sigma", np.ones(283), r"sigma: has shape \(283,\), expected \(3, 283\)"),
        ("mean", "deep", "mean: is not an array of numbers"),
        ("sigma", [[1.0], [1.0, 2.0], [1.0]], "sigma: is not an array of numbers"),
        ("sample", 5, "sample: is a int, must be a path or a DataFrame"),
    ],
)
def test_arguments_of_the_wrong_kind(
    sample: Path, spectra: tuple[np.ndarray, ...], name: str, value: object, problem: str
) -> None:
    given = {"mean": spectra[0], "sigma": spectra[1], "sample": sample, name: value}
    with pytest.raises(ConfigError, match=f"^{problem}") as caught:
        submission(IDS, given["mean"], given["sigma"], given["sample"], None)
    one_line(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("planet_id,wl_1\n", "1 wl columns and 0 sigma columns"),
        ("planet_id,wl_1,wl_3,sigma_1,sigma_2\n", "2 wl columns and 2 sigma columns, not numbered alike from 1"),
        ("planet_id,wl_1,sigma_1,note\n", "column note, neither"),
        ("id,wl_1,sigma_1\n", "begins with the column id, not planet_id"),
        ("planet_id,wl_1,sigma_1\n", "sample has no rows"),
        ("planet_id,wl_1,sigma_1\n5,1,1\n5,1,1\n", "planet 5 twice"),
        ("planet_id,wl_1,sigma_1\nWASP,1,1\n", "planet_id 'WASP', not an integer"),
        ("", "is not a CSV table"),
    ],
)
def test_a_sample_that_is_none(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "sample.csv"
    path.write_text(text)
    with pytest.raises(
        InputError, match=f"^{re.escape(str(path))}: .*{problem}.*; give the competition's sample_"
    ) as caught:
        submission([5], [[1.0]], [[1.0]], path, None)
    one_line(caught.value)


def test_a_sample_that_is_missing_and_a_small_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.csv: sample cannot be read \(No such file or directory\); give the"):
        submission([5], [[1.0]], [[1.0]], tmp_path / "no.csv", None)
    (tmp_path / "small.csv").write_text("planet_id,wl_1,sigma_1\n5.0,1,1\n")
    made = submission([5], [[0.5]], 0.25, tmp_path / "small.csv", None)
    assert made.to_dict("records") == [{"planet_id": 5, "wl_1": 0.5, "sigma_1": 0.25}]


def test_a_full_disk_keeps_what_was_there(
    sample: Path, tmp_path: Path, spectra: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "submission.csv").write_text("of before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=FULL):
        submission(IDS, *spectra, sample, tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_text() == "of before"
    assert issubclass(OutputError, GpucalError)
    assert "submission" in gpucal.__all__
