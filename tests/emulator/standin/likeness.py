"""Whether the stand-in's names and signatures are those of the real CuPy, which imports without a driver."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from . import modules, names

OURS = {"on_current_device", "queue", "ptr", "device_id"}
"""What the stand-in's classes have for itself, and what in CuPy only instances have: it cannot be looked up there."""


def differences() -> list[str]:
    """What real CuPy does not have, or calls otherwise.

    A function may have fewer parameters than the real one: the first of its positional ones, and any keywords.
    """
    for path in modules():
        importlib.import_module(path)
    found = []
    for path, held in names().items():
        package, *inner = path.split(".")
        module = functools.reduce(getattr, inner, importlib.import_module(package))
        for name, ours in held.items():
            if not hasattr(module, name):
                found.append(f"{path} has no {name}")
            else:
                found += [f"{path}.{name}{what}" for what in _differences(ours, getattr(module, name))]
    return found


def _differences(ours: Any, real: Any) -> Iterator[str]:
    if inspect.isclass(ours) and issubclass(ours, Exception):
        if [base.__name__ for base in ours.__mro__] != [base.__name__ for base in real.__mro__]:
            yield f" derives from {real.__mro__}"
    elif inspect.isclass(ours) and ours.__module__ != "numpy":
        for method in vars(ours).keys() - OURS:
            if not method.startswith("_") and not hasattr(real, method):
                yield f".{method} does not exist"
            elif not method.startswith("_") and inspect.isfunction(vars(ours)[method]):
                yield from (f".{method}{what}" for what in _call(vars(ours)[method], getattr(real, method)))
    if inspect.isfunction(ours) or (inspect.isclass(ours) and ours.__module__ == __package__):
        yield from _call(ours, real)


def _call(ours: Callable[..., Any], real: Callable[..., Any]) -> Iterator[str]:
    mine, theirs = _parameters(ours), _parameters(real)
    positional, keywords = ([n for n, only in mine if only is wanted] for wanted in (False, True))
    places = [n for n, only in theirs if not only]
    if positional != places[: len(positional)] or not set(keywords) <= {n for n, _ in theirs}:
        yield f"({', '.join(n for n, _ in mine)}) is called with ({', '.join(n for n, _ in theirs)})"


def _parameters(function: Callable[..., Any]) -> list[tuple[str, bool]]:
    """Names, and whether by keyword only; what Cython compiled tells them in the first line of its help."""
    try:
        known = inspect.signature(function).parameters.values()
        found = [(p.name, p.kind is p.KEYWORD_ONLY) for p in known]
    except ValueError:
        line = re.search(r"\((.*)\)", str(function.__doc__).partition("\n")[0])
        words = [word.partition("=")[0].split()[-1] for word in line[1].split(", ")] if line and line[1] else []
        last = words.index("*") if "*" in words else len(words)
        found = [(word.lstrip("*"), place > last) for place, word in enumerate(words) if word != "*"]
    return [parameter for parameter in found if parameter[0] != "self"]
