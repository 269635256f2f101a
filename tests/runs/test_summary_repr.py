"""A summary shows itself in a few lines, however much failed."""

from __future__ import annotations

import pytest

from gpucal import Summary

FAILED = {
    f"planet {k} visit 0 FGS1": f"planet {k} visit 0 FGS1: /a/b.parquet: is <damaged>; copy it" for k in range(2_600)
}


@pytest.mark.parametrize(
    "summary",
    [
        Summary(),
        Summary(done=4, seconds=2.0, stages={"open": 1.0, "read": 0.5}, backend="numba"),
        Summary(failed=FAILED, left=3, stopped="time limit", notes=["x" * 3_000]),
    ],
)
def test_short(summary: Summary) -> None:
    text = repr(summary)
    assert text.startswith("<gpucal Summary\n")
    assert len(text.splitlines()) <= 8
    assert len(text) <= 800
    assert f"{summary.done} done" in text
    assert summary._repr_html_().startswith("<div")


def test_says_how_much_failed_and_the_first() -> None:
    text = repr(Summary(failed=FAILED, left=3, stopped="time limit"))
    for part in ("2600 failed, 3 left", "planet 0 visit 0 FGS1", "and 2,599 more", "time limit"):
        assert part in text
    html = Summary(failed=FAILED)._repr_html_()
    assert "&lt;damaged&gt;" in html
    assert "<damaged>" not in html
