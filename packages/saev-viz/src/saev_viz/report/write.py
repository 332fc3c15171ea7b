"""`report.html`: the results of a run in one file that needs no network, server or other file."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.metadata import version
from pathlib import Path

from PIL import Image

from saev_core import Run
from saev_core.errors import RunError
from saev_core.support.files import replace_file
from saev_viz.drawing.charts import percent
from saev_viz.drawing.heat_maps import heat_map
from saev_viz.html import pareto
from saev_viz.report import sections
from saev_viz.report.contents import Contents, read_curves
from saev_viz.static import read_asset

# Allow no external sources, so that the browser blocks any network request from the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(run: Run) -> Path:
    """Write `run.report_path` from the run's artifacts and return its path.

    Images are read from the run's data set; if that cannot be opened, the page shows heat maps alone and
    explains why.

    Raises:
        RunError: the run has no feature index yet, or the page cannot be written.
        StoreError, CheckpointError: an artifact is damaged.
    """
    text = page(Contents(run))
    path = run.report_path
    try:
        replace_file(path, text)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}); check permissions and free space.") from None
    return path


def page(have: Contents) -> str:
    """The complete page."""
    entries, album = have.entries()
    shown = [e.feature for e in entries]
    parts = [
        ("gallery", "Features", sections.gallery(have, entries, album)),
        ("map", "All features", sections.overview(have, shown)),
        ("saes", "SAE comparison", pareto.section(have.run.result("pareto"), have.run.result("stability"))),
        ("truth", "Recovered ground truth", sections.truth(have, shown)),
        ("numbers", "Metrics", sections.metrics(have)),
        ("training", "Training", sections.training(read_curves(have.run.metrics_path))),
        ("run", "Configuration", sections.settings(have)),
    ]
    parts = [part for part in parts if part[2]]
    toc = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in parts)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{text}</section>' for key, title, text in parts)
    css, js = read_asset("report.css"), read_asset("report.js")
    title = escape(f"{have.run.config.model.name} on {have.run.config.dataset.name}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}: SAE features</title><style>{css}</style></head><body>"
        f'<header class="top">{sections.head(have, toc)}</header><main>{body}</main>'
        f"<footer>Written by saev-viz {version('saev-viz')}. This file is self-contained and works offline.</footer>"
        f"<script>{js}</script></body></html>\n"
    )


def feature_rows(run: Run, features: Iterable[int], n_images: int = 8, size_px: int = 300) -> list[tuple[str, list[Image.Image]]]:
    """Captions and overlays of some features of a run, for `overlay.sheet`.

    Raises:
        RunError: the run has no index, no such feature, or its pictures cannot be read.
    """
    have = Contents(run)
    if have.dataset is None:
        raise RunError(f"{run.path}: {have.no_pictures}")
    index, rows = have.index, []
    for feature in features:
        tops = index.top(feature, n_images)
        upper = float(index.percentile(have.level)[feature]) or 1.0
        pictures = [
            heat_map(have.dataset[top.index].image, index.grid.to_map(top.map), have.store.crop(top.index), upper=upper, size_px=size_px)
            for top in tops
        ]
        rows.append((f"feature {feature}: fires on {percent(float(index.frequency[feature]))} of patches", pictures))
    return rows
