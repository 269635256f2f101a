"""`examples/inputs.md` is what `tests/support/accepted.py` lists, and every line of that is tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accepted import KINDS, Kind, page

TESTS = Path(__file__).resolve().parents[1]


def test_the_page_is_the_list() -> None:
    """If it is not: ``python tests/support/accepted.py > examples/inputs.md``."""
    assert (TESTS.parent / "examples" / "inputs.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_every_kind_has_its_tests(kind: Kind) -> None:
    assert len(kind.rows) >= 2
    for name in kind.tests:
        file, _, function = name.partition("::")
        assert re.search(rf"^def {function}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_its_sentences_are_short(kind: Kind) -> None:
    for row in kind.rows:
        assert all(len(cell.split()) <= 25 and "|" not in cell for cell in row)
