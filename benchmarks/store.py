"""The store against what else one could do: writing, reading in order, and shuffled batches.

Peers take turns with ours in one process; the best round counts, and ratios hold within one run only. The original saev's
loader is rebuilt here from its design (reader threads, one semaphore and one Python copy per vector), since its package
needs its own file format. Cold means that the kernel was told to drop the files' pages first.

    python benchmarks/store.py [--images 1024] [--rounds 3] [--folder /tmp] [--cold]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import zarr
from common import interleave, table
from zarr.codecs import Crc32cCodec

from saev_core.config import ReadConfig
from saev_core.shards import ShardWriter
from saev_core.source import StoreSource, batch_entropy, ordered
from saev_core.store import ActivationStore, StoreMeta
from saev_core.types import Site

T, D, CHUNK, SHARD, BATCH = 50, 768, 16, 512, 4096
SITE = Site(10)


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
    """Ask the kernel to drop the cached pages of every file below a folder."""

    def drop() -> None:
        for path in (each for each in folder.rglob("*") if each.is_file()):
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    return drop


def read_store(store: ActivationStore) -> float:
    """Every chunk once, checked, by two threads, into memory that is there already."""
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


class Reservoir:
    """The original's buffer: each vector takes a permit, a random slot, and a copy of its own, in and out."""

    def __init__(self, capacity: int) -> None:
        self._rows = torch.empty(capacity, D)
        self._free, self._full = threading.Semaphore(capacity), threading.Semaphore(0)
        self._empty, self._taken, self._lock = list(range(capacity)), list[int](), threading.Lock()

    def put(self, vector: torch.Tensor) -> bool:
        if not self._free.acquire(timeout=5):
            return False
        with self._lock:
            slot = self._empty.pop()
            self._rows[slot].copy_(vector)
            self._taken.append(slot)
        self._full.release()
        return True

    def get(self, out: torch.Tensor) -> None:
        for i in range(len(out)):
            self._full.acquire()
            with self._lock:
                place = random.randrange(len(self._taken))
                self._taken[place], self._taken[-1] = self._taken[-1], self._taken[place]
                slot = self._taken.pop()
                out[i].copy_(self._rows[slot])
                self._empty.append(slot)
            self._free.release()


@contextlib.contextmanager
def original(path: Path, out: torch.Tensor) -> Iterator[Callable[[], None]]:
    """Batches by the original's design: two threads push vectors of random images from a memmap into a reservoir."""
    mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
    reservoir, stop = Reservoir(8 * BATCH), threading.Event()
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()

    def push() -> None:
        while not stop.is_set():
            try:
                image = todo.get_nowait()
            except queue.Empty:
                for each in torch.randperm(len(mapped)).tolist():
                    todo.put(each)
                continue
            for vector in mapped[image]:
                while not stop.is_set() and not reservoir.put(vector):
                    pass

    threads = [threading.Thread(target=push, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: reservoir.get(out)
    finally:
        stop.set()
        for _ in range(64):  # let threads that wait for room see the end
            reservoir._free.release()
        for thread in threads:
            thread.join()


def shuffled(work: Path, single: ActivationStore, half: ActivationStore, x: np.ndarray, *, rounds: int, with_cold: bool) -> None:
    """Vectors a second in batches of 4096."""
    out, flat = torch.empty(BATCH, D), torch.from_numpy(x).view(-1, D)
    generator = torch.Generator().manual_seed(0)
    mapped = np.load(work / "memmap.npy", mmap_mode="r").reshape(-1, D)
    coordinates = zarr.open_array(str(work / "zarr"), mode="r")

    def ram(n: int = 60) -> float:
        for _ in range(n):
            torch.index_select(flat, 0, torch.randint(len(flat), (BATCH,), generator=generator), out=out)
        return n * BATCH

    def memmap(n: int = 15) -> float:
        for _ in range(n):
            out.copy_(torch.from_numpy(mapped[torch.randint(len(mapped), (BATCH,), generator=generator).numpy()]))
        return n * BATCH

    def by_zarr(n: int = 128) -> float:
        rows = torch.randint(len(flat), (n,), generator=generator).numpy()
        _ = coordinates.get_coordinate_selection((np.repeat(rows // T, D), np.repeat(rows % T, D), np.tile(np.arange(D), n)))
        return n

    def window(store: ActivationStore, megabytes: int) -> tuple[Callable[[], float], Callable[[], None], float]:
        source = StoreSource(store, ReadConfig(buffer_mb=megabytes, heldout=0))
        stream = source.batches(BATCH, 0)
        n = max(1, source.n_vectors // BATCH)  # a whole pass: what was read ahead before is read ahead after

        def some() -> float:
            for _ in range(n):
                next(stream)
            return n * BATCH

        some()
        return some, stream.close, batch_entropy(stream.image, store.n_images)

    megabytes = max(1, single.n_images * T * D * 4 // 2**20 // 4)
    readers = {
        f"window reader, float32, {megabytes} MB": window(single, megabytes),
        f"window reader, float16, {megabytes} MB": window(half, megabytes),
        "window reader, float16, whole store fits": window(half, 4096),
    }
    with original(work / "memmap.npy", out) as batch:

        def theirs() -> float:
            batch()
            return BATCH

        work_items: dict[str, Callable[[], float]] = {"everything in RAM, index_select": ram, "memmap, random rows": memmap}
        work_items |= {"zarr-python, coordinate selection": by_zarr}
        work_items |= {name: some for name, (some, _, _) in readers.items()}
        rates = interleave(work_items, rounds)
        rates |= interleave({"the original's design, rebuilt": theirs}, rounds)
    table("Shuffled batches of 4096, warm", "vectors/s", rates, "everything in RAM, index_select")
    for name, (_, close, entropy) in readers.items():
        print(f"  batch entropy over images {entropy:.3f}  {name}")
        close()
    if not with_cold:
        return
    cold: dict[str, Callable[[], float]] = {"memmap, random rows": lambda: memmap(len(flat) // BATCH)}
    ends = []
    for store, name in ((single, "float32"), (half, "float16")):
        cold[f"window reader, {name}, {megabytes} MB"], close, _ = window(store, megabytes)
        ends.append(close)
    rates = interleave(cold, rounds, before=forget(work))
    table("Shuffled batches of 4096, cold, as many vectors as there are", "vectors/s", rates, "memmap, random rows")
    for close in ends:
        close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--cold", action="store_true", help="also shuffled batches from disk; needs a store of gigabytes to tell anything")
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
        table("Writing (float32 megabytes in)", "MB/s", rates, "memmap, flushed")
        single, half = ActivationStore.open(work / "single"), ActivationStore.open(work / "half")
        array = zarr.open_array(str(work / "zarr"), mode="r")

        def in_order() -> float:
            return float(sum(each.nbytes for _, each in ordered(single, ReadConfig(), np.arange(n), 64)))

        reads = {
            "memmap": lambda: read_memmap(work / "memmap.npy"),
            "zarr-python": lambda: read_zarr(array),
            "raw chunks, crc32c, 2 threads": lambda: read_store(single),
            "ordered() batches of 64 images": in_order,
        }
        table("Reading in order, warm", "MB/s", interleave(reads, options.rounds), "memmap", 1e6)
        table("Reading in order, cold", "MB/s", interleave(reads, options.rounds, before=forget(work)), "memmap", 1e6)
        shuffled(work, single, half, values, rounds=options.rounds, with_cold=options.cold)


if __name__ == "__main__":
    main()
