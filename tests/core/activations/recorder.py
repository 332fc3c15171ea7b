"""A small model, small data sets and a recording in a process of its own, for the tests of recording.

As a script: `recorder.py '{"url": ..., "config": {...}, "n": 40, "pause": 0.0}'`; prints the peak memory in bytes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from saev_core.activations.recording.record import Recorded, record
from saev_core.config.stages import RecordConfig
from saev_core.data.dataset import ImageDataset
from saev_core.errors import BadImageError
from saev_core.models.base import VisionModel
from saev_core.models.transform import ResizeCrop
from saev_core.types import Example, Grid

MODEL_REF = {"name": "toy", "dist": "saev-core", "options": {}}
DATASET_REF = {"name": "pictures", "dist": "saev-core", "options": {}}
SIZES = [(40, 24), (33, 57), (20, 12), (64, 64)]


class Block(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x)) + x.mean(1, keepdim=True)


class Toy(VisionModel):
    """3 x 5 patches of 4 px, `n_prefix` tokens before them, four blocks."""

    def __init__(self, n_prefix: int = 1, d_model: int = 16, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.grid, self.d_model = Grid(3, 5, patch_px=4, n_prefix=n_prefix), d_model
        self.transform = ResizeCrop(20, (12, 20))
        self.embed = nn.Conv2d(3, d_model, 4, 4)
        self.prefix = nn.Parameter(torch.randn(n_prefix, d_model))
        self.blocks = nn.ModuleList(Block(d_model) for _ in range(4))
        self.gain = gain
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.to(self.embed.weight.dtype)).flatten(2).transpose(1, 2) * self.gain  # [b, 15, d]
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


class Pictures(ImageDataset):
    """Noise of several sizes, with labels and masks; those in `bad` cannot be read."""

    classes = ("a", "b", "c", "d", "e", "f", "g")
    mask_classes = ("nothing", "one", "two")

    def __init__(self, n: int = 40, bad: tuple[int, ...] = (), pause: float = 0.0) -> None:
        self.n, self.bad, self.pause = n, bad, pause
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Example:
        self.read.append(index)
        time.sleep(self.pause)
        if index in self.bad:
            raise BadImageError(self.name(index), "it was made so")
        rng = np.random.default_rng(index)
        width, height = SIZES[index % len(SIZES)]
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        return Example(index, image, index % 7, rng.integers(0, 3, (height, width)).astype(np.uint8))

    def name(self, index: int) -> str:
        return f"pictures/{index:03}.png"


class Stream(Pictures):
    """The same, in order only."""

    sequential = True

    def __init__(self, n: int = 40, bad: tuple[int, ...] = ()) -> None:
        super().__init__(n, bad)
        self.opened: list[tuple[int, int]] = []

    def __getitem__(self, index: int) -> Example:
        raise AssertionError("a stream has no random access")

    def examples(self, start: int, stop: int) -> Iterator[Example | BadImageError]:
        self.opened.append((start, stop))
        for index in range(start, stop):
            try:
                yield Pictures.__getitem__(self, index)
            except BadImageError as error:
                yield error


def run(url: Any, model: VisionModel | None = None, dataset: ImageDataset | None = None, **config: Any) -> Recorded:
    """`record` with small shards and batches unless told otherwise."""
    extra = {key: config.pop(key) for key in ("model_ref", "dataset_ref", "track") if key in config}
    cfg = RecordConfig(**{"layers": (-2,), "shard_images": 8, "chunk_images": 4, "batch_size": 5, **config})
    return record(model or Toy(), dataset or Pictures(), url, cfg, **{"model_ref": MODEL_REF, "dataset_ref": DATASET_REF, **extra})


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    run(
        told["url"],
        Toy(d_model=told.get("d_model", 16)),
        Pictures(told.get("n", 40), pause=told.get("pause", 0.0)),
        **told.get("config", {}),
    )
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
