"""The store compared with alternatives: writing, and reading in order. Shuffled batches are in readers.py.

All alternate in one process; the best round counts, and ratios are valid only within one run. Cold means that the files'
pages are dropped from the cache first.

    python benchmarks/store.py [--images 1024] [--rounds 3] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import zarr
from common import asked, interleave, summary, table
from zarr.codecs import Crc32cCodec

from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.shard_file import ShardWriter
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import ReadConfig
from saev_core.types import Site

T, D, CHUNK, SHARD = 50, 768, 16, 512
SITE = Site(10)
WRITING = (("zarr-python, synced", 3.0), ("memmap, flushed", 0.7))
"""Targets for writing shards, as multiples of each rate."""


def meta_of(n: int, dtype: str) -> StoreMeta:
    fields = {"model": {"name": "bench", "n_blocks": 12}, "dataset": {}, "rows": 5, "cols": 10, "patch_px": 16, "d_model": D}
    return StoreMeta.model_validate({**fields, "n_images": n, "dtype": dtype, "chunk_images": CHUNK, "shard_images": SHARD})


def write_store(folder: Path, x: torch.Tensor, dtype: str) -> ActivationStore:
    shutil.rmtree(folder, ignore_errors=True)
    store = ActivationStore.create(folder, meta_of(len(x), dtype))
    store.add_site(SITE)
    for shard in range(store.n_shards):
        with store.write_shard([SITE], shard) as writer:
            for start in range(writer.images.start, writer.images.stop, 64):
                stop = min(start + 64, writer.images.stop)
                writer.append({SITE: x[start:stop]}, range(start, stop))
    return store


def write_raw(folder: Path, x: np.ndarray) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    layout = meta_of(len(x), "float32").layouts()["patches"]
    for shard in range(layout.n_shards):
        writer = ShardWriter(folder, layout, shard)
        for chunk in range(shard * SHARD, min((shard + 1) * SHARD, len(x)), CHUNK):
            writer.space(CHUNK)[:] = x[chunk : chunk + CHUNK]
            writer.advance(CHUNK)
        writer.close()
        writer.publish()


def write_zarr(folder: Path, x: np.ndarray) -> None:
    array = zarr.create_array(
        str(folder), shape=x.shape, shards=(SHARD, T, D), chunks=(CHUNK, T, D), dtype="float32", compressors=[Crc32cCodec()], overwrite=True
    )
    for start in range(0, len(x), SHARD):
        array[start : start + SHARD] = x[start : start + SHARD]
    os.sync()


def write_memmap(path: Path, x: np.ndarray) -> None:
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=x.shape)
    out[:] = x
    out.flush()


def forget(folder: Path) -> Callable[[], None]:
    """Drop the cached pages of every file below a folder."""

    def drop() -> None:
        for path in (each for each in folder.rglob("*") if each.is_file()):
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    return drop


def read_store(store: ActivationStore) -> float:
    """Read every chunk once, with checksums, in two threads, into preallocated memory."""
    reader = store.reader(SITE)
    local = threading.local()

    def take(chunk: int) -> None:
        if not hasattr(local, "out"):
            local.out = np.empty((CHUNK, T, D), reader.layout.dtype)
        reader.read(chunk, local.out)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(take, range(reader.layout.n_chunks)))
    return reader.layout.n_chunks * float(reader.layout.chunk_bytes)


def read_zarr(array: zarr.Array) -> float:
    return float(sum(np.asarray(array[start : start + SHARD]).nbytes for start in range(0, array.shape[0], SHARD)))


def read_memmap(path: Path) -> float:
    mapped = np.load(path, mmap_mode="r")
    out = np.empty((SHARD, T, D), np.float32)
    for start in range(0, len(mapped), SHARD):
        part = mapped[start : start + SHARD]
        out[: len(part)] = part
    return float(mapped.nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(2)
    n = options.images // CHUNK * CHUNK
    x = torch.randn(n, T, D, generator=torch.Generator().manual_seed(0))
    values, megabytes = x.numpy(), x.nbytes / 1e6
    print(f"{n} images x {T} tokens x {D}, {megabytes:.0f} MB as float32; {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)

        def written(action: Callable[[], object]) -> Callable[[], float]:
            def run() -> float:
                action()
                return megabytes

            return run

        rates = interleave(
            {
                "memmap, flushed": written(lambda: write_memmap(work / "memmap.npy", values)),
                "zarr-python, synced": written(lambda: write_zarr(work / "zarr", values)),
                "shard writer, crc32c, synced": written(lambda: write_raw(work / "raw", values)),
                "store, float32: + moments, checks, labels": written(lambda: write_store(work / "single", x, "float32")),
                "store, float16: + conversion": written(lambda: write_store(work / "half", x, "float16")),
            },
            options.rounds,
        )
        written_at = rates
        table("Writing (float32 megabytes in)", "MB/s", rates, "memmap, flushed")
        single = ActivationStore.open(work / "single")
        array = zarr.open_array(str(work / "zarr"), mode="r")

        def in_order() -> float:
            return float(sum(each.nbytes for _, each, _ in StoredVectors(single, ReadConfig()).in_order(np.arange(n), 64)))

        reads = {
            "memmap": lambda: read_memmap(work / "memmap.npy"),
            "zarr-python": lambda: read_zarr(array),
            "raw chunks, crc32c, 2 threads": lambda: read_store(single),
            "in_order() batches of 64 images": in_order,
        }
        table("Reading in order, warm", "MB/s", interleave(reads, options.rounds), "memmap", 1e6)
        table("Reading in order, cold", "MB/s", interleave(reads, options.rounds, before=forget(work)), "memmap", 1e6)
        told = [asked("shard writing", written_at, "shard writer, crc32c, synced", over, least) for over, least in WRITING]
        summary(told)
        if options.json:
            options.json.write_text(json.dumps({"table": told}, indent=1))


if __name__ == "__main__":
    main()
