"""Two SAEs side by side: on one picture, for one concept, or matching features, as HTML. Does not import gradio."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from html import escape

import numpy as np
from jaxtyping import Bool

from saev_viz.drawing.charts import number, percent
from saev_viz.run_view.feature_table import Query
from saev_viz.run_view.library import View
from saev_viz.run_view.picture_codes import Seen

N_FEATURES = 12
"""Features listed per side."""
N_TOP = 5
"""Top pictures shown per feature."""

ALIKE = 0.2
"""Overlap below which features do not count as similar."""

Keep = Bool[np.ndarray, " d_sae"]


def same_pictures(a: View, b: View) -> bool:
    """Whether both SAEs' runs use the same data set, so that image numbers agree."""
    one, other = (view.saved.store["dataset"].get("identity") for view in (a, b))
    return a.library is b.library or (one is not None and one == other)


def selected(view: View, box: Mapping[str, Sequence[float]] | None) -> Keep | None:
    """Features inside the box drawn on the map of all features; None: no box."""
    if not box:
        return None
    keep = np.zeros(len(view.table), bool)
    keep[view.table.find(Query(ranges={key: (float(low), float(high)) for key, (low, high) in box.items()}))] = True
    return keep


def only(seen: Seen, keep: Keep | None) -> Seen:
    """A picture's codes restricted to some features."""
    if keep is None:
        return seen
    here = keep[seen.feature]
    offsets = np.concatenate([[0], np.cumsum(here)])[seen.offsets]
    about = f"{seen.about} Only features selected on the map in the Overview tab.".strip()
    return replace(seen, offsets=offsets, feature=seen.feature[here], value=seen.value[here], about=about)


def on_picture(view: View, seen: Seen, *, chosen: int = -1, twins: bool = True) -> str:
    """The picture's strongest features, each with its own top pictures.

    Args:
        chosen: a feature to list first, even if it is not among the strongest.
    """
    features = [feature for feature in seen.strongest(view.uppers, N_FEATURES) if feature != chosen]
    if chosen >= 0:
        features.insert(0, chosen)
    if not features:
        return '<p class="empty">No feature of this SAE fires on this picture.</p>'
    rows = []
    for feature in features:
        value = float(seen.value[seen.feature == feature].max(initial=0))
        said = f"value {number(value)}, {100 * value / max(float(view.uppers[feature]), 1e-12):.0f} % of its usual maximum"
        rows.append(row(view, feature, said, twins=twins, chosen=feature == chosen))
    return f"<h4>Strongest on this picture, with their own top pictures</h4>{''.join(rows)}"


def row(view: View, feature: int, said: str, *, twins: bool, shared: Collection[int] = (), chosen: bool = False) -> str:
    """A feature with its top pictures; clicking it opens it.

    Args:
        said: remark shown beside its name.
        twins: whether to offer a search for the matching feature on the other side.
        shared: pictures to mark.
    """
    shots = []
    for image in view.index.top_index[feature, :N_TOP]:
        if image < 0:
            continue
        says = f"picture {image}" + (f", {label}" if (label := view.library.label(int(image))) else "")
        mark = ' class="shared"' if int(image) in shared else ""
        shots.append(
            f'<img{mark} src="{escape(view.library.src(int(image), 96))}" loading="lazy" alt="{escape(says)}" title="{escape(says)}">'
            if view.library.dataset is not None
            else f"<i{mark}>{escape(says)}</i>"
        )
    pictures = "".join(shots) or '<span class="hint">It never fires on the indexed pictures.</span>'
    name = escape(view.table.title(feature))
    twin = ""
    if twins:
        why = "Find the feature of the other SAE with the same top pictures"
        twin = f'<button class="small" data-twin="{feature}" title="{why}">find match</button>'
    classes = "twin on" if chosen else "twin"
    return (
        f'<article class="{classes}"><div class="who"><button data-feature="{feature}" title="Open feature {feature}"><b>{feature}</b> '
        f"<em>{name}</em></button><span>{said}</span>{twin}</div><div class=thumbs>{pictures}</div></article>"
    )


def for_concept(view: View, concept: str, keep: Keep | None, *, twins: bool) -> str:
    """A side's features most associated with a label, and those named after it."""
    word = concept.strip()
    if not word:
        return '<p class="empty">Choose a label or type a word above.</p>'
    parts, listed = [], set()
    numbers = [i for i, name in enumerate(view.library.classes) if name.casefold() == word.casefold()]
    if numbers and view.index.has_labels:
        found = [(f, share) for f, share in view.index.with_label(numbers[0]) if keep is None or keep[f]][:N_FEATURES]
        listed = {feature for feature, _ in found}
        rows = [
            row(view, f, f"{number(share.lift)} × chance, on {percent(share.of_label)} of such pictures", twins=twins) for f, share in found
        ]
        if rows:
            what = (
                f"How many times more often than chance the pictures that fire it are labelled “{escape(view.library.classes[numbers[0]])}”"
            )
            parts.append(
                f"<h4>By the label</h4><p class=hint>{what} (lift), and the fraction of such pictures on which it fires.</p>{''.join(rows)}"
            )
    named = _named(view, word, keep, listed)
    if named:
        rows = [row(view, f, said, twins=twins) for f, said in named]
        parts.append(f"<h4>By name</h4><p class=hint>Features whose name or ground truth contains this word.</p>{''.join(rows)}")
    return "".join(parts) or f'<p class="empty">{_nothing(view, word, bool(numbers), keep)}</p>'


def _named(view: View, word: str, keep: Keep | None, without: Collection[int]) -> list[tuple[int, str]]:
    """Features whose proposed name or ground truth contains the word, best score first, with the score."""
    found: dict[int, tuple[float, str]] = {}
    for feature, told in view.table.truth.items():
        for what, f1 in told:
            if word.casefold() in what.casefold():
                found.setdefault(feature, (f1, f"{escape(what)}, F1 {f1:.2f}"))
    for feature, score in view.table.scores.items():
        if word.casefold() in view.table.names[feature].casefold():
            found.setdefault(feature, (score, f"name score {score:.2f}"))
    order = sorted(found, key=lambda feature: (-found[feature][0], feature))
    return [(f, found[f][1]) for f in order if f not in without and (keep is None or keep[f])][:N_FEATURES]


def _nothing(view: View, word: str, labelled: bool, keep: Keep | None) -> str:
    if labelled and not view.index.has_labels:
        return "This index has no label counts; rebuild it with saev index."
    if labelled and keep is None:
        return f"No feature fires on a picture labelled “{escape(word)}”."
    what = "its pictures have no labels" if not view.library.classes else f"it is not one of the {len(view.library.classes):,} labels"
    names = (
        ""
        if view.table.scores
        else f" Its features have no names yet; propose some with saev index {escape(str(view.library.run.path))} --names."
    )
    within = " (of those selected on the map)" if keep is not None else ""
    return f"No feature{within} matches “{escape(word)}”: {what}, and no feature has that name.{names}"


def counterparts(a: View, feature: int, b: View, n: int = N_FEATURES) -> list[tuple[int, float, set[int]]]:
    """Features of `b` whose top pictures overlap most with those of `a`'s `feature`, with the overlap and the shared pictures.

    The overlap is the Jaccard index of the two sets of top pictures. Both SAEs must use the same
    data set.
    """
    mine = a.index.top_index[feature]
    mine = mine[mine >= 0]
    top = b.index.top_index
    member = np.zeros(max(int(mine.max(initial=-1)), int(top.max(initial=-1))) + 2, bool)  # the last entry is for -1: none
    member[mine] = True
    both = member[top].sum(1)
    overlap = both / np.maximum(len(mine) + (top >= 0).sum(1) - both, 1)
    if a is b:
        overlap[feature] = 0
    # Break ties by similar frequency.
    apart = np.abs(np.log(np.maximum(b.index.image_frequency, 1e-9)) - math.log(max(float(a.index.image_frequency[feature]), 1e-9)))
    order = np.lexsort((apart, -overlap))[:n]
    return [(int(f), float(overlap[f]), set(np.intersect1d(mine, top[f]).tolist())) for f in order if overlap[f] > 0]


def twins(a: View, feature: int, b: View) -> tuple[str, str]:
    """A feature with its top pictures, and the best-matching features of the other SAE."""
    found = counterparts(a, feature, b)
    shared = found[0][2] if found else set()
    own = row(a, feature, _rarity(a, feature), twins=False, shared=shared, chosen=True)
    if not found:
        return own, '<p class="empty">No feature of the other SAE shares a top picture with this one.</p>'
    rows = [
        row(
            b,
            f,
            f"overlap {overlap:.2f}: {len(pictures)} top picture{'s' if len(pictures) != 1 else ''} shared",
            twins=False,
            shared=pictures,
        )
        for f, overlap, pictures in found
    ]
    best = found[0][1]
    weak = '<p class="hint">No close match: even the best one shares few of its top pictures.</p>' if best < ALIKE else ""
    return own, weak + "".join(rows)


def _rarity(view: View, feature: int) -> str:
    return f"fires on {percent(float(view.index.image_frequency[feature]))} of pictures"
