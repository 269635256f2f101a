"""`calibrate` on a GPU: the tests that the emulator runs it through."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import test_kernels
from card import CardKernel, connected
from hostile import ADCS, SMALL, observe
from launch import calibrate, cases
from paged import same_bits

from gpucal.backends import load
from gpucal.settings.calibration import Calibration

pytestmark = pytest.mark.gpu

TESTS = (
    "test_equals_the_reference",
    "test_neither_grid_nor_padding_changes_a_bit",
    "test_saturation_looks_at_used_frames_only",
    "test_a_large_grid_ends",
    "test_equal_reads_differ_by_nothing",
)
globals().update({name: getattr(test_kernels, name) for name in TESTS})


@pytest.fixture(scope="module", autouse=True)
def card() -> Iterator[ModuleType]:
    with connected() as cupy:
        yield cupy


@pytest.fixture(scope="module")
def built(card: ModuleType) -> CardKernel:
    return CardKernel("calibrate")


@pytest.mark.parametrize("case", list(cases())[::2])
def test_the_bits_are_those_of_the_cpu(built: CardKernel, case: str) -> None:
    obs, config = cases()[case]
    plan, counts = obs.plan(config), obs.counts()
    expected = np.empty((plan.n_pixels, plan.n_bins))
    saturated = load("numba").bin_counts(plan, slice(0, plan.n_pixels), counts, expected)
    out, found = calibrate(built, plan, counts)
    assert same_bits(out, expected)
    np.testing.assert_array_equal(found, saturated)


def test_it_is_right_again_and_again(built: CardKernel) -> None:
    obs = observe(SMALL["FGS1"], 2 * 360 * 5 + 9, ADCS["2025"])
    plan = obs.plan(Calibration(bins={"FGS1": 360}, odd_frames="drop"))
    results = {calibrate(built, plan, obs.counts(), grid)[0].tobytes() for grid in [(2, 3), (40, 15), (1, 1)] * 10}
    assert len(results) == 1
