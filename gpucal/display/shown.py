"""The text and the HTML of an object, made of the same facts, so that a notebook says what a terminal says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

__all__ = ["MOST_CHARACTERS", "MOST_LINES", "Shown", "listed", "shortened"]

MOST_LINES, MOST_CHARACTERS = 8, 800
"""Limits on the text of an object."""

# Characters of a line, at most: eight such lines are still within the limit.
_WIDTH = 96

_CARD = "border:1px solid #8884;border-radius:4px;padding:0.5em 0.8em;display:inline-block;max-width:60em"
_NAME = "text-align:left;vertical-align:top;opacity:0.7;padding:0 1em 0 0"
_VALUE = "text-align:left;overflow-wrap:anywhere"


@dataclass(frozen=True)
class Shown:
    """The facts of an object.

    Parameters
    ----------
    title : str
        Its kind and name.
    facts : mapping of str to str
        What is said of it, a line each; empty values are left out.
    picture : str
        SVG, only for HTML.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    picture: str = ""

    def text(self) -> str:
        """Return at most `MOST_LINES` lines of at most `MOST_CHARACTERS` characters in all."""
        facts = {name: value for name, value in self.facts.items() if value}
        width = max(map(len, facts), default=0)
        lines = [shortened(f"<gpucal {self.title}", _WIDTH)]
        lines += [shortened(f"  {name:<{width}}  {_in_a_line(value)}", _WIDTH) for name, value in facts.items()]
        return "\n".join(lines[:MOST_LINES]) + ">"

    def html(self) -> str:
        """Return a card that needs no style sheet and no network."""
        rows = "".join(
            f'<tr style="background:none"><th style="{_NAME}">{escape(_in_a_line(name))}</th>'
            f'<td style="{_VALUE}">{escape(_in_a_line(value))}</td></tr>'
            for name, value in self.facts.items()
            if value
        )
        table = f'<table style="margin:0.3em 0;border:none">{rows}</table>' if rows else ""
        title = escape(f"gpucal {_in_a_line(self.title)}")
        return f'<div style="{_CARD}"><strong>{title}</strong>{table}{self.picture}</div>'


def shortened(text: str, most: int) -> str:
    """Return a text in one line, without its middle if it is longer than ``most`` characters."""
    line = _in_a_line(text)
    if len(line) <= most:
        return line
    end = most // 3
    return f"{line[: most - end - 3]}...{line[-end:]}"


def listed(names: list[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _in_a_line(text: str) -> str:
    """Escape characters that would end the line, or that no encoding has, and keep the indentation."""
    line = text.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in line)
