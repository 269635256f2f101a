"""Ids of items."""

from __future__ import annotations

import pickle

import pytest

from gpucal.settings.ids import ItemId


@pytest.mark.parametrize(
    ("item", "text", "path"),
    [
        ((17, 0, "FGS1"), "planet 17 visit 0 FGS1", "17/0/FGS1"),
        ((4_169_614_766, 12, "AIRS-CH0"), "planet 4169614766 visit 12 AIRS-CH0", "4169614766/12/AIRS-CH0"),
    ],
)
def test_an_item_has_one_text_and_one_path(item: tuple[int, int, str], text: str, path: str) -> None:
    found = ItemId(*item)
    assert (str(found), f"{found}", found.path) == (text, text, path)
    assert found == item
    failed: dict[tuple[int, int, str], int] = {found: 1}
    assert failed[item] == 1  # people look up `results.failed` with plain tuples
    assert pickle.loads(pickle.dumps(found)) == found
