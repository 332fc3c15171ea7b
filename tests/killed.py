"""A process that is killed just before it renames a folder for the nth time."""

from __future__ import annotations

import signal
import subprocess
import sys

_WATCH = """
import os, signal, sys
left = {nth}
def watch(event, args):
    global left
    if event == "os.rename" and os.path.isdir(args[0]):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""


def killed_before_rename(nth: int, script: str) -> None:
    """Run Python code in a process of its own, and check that it was killed just before its `nth` rename of a folder."""
    done = subprocess.run([sys.executable, "-c", _WATCH.format(nth=nth) + script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
