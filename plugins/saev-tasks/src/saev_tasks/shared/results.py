"""Save a verb's results: `results/<task>.json`, and tables as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saev_core import TaskContext
from saev_core.support.files import replace_file
from saev_core.tasks.task import plain


def keep(cx: TaskContext, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Save a verb's result under its name, keeping those of the other verbs."""
    answer: dict[str, Any] = plain(found)
    cx.run.write_result(cx.name, {**cx.run.result(cx.name), name: answer})
    return answer


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table atomically; non-finite numbers are left empty."""
    text = io.StringIO()
    out = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    out.writeheader()
    for row in rows:
        out.writerow({key: "" if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()})
    replace_file(path, text.getvalue().encode())
    return path
