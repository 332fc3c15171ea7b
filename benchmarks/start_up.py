"""Time of `saev --help` relative to the help of a bare Typer app with as many commands; interleaved runs, medians."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = "import typer\napp = typer.Typer()\n" + "".join(f"@app.command()\ndef c{i}(x: int = 1):\n    'Do.'\n" for i in range(8)) + "app()\n"
LIMIT = 1.5


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "bare.py")
        bare.write_text(BARE)
        commands = {
            "python": [sys.executable, "-c", ""],
            "bare typer": [sys.executable, str(bare), "--help"],
            "saev --help": [sys.executable, "-c", "import sys; from saev_core.cli import main; sys.exit(main(['--help']))"],
        }
        for command in commands.values():
            seconds(command)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(15):
            for name, command in commands.items():
                times[name].append(seconds(command))
    middle = {name: statistics.median(runs) for name, runs in times.items()}
    for name, s in middle.items():
        print(f"{name:<12}{1000 * s:8.0f} ms")
    ratio = middle["saev --help"] / middle["bare typer"]
    print(f"saev --help / bare typer: {ratio:.2f} (at most {LIMIT})")
    return ratio > LIMIT


if __name__ == "__main__":
    sys.exit(main())
