"""`record`: run images through a model into an activation store. Decoding, forward pass and writing overlap.

    loader threads  ->  this thread: forward pass  ->  writer thread: chunks, checksums, moments, commits
            one batch ahead                    one batch behind

Only complete shards count. Batches end at shard boundaries, so that a shard's content depends neither on where an
earlier recording stopped nor on which process recorded its neighbours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.activations.recording.load_images import Loaded, load
from saev_core.activations.recording.plan import (
    Plan,
    Todo,
    bytes_on_disk,
    check_disk,
    describe,
    existing,
    part,
    plan,
    remaining,
    resolve_sites,
    shard_images,
    spans,
)
from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.shard_writer import MISSING, ShardSetWriter
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import RecordConfig
from saev_core.data.dataset import ImageDataset
from saev_core.errors import DatasetError, ModelError
from saev_core.models.base import VisionModel
from saev_core.support.progress import Track, silent
from saev_core.support.threads import write_behind
from saev_core.types import Site

__all__ = ["Missing", "Plan", "Recorded", "plan", "record"]

log = logging.getLogger(__name__)

FLOAT16_MAX = 65504.0
_MANY = 16
"""If a whole shard of at least this many images is unreadable, the data set is at fault, not the images."""

Missing = tuple[int, str, str]
"""An image that could not be read: its number, its human-readable name, and why."""


@dataclass(frozen=True)
class Recorded:
    """Result of a recording."""

    store: ActivationStore
    sites: list[Site]
    n_images: int
    """Images of this process's part, readable or not, including those recorded earlier."""
    missing: list[Missing]
    """Those that could not be read."""
    seconds: float
    n_new: int = 0
    """Images recorded by this call."""


@dataclass(frozen=True)
class _Batch:
    """Consecutive images of one shard and their activations at each site."""

    images: list[Loaded]
    tokens: dict[Site, Float[Tensor, "batch n_tokens d_model"]]


def record(
    model: VisionModel,
    dataset: ImageDataset,
    url: str | Path,
    cfg: RecordConfig,
    *,
    model_ref: Mapping[str, Any],
    dataset_ref: Mapping[str, Any],
    track: Track = silent,
) -> Recorded:
    """Record the activations of every image at every layer of `cfg` into `url`. Recorded shards are skipped.

    If it is killed or interrupted, the same call resumes at the first unfinished shard and ends with the same bytes. Calls
    with different `cfg.part` may run concurrently.

    Args:
        model_ref: `name`, `dist` and `options` of the model plugin, without local paths; part of the store's identity.
        dataset_ref: the same for the data set plugin.

    Raises:
        StoreError: the store is of another model or data set, cannot be written, or the disk cannot hold it; an
            activation is not finite or does not fit `cfg.dtype`.
        ModelError: no such layer, or sites of different shapes.
        DatasetError: it is empty, a whole shard of it is unreadable, or, with `on_bad_image="stop"`, an image is.
    """
    began = time.monotonic()
    sites = resolve_sites(model, cfg)
    meta = describe(model, dataset, cfg, sites, model_ref=model_ref, dataset_ref=dataset_ref)
    store = existing(url, meta)
    check_disk(url, bytes_on_disk(meta, remaining(store, meta, sites, cfg)))
    store = store or ActivationStore.create(url, meta)
    for site in sites:
        store.add_site(site)
    todo = remaining(store, meta, sites, cfg)
    n_images, n_new = _n_images(meta, part(cfg, meta.n_shards)), _n_images(meta, [shard for shard, _ in todo])
    if n_new < n_images:
        log.info("%d of %d images are already recorded", n_images - n_new, n_images)
    why: dict[int, Missing] = {}
    with (
        track("record", n_new, "images") as meter,
        # The forward pass stays in the caller's thread: a second torch thread team would slow down both on few cores.
        closing(_forward(model, dataset, meta, todo, cfg)) as batches,
        write_behind(partial(_write, store, todo), 1) as hand_over,
    ):
        for batch in batches:
            why.update({image.index: (image.index, image.bad.path, image.bad.why) for image in batch.images if image.bad})
            hand_over(batch)
            meter.update(len(batch.images), missing=len(why))
    return Recorded(store, sites, n_images, _missing(store, dataset, sites, cfg, why), time.monotonic() - began, n_new)


def _forward(model: VisionModel, dataset: ImageDataset, meta: StoreMeta, todo: Todo, cfg: RecordConfig) -> Generator[_Batch]:
    """Run the shards to do through the model, batch by batch."""
    with closing(load(dataset, model, spans(meta, todo), n_workers=cfg.n_workers, lookahead=cfg.batch_size)) as images:
        for shard, sites in todo:
            left = len(shard_images(meta, shard))
            while left:
                loaded = list(islice(images, min(cfg.batch_size, left)))
                left -= len(loaded)
                for item in loaded:
                    if item.bad is not None and cfg.on_bad_image == "stop":
                        raise item.bad
                yield _Batch(loaded, tokens_at(model, meta, sites, loaded))


def _write(store: ActivationStore, todo: Todo, batches: Iterator[_Batch]) -> None:
    """Write the batches into the shards to do, each committed as soon as it is complete."""
    for shard, sites in todo:
        images = shard_images(store.meta, shard)
        bad: list[Loaded] = []
        with store.write_shard(sites, shard) as out:
            left = len(images)
            while left:
                batch = next(batches)
                _append(out, batch)
                bad += [image for image in batch.images if image.bad is not None]
                left -= len(batch.images)
            _refuse_if_all_bad(bad, images, store.meta)


def tokens_at(model: VisionModel, meta: StoreMeta, sites: list[Site], images: list[Loaded]) -> dict[Site, Tensor]:
    """Activations at the sites, `[b, n_tokens, d_model]` on the CPU; rows of unreadable images are undefined.

    In the stored precision, unless a value does not fit it.

    Raises:
        ModelError: the transform returns images of different sizes; or see `VisionModel.record`.
    """
    first = next((image.pixels for image in images if image.pixels is not None), None)
    if first is None:
        return {site: torch.zeros(()).expand(len(images), meta.grid.n_tokens, meta.d_model) for site in sites}
    # A blank image replaces a missing one: batches keep their size, and the other images the same bits.
    rows = [torch.zeros_like(first) if image.pixels is None else image.pixels for image in images]
    for image, row in zip(images, rows, strict=True):
        if row.shape != first.shape:
            raise ModelError(
                f"the model's transform returns {tuple(row.shape)} for image {image.index} and {tuple(first.shape)} for another; "
                "all images need the same size."
            )
    device = model.device
    pixels = torch.stack(rows)  # [b, 3, h, w]
    if device.type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    seen = model.record(pixels.to(device), sites)
    return _to_cpu({site: _narrow(x, meta.dtype) for site, x in seen.items()})


def _narrow(x: Tensor, dtype: str) -> Tensor:
    """`x` in the stored precision if all of it fits, else unchanged; the store then reports which image does not fit."""
    if dtype != "float16" or x.dtype == torch.float16:
        return x
    low, high = x.aminmax()
    return x.half() if low.item() >= -FLOAT16_MAX and high.item() <= FLOAT16_MAX else x


def _to_cpu(tokens: dict[Site, Tensor]) -> dict[Site, Tensor]:
    if not any(x.is_cuda for x in tokens.values()):
        return {site: x.cpu() for site, x in tokens.items()}
    copies = {site: torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for site, x in tokens.items()}
    torch.cuda.current_stream().synchronize()
    return copies


def _append(out: ShardSetWriter, batch: _Batch) -> None:
    images = batch.images
    some = next((image.mask for image in images if image.mask is not None), None)
    mask = None if some is None else np.stack([np.zeros_like(some) if image.mask is None else image.mask for image in images])
    out.append(
        batch.tokens,
        [image.index for image in images],
        label=np.array([image.label for image in images], np.int32),
        size=np.array([image.size for image in images], np.int32),
        crop=np.array([image.crop for image in images], np.float32),
        mask=mask,
        missing=np.array([image.bad is not None for image in images]),
    )


def _refuse_if_all_bad(bad: list[Loaded], images: range, meta: StoreMeta) -> None:
    """Refuse to record if no image is readable, as after a disk was unplugged: recording them as missing would be permanent.

    Raises:
        DatasetError: all of a whole shard, or of the data set, is unreadable.
    """
    whole = len(images) == meta.shard_images >= _MANY or len(images) == meta.n_images
    if len(bad) == len(images) and whole and (error := bad[0].bad) is not None:
        raise DatasetError(
            f"none of images {images.start} to {images.stop - 1} can be read, starting with {error.path} ({error.why}); "
            "check that the data set is still there."
        )


def _missing(store: ActivationStore, dataset: ImageDataset, sites: list[Site], cfg: RecordConfig, why: dict[int, Missing]) -> list[Missing]:
    mine = part(cfg, store.n_shards)
    images = slice(mine.start * store.meta.shard_images, mine.stop * store.meta.shard_images)
    gone = np.any([store.done(site)[images] == MISSING for site in sites], axis=0)
    found = (images.start + np.flatnonzero(gone)).tolist()
    return [why.get(index) or (index, dataset.name(index), "unreadable when it was recorded") for index in found]


def _n_images(meta: StoreMeta, shards: Iterable[int]) -> int:
    return sum(len(shard_images(meta, shard)) for shard in shards)
