"""Cost of recording relative to a bare loop, its peak memory, and the writer's speed.

The bare loop decodes the same JPEG files in the same number of threads, ahead of the same forward pass, and discards the
results. Rounds of both alternate, because other load on the machine varies; reported are the ratio of each pair and the median.

    python benchmarks/record.py [--model vit_small_patch16_224] [--images 128] [--rounds 3] [--layers -1]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from saev_core.activations.recording.load_images import n_threads
from saev_core.activations.recording.record import plan, record
from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import RecordConfig
from saev_core.data.dataset import ImageDataset
from saev_core.models.base import VisionModel
from saev_core.models.transform import ResizeCrop
from saev_core.types import Example, Grid, Site

SIZES = [(500, 375), (500, 333), (375, 500), (500, 500), (333, 500), (400, 300), (640, 427), (481, 361)]


class ViT(VisionModel):
    """A timm ViT with random weights."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm.create_model(name, pretrained=False, num_classes=0)
        rows, cols = self.vit.patch_embed.grid_size
        px = self.vit.patch_embed.patch_size[0]
        self.grid = Grid(rows, cols, px, self.vit.num_prefix_tokens)
        self.transform = ResizeCrop(round(rows * px * 8 / 7), (rows * px, cols * px))
        self.d_model, self.blocks = self.vit.embed_dim, self.vit.blocks
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.vit.forward_features(images)
        return tokens


class Jpegs(ImageDataset):
    """JPEG files, repeated until there are `n`."""

    def __init__(self, folder: Path, n: int) -> None:
        self.paths, self.n = sorted(folder.glob("*.jpg")), n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Example:
        with Image.open(self.paths[index % len(self.paths)]) as image:
            return Example(index, image.convert("RGB"), 0)


def draw(folder: Path, n: int = 64) -> None:
    """Write images with about as much detail, and as many bytes, as photographs of their size."""
    rng = np.random.default_rng(0)
    for i in range(n):
        width, height = SIZES[i % len(SIZES)]
        layers = [Image.fromarray(rng.integers(0, 256, (height // s, width // s, 3), dtype=np.uint8)) for s in (4, 16, 64)]
        mixed = sum(np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), np.float32) for layer in layers) / 3
        Image.fromarray(mixed.astype(np.uint8)).save(folder / f"{i:03}.jpg", quality=90)


def bare(model: VisionModel, dataset: ImageDataset, batch_size: int) -> None:
    """The loop that discards its results."""

    def pixels(index: int) -> Tensor:
        return model.transform(dataset[index].image)

    with ThreadPoolExecutor(n_threads()) as pool, torch.no_grad():
        ahead = deque(pool.submit(pixels, i) for i in range(min(batch_size, len(dataset))))
        asked = len(ahead)
        while ahead:
            batch = []
            while ahead and len(batch) < batch_size:
                batch.append(ahead.popleft().result())
                if asked < len(dataset):
                    ahead.append(pool.submit(pixels, asked))
                    asked += 1
            model(torch.stack(batch))


def recorded(model: VisionModel, dataset: ImageDataset, url: Path, cfg: RecordConfig) -> None:
    record(model, dataset, url, cfg, model_ref={"name": "bench"}, dataset_ref={"name": "bench"})


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Wall time and CPU time over all threads, in seconds; the latter is less affected by other load."""
    began, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - used


def overhead(args: argparse.Namespace, folder: Path) -> None:
    """Compare recording with the bare loop."""
    model, dataset = ViT(args.model), Jpegs(folder, args.images)
    cfg = RecordConfig(layers=tuple(args.layers), batch_size=args.batch_size)
    expected = plan(model, dataset, folder / "store", cfg)
    bare(model, Jpegs(folder, args.batch_size), args.batch_size)  # warm-up
    ratios, cpu, rates = [], [], []
    for i in range(args.rounds):
        runs = {
            "bare": partial(bare, model, dataset, args.batch_size),
            "record": partial(recorded, model, dataset, folder / f"s{i}", cfg),
        }
        # Alternate the order too, because the first affects the machine's state for the second.
        seconds = {name: timed(runs[name]) for name in sorted(runs, reverse=i % 2 == 1)}
        ratios.append(seconds["record"][0] / seconds["bare"][0])
        cpu.append(seconds["record"][1] / seconds["bare"][1])
        rates.append(args.images / seconds["record"][0])
        print(f"  round {i + 1}: bare {seconds['bare'][0]:.2f} s, record {seconds['record'][0]:.2f} s", end="")
        print(f", ratio {ratios[-1]:.3f}, of CPU time {cpu[-1]:.3f}")
    print(f"recording / bare loop, {args.model}, {len(args.layers)} layer(s), {args.images} images: ", end="")
    print(f"{statistics.median(ratios):.3f} of wall time, {statistics.median(cpu):.3f} of CPU time")
    print(f"images/s: {statistics.median(rates):.1f} (plan predicted {expected.rate:.1f})")


def memory(args: argparse.Namespace, folder: Path) -> None:
    for n in (args.images, 4 * args.images):
        told = json.dumps({"folder": str(folder), "n": n, "batch_size": args.batch_size})
        out = subprocess.run([sys.executable, __file__, "--peak", told], capture_output=True, text=True, check=True)
        taken, said = map(int, out.stdout.split())
        print(f"peak memory, vit_tiny_patch16_224, {n} images, 2 layers: {taken / 1e6:.0f} MB (plan predicted {said / 1e6:.0f})")


def peak(told: dict[str, object]) -> None:
    """Record in a separate process and print the peak memory."""
    folder, n = Path(str(told["folder"])), int(str(told["n"]))
    cfg = RecordConfig(layers=(-1, -2), batch_size=int(str(told["batch_size"])))
    model, dataset = ViT("vit_tiny_patch16_224"), Jpegs(folder, n)
    said = plan(model, dataset, folder / f"peak{n}", cfg).bytes_ram
    recorded(model, dataset, folder / f"peak{n}", cfg)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, said)


def writer(folder: Path, n: int = 2048, n_tokens: int = 197, d_model: int = 384) -> None:
    """Compare the store's writer, including checksums, moments and fsync, with plain writes of the same bytes and an fsync."""
    meta = StoreMeta(model={"name": "bench"}, dataset={}, rows=14, cols=14, patch_px=16, n_prefix=1, d_model=d_model, n_images=n)
    tokens = torch.randn(64, n_tokens, d_model).half()
    size = n * n_tokens * d_model * 2
    ratios = []
    for i in range(3):
        store = ActivationStore.create(folder / f"writer{i}", meta)
        site = Site(0)
        store.add_site(site)
        began = time.perf_counter()
        for shard in range(store.n_shards):
            with store.write_shard([site], shard) as out:
                for start in range(shard * 512, (shard + 1) * 512, 64):
                    out.append({site: tokens}, range(start, start + 64))
        ours = time.perf_counter() - began
        began = time.perf_counter()
        data = memoryview(tokens.numpy()).cast("B")
        with (folder / f"plain{i}").open("wb", buffering=0) as file:
            for _ in range(n // 64):
                file.write(data)
            os.fsync(file.fileno())
        plain = time.perf_counter() - began
        ratios.append(ours / plain)
        print(f"  writer {size / ours / 1e6:.0f} MB/s, plain write and fsync {size / plain / 1e6:.0f} MB/s")
    print(f"writer / plain write: {statistics.median(ratios):.2f} of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--layers", type=int, nargs="+", default=[-1])
    parser.add_argument("--peak", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=["overhead", "memory", "writer"])
    args = parser.parse_args()
    if args.peak:
        peak(args.peak)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder)
        if args.only in (None, "overhead"):
            overhead(args, folder)
        if args.only in (None, "memory"):
            memory(args, folder)
        if args.only in (None, "writer"):
            writer(folder)


if __name__ == "__main__":
    main()
