"""Plan a recording: what the store will hold, what is still to be recorded, and its cost in disk, memory and time."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from saev_core.activations.recording.load_images import load
from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.shard_file import ALIGN
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import RecordConfig
from saev_core.data.dataset import ImageDataset
from saev_core.errors import DatasetError, ModelError, StoreError
from saev_core.models.base import VisionModel
from saev_core.support.urls import local_path
from saev_core.types import Site

Todo = list[tuple[int, list[Site]]]
"""Shards to record, each with the sites that lack it."""


@dataclass(frozen=True)
class Plan:
    """The cost of a recording, estimated from a forward pass on a few of its images."""

    n_images: int
    """Images still to be recorded."""
    bytes_disk: int
    """Bytes they will take on disk."""
    bytes_free: int | None
    """Bytes free on the disk; None if unknown (a remote store)."""
    bytes_ram: int
    """Approximate peak memory of the process; independent of the number of images."""
    seconds: float
    """Total time."""
    rate: float
    """Images per second."""


def plan(model: VisionModel, dataset: ImageDataset, url: str | Path, cfg: RecordConfig) -> Plan:
    """Disk, memory and time of `record` with the same arguments, measured on up to 16 images. Writes nothing.

    Raises:
        StoreError: the disk is too small.
        ModelError, DatasetError: as `record` would raise.
    """
    sites = resolve_sites(model, cfg)
    meta = describe(model, dataset, cfg, sites)
    if ActivationStore.exists(url):
        # Only the caller knows the plugin references; everything else must agree.
        there = ActivationStore.open(url).meta
        meta = meta.model_copy(update={"model": {**there.model, **meta.model}, "dataset": {**there.dataset, **meta.dataset}})
    todo = remaining(existing(url, meta), meta, sites, cfg)
    n_images = sum(len(shard_images(meta, shard)) for shard, _ in todo)
    need = bytes_on_disk(meta, todo)
    check_disk(url, need)
    seconds_each = _measure(model, dataset, sites, cfg, spans(meta, todo)[0]) if todo else 0.0
    rate = 1 / seconds_each if seconds_each else 0.0
    return Plan(n_images, need, bytes_free(url), _bytes_ram(model, meta, len(sites), cfg), n_images * seconds_each, rate)


def resolve_sites(model: VisionModel, cfg: RecordConfig) -> list[Site]:
    """The sites that `cfg` selects: block numbers, sorted, without duplicates.

    Raises:
        ModelError: the model has no such block or stream.
    """
    return sorted({model.site(layer, cfg.stream) for layer in cfg.layers})


def describe(
    model: VisionModel,
    dataset: ImageDataset,
    cfg: RecordConfig,
    sites: list[Site],
    *,
    model_ref: Mapping[str, Any] | None = None,
    dataset_ref: Mapping[str, Any] | None = None,
) -> StoreMeta:
    """Metadata of the store for `sites`; `n_blocks` and `identity` are added to the references. Runs one forward pass.

    Raises:
        DatasetError: the data set has no images.
        ModelError: the sites' tokens do not match the grid, or their widths differ.
    """
    if not len(dataset):
        raise DatasetError("the data set has no images.")
    grid, d_model = model.grid, _width(model, sites)
    refs = dict(model_ref or {}), dict(dataset_ref or {})
    dists = dict.fromkeys(["saev-core", "torch", *(str(ref["dist"]) for ref in refs if ref.get("dist"))])
    return StoreMeta(
        model={**refs[0], "n_blocks": len(model.hooked)},
        dataset={**refs[1], "identity": dataset.identity()},
        transform=_text(model.transform),
        versions={dist: found for dist in dists if (found := _version(dist))},
        rows=grid.rows,
        cols=grid.cols,
        patch_px=grid.patch_px,
        n_prefix=grid.n_prefix,
        d_model=d_model,
        dtype=cfg.dtype,
        n_images=n_recorded(cfg, dataset),
        chunk_images=cfg.chunk_images,
        shard_images=cfg.shard_images,
        has_mask=dataset.mask_classes is not None,
    )


def n_recorded(cfg: RecordConfig, dataset: ImageDataset) -> int:
    """Images that a recording of the data set holds."""
    return len(dataset) if cfg.n_images == "all" else min(len(dataset), cfg.n_images)


def _width(model: VisionModel, sites: list[Site]) -> int:
    """The common width of all sites, from a forward pass on a blank image."""
    grid = model.grid
    pixels = torch.as_tensor(model.transform(Image.new("RGB", (grid.width_px, grid.height_px))))[None]
    shapes = {site: (x.shape[1], x.shape[2]) for site, x in model.record(pixels.to(model.device), sites).items()}
    if len(set(shapes.values())) > 1:
        listed = "; ".join(f"{site} {n} tokens of width {d}" for site, (n, d) in sorted(shapes.items()))
        raise ModelError(
            f"these sites differ in shape ({listed}), and a store holds one shape: record each in a separate store, "
            'or choose blocks that agree, such as --set model.blocks="layer3.*".'
        )
    return shapes[sites[0]][1]


def _text(transform: Any) -> str:
    """A transform as text, identical in every process."""
    text = getattr(transform, "__qualname__", None)
    if text is not None:  # a function or method, whose repr is only its memory address
        return f"{transform.__module__}.{text}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(transform))


def _version(dist: str) -> str | None:
    try:
        return version(dist)
    except PackageNotFoundError:
        return None


def existing(url: str | Path, meta: StoreMeta) -> ActivationStore | None:
    """The store at `url`, if there is one.

    Raises:
        StoreError: it was recorded with other settings; the message names the difference.
    """
    return ActivationStore.create(url, meta) if ActivationStore.exists(url) else None


def part(cfg: RecordConfig, n_shards: int) -> range:
    """The shards that this process records."""
    i, n = map(int, cfg.part.split("/"))
    return range(n_shards * (i - 1) // n, n_shards * i // n)


def remaining(store: ActivationStore | None, meta: StoreMeta, sites: list[Site], cfg: RecordConfig) -> Todo:
    """The shards of this process's part that are not recorded yet."""
    have = {site: store.shards_done(site) for site in sites if site in store.sites} if store is not None else {}
    todo = [(shard, [site for site in sites if site not in have or not have[site][shard]]) for shard in part(cfg, meta.n_shards)]
    return [(shard, lacking) for shard, lacking in todo if lacking]


def shard_images(meta: StoreMeta, shard: int) -> range:
    """Image numbers of a shard."""
    return meta.layouts()["patches"].images(shard)


def spans(meta: StoreMeta, todo: Todo) -> list[tuple[int, int]]:
    """The images of `todo` as the fewest contiguous runs, so that a stream is opened once for each."""
    found: list[tuple[int, int]] = []
    for shard, _ in todo:
        images = shard_images(meta, shard)
        if found and found[-1][1] == images.start:
            found[-1] = (found[-1][0], images.stop)
        else:
            found.append((images.start, images.stop))
    return found


def bytes_on_disk(meta: StoreMeta, todo: Todo) -> int:
    """Bytes on disk for the shards of `todo`: chunks on whole pages, their index, and the small arrays."""
    layouts = list(meta.layouts().values())
    tables = [*meta.image_tables().values()]
    total = 0
    for shard, sites in todo:
        n = len(shard_images(meta, shard))
        for layout in layouts:
            chunk = -(-(layout.chunk_bytes + 4) // ALIGN) * ALIGN
            total += len(sites) * (-(-n // layout.chunk_images) * chunk + layout.index_bytes)
        total += n * sum(table.dtype.itemsize * (table.shape[1] if len(table.shape) > 1 else 1) for table in tables)
        total += len(sites) * (n + 24 * meta.d_model) + ALIGN * (len(tables) + 4 * len(sites))  # done, moments; one page per file
    return total


def bytes_free(url: str | Path) -> int | None:
    """Bytes free on the disk that holds, or will hold, `url`; None for a remote one."""
    path = local_path(url)
    if path is None:
        return None
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        disk = shutil.disk_usage(path)
    except OSError:
        return None
    return disk.free if disk.total else None  # a virtual file system reports 0 of 0


def check_disk(url: str | Path, need: int) -> None:
    """
    Raises:
        StoreError: fewer than `need` bytes are free.
    """
    free = bytes_free(url)
    if free is not None and need > free:
        raise StoreError(
            f"{url}: the recording needs {need / 1e9:,.3g} GB and the disk has {free / 1e9:,.3g} GB free; free some space, "
            "record fewer images or layers, or record to another disk with --store."
        )


def _measure(model: VisionModel, dataset: ImageDataset, sites: list[Site], cfg: RecordConfig, span: tuple[int, int]) -> float:
    """Seconds per image, from up to 17 real ones, the first for warm-up."""
    few = (span[0], min(span[1], span[0] + 1 + min(cfg.batch_size, 16)))
    began = time.monotonic()
    with closing(load(dataset, model, [few], n_workers=cfg.n_workers)) as items:
        loaded = [next(items)]
        first = time.monotonic()
        loaded += items
    ended = time.monotonic()
    loading = (ended - first) / (len(loaded) - 1) if len(loaded) > 1 else ended - began
    readable = [item.pixels for item in loaded[:16] if item.pixels is not None]
    if not readable:
        bad = loaded[0].bad
        raise DatasetError(f"none of the first {len(loaded)} images can be read: {bad.path if bad else ''} ({bad.why if bad else ''}).")
    pixels = torch.stack(readable).to(model.device)
    model.record(pixels[:1], sites)
    began = time.monotonic()
    for x in model.record(pixels, sites).values():
        x[0, 0, 0].item()  # GPU calls are asynchronous; this waits
    forward = (time.monotonic() - began) / len(readable)
    # Decoding and the forward pass overlap, but on a CPU they share its cores.
    return loading + forward if model.device.type == "cpu" else max(loading, forward)


def _bytes_ram(model: VisionModel, meta: StoreMeta, n_sites: int, cfg: RecordConfig) -> int:
    """Memory of the process now, after a forward pass, plus the queues and a full batch."""
    batch, grid = cfg.batch_size, meta.grid
    values = batch * grid.n_tokens * meta.d_model
    pixels = batch * 3 * grid.height_px * grid.width_px * 4
    # Two batches of pixels in the loader and one in the forward pass; three of tokens between forward pass and writer.
    queues = 3 * pixels + n_sites * values * (4 + 3 * (2 if cfg.dtype == "float16" else 4))
    # A block's residual stream, its norm, queries, keys, values, and an MLP four times as wide before and after its GELU.
    working = 12 * values * 4 if model.device.type == "cpu" else 0
    writer = n_sites * sum(layout.chunk_bytes for layout in meta.layouts().values())
    # The C library's allocator keeps about as much again: measured, 680 MB above the start for 300 MB of these.
    return _rss() + 2 * (queues + working) + writer


def _rss() -> int:
    """Memory of this process now; its peak if the system does not report that."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
