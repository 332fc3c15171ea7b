"""The result list: the active filters, one page of features, and a hint if nothing matches. Does not import gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Int

from saev_viz.drawing.charts import number
from saev_viz.html.feature_page import line, missing, shown
from saev_viz.run_view.feature_table import NUMBER, Column, FeatureTable, Query
from saev_viz.run_view.library import View

PAGE = 40
"""Features per page."""

Ranges = Mapping[str, Sequence[float | None]]
"""Column -> minimum and maximum; None: unbounded on that side."""


@dataclass(frozen=True)
class Asked:
    """State of the page's search fields."""

    text: str = ""
    sort: str = "max"
    ascending: bool = False
    box: Ranges | None = None
    """The selection on the map of all features."""
    ranges: Ranges | None = None
    dead: bool = False
    """Include features that never fire."""

    @property
    def query(self) -> Query:
        """The state as a query; two ranges of one column are intersected."""
        both: dict[str, tuple[float, float]] = {}
        for key, (low, high) in [*(self.box or {}).items(), *(self.ranges or {}).items()]:
            before = both.get(key, (-np.inf, np.inf))
            both[key] = max(before[0], -np.inf if low is None else float(low)), min(before[1], np.inf if high is None else float(high))
        return Query(self.text or "", both, self.sort, self.ascending, alive=not self.dead)


def results(view: View, found: Int[np.ndarray, " n"], asked: Asked, at: int = 0) -> str:
    """The active filters, each with a button to clear it, and page `at` of the matches."""
    n_pages = max(1, -(-len(found) // PAGE))
    at = min(max(at, 0), n_pages - 1)
    column = view.table.columns.get(asked.sort)
    lines = "".join(
        line(view, int(feature), shown(asked.sort, float(column.values[feature])) if column else "")
        for feature in found[at * PAGE : (at + 1) * PAGE]
    )
    if not len(found):
        lines = f'<p class="empty">{escape(_nothing(view, asked.text or ""))}</p>'
    count = f"{len(found):,} feature{'' if len(found) == 1 else 's'}" + (f" of {len(view.table):,}" if len(found) < len(view.table) else "")
    why = f"<details class=hint><summary>{escape(column.title)}?</summary>{escape(column.help)}</details>" if column else ""
    return (
        f'{chips(view.table, asked)}<div class="count" role="status">{count}</div>{why}<div class="list">{lines}</div>{_turns(at, n_pages)}'
    )


def _turns(at: int, n_pages: int) -> str:
    if n_pages == 1:
        return ""
    back, on = " disabled" if at == 0 else "", " disabled" if at == n_pages - 1 else ""
    return (
        f'<div class="turns"><button class="small" data-page="{at - 1}" aria-label="previous page of the list"{back}>‹</button>'
        f"<span>page {at + 1} of {n_pages:,}</span>"
        f'<button class="small" data-page="{at + 1}" aria-label="next page of the list"{on}>›</button></div>'
    )


def _nothing(view: View, text: str) -> str:
    asked = text.strip().removeprefix("#")
    if asked.isdigit():
        left_out = f"Feature {asked} exists, but is filtered out or never fires. Press Enter to open it."
        return missing(view, int(asked)) or left_out
    return "No feature matches. Clear a filter above, or search for another word."


def chips(table: FeatureTable, asked: Asked) -> str:
    """The active filters, each with a button to clear it."""
    found: list[tuple[str, str]] = []
    if asked.text and asked.text.strip():
        found.append(("text", f"“{asked.text.strip()}”"))
    if asked.box:
        found.append(("box", "selected on the map: " + ", ".join(_range(table.columns[key], ends) for key, ends in asked.box.items())))
    found += [(f"range {key}", _range(table.columns[key], ends)) for key, ends in (asked.ranges or {}).items() if key in table.columns]
    if asked.dead:
        found.append(("dead", "including features that never fire"))
    if len(found) > 1:
        found.append(("all", "clear all"))
    buttons = "".join(
        f'<button data-clear="{escape(key)}" title="clear this filter"{" class=all" if key == "all" else ""}>{escape(said)} ✕</button>'
        for key, said in found
    )
    return f'<div class="chips">{buttons}</div>'


def _range(column: Column, ends: Sequence[float | None]) -> str:
    (low, high), name = ends, column.title.lower()
    if low is None or high is None:
        return f"{name} at most {number(float(high or 0))}" if low is None else f"{name} at least {number(float(low))}"
    return f"{name} {number(float(low))} to {number(float(high))}"


def choices(table: FeatureTable) -> list[tuple[str, Any]]:
    """Sort options as titles and keys; the last one is the feature number."""
    return [*((column.title, key) for key, column in table.columns.items()), ("Feature number", NUMBER)]


def about(table: FeatureTable, by: str) -> str:
    """The explanation of a column, and its range of values as a hint for filters."""
    column = table.columns.get(by)
    if column is None:
        return ""
    known = column.values[np.isfinite(column.values) & table.alive]
    if not len(known):
        return f'<p class="hint">{escape(column.help)} No feature of this SAE has a value.</p>'
    low, middle, high = (number(float(v)) for v in np.percentile(known, (0, 50, 100)))
    return f'<p class="hint">{escape(column.help)} Range {low} to {high}, median {middle}.</p>'
