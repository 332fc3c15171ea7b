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
"""F1 from which a feature counts as telling a known truth; such features head the gallery."""
MAX_PICTURE_BYTES = 5_500_000
"""Bytes of thumbnails above which they are made smaller, so that the file can be mailed."""
THUMBNAILS = ((224, 82), (192, 78), (160, 74), (128, 70), (96, 65))
"""Height in pixels and JPEG quality, tried in this order."""
CURVES = ("nmse", "l0", "dead", "loss")
"""Training metrics that are drawn."""


class Contents:
    """The parts of a run that its report shows.

    Raises:
        RunError: the run has no feature index yet.
        StoreError, CheckpointError: an artifact is damaged.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        # A report is also written of a run whose pictures have moved, which `store` would refuse: each SAE says whether the store fits.
        self.workspace = Workspace(run, sae_device="cpu")
        self.checkpoints = {name: self.workspace.checkpoint(name) for name in run.sae_names if run.features_path(name).exists()}
        if not self.checkpoints:
            raise RunError(f"{run.path} has no feature index yet; make one with saev index {run.path}.")
        self.store = self.workspace.store(checked=False)
        # Of several the best by `saev evaluate` is shown, or else the one with the lowest error; one without a card comes last.
        self.name = min(self.checkpoints, key=lambda name: (name != run.best, self.checkpoints[name].card.get("nmse", np.inf)))
        self.checkpoint = self.checkpoints[self.name]
        self.index = self.workspace.index(self.name)
        self.no_pictures = ""
        """Why there are none; empty where there are."""
        self.dataset = self._dataset()

    def _dataset(self) -> ImageDataset | None:
        try:
            return self.workspace.dataset()
        except ChangedDatasetError:
            self.no_pictures = "The data set has changed since it was recorded, so its pictures are not shown; record it again to see them."
        except SaevError as error:
            self.no_pictures = f"The pictures cannot be shown, for the data set cannot be opened: {error}"
        log.warning("the report has no pictures: %s", self.no_pictures)
        return None

    @cached_property
    def classes(self) -> list[str]:
        """Names of the labels, by number; empty where there are none."""
        return [str(name) for name in (self.dataset.classes if self.dataset is not None else None) or ()]

    @property
    def level(self) -> float:
        """The percentile that heat maps take as their upper end."""
        return float(self.index.attributes["percentile"])

    def entries(self) -> tuple[list[Entry], Album]:
        """The gallery, its thumbnails as large as `MAX_PICTURE_BYTES` allows."""
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
        """How well features tell what the data set knows of its pictures (`evaluation.known_truth`); empty where it knows nothing."""
        found = self.run.result("recovery").get(self.name, {})
        return found if isinstance(found, dict) else {}

    @cached_property
    def best_values(self) -> dict[int, list[tuple[str, float]]]:
        """Feature -> what it tells, such as `colour: red`, with its F1; best first."""
        found: dict[int, list[tuple[str, float]]] = {}
        for row in sorted(self.recovery.get("rows", []), key=lambda row: -float(row["f1"])):
            if float(row["f1"]) >= TELLING:
                found.setdefault(int(row["feature"]), []).append((f"{row['factor']}: {row['value']}", float(row["f1"])))
        return found

    def _telling(self) -> list[int]:
        """Features that tell a known truth, best first: at most half of the gallery."""
        return list(self.best_values)[: self.run.config.report.n_features // 2]


Curves = dict[str, dict[str, list[tuple[float, float]]]]
"""metric -> SAE -> (step, value)."""


def read_curves(path: Path) -> Curves:
    """Training metrics from a run's `metrics.jsonl`, in step order; of a step that was taken twice the later line counts.

    A half-written line, as a killed run leaves it, is passed over.
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
