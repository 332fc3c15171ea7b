"""`StoreMeta`: what a store was recorded from and how its arrays are laid out. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from saev_core.activations.store.arrays import Table
from saev_core.activations.store.shard_file import Layout
from saev_core.config.affects import affects, settings_that_matter
from saev_core.config.base import Config
from saev_core.types import Grid

FORMAT = 1
"""Format version this code reads and writes."""
NO_CLASS = 65535
"""Mask value of a patch whose image has no mask, in a data set that has masks."""


class StoreMeta(Config):
    """What a store holds. Equal `fingerprint` means equal activations; no field contains a location."""

    format: int = FORMAT
    """Format version of the store."""
    model: dict[str, Any]
    """`name`, `dist`, `options` and `n_blocks` of the model plugin; a local checkpoint is identified by its digest."""
    dataset: dict[str, Any]
    """`name`, `options` (without locations) and `identity` of the data set plugin."""
    transform: str = ""
    """The transform that fed the model, as text."""
    versions: dict[str, str] = affects("nothing", default_factory=dict)
    """Versions of the distributions used to record; not part of the fingerprint."""
    rows: int = Field(ge=1)
    """Rows of patches."""
    cols: int = Field(ge=1)
    """Columns of patches."""
    patch_px: int = Field(ge=1)
    """Side of a patch, in pixels of the transformed image."""
    n_prefix: int = Field(default=0, ge=0)
    """Tokens before the patches: CLS first, then registers."""
    d_model: int = Field(ge=1)
    """Width of an activation vector."""
    dtype: Literal["float16", "float32"] = "float16"
    """Stored precision."""
    n_images: int = Field(ge=1)
    """Images, readable or not."""
    chunk_images: int = Field(default=16, ge=1)
    """Images per inner chunk."""
    shard_images: int = Field(default=512, ge=1)
    """Images per shard file."""
    has_mask: bool = False
    """Whether there is a class per patch."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.shard_images % self.chunk_images:
            raise ValueError("shard_images must be a multiple of chunk_images")
        return self

    @property
    def grid(self) -> Grid:
        return Grid(self.rows, self.cols, self.patch_px, self.n_prefix)

    @property
    def fingerprint(self) -> str:
        """sha256, hex, of everything that affects the activations."""
        text = json.dumps(settings_that_matter(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def n_shards(self) -> int:
        return -(-self.n_images // self.shard_images)

    def layouts(self) -> dict[str, Layout]:
        """The sharded arrays of a site, by name."""
        tokens = {"patches": self.grid.n_patches, "prefix": self.n_prefix}
        return {
            part: Layout(self.n_images, self.shard_images, self.chunk_images, (n, self.d_model), np.dtype(self.dtype))
            for part, n in tokens.items()
            if n
        }

    def image_tables(self) -> dict[str, Table]:
        """The small arrays at the root, by name."""
        n, per = self.n_images, self.shard_images
        tables = {
            "label": Table((n,), per, np.dtype(np.int32), -1),
            "size": Table((n, 2), per, np.dtype(np.int32)),
            "crop": Table((n, 4), per, np.dtype(np.float32)),
        }
        if self.has_mask:
            tables["mask"] = Table((n, self.grid.n_patches), per, np.dtype(np.uint16))
        return tables

    def site_tables(self) -> dict[str, Table]:
        """The small arrays of a site, by name; moments have one row per shard, so that disjoint writers need no lock."""
        shards = self.n_shards
        return {
            "done": Table((self.n_images,), self.shard_images, np.dtype(np.uint8)),
            "count": Table((shards, 3), 1, np.dtype(np.int64)),
            "sum": Table((shards, 3, self.d_model), 1, np.dtype(np.float64)),
            "sumsq": Table((shards, 3), 1, np.dtype(np.float64)),
        }
