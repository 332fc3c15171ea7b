"""The pages of an exported gallery as HTML, see `export`. Does not import gradio."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version

from saev_viz.drawing.charts import number, percent
from saev_viz.drawing.heat_maps import map_pixels
from saev_viz.html.feature_page import shown, uri
from saev_viz.run_view.addresses import PREFIX
from saev_viz.run_view.choose_features import relative
from saev_viz.run_view.library import View

ON_CARD = 6
"""Top pictures per feature on the index page."""
LABELS = 5
"""Number of searchable labels per feature."""
# Block all external sources. `file:`, because a page opened from disk has no origin of its own.
_POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'self' file: 'unsafe-inline'; script-src 'self' file:"


def note_of(text: str) -> str:
    """A user's note on a feature."""
    return f"<blockquote>{escape(text)}</blockquote>" if text else ""


def feature_page(view: View, feature: int, body: str, before: int | None, after: int | None) -> str:
    """A feature's page: links to its neighbours, then `body`."""

    def turn(other: int | None, key: str, says: str) -> str:
        return f'<a id={key} href="{other}.html">{says}</a>' if other is not None else f"<span>{says}</span>"

    bar = (
        f"<nav>{turn(before, 'previous', '← previous')}<a id=all href=../index.html>all features</a>{turn(after, 'next', 'next →')}</nav>"
        f"{_OPACITY}<p class=keys><kbd>n</kbd> next, <kbd>p</kbd> previous</p>"
    )
    title = f"Feature {feature}" + (f", {view.table.title(feature)}" if view.table.title(feature) else "")
    return _html(title, f"<header class=controls>{bar}</header><main class=feature>{body}</main>", "../")


def index_page(view: View, chosen: Sequence[int], cards: str, notes: Mapping[int, str]) -> str:
    """The index page: all cards, and the data for its search."""
    config, table = view.library.run.config, view.table
    columns = {key: column for key, column in table.columns.items() if any(math.isfinite(column.values[f]) for f in chosen)}
    rows = []
    for feature in chosen:
        labels = [table.label(one.label) for one in view.index.labels(feature, LABELS) if one.lift > 2]
        said = [str(feature), table.names[feature], *(what for what, _ in table.truth.get(feature, ())), *labels, notes.get(feature, "")]
        said.append(table.label(int(table.common[feature])))
        numbers = [float(column.values[feature]) for column in columns.values()]
        rows.append({"id": feature, "text": "\n".join(said).lower(), "numbers": [v if math.isfinite(v) else None for v in numbers]})
    data = {"columns": list(columns), "rows": rows}
    choices = "".join(f'<option value="{i}">{escape(column.title)}</option>' for i, column in enumerate(columns.values()))
    bar = (
        '<label class=search>Search <input type=search id=search placeholder="wing   #123   frequency&lt;1%"></label>'
        f"<label>Sort by <select id=sort><option value=order>as exported</option>{choices}<option value=id>feature number</option></select>"
        f"</label><label class=check><input type=checkbox id=ascending> smallest first</label>{_OPACITY}"
        "<p id=count role=status></p><p id=wrong role=alert></p>"
    )
    helps = "".join(
        f"<dt>{escape(column.title)} <code>{escape(key)}</code></dt><dd>{escape(column.help)}</dd>" for key, column in columns.items()
    )
    what = f"{config.model.name} on {config.dataset.name}"
    lead = (
        f"<p>{len(chosen)} of the {view.index.d_sae:,} features of an SAE on {escape(view.saved.site)} of "
        f"{escape(config.model.name)}, indexed over {view.index.n_images:,} pictures of {escape(config.dataset.name)}. "
        "Pictures are bright where the feature fires, strongest first. "
        "Click a feature's number for details.</p>"
    )
    missing = f"<p class=empty>{escape(view.library.no_pictures)}</p>" if view.library.no_pictures else ""
    body = (
        f"<header class=top><h1>{escape(what)}</h1>{lead}{missing}</header><header class=controls>{bar}</header>"
        f"<main><div id=cards>{cards}</div>"
        "<p id=none class=empty hidden>No feature matches. Remove a word, or try another one.</p>"
        "<details><summary>What the numbers mean, and how to search</summary><p>Words are searched in names, labels and notes; "
        "all must occur. <code>#123</code> is a feature number. <code>frequency&lt;1%</code> and <code>max&gt;=5</code> compare a "
        f"column.</p><dl>{helps}</dl></details></main>"
    )
    # A label named </script> must not end the script.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return _html(f"{what}: SAE features", f'{body}<script type="application/json" id=data>{text}</script>', "")


def card(view: View, feature: int, note: str) -> str:
    """A feature on the index page: name, numbers, top pictures."""
    index, name = view.index, view.table.title(feature)
    upper, library = view.upper(feature), view.library
    pictures = []
    for top in index.top(feature, ON_CARD):
        width, height = (max(int(side), 1) for side in library.sizes[top.index])
        over = ""
        if index.grid.n_patches > 1:
            left, above, wide, high = relative(library.crop(top.index), (width, height))
            pixels = map_pixels(index.grid.to_map(top.map.astype(float)), upper=upper, opacity=1)
            style = f"left:{left:.2f}%;top:{above:.2f}%;width:{wide:.2f}%;height:{high:.2f}%"
            over = f'<img class=heat src="{uri(pixels)}" style="{style}" alt="">'
        label = library.label(top.index)
        says = escape(f"picture {top.index}" + (f", {label}" if label else ""))
        shot = (
            f'<img src="{PREFIX}/image/{top.index}" loading=lazy alt="{says}">' if library.dataset is not None else f"<span>{says}</span>"
        )
        pictures.append(f'<figure title="{says}"><div class=frame style="--r:{width / height:.3f}">{shot}{over}</div></figure>')
    facts = [f"fires on {percent(float(index.frequency[feature]))} of patches", f"largest {number(float(index.max[feature]))}"]
    alike = view.table.columns["monosemanticity"].values[feature]
    if math.isfinite(alike):
        facts.append(f"monosemanticity {shown('monosemanticity', float(alike))}")
    return (
        f'<article><h2><a href="features/{feature}.html">{feature}</a> <span>{escape(name)}</span></h2>'
        f"<p class=facts>{' · '.join(facts)}</p>{note_of(note)}<div class=shots>{''.join(pictures)}</div></article>"
    )


_OPACITY = (
    '<label class=opacity>Heat maps <input type=range id=opacity min=0 max=100 value=75 aria-label="opacity of the heat maps"></label>'
)


def _html(title: str, body: str, root: str) -> str:
    return (
        f'<!doctype html><html lang=en><head><meta charset=utf-8><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name=viewport content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f'<link rel=stylesheet href="{root}gallery.css"></head><body>{body}'
        f'<footer>Made with saev-viz {escape(version("saev-viz"))}.</footer><script src="{root}gallery.js"></script></body></html>\n'
    )
