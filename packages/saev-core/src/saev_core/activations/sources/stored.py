"""`StoreSource`: training vectors from a store, in shuffled batches."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.activations.sources.base import ActivationSource
from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.sources.image_vectors import Batch
from saev_core.activations.sources.shuffle import ReadOrder, WindowStream
from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.store import ActivationStore
from saev_core.config.affects import settings_that_matter
from saev_core.config.stages import ReadConfig
from saev_core.errors import StoreError
from saev_core.sae.norm import Norm
from saev_core.types import Grid

_N_NORM = 65_536
"""Number of vectors from which the norm is estimated if the store's streamed moments do not apply."""


class StoreSource(ActivationSource):
    """Shuffled batches of a store's training images: memory bounded by `read.buffer_mb`, deterministic, resumable.

    Whole inner chunks, drawn at random from the whole store, fill a window; its rows are permuted once and emitted while the
    next window fills. Never includes held-out images.

    Raises:
        StoreError: the layer is not recorded, there is no CLS token, or no training images are left.
    """

    def __init__(self, store: ActivationStore, read: ReadConfig) -> None:
        self.store, self.read = store, read
        self.buffer_bytes = read.buffer_mb * 2**20
        self.heldout = heldout_mask(store.n_images, read.heldout, read.split_seed)
        self.feed = StoredVectors(store, read)
        self.selection = self.feed.selection
        self._training: np.ndarray = self.feed.usable & ~self.heldout
        self.d_model, self.n_sites, self.site = self.feed.d_model, self.selection.n_joined, str(self.selection)
        self.n_vectors = int(self._training.sum()) * self.feed.n_tokens
        if self.n_vectors == 0:
            raise StoreError(f"{store.url}: no training images left; check read.labels, read.heldout and that images were readable.")
        self.norm = self._norm()

    @property
    def meta(self) -> StoreMeta:
        return self.store.meta

    @property
    def grid(self) -> Grid:
        return self.store.grid

    @property
    def n_images(self) -> int:
        return self.store.n_images

    def batches(self, batch_size: int, seed: int, state: Mapping[str, Any] | None = None) -> WindowStream:
        if self.n_vectors < batch_size:
            raise StoreError(
                f"{self.store.url} has {self.n_vectors} training vectors, fewer than one batch of {batch_size}; "
                "record more images or lower train.batch_size."
            )
        return WindowStream(self.feed, self._order(seed), batch_size, state)

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        feed, size, order = self.feed, self.feed.chunk_images, self._order(seed)
        generator = order.generator(0, -2)
        # Read at least 64 chunks, until there are four times as many vectors as requested: covers many images cheaply.
        units, rows, have = [], [], 0
        for unit in torch.randperm(len(order.chunk), generator=generator).tolist():
            images = np.arange(size) + order.chunk[unit] * size
            images = images[images < self.store.n_images]
            inside = np.flatnonzero(self._training[order.series[unit], images])
            mine = (inside[:, None] * feed.n_tokens + np.arange(feed.n_tokens)).reshape(-1)
            rows.append(mine)
            units.append(unit)
            have += len(mine)
            if have >= 4 * n and len(units) >= 64:
                break
        owner = np.repeat(np.arange(len(units)), [len(mine) for mine in rows])
        flat = np.concatenate(rows)
        pick = torch.randperm(have, generator=generator)[:n].numpy()
        out = torch.empty(len(pick), self.d_model)

        def take(place: int) -> None:
            wanted = np.flatnonzero(owner[pick] == place)
            if len(wanted):
                block = torch.empty(size, feed.n_tokens, self.d_model, dtype=feed.dtype)
                feed.load(int(order.series[units[place]]), int(order.chunk[units[place]]), block.numpy())
                out[wanted] = block.view(-1, self.d_model)[flat[pick[wanted]]].float()

        with ThreadPoolExecutor(self.read.n_threads) as pool:
            list(pool.map(take, range(len(units))))
        return self.selection.clamped(out, out=out)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "store",
            "store": {"fingerprint": self.store.meta.fingerprint, **settings_that_matter(self.store.meta)},
            "site": self.site,
            "sites": [str(site) for site in self.selection.sites],
            "read": self.read.model_dump(mode="json"),
            "n_vectors": self.n_vectors,
            "n_images": int(self._training.any(0).sum()),
        }

    def in_order(self, images: Int[np.ndarray, " n_images"], batch_images: int) -> Generator[Batch]:
        return self.feed.in_order(images, batch_images)

    def _order(self, seed: int) -> ReadOrder:
        return ReadOrder.of(self.feed, self._training, seed, self.buffer_bytes)

    def _norm(self) -> Norm:
        """From the store's streamed moments or, if vectors are clamped, averaged or filtered, a sample in float64."""
        read, sites = self.read, self.selection.sites
        streamed = read.clamp is None and read.labels is None and read.layer != "mean"
        if streamed and self.n_sites == 1:
            each = [self.store.moments(site, read.tokens) for site in sites]
            return Norm.from_moments(sum(n for n, _, _ in each), np.sum([total for _, total, _ in each], 0), sum(sq for _, _, sq in each))
        # Each site's moments cover all its images, which may be more than those joined.
        if streamed and len({self.store.done(site).tobytes() for site in sites}) == 1:
            return Norm.join([Norm.from_moments(*self.store.moments(site, read.tokens)) for site in sites])
        return Norm.of(self.sample(_N_NORM, seed=0), self.n_sites)
