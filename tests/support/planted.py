"""Bugs in the CuPy backend's modules, which tests must catch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

import gpucal.backends

# In the order in which they import each other.
MODULES = ("cupy_buffers", "cupy_counts", "cupy_pages", "cupy_gpu", "cupy_")


@contextmanager
def planted(right: str, wrong: str) -> Iterator[dict[str, ModuleType]]:
    """Import the backend's modules afresh, with a text that stands in one of them replaced by another."""
    folder = Path(str(gpucal.backends.__file__)).parent
    texts = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    assert sum(text.count(right) for text in texts.values()) == 1
    modules = {}
    with mock.patch.dict(sys.modules):
        for name, text in texts.items():
            module = sys.modules[f"gpucal.backends.{name}"] = ModuleType(f"gpucal.backends.{name}")
            exec(compile(text.replace(right, wrong), f"planted/{name}.py", "exec"), vars(module))
            modules[name] = module
        yield modules
