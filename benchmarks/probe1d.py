"""Time of all single-feature probes of a large problem, compared with fitting one pair at a time with scikit-learn.

    python benchmarks/probe1d.py [--features 10000] [--classes 150] [--patches 100000] [--l0 32] [--threads 2]

Codes are random: feature frequencies follow a power law, values are log-normal, and one of each patch's features is associated with
its class. The baseline is timed on a few pairs, on a dense column each, and extrapolated; it computes only the logistic regression and the
average precision. Both are fitted on four fifths of the patches and evaluated on the rest.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from saev_tasks.probe1d.gather import Gathered
from saev_tasks.probe1d.pairs import Pairs, probe_pairs


def fill(codes: Gathered, n: int, l0: int, rng: np.random.Generator, batch: int = 8192) -> None:
    """`n` patches with one class each, in the form they are read from a store."""
    n_classes, d_sae = codes.n_classes, codes.d_sae
    for start in range(0, n, batch):
        m = min(batch, n - start)
        klass = (rng.random(m) ** 1.5 * n_classes).astype(int)  # some classes are ten times as frequent as others
        feature = (rng.random((m, l0)) ** 2 * d_sae).astype(int)
        feature[:, 0] = klass * 7 % d_sae
        # A patch has each feature at most once: keep the first of duplicates.
        ordered = np.sort(feature, 1)
        row, place = np.nonzero(np.diff(ordered, axis=1, prepend=-1))
        value = rng.lognormal(0, 0.8, len(row)).astype(np.float32)
        codes.add(np.arange(n_classes) == klass[:, None], row, ordered[row, place], value)


def column(codes: Gathered, feature: int) -> tuple[np.ndarray, np.ndarray]:
    """A feature's dense values and each unit's class."""
    unit, value = codes.columns(np.array([feature]))[feature]
    x = np.zeros(codes.n_units)
    x[unit] = value
    return x, codes.members().klass


def naive(train: Gathered, val: Gathered, pairs: Pairs, n: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Seconds per pair with scikit-learn, and the largest differences from ours in weight (relative) and in average precision."""
    seconds = off_w = off_ap = 0.0
    for _ in range(n):
        c = int(rng.integers(train.n_classes))
        f = c * 7 % train.d_sae
        (x, y), (held_x, held_y) = column(train, f), column(val, f)
        began = time.perf_counter()
        model = LogisticRegression(C=1e3, max_iter=200).fit(x[:, None], y == c)
        ap = average_precision_score(held_y == c, held_x)
        seconds += time.perf_counter() - began
        off_w = max(off_w, abs(model.coef_[0, 0] / pairs.weight[f, c] - 1))
        off_ap = max(off_ap, abs(ap - pairs.ap[f, c]))
    return seconds / n, off_w, off_ap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--sample", type=int, default=12, help="number of pairs to time the baseline on")
    parser.add_argument("--memory-mb", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        made = [Gathered(args.features, args.classes, Path(folder) / name, args.memory_mb << 19) for name in ("train", "val")]
        with made[0] as train, made[1] as val:
            began = time.perf_counter()
            fill(train, args.patches * 4 // 5, args.l0, rng)
            fill(val, args.patches - args.patches * 4 // 5, args.l0, rng)
            middle = time.perf_counter()
            pairs = probe_pairs(train, val, k=20)
            took = time.perf_counter() - middle
            each, off_w, off_ap = naive(train, val, pairs, args.sample, rng)
    n = args.features * args.classes
    size = f"{args.features:,} features x {args.classes} classes x {args.patches:,} patches, L0 {args.l0}"
    print(f"{size}: {n:,} probes, {args.threads} threads")
    print(f"  drawing and collecting codes  {middle - began:8.1f} s")
    print(f"  all probes and rankings       {took:8.1f} s   {took / n * 1e6:.1f} us per pair")
    times = f"{each * 1e3:.1f} ms per pair on {args.sample}, {each * n / took:,.0f} times as long"
    print(f"  scikit-learn, extrapolated    {each * n:8.0f} s   {times}")
    print(f"  largest differences: weight {off_w:.1%}, average precision {off_ap:.1e}")
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
