"""The provenance of all items of a results folder in one text."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gpucal.results.reader import Results
from gpucal.settings.ids import ItemId

__all__ = ["history"]


def history(results: Results, detectors: Sequence[str]) -> str:
    """Return the items' provenance as JSON: ``common`` to all, and for each of ``items`` the fields that differ."""
    items = [ItemId(*key, name) for key in results.ids for name in detectors]
    all_ = [results._record(item[:2], item.detector)["provenance"] for item in items]
    common = {name: value for name, value in all_[0].items() if all(other.get(name) == value for other in all_)}
    own = [
        item._asdict() | {name: value for name, value in one.items() if name not in common}
        for item, one in zip(items, all_, strict=True)
    ]
    return json.dumps({"common": common, "items": own})
