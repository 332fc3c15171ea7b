"""`report.html`: one file that shows what a run found. It needs no network, no server and no other file."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saev_core.checkpoint import Checkpoint
from saev_core.dataset import ImageDataset, load_dataset
from saev_core.errors import RunError, SaevError
from saev_core.features import FeatureIndex
from saev_core.run import Run
from saev_core.store import ActivationStore
from saev_viz.charts import bars, lines, number, percent, scatter
from saev_viz.gallery import RULE, Album, Entry, Picture, choose, entry
from saev_viz.overlay import COLOUR_MAPS, heat_map

log = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 5_500_000
"""Bytes of thumbnails above which they are made smaller, so that the file can be mailed."""

METRICS = (
    ("explained_variance", "Explained variance", "Share of the activations' variance that the SAE gives back. 1 would be perfect."),
    ("nmse", "NMSE", "The share that is lost: squared error over variance, 1 minus the line above."),
    ("l0", "L0", "Features that are active on one vector, on average. Fewer are easier to read."),
    ("l1", "L1", "Sum of the feature values of one vector, on average."),
    ("mse", "MSE", "Mean squared distance between a normalised activation and its reconstruction."),
    ("dead", "Dead", "Share of features that never fire on these images."),
    ("almost_dead", "Almost dead", "Share of features that do fire, but on fewer than {almost_dead:g} of all vectors."),
    ("dense", "Dense", "Share of features that fire on more than {dense:g} of all vectors."),
)
CURVES = {"nmse": "NMSE of the batch", "l0": "L0", "dead": "Share of dead features", "loss": "Loss"}


def write_report(run: Run) -> Path:
    """Write `run.report_path` from the run's artifacts and give its path.

    Images are read from the run's data set; where that cannot be opened any more, heat maps stand alone and the page
    says why.

    Raises:
        RunError: the run has no feature index yet.
        StoreError, CheckpointError: an artifact is damaged.
    """
    page = Page(run)
    path = run.report_path
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(page.html(), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}); check permissions and free space.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def feature_rows(run: Run, features: Iterable[int], n_images: int = 8, size_px: int = 300) -> list[tuple[str, list[Image.Image]]]:
    """Captions and overlays of some features of a run, for `overlay.sheet`."""
    page = Page(run)
    if page.dataset is None:
        raise RunError(f"{run.path}: {page.no_pictures}")
    level = page.index.attributes["percentile"]
    rows = []
    for feature in features:
        upper = float(page.index.percentile(level)[feature]) or 1.0
        tops = page.index.top(feature, n_images)
        pictures = [
            heat_map(page.dataset[t.index].image, page.index.grid.to_map(t.map), page.store.crop(t.index), upper=upper, size_px=size_px)
            for t in tops
        ]
        rows.append((f"feature {feature}   fires on {percent(float(page.index.frequency[feature]))} of patches", pictures))
    return rows


class Page:
    """Everything the report shows, read from a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.checkpoints = {name: Checkpoint.load(run.sae_dir(name)) for name in run.sae_names if run.features_path(name).exists()}
        if not self.checkpoints:
            raise RunError(f"{run.path} has no feature index yet; make one with saev index {run.path}.")
        self.store = ActivationStore.open(run.store_url)
        # Of several the one that reconstructs held-out images best is shown; one without a card comes last.
        self.name = min(self.checkpoints, key=lambda name: self.checkpoints[name].card.get("nmse", np.inf))
        self.checkpoint = self.checkpoints[self.name]
        self.index = FeatureIndex.open(run.features_path(self.name), self.checkpoint)
        self.no_pictures = ""
        self.dataset: ImageDataset | None = self._dataset()

    def _dataset(self) -> ImageDataset | None:
        try:
            dataset = load_dataset(self.run.config.dataset)
        except SaevError as error:
            log.warning("the report has no pictures: %s", error)
            self.no_pictures = f"The pictures cannot be shown, for the data set cannot be opened: {error}"
            return None
        known = self.store.meta.dataset.get("identity")
        if known is not None and known != dataset.identity():
            self.no_pictures = "The data set has changed since it was recorded, so its pictures are not shown; record it again to see them."
            log.warning("the report has no pictures: the data set has changed since it was recorded.")
            return None
        return dataset

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in (self.dataset.classes if self.dataset is not None else None) or ()]

    def entries(self) -> tuple[list[Entry], Album]:
        """The gallery, its thumbnails as large as `MAX_PICTURE_BYTES` allows."""
        cfg = self.run.config.report
        features = choose(self.index, self.checkpoint.sae.W_dec.detach().cpu().numpy(), cfg)
        numbers = {int(i) for i in self.index.top_index[features, : cfg.n_images].ravel() if i >= 0}
        album = Album(self.dataset)
        for size_px, quality in ((224, 82), (192, 78), (160, 74), (128, 70), (96, 65)):
            album = Album(self.dataset, size_px, quality)
            album.load(numbers)
            shown = sum(len(album.get(int(i))[0]) for i in self.index.top_index[features, : cfg.n_images].ravel() if i >= 0)
            if shown <= MAX_PICTURE_BYTES:
                break
        return [entry(self.index, self.store, album, feature, cfg.n_images) for feature in features], album

    def html(self) -> str:
        """The whole page."""
        entries, album = self.entries()
        here = files("saev_viz")
        css, js = (here.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
        sections = [
            ("gallery", "Features", self._gallery(entries, album)),
            ("map", "All features", self._map([e.feature for e in entries])),
            ("truth", "Recovered truth", self._truth([e.feature for e in entries])),
            ("numbers", "How good it is", self._metrics()),
            ("training", "Training", self._training()),
            ("run", "What was run", self._what()),
        ]
        sections = [section for section in sections if section[2]]
        toc = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in sections)
        body = "".join(f'<section id="{key}"><h2>{title}</h2>{text}</section>' for key, title, text in sections)
        title = f"{self._model} on {self._data}"
        # No source but the page itself: should anything here ever ask for the network, the browser refuses.
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)} · SAE features</title><style>{css}</style></head><body>"
            f'<header class="top">{self._head(toc)}</header><main>{body}</main>'
            f"<footer>Written by saev-viz {_version()}. This file is complete in itself: keep it, mail it, open it anywhere.</footer>"
            f"<script>{js}</script></body></html>\n"
        )

    @property
    def _model(self) -> str:
        return self.run.config.model.name

    @property
    def _data(self) -> str:
        return self.run.config.dataset.name

    def _head(self, toc: str) -> str:
        card, index = self.checkpoint.card, self.index
        n_firing = int((index.frequency > 0).sum())
        tiles = [
            ("Features", f"{index.d_sae:,}", f"{n_firing:,} of them fire"),
            ("Images", f"{index.n_images:,}", f"{index.n_vectors:,} vectors"),
        ]
        if "explained_variance" in card:
            tiles.append(
                ("Explained variance", f"{card['explained_variance']:.3f}", "on held-out images" if card.get("images") == "heldout" else "")
            )
        if "l0" in card:
            tiles.append(("Active at once", number(card["l0"]), "features per vector (L0)"))
        if "dead" in card:
            tiles.append(("Dead", percent(card["dead"]), "never fire"))
        if "mean" in (truth := self._recovery()):
            tiles.append(("Truth recovered", f"{truth['mean']:.2f}", "mean F1 of the best features"))
        grid = "".join(f'<div class="tile"><dt>{a}</dt><dd>{b}<small>{c}</small></dd></div>' for a, b, c in tiles)
        warn = f'<p class="warn" role="status">{escape(self.no_pictures)}</p>' if self.no_pictures else ""
        return (
            f'<p class="over">Sparse autoencoder features</p><h1>What {escape(self._model)} sees in {escape(self._data)}</h1>'
            f'<p class="lead">A sparse autoencoder took apart what the vision model <b>{escape(self._model)}</b> holds at '
            f"<b>{escape(self.checkpoint.site)}</b> into <b>{index.d_sae:,} features</b>. Below, features are shown on the pictures "
            f"that fire them most: the brighter a patch, the stronger.</p>{warn}"
            f'<nav class="toc" aria-label="Sections">{toc}</nav><dl class="tiles">{grid}</dl>'
        )

    def _gallery(self, entries: list[Entry], album: Album) -> str:
        cfg, level = self.run.config.report, float(self.index.attributes["percentile"])
        stops = ", ".join(f"#{colour}" for colour in COLOUR_MAPS["inferno"].split()[2:])
        bar = (
            '<div class="bar" role="toolbar" aria-label="Gallery">'
            '<label>Order <select id="sort">'
            '<option value="rank up">most telling first</option><option value="frequency down">most frequent first</option>'
            '<option value="frequency up">rarest first</option><option value="mean down">strongest first</option>'
            '<option value="number up">by number</option></select></label>'
            '<label>Heat map <input id="opacity" type="range" min="0" max="100" value="100"></label>'
            f'<span class="legend">0 <i style="background:linear-gradient(90deg,{stops})"></i> {_ordinal(level)} percentile</span>'
            '<label>Feature <input id="find" type="number" min="0" placeholder="number"></label><span id="found" class="note" role="status"></span>'
            '<span class="note keys"><kbd>j</kbd> <kbd>k</kbd> next, previous · <kbd>h</kbd> heat maps off and on</span></div>'
        )
        if not entries:
            ranges = f"log10 frequency {cfg.log_freq_range}, log10 mean value {cfg.log_value_range}"
            return f'<p class="warn">No feature lies within the ranges of the gallery ({ranges}); widen report.log_freq_range or report.log_value_range.</p>'
        lost = sum(1 for number_ in album.unreadable)
        warn = (
            f'<p class="warn">{lost} pictures could not be read, the first: {escape(next(iter(album.unreadable.values())))}</p>'
            if lost
            else ""
        )
        hint = "Point at a picture, or press it, to see it without its heat map." if self.dataset is not None else ""
        cards = "".join(self._card(e, rank) for rank, e in enumerate(entries))
        return (
            f'<p class="note">{len(entries)} of {self.index.d_sae:,} features, each with the distinct images that fire it most. {hint} '
            f"Areas that the model did not see are dimmed.</p>{warn}{bar}"
            f'<div id="cards">{cards}</div><details><summary>How these features were chosen</summary><p>{escape(RULE)} '
            f"Ranges: log10 frequency {cfg.log_freq_range[0]:g} to {cfg.log_freq_range[1]:g}, log10 mean value {cfg.log_value_range[0]:g} "
            f"to {cfg.log_value_range[1]:g} (<code>report.log_freq_range</code>, <code>report.log_value_range</code>); "
            f"always shown: {', '.join(map(str, cfg.include)) or 'none'} (<code>report.include</code>).</p></details>"
        )

    def _card(self, e: Entry, rank: int) -> str:
        facts = (
            f"<span>fires on <b>{percent(e.frequency)}</b> of patches</span><span><b>{percent(e.image_frequency)}</b> of images</span>"
            f"<span>mean <b>{number(e.mean)}</b></span><span>{_ordinal(float(self.index.attributes['percentile']))} percentile <b>{number(e.upper)}</b></span>"
            f"<span>max <b>{number(e.max)}</b></span>"
        )
        chips = ""
        if e.labels:
            names = self.classes
            items = "".join(
                f"<li>{escape(names[s.label] if s.label < len(names) else str(s.label))} <span>{percent(s.share)}</span></li>"
                for s in e.labels
            )
            chips = f'<ul class="chips" aria-label="Labels of the images that fire it, most frequent first">{items}</ul>'
        live = np.flatnonzero(e.histogram)
        first, last = (int(live[0]), int(live[-1]) + 1) if len(live) else (0, 1)
        edges = np.log(self.index.histogram_edges)
        mark = float((np.log(e.upper) - edges[first]) / (edges[last] - edges[first]))
        spark = bars(
            e.histogram[first:last],
            label="Distribution of its values; the line is the upper end of the heat maps",
            mark=np.clip(mark, 0, 1),
        )
        place = (
            f'<img class="place" src="{e.place_uri}" alt="Where in the picture it fires" title="where in the picture it fires">'
            if e.place_uri
            else ""
        )
        pictures = "".join(self._picture(e.feature, p) for p in e.pictures)
        return (
            f'<article class="card" id="f{e.feature}" data-number="{e.feature}" data-rank="{rank}" data-frequency="{e.frequency:.6g}" '
            f'data-mean="{e.mean:.6g}"><header><h3><a href="#f{e.feature}">Feature {e.feature}</a></h3><p class="facts">{facts}</p>{chips}'
            f'<div class="minis">{spark}{place}</div></header><ul class="pictures">{pictures}</ul></article>'
        )

    def _picture(self, feature: int, p: Picture) -> str:
        width, height = p.size
        where = (
            f"strongest in patch row {p.row + 1}, column {p.col + 1}, value {number(p.value)}" if p.map_uri else f"value {number(p.value)}"
        )
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

    def _map(self, shown: list[int]) -> str:
        alive = np.flatnonzero((self.index.frequency > 0) & (self.index.mean > 0))
        log_freq = np.log10(self.index.frequency[alive])
        log_value = np.log10(self.index.mean[alive].astype(float))
        return (
            '<p class="note">Every feature that fires is a point: how often against how strongly. Rare features lie to the left, features '
            "that fire nearly everywhere to the right. Those of the gallery are ringed; press one to see it.</p>"
            f'<div class="plot">{scatter(log_freq, log_value, alive.tolist(), shown)}<div id="tip" role="status"></div></div>'
        )

    def _recovery(self) -> dict[str, Any]:
        found = self.run.result("recovery").get(self.name, {})
        return found if isinstance(found, dict) else {}

    def _truth(self, shown: Collection[int]) -> str:
        found = self._recovery()
        if not found.get("rows"):
            return ""
        groups: dict[str, list[str]] = {}
        for row in found["rows"]:
            feature, f1 = int(row["feature"]), float(row["f1"])
            name = f'<a href="#f{feature}">{feature}</a>' if feature in shown else str(feature) if feature >= 0 else "none"
            groups.setdefault(str(row["factor"]), []).append(
                f'<tr><th scope="row">{escape(str(row["value"]))}</th><td><span class="meter"><i style="width:{100 * f1:.0f}%"></i></span>{f1:.2f}</td>'
                f'<td class="num">{name}</td></tr>'
            )
        means = found.get("factors", {})
        head = '<thead><tr><th></th><th>F1</th><th class="num">Feature</th></tr></thead>'
        tables = "".join(
            f"<div><h3>{escape(factor)}{f', mean {float(means[factor]):.2f}' if factor in means else ''}</h3>"
            f"<table>{head}<tbody>{''.join(rows)}</tbody></table></div>"
            for factor, rows in groups.items()
        )
        return (
            "<p>These pictures were drawn, so what is in them is known. For every value of every factor, the table names the one feature "
            "that tells it best: feature and threshold were chosen on the training images, F1 is over the patches of "
            f"{found.get('n_images', 0):,} held-out ones. The mean is <b>{float(found['mean']):.3f}</b>; 1 would be perfect.</p>"
            f'<div class="truth">{tables}</div>'
        )

    def _metrics(self) -> str:
        cards = {name: c.card for name, c in self.checkpoints.items() if c.card}
        if not cards:
            return f'<p class="note">Not evaluated yet: saev evaluate {escape(str(self.run.path))}.</p>'
        thresholds = {"almost_dead": 1e-7, "dense": 1e-2, **self.checkpoint.card.get("thresholds", {})}
        heads = "".join(f'<th class="num">{escape(name)}</th>' for name in cards)
        rows = []
        for key, title, why in METRICS:
            if not any(key in card for card in cards.values()):
                continue
            show = percent if key in ("dead", "almost_dead", "dense") else number
            cells = "".join(f'<td class="num">{show(float(card[key])) if key in card else "–"}</td>' for card in cards.values())
            text = escape(why.format(**thresholds))
            rows.append(f'<tr data-why="{text}"><th scope="row">{title}</th>{cells}<td class="why">{text}</td></tr>')
        card = next(iter(cards.values()))
        what = {"heldout": "images that training never saw", "all": "all images", "train": "training images"}.get(
            card.get("images", ""), "the images chosen"
        )
        return (
            f'<p class="note">Measured on {card.get("n_images", 0):,} {what}, {card.get("n_vectors", 0):,} vectors.</p><div class="wide"><table class="metrics">'
            f"<thead><tr><th></th>{heads}<th>In plain words</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )

    def _training(self) -> str:
        curves = read_curves(self.run.metrics_path)
        charts = [
            f"<div><h3>{title}</h3>{lines(curves[key], title)}</div>"
            for key, title in CURVES.items()
            if any(len(c) > 1 for c in curves.get(key, {}).values())
        ]
        return f'<div class="curves">{"".join(charts)}</div>' if charts else ""

    def _what(self) -> str:
        config, meta, trained = self.run.config, self.store.meta, self.checkpoint.train
        grid = self.store.grid
        facts = {
            "Model": _ref(config.model.name, config.model.options),
            "Layer": f"{self.checkpoint.site} of {meta.model.get('n_blocks', '?')} blocks; {meta.d_model} wide",
            "Patches": f"{grid.rows} × {grid.cols} of {grid.patch_px} px, {grid.n_prefix} other tokens",
            "Data set": _ref(config.dataset.name, config.dataset.options),
            "Images": f"{self.index.n_images:,} indexed, {config.read.heldout:.0%} of all held out",
            "Activations": f"{meta.dtype}, {config.read.tokens}",
            "SAE": _ref(config.sae.name, config.sae.options),
            "Trained on": f"{int(trained['n_tokens']):,} vectors" if isinstance(trained.get("n_tokens"), int | float) else "",
            "Seed": str(config.train.seed),
            "Versions": ", ".join(sorted({*self.run.plugins.values(), *(f"{k} {v}" for k, v in meta.versions.items())})),
        }
        rows = "".join(f'<tr><th scope="row">{key}</th><td>{escape(value)}</td></tr>' for key, value in facts.items() if value)
        text = escape(json.dumps(config.model_dump(mode="json"), indent=2))
        return f'<div class="wide"><table>{rows}</table></div><details><summary>The whole configuration</summary><pre tabindex="0">{text}</pre></details>'


def read_curves(path: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """metric -> SAE -> (step, value) in step order, from a run's `metrics.jsonl`; a step taken twice counts as its later self.

    A half-written last line, as a killed run leaves it, is passed over.
    """
    found: dict[str, dict[str, dict[float, float]]] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, Mapping) or event.get("event") != "stepped":
            continue
        for key in CURVES:
            value = event.get(key)
            if isinstance(value, int | float) and np.isfinite(value):
                found.setdefault(key, {}).setdefault(str(event["sae"]), {})[float(event["step"])] = float(value)
    return {key: {sae: _thin(sorted(points.items())) for sae, points in by_sae.items()} for key, by_sae in found.items()}


def _thin(points: list[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    step = max(1, len(points) // most)
    return [*points[:-1:step], points[-1]]


def _ref(name: str, options: Mapping[str, Any]) -> str:
    return name + (f" ({', '.join(f'{k}={v}' for k, v in options.items())})" if options else "")


def _ordinal(level: float) -> str:
    suffix = "th" if level % 1 or 10 < level % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(int(level) % 10, "th")
    return f"{level:g}{suffix}"


def _version() -> str:
    from importlib.metadata import version

    return version("saev-viz")
