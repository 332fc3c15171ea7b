"""TODO."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.activations.sources.base import ActivationSource
from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.sources.selection import Reading, copy_alone
from saev_core.activations.sources.shuffle import Schedule, WindowStream
from saev_core.activations.store.store import ActivationStore
from saev_core.config.affects import settings_that_matter
from saev_core.config.stages import ReadConfig
from saev_core.errors import StoreError
from saev_core.sae.norm import Norm

_N_NORM = 65_536
"""Vectors from which the norm is estimated where the store's streamed moments do not apply."""


class StoreSource(ActivationSource):
    """A store's training images in shuffled batches: memory bounded by `read.buffer_mb`, deterministic, resumable.

    Whole inner chunks, drawn at random from the whole store, fill a window; its rows are permuted once and emitted while the
    next window fills. Held-out images never occur.

    Raises:
        StoreError: the layer is not recorded, there is no CLS token, or no training image is left.
    """

    def __init__(self, store: ActivationStore, read: ReadConfig) -> None:
        self.store, self.read = store, read
        self.buffer_bytes = read.buffer_mb * 2**20
        self.heldout = heldout_mask(store.n_images, read.heldout, read.split_seed)
        self._reading = Reading(store, read)
        self._training: np.ndarray = self._reading.usable & ~self.heldout
        self.d_model, self.n_sites, self.site = self._reading.d_model, self._reading.n_sites, self._reading.site
        self.n_vectors = int(self._training.sum()) * self._reading.n_tokens
        if self.n_vectors == 0:
            raise StoreError(f"{store.url}: no training image is left; check read.labels, read.heldout and that images were readable.")
        self.norm = self._norm()

    def batches(self, batch_size: int, seed: int, state: Mapping[str, Any] | None = None) -> WindowStream:
        if self.n_vectors < batch_size:
            raise StoreError(
                f"{self.store.url} has {self.n_vectors} training vectors, fewer than one batch of {batch_size}; "
                "record more images or lower train.batch_size."
            )
        return WindowStream(self._reading, Schedule.of(self._reading, self._training, seed, self.buffer_bytes), batch_size, state)

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        reading, size = self._reading, self._reading.chunk_images
        schedule = Schedule.of(reading, self._training, seed, self.buffer_bytes)
        generator = schedule.generator(0, -2)
        # Chunks until four times as many vectors as asked for, at least 64 of them: many images without reading the whole store.
        units, rows, have = [], [], 0
        for unit in torch.randperm(len(schedule.chunk), generator=generator).tolist():
            images = np.arange(size) + schedule.chunk[unit] * size
            images = images[images < self.store.n_images]
            inside = np.flatnonzero(self._training[schedule.series[unit], images])
            mine = (inside[:, None] * reading.n_tokens + np.arange(reading.n_tokens)).reshape(-1)
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
                block = torch.empty(size, reading.n_tokens, self.d_model, dtype=reading.dtype)
                reading.load(int(schedule.series[units[place]]), int(schedule.chunk[units[place]]), block.numpy())
                out[wanted] = block.view(-1, self.d_model)[flat[pick[wanted]]].float()

        with ThreadPoolExecutor(self.read.n_threads) as pool:
            list(pool.map(take, range(len(units))))
        return out if self.read.clamp is None else out.clamp_(-self.read.clamp, self.read.clamp)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "store",
            "store": {"fingerprint": self.store.meta.fingerprint, **settings_that_matter(self.store.meta)},
            "site": self.site,
            "sites": [str(site) for site in self._reading.sites],
            "read": self.read.model_dump(mode="json"),
            "n_vectors": self.n_vectors,
            "n_images": int(self._training.any(0).sum()),
        }

    def ordered(
        self, images: Int[np.ndarray, " n_images"], batch_images: int
    ) -> Generator[tuple[Int[np.ndarray, " batch"], Float[Tensor, "batch n_tokens d_model"]]]:
        return ordered(self.store, self.read, images, batch_images)

    def _norm(self) -> Norm:
        """The store's streamed moments; where vectors are clamped, averaged or selected, a sample in float64."""
        read, sites = self.read, self._reading.sites
        streamed = read.clamp is None and read.labels is None and read.layer != "mean"
        if streamed and self.n_sites == 1:
            each = [self.store.moments(site, read.tokens) for site in sites]
            return Norm.from_moments(sum(n for n, _, _ in each), np.sum([total for _, total, _ in each], 0), sum(sq for _, _, sq in each))
        # Each site's moments are over all its images, which may be more than are joined.
        if streamed and len({self.store.done(site).tobytes() for site in sites}) == 1:
            return Norm.join([Norm.from_moments(*self.store.moments(site, read.tokens)) for site in sites])
        return Norm.of(self.sample(_N_NORM, seed=0), self.n_sites)


def ordered(
    store: ActivationStore | ActivationSource, read: ReadConfig, images: Int[np.ndarray, " n_images"], batch_images: int
) -> Generator[tuple[Int[np.ndarray, " batch"], Float[Tensor, "batch n_tokens d_model"]]]:
    """The vectors of `images`, in that order, `(image numbers, raw float32 vectors)`; each chunk is read once, ahead of its use.

    Images that are missing or of another label than asked for are left out. With `layer="all"` every batch of images
    comes once per site, one after the other.

    Args:
        store: or a source that reads with `read`, for what was never recorded.

    Raises:
        StoreError: as `Reading`, or a chunk is damaged.
    """
    if isinstance(store, ActivationSource):
        yield from store.ordered(images, batch_images)
        return
    reading = Reading(store, read)
    size, usable = reading.chunk_images, reading.usable
    numbers = np.asarray(images, np.int64)
    held: dict[int, tuple[int, Future[Tensor]]] = {}

    def load(series: int, chunk: int) -> Tensor:
        block = torch.empty(size, reading.n_tokens, reading.d_model, dtype=reading.dtype)
        reading.load(series, chunk, block.numpy())
        return block

    def steps(pool: ThreadPoolExecutor) -> Iterator[tuple[np.ndarray, list[tuple[np.ndarray, int, Future[Tensor]]]]]:
        for start in range(0, len(numbers), batch_images):
            for series in range(reading.n_series):
                mine = numbers[start : start + batch_images]
                mine = mine[usable[series, mine]]
                runs = []
                for run in np.split(mine, np.flatnonzero(np.diff(mine // size)) + 1) if len(mine) else []:
                    chunk = int(run[0]) // size
                    # A chunk across two batches is read once.
                    if series not in held or held[series][0] != chunk:
                        held[series] = chunk, pool.submit(load, series, chunk)
                    runs.append((run, chunk, held[series][1]))
                if runs:
                    yield mine, runs

    depth = math.ceil(2 * read.n_threads * size / batch_images)
    pool = ThreadPoolExecutor(read.n_threads, thread_name_prefix="saev-read")
    try:
        waiting: deque[tuple[np.ndarray, list[tuple[np.ndarray, int, Future[Tensor]]]]] = deque()
        coming = steps(pool)
        while True:
            while len(waiting) <= depth and (step := next(coming, None)) is not None:
                waiting.append(step)
            if not waiting:
                return
            index, runs = waiting.popleft()
            x = torch.empty(len(index), reading.n_tokens, reading.d_model)
            at = 0
            for run, chunk, block in runs:
                places = run - chunk * size
                first, last = int(places[0]), int(places[-1])
                # Neighbours are copied straight; gathering would make a copy of its own first.
                straight = last - first + 1 == len(run) and bool((np.diff(places) == 1).all())
                rows = block.result()[first : last + 1] if straight else block.result()[torch.from_numpy(places)]
                copy_alone(x[at : at + len(run)], rows)
                at += len(run)
            yield index, (x if read.clamp is None else x.clamp_(-read.clamp, read.clamp))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
