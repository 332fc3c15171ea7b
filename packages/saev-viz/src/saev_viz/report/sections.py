"""The sections of the report, as HTML text."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from saev_viz.drawing.charts import bars, lines, number, percent, scatter
from saev_viz.drawing.heat_maps import COLOUR_MAPS
from saev_viz.report.contents import Contents, Curves
from saev_viz.run_view.choose_features import RULE, Album, Entry, Picture

METRICS = (
    ("explained_variance", "Explained variance", "Fraction of the activations' variance that the SAE reconstructs. 1 is perfect."),
    ("nmse", "NMSE", "Normalised error: squared error over variance, i.e. 1 minus explained variance."),
    ("l0", "L0", "Mean number of active features per vector. Lower is sparser."),
    ("l1", "L1", "Mean sum of feature values per vector."),
    ("mse", "MSE", "Mean squared error between a normalised activation and its reconstruction."),
    ("dead", "Dead", "Fraction of features that never fire on these images."),
    ("almost_dead", "Almost dead", "Fraction of features that fire, but on fewer than {almost_dead} of all vectors."),
    ("dense", "Dense", "Fraction of features that fire on more than {dense} of all vectors."),
)
CURVE_TITLES = {"nmse": "NMSE of the batch", "l0": "L0", "dead": "Fraction of dead features", "loss": "Loss"}


def head(have: Contents, toc: str) -> str:
    """Title, a one-sentence summary and the headline numbers."""
    card, index = have.checkpoint.card, have.index
    tiles = [
        ("Features", f"{index.d_sae:,}", f"{int((index.frequency > 0).sum()):,} of them fire"),
        ("Images", f"{index.n_images:,}", f"{index.n_vectors:,} vectors"),
    ]
    if "explained_variance" in card:
        where = "on held-out images" if card.get("images") == "heldout" else ""
        tiles.append(("Explained variance", f"{card['explained_variance']:.3f}", where))
    if "l0" in card:
        tiles.append(("Active at once", number(card["l0"]), "features per vector (L0)"))
    if "dead" in card:
        tiles.append(("Dead", percent(card["dead"]), "never fire on held-out images"))
    if "mean" in have.recovery:
        tiles.append(("Ground truth recovered", f"{have.recovery['mean']:.2f}", "mean F1 of the best features"))
    grid = "".join(f'<div class="tile"><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>' for a, b, c in tiles)
    model, data = escape(have.run.config.model.name), escape(have.run.config.dataset.name)
    warn = f'<p class="warn" role="status">{escape(have.no_pictures)}</p>' if have.no_pictures else ""
    return (
        f'<p class="over">Sparse autoencoder features</p><h1>What {model} sees in {data}</h1>'
        f'<p class="lead">A sparse autoencoder decomposed the activations of the vision model <b>{model}</b> at '
        f"<b>{escape(have.checkpoint.site)}</b> into <b>{index.d_sae:,} features</b>. Each feature is shown on its top-activating "
        f"pictures; brighter patches mean stronger activation.</p>{warn}"
        f'<nav class="toc" aria-label="Sections">{toc}</nav><dl class="tiles">{grid}</dl>'
    )


def gallery(have: Contents, entries: Sequence[Entry], album: Album) -> str:
    """The chosen features, each with its pictures."""
    cfg = have.run.config.report
    if not entries:
        ranges = f"log10 frequency {cfg.log_freq_range}, log10 mean value {cfg.log_value_range}"
        return f'<p class="warn">No feature is within {ranges}; widen report.log_freq_range or report.log_value_range.</p>'
    lost = list(album.unreadable.values())
    pictures = "1 picture" if len(lost) == 1 else f"{len(lost)} pictures"
    warn = f'<p class="warn">{pictures} could not be read: {escape(lost[0])}</p>' if lost else ""
    hint = "Hover over or click a picture to hide its heat map. " if have.dataset is not None else ""
    first = " Features that detect a ground-truth value of these pictures come first." if have.best_values else ""
    return (
        f'<p class="note">{len(entries)} of {have.index.d_sae:,} features, each with its top-activating images (no duplicates). {hint}'
        f"Areas outside the model's input crop are dimmed.</p>{warn}{_bar(have.level)}"
        f'<div id="cards">{"".join(_card(have, e, rank) for rank, e in enumerate(entries))}</div>'
        f"<details><summary>How these features were chosen</summary><p>{escape(RULE)}{first} "
        f"Ranges: log10 frequency {cfg.log_freq_range[0]:g} to {cfg.log_freq_range[1]:g}, log10 mean value {cfg.log_value_range[0]:g} "
        f"to {cfg.log_value_range[1]:g} (<code>report.log_freq_range</code>, <code>report.log_value_range</code>); "
        f"always shown: {', '.join(map(str, cfg.include)) or 'none'} (<code>report.include</code>).</p></details>"
    )


def _bar(level: float) -> str:
    stops = ", ".join(f"#{colour}" for colour in COLOUR_MAPS["inferno"].split()[2:])
    return (
        '<div class="bar" role="toolbar" aria-label="Gallery">'
        '<label>Order <select id="sort"><option value="rank up">recommended order</option>'
        '<option value="frequency down">most frequent first</option><option value="frequency up">rarest first</option>'
        '<option value="mean down">strongest first</option><option value="number up">by number</option></select></label>'
        '<label>Heat map <input id="opacity" type="range" min="0" max="100" value="100"></label>'
        f'<span class="legend">0 <i style="background:linear-gradient(90deg,{stops})"></i> {_ordinal(level)} percentile</span>'
        '<label>Feature <input id="find" type="number" min="0" placeholder="number"></label>'
        '<span id="found" class="note" role="status"></span>'
        '<span class="note keys"><kbd>j</kbd>/<kbd>k</kbd> next/previous, <kbd>h</kbd> hide heat maps</span></div>'
    )


def _card(have: Contents, e: Entry, rank: int) -> str:
    facts = (
        f"<span>fires on <b>{percent(e.frequency)}</b> of patches</span><span><b>{percent(e.image_frequency)}</b> of images</span>"
        f"<span>mean <b>{number(e.mean)}</b></span><span>{_ordinal(have.level)} percentile <b>{number(e.upper)}</b></span>"
        f"<span>max <b>{number(e.max)}</b></span>"
    )
    chips = [f"<li>{escape(text)} <span>F1 {f1:.2f}</span></li>" for text, f1 in have.best_values.get(e.feature, [])]
    for share in e.labels:
        name = have.classes[share.label] if share.label < len(have.classes) else str(share.label)
        title = f"{percent(share.share)} of the images that fire it, {share.lift:.1f} times what chance gives"
        chips.append(f'<li title="{title}">{escape(name)} <span>×{share.lift:.1f}</span></li>')
    more = f'<ul class="chips" aria-label="What goes with it">{"".join(chips)}</ul>' if chips else ""
    return (
        f'<article class="card" id="f{e.feature}" data-number="{e.feature}" data-rank="{rank}" data-frequency="{e.frequency:.6g}" '
        f'data-mean="{e.mean:.6g}"><header><div class="what"><h3><a href="#f{e.feature}">Feature {e.feature}</a></h3>'
        f'<p class="facts">{facts}</p>{more}</div><div class="minis">{_minis(have, e)}</div></header>'
        f'<ul class="pictures">{"".join(_picture(e.feature, p) for p in e.pictures)}</ul></article>'
    )


def _minis(have: Contents, e: Entry) -> str:
    live = np.flatnonzero(e.histogram)
    first, last = (int(live[0]), int(live[-1]) + 1) if len(live) else (0, 1)
    edges = np.log(have.index.histogram_edges)
    mark = float(np.clip((np.log(e.upper) - edges[first]) / (edges[last] - edges[first]), 0, 1))
    spark = bars(e.histogram[first:last], label="Distribution of its values; the line marks full colour in heat maps", mark=mark)
    if not e.place_uri:
        return spark
    return f'{spark}<img class="place" src="{e.place_uri}" alt="Where in the picture it fires" title="where in the picture it fires">'


def _picture(feature: int, p: Picture) -> str:
    width, height = p.size
    where = f"strongest in patch row {p.row + 1}, column {p.col + 1}, value {number(p.value)}" if p.map_uri else f"value {number(p.value)}"
    alt = f"Image {p.index}: feature {feature} is {where}"
    tiny = ' class="tiny"' if max(width, height) <= 96 else ""
    picture = f'<img{tiny} src="{p.uri}" alt="{alt}" loading="lazy" decoding="async">' if p.uri else ""
    left, top, w, h = p.box
    style = f"left:{left:.3f}%;top:{top:.3f}%;width:{w:.3f}%;height:{h:.3f}%"
    over = f'<img class="map" src="{p.map_uri}" alt="{"" if p.uri else alt}" style="{style}">' if p.map_uri else ""
    return (
        f'<li style="--a:{width / height:.4f}"><button class="frame" aria-pressed="false" title="{alt}">{picture}{over}</button>'
        f'<span class="value">{number(p.value)}</span></li>'
    )


def overview(have: Contents, shown: Collection[int]) -> str:
    """The scatter plot of all features."""
    index = have.index
    alive = np.flatnonzero((index.frequency > 0) & (index.mean > 0))
    chart = scatter(np.log10(index.frequency[alive]), np.log10(index.mean[alive].astype(float)), alive.tolist(), list(shown))
    return (
        '<p class="note">Each point is a live feature, by frequency and strength. Rare features are on the left, features '
        "that fire nearly everywhere on the right. Gallery features are highlighted; click one to show it.</p>"
        f'<div class="plot">{chart}<div id="tip" role="status"></div></div>'
    )


def truth(have: Contents, shown: Collection[int]) -> str:
    """Ground-truth values and the feature that detects each one best; empty if the data set has no ground truth."""
    found = have.recovery
    groups: dict[str, list[str]] = {}
    for row in found.get("rows", []):
        feature, f1 = int(row["feature"]), float(row["f1"])
        name = f'<a href="#f{feature}">{feature}</a>' if feature in shown else str(feature) if feature >= 0 else "none"
        meter = f'<span class="meter"><i style="width:{100 * f1:.0f}%"></i></span>{f1:.2f}'
        groups.setdefault(str(row["factor"]), []).append(
            f'<tr><th scope="row">{escape(str(row["value"]))}</th><td>{meter}</td><td class="num">{name}</td></tr>'
        )
    if not groups:
        return ""
    means = found.get("factors", {})
    top = '<thead><tr><th></th><th>F1</th><th class="num">Feature</th></tr></thead>'
    tables = "".join(
        f"<div><h3>{escape(factor)}{f', mean {float(means[factor]):.2f}' if factor in means else ''}</h3>"
        f"<table>{top}<tbody>{''.join(rows)}</tbody></table></div>"
        for factor, rows in groups.items()
    )
    return (
        "<p>These pictures are synthetic, so their contents are known. For every value of every factor, the table gives the single "
        "feature that detects it best: feature and threshold were chosen on the training images; F1 is over the patches of "
        f"{found.get('n_images', 0):,} held-out images. The mean is <b>{float(found['mean']):.3f}</b>; 1 is perfect.</p>"
        f'<div class="truth">{tables}</div>'
    )


def metrics(have: Contents) -> str:
    """The evaluation cards of the run's SAEs side by side, with explanations."""
    cards = {name: c.card for name, c in have.checkpoints.items() if c.card}
    if not cards:
        return f'<p class="note">Not evaluated yet; run saev evaluate {escape(str(have.run.path))}.</p>'
    card = cards.get(have.name, next(iter(cards.values())))
    thresholds = {key: percent(float(share)) for key, share in {"almost_dead": 1e-7, "dense": 1e-2, **card.get("thresholds", {})}.items()}
    rows = []
    for key, title, why in METRICS:
        if not any(key in each for each in cards.values()):
            continue
        show = percent if key in ("dead", "almost_dead", "dense") else number
        cells = "".join(f'<td class="num">{show(float(each[key])) if key in each else "–"}</td>' for each in cards.values())
        text = escape(why.format(**thresholds))
        rows.append(f'<tr data-why="{text}"><th scope="row">{title}</th>{cells}<td class="why">{text}</td></tr>')
    names = {"heldout": "held-out images", "all": "images (the whole data set)", "train": "training images"}
    what = names.get(card.get("images", ""), "selected images")
    heads = "".join(f'<th class="num">{escape(name)}</th>' for name in cards)
    return (
        f'<p class="note">Measured on {card.get("n_images", 0):,} {what}, {card.get("n_vectors", 0):,} vectors.</p>'
        f'<div class="wide"><table class="metrics"><thead><tr><th></th>{heads}<th>Meaning</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def training(curves: Curves) -> str:
    """Training metrics over steps; empty if none were logged."""
    drawn = {key: {sae: points for sae, points in curves.get(key, {}).items() if len(points) > 1} for key in CURVE_TITLES}
    charts = [f"<div><h3>{CURVE_TITLES[key]}</h3>{lines(by_sae, CURVE_TITLES[key])}</div>" for key, by_sae in drawn.items() if by_sae]
    return f'<div class="curves">{"".join(charts)}</div>' if charts else ""


def settings(have: Contents) -> str:
    """The key settings and the full configuration."""
    config, meta, grid = have.run.config, have.store.meta, have.store.grid
    n_vectors = have.checkpoint.train.get("n_vectors")
    described = {key: value for key, value in have.checkpoint.sae.describe().items() if key not in ("d_in", "expansion")}
    facts = {
        "Model": _named(config.model.name, config.model.options),
        "Layer": f"{have.checkpoint.site} of {meta.model.get('n_blocks', '?')} blocks, {meta.d_model} wide",
        "Patches": f"{grid.rows} × {grid.cols} of {grid.patch_px} px; {grid.n_prefix} other tokens",
        "Data set": _named(config.dataset.name, config.dataset.options),
        "Images": f"{have.index.n_images:,} indexed, {have.checkpoint.read.heldout:.0%} held out from training",
        "Activations": f"{meta.dtype}, {have.checkpoint.read.tokens}",
        "SAE": _named(have.name, described),
        "Trained on": f"{n_vectors:,} vectors, seed {config.train.seed}" if isinstance(n_vectors, int) else "",
        "Versions": ", ".join(sorted({*have.run.plugins.values(), *(f"{k} {v}" for k, v in meta.versions.items())})),
    }
    rows = "".join(f'<tr><th scope="row">{key}</th><td>{escape(value)}</td></tr>' for key, value in facts.items() if value)
    text = escape(json.dumps(config.model_dump(mode="json"), indent=2))
    return (
        f'<div class="wide"><table class="facts-of-run">{rows}</table></div>'
        f'<details><summary>Full configuration</summary><pre tabindex="0">{text}</pre></details>'
    )


def _named(name: str, options: Mapping[str, Any]) -> str:
    return name + (f" ({', '.join(f'{k}={v}' for k, v in options.items())})" if options else "")


def _ordinal(level: float) -> str:
    suffix = "th" if level % 1 or 10 < level % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(int(level) % 10, "th")
    return f"{level:g}{suffix}"
