"""From a competition folder to a results folder, in processes of their own, beside the organisers' notebook.

    python benchmarks/end_to_end.py [--data DIR] [--planets 10] [--rounds 3] [--json FILE]

Full-size observations, both detectors, files in the page cache. A round runs every variant and the notebook once, so
that ratios are taken under the same weather; the table gives medians over rounds. "Cold" is a process for one planet,
imports included; "steady" what each further planet adds. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import full_size_planets, gpucal, machine, machine_line, measure

NOTEBOOK = Path(__file__).parent / "rivals" / "notebook.py"

# What a user gets with `pip install gpucal[fast]` and with `pip install gpucal`.
VARIANTS = {
    "gpucal[fast]": {"GPUCAL_READER": "auto", "GPUCAL_BACKEND": "auto"},
    "gpucal, core only": {"GPUCAL_READER": "pyarrow", "GPUCAL_BACKEND": "numpy"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the synthetic data; made if missing, kept")
    parser.add_argument("--planets", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or Path(scratch) / "data"
        planets = full_size_planets(data, options.planets)
        rounds = [measure_round(data, planets, Path(scratch) / str(i)) for i in range(options.rounds)]
    rows = summarise(rounds)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows, "rounds": rounds}, indent=1))
    print(markdown(rows))


def measure_round(data: Path, planets: list[int], out: Path) -> dict[str, dict[str, float]]:
    """Run everything once: seconds for the first planet and for each further one, and the peak in bytes."""
    figures = {}
    for name, environment in VARIANTS.items():
        one = measure(gpucal("calibrate", data, out / name / "1", "--planet", planets[0]), **environment)
        many = measure(gpucal("calibrate", data, out / name / "n", "--planet", *planets), **environment)
        steady = (many.seconds - one.seconds) / (len(planets) - 1)
        figures[name] = {"cold": one.seconds, "steady": steady, "peak": max(one.peak, many.peak)}
    notebook = measure([sys.executable, str(NOTEBOOK), str(data), "--planet", str(planets[0])])
    seconds = json.loads(notebook.output)["seconds"]  # its own clock: imports left out, which favours it
    figures["the notebook"] = {"cold": notebook.seconds, "steady": seconds, "peak": notebook.peak}
    return figures


def summarise(rounds: list[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Take medians over rounds, and of the ratio to the notebook within each round."""
    rows: list[dict[str, Any]] = []
    for name in rounds[0]:
        medians = {key: statistics.median(r[name][key] for r in rounds) for key in rounds[0][name]}
        ratio = statistics.median(r["the notebook"]["steady"] / r[name]["steady"] for r in rounds)
        rows.append({"name": name, **medians, "times_faster": ratio})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format the rows, with the machine below them."""
    lines = [
        "| | cold process, one planet | each further planet | planets an hour | peak memory | times the notebook |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        "| {name} | {cold:.2f} s | {steady:.2f} s | {rate:,.0f} | {gb:.2f} GB | {times_faster:.0f} |".format(
            **row, rate=3600 / row["steady"], gb=row["peak"] / 1e9
        )
        for row in rows
    ]
    return "\n".join([*lines, "", machine_line(machine())])


if __name__ == "__main__":
    main()
