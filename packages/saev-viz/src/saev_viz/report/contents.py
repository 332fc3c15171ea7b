"""`Contents`: everything a report shows, read from a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from saev_core import ImageDataset, Run, SaevError, Workspace
from saev_core.errors import ChangedDatasetError, RunError
from saev_viz.run_view.choose_features import Album, Entry, choose, entry

log = logging.getLogger(__name__)

TELLING = 0.6
"""Minimum F1 for a feature to count as detecting a ground-truth value; such features come first in the gallery."""
MAX_PICTURE_BYTES = 5_500_000
"""Upper limit for all thumbnails; above it they are scaled down, so that the file can be e-mailed."""
THUMBNAILS = ((224, 82), (192, 78), (160, 74), (128, 70), (96, 65))
"""Height in pixels and JPEG quality, tried in this order."""
CURVES = ("nmse", "l0", "dead", "loss")
"""Training metrics to plot."""


class Contents:
    """The parts of a run that its report shows.

    Raises:
        RunError: the run has no feature index yet.
        StoreError, CheckpointError: an artifact is damaged.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        # Unchecked: `store` would reject a run whose data set has moved, but its report can still be written.
        self.workspace = Workspace(run, sae_device="cpu")
        self.checkpoints = {name: self.workspace.checkpoint(name) for name in run.sae_names if run.features_path(name).exists()}
        if not self.checkpoints:
            raise RunError(f"{run.path} has no feature index yet; build one with saev index {run.path}.")
        self.store = self.workspace.store(checked=False)
        # Show the best SAE by `saev evaluate`, else the one with the lowest error; SAEs without a card come last.
        self.name = min(self.checkpoints, key=lambda name: (name != run.best, self.checkpoints[name].card.get("nmse", np.inf)))
        self.checkpoint = self.checkpoints[self.name]
        self.index = self.workspace.index(self.name)
        self.no_pictures = ""
        """Why there are no pictures; empty if there are."""
        self.dataset = self._dataset()

    def _dataset(self) -> ImageDataset | None:
        try:
            return self.workspace.dataset()
        except ChangedDatasetError:
            self.no_pictures = "The data set has changed since recording, so its pictures are not shown; record it again to show them."
        except SaevError as error:
            self.no_pictures = f"The pictures cannot be shown because the data set cannot be opened: {error}"
        log.warning("the report has no pictures: %s", self.no_pictures)
        return None

    @cached_property
    def classes(self) -> list[str]:
        """Label names by number; empty if there are none."""
        return [str(name) for name in (self.dataset.classes if self.dataset is not None else None) or ()]

    @property
    def level(self) -> float:
        """The percentile at which heat maps reach full colour."""
        return float(self.index.attributes["percentile"])

    def entries(self) -> tuple[list[Entry], Album]:
        """The gallery entries, with thumbnails as large as `MAX_PICTURE_BYTES` allows."""
        cfg = self.run.config.report
        W_dec = self.checkpoint.sae.W_dec.detach().cpu().numpy()
        features = choose(self.index, W_dec, cfg, first=self._telling(), labels=self.store.labels)
        numbers = [int(i) for i in self.index.top_index[features, : cfg.n_images].ravel() if i >= 0]
        album = Album(self.dataset)
        for size_px, quality in THUMBNAILS:
            album = Album(self.dataset, size_px, quality)
            album.load(numbers)
            if sum(len(album.get(number)[0]) for number in numbers) <= MAX_PICTURE_BYTES:
                break
        return [entry(self.index, self.store, album, feature, cfg.n_images) for feature in features], album

    @cached_property
    def recovery(self) -> dict[str, Any]:
        """How well features recover the data set's ground truth (`evaluation.known_truth`); empty if there is none."""
        found = self.run.result("recovery").get(self.name, {})
        return found if isinstance(found, dict) else {}

    @cached_property
    def best_values(self) -> dict[int, list[tuple[str, float]]]:
        """Feature -> the ground-truth values it detects, such as `colour: red`, with F1; best first."""
        found: dict[int, list[tuple[str, float]]] = {}
        for row in sorted(self.recovery.get("rows", []), key=lambda row: -float(row["f1"])):
            if float(row["f1"]) >= TELLING:
                found.setdefault(int(row["feature"]), []).append((f"{row['factor']}: {row['value']}", float(row["f1"])))
        return found

    def _telling(self) -> list[int]:
        """Features that detect a ground-truth value, best first: at most half of the gallery."""
        return list(self.best_values)[: self.run.config.report.n_features // 2]


Curves = dict[str, dict[str, list[tuple[float, float]]]]
"""metric -> SAE -> (step, value)."""


def read_curves(path: Path) -> Curves:
    """Training metrics from a run's `metrics.jsonl`, in step order; if a step was logged twice, the later line wins.

    Truncated lines, as left by a killed run, are skipped.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    found: dict[str, dict[str, dict[float, float]]] = {}
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
