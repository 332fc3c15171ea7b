"""Cost of indexing relative to the encode pass alone, of merging top images relative to torch.topk, and peak memory.

Rounds of the compared loops alternate, because other load on the machine varies; the best round of each counts.

    python benchmarks/features.py [--images 2048] [--rounds 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import saev_core.features.build
from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.store import ActivationStore
from saev_core.config.base import PluginRef
from saev_core.config.stages import IndexConfig, ReadConfig
from saev_core.features.accumulate import FeatureAccumulator
from saev_core.features.build import index_features
from saev_core.features.top_images import TopImages
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.codes import Codes
from saev_core.sae.norm import Norm
from saev_core.testing.stores_in_memory import store_of
from saev_core.types import Site

D, WIDTH, PATCHES, K = 384, 6144, 196, 32


def pictures(n: int, seed: int = 0) -> Tensor:
    """Tokens correlated like those of real images: each image has a few objects, whose patches share a direction."""
    generator = torch.Generator().manual_seed(seed)
    things = torch.randn(400, D, generator=generator)
    mine = torch.randint(0, 400, (n, 6), generator=generator)
    which = torch.randint(0, 6, (n, PATCHES), generator=generator)
    return things[mine.gather(1, which)] + 0.7 * torch.randn(n, PATCHES, D, generator=generator)


def best(rounds: int, *loops: Callable[[], object]) -> list[float]:
    """Seconds of each loop's best round; rounds alternate."""
    times: list[list[float]] = [[] for _ in loops]
    for _ in range(rounds):
        for loop, mine in zip(loops, times, strict=True):
            began = time.perf_counter()
            loop()
            mine.append(time.perf_counter() - began)
    return [min(mine) for mine in times]


def indexing(folder: Path, n_images: int, rounds: int) -> None:
    """Print the time of `index_features`, including writing, relative to only reading and encoding."""
    fields: dict[str, Any] = {"rows": 14, "cols": 14, "chunk_images": 16, "shard_images": 512, "dtype": "float16"}
    store: ActivationStore = store_of(folder / "store", {Site(1): pictures(n_images)}, batch=64, label=np.arange(n_images) % 100, **fields)
    sae = make_sae(PluginRef(name="topk", options={"d_sae": WIDTH, "k": K}), D)
    checkpoint = Checkpoint(sae, Norm.identity(D), ref_of(sae), "resid.1", ReadConfig(layer=1), {"fingerprint": store.meta.fingerprint})

    def bare() -> None:
        for _, x, _ in StoredVectors(store, checkpoint.read).in_order(np.arange(n_images), IndexConfig().batch_images):
            checkpoint.codes(x)

    writing: list[float] = []

    class Timed(FeatureAccumulator):
        def write(self, *args: Any, **options: Any) -> None:
            began = time.perf_counter()
            super().write(*args, **options)
            writing.append(time.perf_counter() - began)

    def index() -> None:
        index_features(checkpoint, store, folder / "features.zarr", IndexConfig())

    vars(saev_core.features.build)["FeatureAccumulator"] = Timed
    try:
        encode, whole = best(rounds, bare, index)
    finally:
        vars(saev_core.features.build)["FeatureAccumulator"] = FeatureAccumulator
    print(f"indexing {n_images} images x {PATCHES} patches, d {D}, {WIDTH} features, k {K}, top {IndexConfig().top_k}")
    print(f"  read and encode  {encode / n_images * 1e6:8.0f} us per image")
    print(f"  index            {whole / n_images * 1e6:8.0f} us per image   ratio {whole / encode:.2f}   target: at most 1.30")
    growing = (whole - min(writing)) / encode
    print(f"  without the final writing, which takes {min(writing):.2f} s for any number of images: ratio {growing:.2f}")
    written = sum(file.stat().st_size for file in (folder / "features.zarr").rglob("*") if file.is_file())
    print(f"  includes {IndexConfig().n_samples} samples, 100 labels, monosemanticity; {written / 1e6:.0f} MB written")


def merging(rounds: int, n_images: int = 8192, d_sae: int = 16384, k: int = 20, batch: int = 32) -> None:
    """Compare `TopImages` with concatenating and `torch.topk`, on the same sparse maxima; values must agree."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(n_images // batch):
        peak = np.zeros((batch, d_sae), np.float32)
        row, feature = (rng.random((batch, d_sae)) < 0.03).nonzero()
        peak[row, feature] = rng.lognormal(0, 1, len(row))
        batches.append((peak, row, feature, peak[row, feature]))
    kept: dict[str, np.ndarray] = {}

    def ours() -> None:
        top = TopImages(d_sae, k, 1)
        for i, (peak, row, feature, value) in enumerate(batches):
            images = np.arange(i * batch, (i + 1) * batch)
            top.add(images, peak, row=row, token=np.zeros_like(row), feature=feature, value=value)
        top.merge()
        kept["ours"] = top.value

    def plain() -> None:
        top, images = torch.zeros(d_sae, k), torch.full((d_sae, k), -1)
        for i, (peak, *_) in enumerate(batches):
            number = torch.arange(i * batch, (i + 1) * batch).expand(d_sae, -1)
            top, at = torch.cat([top, torch.from_numpy(peak).T], 1).topk(k)
            images = torch.cat([images, number], 1).gather(1, at)
        kept["plain"] = top.numpy()

    fast, slow = best(rounds, ours, plain)
    assert np.array_equal(kept["ours"], kept["plain"])
    print(f"top {k} of {n_images} images for {d_sae} features, 3 % of which fire on an image")
    print(f"  cat + torch.topk {slow / n_images * 1e6:8.0f} us per image")
    print(f"  ours, with maps  {fast / n_images * 1e6:8.0f} us per image   {slow / fast:.1f} times faster")


def memory(n_images: int) -> None:
    """Peak memory of 16,384 features x 128 top images x 196 patches, with samples, labels and embeddings; in a separate process."""
    found = FeatureAccumulator(16384, PATCHES, 128, n_samples=IndexConfig().n_samples, n_labels=100, d_embedding=768)
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n_images, 32):
        near = torch.randint(0, 16384, (32, 1, 600), generator=generator).expand(-1, PATCHES, -1)
        feature = near.gather(2, torch.rand(32, PATCHES, 600, generator=generator).argsort(2)[:, :, :K]).reshape(-1, K)
        value = torch.rand(feature.shape, generator=generator) + 0.01
        index, embedding = np.arange(start, start + 32), torch.randn(32, 768, generator=generator).numpy()
        found.add(index, Codes.from_topk(feature, value, 16384), index % 100, embedding)
    with tempfile.TemporaryDirectory() as folder:
        found.write(Path(folder) / "a.zarr", {"grid": {"rows": 14, "cols": 14, "patch_px": 16}})
    # Not ru_maxrss, which includes the peak of the parent process.
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    print(f"  {n_images:6} images  {int(peak[1]) / 1e6:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        memory(args.memory)
        return
    with tempfile.TemporaryDirectory() as folder:
        indexing(Path(folder), args.images, args.rounds)
    merging(args.rounds)
    print(f"peak memory of an index of 16,384 features x 128 top images, {PATCHES} patches; target: below 2 GB for any number of images")
    for n_images in (2048, 6144):
        print(
            subprocess.run([sys.executable, __file__, "--memory", str(n_images)], check=True, capture_output=True, text=True).stdout, end=""
        )


if __name__ == "__main__":
    main()
