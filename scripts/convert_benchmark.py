"""Time `personaplex convert`, and measure its peak memory: `python scripts/convert_benchmark.py MODEL --work DIR`.

Converts MODEL to each of `--bits` in turn, in a process of its own, and prints a row of a Markdown table: seconds on
the clock and of CPU time, the process's peak resident memory, that as a multiple of the largest tensor, and bytes
written. The results are deleted.
`scripts/random_checkpoint.py` makes a MODEL of the real size.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from personaplex.checkpoint.folder import ModelFolder

UNIT = 1 if platform.system() == "Darwin" else 1024
"""Bytes in which the system counts resident memory."""


def measure(model: Path, out: Path, options: list[str]) -> tuple[float, float, int, int]:
    """Seconds, CPU seconds, peak bytes and bytes written of one conversion. Raises SystemExit when it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "personaplex", "convert", str(model), "--out", str(out), *options],
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * UNIT, written


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="a folder with room for the largest result")
    parser.add_argument("--bits", nargs="+", default=["4"], choices=["16", "8", "4", "mixed"])
    arguments = parser.parse_args()
    largest = max(entry.n_bytes for entry in ModelFolder(arguments.model).open_lm().entries.values())
    sys.stdout.write(f"{os.cpu_count()} CPUs, {platform.machine()} {platform.system()}\n\n")
    sys.stdout.write("| bits | seconds | CPU seconds | peak memory, GB | largest tensors | written, GB |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for bits in arguments.bits:
        out = arguments.work / f"converted-{bits}"
        seconds, cpu, peak, written = measure(arguments.model, out, ["--bits", bits])
        shutil.rmtree(out)
        numbers = [f"{seconds:.0f}", f"{cpu:.0f}", f"{peak / 1e9:.2f}", f"{peak / largest:.1f}", f"{written / 1e9:.2f}"]
        sys.stdout.write(f"| {bits} | {' | '.join(numbers)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
