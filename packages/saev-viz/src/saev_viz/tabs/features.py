"""Features: search, filter and sort; one feature with its pictures, numbers and notes."""

from __future__ import annotations

import json
import random
import time
from functools import partial
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr
import numpy as np

from saev_core.errors import RunError, SaevError
from saev_viz.app import Viewer, told
from saev_viz.charts import number
from saev_viz.feature_page import head, line, missing, page, shown, strongest
from saev_viz.library import View
from saev_viz.overlay import COLOUR_MAPS
from saev_viz.table import NUMBER, Column, FeatureTable, Query

TITLE = "Features"
PAGE = 40
"""Features listed at once."""

OPACITY = """<label class=opacity>Heat map <input type=range min=0 max=100 value=75 aria-label="opacity of the heat maps"
  oninput="document.body.style.setProperty('--heat', this.value / 100)"></label>"""
KEYS = (
    "<p class=keys><kbd>n</kbd> or <kbd>j</kbd> next, <kbd>p</kbd> or <kbd>k</kbd> previous, <kbd>r</kbd> random, <kbd>/</kbd> search</p>"
)
HELP = """Words are looked for in names, labels and notes; `name:` `label:` `note:` before a word look there alone.
`#123` is a feature's number, `frequency<1%` compares a number."""
NOTE = """<div class=note><label for=saev-note-text>Your notes on this feature</label><textarea id=saev-note-text rows=2
  placeholder="What do you think it means? Kept in the run, and found by the search."></textarea>
  <div><button class=small>Save</button><span role=status></span></div></div>"""

Ranges = dict[str, list[float]]


def build(viewer: Viewer) -> None:
    """A list on the left, the feature on the right."""
    table = viewer.view(viewer.library.first).table
    js = (files("saev_viz") / "panes.js").read_text(encoding="utf-8")
    ranges = gr.JSON({}, visible=False)
    with gr.Row(elem_id="saev-features"):
        with gr.Column(scale=1, min_width=290):
            text = gr.Textbox(label="Search", placeholder="wing   #123   frequency<1%", info=HELP, elem_id="saev-search")
            with gr.Row(equal_height=True):
                sort = gr.Dropdown(_choices(table), value="max", label="Sort by", elem_id="saev-sort", min_width=150)
                ascending = gr.Checkbox(False, label="smallest first", elem_id="saev-ascending", min_width=100)
            with gr.Accordion("Filter by a number", open=False, elem_id="saev-filter"):
                by = gr.Dropdown(_choices(table)[:-1], value="frequency", label="Number", elem_id="saev-by")
                about = gr.HTML(elem_id="saev-about")
                with gr.Row():
                    low = gr.Number(None, label="at least", elem_id="saev-low", min_width=90)
                    high = gr.Number(None, label="at most", elem_id="saev-high", min_width=90)
                add = gr.Button("Filter", size="sm", elem_id="saev-add")
                dead = gr.Checkbox(False, label="also features that never fire", elem_id="saev-dead")
            listed = gr.HTML(js_on_load=js, elem_id="saev-list")
        with gr.Column(scale=3, min_width=320):
            with gr.Row(elem_id="saev-walk"):
                previous = gr.Button("← previous", elem_id="saev-previous", size="sm", min_width=90)
                following = gr.Button("next →", elem_id="saev-next", size="sm", min_width=90)
                chance = gr.Button("random", elem_id="saev-random", size="sm", min_width=90)
                gr.HTML(KEYS, elem_id="saev-keys")
            header = gr.HTML(elem_id="saev-head")
            note = gr.HTML(html_template=NOTE, js_on_load=(files("saev_viz") / "note.js").read_text(encoding="utf-8"), elem_id="saev-note")
            with gr.Row(elem_id="saev-looks", equal_height=True):
                colours = gr.Dropdown(list(COLOUR_MAPS), value="inferno", label="Colours", elem_id="saev-colours", min_width=110)
                end = gr.Dropdown(
                    [("99th percentile", "percentile"), ("largest value", "max")],
                    value="percentile",
                    label="Full colour at",
                    elem_id="saev-end",
                    min_width=140,
                )
                gr.HTML(OPACITY)
            card = gr.HTML(js_on_load=js, elem_id="saev-card")

    def query(text: str | None, sort: str, ascending: bool, box: Ranges | None, ranges: Ranges | None, dead: bool) -> Query:
        both: dict[str, tuple[float, float]] = {}
        for key, (least, most) in [*(box or {}).items(), *(ranges or {}).items()]:
            before = both.get(key, (-np.inf, np.inf))
            both[key] = max(before[0], _end(least, -np.inf)), min(before[1], _end(most, np.inf))
        return Query(text or "", both, sort, ascending, alive=not dead)

    def find(name: str, asked: Query) -> tuple[View, np.ndarray[Any, Any]]:
        view = viewer.view(name)
        try:
            return view, view.table.find(asked, view.notes.all())
        except ValueError as error:
            raise RunError(str(error)) from None

    def search(name: str, *what: Any) -> str:
        view, found = find(name, query(*what))
        return results(view, found, what)

    def turn(event: gr.EventData, name: str, *what: Any) -> str:
        view, found = find(name, query(*what))
        return results(view, found, what, int(event._data["page"]))

    def step(by: int, feature: int | None, name: str, *what: Any) -> tuple[int | None, Any]:
        view, found = find(name, query(*what))
        if not len(found):
            raise RunError("no feature matches: clear a filter first.")
        at = np.flatnonzero(found == feature)
        place = random.randrange(len(found)) if by == 0 else (int(at[0]) + by) % len(found) if len(at) else 0
        before = int(at[0]) // PAGE if len(at) else -1
        return int(found[place]), gr.skip() if place // PAGE == before else results(view, found, what, place // PAGE)

    def show(name: str, feature: int | None, colours: str, end: str) -> tuple[str, str]:
        if feature is None:
            return "", ""
        view = viewer.view(name)
        return head(view, int(feature)), page(view, int(feature), colours, end)

    def number_typed(name: str, text: str | None) -> Any:
        asked = (text or "").strip().removeprefix("#")
        if not asked.isdigit():
            return gr.skip()
        if why := missing(viewer.view(name), int(asked)):
            raise RunError(why)
        return int(asked)

    def noted(name: str, feature: int | None) -> str:
        view = viewer.view(name)
        if feature is None or missing(view, int(feature)):
            return ""
        return _note(name, int(feature), view.notes.all().get(int(feature), ""))

    def write(event: gr.EventData) -> str:
        name, feature, said, seen = (event._data[key] for key in ("sae", "feature", "text", "seen"))
        try:
            return _note(name, feature, viewer.view(name).notes.write(int(feature), said, seen), saved=True)
        except SaevError as error:
            return _note(name, feature, seen, failed=str(error))

    def columns(name: str, sort: str, by: str) -> tuple[Any, Any]:
        table = viewer.view(name).table
        choices = _choices(table)
        return (
            gr.Dropdown(choices=choices, value=sort if sort in table.columns or sort == NUMBER else "max"),
            gr.Dropdown(choices=choices[:-1], value=by if by in table.columns else "frequency"),
        )

    def narrowed(name: str, ranges: Ranges | None, by: str, low: float | None, high: float | None) -> Ranges:
        if low is None and high is None:
            raise RunError(f"type the least or the largest {viewer.view(name).table.columns[by].title.lower()}, or both.")
        if low is not None and high is not None and low > high:
            raise RunError(f"nothing is at least {low:g} and at most {high:g}: swap the two.")
        return {**(ranges or {}), by: [low, high]}  # type: ignore[dict-item]  # None: open on this side

    def cleared(event: gr.EventData, text: str, box: Ranges | None, ranges: Ranges | None, dead: bool) -> tuple[Any, Any, Any, Any]:
        what = str(event._data["what"])
        if what == "all":
            return "", None, {}, False
        kept = {key: ends for key, ends in (ranges or {}).items() if f"range {key}" != what}
        return "" if what == "text" else text, None if what == "box" else box, kept, dead and what != "dead"

    def opened(event: gr.EventData) -> int:
        return int(event._data["feature"])

    def looked(event: gr.EventData) -> tuple[int, Any]:
        return int(event._data["picture"]), gr.Tabs(selected="image")

    what = [text, sort, ascending, viewer.box, ranges, dead]
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    latest: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}
    searched = [viewer.blocks.load, viewer.sae.change, *(part.change for part in what)]
    gr.on(searched, told(search), [viewer.sae, *what], listed, **latest)
    listed.input(told(turn), [viewer.sae, *what], listed, **latest)
    listed.clear(told(cleared), [text, viewer.box, ranges, dead], [text, viewer.box, ranges, dead], **quiet)
    text.submit(told(number_typed), [viewer.sae, text], viewer.feature, **quiet)
    for button, by_how_many in ((previous, -1), (following, 1), (chance, 0)):
        button.click(told(partial(step, by_how_many)), [viewer.feature, viewer.sae, *what], [viewer.feature, listed], **quiet)
    for pane in (listed, card):
        pane.select(told(opened), None, viewer.feature, **quiet)
    card.input(told(looked), None, [viewer.picture, viewer.tabs], **quiet)
    gr.on([viewer.feature.change, viewer.sae.change], told(noted), [viewer.sae, viewer.feature], note, **latest)
    note.input(told(write), None, note, **quiet)
    shows = [viewer.feature.change, viewer.sae.change, colours.change, end.change]
    gr.on(shows, told(show), [viewer.sae, viewer.feature, colours, end], [header, card], **latest)
    viewer.sae.change(told(columns), [viewer.sae, sort, by], [sort, by], **quiet)
    gr.on([viewer.blocks.load, by.change, viewer.sae.change], told(partial(_about, viewer)), [viewer.sae, by], about, **latest)
    gr.on([add.click, low.submit, high.submit], told(narrowed), [viewer.sae, ranges, by, low, high], ranges, **quiet)


def _choices(table: FeatureTable) -> list[tuple[str, str]]:
    return [*((column.title, key) for key, column in table.columns.items()), ("Feature number", NUMBER)]


def _end(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else float(value)


def _about(viewer: Viewer, name: str, by: str) -> str:
    """What a column is, and which values it takes, so that one knows what to type."""
    column = viewer.view(name).table.columns.get(by)
    if column is None:
        return ""
    known = column.values[np.isfinite(column.values) & viewer.view(name).table.alive]
    if not len(known):
        return f"<p class=hint>{escape(column.help)} No feature of this SAE has it.</p>"
    low, middle, high = (number(float(v)) for v in np.percentile(known, (0, 50, 100)))
    return f"<p class=hint>{escape(column.help)} Here from {low} to {high}, half of the features above {middle}.</p>"


def _note(sae: str, feature: int, text: str, **state: Any) -> str:
    # The time makes every answer another value, so that the pane hears of each.
    return json.dumps({"sae": sae, "feature": int(feature), "text": text, "at": time.time_ns(), **state})


def results(view: View, found: np.ndarray[Any, Any], what: tuple[Any, ...], at: int = 0) -> str:
    """What is looked for, each part with a button that clears it, and one page of the features found."""
    sort = what[1]
    n_pages = max(1, -(-len(found) // PAGE))
    at = min(max(at, 0), n_pages - 1)
    column = view.table.columns.get(sort)
    values = column.values if column is not None else None
    some = found[at * PAGE : (at + 1) * PAGE]
    lines = "".join(line(view, int(i), shown(sort, float(values[i])) if values is not None else "") for i in some)
    count = f"{len(found):,} feature{'' if len(found) == 1 else 's'}" + (f" of {len(view.table):,}" if len(found) < len(view.table) else "")
    why = f"<details class=hint><summary>{escape(column.title)}?</summary>{escape(column.help)}</details>" if column else ""
    if not len(found):
        lines = f"<p class=empty>{escape(_nothing(view, str(what[0] or '')))}</p>"
    turns = ""
    if n_pages > 1:
        off = (" disabled" if at == 0 else "", " disabled" if at == n_pages - 1 else "")
        turns = (
            f'<div class=turns><button class=small data-page="{at - 1}" aria-label="previous page"{off[0]}>‹</button>'
            f"<span>page {at + 1} of {n_pages:,}</span>"
            f'<button class=small data-page="{at + 1}" aria-label="next page"{off[1]}>›</button></div>'
        )
    return f'{chips(view.table, what)}<div class=count role=status>{count}</div>{why}<div class="list">{lines}</div>{turns}'


def _nothing(view: View, text: str) -> str:
    asked = text.strip().removeprefix("#")
    if asked.isdigit():
        return (
            missing(view, int(asked)) or f"Feature {asked} is there, but a filter leaves it out, or it never fires. Press Enter to open it."
        )
    return "No feature matches. Clear a filter above, or look for another word."


def chips(table: FeatureTable, what: tuple[Any, ...]) -> str:
    """The active filters, a button each."""
    text, _, _, box, ranges, dead = what
    found: list[tuple[str, str]] = []
    if text and text.strip():
        found.append(("text", f"“{text.strip()}”"))
    if box:
        found.append(("box", "selected on the map: " + ", ".join(_range(table.columns[key], ends) for key, ends in box.items())))
    found += [(f"range {key}", _range(table.columns[key], ends)) for key, ends in (ranges or {}).items() if key in table.columns]
    if dead:
        found.append(("dead", "with features that never fire"))
    if len(found) > 1:
        found.append(("all", "clear all"))
    buttons = "".join(
        f'<button data-clear="{escape(key)}" title="clear this filter"{" class=all" if key == "all" else ""}>{escape(said)} ✕</button>'
        for key, said in found
    )
    return f'<div class="chips">{buttons}</div>'


def _range(column: Column, ends: Any) -> str:
    low, high = ends
    name = column.title.lower()
    if low is None:
        return f"{name} at most {number(float(high))}"
    if high is None:
        return f"{name} at least {number(float(low))}"
    return f"{name} {number(float(low))} to {number(float(high))}"


__all__ = ["TITLE", "build", "page", "strongest"]
