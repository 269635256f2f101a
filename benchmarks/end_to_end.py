"""From a competition folder to a results folder, in processes of their own, beside the organisers' notebook.

    python benchmarks/end_to_end.py [--data DIR] [--planets 10] [--rounds 3] [--beside NAME=PROGRAM] [--json FILE]

Full-size observations, both detectors, files in the page cache. A round runs every variant, Polars and the notebook
once, so that ratios are taken under the same weather; the table gives medians over rounds. "Cold" is a process for one
planet, imports included; "first ever" the same where Numba has compiled nothing yet; "steady" what each further planet
adds. Polars only reads the columns, without calibrating: the shortest of four times in a fresh process. --beside
"0.1=ENVIRONMENT/bin/gpucal" measures another version too. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import full_size_planets, gpucal, measure, table, write_json

RIVALS = Path(__file__).parent / "rivals"
NOTEBOOK, ADP = RIVALS / "notebook.py", RIVALS / "ariel_data_preprocessing_run.py"
POLARS = RIVALS / "polars_columns.py"

# What a user gets with `pip install gpucal[fast]` and with `pip install gpucal`.
VARIANTS = {
    "gpucal[fast]": {"GPUCAL_READER": "auto", "GPUCAL_BACKEND": "auto"},
    "gpucal, core only": {"GPUCAL_READER": "pyarrow", "GPUCAL_BACKEND": "numpy"},
}


def measure_round(
    data: Path, planets: list[int], out: Path, adp_python: str | None, beside: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Run everything once: seconds for the first planet and for each further one, peak in bytes, stages in seconds."""
    figures: dict[str, dict[str, Any]] = {}
    programs = {name: (gpucal(), environment) for name, environment in VARIANTS.items()}
    for label, environment in VARIANTS.items():
        programs |= {label.replace("gpucal", name): ([program], environment) for name, program in beside.items()}
    for name, (program, environment) in programs.items():
        calibrate = [*program, "calibrate", str(data)]
        one = measure([*calibrate, str(out / name / "1"), "--planet", str(planets[0])], **environment)
        some = ["--planet", *map(str, planets)]
        many = measure([*calibrate, str(out / name / "n"), "--json", *some], **environment)
        further = len(planets) - 1
        figures[name] = {
            "cold": one.seconds,
            "steady": (many.seconds - one.seconds) / further,
            "core_seconds": (many.cpu_seconds - one.cpu_seconds) / further,
            "peak": max(one.peak, many.peak),
            "stages": {stage: s / len(planets) for stage, s in json.loads(many.output)["stages"].items()},
        }
    first = gpucal("calibrate", data, out / "first", "--planet", planets[0])
    figures["gpucal[fast]"]["first_ever"] = measure(first, NUMBA_CACHE_DIR=str(out / "cache")).seconds
    polars = measure([sys.executable, str(POLARS), str(data), "--planet", str(planets[0])])
    report = json.loads(polars.output)
    figures[f"{report['rival']}, reading only"] = {
        "cold": polars.seconds,
        "steady": report["seconds"],
        "peak": polars.peak,
        "stages": {},
    }
    notebook = measure([sys.executable, str(NOTEBOOK), str(data), "--planet", str(planets[0])])
    seconds = json.loads(notebook.output)["seconds"]  # its own clock: imports left out, which favours it
    figures["the notebook"] = {"cold": notebook.seconds, "steady": seconds, "peak": notebook.peak, "stages": {}}
    if adp_python:
        adp = measure([adp_python, str(ADP), str(one_planet(data, planets[0], out))])
        report = json.loads(adp.output.splitlines()[-1])
        peak = report["peak_rss_bytes"]  # of the process that works; it starts others
        figures[f"{report['rival']} (does less)"] = {
            "cold": adp.seconds,
            "steady": report["seconds"],
            "peak": peak,
            "stages": {},
        }
    return figures


def one_planet(data: Path, planet: int, out: Path) -> Path:
    """Make a folder that shows one planet of another."""
    view = out / "one-planet"
    (view / "train").mkdir(parents=True)
    for entry in data.resolve().iterdir():
        if entry.name != "train":
            (view / entry.name).symlink_to(entry)
    (view / "train" / str(planet)).symlink_to(data.resolve() / "train" / str(planet))
    return view


def summarise(rounds: list[dict[str, dict[str, Any]]], megabytes: float) -> list[dict[str, Any]]:
    """Take medians over rounds, and of the ratio to the notebook within each round."""
    rows = []
    first_round = rounds[0]
    for name, first in first_round.items():
        row: dict[str, Any] = {"name": name}
        for key in ("cold", "first_ever", "steady", "core_seconds", "peak"):
            if key in first:
                row[key] = statistics.median(r[name][key] for r in rounds)
        row["stages"] = {
            stage: statistics.median(r[name]["stages"][stage] for r in rounds) for stage in first["stages"]
        }
        row["planets_per_hour"] = 3600 / row["steady"]
        row["megabytes_per_second"] = megabytes / row["steady"]
        row["times_faster"] = statistics.median(r["the notebook"]["steady"] / r[name]["steady"] for r in rounds)
        (reading,) = (other for other in first_round if other.endswith("reading only"))
        row["of_polars"] = statistics.median(r[name]["steady"] / r[reading]["steady"] for r in rounds)
        rows.append(row)
    return rows


def measured(
    data: Path, n_planets: int, rounds: int, adp_python: str | None = None, beside: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Make the data if they are missing, and measure."""
    planets = full_size_planets(data, n_planets)
    files = (data / "train" / str(planets[0])).glob("*_signal_0.parquet")
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    with tempfile.TemporaryDirectory() as out:
        figures = [measure_round(data, planets, Path(out) / str(i), adp_python, beside or {}) for i in range(rounds)]
    return summarise(figures, megabytes)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format the times and, below, the split."""
    header = ["", "cold process, one planet", "each further planet", "core-seconds", "planets an hour", "MB/s"]
    header += ["peak memory", "times the notebook", "of Polars' time"]
    cells = [
        [
            row["name"],
            f"{row['cold']:.2f} s",
            f"{row['steady']:.2f} s",
            f"{row['core_seconds']:.2f}" if "core_seconds" in row else "",
            f"{row['planets_per_hour']:,.0f}",
            f"{row['megabytes_per_second']:.0f}",
            f"{row['peak'] / 1e9:.2f} GB",
            f"{row['times_faster']:.0f}",
            f"{row['of_polars']:.2f}",
        ]
        for row in rows
    ]
    split = [
        f"{row['name']}, seconds a planet summed over threads: "
        + ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in row["stages"].items())
        for row in rows
        if row["stages"]
    ]
    split += [
        f"{row['name']}, first ever, with compiling: {row['first_ever']:.2f} s" for row in rows if "first_ever" in row
    ]
    return "\n".join([table(header, cells), "", *split])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the synthetic data; made if missing, kept")
    parser.add_argument("--planets", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--adp-python", help="Python of an environment that has ariel-data-preprocessing")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=PROGRAM", help="another gpucal")
    parser.add_argument("--json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or Path(scratch) / "data"
        beside = dict(pair.split("=", 1) for pair in options.beside)
        rows = measured(data, options.planets, options.rounds, options.adp_python, beside)
    write_json(options.json, rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
