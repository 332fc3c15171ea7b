"""Sparse codes of units, grouped by feature, in memory up to a limit and on disk beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

from saev_core.errors import StoreError
from saev_tasks.shared.ranking import Members, order

ENTRY = np.dtype([("feature", "<u4"), ("unit", "<u4"), ("value", "<f4")])
"""One activation: 12 bytes."""
BLOCK = 256
"""Features processed at once."""


class Gathered:
    """Activations of a growing number of units, in blocks of features, and the classes of each unit.

    Entries are kept in memory up to `memory` bytes; then all go to `folder`, one file per block, 12 bytes per entry. Classes take
    4 bytes per unit and class, and 8 per unit. Reading holds one block in memory at a time.
    """

    def __init__(self, d_sae: int, n_classes: int, folder: Path, memory: int = 1 << 30) -> None:
        self.d_sae, self.n_classes, self.n_units = d_sae, n_classes, 0
        self._folder, self._memory, self._held = folder, memory, 0
        self._parts: list[list[np.ndarray]] = [[] for _ in range(-(-d_sae // BLOCK))]
        self._many: list[np.ndarray] = []
        self._klass: list[np.ndarray] = []
        self.spilled = False

    @property
    def n_blocks(self) -> int:
        return len(self._parts)

    def add(
        self,
        true: Bool[np.ndarray, "n n_classes"],
        unit: Int[np.ndarray, " nnz"],
        feature: Int[np.ndarray, " nnz"],
        value: Float[np.ndarray, " nnz"],
    ) -> None:
        """Add `n` units: the classes of each, and entries `(unit 0 to n - 1, feature, value)`; zero values are dropped.

        Raises:
            StoreError: a value is not finite, or the disk is full.
        """
        if not np.isfinite(value).all():
            raise StoreError("the features' activations are not finite (NaN or infinite); check the recording with saev store verify.")
        place, klass = true.nonzero()
        self._many.append(np.bincount(place, minlength=len(true)).astype(np.int32))
        self._klass.append(klass.astype(np.int32))
        keep = value != 0
        entries = np.empty(int(keep.sum()), ENTRY)
        entries["feature"], entries["unit"], entries["value"] = feature[keep], unit[keep] + self.n_units, value[keep]
        self.n_units += len(true)
        if self.n_units >= 1 << 32:
            raise StoreError("more than 4,294,967,295 units are not supported; use fewer images with --n-images.")
        block = entries["feature"] // BLOCK
        by_block = np.argsort(block, kind="stable")
        ends = np.searchsorted(block[by_block], np.arange(self.n_blocks + 1))
        for i in np.flatnonzero(np.diff(ends)):
            self._parts[i].append(entries[by_block[ends[i] : ends[i + 1]]])
        self._held += entries.nbytes
        if self._held > self._memory:
            self._spill()

    def _spill(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for i, parts in enumerate(self._parts):
                if parts:
                    with self._file(i).open("ab") as file:
                        np.concatenate(parts).tofile(file)
                    parts.clear()
        except OSError as error:
            raise StoreError(
                f"{self._folder}: {self._held / 1e9:.1f} GB of activations cannot be written ({error.strerror or error}); "
                "free some disk space, or use fewer images with --n-images."
            ) from None
        self._held, self.spilled = 0, True

    def _file(self, block: int) -> Path:
        return self._folder / f"{block}.entries"

    def members(self) -> Members:
        """The classes of all units."""
        many = np.concatenate(self._many) if self._many else np.zeros(0, np.int32)
        klass = np.concatenate(self._klass) if self._klass else np.zeros(0, np.int32)
        self._many, self._klass = [many], [klass]  # avoid holding two copies
        return Members(np.concatenate([[0], np.cumsum(many, dtype=np.int64)]), klass, self.n_classes)

    def block(self, i: int) -> tuple[Int[np.ndarray, " nnz"], Int[np.ndarray, " nnz"], Float[np.ndarray, " nnz"]]:
        """Feature (counted from the block's first), unit and value of a block's entries, sorted by `ranking.order`."""
        parts = [np.fromfile(self._file(i), ENTRY)] if self._file(i).exists() else []
        entries = np.concatenate([*parts, *self._parts[i]]) if parts or self._parts[i] else np.empty(0, ENTRY)
        feature, unit, value = entries["feature"].astype(np.int64) - i * BLOCK, entries["unit"].astype(np.int64), entries["value"].copy()
        by = order(feature, unit, value)
        return feature[by], unit[by], value[by]

    def width(self, i: int) -> int:
        """Features of block `i`."""
        return min(BLOCK, self.d_sae - i * BLOCK)

    def columns(self, features: Int[np.ndarray, " m"]) -> dict[int, tuple[Int[np.ndarray, " nnz"], Float[np.ndarray, " nnz"]]]:
        """Units and values of some features, in memory: 12 bytes per entry."""
        wanted = np.unique(features)
        found = {}
        for i, mine in _by_block(wanted):
            feature, unit, value = self.block(i)
            ends = np.searchsorted(feature, np.arange(self.width(i) + 1))
            for one in mine - i * BLOCK:
                here = slice(ends[one], ends[one + 1])
                found[int(one) + i * BLOCK] = unit[here].copy(), value[here].copy()
        return found

    def close(self) -> None:
        """Remove the files on disk."""
        for i in range(self.n_blocks):
            self._file(i).unlink(missing_ok=True)
        if self.spilled:
            self._folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _by_block(features: Int[np.ndarray, " m"]) -> Iterator[tuple[int, Int[np.ndarray, " k"]]]:
    block = features // BLOCK
    for i in np.unique(block):
        yield int(i), features[block == i]
