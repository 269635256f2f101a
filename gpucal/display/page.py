"""The quality report as one HTML page: escaped text, and arrays that the page's own script unpacks and draws.

``page.html`` beside this module is the page, with ``@@NAME@@`` where its parts go. It loads nothing: its policy allows
only its own style and script, which it names by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Card", "Failure", "Look", "Page", "Scaled", "packed", "render"]

_ALIGNED = 8


@dataclass(frozen=True)
class Scaled:
    """An array that is stored as whole numbers between its least and its largest value; NaN has a number of its own.

    Parameters
    ----------
    values : ndarray
        Any shape.
    bits : int
        8 or 16.
    log : bool
        Store logarithms: equal relative steps. What is not above 0 is then NaN.
    span : tuple of float, optional
        The least and largest value; others are stored as the nearest of them.
    """

    values: NDArray[Any]
    bits: int = 16
    log: bool = False
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Card:
    """A number at the top of the page, what it is, and whether it is ``good``, ``bad`` or neither."""

    value: str
    label: str
    tone: str = ""


@dataclass(frozen=True)
class Look:
    """An observation that needs a look: its place in the table, or None; its name; (what it has, what to do) each."""

    at: int | None
    name: str
    reasons: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Failure:
    """What failed for one cause: the problem, the mend, and the items."""

    problem: str
    mend: str
    items: Sequence[str]


@dataclass(frozen=True)
class Page:
    """What the page says; every text may hold markup, which is escaped.

    Parameters
    ----------
    name : str
        The folder.
    about : str
        A line below its name.
    date : str
        When the page was made.
    cards : sequence of Card
        The numbers at the top.
    looks : sequence of Look
        What needs a look, the gravest first.
    looks_note : str
        A line below these.
    failures : sequence of Failure
        What failed, by cause.
    made : mapping of str to str
        How the results were made.
    command, settings : str
        The command to make them again, and its settings file.
    head, rows : sequence
        The table for browsers without scripts.
    data : str
        What the script draws of the whole set, of `packed`.
    observations : sequence of str
        The same of each observation.
    """

    name: str
    about: str
    date: str
    cards: Sequence[Card]
    looks: Sequence[Look]
    looks_note: str
    failures: Sequence[Failure]
    made: Mapping[str, str]
    command: str
    settings: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: str
    observations: Sequence[str] = field(repr=False)


def packed(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any] | Scaled]) -> str:
    """Pack facts and arrays into a text that the page's script unpacks.

    It is base64 of gzip of: the length of the JSON (uint32), the JSON, and the arrays, each little-endian and aligned.

    Parameters
    ----------
    facts : mapping
        Plain values; NaN becomes null.
    arrays : mapping of str to ndarray or Scaled
        Of uint8, uint16, uint32 or float32; other types become float32.

    Returns
    -------
    str
        ASCII; the same for the same values.
    """
    parts: list[bytes] = []
    listed: list[dict[str, Any]] = []
    at = 0
    for name, array in arrays.items():
        values, how = _stored(array)
        data = values.tobytes()
        listed.append({"name": name, "type": values.dtype.name, "shape": values.shape, "at": at, **how})
        parts.append(data + bytes(-len(data) % _ALIGNED))
        at += len(parts[-1])
    head = json.dumps({"facts": _plain(dict(facts)), "arrays": listed}, separators=(",", ":"), allow_nan=False).encode()
    head += b" " * (-(len(head) + 4) % _ALIGNED)
    raw = len(head).to_bytes(4, "little") + head + b"".join(parts)
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()


def _stored(array: NDArray[Any] | Scaled) -> tuple[NDArray[Any], dict[str, Any]]:
    import numpy as np

    if not isinstance(array, Scaled):
        kind = array.dtype if array.dtype in (np.uint8, np.uint16, np.uint32) else np.dtype("<f4")
        return np.ascontiguousarray(array, kind.newbyteorder("<")), {}
    values, most = np.asarray(array.values, np.float64), 2**array.bits - 2
    with np.errstate(all="ignore"):
        if array.log:
            values = np.log(np.where(values > 0.0, values, np.nan))
        there = np.isfinite(values)
        low, high = array.span or ((values[there].min(), values[there].max()) if there.any() else (0.0, 1.0))
        low, step = float(f"{low:.9g}"), float(f"{(high - low) / most:.9g}") or 1.0
        numbers = np.clip(np.rint((np.where(there, values, low) - low) / step), 0, most)
    numbers[~there] = most + 1
    how = {"low": low, "step": step} | ({"log": True} if array.log else {})
    return numbers.astype("<u2" if array.bits == 16 else np.uint8), how


def _plain(value: object) -> object:
    """Return a value as JSON has it: NaN and infinities are None."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    return value


def render(page: Page) -> Iterator[str]:
    """Yield the page, piece by piece."""
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    (style,), (script,) = (re.findall(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL) for tag in ("style", "script"))
    parts = {
        "POLICY": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        "NAME": _text(page.name),
        "ABOUT": _text(page.about),
        "DATE": _text(page.date),
        "CARDS": "".join(map(_card, page.cards)),
        "LOOKS": _looks(page),
        "FAILURES": "".join(map(_failure, page.failures)) or "<p>Nothing failed.</p>",
        "MADE": "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in page.made.items()),
        "COMMAND": _text(page.command),
        "SETTINGS": _text(page.settings),
        "TABLE": "",
        "DATA": "",
    }
    for piece in re.split(r"(@@[A-Z]+@@)", template):
        name = piece.strip("@")
        if piece == "@@TABLE@@":
            yield from _table(page.head, page.rows)
        elif piece == "@@DATA@@":
            yield from _blocks(page)
        else:
            yield parts[name] if piece.startswith("@@") else piece


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(text: str) -> str:
    """Escape a text; what UTF-8 cannot encode, and control characters, are spelt out."""
    encodable = text.encode("utf-8", "backslashreplace").decode()
    return escape("".join(one if one.isprintable() or one == "\n" else " " for one in encodable))


def _card(card: Card) -> str:
    return f'<li class="card {card.tone}"><b>{_text(card.value)}</b><span>{_text(card.label)}</span></li>'


def _looks(page: Page) -> str:
    items = []
    for look in page.looks:
        named = _text(look.name)
        name = named if look.at is None else f'<button type="button" class="link" data-at="{look.at}">{named}</button>'
        reasons = "".join(f"<li>{_text(says)} <span class='do'>→ {_text(do)}</span></li>" for says, do in look.reasons)
        items.append(f"<li>{name}<ul>{reasons}</ul></li>")
    listed = f'<ol class="looks">{"".join(items)}</ol>' if items else "<p>Nothing.</p>"
    return listed + (f'<p class="note">{_text(page.looks_note)}</p>' if page.looks_note else "")


def _failure(failure: Failure) -> str:
    n = len(failure.items)
    mend = f'<p class="do">→ {_text(failure.mend)}</p>' if failure.mend else ""
    items = "".join(f"<li>{_text(one)}</li>" for one in failure.items)
    opened = " open" if n <= 5 else ""
    return (
        f'<article class="failure"><h3><span class="count">{n:,}</span> {_text(failure.problem)}</h3>{mend}'
        f"<details{opened}><summary>{n:,} item{'s' * (n != 1)}</summary><ul>{items}</ul></details></article>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"<table><thead><tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr></thead><tbody>\n"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n"
    yield "</tbody></table>"


def _blocks(page: Page) -> Iterator[str]:
    """Yield data blocks, which browsers do not run; base64 has no character that could end one."""
    for name, data in (("set", page.data), *((f"o{at}", one) for at, one in enumerate(page.observations))):
        yield f'<script type="application/gzip;base64" id="{name}">{data}</script>\n'
