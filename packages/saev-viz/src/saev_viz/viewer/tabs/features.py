"""Features: search, filter and sort; one feature with its pictures, numbers and notes."""

from __future__ import annotations

import json
import math
import random
import time
from functools import partial
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from saev_core import SaevError
from saev_core.errors import RunError
from saev_viz.drawing.heat_maps import COLOUR_MAPS
from saev_viz.html.feature_list import PAGE, Asked, Ranges, about, chips, choices, results
from saev_viz.html.feature_page import head, missing, page
from saev_viz.run_view.feature_table import NUMBER
from saev_viz.run_view.library import View
from saev_viz.static import read_asset
from saev_viz.viewer.contract import Viewer, show_errors

TITLE = "Features"

HELP = "Search names, labels and notes, or use `label:bird`, `#123`, `frequency<1%`."
OPACITY = """<label class=opacity>Heat maps <input type=range min=0 max=100 value=75 aria-label="opacity of the heat maps"
  oninput="document.body.style.setProperty('--heat', this.value / 100)"></label>"""
KEYS = (
    "<p class=keys><kbd>n</kbd> or <kbd>j</kbd> next, <kbd>p</kbd> or <kbd>k</kbd> previous, <kbd>r</kbd> random, <kbd>/</kbd> search</p>"
)
NOTE = """<div class=note><label for=saev-note-text>Your notes on this feature</label><textarea id=saev-note-text rows=2
  placeholder="What do you think it means? Saved in the run and searchable."></textarea>
  <div><button class=small>Save</button><span role=status></span></div></div>"""


def build(viewer: Viewer) -> None:
    """A list on the left, the feature on the right."""
    with gr.Row(elem_id="saev-features"):
        with gr.Column(scale=1, min_width=290):
            what, by, narrow, help_pane, listed = _search(viewer)
        with gr.Column(scale=3, min_width=320):
            walk, looks, header, note, card = _feature()
    answer = Answers(viewer)
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    # Of rapid successive changes only the last one counts: an earlier response never overwrites it.
    latest: dict[str, Any] = {**quiet, "trigger_mode": "always_last"}
    text, sort, _, box, ranges, dead = what
    sae, feature = viewer.sae, viewer.feature
    searched = [viewer.blocks.load, sae.change, *(part.change for part in what)]
    gr.on(searched, show_errors(answer.search), [sae, *what], listed, **latest)
    listed.input(show_errors(answer.turn), [sae, *what], listed, **latest)
    listed.clear(show_errors(answer.clear), [text, box, ranges, dead], [text, box, ranges, dead], **quiet)
    text.submit(show_errors(answer.number), [sae, text], feature, **quiet)
    for button, by_how_many in zip(walk, (-1, 1, 0), strict=True):
        button.click(show_errors(partial(answer.step, by_how_many)), [feature, sae, *what], [feature, listed], **quiet)
    for pane in (listed, card):
        pane.select(show_errors(answer.open), None, feature, **quiet)
    card.input(show_errors(answer.look), None, [viewer.picture, viewer.tabs], **quiet)
    gr.on([feature.change, sae.change], show_errors(answer.note), [sae, feature], note, **latest)
    note.input(show_errors(answer.write), None, note, **quiet)
    shown = [feature.change, sae.change, *(look.change for look in looks)]
    gr.on(shown, show_errors(answer.show), [sae, feature, *looks], [header, card], **latest)
    sae.change(show_errors(answer.columns), [sae, sort, by], [sort, by], **quiet)
    gr.on([viewer.blocks.load, by.change, sae.change], show_errors(answer.about), [sae, by], help_pane, **latest)
    low, high, add = narrow
    gr.on([add.click, low.submit, high.submit], show_errors(answer.narrow), [sae, ranges, by, low, high], ranges, **quiet)


def _search(viewer: Viewer) -> tuple[list[Any], gr.Dropdown, tuple[gr.Textbox, gr.Textbox, gr.Button], gr.HTML, gr.HTML]:
    """The fields that make up `Asked`, the controls that add a range, and the list."""
    able = choices(viewer.view(viewer.library.first).table)
    ranges = gr.JSON({}, visible=False)
    text = gr.Textbox(label="Search", placeholder="wing   #123   frequency<1%", info=HELP, elem_id="saev-search")
    sort = gr.Dropdown(able, value="max", label="Sort by", elem_id="saev-sort")
    ascending = gr.Checkbox(False, label="smallest first", elem_id="saev-ascending")
    with gr.Accordion("Filter by column", open=False, elem_id="saev-filter"):
        by = gr.Dropdown(able[:-1], value="frequency", label="Column", elem_id="saev-by")
        help_pane = gr.HTML(elem_id="saev-about")
        with gr.Row():
            low = gr.Textbox(label="at least", elem_id="saev-low", min_width=90)
            high = gr.Textbox(label="at most", elem_id="saev-high", min_width=90)
        add = gr.Button("Filter", size="sm", elem_id="saev-add")
        dead = gr.Checkbox(False, label="include features that never fire", elem_id="saev-dead")
    listed = gr.HTML(js_on_load=read_asset("panes.js"), elem_id="saev-list")
    return [text, sort, ascending, viewer.box, ranges, dead], by, (low, high, add), help_pane, listed


def _feature() -> tuple[list[gr.Button], list[gr.Dropdown], gr.HTML, gr.HTML, gr.HTML]:
    """Buttons to step through the matches, and the panes of one feature."""
    with gr.Row(elem_id="saev-walk"):
        previous = gr.Button("← previous", elem_id="saev-previous", size="sm", min_width=90)
        following = gr.Button("next →", elem_id="saev-next", size="sm", min_width=90)
        chance = gr.Button("random", elem_id="saev-random", size="sm", min_width=90)
        gr.HTML(KEYS, elem_id="saev-keys")
    header = gr.HTML(elem_id="saev-head")
    note = gr.HTML(html_template=NOTE, js_on_load=read_asset("note.js"), elem_id="saev-note")
    ends = [("99th percentile", "percentile"), ("largest value", "max")]
    with gr.Row(elem_id="saev-looks", equal_height=True):
        colours = gr.Dropdown(list(COLOUR_MAPS), value="inferno", label="Colours", elem_id="saev-colours", min_width=110)
        end = gr.Dropdown(ends, value="percentile", label="Full colour at", elem_id="saev-end", min_width=140)
        gr.HTML(OPACITY)
    card = gr.HTML(js_on_load=read_asset("panes.js"), elem_id="saev-card")
    return [previous, following, chance], [colours, end], header, note, card


class Answers:
    """The tab's event handlers; `what` are the fields of `Asked`."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer

    def _find(self, name: str, asked: Asked) -> tuple[View, np.ndarray[Any, Any]]:
        view = self.viewer.view(name)
        try:
            return view, view.table.find(asked.query, view.notes.all())
        except ValueError as error:
            raise RunError(str(error)) from None

    def search(self, name: str, *what: Any) -> str:
        """The first page of the matches."""
        asked = Asked(*what)
        try:
            return results(*self._find(name, asked), asked)
        except RunError as error:  # inline, not as a pop-up: the user may still be typing
            return f'{chips(self.viewer.view(name).table, asked)}<p class="empty">{escape(str(error))}</p>'

    def turn(self, event: gr.EventData, name: str, *what: Any) -> str:
        """Another page of the matches."""
        asked = Asked(*what)
        return results(*self._find(name, asked), asked, int(event._data["page"]))

    def step(self, by: int, feature: int | None, name: str, *what: Any) -> tuple[int, Any]:
        """The next or previous match, or a random one if `by` is 0; the list turns to its page if needed."""
        asked = Asked(*what)
        view, found = self._find(name, asked)
        if not len(found):
            raise RunError("no feature matches; clear a filter first.")
        at = np.flatnonzero(found == feature)
        after = (int(at[0]) + by) % len(found) if len(at) else 0
        place = after if by else random.randrange(len(found))
        before = int(at[0]) // PAGE if len(at) else -1
        return int(found[place]), gr.skip() if place // PAGE == before else results(view, found, asked, place // PAGE)

    def show(self, name: str, feature: int | None, colours: str, end: str) -> tuple[str, str]:
        """The feature's page."""
        if feature is None or feature < 0:
            return "", ""  # the URL has not been read yet
        view = self.viewer.view(name)
        return head(view, int(feature)), page(view, int(feature), colours, end)

    def number(self, name: str, text: str | None) -> Any:
        """The feature whose number was entered."""
        asked = (text or "").strip().removeprefix("#")
        if not asked.isdigit():
            return gr.skip()
        if why := missing(self.viewer.view(name), int(asked)):
            raise RunError(why)
        return int(asked)

    def note(self, name: str, feature: int | None) -> str:
        """The note on the feature."""
        view = self.viewer.view(name)
        if feature is None or missing(view, int(feature)):
            return ""
        return _note(name, int(feature), view.notes.all().get(int(feature), ""))

    def write(self, event: gr.EventData) -> str:
        """Save a note; returns the note as saved."""
        name, feature, said, seen = (event._data[key] for key in ("sae", "feature", "text", "seen"))
        try:
            view = self.viewer.view(name)
            if why := missing(view, int(feature)):
                raise RunError(why)
            return _note(name, int(feature), view.notes.write(int(feature), said, seen), saved=True)
        except SaevError as error:
            return _note(name, int(feature), seen, failed=str(error))

    def columns(self, name: str, sort: str, by: str) -> tuple[Any, Any]:
        """Sort and filter options of another SAE."""
        table = self.viewer.view(name).table
        able = choices(table)
        return (
            gr.Dropdown(choices=able, value=sort if sort in table.columns or sort == NUMBER else "max"),
            gr.Dropdown(choices=able[:-1], value=by if by in table.columns else "frequency"),
        )

    def about(self, name: str, by: str) -> str:
        """The explanation of a column."""
        return about(self.viewer.view(name).table, by)

    def narrow(self, name: str, ranges: Ranges | None, by: str, least: str, most: str) -> dict[str, Any]:
        """Add a range."""
        low, high = _typed(least), _typed(most)
        if low is None and high is None:
            raise RunError(f"type a minimum or maximum {self.viewer.view(name).table.columns[by].title.lower()}, or both.")
        if low is not None and high is not None and low > high:
            raise RunError(f"the minimum {low:g} is above the maximum {high:g}; swap the two.")
        return {**(ranges or {}), by: [low, high]}

    def clear(self, event: gr.EventData, text: str, box: Ranges | None, ranges: Ranges | None, dead: bool) -> tuple[Any, Any, Any, Any]:
        """Remove the filter that was clicked."""
        what = str(event._data["what"])
        if what == "all":
            return "", None, {}, False
        kept = {key: ends for key, ends in (ranges or {}).items() if f"range {key}" != what}
        return "" if what == "text" else text, None if what == "box" else box, kept, dead and what != "dead"

    def open(self, event: gr.EventData) -> int:
        """Open the feature that was clicked."""
        return int(event._data["feature"])

    def look(self, event: gr.EventData) -> tuple[int, Any]:
        """Open the picture that was clicked in the Image tab."""
        return int(event._data["picture"]), gr.Tabs(selected="image")


def _typed(text: str) -> float | None:
    """Parse a typed number, `0.01` or `1 %`; None if empty."""
    text = (text or "").strip()
    if not text:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RunError(f"{text!r} is not a number; enter one such as 0.01 or 1%.")
    return value


def _note(sae: str, feature: int, text: str, **state: Any) -> str:
    # The timestamp makes every value distinct, so that the pane is notified of each.
    return json.dumps({"sae": sae, "feature": feature, "text": text, "at": time.time_ns(), **state})
