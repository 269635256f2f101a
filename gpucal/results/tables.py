"""Tables of a results folder, as pandas DataFrames in the competition's names: items, failures, light curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpucal.errors import InputError
from gpucal.settings.ids import ItemId

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Rows", "attributes", "curve_table", "failure_table", "flat", "item_table"]

# Fields of the records that are columns of their own.
_FIELDS = ("seconds", "backend", "version")


class Rows(NamedTuple):
    """The bins of one observation: planet and visit, hours, and light curves with errors, (time, curve)."""

    key: tuple[int, int]
    time: NDArray[np.float64]
    flux: NDArray[np.float64]
    error: NDArray[np.float64]


def item_table(
    done: Mapping[ItemId, Mapping[str, Any]],
    failed: Mapping[ItemId, str],
    elsewhere: Mapping[ItemId, str],
    quality: Mapping[ItemId, Mapping[str, Any]],
) -> pd.DataFrame:
    """Make a row for each item, in order.

    The fields of an item's ``quality`` become columns: a number as it is, and those of a mapping in it by both names,
    such as ``flags_HOT``.
    """
    import pandas as pd

    status = dict.fromkeys(elsewhere, "elsewhere") | dict.fromkeys(done, "done") | dict.fromkeys(failed, "failed")
    items, records = sorted(status), [done.get(item, {}) for item in sorted(status)]
    columns = _keys(items) | {"status": [status[item] for item in items]}
    columns |= {name: [record.get(name) for record in records] for name in _FIELDS}
    columns["seconds"] = pd.array(columns["seconds"], dtype="float64")
    numbers = [flat(quality.get(item)) for item in items]
    for name in dict.fromkeys(name for of in numbers for name in of):
        called = f"quality_{name}" if name in columns else name
        columns[called] = [of.get(name) for of in numbers]
    return pd.DataFrame(columns).infer_objects()


def failure_table(failed: Mapping[ItemId, str]) -> pd.DataFrame:
    """Make a row for each item that failed, with the parts of its line."""
    import pandas as pd

    items = sorted(failed)
    parts = [InputError.parsed(failed[item]) for item in items]
    return pd.DataFrame(
        _keys(items)
        | {
            "problem": [of.problem for of in parts],
            "mend": [of.mend for of in parts],
            "file": [str(of.path or "") for of in parts],
        }
    )


def curve_table(
    names: Sequence[str],
    wavelengths_um: NDArray[np.float64],
    rows: Sequence[Rows],
    kind: np.dtype[Any],
    labels: pd.DataFrame | None,
) -> pd.DataFrame:
    """Make a row for each bin of each observation; see `gpucal.Results.light_curve_table`."""
    import pandas as pd

    bins = [len(of.flux) for of in rows]
    errors = [f"{name}_error" for name in names]
    with np.errstate(over="ignore"):  # a flat near 0 may exceed float32
        values = np.concatenate([np.concatenate([of.flux, of.error], axis=1).astype(kind) for of in rows])
    keys = pd.DataFrame(
        {
            "planet_id": np.repeat(np.array([of.key[0] for of in rows], np.int64), bins),
            "visit": np.repeat(np.array([of.key[1] for of in rows], np.int64), bins),
            "bin": np.concatenate([np.arange(n, dtype=np.int32) for n in bins]),
            "time": np.concatenate([of.time for of in rows]),
        }
    )
    table = pd.concat([keys, pd.DataFrame(values, columns=[*names, *errors], copy=False)], axis=1)
    if labels is not None:
        spectra = labels.rename(columns={name: f"{name}_label" for name in labels if name != "planet_id"})
        table = table.merge(spectra, how="left")
    table.attrs.update(attributes(names, wavelengths_um.tolist()))
    return table


def attributes(names: Sequence[str], wavelengths_um: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Return the ``attrs`` of a table of light curves: units, and wavelengths but where they are NaN.

    They are plain values: pandas compares attributes with ``==``, and writes them to Parquet as JSON.
    """
    curves = [f"{name}{what}" for what in ("", "_error") for name in names]
    return {
        "units": {"time": "h", "wavelengths": "um"} | dict.fromkeys(curves, "electron"),
        "wavelengths": {name: um for name, um in zip(names, wavelengths_um, strict=True) if um == um},
    }


def _keys(items: Sequence[ItemId]) -> dict[str, Any]:
    return {
        "planet_id": np.array([item[0] for item in items], np.int64),
        "visit": np.array([item[1] for item in items], np.int64),
        "detector": [item[2] for item in items],
    }


def flat(quality: object) -> dict[str, Any]:
    """Return the fields of a mapping, and of the mappings in it by both names, such as ``flags_HOT``."""
    return dict(_flat(quality))


def _flat(quality: object, before: str = "") -> Iterator[tuple[str, Any]]:
    """List the fields of a mapping, and of the mappings in it, by their names joined with an underscore."""
    if isinstance(quality, Mapping):
        for name, value in quality.items():
            if isinstance(value, dict):
                yield from _flat(value, f"{before}{name}_")
            else:
                yield f"{before}{name}", value
