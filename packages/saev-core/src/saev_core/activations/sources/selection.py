"""`Reading`: what a `ReadConfig` picks from a store, and how a stored chunk becomes rows of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saev_core.activations.store.shard_writer import RECORDED
from saev_core.activations.store.store import ActivationStore
from saev_core.config.affects import settings_that_matter
from saev_core.config.stages import ReadConfig
from saev_core.errors import ConfigError, StoreError
from saev_core.types import Site

log = logging.getLogger(__name__)


class Reading:
    """The vectors that a `ReadConfig` picks, as one or more series of images.

    A series is one site; `layer="all"` gives one per recorded site, `layer="mean"` a single one averaged over them, and
    several blocks a single one in which a vector is the same token at each of them, joined in the order of the blocks. An
    image has `n_tokens` vectors in a series: its patches, or one (CLS, or the mean over patches).

    Raises:
        StoreError: the layer is not recorded, there is no CLS token, or no image has the labels asked for.
    """

    def __init__(self, store: ActivationStore, read: ReadConfig) -> None:
        self.store, self.read, self.name = store, read, store.url
        if isinstance(read.layer, int):
            self.sites = [store.resolve(read.layer, read.stream)]
        elif isinstance(read.layer, tuple):
            self.sites = joined([store.resolve(layer, read.stream) for layer in read.layer])
        else:
            self.sites = [site for site in store.sites if site.stream == read.stream]
            if not self.sites:
                held = ", ".join(map(str, store.sites)) or "no site yet"
                raise StoreError(f"{store.url} holds {held}, none of stream {read.stream}; set read.stream to a recorded one.")
        self._part = "prefix" if read.tokens == "cls" else "patches"
        readers = [store.reader(site, "prefix" if read.tokens == "cls" else "patches") for site in self.sites]
        self._joins = isinstance(read.layer, tuple)
        self._series = [readers] if self._joins or read.layer == "mean" else [[reader] for reader in readers]
        self.n_series = len(self._series)
        self.n_tokens = store.grid.n_patches if read.tokens == "patches" else 1
        self.n_sites = len(self.sites) if self._joins else 1
        self.d_model = self.n_sites * store.meta.d_model
        self.chunk_images = store.meta.chunk_images
        averages = read.tokens == "mean" or (read.layer == "mean" and len(self.sites) > 1)
        self.dtype = torch.float32 if averages else getattr(torch, store.meta.dtype)
        self._whole = not averages and not self._joins and read.tokens == "patches"
        self._local = threading.local()

    @property
    def site(self) -> str:
        """The site's name, such as `resid.10`; `resid.6+10`, `resid.all` or `resid.mean` where there are several."""
        return site_name(self.read, self.sites)

    @cached_property
    def usable(self) -> Bool[np.ndarray, "n_series n_images"]:
        """Images that are recorded, readable, and carry a label that was asked for."""
        done = np.stack([self.store.done(site) for site in self.sites])
        if not done.all():
            log.warning("%s is incomplete: %d of %d images recorded", self.store.url, int((done > 0).all(0).sum()), self.store.n_images)
        recorded = np.asarray(done == RECORDED)
        if len(self._series[0]) > 1:
            recorded = np.logical_and.reduce(recorded, axis=0, keepdims=True)
        if self.read.labels is not None:
            wanted = np.isin(self.store.labels, self.read.labels)
            if not wanted.any():
                raise StoreError(f"{self.store.url}: no image has a label of read.labels={list(self.read.labels)}.")
            recorded = recorded & wanted
        return recorded

    def identity(self) -> list[Any]:
        """All that decides the vectors and their images, as JSON."""
        return [self.store.meta.fingerprint, self.site, settings_that_matter(self.read, without=["order"])]

    def pool(self) -> ThreadPoolExecutor:
        """The threads that `fill` works in."""
        return ThreadPoolExecutor(self.read.n_threads, thread_name_prefix="saev-read")

    def fill(
        self,
        pool: ThreadPoolExecutor,
        stop: threading.Event,
        series: Int[np.ndarray, " n_units"],
        chunk: Int[np.ndarray, " n_units"],
        rows: Float[np.ndarray, "n_units chunk_images n_tokens d_model"],
    ) -> list[Future[Sequence[int]]]:
        """Begin to read chunks into `rows`. No image turns out to be unreadable: the store knows them.

        Args:
            stop: not needed, for a chunk is soon read.
        """

        def load(place: int) -> Sequence[int]:
            self.load(int(series[place]), int(chunk[place]), rows[place])
            return ()

        return [pool.submit(load, place) for place in range(len(chunk))]

    def load(self, series: int, chunk: int, out: Float[np.ndarray, "chunk_images n_tokens d_model"]) -> None:
        """The rows of an inner chunk's images, in `dtype`. Safe from several threads.

        Raises:
            StoreError: the chunk is damaged; its file is named.
        """
        readers = self._series[series]
        if self._whole:
            readers[0].read(chunk, out)
            return
        into = torch.from_numpy(out)
        for place, reader in enumerate(readers):
            layout = reader.layout
            scratch: np.ndarray | None = getattr(self._local, "scratch", None)
            if scratch is None:
                scratch = self._local.scratch = np.empty((layout.chunk_images, *layout.row), layout.dtype)
            reader.read(chunk, scratch)
            x = torch.from_numpy(scratch)
            match self.read.tokens:
                case "cls":
                    x = x[:, :1]
                case "mean":
                    x = x.float().mean(1, keepdim=True)
            if self._joins:
                # Through numpy: torch would wake its other threads for a copy.
                d = x.shape[2]
                out[:, :, place * d : (place + 1) * d] = x.numpy()
            elif place == 0:
                into.copy_(x)
            else:
                into.add_(x)
        if len(readers) > 1 and not self._joins:
            into.div_(len(readers))


def joined(sites: Sequence[Site]) -> list[Site]:
    """Sites in the order in which their vectors are joined: that of the blocks.

    Raises:
        ConfigError: a block is named twice.
    """
    if len(set(sites)) < len(sites):
        raise ConfigError(f"read.layer names a block twice ({', '.join(map(str, sites))}); join different ones.")
    return sorted(sites)


def site_name(read: ReadConfig, sites: Sequence[Site]) -> str:
    """The name of what `read` takes from `sites`: `resid.10`, `resid.6+10` joined, `resid.all` or `resid.mean` otherwise."""
    if isinstance(read.layer, int):
        return str(sites[0])
    return f"{read.stream}.{'+'.join(str(site.layer) for site in sites) if isinstance(read.layer, tuple) else read.layer}"


def copy_alone(into: Tensor, x: Tensor) -> None:
    """Copy and convert `x [n, t, d]` without waking torch's other threads, which are needed elsewhere and slow to come when busy."""
    # Torch shares out work from 32,768 numbers on.
    step = max(1, 32_000 // x.shape[2])
    for i in range(len(x)):
        for start in range(0, x.shape[1], step):
            into[i, start : start + step].copy_(x[i, start : start + step])
