"""`TopImages`: every feature's k strongest distinct images with their heat maps, updated as images stream in."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

IN_MEMORY = 1 << 30
"""Bytes above which an array is backed by a temporary file."""


def zeros_on_disk_if_large(shape: tuple[int, ...], dtype: type, folder: Path | None) -> Shaped[np.ndarray, "..."]:
    """A zeroed array; above `IN_MEMORY` bytes, and given a folder, it is backed by a temporary file there that is deleted with it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if folder is None or size <= IN_MEMORY:
        return np.zeros(shape, dtype)
    # Unlinked at once on Linux; the mapping keeps it alive, and a killed process leaves no file behind.
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk raises here instead of crashing at the first page write
        else:
            file.truncate(size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape)


@dataclass
class _Pool:
    """Images above a feature's k-th, waiting for the next merge. Maps are stored as their non-zero entries."""

    feature: list[np.ndarray]
    image: list[np.ndarray]
    value: list[np.ndarray]
    token: list[np.ndarray]
    entry_owner: list[np.ndarray]
    entry_token: list[np.ndarray]
    entry_value: list[np.ndarray]
    n: int = 0
    n_entries: int = 0
    n_images: int = 0


class TopImages:
    """The k images with the largest maximum patch value of a feature; ties go to the lower image number.

    An image enters once, by its maximum, so it cannot take two places. Only images above a feature's current
    k-th are pooled, and the pool is merged once per `block` images: after n images a feature accepts a new one
    with probability k / n. A map stays where it was written; only its slot number changes.
    """

    def __init__(self, d_sae: int, k: int, n_patches: int, *, block: int = 1024, folder: Path | None = None) -> None:
        self.value = np.zeros((d_sae, k), np.float32)  # descending; 0: empty
        self.image = np.full((d_sae, k), -1, np.int64)
        self.token = np.full((d_sae, k), -1, np.int32)
        self._slot = np.tile(np.arange(k, dtype=np.int32), (d_sae, 1))
        self._maps = zeros_on_disk_if_large((d_sae, k, n_patches), np.float16, folder)
        self._block = block
        self._last = -1
        self._pool = _Pool([], [], [], [], [], [], [])

    def add(
        self,
        images: Int[np.ndarray, " b"],
        peak: Float[np.ndarray, "b d_sae"],
        *,
        row: Int[np.ndarray, " nnz"],
        token: Int[np.ndarray, " nnz"],
        feature: Int[np.ndarray, " nnz"],
        value: Float[np.ndarray, " nnz"],
    ) -> None:
        """Add one batch of images, all later than the previous ones.

        Args:
            images: their numbers, ascending.
            peak: each feature's largest value in each image.
            row: batch row of each non-zero code; ascending, with `token` ascending within it.
            token: patch of each code.
            feature: feature of each code.
            value: value of each code.

        Raises:
            ValueError: the images are not in ascending order; ties would then depend on the order.
        """
        if len(images) == 0:
            return
        if images[0] <= self._last or (np.diff(images) <= 0).any():
            raise ValueError("images must come in ascending order, each once.")
        self._last = int(images[-1])
        pool = self._pool
        better = peak > self.value[:, -1]
        rows, features = better.nonzero()
        if len(rows):
            owner = np.full(peak.shape, -1, np.int32)
            owner[rows, features] = np.arange(len(rows), dtype=np.int32)
            of_entry = owner.reshape(-1)[row * peak.shape[1] + feature]
            entries = np.flatnonzero(of_entry >= 0)
            of_entry, tokens, values = of_entry[entries], token[entries], value[entries]
            best = peak[rows, features]
            # Assigned from the last token to the first, so that the first of equal patches wins.
            at_peak = np.flatnonzero(values == best[of_entry])[::-1]
            peak_token = np.zeros(len(rows), np.int32)
            peak_token[of_entry[at_peak]] = tokens[at_peak]
            for store, part in (
                (pool.feature, features),
                (pool.image, images[rows]),
                (pool.value, best),
                (pool.token, peak_token),
                (pool.entry_owner, of_entry + np.int64(pool.n)),
                (pool.entry_token, tokens.astype(np.int32)),
                (pool.entry_value, values),
            ):
                store.append(part)
            pool.n += len(rows)
            pool.n_entries += len(entries)
        pool.n_images += len(images)
        # 2M entries are some 50 MB; at the start, when every image is among the best so far, they fill up before a block ends.
        if pool.n_images >= self._block or pool.n_entries + pool.n >= 2_000_000:
            self.merge()

    def merge(self) -> None:
        """Merge the pool into the kept images."""
        pool, self._pool = self._pool, _Pool([], [], [], [], [], [], [])
        if pool.n == 0:
            return
        k = self.value.shape[1]
        feature, image, value, token = (np.concatenate(part) for part in (pool.feature, pool.image, pool.value, pool.token))
        # By feature, then descending value: the bits of positive floats sort like the floats. Stable, so that of equal values
        # the lower image comes first, as pooled. One such sort takes an eighth of the time of a lexsort.
        key = (feature << 32) | (0xFFFF_FFFF - value.view(np.uint32).astype(np.int64))
        order = torch.from_numpy(key).sort(stable=True).indices.numpy()
        touched, first, count = np.unique(feature[order], return_index=True, return_counts=True)
        rank = np.arange(pool.n) - np.repeat(first, count)
        keep = rank < k
        order, rank = order[keep], rank[keep]
        line = np.repeat(np.arange(len(touched)), np.minimum(count, k))

        # Old and new side by side, [n_touched, 2k]; new images come later, so a stable sort resolves ties.
        values = np.concatenate([self.value[touched], np.zeros((len(touched), k), np.float32)], 1)
        images = np.concatenate([self.image[touched], np.full((len(touched), k), -1, np.int64)], 1)
        tokens = np.concatenate([self.token[touched], np.full((len(touched), k), -1, np.int32)], 1)
        members = np.full((len(touched), k), -1, np.int64)
        values[line, k + rank], images[line, k + rank], tokens[line, k + rank] = value[order], image[order], token[order]
        members[line, rank] = order
        winners = np.argsort(-values, axis=1, kind="stable")[:, :k]
        new = winners >= k

        # Slots of removed images go to added ones, row by row; their counts agree in every row.
        stays = np.zeros((len(touched), k), bool)
        np.put_along_axis(stays, np.where(new, 0, winners), True, 1)
        stays[:, 0] = (winners == 0).any(1)
        slots = self._slot[touched]
        slot = np.take_along_axis(slots, np.where(new, 0, winners), 1)
        slot[new] = slots[~stays]
        self.value[touched] = np.take_along_axis(values, winners, 1)
        self.image[touched] = np.take_along_axis(images, winners, 1)
        self.token[touched] = np.take_along_axis(tokens, winners, 1)
        self._slot[touched] = slot

        place_of = np.full(pool.n, -1, np.int64)
        arrived = np.take_along_axis(members, np.where(new, winners - k, 0), 1)[new]
        place = (touched[:, None] * k + slot)[new]
        place_of[arrived] = place
        maps = self._maps.reshape(-1, self._maps.shape[2])
        maps[place] = 0
        owner, entry_token, entry_value = (np.concatenate(part) for part in (pool.entry_owner, pool.entry_token, pool.entry_value))
        at = place_of[owner]
        entries = np.flatnonzero(at >= 0)
        cell = at[entries] * maps.shape[1] + entry_token[entries]
        height = np.minimum(entry_value[entries], np.finfo(np.float16).max).astype(np.float16)
        flat = maps.reshape(-1)
        flat[cell] = height
        # The largest, not the last: a patch appears once per layer if an SAE reads several.
        while (lower := flat[cell] < height).any():
            flat[cell[lower]] = height[lower]

    def maps(self, start: int, stop: int) -> Float[np.ndarray, "n k n_patches"]:
        """Heat maps of features `start` to `stop - 1`, in the order of `image`; float16."""
        self.merge()
        k = self._slot.shape[1]
        rows = np.arange(start, stop)[:, None] * k + self._slot[start:stop]
        out: np.ndarray = self._maps.reshape(-1, self._maps.shape[2])[rows]  # whole rows: a sixth of the time of take_along_axis
        return out
