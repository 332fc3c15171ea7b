"""The original's own shuffled loaders, over vectors written by its own writers: of 0.1.0, and of its repository (`SAEV_HEAD`)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from peers import version
from peers.original import head_folder, head_module, quiet

if head_folder():  # also here, because the loader's process imports this module and must find its code
    head_module("saev")


class Loader(ABC):
    """A pass over shuffled vectors in batches."""

    name: str
    folder: Path
    """Folder with its files."""
    most: int
    """Number of timed batches."""

    @abstractmethod
    def batches(self, batch: int) -> Iterator[Tensor]:
        """Batches of one pass."""

    def rate(self, batch: int) -> float:
        """Vectors per second, from the first batch on, to exclude starting its processes."""
        seen, began, taken = 0, 0.0, 0.0
        with hushed():
            stream = self.batches(batch)
            for i, each in enumerate(stream):
                if i == 0:
                    began = time.perf_counter()
                    continue
                seen += len(each)
                taken = time.perf_counter() - began
                if i == self.most:
                    break
            del stream
        return seen / taken


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Silence stderr of this process and its children, because the loader's process logs each file."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


class Released(Loader):
    """0.1.0: a torch DataLoader whose workers open a memmap for each vector."""

    def __init__(self, folder: Path, x: Tensor, workers: int) -> None:
        activations, config = quiet("saev.activations"), quiet("saev.config")
        logging.getLogger("shard-writer").setLevel(logging.WARNING)
        n, tokens, d = x.shape
        (folder / "none").mkdir(parents=True)
        cfg = config.Activations(
            data=config.ImageFolderDataset(root=str(folder / "none")),
            dump_to=str(folder),
            d_vit=d,
            vit_layers=[0],
            n_patches_per_img=tokens - 1,
            cls_token=True,
            n_patches_per_shard=512 * tokens,
        )
        writer = activations.ShardWriter(cfg)
        for a in range(0, n, 64):
            writer[a : min(a + 64, n)] = x[a : a + 64, None]
        writer.flush()
        self.folder = Path(activations.get_acts_dir(cfg))
        told = self.folder / "metadata.json"
        told.write_text(json.dumps({**json.loads(told.read_text()), "n_imgs": n}))
        load = config.DataLoad(shard_root=str(self.folder), layer=0, scale_mean=False, scale_norm=False)
        self.dataset, self.workers, self.most = activations.Dataset(load), workers, 5
        self.name = f"the original's loader, {version('saev')}, {workers} workers"

    def batches(self, batch: int) -> Iterator[Tensor]:
        loader = torch.utils.data.DataLoader(self.dataset, batch_size=batch, num_workers=self.workers, shuffle=True)
        return (each["act"] for each in loader)


class Head(Loader):
    """Loader of its repository: threads of another process put vectors one by one into a reservoir in shared memory."""

    def __init__(self, folder: Path, x: Tensor, workers: int) -> None:
        shards, shuffled = head_module("saev.data.shards"), head_module("saev.data.shuffled")
        for name in ("shard-writer", "shuffled.DataLoader", "labels-writer"):
            logging.getLogger(name).setLevel(logging.WARNING)
        n, tokens, d = x.shape
        root = folder / "saev" / "shards"
        root.mkdir(parents=True)
        fields: dict[str, Any] = {"family": "clip", "ckpt": "none", "layers": (0,), "data": "", "dataset": folder}
        sizes = {"content_tokens_per_example": tokens, "d_model": d, "n_examples": n, "max_tokens_per_shard": 512 * tokens}
        meta = shards.Metadata(**fields, **sizes, cls_token=False)
        meta.dump(root)
        with shards.ShardWriter(root, meta) as writer:
            for a in range(0, n, 64):
                writer.write_batch(x[a : a + 64, None], a)
        self.folder = root / meta.hash
        self.cfg = shuffled.Config(shards=self.folder, layer=0, n_threads=workers, buffer_size=8, log_every_s=1e6)
        self.loader, self.most = shuffled.DataLoader, n * tokens  # a full pass, because it starts with eight batches prefetched
        self.name = f"the original's loader, its repository's head, {workers} threads"

    def batches(self, batch: int) -> Iterator[Tensor]:
        if torch.multiprocessing.get_start_method(allow_none=True) is None:
            torch.multiprocessing.set_start_method("spawn")  # as in its own scripts
        loader = self.loader(dataclasses.replace(self.cfg, batch_size=batch))
        return (each["act"] for each in loader)


def original(folder: Path, x: Tensor, workers: int = 2) -> Loader:
    """The available loader: that of `SAEV_HEAD` if set, otherwise that of 0.1.0."""
    return Head(folder, x, workers) if head_folder() else Released(folder, x, workers)
