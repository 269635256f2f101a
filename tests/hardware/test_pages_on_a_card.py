"""`inflate` and `bins` on a GPU: the tests that the emulator runs them through, damaged frames and pages included."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import test_page_kernels
from card import CardKernel, connected
from launch_pages import binning, inflating

pytestmark = pytest.mark.gpu

# PTX and sanitizers have fixtures of their own, which need no GPU.
TESTS = {
    name
    for name, test in vars(test_page_kernels).items()
    if name.endswith("_by_kernels")
    or (
        name.startswith("test_")
        and callable(test)
        and "built" in test.__code__.co_varnames[: test.__code__.co_argcount]
    )
}
globals().update({name: getattr(test_page_kernels, name) for name in ("by_kernels", *sorted(TESTS))})


@pytest.fixture(scope="module", autouse=True)
def card() -> Iterator[ModuleType]:
    with connected() as cupy:
        yield cupy


@pytest.fixture(scope="module")
def built(card: ModuleType) -> dict[str, object]:
    return {"inflate": inflating(CardKernel("inflate")), "bins": binning(CardKernel("bins"))}


def test_all_of_them_are_here() -> None:
    assert len(TESTS) > 40
    assert {"test_damaged_frames_have_the_same_bytes_and_statuses", "test_many_damaged_pages"} <= TESTS
