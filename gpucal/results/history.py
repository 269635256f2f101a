"""The provenance of all items of a results folder in one text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product

from gpucal.results.reader import Results

__all__ = ["history"]


def history(results: Results, detectors: Sequence[str]) -> str:
    """Return the items' provenance as JSON: ``common`` to all, and for each of ``items`` the fields that differ."""
    items = [(*key, name) for key, name in product(results.ids, detectors)]
    all_ = [results._record((p, v), name)["provenance"] for p, v, name in items]
    common = {name: value for name, value in all_[0].items() if all(other.get(name) == value for other in all_)}
    own = [
        {"planet": p, "visit": v, "detector": name} | {k: value for k, value in one.items() if k not in common}
        for (p, v, name), one in zip(items, all_, strict=True)
    ]
    return json.dumps({"common": common, "items": own})
