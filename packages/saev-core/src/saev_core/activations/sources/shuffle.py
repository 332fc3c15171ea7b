"""`WindowStream`: shuffled batches of vectors from a bounded window, filled by threads while the previous one is consumed.

A `Feed` fills it: chunks of a store (`StoredVectors`) or a model's forward pass (`live.Forward`).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saev_core.errors import StoreError
from saev_core.sae.selection import Selection


class Feed(Protocol):
    """Fills windows with the vectors of images, in one or more series, in units of `chunk_images` adjacent images."""

    name: str
    """Name of the source, for messages."""
    chunk_images: int

    @property
    def selection(self) -> Selection:
        """The selected vectors; rows are not clamped yet."""
        ...

    @property
    def n_tokens(self) -> int:
        """Vectors per image in a series."""
        ...

    @property
    def d_model(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the window's rows."""
        ...

    def identity(self) -> list[Any]:
        """Everything that determines the vectors and their images, as JSON."""
        ...

    def pool(self) -> ThreadPoolExecutor:
        """Thread pool that `fill` runs in."""
        ...

    def fill(
        self,
        pool: ThreadPoolExecutor,
        stop: threading.Event,
        series: Int[np.ndarray, " n_units"],
        chunk: Int[np.ndarray, " n_units"],
        rows: Float[np.ndarray, "n_units chunk_images n_tokens d_model"],
    ) -> list[Future[Sequence[int]]]:
        """Start filling `rows` with units; each future returns the positions of images found unreadable.

        Args:
            stop: set when the result is no longer needed.
        """
        ...


@dataclass(frozen=True)
class ReadOrder:
    """The units of each window of an epoch. Depends on the seed, the feed and the buffer size, never on threads.

    If all units fit into the buffer there is one window, filled once and kept; otherwise two windows share the buffer.
    """

    series: Int[np.ndarray, " n_units"]
    chunk: Int[np.ndarray, " n_units"]
    training: Bool[np.ndarray, "n_series n_images"]
    per_window: int
    seed: int
    digest: str

    @classmethod
    def of(cls, feed: Feed, training: Bool[np.ndarray, "n_series n_images"], seed: int, buffer_bytes: int) -> ReadOrder:
        """The order of the vectors of `training` images, in windows of at least one unit that fit into `buffer_bytes`."""
        size = feed.chunk_images
        n_chunks = -(-training.shape[1] // size)
        padded = np.zeros((training.shape[0], n_chunks * size), bool)
        padded[:, : training.shape[1]] = training
        series, chunk = np.nonzero(padded.reshape(training.shape[0], n_chunks, size).any(2))
        unit_bytes = size * feed.n_tokens * feed.d_model * feed.dtype.itemsize
        budget = buffer_bytes // unit_bytes
        n_windows = 1 if len(chunk) <= budget else -(-len(chunk) // max(1, budget // 2))
        # Windows of equal size: a small last window would give batches from few images.
        per_window = -(-len(chunk) // n_windows)
        text = json.dumps([*feed.identity(), int(training.sum()), per_window, seed], sort_keys=True)
        return cls(series, chunk, training, per_window, seed, hashlib.sha256(text.encode()).hexdigest()[:16])

    @property
    def n_windows(self) -> int:
        return -(-len(self.chunk) // self.per_window)

    @property
    def resident(self) -> bool:
        return self.n_windows == 1

    def units(self, epoch: int, window: int) -> Int[np.ndarray, " n"]:
        """The window's units, in storage order."""
        order = np.arange(len(self.chunk))
        if not self.resident:
            order = torch.randperm(len(order), generator=self.generator(epoch, -1)).numpy()
        return order[window * self.per_window : (window + 1) * self.per_window]

    def generator(self, epoch: int, window: int) -> torch.Generator:
        mixed = hashlib.sha256(f"{self.seed} {epoch} {window}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(mixed[:8], "little") >> 1)


@dataclass
class Window:
    """A part of the buffer: its rows, the order in which to emit them, and the loads still in progress."""

    rows: Float[Tensor, "n_rows d_model"]
    images: Int[np.ndarray, " n_slots"]
    order: Future[Int[Tensor, " n_vectors"]]
    loads: list[Future[Sequence[int]]]
    lost: Int[np.ndarray, " n"]
    """Positions of images found unreadable: their rows are undefined."""

    def ready(self) -> Int[Tensor, " n_vectors"]:
        """Wait for all loads and return the order of the rows.

        Raises:
            SaevError: a chunk is damaged, or the model or data set failed.
        """
        self.lost = np.array([place for load in self.loads for place in load.result()], np.int64)
        self.loads = []
        return self.order.result()


class WindowStream:
    """Endless full batches. Vectors left at the end of an epoch or window start the next batch, so none is lost."""

    def __init__(self, feed: Feed, order: ReadOrder, batch_size: int, state: Mapping[str, Any] | None) -> None:
        self._feed, self._read_order, self._batch_size = feed, order, batch_size
        self._epoch = self._window = self._offset = 0
        if state is not None:
            if state.get("schedule") != order.digest:
                raise StoreError(
                    f"{feed.name}: cannot resume from the training state, because the store, the seed or a read setting "
                    "(buffer_mb, labels, heldout, ...) changed; restore it, or restart training."
                )
            self._epoch, self._window, self._offset = (int(state[key]) for key in ("epoch", "window", "offset"))
        n_slots = order.per_window * feed.chunk_images
        shape = (n_slots * feed.n_tokens, feed.d_model)
        self._buffers = [torch.empty(shape, dtype=feed.dtype) for _ in range(1 if order.resident else 2)]
        self._out = torch.empty(batch_size, feed.d_model)
        self._staged = self._out if feed.dtype == torch.float32 else torch.empty(batch_size, feed.d_model, dtype=feed.dtype)
        self._slots = np.zeros(batch_size, np.int64)
        self._pool, self._stop = feed.pool(), threading.Event()
        self._ahead: Window | None = None
        self._closed = False
        try:
            self._current = self._begin(self._epoch, self._window, self._buffers[0])
            self._order = self._readable(self._current.ready())
            if not order.resident:
                self._ahead = self._begin(*self._after(self._epoch, self._window), self._buffers[1])
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> WindowStream:
        return self

    def __next__(self) -> Float[Tensor, "batch d_model"]:
        if self._closed:
            raise StopIteration
        filled = 0
        while filled < self._batch_size:
            if self._offset == len(self._order):
                self._turn()
            n = min(self._batch_size - filled, len(self._order) - self._offset)
            rows = self._order[self._offset : self._offset + n]
            torch.index_select(self._current.rows, 0, rows, out=self._staged[filled : filled + n])
            self._slots[filled : filled + n] = self._current.images[rows.numpy() // self._feed.n_tokens]
            filled += n
            self._offset += n
        if self._staged is not self._out:
            self._out.copy_(self._staged)
        return self._feed.selection.clamped(self._out, out=self._out)

    @property
    def image(self) -> Int[np.ndarray, " batch"]:
        """Image numbers of the last batch's vectors."""
        return self._slots

    def state(self) -> dict[str, Any]:
        """Position of the next batch, for `ActivationSource.batches(state=...)`."""
        return {"epoch": self._epoch, "window": self._window, "offset": self._offset, "schedule": self._read_order.digest}

    def close(self) -> None:
        """Stop reading ahead and release the buffer. May be called twice."""
        self._closed = True
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._buffers, self._ahead = [], None

    def _after(self, epoch: int, window: int) -> tuple[int, int]:
        return (epoch, window + 1) if window + 1 < self._read_order.n_windows else (epoch + 1, 0)

    def _turn(self) -> None:
        """Switch to the next window and start filling the one after it."""
        self._epoch, self._window = self._after(self._epoch, self._window)
        self._offset = 0
        if self._ahead is None:
            order = self._shuffle(self._epoch, self._window, self._read_order.units(self._epoch, self._window))
            self._order = self._readable(order)
            return
        used = self._current.rows
        self._current = self._ahead
        self._order = self._readable(self._current.ready())
        self._ahead = self._begin(*self._after(self._epoch, self._window), used)

    def _readable(self, order: Int[Tensor, " n_vectors"]) -> Int[Tensor, " n_vectors"]:
        """The rows of the current window, without those of images found unreadable."""
        if not len(lost := self._current.lost):
            return order
        return order[torch.from_numpy(~np.isin(order.numpy() // self._feed.n_tokens, lost))]

    def _begin(self, epoch: int, window: int, rows: Tensor) -> Window:
        units, size, per_image = self._read_order.units(epoch, window), self._feed.chunk_images, self._feed.n_tokens
        slots = rows.numpy().reshape(-1, size, per_image, rows.shape[1])[: len(units)]
        order = self._pool.submit(self._shuffle, epoch, window, units)
        loads = self._feed.fill(self._pool, self._stop, self._read_order.series[units], self._read_order.chunk[units], slots)
        images = (self._read_order.chunk[units, None] * size + np.arange(size)).reshape(-1)
        return Window(rows, images, order, loads, np.zeros(0, np.int64))

    def _shuffle(self, epoch: int, window: int, units: Int[np.ndarray, " n"]) -> Int[Tensor, " n_vectors"]:
        """The window's training rows in random order."""
        size, per_image = self._feed.chunk_images, self._feed.n_tokens
        numbers = self._read_order.chunk[units, None] * size + np.arange(size)  # [units, chunk_images]
        inside = numbers < self._read_order.training.shape[1]
        chosen = inside & self._read_order.training[self._read_order.series[units, None], np.where(inside, numbers, 0)]
        slots = torch.from_numpy(np.flatnonzero(chosen))
        rows = (slots[:, None] * per_image + torch.arange(per_image)).reshape(-1)
        return rows[torch.randperm(len(rows), generator=self._read_order.generator(epoch, window))]
