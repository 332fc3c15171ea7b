"""`store_of`: create a store from tokens in memory, for tests and examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.store import ActivationStore
from saev_core.types import Site


def store_of(
    url: str | Path,
    tokens: Mapping[Site, Float[Tensor, "n_images n_tokens d_model"]],
    *,
    n_prefix: int = 0,
    label: Any = None,
    mask: Any = None,
    missing: Any = None,
    batch: int = 7,
    **meta: Any,
) -> ActivationStore:
    """A complete store that holds `tokens`, prefix tokens first.

    Args:
        label: `[n_images]`; mask: `[n_images, n_patches]`; missing: `[n_images]` bool.
        batch: images per append.
        meta: fields of `StoreMeta`; by default one row of patches, 4 images per chunk, 8 per shard.
    """
    n, n_tokens, d_model = next(iter(tokens.values())).shape
    fields: dict[str, Any] = {"model": {"name": "memory", "n_blocks": 12}, "dataset": {"name": "memory"}, "rows": 1, "patch_px": 16}
    fields |= {"cols": n_tokens - n_prefix, "chunk_images": 4, "shard_images": 8} | meta
    fields |= {"n_images": n, "d_model": d_model, "n_prefix": n_prefix, "has_mask": mask is not None}
    store = ActivationStore.create(url, StoreMeta.model_validate(fields))
    for site in tokens:
        store.add_site(site)
    for shard in range(store.n_shards):
        with store.write_shard(list(tokens), shard) as writer:
            for start in range(writer.images.start, writer.images.stop, batch):
                at = slice(start, min(start + batch, writer.images.stop))
                writer.append(
                    {site: x[at] for site, x in tokens.items()},
                    np.arange(at.start, at.stop),
                    **{
                        name: None if values is None else np.asarray(values)[at]
                        for name, values in (("label", label), ("mask", mask), ("missing", missing))
                    },
                )
    return store
