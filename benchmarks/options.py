"""Cost per step of the training options, and their effect on the held-out error of a short training run.

Steps at d 384, d_sae 6144, batch 4096, k 32, interleaved in rounds; the best round of each counts, and ratios
are within one run. Errors on activations of `tiny` on `shapes`, every SAE on the same batches; each row differs from the
first of its variant by the options in its name.

    python benchmarks/options.py [--rounds 5] [--threads 2] [--steps 300] [--seeds 1] [--skip time|quality] [--width 6144]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from saev_core.activations.recording.identity import dataset_ref, model_ref
from saev_core.activations.recording.record import record
from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.store.store import ActivationStore
from saev_core.config.base import PluginRef
from saev_core.config.stages import EvaluateConfig, ReadConfig, RecordConfig, TrainConfig
from saev_core.data.dataset import load_dataset
from saev_core.evaluation.measure import evaluate
from saev_core.models.base import load_model
from saev_core.sae.base import make_sae
from saev_core.training.sae_trainer import SAETrainer, TrainSpec
from saev_core.training.schedule import Schedule
from saev_core.training.train import train

D, BATCH, K = 384, 4096, 32
SCHEDULE = Schedule(n_steps=1_000_000, n_warmup=0, n_decay=0, dead_after=10_000_000)

STEPS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("topk", {"k": K}, {}),
    ("topk", {"k": K}, {"optimizer": "muon"}),
    ("topk", {"k": K}, {"optimizer": "schedule-free"}),
    ("topk", {"k": K}, {"ema": 0.999}),
    ("topk", {"k": K}, {"precision": "bf16"}),
    ("batchtopk", {"k": K}, {}),
    ("batchtopk", {"k": K}, {"precision": "bf16"}),
    ("relu", {}, {}),
    ("relu", {}, {"precision": "bf16"}),
    ("gated", {}, {}),
    ("gated, by autograd", {}, {}),
    ("gated, by autograd", {}, {"compile": True}),
]
"""Variant, its options, training options."""

QUALITY: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("topk", {}, {}),
    ("topk", {}, {"decay": "cosine", "lr_decay": 1.0}),
    ("topk", {}, {"optimizer": "muon"}),
    ("topk", {}, {"optimizer": "muon", "decay": "cosine", "lr_decay": 1.0}),
    ("topk", {}, {"optimizer": "schedule-free"}),
    ("topk", {}, {"ema": 0.98}),
    ("topk", {}, {"precision": "bf16"}),
    ("topk", {"k_warmup": 48, "n_k_warmup": 100}, {}),
    ("batchtopk", {}, {}),
    ("batchtopk", {}, {"optimizer": "muon"}),
    ("batchtopk", {}, {"optimizer": "schedule-free"}),
    ("batchtopk", {}, {"ema": 0.98}),
    ("batchtopk", {}, {"precision": "bf16"}),
    ("batchtopk", {"k_warmup": 48, "n_k_warmup": 100}, {}),
    ("gated", {}, {}),
    ("gated", {}, {"optimizer": "muon"}),
]


def named(variant: str, *options: dict[str, Any]) -> str:
    return " ".join([variant, *(f"{key}={value}" for group in options for key, value in group.items())])


def ready(variant: str, sae: dict[str, Any], options: dict[str, Any], width: int, x: torch.Tensor) -> Callable[[], object]:
    """A training step of an SAE with a learning rate so small that its weights stay constant."""
    plugin, _, plain = variant.partition(", ")
    made = make_sae(PluginRef(name=plugin, options={"d_sae": width, **sae}), D)
    cfg = TrainConfig.model_validate({"batch_size": BATCH, "lr": 1e-9, **options})
    job = SAETrainer(TrainSpec(variant, made), cfg, SCHEDULE, torch.device("cpu"))
    if plain:
        made.backward = made.backward_autograd  # type: ignore[method-assign]
    return lambda: job.step(x, 5)


def times(rounds: int, width: int) -> None:
    """Print the time of each step, and its ratio to the first of its variant."""
    x = torch.randn(BATCH, D, generator=torch.Generator().manual_seed(9))
    W, out = torch.randn(D, width), torch.empty(BATCH, width)
    calls: dict[str, Callable[[], object]] = {"one encode matmul": lambda: torch.mm(x, W, out=out)}
    first: dict[str, str] = {}
    over: dict[str, str] = {}
    for variant, sae, options in STEPS:
        name = named(variant, options)
        calls[name] = ready(variant, sae, options, width, x)
        over[name] = first.setdefault(variant, name)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn > 1:  # the first rounds allocate buffers and compile
                taken[name].append(time.perf_counter() - began)
    best = {name: min(each) for name, each in taken.items()}
    print(f"\n{'step':44}{'ms':>8}{'x encode':>10}{'x its own':>11}")
    for name, seconds in best.items():
        own = f"{seconds / best[over[name]]:.2f}" if name in over else ""
        print(f"{name:44}{seconds * 1e3:8.0f}{seconds / best['one encode matmul']:10.2f}{own:>11}")


def quality(steps: int, seeds: int, images: int = 300, batch: int = 512, width: int = 768) -> None:
    """Print held-out NMSE, L0 and dead share of each."""
    with tempfile.TemporaryDirectory() as folder:
        model, dataset = load_model("tiny", "cpu"), load_dataset(PluginRef(name="shapes", options={"n": images}))
        refs = model_ref(PluginRef(name="tiny")), dataset_ref(PluginRef(name="shapes"))
        record(model, dataset, f"{folder}/store", RecordConfig(), model_ref=refs[0], dataset_ref=refs[1])
        store = ActivationStore.open(f"{folder}/store")
        source = StoreSource(store, ReadConfig())
        shared = {"batch_size": batch, "n_tokens": batch * steps, "log_every": steps}
        cards: dict[str, list[dict[str, Any]]] = {}
        seconds = time.perf_counter()
        for seed in range(seeds):
            group = TrainConfig.model_validate({**shared, "seed": seed})
            trainees = []
            for variant, sae, options in QUALITY:
                made = make_sae(PluginRef(name=variant, options={"d_sae": width, **sae}), source.d_model, seed)
                own = TrainConfig.model_validate({**shared, "seed": seed, **options})
                trainees.append(TrainSpec(named(variant, sae, options), made, own))
            for trainee, checkpoint in zip(trainees, train(source, trainees, group), strict=True):
                cards.setdefault(trainee.name, []).append(evaluate(checkpoint, source, EvaluateConfig()))
        seconds = time.perf_counter() - seconds
    print(f"\n{steps} steps of {batch}, d {source.d_model}, d_sae {width}, {seeds} seeds, {seconds:.0f} s")
    print(f"{'held out':60}{'NMSE':>8}{'+-':>8}{'L0':>7}{'dead':>7}")
    for name, each in cards.items():
        nmse = [card["nmse"] for card in each]
        spread = f"{statistics.stdev(nmse):.4f}" if seeds > 1 else ""
        l0, dead = (statistics.mean(card[key] for card in each) for key in ("l0", "dead"))
        print(f"{name:60}{statistics.mean(nmse):8.4f}{spread:>8}{l0:7.1f}{dead:7.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--width", type=int, default=6144)
    parser.add_argument("--skip", choices=["time", "quality"], default="")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    if options.skip != "time":
        times(options.rounds, options.width)
    if options.skip != "quality":
        quality(options.steps, options.seeds)


if __name__ == "__main__":
    main()
