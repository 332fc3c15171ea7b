"""`ShardSetWriter`: writes one shard of images into all its sites at once; visible only when complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from saev_core.activations.store.arrays import Arrays, Table, Writer
from saev_core.activations.store.moments import Moments
from saev_core.activations.store.shard_file import Layout
from saev_core.errors import ShapeError, StoreError
from saev_core.types import Site

TODO, RECORDED, MISSING = 0, 1, 2
"""Values of `done`: not recorded yet; recorded; unreadable image, whose rows are zero."""


def not_finite(site: Site, image: int, x: Tensor) -> str:
    """Error message for an image whose activations are not finite in the stored precision."""
    if torch.isfinite(x).all():
        largest = float(x.abs().max())
        return f"{site}, image {image}: an activation of {largest:.6g} does not fit float16 (65,504); record with --dtype float32."
    return (
        f"{site}, image {image}: the model produced NaN or infinity; check its weights, and run it in float32 or bfloat16 "
        "instead of float16 if it runs in half precision."
    )


class ShardSetWriter:
    """Takes images in order and commits them together: first data files, then labels and moments, finally `done`.

    A context manager: a normal exit commits, an exception removes every unfinished file.
    Memory: one inner chunk per site, or one shard per site if the store is remote.
    """

    def __init__(
        self, arrays: Arrays, shard: int, sites: Sequence[Site], layouts: Mapping[str, Layout], tables: Mapping[str, Table]
    ) -> None:
        patches = layouts["patches"]
        self.images = patches.images(shard)
        self._arrays, self._shard, self._tables = arrays, shard, tables
        self._n_prefix = layouts["prefix"].row[0] if "prefix" in layouts else 0
        self._dtype = patches.dtype
        self._row = (self._n_prefix + patches.row[0], patches.row[1])
        self._next = self.images.start
        n = len(self.images)
        self._facts: dict[str, np.ndarray] = {
            name: np.full((n, *table.shape[1:]), table.fill, table.dtype) for name, table in tables.items() if name in _IMAGE_TABLES
        }
        self._done = np.zeros(n, np.uint8)
        self._moments = {site: Moments(patches.row[1]) for site in sites}
        self._writers: dict[Site, dict[str, Writer]] = {}
        try:
            for site in sites:
                self._writers[site] = {}
                for part, layout in layouts.items():
                    self._writers[site][part] = arrays.writer(f"{site}/{part}", layout, shard)
        except BaseException:
            self.discard()
            raise

    def append(
        self,
        tokens: Mapping[Site, Float[Tensor, "batch n_tokens d_model"]],
        index: Integer[np.ndarray, " batch"] | Integer[Tensor, " batch"] | Sequence[int],
        *,
        label: Any = None,
        size: Any = None,
        crop: Any = None,
        mask: Any = None,
        missing: Bool[np.ndarray, " batch"] | Bool[Tensor, " batch"] | Sequence[bool] | None = None,
    ) -> None:
        """Append the next images of the shard, without gaps.

        Args:
            tokens: output of each site, prefix tokens first; any device and float dtype. Rows of missing images are ignored.
            index: the images' numbers.
            label: `[batch]` class numbers, -1 where unknown.
            size: `[batch, 2]` width and height of the originals.
            crop: `[batch, 4]` left, top, right, bottom of what the model saw, in original pixels.
            mask: `[batch, n_patches]` majority class per patch.
            missing: `[batch]` images that could not be read.

        Raises:
            StoreError: a value does not fit the stored dtype or is not finite; the images are out of order; the disk is full.
            ShapeError: the tokens are not `[batch, n_tokens, d_model]`.
        """
        numbers = np.asarray(index).astype(np.int64)
        n = len(numbers)
        if not np.array_equal(numbers, np.arange(self._next, self._next + n)) or self._next + n > self.images.stop:
            raise StoreError(
                f"shard {self._shard} expects images {self._next} to {self.images.stop - 1} in order, not {numbers.tolist()[:8]}; "
                "pass unreadable ones with missing=True."
            )
        gone = np.zeros(n, bool) if missing is None else np.asarray(missing).astype(bool)
        for site, writers in self._writers.items():
            if site not in tokens or tokens[site].shape != (n, *self._row):
                have = tuple(tokens[site].shape) if site in tokens else "nothing"
                raise ShapeError(f"{site}: got {have}, the store expects {(n, *self._row)} (images, tokens, d_model).")
            self._append_site(site, writers, tokens[site].detach(), numbers, gone)
        at = slice(self._next - self.images.start, self._next - self.images.start + n)
        for name, values in (("label", label), ("size", size), ("crop", crop), ("mask", mask)):
            if values is not None and name in self._facts:
                self._facts[name][at][~gone] = np.asarray(values)[~gone]
        self._done[at] = np.where(gone, MISSING, RECORDED)
        self._next += n

    def _append_site(self, site: Site, writers: dict[str, Writer], x: Tensor, numbers: np.ndarray, gone: np.ndarray) -> None:
        # One transfer from the device, in the stored precision.
        stored = x if x.device.type == "cpu" else x.to(getattr(torch, self._dtype.name)).cpu()
        start = 0
        while start < len(x):
            # All parts of a site have the same images per chunk, so they return the same amount of space.
            spaces = {part: writer.space(len(x) - start) for part, writer in writers.items()}
            n = len(spaces["patches"])
            with np.errstate(over="ignore", invalid="ignore"):  # infinities are detected and reported below
                for i in range(n):
                    into = {part: space[i] for part, space in spaces.items()}
                    if gone[start + i]:
                        for rows in into.values():
                            rows[:] = 0
                    elif not self._moments[site].take(stored[start + i], into["patches"], into.get("prefix")):
                        raise StoreError(not_finite(site, int(numbers[start + i]), x[start + i]))
            for writer in writers.values():
                writer.advance(n)
            start += n

    def close(self) -> None:
        """Commit: from here on the shard counts as recorded, even after a power failure.

        Raises:
            StoreError: images are missing, or the disk is full; the shard then stays unrecorded.
        """
        try:
            if self._next != self.images.stop:
                raise StoreError(f"shard {self._shard} lacks images {self._next} to {self.images.stop - 1}; it was not committed.")
            self._commit()
        finally:
            self.discard()

    def _commit(self) -> None:
        parts = [writer for writers in self._writers.values() for writer in writers.values()]
        for writer in parts:
            writer.close()
        for writer in parts:
            writer.publish()
        for name, values in self._facts.items():
            # An image that could be read when another site was recorded keeps its entries; equal files are not touched.
            old = self._arrays.get(name, self._tables[name], self._shard)
            gone = self._done == MISSING
            values[gone] = old[gone]
            self._arrays.put(name, self._tables[name], self._shard, values)
        for site in self._writers:
            for name, row in self._moments[site].rows().items():
                self._arrays.put(f"{site}/{name}", self._tables[name], self._shard, row[None])
        for site in self._writers:
            self._arrays.put(f"{site}/done", self._tables["done"], self._shard, self._done)

    def discard(self) -> None:
        """Remove unfinished files; committed ones stay. Can be called twice."""
        for writers in self._writers.values():
            for writer in writers.values():
                writer.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


_IMAGE_TABLES = ("label", "size", "crop", "mask")
