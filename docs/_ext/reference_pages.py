"""The parts of the reference that are made from the code, as Markdown; lines such as `<!-- verbs -->` ask for them."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import getdoc
from typing import TYPE_CHECKING, Any

from gpucal import errors
from gpucal.cli import parser
from gpucal.results.formats import FORMATS
from gpucal.runs.summary import RunFailed
from gpucal.science.plan import DQ, DQ_DESCRIPTIONS
from gpucal.settings.calibration import Calibration
from gpucal.settings.detectors import DETECTORS
from gpucal.settings.rules import ByDetector, Choice, Switch
from gpucal.settings.table import SETTINGS, Setting

if TYPE_CHECKING:
    from sphinx.application import Sphinx

    from gpucal.cli.parser import _Parser


def verbs() -> str:
    """Describe every verb of the command line and its flags."""
    return "\n".join(line for verb in parser.verbs().values() for line in _verb(verb))


def _verb(verb: _Parser) -> Iterator[str]:
    name = verb.prog.removeprefix("gpucal ")
    yield from (f"(verb-{name})=", f"## gpucal {name}", "", verb.description, "")
    yield from ("```text", f"{' '.join(verb.synopsis)} [FLAGS]", "```", "")
    actions = [action for action in verb._actions if not isinstance(action, argparse._HelpAction)]
    arguments = [(f"`{action.metavar}`", action.help) for action in actions if not action.option_strings]
    flags = [
        (_flag(action), action.help) for action in actions if action.option_strings and action.dest not in SETTINGS
    ]
    yield from _table(("argument", "meaning"), arguments)
    yield from _table(("flag", "meaning"), flags)
    if settings := [f"[`{SETTINGS[a.dest].flag}`](settings.md#{a.dest})" for a in actions if a.dest in SETTINGS]:
        yield from (f"Settings, each explained on its [own page](settings.md): {', '.join(settings)}.", "")


def _flag(action: argparse.Action) -> str:
    words = "|".join(map(str, action.choices)) if action.choices else action.metavar
    value = "" if action.nargs == 0 else f" {words or action.dest.upper()}"
    many = " ..." if action.nargs == "+" else ""
    optional = f"[{value.strip()}]" if action.nargs == "?" else value.strip()
    return ", ".join(f"`{name}{' ' if value else ''}{optional}{many}`" for name in action.option_strings)


def settings() -> str:
    """Describe every setting: values, default, effect, and how it is written in Python, in TOML and as a flag."""
    return "\n".join(line for name, row in SETTINGS.items() for line in _setting(name, row))


def _setting(name: str, row: Setting) -> Iterator[str]:
    default = getattr(Calibration(), name)
    value = example(name)
    yield from (f"### {name}", "", row.effect.replace("``", "`"), "")
    shown = "the data set's" if default is None else f"`{_plain(default)!r}`"
    yield from _table(
        ("values", "default", "in Python", "in TOML", "as a flag"),
        [(f"`{row.rule}`", shown, f"`{name}={_plain(value)!r}`", f"`{toml(name, value)}`", f"`{flag(row, value)}`")],
    )


def example(name: str) -> object:
    """Return a value of a setting that is not its default, to show how it is written."""
    row, default = SETTINGS[name], getattr(Calibration(), name)
    match row.rule:
        case ByDetector() as rule:
            detector, _, text = row.example.partition("=")
            changed = [text, re.sub(r"[1-9]", "1", text)]  # an example may be the default
            values: list[Any] = [{detector: rule.read(one)} for one in changed]
        case Choice(words):
            values = [*reversed(words)]
        case Switch():
            values = [not default]
        case _:
            values = [default * 2, default + 1, default - 1]
    return next(value for value in values if _accepted(name, value) not in (default, None))


def _accepted(name: str, value: object) -> object:
    try:
        return getattr(Calibration().replace(**{name: value}), name)
    except errors.ConfigError:
        return None


def toml(name: str, value: object) -> str:
    """Write a setting as a line of TOML."""
    if isinstance(value, Mapping):
        return f"{name} = {{{', '.join(f'{key} = {json.dumps(one)}' for key, one in value.items())}}}"
    return f"{name} = {json.dumps(value)}"


def flag(row: Setting, value: object) -> str:
    """Write a setting as a flag."""
    if isinstance(value, bool):
        return row.flag if value else f"--no-{row.flag.removeprefix('--')}"
    if isinstance(value, Mapping):
        return " ".join(f"{row.flag} {detector}={_text(one)}" for detector, one in value.items())
    return f"{row.flag} {value}"


def _text(value: object) -> str:
    if not isinstance(value, (list, tuple)):
        return str(value)
    windows = value if isinstance(value[0], (list, tuple)) else [value]
    return ",".join(f"{first}:{stop}" for first, stop in windows)


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def exceptions() -> str:
    """List the exceptions, with what each means and which built-in exceptions it is too."""
    found = [getattr(errors, name) for name in errors.__all__] + [RunFailed]
    rows = [(f"{{py:exc}}`{one.__module__}.{one.__name__}`", _first(one), _bases(one)) for one in found]
    return "\n".join(_table(("exception", "meaning", "is also a"), rows))


def _first(thing: object) -> str:
    return (getdoc(thing) or "").partition("\n\n")[0].replace("\n", " ").replace("`", "")


def _bases(thing: type) -> str:
    return ", ".join(
        f"`{base.__name__}`" for base in thing.__mro__[1:] if base not in (object, BaseException, Exception)
    )


def flags() -> str:
    """List the data-quality bits."""
    return "\n".join(
        _table(("bit", "name", "set where the pixel's"), [(str(int(b)), b.name, DQ_DESCRIPTIONS[b]) for b in DQ])
    )


def formats() -> str:
    """List the products and formats of an export."""
    rows = [(f"`{product}`", ", ".join(f"`{name}`" for name in names)) for product, names in FORMATS.items()]
    return "\n".join(_table(("product", "formats"), rows))


def detectors() -> str:
    """List the detectors' facts."""
    rows = [
        (one.name, f"{one.frames:,}", str(one.shape), f"{one.crop[0]} to {one.crop[1] - 1}", str(one.bin_pairs))
        for one in DETECTORS.values()
    ]
    return "\n".join(_table(("detector", "frames", "a frame (spatial, wavelength)", "columns", "pairs a bin"), rows))


def _table(head: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    if not rows:
        return []
    cells = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in cells] + [""]


PARTS: Mapping[str, Callable[[], str]] = {
    made.__name__: made for made in (verbs, settings, exceptions, flags, formats, detectors)
}


def filled(text: str) -> str:
    """Return a page with the parts in place of the lines that ask for them."""
    return re.sub(r"^<!-- (\w+) -->$", lambda match: PARTS[match[1]](), text, flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Fill pages as they are read."""

    def fill(_: object, name: str, source: list[str]) -> None:
        source[0] = filled(source[0])

    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
