"""`FeatureAccumulator`: gathers all per-feature data of an index in one pass over the images and writes it at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float, Int
from zarr.codecs import ZstdCodec

from saev_core.errors import StoreError
from saev_core.features.histogram import LogHistogram
from saev_core.features.monosemanticity import Monosemanticity
from saev_core.features.random_images import Samples
from saev_core.features.top_images import TopImages, zeros_on_disk_if_large
from saev_core.sae.codes import Codes
from saev_core.support.files import replace_folder

PERCENTILES = (1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
"""Percentiles of the non-zero values stored for every feature, in addition to `IndexConfig.percentile`."""


class FeatureAccumulator:
    """One pass over images: feed batches of codes in ascending image order, then `write`.

    Memory depends on the number of features, kept images, patches and labels, not on the number of images.
    """

    def __init__(
        self,
        d_sae: int,
        n_patches: int,
        top_k: int,
        *,
        n_samples: int = 0,
        n_labels: int = 0,
        d_embedding: int = 0,
        wide: bool = False,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            n_samples: images drawn at random from all that fire a feature, in addition to the strongest ones.
            d_embedding: width of the image embeddings used for monosemanticity; 0: none.
            n_labels: labels are 0 to `n_labels - 1`; 0: no labels.
            wide: count in 64 bits, for more than 2^31 vectors.
            folder: where arrays above 1 GiB are memory-mapped; None: all in memory.
        """
        self.d_sae, self.n_patches, self.n_labels = d_sae, n_patches, n_labels
        self.n_images = self.n_vectors = 0
        self.histogram = LogHistogram(d_sae, wide=wide)
        self.top = TopImages(d_sae, top_k, n_patches, folder=folder)
        self.samples = Samples(d_sae, n_samples)
        self.alike = Monosemanticity(d_sae, d_embedding) if d_embedding else None
        self.sum = np.zeros(d_sae)
        self.max = np.zeros(d_sae, np.float32)
        self.images_firing = np.zeros(d_sae, np.int64)
        self.patch_active = np.zeros(1, np.int64)
        self.image_active = np.zeros(1, np.int64)
        self.position = np.zeros((d_sae, n_patches), np.float32)
        self.label_count = zeros_on_disk_if_large((n_labels, d_sae), np.int32, folder)
        self.label_images = np.zeros(n_labels, np.int64)

    def add(
        self,
        index: Int[np.ndarray, " b"],
        codes: Codes | Sequence[Codes],
        labels: Int[np.ndarray, " b"] | None = None,
        embedding: Float[np.ndarray, "b d"] | None = None,
    ) -> None:
        """Add images `index` with the codes of all their patches in order: row `i * n_patches + token`.

        Args:
            codes: one per layer if the SAE reads several layers as separate examples; every vector then counts for
                frequency and mean, and a heat map shows each patch's largest value over the layers.
            labels: their labels, -1 where unknown.
            embedding: one per image, centred, not normalised.

        Raises:
            ValueError: the images are not in ascending order, or the codes do not match them.
        """
        b = len(index)
        parts = [codes] if isinstance(codes, Codes) else codes
        for part in parts:
            if len(part) != b * self.n_patches or part.d_sae != self.d_sae:
                raise ValueError(f"{len(part)} codes of {part.d_sae} features do not match {b} images of {self.n_patches} patches.")
        value, feature, row, active = _joined(parts)
        row, token = np.divmod(row, self.n_patches)
        if not np.isfinite(value).all():
            raise StoreError(f"image {index[row[~np.isfinite(value)][0]]} has feature values that are not finite; run saev store verify.")
        peak = np.zeros((b, self.d_sae), np.float32)
        np.maximum.at(peak.reshape(-1), row * self.d_sae + feature, value)
        fired = peak > 0

        self.n_images += b
        self.n_vectors += b * self.n_patches * len(parts)
        self.histogram.add(feature, value)
        self.sum += np.bincount(feature, weights=value, minlength=self.d_sae)
        np.add.at(self.position.reshape(-1), feature * self.n_patches + token, value)
        np.maximum(self.max, peak.max(0, initial=0), out=self.max)
        self.images_firing += fired.sum(0)
        self.patch_active = _counted(self.patch_active, active)
        self.image_active = _counted(self.image_active, fired.sum(1))
        if labels is not None:
            for label, line in zip(labels, fired, strict=True):
                if 0 <= label < self.n_labels:
                    self.label_images[label] += 1
                    self.label_count[label] += line
        if self.alike is not None and embedding is not None:
            self.alike.add(peak, embedding)
        self.top.add(np.asarray(index), peak, row=row, token=token, feature=feature, value=value)
        self.samples.add(np.asarray(index), peak, row=row, token=token, feature=feature, value=value, n_patches=self.n_patches)

    def arrays(self, percentiles: Sequence[float]) -> dict[str, np.ndarray[Any, Any]]:
        """Statistics of every feature, except heat maps and label counts, and the distribution of active features."""
        self.top.merge()
        self.samples.merge()
        n = self.histogram.total
        found = self.histogram.percentiles(percentiles)
        numbers = {"monosemanticity": self.alike.result()} if self.alike is not None else {}
        return numbers | {
            "frequency": n / max(self.n_vectors, 1),
            "image_frequency": self.images_firing / max(self.n_images, 1),
            "mean": (self.sum / np.maximum(n, 1)).astype(np.float32),
            "max": self.max,
            # A bin's midpoint may exceed the largest value in it.
            "percentiles": np.minimum(found, self.max[:, None]).astype(np.float32),
            "histogram": self.histogram.coarse(),
            "position": self.position / np.maximum(self.sum, np.finfo(np.float32).tiny)[:, None].astype(np.float32),
            "top_index": self.top.image,
            "top_token": self.top.token,
            "top_value": self.top.value,
            "sample_index": self.samples.image,
            "sample_token": self.samples.token,
            "sample_value": self.samples.value,
            "sample_beside": self.samples.coactive,
        }

    def write(self, path: Path, attributes: dict[str, Any], percentiles: Sequence[float] = PERCENTILES) -> None:
        """Write the index as a zarr group at `path`, atomically; an existing one is replaced.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            with replace_folder(path) as new:
                self._fill(new, attributes, percentiles)
        except OSError as error:
            why = error.strerror or error
            raise StoreError(f"{path}: the feature index cannot be written ({why}); free some space or choose another --out.") from None

    def _fill(self, path: Path, attributes: dict[str, Any], percentiles: Sequence[float]) -> None:
        group = zarr.open_group(path, mode="w-", zarr_format=3)
        for name, array in self.arrays(percentiles).items():
            chunks = (min(1024, self.d_sae), *array.shape[1:])
            group.create_array(name, data=array, chunks=chunks, compressors=ZstdCodec(level=1))
        group.create_array("patch_active", data=self.patch_active)
        group.create_array("image_active", data=self.image_active)
        if self.n_labels:
            step = min(256, self.d_sae)
            counts = group.create_array(
                "label_count",
                shape=(self.d_sae, self.n_labels),
                dtype="int32",
                chunks=(step, self.n_labels),
                compressors=ZstdCodec(level=1),
            )
            for start in range(0, self.d_sae, step):
                counts[start : start + step] = self.label_count[:, start : start + step].T
            group.create_array("label_images", data=self.label_images)
        k = self.top.value.shape[1]
        # Chunks of half a megabyte: zarr takes a third of a millisecond for each, and reading a feature takes one or two.
        inner = max(1, min(64, (1 << 19) // (2 * k * self.n_patches), self.d_sae))
        shard = inner * max(1, min(-(-512 // inner), math.ceil(self.d_sae / inner)))
        maps = group.create_array(
            "top_map",
            shape=(self.d_sae, k, self.n_patches),
            dtype="float16",
            chunks=(inner, k, self.n_patches),
            shards=(shard, k, self.n_patches),
            compressors=ZstdCodec(level=1),
        )
        concentration = np.full(self.d_sae, np.nan, np.float32)
        for start in range(0, self.d_sae, shard):
            stop = min(start + shard, self.d_sae)
            block = self.top.maps(start, stop)
            maps[start:stop] = block
            concentration[start:stop] = concentrated(block)
        group.create_array("concentration", data=concentration)
        group.attrs.update(
            {
                "n_images": self.n_images,
                "n_vectors": self.n_vectors,
                "percentiles": list(percentiles),
                "histogram_edges": "2^-20 to 2^20, four bins an octave",
                "percentile_error": 1 / 64,
                "top_by": "largest patch value; of equal images the lower number",
                **attributes,
            }
        )


def concentrated(maps: Float[np.ndarray, "n k n_patches"]) -> Float[np.ndarray, " n"]:
    """1 - the share of an image that a feature covers, mean over its top images: near 1 for one patch, 0 if spread evenly.

    The share is the effective number of patches, (sum v)^2 / sum v^2, over the number of patches; NaN if there is only
    one patch, or no image.
    """
    n_patches = maps.shape[2]
    values = maps.astype(np.float32)
    energy = np.einsum("nkp,nkp->nk", values, values)
    area = np.divide(values.sum(2) ** 2, energy * n_patches, out=np.zeros_like(energy), where=energy > 0)
    n = (energy > 0).sum(1)
    share = np.divide(area.sum(1), n, out=np.full(len(n), np.nan, np.float32), where=n > 0)
    return np.asarray(1 - share if n_patches > 1 else np.full(len(n), np.nan, np.float32))


def _counted(counts: Int[np.ndarray, " n"], numbers: Int[np.ndarray, " m"]) -> Int[np.ndarray, " n_or_more"]:
    """`counts` with the occurrences of each number in `numbers` added, extended if needed."""
    new = np.bincount(numbers, minlength=len(counts))
    new[: len(counts)] += counts
    return new


def _joined(parts: Sequence[Codes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Value, feature and row of every active code of all parts, rows ascending; and the number of active features per vector."""
    each = [[part.cpu().numpy() for part in (c.value.detach().float(), c.feature, c.rows)] for c in parts]
    active = np.concatenate([np.bincount(row[value > 0], minlength=len(c)) for c, (value, _, row) in zip(parts, each, strict=True)])
    value, feature, row = (np.concatenate(part) for part in zip(*each, strict=True))
    if len(parts) > 1:
        order = np.argsort(row, kind="stable")
        value, feature, row = value[order], feature[order], row[order]
    if not (value > 0).all():
        live = ~(value <= 0)  # not `value > 0`: NaN must be kept, to be refused later
        value, feature, row = value[live], feature[live], row[live]
    return value, feature, row, active
