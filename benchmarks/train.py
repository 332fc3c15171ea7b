"""What a training step costs against its floors, and what the trainer's loop adds to it.

Steps (gradient, projection, clipping, Adam, unit rows) at d 384, d_sae 6144, batch 4096, k 32, float32. Rounds of all rows
alternate, since other work on the machine comes and goes; the best round of each counts, and ratios are within one run.

    python benchmarks/train.py [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from saev_core.config import ReadConfig, TrainConfig
from saev_core.job import Job, Trainee
from saev_core.saes.relu import ReLU, ReLUConfig
from saev_core.saes.topk import TopK, TopKConfig
from saev_core.schedule import Schedule
from saev_core.source import StoreSource
from saev_core.store import ActivationStore, StoreMeta
from saev_core.train import train
from saev_core.types import Site

D, WIDTH, BATCH, K = 384, 6144, 4096, 32
SCHEDULE = Schedule(n_steps=1_000_000, n_warmup=0, n_decay=0, dead_after=10_000_000)
SHIFT = {"10 %": -1.2816, "2 %": -2.0537, "0.5 %": -2.5758}
"""Encoder bias at which a standard normal pre-activation is positive so often."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def job(sae: TopK | ReLU, *, autograd: bool = False) -> Job:
    """An SAE ready to step, at a learning rate that moves nothing while we look."""
    if autograd:
        sae.backward = sae.backward_autograd  # type: ignore[method-assign]
    return Job(Trainee("bench", sae), TrainConfig(batch_size=BATCH, lr=1e-8), SCHEDULE, torch.device("cpu"))


def topk(*, autograd: bool = False, dead: bool = False) -> Job:
    made = job(TopK(TopKConfig(d_in=D, d_sae=WIDTH, k=K), seeded()), autograd=autograd)
    if dead:
        with torch.no_grad():  # a tenth never reaches the k largest, and counts as dead from the start
            made.sae.W_enc[:, : WIDTH // 10] *= 0.02
        made.fired_at[: WIDTH // 10] = -SCHEDULE.dead_after
    return made


def relu(shift: float, *, autograd: bool = False) -> Job:
    made = job(ReLU(ReLUConfig(d_in=D, d_sae=WIDTH, sparsity_coeff=1e-3), seeded()), autograd=autograd)
    with torch.no_grad():
        made.sae.b_enc.add_(shift)
    return made


def rows(x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    W, pre, back = torch.randn(D, WIDTH, generator=seeded()), torch.empty(BATCH, WIDTH), torch.empty(BATCH, D)
    weights = torch.empty(WIDTH, D)

    def five() -> None:
        for _ in range(2):
            torch.mm(x, W, out=pre)
            torch.mm(pre.T, x, out=weights)
        torch.mm(pre, W.T, out=back)

    jobs = {
        "TopK, plain autograd": topk(autograd=True),
        "TopK": topk(),
        "TopK, 10 % dead under AuxK": topk(dead=True),
        "ReLU dense, plain autograd": relu(0.0, autograd=True),
        "ReLU dense": relu(0.0),
        **{f"ReLU at {density}": relu(shift) for density, shift in SHIFT.items()},
    }
    timed: dict[str, Callable[[], object]] = {"one encode matmul": lambda: torch.mm(x, W, out=pre), "five matmuls": five}
    return timed | {name: lambda j=made: j.step(x, 1) for name, made in jobs.items()}


def store(folder: Path) -> ActivationStore:
    """40,960 vectors of 160 images in float16, uncorrelated."""
    meta = StoreMeta(
        model={"name": "none", "n_blocks": 1}, dataset={"name": "none"}, rows=16, cols=16, patch_px=14, d_model=D, n_images=160
    )
    made = ActivationStore.create(str(folder / "store"), meta)
    made.add_site(Site(0))
    with made.write_shard([Site(0)], 0) as writer:
        writer.append({Site(0): torch.randn(160, 256, D, generator=seeded())}, range(160))
    return made


def loop(source: StoreSource, saes: int, steps: int = 20) -> float:
    """Seconds of one step in the trainer's own loop: reading, normalising, logging every tenth step, `saes` at once."""
    cfg = TrainConfig(batch_size=BATCH, n_tokens=BATCH * steps, log_every=10, n_init=BATCH, lr=1e-8)
    stamps: list[float] = []
    trainees = [Trainee(f"t{i}", TopK(TopKConfig(d_in=D, d_sae=WIDTH, k=K), seeded(i))) for i in range(saes)]
    train(source, trainees, cfg, emit=lambda hook, **rest: stamps.append(time.perf_counter()))
    return (stamps[-1] - stamps[0]) / (steps - 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x = torch.randn(BATCH, D, generator=seeded(9))
    timed = rows(x)
    best = dict.fromkeys(timed, float("inf"))
    for turn in range(options.rounds + 1):
        for name, call in timed.items():
            began = time.perf_counter()
            call()
            if turn:  # the first round makes buffers
                best[name] = min(best[name], time.perf_counter() - began)
    matmul, five = best["one encode matmul"], best["five matmuls"]
    print(f"torch {torch.__version__}, {options.threads} threads, the C library's own allocator; best of {options.rounds} rounds\n")
    print(f"{'':32}{'ms':>8}{'x encode':>10}{'x five':>10}")
    for name, seconds in best.items():
        print(f"{name:32}{seconds * 1e3:8.0f}{seconds / matmul:10.2f}{seconds / five:10.2f}")
    print(f"\nTopK over plain autograd:        {best['TopK, plain autograd'] / best['TopK']:.2f}x faster")
    print(f"ReLU dense over plain autograd:  {best['ReLU dense, plain autograd'] / best['ReLU dense']:.2f}x faster")

    with tempfile.TemporaryDirectory() as folder:
        source = StoreSource(store(Path(folder)), ReadConfig(layer=0))
        bare, one, two = topk(), float("inf"), float("inf")
        step = float("inf")
        for _ in range(options.rounds):
            began = time.perf_counter()
            for _ in range(3):
                bare.step(x, 1)
            step = min(step, (time.perf_counter() - began) / 3)
            one, two = min(one, loop(source, 1)), min(two, loop(source, 2))
    print(f"\ntrainer loop with its source, one TopK: {one * 1e3:.0f} ms, {one / step - 1:+.0%} over the bare step of {step * 1e3:.0f} ms")
    print(f"one more SAE on the same pass:          {(two - one) * 1e3:.0f} ms, {(two - one) / step:.2f}x its bare step")
    print(f"peak memory of this process:            {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MB")


if __name__ == "__main__":
    main()
