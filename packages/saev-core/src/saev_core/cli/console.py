"""Console output: progress bars on a terminal, plain lines in a log, JSON on request. The only place that configures logging."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from saev_core.support.progress import Meter, silent

EVERY_S = 5.0
"""Seconds between progress lines in a plain log."""

_NOISY = ("transformers", "huggingface_hub", "httpx", "datasets", "timm", "open_clip", "PIL", "matplotlib", "fsspec", "py.warnings")


class Screen:
    """A command's output. `say` and `table` print text, suppressed under --json; `result` prints JSON under --json."""

    def __init__(self, *, as_json: bool = False, debug: bool = False) -> None:
        self.as_json = as_json
        self.debug = debug
        self._bars = sys.stderr.isatty() and not debug
        configure_logging(debug)

    def say(self, text: str) -> None:
        """Print one line."""
        if not self.as_json:
            print(text, flush=True)

    def result(self, data: Any) -> None:
        """The command's result, printed under --json."""
        if self.as_json:
            print(json.dumps(data, indent=1, default=str), flush=True)

    def table(self, rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> None:
        """Print aligned columns; the last one may be long."""
        if self.as_json or not rows:
            return
        cells = [list(map(str, row)) for row in ([header, *rows] if header else rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        for row in cells:
            self.say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())

    def track(self, title: str, total: int, unit: str) -> Meter:
        """A progress bar on a terminal, a line every few seconds elsewhere, nothing under --json."""
        if self._bars:
            return _Bar(title, total, unit)
        return silent(title, total, unit) if self.as_json else _Lines(self, title, total, unit)


def configure_logging(debug: bool) -> None:
    """Send our own messages to stderr as plain lines; messages of other libraries appear only under --debug."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if debug else "saev: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("saev_core").setLevel(logging.DEBUG if debug else logging.WARNING)
    logging.captureWarnings(True)
    if debug:
        return
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Libraries read these when they are imported, which has not happened yet.
    for key, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(key, value)


def duration(seconds: float) -> str:
    """`5 s`, `3 min 20 s` or `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {s:02} s" if minutes else f"{s} s"


def size(n_bytes: float) -> str:
    """`34 MB` or `1.5 GB`: three digits, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:  # what `.3g` rounds to 1000 is written as one of the next unit
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.0f} TB" if n_bytes >= 99.5 else f"{n_bytes:.3g} TB"


def facts_text(facts: dict[str, float]) -> str:
    """`nmse 0.0123  l0 32`"""
    return "  ".join(f"{name} {value:.4g}" for name, value in facts.items())


class _Lines(Meter):
    """Progress as plain lines, for logs and pipes."""

    def __init__(self, screen: Screen, title: str, total: int, unit: str) -> None:
        self._screen, self._title, self._total, self._unit = screen, title, total, unit
        self._done, self._before, self._facts = 0, 0, dict[str, float]()
        self._began = self._last = time.monotonic()

    def skip(self, n: int) -> None:
        self._done, self._before = self._done + n, self._before + n

    def update(self, n: int = 1, **facts: float) -> None:
        self._done += n
        self._facts |= facts
        now = time.monotonic()
        if now - self._last >= EVERY_S:
            self._last = now
            rate = (self._done - self._before) / (now - self._began)
            left = duration((self._total - self._done) / rate) if rate and self._total else "?"
            text = f"{self._title}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.1f}/s, {left} left"
            self._screen.say("  ".join(filter(None, [text, facts_text(self._facts)])))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            seconds = time.monotonic() - self._began
            text = f"{self._title}: {self._done - self._before:,} {self._unit} in {duration(seconds)}"
            text += f", {self._before:,} done before" if self._before else ""
            self._screen.say("  ".join(filter(None, [text, facts_text(self._facts)])))


class _Bar(Meter):
    """Progress as a bar with rate and time left, on stderr."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._total, self._began = total, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}", style="dim"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(title, total=total or None, unit=unit, rate="", facts="")
        self._facts = dict[str, float]()
        self._done = 0

    def skip(self, n: int) -> None:
        # Not an advance: it would distort the estimated time left.
        self._bar.reset(self._task, completed=n)

    def update(self, n: int = 1, **facts: float) -> None:
        self._done += n
        self._facts |= facts
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        self._bar.update(self._task, advance=n, rate=f"{rate:,.0f}/s", facts=facts_text(self._facts))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
