"""How a probe pools an image's tokens: to one vector, or to none, reading each patch."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core import ActivationStore, Probe, ReadConfig, Site, StoredVectors
from saev_core.errors import ProbeError, StoreError
from saev_core.support.progress import Track, silent

IN_MEMORY = 2**30
"""Maximum bytes of image vectors kept in memory; more go to disk."""
_BATCH_IMAGES = 64


class Pool(NamedTuple):
    """How a probe pools an image's tokens: to one vector, or with `patches` each patch."""

    kind: Literal["cls", "mean", "token", "patches"]
    patch: int = 0
    """Patch number, with `token`."""

    def __call__(self, tokens: Float[Tensor, "b n_tokens d"], n_prefix: int) -> Float[Tensor, "b *n_patches d"]:
        """Pool tokens, prefix tokens first."""
        match self.kind:
            case "cls":
                return tokens[:, 0]
            case "mean":
                return tokens[:, n_prefix:].mean(1)
            case "token":
                return tokens[:, n_prefix + self.patch]
            case "patches":
                return tokens[:, n_prefix:]

    def reads(self, n_tokens: int, n_prefix: int) -> list[int]:
        """Indices of the tokens it reads, prefix tokens first."""
        match self.kind:
            case "cls":
                return [0]
            case "token":
                return [n_prefix + self.patch]
            case _:
                return list(range(n_prefix, n_tokens))

    def check(self, store: ActivationStore) -> Pool:
        """Check that a store has the token.

        Raises:
            StoreError: there is no CLS token, or no such patch.
        """
        if self.kind == "cls" and not store.meta.n_prefix:
            raise StoreError(f"{store.url}: {store.meta.model.get('name')} has no CLS token; use --tokens mean.")
        if self.kind == "token" and self.patch >= store.grid.n_patches:
            raise StoreError(f"--tokens token:{self.patch}: the store has patches 0 to {store.grid.n_patches - 1}.")
        return self

    def __str__(self) -> str:
        return f"token:{self.patch}" if self.kind == "token" else self.kind


def parse_tokens(text: str) -> Pool:
    """Parse `cls`, `mean` or `token:N`, the pools for whole images.

    Raises:
        ValueError: it is none of them.
    """
    if text in ("cls", "mean"):
        return Pool(text)  # type: ignore[arg-type]
    if match := re.fullmatch(r"token:(\d+)", text):
        return Pool("token", int(match[1]))
    raise ValueError(f"{text!r} is not cls, mean or token:N")


def pool_of(probe: Probe) -> Pool:
    """The pool that a probe reads.

    Raises:
        ProbeError: it is none of the pools.
    """
    if probe.tokens == "patches":
        return Pool("patches")
    try:
        return parse_tokens(probe.tokens)
    except ValueError as error:
        raise ProbeError(f"the probe's tokens: {error}; retrain it with --tokens.") from None


def image_vectors(
    store: ActivationStore, site: Site, pool: Pool, images: Int[np.ndarray, " n"], aside: Path | None = None, track: Track = silent
) -> Float[Tensor, "n d_model"]:
    """One raw float32 vector per image, in that order; if large, memory-mapped from a file in `aside`.

    Raises:
        StoreError: the site is not recorded, a chunk is damaged, or a vector is not finite.
    """
    shape = (len(images), store.meta.d_model)
    if aside is not None and 4 * shape[0] * shape[1] > IN_MEMORY:
        with tempfile.NamedTemporaryFile(dir=aside, suffix=".npy", delete=False) as file:
            out = torch.from_numpy(np.lib.format.open_memmap(file.name, "w+", np.float32, shape))
    else:
        out = torch.empty(shape)
    read = ReadConfig(layer=site.layer, stream=site.stream, tokens="patches" if pool.kind == "token" else pool.kind)
    at = 0
    with track("read", len(images), "images") as meter:
        for numbers, x, _ in StoredVectors(store, read).in_order(images, _BATCH_IMAGES):
            vectors = x[:, pool.patch if pool.kind == "token" else 0]
            if not torch.isfinite(vectors).all():
                bad = numbers[~torch.isfinite(vectors).all(1).numpy()][0]
                raise StoreError(f"{store.url}: {site} of image {bad} is not finite (NaN or infinite); re-record it in float32.")
            out[at : at + len(numbers)] = vectors
            at += len(numbers)
            meter.update(len(numbers))
    assert at == len(images), "requested an image that was not recorded"
    return out
