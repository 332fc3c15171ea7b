"""Shared by test files: the command line, run for real in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).with_name("uv")

Done = subprocess.CompletedProcess[str]
Saev = Callable[..., Done]
BuildWheel = Callable[..., Path]
Serving = Callable[..., AbstractContextManager[str]]


def environment(**env: str) -> dict[str, str]:
    """For a process of its own, one that takes no part in this one's wandb."""
    own = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    return {**own, "OMP_NUM_THREADS": "1", **env}


def saev(*args: object, path: Path | None = None, cwd: Path | None = None, timeout: float = 240, **env: str) -> Done:
    """Run one `saev` command line; `path` is a folder of installed wheels to see beside ours."""
    variables = environment(**({"PYTHONPATH": str(path)} if path else {}), **env)
    command = [sys.executable, "-m", "saev_core.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=cwd, timeout=timeout, check=False)
