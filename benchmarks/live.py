"""Training without a store: how well batches are mixed and how fast they are read, from a store and directly from the model.

Mixing of images in a batch (entropy, 1 = all different; other vectors of the same image per vector) compared with uniform
sampling, for several buffer sizes; then rates, interleaved: the store, the model with all images in the buffer, the model
re-run in every pass, and the forward pass alone as an upper bound.

    python benchmarks/live.py [--images 600] [--batch 1024] [--rounds 3]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from common import asked, batch_entropy, interleave, summary, table
from jaxtyping import Int

from saev_core.activations.recording.identity import dataset_ref, model_ref
from saev_core.activations.recording.record import record
from saev_core.activations.sources.live import LiveSource
from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import ReadConfig, RecordConfig, TrainConfig
from saev_core.data.dataset import load_dataset
from saev_core.models.base import load_model
from saev_core.plugins.registry import parse_ref
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.training.train import TrainSpec, train

BUFFERS_MB = (2, 4, 8, 16, 1024)
Source = StoreSource | LiveSource


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, dataset = load_model("tiny"), load_dataset("shapes")
    cfg = RecordConfig(n_images=args.images)
    refs = {"model_ref": model_ref(parse_ref("model", "tiny")), "dataset_ref": dataset_ref(parse_ref("dataset", "shapes"))}

    def live(buffer_mb: int) -> LiveSource:
        return LiveSource(model, dataset, cfg, ReadConfig(buffer_mb=buffer_mb), **refs)

    print(f"tiny on shapes: {args.images} images of 144 vectors of width 128, batches of {args.batch}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        store = record(model, dataset, Path(folder) / "store", cfg, **refs).store
        mixing(store, live, args.batch)
        speed(store, live, args.batch, args.rounds)


def mixing(store: ActivationStore, live: Callable[[int], LiveSource], batch: int) -> None:
    """Print how well batches are mixed over images."""
    print(f"\n{'buffer':>8}{'images in it':>14}{'':4}{'source':<12}{'entropy':>9}{'of ideal':>10}{'mates':>8}{'ideal':>8}")
    for buffer_mb in BUFFERS_MB:
        sources: dict[str, Source] = {"store": StoreSource(store, ReadConfig(buffer_mb=buffer_mb)), "live": live(buffer_mb)}
        found = {}
        for name, source in sources.items():
            n_images = int((~source.heldout).sum())
            ideal = uniform(n_images, source.n_vectors // n_images, batch)
            with closing(source.batches(batch, 0)) as stream:
                images = [stream.image.copy() for _ in zip(range(40), stream, strict=False)]
            found[name] = mean_entropy(images, n_images)
            best = mean_entropy(ideal, n_images)
            held = min(n_images, round(buffer_mb * 2**20 / (source.d_model * 2 * source.n_vectors / n_images)))
            print(
                f"{buffer_mb:>5} MB{held:>14}{'':4}{name:<12}{found[name]:>9.4f}{found[name] / best:>10.4f}"
                f"{mates(images):>8.2f}{mates(ideal):>8.2f}"
            )


def uniform(n_images: int, per_image: int, batch: int) -> list[Int[np.ndarray, " batch"]]:
    """Batches of image numbers if vectors are drawn uniformly, each once."""
    order = np.random.default_rng(0).permutation(n_images * per_image) // per_image
    return [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]


def mean_entropy(images: list[Int[np.ndarray, " batch"]], n_images: int) -> float:
    return float(np.mean([batch_entropy(each, n_images) for each in images]))


def mates(images: list[Int[np.ndarray, " batch"]]) -> float:
    """Other vectors of the same image in its batch, per vector."""
    counts = [np.unique(each, return_counts=True)[1] for each in images]
    return float(np.mean([(c * (c - 1)).sum() / c.sum() for c in counts]))


def speed(store: ActivationStore, live: Callable[[int], LiveSource], batch: int, rounds: int) -> None:
    """Print vectors per second of the sources alone, then of training on them."""
    small = max(2, round(live(2).n_vectors * 256 / 2**20 / 4))  # a quarter of all, so that the model is re-run in every pass

    def forward() -> float:
        source = live(2)
        images = np.flatnonzero(~source.heldout)[:256]
        return float(sum(x.shape[0] * x.shape[1] for _, x in source.feed.run(images)))

    def emit(source: Source, passes: float) -> float:
        n = int(passes * source.n_vectors) // batch
        with closing(source.batches(batch, 0)) as stream:
            for _ in range(n):
                next(stream)
        return float(n * batch)

    rates = interleave(
        {
            "forward pass, decoding included": forward,
            "live, every pass runs the model": lambda: emit(live(small), 1),
            "live, all in the buffer, 10 passes": lambda: emit(live(1024), 10),
            "store, 10 passes": lambda: emit(StoreSource(store, ReadConfig(buffer_mb=small)), 10),
        },
        rounds,
    )
    table("vectors alone", "vectors/s", rates, "forward pass, decoding included")

    def trained(source: Source) -> float:
        sae = TopK(TopKConfig(d_in=source.d_model, d_sae=1024, k=16))
        cfg = TrainConfig(batch_size=batch, n_tokens=source.n_vectors, n_init=8192)
        source.norm  # noqa: B018 - estimate it before timing, to measure only the steps
        train(source, [TrainSpec("topk", sae)], cfg)
        return float(source.n_vectors)

    steps = interleave(
        {
            "train on the store": lambda: trained(StoreSource(store, ReadConfig(buffer_mb=small))),
            "train live, one pass": lambda: trained(live(small)),
        },
        rounds,
    )
    table("training, d_sae 1024, TopK", "vectors/s", steps, "train on the store")
    one_by_one = [1 / (1 / a + 1 / b) for a, b in zip(rates["forward pass, decoding included"], steps["train on the store"], strict=True)]
    steps["forward, then train: their times added"] = one_by_one
    added = "forward, then train: their times added"
    summary([asked("training live", steps, "train live, one pass", added, 0.8)])


if __name__ == "__main__":
    main()
