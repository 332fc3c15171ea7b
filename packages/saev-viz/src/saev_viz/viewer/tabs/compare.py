"""Compare: one picture, concept or feature in two SAEs, of the same or different runs."""

from __future__ import annotations

import random
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from saev_core import SaevError
from saev_core.errors import RunError
from saev_viz.html.comparison import for_concept, on_picture, only, same_pictures, selected, twins
from saev_viz.html.feature_page import missing
from saev_viz.run_view.addresses import upload_url
from saev_viz.run_view.library import View
from saev_viz.run_view.picture_codes import Seen
from saev_viz.static import read_asset
from saev_viz.viewer.contract import Viewer, show_errors
from saev_viz.viewer.tabs.image import PANE, payload

TITLE = "Compare"

NOTHING = "null"
"""Value of a pane without a picture."""
MOST_LABELS = 3000
"""Maximum number of labels in the concept menu; others can be typed."""
ROWS = """element.addEventListener("click", (e) => {
  const row = e.target.closest("[data-feature], [data-twin]");
  if (!row) return;
  if (row.dataset.twin !== undefined) trigger("input", { feature: +row.dataset.twin });
  else trigger("select", { feature: +row.dataset.feature });
});"""

OTHERS = (
    "The two SAEs were recorded on different data sets, so image numbers and top pictures cannot be compared. "
    "Upload a picture to see it on both sides, or compare by concept."
)
ONLY = '<p class="warn">Only features selected on the map in the Overview tab.</p>'

Box = dict[str, list[float]] | None
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
LATEST: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}


def build(viewer: Viewer) -> None:
    """The tab."""
    library = viewer.library
    if len(library.names) < 2:
        gr.HTML(_alone(viewer), elem_id="saev-alone")
        return
    there = library.others[0] if library.others else None
    other = f"{there.title}:{there.first}" if there else next(name for name in library.names if name != library.first)
    with gr.Row(elem_id="saev-sides"):
        menus = [
            gr.Dropdown(library.names, value=name, label=side, elem_id=f"saev-side-{i}", min_width=150)
            for i, (side, name) in enumerate((("Left", library.first), ("Right", other)))
        ]
    with gr.Tabs(elem_id="saev-compare") as modes:
        with gr.Tab("Picture", id="picture"):
            rows = _picture(viewer, menus)
        with gr.Tab("Concept", id="concept"):
            rows += _concept(viewer, menus)
        with gr.Tab("Feature", id="feature"):
            which, feature, found = _feature(viewer, menus)
            rows += found

    def opened(side: int, event: gr.EventData, a: str, b: str) -> tuple[Any, Any, Any]:
        return (a, b)[side], int(event._data["feature"]), gr.Tabs(selected="features")

    def twin(side: int, event: gr.EventData) -> tuple[int, int, Any]:
        return side, int(event._data["feature"]), gr.Tabs(selected="feature")

    for i, pane in rows:
        pane.select(show_errors(_sided(opened, i)), menus, [viewer.sae, viewer.feature, viewer.tabs], **QUIET)
        pane.input(show_errors(_sided(twin, i)), None, [which, feature, modes], **QUIET)


def _picture(viewer: Viewer, menus: list[gr.Dropdown]) -> list[tuple[int, gr.HTML]]:
    """The Picture tab; returns its feature lists, each with its side."""
    js = "".join(read_asset(name) for name in ("patches.js", "linked.js"))
    with gr.Row(elem_id="saev-compare-choose"):
        number = gr.Number(0, precision=0, label="Image number", elem_id="saev-compare-number", min_width=140)
        chance = gr.Button("random image", size="sm", min_width=120, elem_id="saev-compare-random")
    note = gr.HTML(elem_id="saev-compare-note")
    brought = gr.Textbox("", visible=False)
    panes = []
    with gr.Row(equal_height=False):
        for i in range(2):
            with gr.Column(min_width=300):  # on a phone the pictures stack, while the lists stay side by side
                panes.append(gr.HTML(html_template=PANE, js_on_load=js, elem_id=f"saev-pane-{i}", elem_classes="saev-pane"))
    with gr.Row(equal_height=False):
        lists = [gr.HTML(js_on_load=ROWS, elem_id=f"saev-strong-{i}") for i in range(2)]

    def looked(a: str, b: str, index: float | None, key: str, box: Box, shown: str) -> list[str]:
        views = [viewer.view(a), viewer.view(b)]
        alike = same_pictures(*views)
        remarks = [] if alike else [OTHERS]
        if a == b:
            remarks.append("Left and right are the same SAE; choose another one on either side.")
        found = [(NOTHING, "") for _ in views]
        if key or alike:
            found = [
                _side(viewer, view, index, key, box if name == shown else None, alike) for view, name in zip(views, (a, b), strict=True)
            ]
        said = "".join(f'<p class="warn">{escape(remark)}</p>' for remark in remarks)
        return [said, *(pane for pane, _ in found), *(listed for _, listed in found)]

    def draw(a: str, b: str) -> tuple[int, str]:
        views = [viewer.view(a), viewer.view(b)]
        if not same_pictures(*views):
            raise RunError(OTHERS)
        return random.randrange(min(view.library.n_images for view in views)), ""

    def pointed(side: int, event: gr.EventData, a: str, b: str, index: float | None, key: str, box: Box, shown: str) -> str:
        views = [viewer.view(a), viewer.view(b)]
        keep = selected(views[side], box if (a, b)[side] == shown else None)
        seen = only(_seen(viewer, views[side], index, key)[1], keep)
        return on_picture(views[side], seen, chosen=int(event._data["feature"]), twins=same_pictures(*views))

    picture = [*menus, number, brought, viewer.box, viewer.sae]
    changes = [*(menu.change for menu in menus), viewer.box.change, number.change, brought.change, panes[0].load]
    gr.on(changes, show_errors(looked), picture, [note, *panes, *lists], **LATEST)
    number.input(lambda: "", None, brought, **QUIET)
    chance.click(show_errors(draw), menus, [number, brought], **QUIET)
    for i, pane in enumerate(panes):
        pane.select(show_errors(_sided(pointed, i)), picture, lists[i], **QUIET)
        pane.upload(show_errors(_uploaded), None, brought, **QUIET)
    return list(enumerate(lists))


def _concept(viewer: Viewer, menus: list[gr.Dropdown]) -> list[tuple[int, gr.HTML]]:
    """The Concept tab; returns its feature lists, each with its side."""
    concept = gr.Dropdown(
        _concepts(viewer),
        value=None,
        allow_custom_value=True,
        label="Label or word",
        info="Choose a label, or type a word to search in feature names.",
        elem_id="saev-concept",
    )
    with gr.Row(equal_height=False):
        lists = [gr.HTML(_empty("Choose a label or type a word above."), js_on_load=ROWS, elem_id=f"saev-concept-{i}") for i in range(2)]

    def conceived(a: str, b: str, word: str | None, box: Box, shown: str) -> list[str]:
        views = [viewer.view(a), viewer.view(b)]
        alike = same_pictures(*views)
        keep = [selected(view, box if name == shown else None) for view, name in zip(views, (a, b), strict=True)]
        return [
            (ONLY if some is not None else "") + for_concept(view, str(word or ""), some, twins=alike)
            for view, some in zip(views, keep, strict=True)
        ]

    changes = [*(menu.change for menu in menus), viewer.box.change, concept.change]
    gr.on(changes, show_errors(conceived), [*menus, concept, viewer.box, viewer.sae], lists, **LATEST)
    return list(enumerate(lists))


def _feature(viewer: Viewer, menus: list[gr.Dropdown]) -> tuple[gr.Radio, gr.Number, list[tuple[int, gr.HTML]]]:
    """The Feature tab; returns the side and number inputs, and the lists, each with its side."""
    with gr.Row(elem_id="saev-twin-choose"):
        which = gr.Radio([("left", 0), ("right", 1)], value=0, label="Feature of the", elem_id="saev-twin-side", min_width=150)
        feature = gr.Number(None, precision=0, label="Feature number", elem_id="saev-twin-number", min_width=140)
    gr.HTML(
        '<p class="hint">Features of the other SAE whose top pictures are most similar. Overlap: Jaccard index '
        "of the two sets of top pictures. 1: the same pictures; 0: none in common. It uses "
        "only the top pictures, not weaker activations. A frame marks shared pictures; "
        "for the feature itself, those shared with the best match.</p>"
    )
    with gr.Row(equal_height=False):
        lists = [gr.HTML(js_on_load=ROWS, elem_id=f"saev-twin-{i}") for i in range(2)]

    def matched(a: str, b: str, side: int, number: float | None) -> list[str]:
        views = [viewer.view(a), viewer.view(b)]
        one, other = views[side], views[1 - side]
        if not same_pictures(*views):
            return [_empty(OTHERS), ""]
        if number is None:
            return [_empty("Type a feature number, or click “find match” beside a feature."), ""]
        why = missing(one, int(number))
        own, found = (_empty(why), "") if why else twins(one, int(number), other)
        return [own, found] if side == 0 else [found, own]

    changes = [*(menu.change for menu in menus), which.change, feature.change]
    gr.on(changes, show_errors(matched), [*menus, which, feature], lists, **LATEST)
    return which, feature, list(enumerate(lists))


def _uploaded(event: gr.EventData) -> str:
    return str(event._data["picture"])


def _alone(viewer: Viewer) -> str:
    run = viewer.library.run
    bare = [name for name in run.sae_names if name not in viewer.library.own]
    here = (
        f"<li>This run has {len(bare)} more SAE{'s' if len(bare) > 1 else ''} without a feature index. Build one, then restart the "
        f"viewer: <code>saev index {escape(str(run.path))} --only {escape(bare[0])}</code></li>"
        if bare
        else ""
    )
    return (
        "<h3>There is nothing to compare with yet</h3><p>This tab compares two SAEs on one picture, by concept, or feature by "
        f"feature.</p><ul>{here}<li>Open a second run, which may use another model: <code>saev view {escape(str(run.path))} "
        "--with OTHER_RUN</code></li></ul>"
    )


def _concepts(viewer: Viewer) -> list[str]:
    names = {name for library in (viewer.library, *viewer.library.others) for name in library.classes[:MOST_LABELS]}
    return sorted(names, key=str.casefold)


def _empty(why: str) -> str:
    return f'<p class="empty">{escape(why)}</p>'


def _sided(callback: Callable[..., Any], side: int) -> Callable[..., Any]:
    """Bind a callback to one side; gradio detects the event argument only on plain functions."""

    def sided(event: gr.EventData, *args: Any) -> Any:
        return callback(side, event, *args)

    return sided


def _seen(viewer: Viewer, view: View, index: float | None, key: str) -> tuple[str, Seen]:
    """A picture's URL and codes."""
    if key:
        return upload_url(key), view.look(viewer.library.uploads[key].image())
    if index is None or not 0 <= index < view.library.n_images:
        raise RunError(f"Type the number of an image, from 0 to {view.library.n_images - 1}.")
    return view.library.src(int(index), 896), view.seen(int(index))


def _side(viewer: Viewer, view: View, index: float | None, key: str, box: Box, alike: bool) -> tuple[str, str]:
    """The pane and the list of one side; an error on one side does not affect the other."""
    try:
        src, seen = _seen(viewer, view, index, key)
        keep = selected(view, box)
    except SaevError as error:
        return NOTHING, _empty(f"{view.key}: {error}")
    seen = only(seen, keep)
    if key:
        caption = f"{view.key} · {viewer.library.uploads[key].name}"
    else:
        label = view.library.label(int(index or 0))
        caption = f"{view.key} · image {int(index or 0)}" + (f" · {label}" if label else "")
    return payload(view, seen, src, caption), on_picture(view, seen, twins=alike)


__all__ = ["TITLE", "build"]
