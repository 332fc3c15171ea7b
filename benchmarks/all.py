"""Run every benchmark and print one table of targets and results at the end. This is `make bench`.

    python benchmarks/all.py [--only steps readers ...]

`quality.py` is excluded because it trains for hours; see its docstring.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import summary

HERE = Path(__file__).parent
EACH = ("steps", "readers", "store", "record", "features", "options", "start_up", "viewer", "control", "gpu")
TABLES = ("steps", "readers", "store", "viewer", "control")
"""Benchmarks that write a table of targets."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=EACH, default=list(EACH))
    told, failed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in parser.parse_args().only:
            print(f"\n== benchmarks/{name}.py", flush=True)
            path = Path(folder) / f"{name}.json"
            command = [sys.executable, "-u", str(HERE / f"{name}.py"), *(["--json", str(path)] if name in TABLES else [])]
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
            elif path.exists():
                told += json.loads(path.read_text())["table"]
    if told:
        print("\n== Targets and results")
        summary(told)
    if failed:
        raise SystemExit(f"these failed: {', '.join(failed)}; see their output above.")


if __name__ == "__main__":
    main()
