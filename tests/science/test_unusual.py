"""What needs a look: numbers far from the set's, and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpucal.science.unusual import CHECKS, FAR, FEWEST, far_above, limits_of, unusual

NOTHING = float("nan")


def a_set(n: int = 12, **changes: float) -> dict[int, dict[str, float]]:
    """Numbers of a quiet set that differ a little, and changes of the first item."""
    rng = np.random.default_rng(4)
    items = {
        at: {
            "white_flux": 1e8,
            "excess": 1.5 + 0.2 * rng.standard_normal(),
            "excess_by_wavelength_p50": 1.0 + 0.05 * rng.standard_normal(),
            "excess_by_wavelength_p95": 1.3 + 0.1 * rng.standard_normal(),
            "scatter_ppm": 60.0 + 20.0 * rng.random(),
            "drift_ppm": 30.0 * rng.standard_normal(),
            "trace_flags": float(rng.poisson(12)),
            "trace_flags_SATURATED": 0.0,
            "nan_columns": 0.0,
            "negative_share": 0.3 + 0.01 * rng.standard_normal(),
            "trace_row": 16.0 + 0.01 * rng.standard_normal(),
            "trace_row_drift": 0.001 * rng.standard_normal(),
            "trace_column": 15.0 + 0.01 * rng.standard_normal(),
            "trace_column_drift": 0.001 * rng.standard_normal(),
        }
        for at in range(n)
    }
    items[0] |= changes
    return items


@pytest.mark.parametrize("n", [0, 1, 5, 12, 300])
def test_a_quiet_set_needs_none(n: int) -> None:
    if n:
        assert unusual(a_set(n)) == {}
    else:
        assert unusual({}) == {}


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("excess", 8.0),
        ("excess_by_wavelength_p50", 2.0),
        ("excess_by_wavelength_p95", 4.0),
        ("drift_ppm", 3000.0),
        ("drift_ppm", -3000.0),
        ("trace_flags_SATURATED", 6.0),
        ("trace_flags", 60.0),
        ("nan_columns", 2.0),
        ("negative_share", 0.5),
        ("trace_row", 15.0),
        ("trace_row", 17.5),
        ("trace_column", 12.0),
        ("trace_row_drift", -0.2),
        ("trace_column_drift", 0.3),
    ],
)
def test_what_is_far_from_the_set_is_found(number: str, value: float) -> None:
    found = unusual(a_set(**{number: value}))
    assert [*found] == [0]
    (reason,) = found[0]
    assert reason.number == number
    assert reason.score > 1
    assert reason.says
    assert reason.look
    assert "{" not in reason.says


def test_every_check_is_tried_above() -> None:
    tried = test_what_is_far_from_the_set_is_found.pytestmark[0].args[1]
    assert {number for number, _ in tried} == {check.number for check in CHECKS} - {"scatter_ppm"}


@pytest.mark.parametrize("changes", [{"excess": 0.2}, {"nan_columns": 1.0}, {"trace_flags": 0.0}, {"excess": NOTHING}])
def test_what_is_better_or_hardly_different_or_not_known_is_not(changes: dict[str, float]) -> None:
    assert unusual(a_set(**changes)) == {}


@pytest.mark.parametrize("faint", [1.0, 0.05])
def test_scatter_is_compared_where_errors_are_not_known(faint: float) -> None:
    """As in folders of 0.1. A faint star scatters more, and photons explain it."""
    unknown = {of.number: NOTHING for of in CHECKS if of.number.startswith("excess")}
    items = {at: of | unknown for at, of in a_set().items()}
    items[0] |= {"white_flux": 1e8 * faint, "scatter_ppm": 130.0 / math.sqrt(faint)}
    assert unusual(items) == {}
    items[0]["scatter_ppm"] *= 5.0
    assert [reason.number for reason in unusual(items)[0]] == ["scatter_ppm"]
    items[0]["excess"] = 1.5
    assert unusual(items) == {}


def test_few_observations_are_no_set() -> None:
    assert unusual(a_set(FEWEST - 1, excess=50.0)) == {}
    assert [*unusual(a_set(FEWEST, excess=50.0))] == [0]


def test_an_item_without_light_comes_first_in_any_set() -> None:
    assert [reason.number for reason in unusual(a_set(1, white_flux=NOTHING))[0]] == ["white_flux"]
    found = unusual(a_set(12, white_flux=NOTHING, excess=50.0))
    assert [reason.number for reason in found[0]] == ["white_flux", "excess"]


def test_the_gravest_is_first_and_scores_are_distances() -> None:
    found = unusual(a_set(excess=4.0, trace_row=30.0))[0]
    assert [reason.number for reason in found] == ["trace_row", "excess"]
    assert found[0].score == pytest.approx(28.0, rel=0.01)


def test_limits_are_medians_and_scaled_deviations() -> None:
    items = {at: {"excess": float(value)} for at, value in enumerate([1, 2, 3, 4, 100])}
    limits = limits_of(items)
    assert [*limits] == ["excess"]
    assert (limits["excess"].median, limits["excess"].distance) == (3.0, pytest.approx(FAR * 1.4826))
    assert far_above(items, "excess") == pytest.approx(3.0 + FAR * 1.4826)
    assert far_above({at: {"excess": 2.0} for at in range(9)}, "excess") == 3.0
    assert limits_of({at: {"excess": math.inf} for at in range(9)}) == {}
    assert far_above({at: {"excess": math.inf} for at in range(9)}, "excess") is None


def test_a_set_where_all_are_alike_has_a_least_distance() -> None:
    items = {at: {"white_flux": 1.0, "excess": 2.0} for at in range(9)}
    assert unusual(items | {9: {"white_flux": 1.0, "excess": 2.9}}) == {}
    assert [*unusual(items | {9: {"white_flux": 1.0, "excess": 3.1}})] == [9]
