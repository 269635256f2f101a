"""Every benchmark, one command: figures as JSON with the machine in it, tables as Markdown, and a picture.

    python benchmarks/run.py OUT [--data DIR] [--rounds 3] [--planets 10]

Takes about ten minutes on two cores. OUT/benchmarks.md has all tables; those in the documentation are among them.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import arithmetic
import end_to_end
import readers
import scaling
from measure import machine, machine_line


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw seconds a planet, end to end, and the times of arithmetic and of reading."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {
        "end to end, s a planet": {row["name"]: row["steady"] for row in results["end_to_end"]},
        "arithmetic, s a planet": {row["way"]: row["seconds"] for row in results["arithmetic"]},
        "decoding (zstd), s a planet": {
            row["way"]: row["seconds"] for row in results["readers"] if row["encoding"] == "dictionary, zstd"
        },
    }
    for axes, (title, bars) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.barh(list(bars), list(bars.values()), color="tab:blue")
        axes.set(title=title, xscale="log")
        axes.invert_yaxis()
        for y, seconds in enumerate(bars.values()):
            axes.text(seconds, y, f" {seconds:.2g}", va="center")
        axes.margins(x=0.25)
    figure.supxlabel(machine_line(results["machine"]), fontsize=6)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the synthetic data; made if missing, kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--planets", type=int, default=10)
    parser.add_argument("--adp-python", help="Python of an environment that has ariel-data-preprocessing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.data or options.out / "data"
    parts = {
        end_to_end: partial(end_to_end.measured, data, options.planets, options.rounds, options.adp_python),
        arithmetic: partial(arithmetic.measured, options.rounds),
        scaling: partial(scaling.measured, data, options.rounds),
        readers: partial(readers.measured, data, options.rounds),
    }
    results: dict[str, Any] = {"machine": machine()}
    tables = []
    for part, measured in parts.items():
        results[part.__name__] = measured()
        tables.append(part.markdown(results[part.__name__]))
        print(tables[-1], end="\n\n", flush=True)
        (options.out / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (options.out / "benchmarks.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    draw(results, options.out / "benchmarks.png")


if __name__ == "__main__":
    main()
