"""Selects the features that a report shows, and prepares their pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from saev_core import ActivationStore, BadImageError, Box, FeatureIndex, ImageDataset, SaevError
from saev_core.config.stages import ReportConfig
from saev_core.features.index import LabelShare
from saev_viz.drawing.heat_maps import map_pixels

RULE = (
    "Candidates are the features within the ranges of log10 frequency and log10 mean value. A feature scores high if it fires on few "
    "pictures, fires far more strongly on its top pictures than on average and about equally on each of them, in one compact, "
    "connected region, at varying positions, and if its top pictures share a label. Candidates are split into five frequency bands; "
    "each band in turn contributes its best feature, penalising similarity to those already selected in decoder direction, top "
    "pictures and labels. Features are listed in selection order."
)
"""The rule of `choose`, for the reader of a report."""

N_CANDIDATES = 4000
"""Maximum number of features to score; if there are more, a random sample of this size is scored."""
BANDS = 5
ANOTHER_OF_A_LABEL = 0.6
"""Factor on a feature's score for each feature already selected whose top pictures mostly have the same label."""
MIN_LIFT = 2.0
"""Minimum lift of a label; labels below it are uninformative and left out."""


def choose(
    index: FeatureIndex,
    W_dec: Float[np.ndarray, "d_sae d_in"],
    cfg: ReportConfig,
    *,
    first: Sequence[int] = (),
    labels: Int[np.ndarray, " n_images"] | None = None,
    seed: int = 0,
) -> list[int]:
    """Features worth showing, see `RULE`: the included ones, then those of `first`, then the selected ones.

    Args:
        labels: the images' labels, -1 where unknown: features whose top pictures share them count as similar.
    """
    eligible = index.select(cfg.log_freq_range, cfg.log_value_range, n=N_CANDIDATES, seed=seed)
    chosen = index.select((1, 0), include=[*cfg.include, *first])  # empty range: validates and returns the included ones only
    if not eligible:
        return chosen
    top = index.top_index[:, : cfg.n_images]
    # Penalise features with fewer top pictures than requested: selected only if nothing better is left.
    score = interest(index, eligible, cfg.n_images) * np.minimum(1, (top[eligible] >= 0).sum(1) / cfg.n_images) ** 2
    if labels is not None:
        score *= 0.3 + 0.7 * purity(top[eligible], labels)
    log_freq = np.log10(index.frequency[eligible])
    band = np.searchsorted(np.quantile(log_freq, np.linspace(0, 1, BANDS + 1)[1:-1]), log_freq)
    unit = W_dec / np.maximum(np.linalg.norm(W_dec, axis=1, keepdims=True), 1e-12)
    likeness = np.zeros(len(eligible))
    kind = np.full(len(eligible), -1) if labels is None else common_label(top[eligible], labels)

    def take(feature: int) -> None:
        mine = top[feature][top[feature] >= 0]
        shared = np.isin(top[eligible], mine).mean(1)
        np.maximum(likeness, np.maximum(unit[eligible] @ unit[feature], shared), out=likeness)
        if labels is not None and (mine_kind := common_label(top[[feature]], labels)[0]) >= 0:
            score[kind == mine_kind] *= ANOTHER_OF_A_LABEL

    for feature in chosen:
        take(feature)
    free = ~np.isin(eligible, chosen)
    turn = 0
    while len(chosen) < cfg.n_features and free.any():
        here = free & (band == turn % BANDS)
        turn += 1
        if not here.any():
            continue
        best = int(np.argmax(np.where(here, score * (1 - np.clip(likeness, 0, 1) ** 2), -1)))
        free[best] = False
        chosen.append(eligible[best])
        take(eligible[best])
    return chosen


def interest(index: FeatureIndex, features: Sequence[int], n_images: int) -> Float[np.ndarray, " n"]:
    """Product of six factors in [0, 1], see `RULE`: contrast, evenness, compactness, connectedness, positional spread, rarity."""
    if not features:
        return np.zeros(0)
    top = index.top_value[features, :n_images].astype(float)
    evenness = np.sqrt(top[:, -1] / np.maximum(top[:, 0], 1e-30))
    # Features whose top pictures are barely stronger than average look like noise on the page.
    contrast = np.clip((top.mean(1) / np.maximum(index.mean[features], 1e-30) - 1) / 3, 0.05, 1)
    if index.grid.n_patches == 1:
        return np.asarray(evenness * contrast)
    maps = index.top_maps(features, n_images).astype(np.float64)  # [n, k, n_patches]
    energy = np.maximum((maps**2).sum(-1), 1e-30)
    area = maps.sum(-1) ** 2 / energy / maps.shape[-1]  # effective fraction of patches
    compact = np.clip((0.6 - area) / 0.4, 0.05, 1) * np.minimum(1, 0.4 + 0.2 * area * maps.shape[-1])
    grid = index.grid.to_map(maps)  # [n, k, rows, cols]
    beside = (grid[..., 1:] * grid[..., :-1]).sum((-1, -2)) + (grid[..., 1:, :] * grid[..., :-1, :]).sum((-1, -2))
    connected = 0.2 + 0.8 * np.minimum(1, beside / (1.4 * energy))
    place = index.position[features].astype(float)
    spread = np.exp(-(place * np.log(np.maximum(place, 1e-30))).sum(1)) / place.shape[1]
    free = np.clip((spread - 0.2) / 0.5, 0.05, 1)
    # Features that fire in nearly every picture are uninformative.
    rare = 1 - index.image_frequency[features].astype(float)
    score: np.ndarray = contrast * evenness * (compact * connected).mean(1) * free * rare
    return score


def common_label(top: Int[np.ndarray, "n k"], labels: Int[np.ndarray, " n_images"]) -> Int[np.ndarray, " n"]:
    """The label of at least half of each row's pictures; -1 if there is none."""
    of = np.where(top >= 0, labels[top], -1)
    middle = np.sort(of, axis=1)[:, [top.shape[1] // 2, (top.shape[1] - 1) // 2]]  # a majority includes a middle element
    best: np.ndarray = np.full(len(top), -1)
    for candidate in middle.T:
        best = np.where((of == candidate[:, None]).mean(1) >= 0.5, candidate, best)
    return best


def purity(top: Int[np.ndarray, "n k"], labels: Int[np.ndarray, " n_images"]) -> Float[np.ndarray, " n"]:
    """Fraction of each row's pictures that have its most common known label; missing pictures (-1) lower it."""
    of = np.where(top >= 0, labels[top], -1)  # [n, k]
    same = (of[:, :, None] == of[:, None, :]) & (of >= 0)[:, :, None]
    share: np.ndarray = same.sum(2).max(1) / top.shape[1]
    return share


@dataclass(frozen=True)
class Picture:
    """One top image of a feature, ready for a page; `map_uri` covers `box`, in percent of the picture."""

    index: int
    uri: str
    size: tuple[int, int]
    map_uri: str
    box: tuple[float, float, float, float]
    """Left, top, width, height."""
    value: float
    row: int
    col: int


@dataclass(frozen=True)
class Entry:
    """A feature of the gallery."""

    feature: int
    frequency: float
    image_frequency: float
    mean: float
    max: float
    upper: float
    histogram: Float[np.ndarray, " n_bins"]
    place_uri: str
    labels: list[LabelShare]
    pictures: list[Picture]


@dataclass
class Album:
    """Thumbnails of the data set's images by number, each decoded once."""

    dataset: ImageDataset | None
    size_px: int = 200
    quality: int = 80
    unreadable: dict[int, str] = field(default_factory=dict)
    _made: dict[int, tuple[str, tuple[int, int]]] = field(default_factory=dict)

    def load(self, numbers: Iterable[int]) -> None:
        """Read the images `numbers`, in ascending order; failures are recorded in `unreadable`."""
        wanted = sorted(set(numbers) - set(self._made))
        if self.dataset is None or not wanted:
            return
        if self.dataset.sequential:
            keep = set(wanted)
            for number, example in enumerate(self.dataset.examples(0, wanted[-1] + 1)):
                if number in keep:
                    self._keep(number, example.image if not isinstance(example, BadImageError) else example)
            return
        for number in wanted:
            try:
                self._keep(number, self.dataset[number].image)
            except SaevError as error:
                self._keep(number, error)

    def _keep(self, number: int, image: Image.Image | SaevError) -> None:
        if isinstance(image, SaevError):
            self.unreadable[number] = str(image)
            return
        size = image.size
        small = image.convert("RGB")
        small.thumbnail((self.size_px * 3 // 2, self.size_px), Image.Resampling.LANCZOS)
        # JPEG blurs tiny pictures such as CIFAR's, which are small enough as PNG.
        self._made[number] = (_uri(small, None if max(size) <= 96 else self.quality), size)

    def get(self, number: int) -> tuple[str, tuple[int, int]]:
        """Data URI of the thumbnail and size of the original; an empty URI if it cannot be read."""
        return self._made.get(number, ("", (0, 0)))

    @property
    def n_bytes(self) -> int:
        return sum(len(uri) for uri, _ in self._made.values())


def _uri(image: Image.Image, quality: int | None = None) -> str:
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def relative(crop: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A crop as left, top, width and height in percent of the picture."""
    width, height = size
    left, top = crop.left / width * 100, crop.top / height * 100
    return left, top, (crop.right - crop.left) / width * 100, (crop.bottom - crop.top) / height * 100


def entry(index: FeatureIndex, store: ActivationStore, album: Album, feature: int, n_images: int) -> Entry:
    """A feature with its top pictures; heat maps reach full colour at the index's percentile."""
    level = float(index.attributes["percentile"])
    upper = float(index.percentile(level)[feature]) or 1.0
    pictures = []
    for top in index.top(feature, n_images):
        uri, size = album.get(top.index)
        shape = size if uri else (index.grid.width_px, index.grid.height_px)
        crop = store.crop(top.index) if uri else Box(0, 0, *shape)
        values = index.grid.to_map(top.map.astype(float))
        map_uri = _uri(Image.fromarray(map_pixels(values, upper=upper, opacity=0.75))) if index.grid.n_patches > 1 else ""
        row, col = divmod(top.token, index.grid.cols)
        pictures.append(Picture(top.index, uri, shape, map_uri, relative(crop, shape), top.value, row, col))
    place = index.grid.to_map(index.position[feature].astype(float))
    place_uri = _uri(Image.fromarray(map_pixels(place, upper=float(place.max()), opacity=1))) if index.grid.n_patches > 1 else ""
    return Entry(
        feature,
        float(index.frequency[feature]),
        float(index.image_frequency[feature]),
        float(index.mean[feature]),
        float(index.max[feature]),
        upper,
        index.histogram[feature].astype(float),
        place_uri,
        [share for share in index.labels(feature, 3) if share.lift >= MIN_LIFT],
        pictures,
    )
