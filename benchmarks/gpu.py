"""The table of steps on a CUDA device: ours against the other libraries' own CUDA paths, including sparsify's Triton kernels.

d 768, d_sae 24,576 and 65,536, batch 16,384, k 32; float32, TF32 and 16-bit. Contestants of a row alternate; timed by CUDA
events; the best round counts. Memory is the allocator's peak minus its usage before. Out-of-memory failures are reported.

    python benchmarks/gpu.py [--rounds 10] [--json FILE]
    python benchmarks/gpu.py --device cpu --small      # smoke test of the same code on a CPU; timings are meaningless

16-bit: ours `train.precision = "bf16"`, SAELens its `autocast`, dictionary_learning under bfloat16 autocast as in its `trainSAE`,
overcomplete its float16 `train_sae_amp`, sparsify as it always runs on CUDA (bfloat16 autocast inside, in every mode
here), the original unchanged (it has no 16-bit mode; TF32 if allowed).

Ours has two entries: the current CUDA step, autograd on dense codes, and the lean step of the CPU, whose operations all have
CUDA kernels but which has not been timed there. Its gradients are compared with float64 autograd on the device before
timing. If it is exact and faster it can become the CUDA step: `SAE.backward` checks `x.is_cuda` in one place. What to try next, in
this order: all rows in one chunk if memory allows, because launches cost more than cache misses there (`kernels.ROWS`); selecting
the k largest by threshold and compaction, fused behind the matmul in Triton, because `topk` over [16384, 65536] will dominate;
the step under a CUDA graph, which requires removing reads of scalars (loss, dead features) from it; stacked encodes of
the SAEs of a group.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import torch
from contestants import SCHEDULE, Aim, Row, Size, ours, rival, trainee, vectors

from saev_core.sae.base import SAE
from saev_core.sae.relu import ReLU
from saev_core.sae.step import Progress

BEAT = 1.5
"""Target on a GPU: speed-up of ours over every other library."""
NAMES = {"topk": "TopK", "batchtopk": "BatchTopK", "relu": "ReLU"}
AUTOGRAD, LEAN = "ours, autograd", "ours, lean step"
MODES = ("float32", "tf32", "bf16")


@contextlib.contextmanager
def matmuls(mode: str) -> Iterator[None]:
    """Allow TF32 for all contestants, or for none."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if mode == "float32" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def lean(sae: SAE) -> None:
    """Make an SAE use the step without autograd on any device."""
    if isinstance(sae, ReLU):
        relu = sae
        sae.backward = lambda x, progress: relu._backward(x, relu.weight(progress))  # type: ignore[method-assign]
    else:
        sae.backward = sae.backward_lean  # type: ignore[method-assign]


def exact(device: str) -> dict[str, float]:
    """Largest error of the lean step's gradients on the device, relative to the largest gradient by float64 autograd, by variant."""
    size, found = Size(64, 512, 300, 8), {}
    x = vectors(size)
    for variant, name in NAMES.items():
        sae, reference = trainee(variant, size).sae.to(device), trainee(variant, size).sae.double()
        lean(sae)
        progress = Progress(1, 10)
        sae.backward(x.to(device), progress)
        reference.backward_autograd(x.double(), progress)
        errors = []
        for one, other in zip(sae.parameters(), reference.parameters(), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            errors.append(float((one.grad.cpu().double() - other.grad).abs().max() / other.grad.abs().max()))
        found[name] = max(errors)
    return found


def contestants(row: Row, mode: str, device: str) -> dict[str, Callable[[], Callable[[], object]]]:
    """By name, a function that builds a step with its setup."""
    x = vectors(row.size).to(device)
    kind = "bf16" if mode == "bf16" else "tf32" if mode == "tf32" else "float32"

    def mine(sparse: bool) -> Callable[[], object]:
        job = ours(row, 0, device, precision=kind)
        if sparse:
            lean(job.sae)
        else:
            job.sae.backward = job.sae.backward_autograd  # type: ignore[method-assign]
        return lambda: job.step(x, 1)

    def theirs(who: str) -> Callable[[], object]:
        options: dict[str, Any] = {}
        if mode == "bf16" and who == "sae_lens":
            options["autocast"] = True
        if mode == "bf16" and who == "overcomplete" and device == "cuda":
            options["amp"] = True
        peer = rival(row, who, 0, x, device, **options)
        if mode == "bf16" and who == "dictionary_learning":

            def cast() -> None:
                with torch.autocast(device, dtype=torch.bfloat16):
                    peer.step(x)

            return cast
        return lambda: peer.step(x)

    names = [name for name in peers.available() if row.variant in peers.variants(name)]
    made: dict[str, Callable[[], Callable[[], object]]] = {AUTOGRAD: lambda: mine(False), LEAN: lambda: mine(True)}
    return made | {name: lambda name=name: theirs(name) for name in names}


def clock(step: Callable[[], object], device: str) -> float:
    """Milliseconds of a step."""
    if device == "cpu":
        began = time.perf_counter()
        step()
        return (time.perf_counter() - began) * 1e3
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def forget(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(row: Row, mode: str, device: str, rounds: int) -> tuple[dict[str, list[float]], dict[str, float], dict[str, str]]:
    """Milliseconds and peak megabytes by contestant, and the contestants that failed, with the reason."""
    times: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    failed: dict[str, str] = {}
    steps: dict[str, Callable[[], object]] = {}
    with matmuls(mode):
        for who, build in contestants(row, mode, device).items():
            forget(device)
            before = torch.cuda.memory_allocated() if device == "cuda" else 0
            try:
                step = build()
                for _ in range(3):  # warm-up: kernels are compiled and selected
                    step()
            except (torch.OutOfMemoryError, RuntimeError) as error:  # report the failure and measure the others
                failed[who] = str(error).splitlines()[0][:100]
                continue
            if device == "cuda":
                memory[who] = (torch.cuda.max_memory_allocated() - before) / 2**20
            steps[who], times[who] = step, []
        for _ in range(rounds):
            for who in list(steps):
                forget(device)
                try:
                    times[who].append(clock(steps[who], device))
                except torch.OutOfMemoryError as error:
                    failed[who] = str(error).splitlines()[0][:100]
                    del steps[who], times[who]
    return times, memory, failed


def show(title: str, times: dict[str, list[float]], memory: dict[str, float], failed: dict[str, str]) -> dict[str, Any]:
    """Print all numbers, and return the line of the table of targets."""
    print(f"\n{title}\n  {'':30}{'best ms':>10}{'median ms':>11}{'peak MB':>9}")
    for who, each in times.items():
        name = f"{who} {peers.version(who)}" if who in peers.ROOMS else who
        megabytes = f"{memory[who]:9,.0f}" if who in memory else ""
        print(f"  {name:30}{min(each):10.2f}{statistics.median(each):11.2f}{megabytes}")
    for who, why in failed.items():
        print(f"  {who:30}  {why}")
    mine = [min(times[who]) for who in (AUTOGRAD, LEAN) if who in times]
    reached = {who: min(each) / min(mine) for who, each in times.items() if who in peers.ROOMS} if mine else {}
    missed = any(value < BEAT for value in reached.values())
    return {"what": title, "aim": f"{BEAT:g}x every peer", "reached": reached, "missed": missed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="d 64, d_sae 512, batch 256")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--variants", nargs="*", choices=tuple(NAMES), default=list(NAMES))
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device, nothing was measured; --device cpu --small runs the same code on a CPU.")
        return
    warnings.simplefilter("ignore")  # from other libraries
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}; best of {options.rounds} rounds")
    errors = exact(options.device)
    print("lean step against float64 autograd: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    sizes = [Size(64, 512, 256, 8)] if options.small else [Size(768, 24_576, 16_384, 32), Size(768, 65_536, 16_384, 32)]
    told, results = [], []
    for size in sizes:
        for variant in options.variants:
            for mode in options.modes:
                row = Row(NAMES[variant], variant, size, (Aim((), BEAT),))
                title = f"{row.what}, d {size.d}, d_sae {size.width}, batch {size.batch}, {mode}"
                times, memory, failed = measure(row, mode, options.device, options.rounds)
                told.append(show(title, times, memory, failed))
                results.append({"title": title, "ms": times, "peak_mb": memory, "failed": failed})
                forget(options.device)
    if not options.small:
        from common import summary

        summary(told)
    if options.json:
        system = {"device": where, "torch": torch.__version__, "steps": SCHEDULE.n_steps, "lean_error": errors}
        options.json.write_text(json.dumps({"system": system, "results": results, "table": told}, indent=1))


if __name__ == "__main__":
    main()
