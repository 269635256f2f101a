"""Products and results folders that two files of tests make and check alike."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from conftest import BINS

import gpucal
from gpucal import Calibration, Dataset
from gpucal.results.export import export

CONFIG = Calibration(bins=BINS, integration="notebook", dark=False, bad_pixels="interpolate")
STEPS = {
    **dict.fromkeys(["adc", "mask", "linearity", "cds", "bin", "flat", "interpolate"], "COMPLETE"),
    "dark": "SKIPPED",
}
NAMES = ("AIRS-CH0", "FGS1")
IDS = [(5, 0), (5, 1)]
FULL = r"cannot be written \(No space left on device\); free space or"


def check_history(history: Mapping[str, Any]) -> None:
    assert history["steps"] == STEPS
    assert Calibration.from_dict(history["settings"]) == CONFIG
    assert history["settings_hash"] == CONFIG.content_hash
    assert len(history["inputs"]) == 64
    assert history["fingerprints"]
    assert all(history["fingerprints"].values())
    assert history["version"] == history["versions"]["gpucal"] == gpucal.__version__
    assert history["versions"]["numpy"] == np.__version__
    assert (history["backend"], bool(history["device"])) == ("numpy", True)
    age = datetime.now(UTC) - datetime.fromisoformat(history["created"])
    assert 0 <= age.total_seconds() < 3600


def folder(dataset: Dataset, out: Path, config: gpucal.Calibration = CONFIG, **options: object) -> Path:
    summary = gpucal.run(dataset, out, config, backend="numpy", **options)
    assert not summary.failed
    return out


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def files(path: Path) -> set[str]:
    """Every file, temporary ones too."""
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}


def done_in(told: str) -> list[tuple[int, int, str]]:
    """The finished items of `gpucal report OUT --json`."""
    done = [one for one in json.loads(told) if one["status"] == "done"]
    return [(one["planet_id"], one["visit"], one["detector"]) for one in done]


def full(_: int) -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_stacks(out: Path) -> Path:
    """Write the files of all light curves as a run of 0.1 did, but for the names of columns."""
    results = gpucal.open_results(out)
    (table,) = export(results, out / "export", "parquet", "light-curves")
    kind = pq.read_schema(table).field("wl_1").type.to_pandas_dtype()
    curves = results.light_curves_with_errors()
    np.save(out / "light-curves.npy", curves.flux.astype(kind))
    np.save(out / "light-curves.errors.npy", curves.error.astype(kind))
    np.save(out / "light-curves.ids.npy", np.array(results.ids, np.int64))
    table.rename(out / table.name)
    table.parent.rmdir()
    return out
