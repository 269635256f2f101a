"""Observations put side by side: which, what they must have in common, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import OutputError, Unstackable

if TYPE_CHECKING:
    from gpucal.results.reader import Results

__all__ = ["complete", "differing", "history", "one_by_one", "stacked"]


def complete(results: Results) -> list[tuple[int, int]]:
    """Return the complete observations.

    Parameters
    ----------
    results : Results
        The folder.

    Returns
    -------
    list of tuple of int
        Planet and visit.

    Raises
    ------
    OutputError
        If there is none.
    """
    if not results.ids:
        problem = f"no observation is complete, {len(results.failed)} items failed"
        raise OutputError(f"{results.path}: {problem}; run `gpucal calibrate DATASET {results.path}` again")
    return results.ids


def stacked(results: Results, arrays: Iterable[NDArray[Any]], count: int) -> NDArray[Any]:
    """Stack arrays, each held only until it is copied.

    Parameters
    ----------
    results : Results
        The folder they are from.
    arrays : iterable of ndarray
        One an observation.
    count : int
        How many.

    Returns
    -------
    ndarray, shape (observation, ...)
        Of a type that holds all of theirs.

    Raises
    ------
    OutputError
        If no observation is complete, or they differ in shape.
    """
    complete(results)
    stack: NDArray[Any] | None = None
    n = 0  # not enumerate(), which keeps what it gave until it gives the next
    for array in arrays:
        if stack is None:
            stack = np.empty((count, *array.shape), array.dtype)
        elif array.shape != stack.shape[1:]:
            raise differing(results, *sorted((array.shape, stack.shape[1:])))
        elif (kind := np.result_type(stack, array)) != stack.dtype:
            stack = stack.astype(kind)
        stack[n] = array
        n += 1  # noqa: SIM113
        del array  # before the next one is read
    assert stack is not None  # one at least is complete
    return stack


def one_by_one(results: Results) -> str:
    """Say what to do about observations that cannot be stacked.

    Parameters
    ----------
    results : Results
        The folder.

    Returns
    -------
    str
        The end of a message.
    """
    again = f"run `gpucal calibrate DATASET {results.path}` again with one set of settings and --overwrite"
    return f"read them one by one, or {again}"


def differing(results: Results, first: Sequence[int], other: Sequence[int]) -> Unstackable:
    """Say that observations differ in shape.

    Parameters
    ----------
    results : Results
        The folder.
    first, other : sequence of int
        Two of the shapes.

    Returns
    -------
    Unstackable
        To be raised.
    """
    problem = f"observations differ in shape, such as {tuple(first)} and {tuple(other)}"
    return Unstackable(f"{results.path}: {problem}; {one_by_one(results)}")


def history(results: Results, detectors: Sequence[str]) -> str:
    """Put the provenance of all items into JSON, what they have in common once.

    Parameters
    ----------
    results : Results
        The folder.
    detectors : sequence of str
        Which.

    Returns
    -------
    str
        ``common`` to all, and for each of ``items`` what it has of its own.
    """
    items = [(*key, name) for key, name in product(results.ids, detectors)]
    all_ = [results._record((p, v), name)["provenance"] for p, v, name in items]
    common = {name: value for name, value in all_[0].items() if all(other.get(name) == value for other in all_)}
    own = [
        {"planet": p, "visit": v, "detector": name} | {k: value for k, value in one.items() if k not in common}
        for (p, v, name), one in zip(items, all_, strict=True)
    ]
    return json.dumps({"common": common, "items": own})
