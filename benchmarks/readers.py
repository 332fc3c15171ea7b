"""Shuffled batches of 4,096 vectors: ours, the original's own loader, a gather from RAM, and alternatives.

The original's loader reads files written by its own writer from the same vectors; see `peers.loaders` for which one it is. All
alternate, round by round; ratios are best over best. Cold means that the files' pages are dropped from the cache before each pass.

    python benchmarks/readers.py [--images 2048] [--rounds 3] [--folder /tmp] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peers
import torch
import zarr
from common import asked, batch_entropy, summary, table
from peers.loaders import original
from store import CHUNK, D, T, forget, write_memmap, write_store, write_zarr

from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import ReadConfig

BATCH = 4096
RAM, MEMMAP, ZARR = "everything in RAM, index_select", "memmap, random rows", "zarr-python, coordinate selection"
SINGLE, HALF, FITS = "window, float32, a quarter", "window, float16, a quarter", "window, float16, all of it"

Reader = Callable[[bool], float]
"""Returns vectors per second of one pass; the argument says whether to drop the page cache first."""


def clocked(drop: Callable[[], None], vectors: Callable[[], int]) -> Reader:
    def go(cold: bool) -> float:
        if cold:
            drop()
        began = time.perf_counter()
        n = vectors()
        return n / (time.perf_counter() - began)

    return go


class Window:
    """Our source over a store, with a buffer of a share of its bytes."""

    def __init__(self, store: ActivationStore, share: float, drop: Callable[[], None]) -> None:
        megabytes = max(1, int(store.n_images * T * D * np.dtype(store.meta.dtype).itemsize / 2**20 * share))
        self.source = StoreSource(store, ReadConfig(buffer_mb=megabytes, heldout=0))
        self.drop, self.n = drop, max(1, self.source.n_vectors // BATCH)
        self.warm = self.source.batches(BATCH, 0)
        self.entropy = batch_entropy(self.warm.image, store.n_images) if next(self.warm) is not None else 0.0

    def __call__(self, cold: bool) -> float:
        """Time a full pass in steady state, with the same read-ahead before and after; a cold pass starts with nothing read."""
        if cold:
            self.drop()
        began = time.perf_counter()
        stream = self.source.batches(BATCH, 1) if cold else self.warm
        for _ in range(self.n):
            next(stream)
        taken = time.perf_counter() - began
        if cold:
            stream.close()
        return self.n * BATCH / taken


def readers(work: Path, x: torch.Tensor) -> dict[str, Reader]:
    """The readers by name; creates the files they need."""
    values, flat = x.numpy(), x.view(-1, D)
    write_memmap(work / "memmap.npy", values)
    write_zarr(work / "zarr", values)
    single, half = write_store(work / "single", x, "float32"), write_store(work / "half", x, "float16")
    coordinates = zarr.open_array(str(work / "zarr"), mode="r")
    generator, out = torch.Generator().manual_seed(0), torch.empty(BATCH, D)

    def rows(n: int = BATCH) -> torch.Tensor:
        return torch.randint(len(flat), (n,), generator=generator)

    def ram(n: int = 60) -> int:
        for _ in range(n):
            torch.index_select(flat, 0, rows(), out=out)
        return n * BATCH

    def memmap(n: int = 15) -> int:
        mapped = np.load(work / "memmap.npy", mmap_mode="r").reshape(-1, D)  # reopen, because the kernel keeps mapped pages
        for _ in range(n):
            out.copy_(torch.from_numpy(mapped[rows().numpy()]))
        return n * BATCH

    def by_zarr(n: int = 128) -> int:
        picked = rows(n).numpy()
        _ = coordinates.get_coordinate_selection((np.repeat(picked // T, D), np.repeat(picked % T, D), np.tile(np.arange(D), n)))
        return n

    found: dict[str, Reader] = {
        RAM: clocked(lambda: None, ram),
        MEMMAP: clocked(forget(work), memmap),
        ZARR: clocked(forget(work), by_zarr),
        SINGLE: Window(single, 0.25, forget(work / "single")),
        HALF: Window(half, 0.25, forget(work / "half")),
        FITS: Window(half, 4.0, forget(work / "half")),
    }
    if "saev" in peers.available():
        loader = original(work / "original", x)
        drop = forget(loader.folder)

        def theirs(cold: bool) -> float:
            if cold:
                drop()
            return loader.rate(BATCH)

        found[loader.name] = theirs
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="folder for files; must be on a disk for cold reads")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # from other libraries
    torch.set_num_threads(2)
    n = options.images // CHUNK * CHUNK
    x = torch.randn(n, T, D, generator=torch.Generator().manual_seed(0))
    print(f"{n} images x {T} tokens x {D}, {x.nbytes / 1e6:.0f} MB as float32; 2 threads")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = readers(Path(folder), x)
        theirs = next((name for name in found if name.startswith("the original")), "the original's loader")
        warm: dict[str, list[float]] = {name: [] for name in found}
        cold: dict[str, list[float]] = {name: [] for name in (MEMMAP, SINGLE, HALF, theirs) if name in found}
        for turn in range(options.rounds + 1):
            for rates, dropped in ((warm, False), (cold, True)):
                for name, each in rates.items():
                    gc.collect()
                    rate = found[name](dropped)
                    if turn:  # the first round maps files and allocates buffers
                        each.append(rate)
        for reader in found.values():
            if isinstance(reader, Window):
                reader.warm.close()
    table(f"Shuffled batches of {BATCH:,}, warm", "vectors/s", warm, RAM)
    for name, reader in found.items():
        if isinstance(reader, Window):
            print(f"  batch entropy over images {reader.entropy:.3f}  {name}")
    table(f"Shuffled batches of {BATCH:,}, cold", "vectors/s", cold, MEMMAP)
    told = [
        asked("shuffled batches, warm, float32", warm, SINGLE, theirs, 10),
        asked("shuffled batches, warm, float32", warm, SINGLE, RAM, 0.3),
        asked("shuffled batches, warm, 16-bit", warm, HALF, theirs, 20),
        asked("shuffled batches, cold, float32", cold, SINGLE, theirs, 5),
    ]
    summary(told)
    if options.json:
        options.json.write_text(json.dumps({"vectors_per_s": {"warm": warm, "cold": cold}, "table": told}, indent=1))


if __name__ == "__main__":
    main()
