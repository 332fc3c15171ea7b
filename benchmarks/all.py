"""Every benchmark in turn, and at the end one table of what was asked and what was reached. This is `make bench`.

    python benchmarks/all.py [--only steps readers ...]

`quality.py` is left out: it trains for hours; see its own words.
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
"""Those that write a table of what was asked."""


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
        print("\n== What was asked, and what was reached")
        summary(told)
    if failed:
        raise SystemExit(f"these failed: {', '.join(failed)}; what they said stands above.")


if __name__ == "__main__":
    main()
