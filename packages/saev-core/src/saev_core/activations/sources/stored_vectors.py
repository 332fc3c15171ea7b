"""`StoredVectors`: the vectors a `ReadConfig` selects from a store, by inner chunk for shuffling, or in order."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saev_core.activations.sources.image_vectors import Batch
from saev_core.activations.store.arrays import Reader
from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.shard_writer import RECORDED
from saev_core.activations.store.store import ActivationStore
from saev_core.config.affects import settings_that_matter
from saev_core.config.stages import ReadConfig
from saev_core.errors import StoreError
from saev_core.sae.selection import Selection
from saev_core.types import Grid

log = logging.getLogger(__name__)


class StoredVectors:
    """A store read with a `ReadConfig`, as one or more series of images; see `Selection`.

    Sites are resolved on first use, so that a checkpoint can reject the store before.

    Raises:
        StoreError: on first use: the layer is not recorded, there is no CLS token, or no image has a requested label.
    """

    def __init__(self, store: ActivationStore, read: ReadConfig) -> None:
        self.store, self.read, self.name = store, read, store.url
        self.chunk_images = store.meta.chunk_images
        self._local = threading.local()

    @property
    def meta(self) -> StoreMeta:
        return self.store.meta

    @property
    def grid(self) -> Grid:
        return self.store.grid

    @property
    def n_images(self) -> int:
        return self.store.n_images

    @cached_property
    def selection(self) -> Selection:
        """The selection, with sites resolved."""
        selection = Selection.of(self.read, self.store.resolve, self.store.sites)
        if not selection.sites:
            held = ", ".join(map(str, self.store.sites)) or "no site yet"
            raise StoreError(f"{self.name} contains {held}, none of stream {self.read.stream}; set read.stream to a recorded stream.")
        if selection.tokens == "cls" and not self.meta.n_prefix:
            raise StoreError(f"{self.name}: {self.meta.model.get('name')} has no CLS token; set read.tokens to patches or mean.")
        return selection

    @cached_property
    def n_series(self) -> int:
        return len(self.selection.series)

    @cached_property
    def n_tokens(self) -> int:
        """Vectors per image in a series."""
        return self.selection.n_tokens(self.grid)

    @cached_property
    def d_model(self) -> int:
        """Width of a vector, over all joined sites."""
        return self.selection.n_joined * self.meta.d_model

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows returned by `load`."""
        dtype: torch.dtype = torch.float32 if self.selection.averages else getattr(torch, self.meta.dtype)
        return dtype

    @cached_property
    def _readers(self) -> list[list[Reader]]:
        """Readers of each series."""
        part: Literal["prefix", "patches"] = "prefix" if self.selection.tokens == "cls" else "patches"
        return [[self.store.reader(site, part) for site in sites] for sites in self.selection.series]

    @cached_property
    def _whole(self) -> bool:
        """Whether stored chunks can be used unchanged."""
        selection = self.selection
        return selection.tokens == "patches" and selection.layers != "joined" and not selection.averages

    @cached_property
    def usable(self) -> Bool[np.ndarray, "n_series n_images"]:
        """Images that are recorded, readable, and have a requested label."""
        done = np.stack([self.store.done(site) for site in self.selection.sites])
        if not done.all():
            log.warning("%s is incomplete: %d of %d images recorded", self.store.url, int((done > 0).all(0).sum()), self.store.n_images)
        recorded = np.asarray(done == RECORDED)
        if self.selection.layers in ("joined", "mean"):
            recorded = np.logical_and.reduce(recorded, axis=0, keepdims=True)
        if self.read.labels is not None:
            wanted = np.isin(self.store.labels, self.read.labels)
            if not wanted.any():
                raise StoreError(f"{self.store.url}: no image has a label of read.labels={list(self.read.labels)}.")
            recorded = recorded & wanted
        return recorded

    def identity(self) -> list[Any]:
        """Everything that determines the vectors and their images, as JSON."""
        return [self.meta.fingerprint, str(self.selection), settings_that_matter(self.read, without=["order"])]

    def pool(self) -> ThreadPoolExecutor:
        """Thread pool that `fill` runs in."""
        return ThreadPoolExecutor(self.read.n_threads, thread_name_prefix="saev-read")

    def fill(
        self,
        pool: ThreadPoolExecutor,
        stop: threading.Event,
        series: Int[np.ndarray, " n_units"],
        chunk: Int[np.ndarray, " n_units"],
        rows: Float[np.ndarray, "n_units chunk_images n_tokens d_model"],
    ) -> list[Future[Sequence[int]]]:
        """Start reading chunks into `rows`. Reports no unreadable images, since the store lists them.

        Args:
            stop: ignored, since reading a chunk is fast.
        """

        def load(place: int) -> Sequence[int]:
            self.load(int(series[place]), int(chunk[place]), rows[place])
            return ()

        return [pool.submit(load, place) for place in range(len(chunk))]

    def load(self, series: int, chunk: int, out: Float[np.ndarray, "chunk_images n_tokens d_model"]) -> None:
        """The rows of an inner chunk's images, in `dtype`. Safe from several threads.

        Raises:
            StoreError: the chunk is damaged; names its file.
        """
        readers, selection = self._readers[series], self.selection
        if self._whole:
            readers[0].read(chunk, out)
            return
        joins, into = selection.layers == "joined", torch.from_numpy(out)
        for place, reader in enumerate(readers):
            layout = reader.layout
            scratch: np.ndarray | None = getattr(self._local, "scratch", None)
            if scratch is None:
                scratch = self._local.scratch = np.empty((layout.chunk_images, *layout.row), layout.dtype)
            reader.read(chunk, scratch)
            x = selection.of_site(torch.from_numpy(scratch), n_prefix=0)  # patches and prefix tokens are stored separately
            if joins:
                # Use numpy: torch would wake its other threads for a copy.
                d = x.shape[2]
                out[:, :, place * d : (place + 1) * d] = x.numpy()
            elif place == 0:
                into.copy_(x)
            else:
                into.add_(x)
        if len(readers) > 1 and not joins:
            into.div_(len(readers))

    def in_order(self, images: Int[np.ndarray, " n_images"], batch_images: int) -> Generator[Batch]:
        """The vectors of `images`, in that order; each chunk is read once, ahead of use. See `ImageVectors.in_order`.

        Raises:
            StoreError: as the class, or a chunk is damaged.
        """
        size, usable = self.chunk_images, self.usable
        numbers = np.asarray(images, np.int64)
        held: dict[int, tuple[int, Future[Tensor]]] = {}

        def load(series: int, chunk: int) -> Tensor:
            block = torch.empty(size, self.n_tokens, self.d_model, dtype=self.dtype)
            self.load(series, chunk, block.numpy())
            return block

        def steps(pool: ThreadPoolExecutor) -> Iterator[tuple[np.ndarray, list[tuple[np.ndarray, int, Future[Tensor]]]]]:
            for start in range(0, len(numbers), batch_images):
                for series in range(self.n_series):
                    mine = numbers[start : start + batch_images]
                    mine = mine[usable[series, mine]]
                    runs = []
                    for run in np.split(mine, np.flatnonzero(np.diff(mine // size)) + 1) if len(mine) else []:
                        chunk = int(run[0]) // size
                        # A chunk that spans two batches is read once.
                        if series not in held or held[series][0] != chunk:
                            held[series] = chunk, pool.submit(load, series, chunk)
                        runs.append((run, chunk, held[series][1]))
                    if runs:
                        yield mine, runs

        depth = math.ceil(2 * self.read.n_threads * size / batch_images)
        pool = ThreadPoolExecutor(self.read.n_threads, thread_name_prefix="saev-read")
        try:
            waiting: deque[tuple[np.ndarray, list[tuple[np.ndarray, int, Future[Tensor]]]]] = deque()
            coming = steps(pool)
            while True:
                while len(waiting) <= depth and (step := next(coming, None)) is not None:
                    waiting.append(step)
                if not waiting:
                    return
                index, runs = waiting.popleft()
                x = torch.empty(len(index), self.n_tokens, self.d_model)
                at = 0
                for run, chunk, block in runs:
                    places = run - chunk * size
                    first, last = int(places[0]), int(places[-1])
                    # Copy adjacent rows directly; gathering would make an extra copy.
                    straight = last - first + 1 == len(run) and bool((np.diff(places) == 1).all())
                    rows = block.result()[first : last + 1] if straight else block.result()[torch.from_numpy(places)]
                    copy_alone(x[at : at + len(run)], rows)
                    at += len(run)
                yield Batch(index, self.selection.clamped(x, out=x), self.store.crop)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def copy_alone(into: Tensor, x: Tensor) -> None:
    """Copy and convert `x [n, t, d]` without waking torch's other threads, which are needed elsewhere and slow to respond when busy."""
    # Torch parallelises work from 32,768 numbers on.
    step = max(1, 32_000 // x.shape[2])
    for i in range(len(x)):
        for start in range(0, x.shape[1], step):
            into[i, start : start + step].copy_(x[i, start : start + step])
