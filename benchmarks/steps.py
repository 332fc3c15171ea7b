"""One training step of ours against other libraries' on the same work: the table of targets and results.

Everything compared in a row alternates in one process, round by round, and a ratio is best over best. A step is complete:
gradient, clipping, projection, optimiser, and whatever else each library's trainer does; learning rates are so small that
weights stay constant. Peak memory is measured in a separate process, relative to its usage before.

    python benchmarks/steps.py [--rounds 3] [--threads 2] [--malloc kept] [--json FILE] [--quick | --check]

Other libraries are included if installed: make bench-setup, then .venv-peers/bin/python benchmarks/steps.py.
For the original's TopK and BatchTopK, set SAEV_HEAD to a checkout of its repository. `--malloc kept` runs everything with
an allocator that never returns memory (MALLOC_MMAP_MAX_=0), which avoids page faults for new tensors.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import torch
from common import interleave, summary
from contestants import OURS, Aim, Row, Size, make, rows, trainee, vectors

from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import ReadConfig, TrainConfig
from saev_core.training.train import train
from saev_core.types import Site

FULL, MANY = Size(384, 6144, 4096, 32), Size(384, 1536, 2048, 32)
SMALL = Size(64, 512, 256, 8)
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}
LOOP = "trainer's loop"


def measure(row: Row, rounds: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Milliseconds of each round, by contestant."""
    x = vectors(row.size)

    def timed(call: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            call()
            return 1.0

        return once

    work = {who: timed(make(row, who, x)) for who in row.who()}
    for _ in range(2):  # warm-up: the first allocates buffers, the second settles estimates
        for call in work.values():
            call()
    rates = interleave(work, rounds, clock=clock)
    return {who: [1e3 / rate for rate in each] for who, each in rates.items()}


def store(folder: Path, size: Size) -> ActivationStore:
    """Ten batches of uncorrelated vectors in float16."""
    images = 10 * size.batch // 256
    fields = {"model": {"name": "none", "n_blocks": 1}, "dataset": {"name": "none"}, "rows": 16, "cols": 16, "patch_px": 14}
    meta = StoreMeta.model_validate({**fields, "d_model": size.d, "n_images": images})
    made = ActivationStore.create(str(folder / "store"), meta)
    made.add_site(Site(0))
    x = torch.randn(images, 256, size.d, generator=torch.Generator().manual_seed(0))
    with made.write_shard([Site(0)], 0) as writer:
        writer.append({Site(0): x}, range(images))
    return made


def loop(source: StoreSource, size: Size, saes: int, log_every: int) -> float:
    """Milliseconds of one step in the trainer's own loop: reading, normalising, logging, `saes` SAEs at once."""
    cfg = TrainConfig(batch_size=size.batch, n_tokens=2 * log_every * size.batch, log_every=log_every, n_init=size.batch, lr=1e-8)
    stamps: list[float] = []

    def told(hook: str, **rest: object) -> None:
        if hook == "stepped" and rest["name"] == "t0":
            stamps.append(time.perf_counter())

    train(source, [trainee("topk", size, seed) for seed in range(saes)], cfg, emit=told)
    return (stamps[-1] - stamps[0]) * 1e3 / log_every


def loops(size: Size, rounds: int, log_every: int) -> dict[str, Any]:
    """Cost of the loop relative to bare steps, and of one more SAE in it."""
    row = Row("", "topk", size, ())
    step = make(row, OURS, vectors(size))
    step()
    bare, one, two = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        source = StoreSource(store(Path(folder), size), ReadConfig(layer=0))
        for _ in range(rounds):
            gc.collect()
            one.append(loop(source, size, 1, log_every))
            began = time.perf_counter()
            for _ in range(log_every):
                step()
            bare.append((time.perf_counter() - began) * 1e3 / log_every)
            two.append(loop(source, size, 2, log_every))
    return {"bare step": bare, LOOP: one, "two SAEs": two}


def peaks(check: bool) -> dict[str, dict[str, float]]:
    """Peak megabytes of a few steps of each, by row and contestant; measured in a dedicated process."""
    command = [sys.executable, "-W", "ignore", __file__, "--memory", *(["--check"] if check else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"memory was not measured: {done.stderr.strip().splitlines()[-1]}")
        return {}
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak(row: Row, who: str) -> float:
    """Peak megabytes of two steps, in a fork of this process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # /proc/self/status is in kilobytes; writing 5 to clear_refs resets the high-water mark to the current usage.
        x = vectors(row.size)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        step = make(row, who, x)
        step()
        step()
        os.write(write, str((_status("VmHWM") - before) / 1024).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return float(told) if told else float("nan")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def ratio(aim: Aim, best: dict[str, float]) -> dict[str, float]:
    """The result against each installed contestant of the target."""
    floors = [who for who in best if who not in peers.ROOMS and who != OURS]
    whom = aim.over or [who for who in best if who not in floors and who != OURS]
    return {who: best[who] / best[OURS] if aim.least else best[OURS] / best[who] for who in whom if who in best}


def lines(name: str, row: Row, times: dict[str, list[float]], memory: dict[str, float]) -> list[dict[str, Any]]:
    """A row's lines of the table, one per target."""
    best = {who: min(each) for who, each in times.items()}
    told = []
    for aim in row.aims:
        reached = ratio(aim, best)
        missed = any(value < aim.least if aim.least else value > aim.most for value in reached.values())
        absent = [who for who in aim.over if who not in best]
        held = {who: value for who, value in memory.items() if who == OURS or (who in reached and who in peers.ROOMS)}
        line = {"row": name, "what": row.what, "aim": str(aim), "reached": reached, "absent": absent, "missed": missed}
        told.append({**line, "peak_mb": held})
    return told


def show(row: Row, times: dict[str, list[float]], memory: dict[str, float]) -> None:
    """Print the numbers of all contestants."""
    s = row.size
    print(f"\n{row.what}: d {s.d}, d_sae {s.width}, batch {s.batch}, k {s.k}, float32")
    print(f"  {'':28}{'best ms':>10}{'median ms':>11}{'peak MB':>9}{'x ours':>8}")
    ours = min(times[OURS])
    for who, each in times.items():
        name = f"{who} {peers.version(who)}" if who in peers.ROOMS else who
        megabytes = f"{memory[who]:9,.0f}" if who in memory else f"{'':9}"
        print(f"  {name:28}{min(each):10.1f}{statistics.median(each):11.1f}{megabytes}{min(each) / ours:8.2f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--malloc", choices=["default", "kept"], default="default", help="the default C allocator, or one that keeps freed memory"
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="ROW", help="topk batchtopk relu relu-sparse auxk four loop")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread: valid on a busy machine")
    parser.add_argument("--quick", action="store_true", help="one round, no memory, no loop")
    parser.add_argument("--check", action="store_true", help="smoke test at a small size; timings are meaningless")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.malloc == "kept" and os.environ.get("MALLOC_MMAP_MAX_") != "0":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT})
    warnings.simplefilter("ignore")  # from other libraries
    threads = 1 if options.check or options.cpu_time else options.threads
    torch.set_num_threads(threads)
    table = rows(SMALL, SMALL) if options.check else rows(FULL, MANY)
    if options.memory:
        torch.optim.Adam([torch.zeros(1, requires_grad=True)], fused=True)  # import an optimiser's dependencies before measuring
        print(json.dumps({name: {who: _peak(row, who) for who in row.who()} for name, row in table.items()}))
        return
    rounds = 1 if options.quick or options.check else options.rounds
    chosen = options.only or [*table, "loop"]
    here = peers.available()
    system = {
        "torch": torch.__version__,
        "threads": threads,
        "clock": "processor" if options.cpu_time else "wall",
        "cpu": platform.processor() or platform.machine(),
        "allocator": "C library, keeping freed memory (MALLOC_MMAP_MAX_=0)" if options.malloc == "kept" else "C library's default",
        "peers": {name: peers.version(name) for name in here},
        "rounds": rounds,
    }
    print(
        f"torch {system['torch']}, {threads} thread(s), allocator: {system['allocator']}; best of {rounds} rounds, {system['clock']} time"
    )
    if not here:
        print("No other library is installed: run make bench-setup, then this script with .venv-peers/bin/python.")
    memory = {} if options.quick else peaks(options.check)
    told: list[dict[str, Any]] = []
    times: dict[str, dict[str, list[float]]] = {}
    for name, row in table.items():
        if name in chosen:
            times[name] = measure(row, rounds, time.process_time if options.cpu_time else time.perf_counter)
            show(row, times[name], memory.get(name, {}))
            told += lines(name, row, times[name], memory.get(name, {}))
            gc.collect()
    if "loop" in chosen and not options.quick:
        times["loop"] = loops(SMALL if options.check else FULL, rounds, 3 if options.check else 25)
        bare, one, two = (min(each) for each in times["loop"].values())
        print(
            f"\nTopK: bare step {bare:.1f} ms; in the trainer's loop {one:.1f}; two SAEs in it {two:.1f} (source, logging every 25 steps)"
        )
        aims = {
            "trainer loop over the bare step": ("at most 1.05x", one / bare, 1.05),
            "cost of one more SAE in a parallel group": ("at most 1.05x its bare step", (two - one) / bare, 1.05),
        }
        for what, (aim, value, most) in aims.items():
            told.append({"row": "loop", "what": what, "aim": aim, "reached": {"bare step": value}, "missed": value > most})
    if not options.check:
        summary(told)
    if options.json:
        options.json.write_text(json.dumps({"system": system, "ms": times, "peak_mb": memory, "table": told}, indent=1))


if __name__ == "__main__":
    main()
