"""Stacks observations, and explains why some cannot be stacked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import Unstackable

__all__ = ["differing", "one_by_one", "stacked"]


def stacked(path: Path, arrays: Iterable[NDArray[Any]], count: int) -> NDArray[Any]:
    """Stack arrays, each held only until it is copied.

    Parameters
    ----------
    path : Path
        The results folder, for the message.
    arrays : iterable of ndarray
        One array per observation, at least one.
    count : int
        The number of arrays.

    Returns
    -------
    ndarray, shape (observation, ...)
        Of a type that can hold all of theirs.

    Raises
    ------
    OutputError
        If they differ in shape.
    """
    stack: NDArray[Any] | None = None
    n = 0  # not enumerate(), which keeps each array until the next one
    for array in arrays:
        if stack is None:
            stack = np.empty((count, *array.shape), array.dtype)
        elif array.shape != stack.shape[1:]:
            raise differing(path, *sorted((array.shape, stack.shape[1:])))
        elif (kind := np.result_type(stack, array)) != stack.dtype:
            stack = stack.astype(kind)
        stack[n] = array
        n += 1  # noqa: SIM113
        del array  # before the next one is read
    assert stack is not None
    return stack


def one_by_one(path: Path) -> str:
    """Return the end of a message: what to do about observations that cannot be stacked."""
    again = f"run `gpucal calibrate DATASET {path}` again with one set of settings and --overwrite"
    return f"read them one by one, or {again}"


def differing(path: Path, first: Sequence[int], other: Sequence[int]) -> Unstackable:
    """Return the error for observations that differ in shape."""
    problem = f"observations differ in shape, such as {tuple(first)} and {tuple(other)}"
    return Unstackable(f"{path}: {problem}; {one_by_one(path)}")
