"""`FeatureIndex`: how often and how strongly every feature fires, and its top images with heat maps. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import zarr
from jaxtyping import Float, Int

from saev_core.errors import RunError
from saev_core.features.histogram import edges
from saev_core.support.files import recover_folder
from saev_core.types import Grid

if TYPE_CHECKING:
    from saev_core.sae.checkpoint import Checkpoint

FORMAT = 2
"""Version of the index layout; others are refused."""
KEEP_ROWS = 256
"""Number of cached array rows, some kilobytes each: a feature's page reads several of its rows more than once."""


@dataclass(frozen=True)
class TopImage:
    """One of a feature's top images: its number, the patch with the largest value, that value, and all patches' values."""

    index: int
    token: int
    value: float
    map: Float[np.ndarray, " n_patches"]


@dataclass(frozen=True)
class Sample:
    """A random image that fires a feature: its number, its strongest patch, the value there, other features there."""

    index: int
    token: int
    value: float
    coactive: tuple[int, ...]
    """The strongest other features on that patch, strongest first."""


@dataclass(frozen=True)
class LabelShare:
    """How a label relates to a feature: number and share of firing images with that label, and the lift over chance."""

    label: int
    n_images: int
    share: float
    """Share of the images that fire the feature which have this label."""
    lift: float
    """`share` over the label's share of all labelled images; shrunk towards 1 if few images fire."""
    of_label: float = 0.0
    """Share of the images with this label which fire the feature."""


class FeatureIndex:
    """A feature index on disk; arrays are read on first use."""

    def __init__(self, path: Path, attributes: dict[str, Any]) -> None:
        self.path = path
        self.attributes = attributes
        self._group = zarr.open_group(path, mode="r", zarr_format=3)
        self._opened: dict[str, zarr.Array[Any]] = {}
        self._kept = lru_cache(KEEP_ROWS)(self._read_row)
        self.n_images: int = attributes["n_images"]
        self.n_vectors: int = attributes["n_vectors"]
        self.percentile_levels: tuple[float, ...] = tuple(attributes["percentiles"])

    @classmethod
    def open(cls, path: str | Path, checkpoint: Checkpoint | None = None) -> Self:
        """Open the index at `path`; given a checkpoint, check that the index belongs to it.

        Raises:
            RunError: there is no index, or it has another format or belongs to another checkpoint.
        """
        path = Path(path)
        recover_folder(path)
        try:
            attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        except FileNotFoundError:
            raise RunError(f"{path} is not a feature index; create one with saev index RUN.") from None
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{path} is not a readable feature index ({error}); rebuild it with saev index RUN.") from None
        if attributes.get("saev_features") != FORMAT:
            have = attributes.get("saev_features", "none")
            raise RunError(f"{path}: feature index format {have}, this version reads {FORMAT}; rebuild it with saev index RUN.")
        found = cls(path, attributes)
        if checkpoint is not None:
            found.check(checkpoint)
        return found

    def check(self, checkpoint: Checkpoint) -> None:
        """
        Raises:
            RunError: the index belongs to another checkpoint.
        """
        if self.attributes.get("checkpoint") != checkpoint.fingerprint:
            raise RunError(f"{self.path} is the index of another checkpoint; rebuild it with saev index RUN.")

    @staticmethod
    def counts_labels(path: str | Path) -> bool:
        """Whether the index at `path` counts labels, without opening it; False where there is no index."""
        return (Path(path) / "label_count").is_dir()

    def _array(self, name: str) -> zarr.Array[Any]:
        # Opening an array takes zarr two milliseconds, and a page reads sixteen rows.
        if (array := self._opened.get(name)) is None:
            found = self._group.get(name)
            if not isinstance(found, zarr.Array):
                raise RunError(f"{self.path} has no {name}: it is damaged or from an earlier version; rebuild it with saev index RUN.")
            array = self._opened[name] = found
        return array

    def _read(self, name: str) -> np.ndarray[Any, Any]:
        return np.asarray(self._array(name)[:])

    def _row(self, name: str, feature: int) -> np.ndarray[Any, Any]:
        if not 0 <= feature < self.d_sae:
            raise RunError(f"feature {feature}: this SAE has features 0 to {self.d_sae - 1}.")
        return self._kept(name, feature)

    def _read_row(self, name: str, feature: int) -> np.ndarray[Any, Any]:
        row = np.asarray(self._array(name)[feature])
        row.setflags(write=False)  # it is cached and shared
        return row

    @cached_property
    def frequency(self) -> Float[np.ndarray, " d_sae"]:
        """Share of patches that fire the feature."""
        return self._read("frequency")

    @cached_property
    def image_frequency(self) -> Float[np.ndarray, " d_sae"]:
        """Share of images with at least one patch that fires the feature."""
        return self._read("image_frequency")

    @cached_property
    def mean(self) -> Float[np.ndarray, " d_sae"]:
        """Mean of the non-zero values."""
        return self._read("mean")

    @cached_property
    def monosemanticity(self) -> Float[np.ndarray, " d_sae"]:
        """Similarity of the images that fire it, see `Monosemanticity`; an image's embedding is its mean recorded vector,
        centred. NaN if fewer than two images fire."""
        return self._read("monosemanticity")

    @cached_property
    def concentration(self) -> Float[np.ndarray, " d_sae"]:
        """1 - the share of the image it covers on its top images: near 1 for one patch, 0 if spread evenly; NaN if it never
        fires, or there is only one patch."""
        return self._read("concentration")

    @cached_property
    def max(self) -> Float[np.ndarray, " d_sae"]:
        """Largest value."""
        return self._read("max")

    @cached_property
    def percentiles(self) -> Float[np.ndarray, "d_sae n_levels"]:
        """Percentiles `percentile_levels` of the non-zero values, with an error of at most 1.6 %."""
        return self._read("percentiles")

    @cached_property
    def histogram(self) -> Int[np.ndarray, "d_sae n_bins"]:
        """Counts of non-zero values between `histogram_edges`."""
        return self._read("histogram")

    @cached_property
    def position(self) -> Float[np.ndarray, "d_sae n_patches"]:
        """Where in the image a feature fires: each patch position's share of its summed value."""
        return self._read("position")

    @cached_property
    def top_index(self) -> Int[np.ndarray, "d_sae k"]:
        """Numbers of the top images, strongest first; padded with -1."""
        return self._read("top_index")

    @cached_property
    def top_value(self) -> Float[np.ndarray, "d_sae k"]:
        """The largest patch value in each top image."""
        return self._read("top_value")

    @cached_property
    def patch_active(self) -> Int[np.ndarray, " n"]:
        """Number of patches with 0, 1, 2 ... active features: the distribution whose mean is L0."""
        return self._read("patch_active")

    @cached_property
    def image_active(self) -> Int[np.ndarray, " n"]:
        """Number of images on which 0, 1, 2 ... distinct features fire."""
        return self._read("image_active")

    @property
    def histogram_edges(self) -> Float[np.ndarray, " n_bins_plus_1"]:
        return edges(4)

    @property
    def d_sae(self) -> int:
        return len(self.frequency)

    @property
    def grid(self) -> Grid:
        """Shape of the heat maps."""
        return Grid(**self.attributes["grid"])

    @property
    def has_labels(self) -> bool:
        return "label_images" in self._group

    def percentile(self, level: float) -> Float[np.ndarray, " d_sae"]:
        """Every feature's percentile `level`.

        Raises:
            RunError: that percentile is not stored.
        """
        if level not in self.percentile_levels:
            raise RunError(f"{self.path} has percentiles {self.percentile_levels}, not {level:g}; set index.percentile and index again.")
        return self.percentiles[:, self.percentile_levels.index(level)]

    def top(self, feature: int, n: int | None = None) -> list[TopImage]:
        """A feature's top images, strongest first, at most `n`.

        Raises:
            RunError: no such feature.
        """
        rows = (self._row(name, feature) for name in ("top_index", "top_token", "top_value", "top_map"))
        images = [TopImage(int(i), int(t), float(v), m) for i, t, v, m in zip(*rows, strict=True) if i >= 0]
        return images[:n]

    def values(self, feature: int) -> Int[np.ndarray, " n_bins"]:
        """One feature's row of `histogram`, without reading the others.

        Raises:
            RunError: no such feature.
        """
        return self._row("histogram", feature)

    def place(self, feature: int) -> Float[np.ndarray, "rows cols"]:
        """One feature's row of `position` as a map, without reading the others.

        Raises:
            RunError: no such feature.
        """
        return self._row("position", feature).reshape(self.grid.rows, self.grid.cols)

    def samples(self, feature: int) -> list[Sample]:
        """Images drawn uniformly from all that fire a feature, weakest first.

        Raises:
            RunError: no such feature.
        """
        rows = (self._row(f"sample_{name}", feature) for name in ("index", "token", "value", "beside"))
        found = [
            Sample(int(i), int(t), float(v), tuple(int(b) for b in coactive if b >= 0))
            for i, t, v, coactive in zip(*rows, strict=True)
            if i >= 0
        ]
        return sorted(found, key=lambda sample: (sample.value, sample.index))

    def together(self, feature: int, n: int = 8) -> list[tuple[int, float]]:
        """Features that often fire on the same patches, each with the share of this feature's sampled patches on which it is among
        the strongest; sorted by that share relative to what the other feature's frequency gives by chance.

        Raises:
            RunError: no such feature.
        """
        samples = self.samples(feature)
        others, counts = np.unique([b for sample in samples for b in sample.coactive], return_counts=True)
        share = counts / max(len(samples), 1)
        # One extra chance image, so that a single co-occurrence does not rank first.
        lift = (counts + self.frequency[others.astype(int)]) / ((len(samples) + 1) * np.maximum(self.frequency[others.astype(int)], 1e-9))
        order = np.argsort(-np.where(counts > 1, lift * share, 0), kind="stable")[:n]
        return [(int(others[i]), float(share[i])) for i in order if counts[i] > 1]

    def top_maps(self, features: Sequence[int], n: int) -> Float[np.ndarray, "n_features n n_patches"]:
        """Heat maps of the `n` strongest images of many features, float16; zero-padded if there are fewer images."""
        array = self._array("top_map")
        wanted = np.asarray(features, int)
        out = np.zeros((len(wanted), min(n, array.shape[1]), array.shape[2]), np.float16)
        step = (array.shards or array.chunks)[0]
        for start in np.unique(wanted // step) * step:  # whole shards: far cheaper than reading single features
            here = np.flatnonzero((wanted >= start) & (wanted < start + step))
            out[here] = np.asarray(array[int(start) : int(start) + step])[wanted[here] - start, :n]
        return out

    @cached_property
    def _label_images(self) -> Int[np.ndarray, " n_labels"]:
        return self._read("label_images")

    def labels(self, feature: int, n: int = 5, by: Literal["count", "lift"] = "lift") -> list[LabelShare]:
        """The labels associated with a feature; empty if the data set has none.

        Lift = P(label | fires) / P(label), with the share smoothed by `5` chance images, so that
        a feature that fires on two images does not top the list.

        Raises:
            RunError: no such feature.
        """
        if not self.has_labels:
            return []
        count = self._row("label_count", feature)
        total = count.sum()
        base = self._label_images / max(self._label_images.sum(), 1)
        share = count / max(total, 1)
        lift = np.divide((count + 5 * base) / (total + 5), base, out=np.zeros(len(base)), where=base > 0)
        order = np.argsort(-(lift if by == "lift" else count), kind="stable")[:n]
        return [
            LabelShare(int(i), int(count[i]), float(share[i]), float(lift[i]), float(count[i] / self._label_images[i]))
            for i in order
            if count[i] > 0
        ]

    @cached_property
    def best_labels(self) -> tuple[Int[np.ndarray, " d_sae"], Float[np.ndarray, " d_sae"]]:
        """For every feature the label with the largest lift, see `labels`, and that lift; -1 and NaN if there is none."""
        best, found = np.full(self.d_sae, -1), np.full(self.d_sae, np.nan, np.float32)
        if not self.has_labels:
            return best, found
        counts = self._array("label_count")
        base = self._label_images / max(self._label_images.sum(), 1)
        step = counts.chunks[0]
        for start in range(0, self.d_sae, step):  # bounds the memory
            count = np.asarray(counts[start : start + step])
            row, label = count.nonzero()  # most counts are zero
            lift = (count[row, label] + 5 * base[label]) / (count.sum(1)[row] + 5) / np.maximum(base[label], 1e-30)
            if len(row):
                some, first, n = np.unique(row, return_index=True, return_counts=True)
                largest = np.maximum.reduceat(lift, first)
                at = np.flatnonzero(lift == np.repeat(largest, n))[::-1]  # backwards: the lowest label wins ties
                best[start + row[at]], found[start + some] = label[at], largest
        return best, found

    def with_label(self, label: int, n: int | None = None) -> list[tuple[int, LabelShare]]:
        """Features that fire on images with a label, by descending lift, see `labels`; ties go to the more frequent feature.

        Raises:
            RunError: no such label.
        """
        if not self.has_labels or not 0 <= label < len(self._label_images):
            raise RunError(f"{self.path} has no label {label}.")
        counts = self._array("label_count")
        count, total = np.zeros(self.d_sae, np.int64), np.zeros(self.d_sae, np.int64)
        step = counts.chunks[0]
        for start in range(0, self.d_sae, step):  # bounds the memory
            block = np.asarray(counts[start : start + step])
            count[start : start + step], total[start : start + step] = block[:, label], block.sum(1)
        n_label, n_all = int(self._label_images[label]), int(self._label_images.sum())
        base = n_label / max(n_all, 1)
        lift = (count + 5 * base) / (total + 5) / base if base > 0 else np.zeros(self.d_sae)
        found = np.flatnonzero(count)
        order = found[np.lexsort((-count[found], -lift[found]))][:n]
        return [
            (int(f), LabelShare(label, int(count[f]), float(count[f] / total[f]), float(lift[f]), float(count[f] / n_label))) for f in order
        ]

    def select(
        self,
        log_freq_range: tuple[float, float] = (-math.inf, math.inf),
        log_value_range: tuple[float, float] = (-math.inf, math.inf),
        include: Sequence[int] = (),
        n: int | None = None,
        seed: int = 0,
    ) -> list[int]:
        """Features whose log10 frequency and log10 mean value are within the ranges, inclusive.

        Args:
            include: features that come first, regardless of the ranges.
            n: maximum number, drawn with `seed` in addition to `include`; None: all, ascending.

        Raises:
            RunError: `include` names a feature that does not exist.
        """
        for feature in include:
            if not 0 <= feature < self.d_sae:
                raise RunError(f"feature {feature}: this SAE has features 0 to {self.d_sae - 1}.")
        alive = (self.frequency > 0) & (self.mean > 0)
        log_freq = np.log10(self.frequency, out=np.full(self.d_sae, np.nan), where=alive)
        log_value = np.log10(self.mean.astype(np.float64), out=np.full(self.d_sae, np.nan), where=alive)
        inside = (log_freq >= log_freq_range[0]) & (log_freq <= log_freq_range[1])
        inside &= (log_value >= log_value_range[0]) & (log_value <= log_value_range[1])
        chosen = list(dict.fromkeys(include))
        rest = np.setdiff1d(np.flatnonzero(inside), chosen)
        if n is not None:
            n_more = min(len(rest), max(0, n - len(chosen)))
            rest = np.sort(np.random.default_rng(seed).choice(rest, n_more, replace=False))
        return chosen + [int(feature) for feature in rest]
