"""What a run holds does not grow with the planets it has done: memory, files, threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import many
import numpy as np
import pyarrow.parquet as pq
from hostile import write_table

PLANETS = 200

# What the process holds, after each 50 planets.
SCRIPT = """
import gc, json, os, sys, threading
sys.path.insert(0, sys.argv[1])
import many
many.use(many.WIDE)
from gpucal.cli.main import main
from gpucal.results import writer

free, ended, held = writer.Store.free, [], []

def counted(self, *key):
    free(self, *key)
    ended.append(key)
    if len(ended) % 100 == 0:
        gc.collect()
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        tasks, files = (os.listdir(f"/proc/self/{of}") for of in ("task", "fd"))
        held.append([resident, len(files), len(tasks), threading.active_count()])

writer.Store.free = counted
code = main(sys.argv[2:])
print(json.dumps([code, held]))
"""


def test_memory_files_and_threads_are_flat(tmp_path: Path) -> None:
    source = many.make(tmp_path / "many", [1], many.WIDE)
    # The rest are links to the first, but for their darks and ADC rows: nothing made of them is what another has.
    table = source / "train_adc_info.csv"
    header, row = table.read_text().splitlines()
    rest = row.partition(",")[2]
    table.write_text("\n".join([header, *(f"{planet},{rest}" for planet in range(1, PLANETS + 1))]) + "\n")
    first = source / "train" / "1"
    darks = {name: pq.read_table(first / f"{name}_calibration" / "dark.parquet") for name in many.WIDE}
    for planet in range(2, PLANETS + 1):
        folder = source / "train" / str(planet)
        for name, dark in darks.items():
            calibration = folder / f"{name}_calibration"
            calibration.mkdir(parents=True)
            (folder / f"{name}_signal.parquet").symlink_to(first / f"{name}_signal.parquet")
            for file in (first / f"{name}_calibration").iterdir():
                if file.stem != "dark":
                    (calibration / file.name).symlink_to(file)
            values = np.stack([column.to_numpy() for column in dark.columns], axis=1)
            write_table(calibration / "dark.parquet", values + 1e-9 * planet)
    command = [sys.executable, "-c", SCRIPT, str(Path(many.__file__).parent)]
    flags = ["--product", "light-curves", "--workers", "2", *many.SETTINGS]
    run = subprocess.run(
        [*command, "calibrate", str(source), str(tmp_path / "out"), *flags],
        env=os.environ | {"GPUCAL_READER": "pyarrow"},
        capture_output=True,
        text=True,
        check=True,
    )
    said, last = run.stdout.splitlines()
    code, held = json.loads(last)
    assert (code, run.stderr, len(held)) == (0, "", PLANETS // 50), run
    assert f"{PLANETS} observations calibrated" in said
    print(held)  # noqa: T201, with -s
    (resident, files, *threads), *later = held
    assert all(after[2:] == threads for after in later), held
    assert all(after[1] <= files + 4 for after in later), held  # what is in flight: a claim, a file that is read
    # A planet's frames alone are 50 kB as float64: 150 planets of them would be 7 MB.
    assert max(after[0] for after in later) - resident < 5e6, held
