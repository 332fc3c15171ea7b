"""Classes of patches and pixels, with the recorded vectors, shared by the tasks.

Masks are mapped to the pixels of the TRANSFORMED image through the store's `crop`, that is the exact crop the model saw, and
from there to patches. A pixel has no class (`NO_CLASS`) if its class is ignored, if it lies outside the image (a
transform may pad), or if its image has no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, UInt16
from torch import Tensor

from saev_core import ActivationStore, BadImageError, Box, Grid, ImageDataset, ReadConfig, Site, StoredVectors
from saev_core.activations.store.meta import NO_CLASS
from saev_core.errors import DatasetError, StoreError, UsageError
from saev_core.support.progress import Track, silent
from saev_core.tasks.fit_probes import Batches

BATCH_VECTORS = 8192
"""Vectors read at once."""
BUFFER_BYTES = 2**30
"""Bytes of vectors held in memory for shuffling training batches."""


def pixel_labels(mask: np.ndarray, crop: Box, grid: Grid) -> UInt16[np.ndarray, "height width"]:
    """The mask's value at each pixel of the transformed image, taken from the nearest original pixel; `NO_CLASS` outside the image.

    Args:
        mask: class numbers `[height, width]` in original pixels.
        crop: the part of the original that the grid covers.
    """
    height, width = mask.shape
    rows = np.floor(crop.top + (np.arange(grid.height_px) + 0.5) * (crop.bottom - crop.top) / grid.height_px).astype(int)
    cols = np.floor(crop.left + (np.arange(grid.width_px) + 0.5) * (crop.right - crop.left) / grid.width_px).astype(int)
    seen = mask[np.clip(rows, 0, height - 1)[:, None], np.clip(cols, 0, width - 1)].astype(np.uint16)
    # Tolerate rounding: a crop slightly beyond the edge is not padding.
    seen[(rows < -1) | (rows > height)] = NO_CLASS
    seen[:, (cols < -1) | (cols > width)] = NO_CLASS
    return np.asarray(seen)


def patch_shares(pixels: Int[np.ndarray, "*n height width"], grid: Grid, n_classes: int) -> Float[np.ndarray, "*n n_patches n_classes"]:
    """Share of each class in each patch's pixels, float32; pixels without a class are missing from the sum."""
    lead = pixels.shape[:-2]
    px = grid.patch_px
    tiles = pixels.reshape(-1, grid.rows, px, grid.cols, px).swapaxes(2, 3).reshape(-1, px * px).astype(np.int64)
    cell = np.arange(len(tiles))[:, None] * (n_classes + 1) + np.minimum(tiles, n_classes)
    counts = np.bincount(cell.reshape(-1), minlength=len(tiles) * (n_classes + 1)).reshape(len(tiles), n_classes + 1)
    return np.asarray((counts[:, :n_classes] / (px * px)).reshape(*lead, grid.n_patches, n_classes), np.float32)


@dataclass(frozen=True)
class Classes:
    """A data set's mask classes, and which of them are ignored."""

    names: list[str]
    ignored: frozenset[int] = frozenset()
    """Mask values to ignore; may be outside the names, such as 255."""

    @classmethod
    def of(cls, names: Sequence[str] | None, ignore: Sequence[str] = ()) -> Classes:
        """The classes of a data set.

        Args:
            names: its `mask_classes`.
            ignore: names or numbers.

        Raises:
            DatasetError: it has no masks, or fewer than two classes remain.
            UsageError: a class to ignore does not exist.
        """
        if names is None:
            raise DatasetError("the data set has no masks; segmentation needs one with mask_classes, such as shapes or ade20k.")
        all_names = list(names)
        ignored = set()
        for one in ignore:
            if one in all_names:
                ignored.add(all_names.index(one))
            elif one.isdecimal():
                ignored.add(int(one))
            else:
                raise UsageError(f"--ignore {one}: no such class; there are {listed(all_names)}.")
        made = cls(all_names, frozenset(ignored))
        if len(made.kept) < 2:
            raise DatasetError(
                f"segmentation needs two classes, and of {len(all_names)} {len(made.kept)} remains; ignore fewer, or use other data."
            )
        return made

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kept(self) -> list[int]:
        """Numbers of the classes that are not ignored, ascending."""
        return [i for i in range(len(self.names)) if i not in self.ignored]

    def clean(self, values: UInt16[np.ndarray, "*n"], name: str) -> UInt16[np.ndarray, "*n"]:
        """Mask values, with ignored ones replaced by `NO_CLASS`.

        Raises:
            DatasetError: one is neither a class nor ignored; `name` is for the message.
        """
        counts = values != NO_CLASS
        for value in self.ignored:
            counts &= values != value
        out = np.where(counts, values, NO_CLASS).astype(np.uint16)
        if (out[counts] >= len(self.names)).any():
            value = int(out[counts].max())
            raise DatasetError(
                f"{name}: mask value {value} is outside the {len(self.names)} classes; fix the masks, or pass --ignore {value}."
            )
        return out


class Truth:
    """Classes of the pixels and patches of a store's images, from the data set's masks."""

    def __init__(self, dataset: ImageDataset, store: ActivationStore, classes: Classes) -> None:
        self.dataset, self.store, self.classes, self.grid = dataset, store, classes, store.grid
        self._crops = store.crops

    @cached_property
    def _mask(self) -> np.ndarray | None:
        return self.store.mask

    def image(self, index: int) -> UInt16[np.ndarray, "height width"]:
        """Class of each pixel of the transformed image `index`.

        Raises:
            DatasetError: the mask and image sizes differ, or the mask has a value outside the classes.
        """
        try:
            example = self.dataset[index]
        except BadImageError:
            return np.full((self.grid.height_px, self.grid.width_px), NO_CLASS, np.uint16)
        if example.mask is None:
            return np.full((self.grid.height_px, self.grid.width_px), NO_CLASS, np.uint16)
        name, mask, image = self.dataset.name(index), example.mask, example.image
        if mask.shape != (image.height, image.width):
            size = f"{mask.shape[1]} x {mask.shape[0]}" if mask.ndim == 2 else f"of shape {mask.shape}"
            raise DatasetError(f"{name}: the mask is {size}, the image {image.width} x {image.height}; fix the mask.")
        return self.classes.clean(pixel_labels(mask, Box(*map(float, self._crops[index])), self.grid), name)

    def pixels(self, images: Sequence[int] | Int[np.ndarray, " n"], track: Track = silent) -> np.ndarray:
        """The same for many images, `[n, height, width]` uint8 (255: no class) where the classes allow it, else uint16.

        Raises:
            DatasetError: as `image`.
        """
        dtype = np.uint8 if len(self.classes) < 255 else np.uint16
        out = np.empty((len(images), self.grid.height_px, self.grid.width_px), dtype)
        with track("masks", len(images), "images") as meter, ThreadPoolExecutor(4, thread_name_prefix="saev-masks") as pool:
            for place, pixels in enumerate(pool.map(self.image, map(int, images))):
                out[place] = pixels if dtype == np.uint16 else np.minimum(pixels, 255)
                meter.update(1)
        return out

    def patches(self, images: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n n_patches"]:
        """The recorded majority class of each patch, -1 where there is none or it is ignored.

        Raises:
            StoreError: the store was recorded without masks.
            DatasetError: a value is outside the classes.
        """
        if self._mask is None:
            raise StoreError(f"{self.store.url} was recorded from a data set without masks; record one that has them.")
        found = self.classes.clean(self._mask[images], self.store.url).astype(np.int64)
        return np.where(found == NO_CLASS, -1, found)


def recorded(store: ActivationStore, site: Site) -> Int[np.ndarray, " n"]:
    """Numbers of the images recorded at a site, ascending."""
    return np.flatnonzero(store.done(site) == 1)


def stored(
    store: ActivationStore, site: Site, images: Int[np.ndarray, " n"], batch_images: int = 0
) -> Iterator[tuple[Int[np.ndarray, " b"], Float[Tensor, "b n_patches d_model"]]]:
    """Raw patch vectors of images, in order, with read-ahead: `(image numbers, float32 vectors)`.

    Raises:
        StoreError: the site is not recorded, a chunk is damaged, or a vector is not finite.
    """
    vectors = StoredVectors(store, ReadConfig(layer=site.layer, stream=site.stream))
    for numbers, x, _ in vectors.in_order(images, batch_images or max(1, BATCH_VECTORS // store.grid.n_patches)):
        if not torch.isfinite(x).all():
            bad = numbers[~torch.isfinite(x).flatten(1).all(1).numpy()][0]
            raise StoreError(f"{store.url}: {site} of image {bad} is not finite (NaN or infinite); re-record it in float32.")
        yield numbers, x


def listed(names: Sequence[str], n: int = 8) -> str:
    """The first `n` names, and how many more there are."""
    return f"{', '.join(names[:n])} and {len(names) - n} more" if len(names) > n else ", ".join(names)


Targets = Callable[[Int[np.ndarray, " n"], Float[Tensor, "n n_patches d_model"], np.random.RandomState], tuple[Tensor, Tensor]]
"""Indices in the list of images, their vectors, random state -> training vectors `[m, d]` and their targets."""


def mixed(store: ActivationStore, site: Site, images: Int[np.ndarray, " n"], targets: Targets, batch_size: int, seed: int) -> Batches:
    """Training batches of patches, reshuffled every epoch, in bounded memory.

    Chunks are read in random order, as many as fit `BUFFER_BYTES`, and their vectors are shuffled; if all fit they are read once.
    The order depends only on the seed and the epoch.
    """
    images = np.sort(np.asarray(images))
    chunks = np.split(np.arange(len(images)), np.flatnonzero(np.diff(images // store.meta.chunk_images)) + 1)
    per_image = store.grid.n_patches * store.meta.d_model * 4
    whole = len(images) * per_image <= BUFFER_BYTES
    n_blocks = 1 if whole else max(1, -(-len(images) * per_image // BUFFER_BYTES))
    kept: list[Tensor] = []

    def vectors(places: Int[np.ndarray, " n"]) -> Tensor:
        if kept:
            return kept[0]
        x = torch.cat([x for _, x in stored(store, site, images[places])])
        if whole:
            kept.append(x)
        return x

    def epoch_of(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.RandomState((seed * 1_000_003 + epoch) % 2**32)
        order = rng.permutation(len(chunks))
        for block in [np.arange(len(chunks))] if whole else np.array_split(order, n_blocks):
            places = np.concatenate([chunks[i] for i in block])
            x, y = targets(places, vectors(places), rng)
            for part in torch.split(torch.from_numpy(rng.permutation(len(x))), batch_size):
                yield x[part], y[part]

    return epoch_of


__all__ = [
    "NO_CLASS", "Classes", "Targets", "Truth", "listed", "mixed", "patch_shares", "pixel_labels", "recorded", "stored",
]  # fmt: skip
