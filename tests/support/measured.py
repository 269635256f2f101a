"""The command line in a process of its own, and the memory it took."""

from __future__ import annotations

import json
import subprocess
import sys

# The process prints its own peak of resident memory: getrusage's starts from that of the process that forked it.
MEASURED = """
import json, pathlib, re, sys
from gpucal.cli.main import main
code = main(sys.argv[1:])
kilobytes = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
print(json.dumps({"code": code, "peak": int(kilobytes) * 1024}))
"""


def measured(*arguments: object) -> dict[str, int]:
    """Run the command line in a process of its own; exit code and peak resident memory in bytes."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    report: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return report
