"""`LiveSource`: training vectors computed by the model on the fly, without a recording; counterpart of `StoreSource`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saev_core.activations.recording.load_images import Loaded, load, n_threads, read
from saev_core.activations.recording.plan import describe
from saev_core.activations.recording.record import Missing, tokens_at
from saev_core.activations.sources.base import ActivationSource
from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.sources.image_vectors import Batch
from saev_core.activations.sources.shuffle import ReadOrder, WindowStream
from saev_core.activations.store.shard_writer import not_finite
from saev_core.config.affects import settings_that_matter
from saev_core.config.stages import ReadConfig, RecordConfig
from saev_core.data.dataset import ImageDataset
from saev_core.errors import BadImageError, DatasetError, StoreError
from saev_core.models.base import VisionModel
from saev_core.sae.norm import Norm
from saev_core.sae.selection import Selection
from saev_core.support.threads import torch_threads
from saev_core.types import Site

log = logging.getLogger(__name__)

_N_NORM = 65_536
"""Number of vectors from which the norm is estimated."""
_N_NORM_IMAGES = 4096
"""Maximum number of images run for it, relevant if an image gives few vectors."""
_MANY = 16
"""After this many unreadable images without a readable one, the data set is considered broken."""


class Forward:
    """Fills windows by running images through the model, in batches of `record.batch_size`, in one thread.

    Rows have the precision of a recording, so that an SAE sees the same numbers as from a store. An image has `n_tokens`
    rows: its patches, or one (CLS, or the mean over patches), for each site with `layer="all"`. Which images share a forward
    pass depends only on the reading order, so that refilling a window gives identical bits.

    Raises:
        ModelError: the block or stream does not exist, or sites have different widths.
        StoreError: the model has no CLS token.
        DatasetError: the data set has no images, or supports only sequential reading.
    """

    chunk_images = 1

    def __init__(
        self,
        model: VisionModel,
        dataset: ImageDataset,
        record: RecordConfig,
        read: ReadConfig,
        *,
        model_ref: Mapping[str, Any],
        dataset_ref: Mapping[str, Any],
    ) -> None:
        self.model, self.dataset, self.record, self.read = model, dataset, record, read
        self.name = f"{model_ref.get('name', type(model).__name__)} on {dataset_ref.get('name', type(dataset).__name__)}"
        if dataset.sequential:
            raise DatasetError(
                f"{self.name}: this data set supports only sequential reading, but training shuffles it; record it first (saev record)."
            )
        self.selection = Selection.of(read, model.site, (model.site(layer, read.stream) for layer in record.layers))
        self.sites = list(self.selection.sites)
        self.meta = describe(model, dataset, record, self.sites, model_ref=model_ref, dataset_ref=dataset_ref)
        if read.tokens == "cls" and not self.meta.n_prefix:
            raise StoreError(f"{self.name}: the model has no CLS token; set read.tokens to patches or mean.")
        self.per_site = self.selection.n_tokens(self.meta.grid)
        self.n_tokens = len(self.selection.series) * self.per_site
        self.d_model = self.selection.n_joined * self.meta.d_model
        self._stored: torch.dtype = getattr(torch, self.meta.dtype)
        self.dtype = torch.float32 if self.selection.averages else self._stored
        # Hooks belong to the model: two concurrent forward passes would fill each other's.
        self._lock = threading.Lock()
        self.missing: dict[int, Missing] = {}

    def identity(self) -> list[Any]:
        read = settings_that_matter(self.read, without=["order"])
        return ["live", self.meta.fingerprint, [str(site) for site in self.sites], read, self.record.batch_size]

    def pool(self) -> ThreadPoolExecutor:
        # Created here, so that this thread's setting is fixed before loading threads change theirs.
        return ThreadPoolExecutor(1, "saev-live", initializer=torch_threads, initargs=(torch.get_num_threads(),))

    def fill(
        self,
        pool: ThreadPoolExecutor,
        stop: threading.Event,
        series: Int[np.ndarray, " n_units"],
        chunk: Int[np.ndarray, " n_units"],
        rows: Float[np.ndarray, "n_units 1 n_tokens d_model"],
    ) -> list[Future[Sequence[int]]]:
        """Start running the images of `chunk`; returns the positions of unreadable images."""
        into = torch.from_numpy(rows)[:, 0]

        def work() -> Sequence[int]:
            lost: list[int] = []
            at = 0
            with closing(self.run(chunk)) as batches:
                for images, x in batches:
                    if stop.is_set():
                        break
                    into[at : at + len(images)].copy_(x)
                    lost += [at + i for i, image in enumerate(images) if image.bad is not None]
                    at += len(images)
            return lost

        return [pool.submit(work)]

    def run(self, images: Int[np.ndarray, " n"]) -> Generator[tuple[list[Loaded], Float[Tensor, "batch n_tokens d_model"]]]:
        """Yield images in that order, batch by batch, with their rows; rows of unreadable images are undefined.

        Raises:
            StoreError: an activation is not finite or exceeds the range of the stored precision.
            DatasetError: no image can be read or, with `record.on_bad_image="stop"`, one cannot be read.
        """
        n, n_bad = self.record.batch_size, 0
        spans = [(int(image), int(image) + 1) for image in images]
        with closing(load(self.dataset, self.model, spans, n_workers=self.record.n_workers, lookahead=n)) as items:
            done = 0
            while loaded := list(islice(items, n)):
                with self._lock:
                    seen = tokens_at(self.model, self.meta, self.sites, loaded)
                for image in loaded:
                    if image.bad is not None:
                        self._note(image.index, image.bad)
                        n_bad += 1
                yield loaded, self._rows(loaded, seen)
                done += len(loaded)
        if n_bad == done >= _MANY:
            _, path, why = self.missing[int(images[-1])]
            raise DatasetError(f"none of {done} images can be read, the last one was {path} ({why}); check that the data set still exists.")

    def _note(self, index: int, bad: BadImageError) -> None:
        if self.record.on_bad_image == "stop":
            raise bad
        if index not in self.missing:
            self.missing[index] = (index, bad.path, bad.why)
            log.info("skipping unreadable image %d: %s (%s)", index, bad.path, bad.why)

    def _rows(self, images: list[Loaded], seen: Mapping[Site, Tensor]) -> Float[Tensor, "batch n_tokens d_model"]:
        """The selected vectors in stored precision, all series concatenated."""
        stored = {site: self._as_stored(site, images, seen[site]) for site in self.sites}
        series = self.selection.of_tokens(stored, self.meta.n_prefix)
        return series[0] if len(series) == 1 else torch.cat(series, 1)

    def _as_stored(self, site: Site, images: list[Loaded], x: Tensor) -> Tensor:
        stored = x.to(self._stored)
        # A batch of only unreadable images is one number, expanded.
        finite = stored.isfinite().flatten(1).all(1)
        for image, fine, row in zip(images, finite.tolist(), x, strict=True):
            if image.bad is None and not fine:
                raise StoreError(not_finite(site, image.index, row))
        return stored


class LiveSource(ActivationSource):
    """Shuffled batches of a model's activations on a data set's training images, with nothing written to disk.

    Uses the same images, split into training and held-out ones, precision and shuffling as a `StoreSource` of a store recorded
    with `record`: training images are shuffled, enough of them are run to fill a window, and its rows are permuted once and
    emitted while the next window fills. If all vectors fit into `read.buffer_mb`, each image is run once, otherwise once per
    epoch. Deterministic in (seed, epoch); resuming runs the images of the current window again.

    With `read.labels` the whole data set is read once beforehand, to find its labels.

    Args:
        record: the settings a recording would use: layers of `layer="all"` and `"mean"`, precision, number of images, images
            per forward pass and so on.
        model_ref, dataset_ref: as `record.record`; they make the checkpoint match a store recorded later.

    Raises:
        ModelError, StoreError, DatasetError: as `Forward`, or no image has one of `read.labels`.
    """

    def __init__(
        self,
        model: VisionModel,
        dataset: ImageDataset,
        record: RecordConfig,
        read: ReadConfig,
        *,
        model_ref: Mapping[str, Any],
        dataset_ref: Mapping[str, Any],
    ) -> None:
        self.feed = Forward(model, dataset, record, read, model_ref=model_ref, dataset_ref=dataset_ref)
        self.meta, self.grid, self.read = self.feed.meta, self.feed.meta.grid, read
        self.n_images = self.meta.n_images
        self.buffer_bytes = read.buffer_mb * 2**20
        self.heldout = heldout_mask(self.n_images, read.heldout, read.split_seed)
        self.selection = self.feed.selection
        self.d_model, self.site, self.n_sites = self.feed.d_model, str(self.selection), self.selection.n_joined
        self._training = self._usable & ~self.heldout
        self.n_vectors = int(self._training.sum()) * self.feed.n_tokens
        if self.n_vectors == 0:
            raise StoreError(f"{self.feed.name}: no training images left; check read.labels, read.heldout and that images are readable.")
        self._kept: tuple[int, int, Tensor] | None = None

    @property
    def missing(self) -> list[Missing]:
        """Images found unreadable so far; they are skipped."""
        return [self.feed.missing[index] for index in sorted(self.feed.missing)]

    @cached_property
    def norm(self) -> Norm:  # type: ignore[override]
        """Estimated from a sample of training vectors in float64; `describe` gives its size."""
        return Norm.of(self.sample(self._n_norm, seed=0), self.n_sites)

    def batches(self, batch_size: int, seed: int, state: Mapping[str, Any] | None = None) -> WindowStream:
        if self.n_vectors < batch_size:
            raise StoreError(
                f"{self.feed.name} gives {self.n_vectors} training vectors, fewer than one batch of {batch_size}; "
                "use more images or lower train.batch_size."
            )
        self._kept = None
        return WindowStream(self.feed, self._order(seed), batch_size, state)

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        n = min(n, self.n_vectors)
        if self._kept is not None and self._kept[:2] == (n, seed):
            # The norm's sample also initialises SAEs: with the defaults, images are run once for both.
            x = self._kept[2]
        else:
            x = self._draw(n, seed)
            self._kept = n, seed, x
        return self.selection.clamped(x.float())

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "live",
            "store": {"fingerprint": self.meta.fingerprint, **settings_that_matter(self.meta)},
            "site": self.site,
            "sites": [str(site) for site in self.feed.sites],
            "read": self.read.model_dump(mode="json"),
            "n_vectors": self.n_vectors,
            "n_images": int(self._training.sum()),
            "n_norm": min(self._n_norm, self.n_vectors),
            "forward_images": self.feed.record.batch_size,
        }

    def in_order(self, images: Int[np.ndarray, " n_images"], batch_images: int) -> Generator[Batch]:
        """The vectors of `images`, training or held-out, computed on the fly in that order; see `ImageVectors.in_order`."""
        numbers = np.asarray(images, np.int64)
        with closing(self.feed.run(numbers[self._usable[numbers]])) as batches:
            for loaded, x in batches:
                good = [i for i, image in enumerate(loaded) if image.bad is None]
                crops = {loaded[i].index: loaded[i].crop for i in good}
                for start in range(0, len(good), batch_images):
                    mine = good[start : start + batch_images]
                    index = np.array([loaded[i].index for i in mine], np.int64)
                    for part in torch.split(x[mine], self.feed.per_site, 1):
                        yield Batch(index, self.selection.clamped(part.float()), crops.__getitem__)

    @property
    def _n_norm(self) -> int:
        return min(_N_NORM, _N_NORM_IMAGES * self.feed.n_tokens)

    @cached_property
    def _usable(self) -> Bool[np.ndarray, " n_images"]:
        """Images with one of `read.labels`, or all if it is not set: unreadable ones are found only when they are read."""
        if (wanted := self.read.labels) is None:
            return np.ones(self.n_images, bool)
        usable = np.zeros(self.n_images, bool)

        def look(images: range) -> None:
            for image in images:
                try:
                    usable[image] = read(self.feed.dataset, image).label in wanted
                except BadImageError as bad:
                    self.feed._note(image, bad)

        with ThreadPoolExecutor(max(1, n_threads(self.feed.record.n_workers)), "saev-label") as pool:
            list(pool.map(look, [range(i, min(i + 64, self.n_images)) for i in range(0, self.n_images, 64)]))
        if not usable.any():
            raise StoreError(f"{self.feed.name}: no image has a label of read.labels={list(wanted)}.")
        return usable

    def _order(self, seed: int) -> ReadOrder:
        return ReadOrder.of(self.feed, self._training[None], seed, self.buffer_bytes)

    def _draw(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        """`n` vectors sampled from twice as many, of at least 64 images: covers many images without running all of them."""
        generator = self._order(seed).generator(0, -2)
        images = np.flatnonzero(self._training)
        order = images[torch.randperm(len(images), generator=generator).numpy()]
        found: list[Tensor] = []
        have = n_images = 0
        with closing(self.feed.run(order)) as batches:
            for loaded, x in batches:
                good = [i for i, image in enumerate(loaded) if image.bad is None]
                found.append(x[good].flatten(0, 1))
                have, n_images = have + len(found[-1]), n_images + len(good)
                if have >= 2 * n and n_images >= 64:
                    break
        x = torch.cat(found)
        return x[torch.randperm(len(x), generator=generator)[:n]]
