"""`Samples`: a streaming uniform sample, per feature, of the images it fires on, regardless of strength."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

N_COACTIVE = 8
"""Number of other features kept per sample: the strongest on its patch."""
_NO_KEY = np.uint32(0xFFFF_FFFF)
_SAMPLES_AT_ONCE = 4096
"""Samples processed per block when gathering coactive features."""


class Samples:
    """`n` images per feature, drawn uniformly without replacement from all images it fires on.

    Each (feature, image) pair has a pseudo-random key that depends only on the pair; the `n` smallest keys are kept. So the
    sample does not depend on batching, and the n-th image seen enters with probability n_kept / n. Stored with each image:
    its strongest patch, that patch's value, and the strongest other features there.
    """

    def __init__(self, d_sae: int, n: int, *, block: int = 1024) -> None:
        self.image = np.full((d_sae, n), -1, np.int64)  # -1: empty slot
        self.token = np.full((d_sae, n), -1, np.int32)
        self.value = np.zeros((d_sae, n), np.float32)
        self.coactive = np.full((d_sae, n, N_COACTIVE), -1, np.int32)
        """Other features that fire on the patch, strongest first, padded with -1."""
        self._key = np.full((d_sae, n), _NO_KEY, np.uint32)
        self._block = block
        self._pool: list[tuple[np.ndarray, ...]] = []
        self._n_pooled = self._n_images = 0

    def add(
        self,
        images: Int[np.ndarray, " b"],
        peak: Float[np.ndarray, "b d_sae"],
        *,
        row: Int[np.ndarray, " nnz"],
        token: Int[np.ndarray, " nnz"],
        feature: Int[np.ndarray, " nnz"],
        value: Float[np.ndarray, " nnz"],
        n_patches: int,
    ) -> None:
        """Add a batch of new images; arguments as in `TopImages.add`, entries sorted by patch."""
        if self.image.shape[1] == 0 or len(images) == 0:
            return
        rows, features = peak.nonzero()
        key = hash_pair(images[rows], features)
        chosen = np.flatnonzero(key < self._key[features, -1])
        self._n_images += len(images)
        if len(chosen):
            rows, features, key = rows[chosen], features[chosen], key[chosen]
            best = peak[rows, features]
            owner = np.full(peak.shape, -1, np.int32)
            owner[rows, features] = np.arange(len(rows), dtype=np.int32)
            of_entry = owner.reshape(-1)[row * peak.shape[1] + feature]
            entries = np.flatnonzero(of_entry >= 0)
            # Assigned from the last token to the first, so the first of equal patches wins.
            at_peak = entries[value[entries] == best[of_entry[entries]]][::-1]
            tokens = np.zeros(len(rows), np.int32)
            tokens[of_entry[at_peak]] = token[at_peak]
            patch = row * n_patches + token  # ascending
            coactive = _coactive(features, rows * n_patches + tokens, patch, feature, value)
            self._pool.append((features, key, images[rows], tokens, best, coactive))
            self._n_pooled += len(rows)
        if self._n_images >= self._block or self._n_pooled >= 500_000:
            self.merge()

    def merge(self) -> None:
        """Merge the pool into the kept samples."""
        pool, self._pool, self._n_pooled, self._n_images = self._pool, [], 0, 0
        if not pool:
            return
        feature, key, image, token, value, coactive = (np.concatenate(part) for part in zip(*pool, strict=True))
        n = self.image.shape[1]
        order = np.argsort((feature.astype(np.int64) << 32) | key, kind="stable")
        touched, first, count = np.unique(feature[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(first, count)
        keep = rank < n
        order, rank = order[keep], rank[keep]
        line = np.repeat(np.arange(len(touched)), np.minimum(count, n))
        new = np.full((len(touched), n), _NO_KEY, np.uint32)
        new[line, rank] = key[order]
        member = np.zeros((len(touched), n), np.int64)
        member[line, rank] = order
        winners = np.argsort(np.concatenate([self._key[touched], new], 1), axis=1, kind="stable")[:, :n]
        fresh = winners >= n
        arrived = np.take_along_axis(member, np.where(fresh, winners - n, 0), 1)
        stay = np.where(fresh, 0, winners)
        for held, came in ((self._key, key), (self.image, image), (self.token, token), (self.value, value)):
            held[touched] = np.where(fresh, came[arrived], np.take_along_axis(held[touched], stay, 1))
        kept = np.take_along_axis(self.coactive[touched], stay[..., None], 1)
        # An empty slot has the largest key, old or new, and stays empty.
        self.coactive[touched] = np.where(fresh[..., None], coactive[arrived], kept)
        empty = self._key[touched] == _NO_KEY
        for held, nothing in ((self.image, -1), (self.token, -1), (self.value, 0)):
            held[touched] = np.where(empty, nothing, held[touched])
        self.coactive[touched] = np.where(empty[..., None], -1, self.coactive[touched])


def hash_pair(image: Int[np.ndarray, " n"], feature: Int[np.ndarray, " n"]) -> np.ndarray:
    """A deterministic pseudo-random number from 0 to 2^32 - 2 for each pair.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195
    """
    x = (image.astype(np.uint64) << np.uint64(32)) | feature.astype(np.uint64)
    x = x + np.uint64(0x9E37_79B9_7F4A_7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return np.asarray(np.minimum((x ^ (x >> np.uint64(31))) >> np.uint64(32), _NO_KEY - np.uint32(1)).astype(np.uint32))


def _coactive(
    own: Int[np.ndarray, " n"],
    where: Int[np.ndarray, " n"],
    patch: Int[np.ndarray, " nnz"],
    feature: Int[np.ndarray, " nnz"],
    value: Float[np.ndarray, " nnz"],
) -> Int[np.ndarray, "n N_COACTIVE"]:
    """The strongest features on each patch of `where`, excluding the sample's `own`."""
    out = np.full((len(own), N_COACTIVE), -1, np.int32)
    offsets = np.searchsorted(patch, np.arange(patch[-1] + 2))  # far fewer patches than samples
    start, stop = offsets[where], offsets[where + 1]
    for a in range(0, len(own), _SAMPLES_AT_ONCE):
        s, e, mine = start[a : a + _SAMPLES_AT_ONCE], stop[a : a + _SAMPLES_AT_ONCE], own[a : a + _SAMPLES_AT_ONCE]
        at = s[:, None] + np.arange(max(int((e - s).max()), N_COACTIVE + 1))
        inside = at < e[:, None]
        at = np.minimum(at, len(feature) - 1)
        candidates = feature[at]
        strength = np.where(inside & (candidates != mine[:, None]), value[at], -1)
        best = np.argpartition(-strength, N_COACTIVE, axis=1)[:, :N_COACTIVE]  # `at` is always wider
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(strength, best, 1), axis=1, kind="stable"), 1)
        found = np.take_along_axis(candidates, best, 1)
        out[a : a + _SAMPLES_AT_ONCE] = np.where(np.take_along_axis(strength, best, 1) > 0, found, -1)
    return out
