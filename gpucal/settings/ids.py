"""Ids of items, and of planets and visits: whatever has the value of an integer means that integer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from numbers import Integral, Real
from typing import Any, NamedTuple, SupportsInt, cast

__all__ = ["ItemId", "as_id", "ids_in", "why_no_id"]

# Ids have up to 10 digits. The limit keeps the power of a text such as 1e999999 from being computed.
_MOST_DIGITS = 18


class ItemId(NamedTuple):
    """The id of an item, a detector's reads of one visit of one planet, which is calibrated and stored as one.

    Its text is what messages call it, such as ``planet 17 visit 0 FGS1``.
    """

    planet: int
    visit: int
    detector: str

    def __str__(self) -> str:
        return f"planet {self.planet} visit {self.visit} {self.detector}"

    @property
    def path(self) -> str:
        """The path of its files in a results folder, without their endings, such as ``17/0/FGS1``."""
        return f"{self.planet}/{self.visit}/{self.detector}"


def as_id(value: object) -> int | None:
    """Return the id that a value means, such as 1103775 for 1103775, 1103775.0, "1103775" or "1103775.0".

    Parameters
    ----------
    value : object
        A number of Python, NumPy or pandas, or a text.

    Returns
    -------
    int or None
        None if the value is not an integer from 0, or of a type that cannot hold every integer of this size. A float32
        above 2**24 is an example: it may have been another id before it was rounded.
    """
    found = None if _is_rounded(value) else _integer(value)
    return found if found is not None and 0 <= found < 10**_MOST_DIGITS else None


def why_no_id(value: object) -> str:
    """Return the reason in brackets why a value means no id; empty if it does, or if it is an unknown text."""
    kind, found = type(value).__name__, _integer(value)
    if isinstance(value, str) or as_id(value) is not None:
        return ""
    if _is_rounded(value):
        return f" ({kind} cannot hold every id of this size; use int64)"
    if found is None:
        return f" (an id is an integer, not {kind})"
    return f" (an id is above 0; it may have been too large for {kind}; use int64)" if kind != "int" else ""


def ids_in(values: object) -> list[Any]:
    """Return the ids of a collection, or of a text, with commas between them, or the only one."""
    if isinstance(values, str):
        return [one.strip() for one in values.split(",") if one.strip()] or [values]
    return [values] if isinstance(values, bytes) or not isinstance(values, Iterable) else [*values]


def _integer(value: object) -> int | None:
    """Return the integer that a text or number is equal to."""
    if isinstance(value, str):
        text = value.strip()
        try:
            # Python parses 1_7 and the digits of other scripts as numbers; in a table they mean something else.
            value = Decimal(text) if text.isascii() and "_" not in text else None
        except InvalidOperation:
            return None
    if isinstance(value, Decimal):
        is_small = value.is_finite() and value.adjusted() < _MOST_DIGITS
        return int(value) if is_small and value == int(value) else None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    if isinstance(value, Integral):
        return int(value)
    return (
        int(cast("SupportsInt", value)) if math.isfinite(value) and value == int(cast("SupportsInt", value)) else None
    )


def _is_rounded(value: object) -> bool:
    """Tell whether a floating-point number is so large that its type cannot hold the next integer."""
    if not isinstance(value, Real) or isinstance(value, Integral) or not math.isfinite(value):
        return False
    number: Any = value
    return bool(number + type(number)(1) - number != 1)
