"""Propose the features that represent each class, on training images.

For feature f and class c, with z the activation on a patch, w the probe's rows, d the feature's direction in raw units:

    attribution   a(c, f) = mean over patches of class c of  z_f <w_c - w_r, d_f>,  r the class with the largest other logit there:
                  what the feature adds to the margin by which the patch is classified as c
    score         a(c, f) - max over other classes c' of a(c', f), the latter at least 0:
                  what suppressing it takes from this class, minus what it takes from the class it harms most
    difference    mean over patches of class c of z_f - the largest such mean of another class: the score if the probe reads a site
                  after the SAE's, or with --by difference

A patch has the majority class of its pixels; a patch whose majority class is ignored is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from saev_core.errors import ProbeError
from saev_tasks.semseg.bench import PatchBench
from saev_tasks.shared.patch_vectors import Classes


@dataclass(frozen=True)
class Proposed:
    """One feature proposed for a class; all numbers are measured on training images."""

    feature: int
    score: float
    on_class: float
    """Mean activation on patches of the class."""
    on_others: float
    """Mean activation on all other patches."""
    precision: float
    """Share of the class among the patches that fire it."""
    recall: float
    """Share of the class's patches that fire it."""
    f1: float
    auroc: float
    """AUROC of its activation for the class's patches against others."""


def class_means(bench: PatchBench, truth: Int[np.ndarray, " n_rows"], n_classes: int) -> Float[np.ndarray, "n_classes d_sae"]:
    """Mean activation of every feature on the patches of each class; 0 for a class without patches."""
    return _by_class(bench.codes.tocsr(), truth, n_classes)


def _by_class(values: csr_array, truth: Int[np.ndarray, " n_rows"], n_classes: int) -> Float[np.ndarray, "n_classes d_sae"]:
    known = np.flatnonzero(truth >= 0)
    pick = csr_array((np.ones(len(known), np.float32), (truth[known], known)), shape=(n_classes, len(truth)))
    n = np.bincount(truth[known], minlength=n_classes)
    return np.asarray((pick @ values).toarray() / np.maximum(n, 1)[:, None], np.float64)


def attribution(bench: PatchBench, truth: Int[np.ndarray, " n_rows"], classes: Classes) -> Float[np.ndarray, "n_classes d_sae"]:
    """a(c, f) as in the module docstring."""
    n_classes = len(classes)
    logits = bench.before.view(-1, n_classes).clone()
    logits[:, sorted(c for c in classes.ignored if c < n_classes)] = -torch.inf
    own = torch.from_numpy(np.maximum(truth, 0))
    logits.scatter_(1, own[:, None], -torch.inf)
    rival = logits.argmax(1).numpy()
    effect = (bench.directions @ bench.readout.probe.weight.detach().cpu().T).numpy()  # [d_sae, n_classes]
    z = bench.codes.tocsr()
    row = np.repeat(np.arange(z.shape[0]), np.diff(z.indptr))
    margin = effect[z.indices, own.numpy()[row]] - effect[z.indices, rival[row]]
    return _by_class(csr_array((z.data * margin, z.indices, z.indptr), shape=z.shape), truth, n_classes)


def scores(bench: PatchBench, truth: Int[np.ndarray, " n_rows"], classes: Classes, by: str = "attribution") -> Float[np.ndarray, "c d_sae"]:
    """The score of every feature for every class; -inf for classes without patches.

    Raises:
        ProbeError: attribution is requested, but the probe does not read the SAE's site.
    """
    if by == "attribution":
        if not bench.readout.linear:
            raise ProbeError(
                f"attribution needs a probe at the SAE's {bench.readout.site}, this one reads {bench.readout.target}; use --by difference."
            )
        own, floor = attribution(bench, truth, classes), 0.0
    else:
        own, floor = class_means(bench, truth, len(classes)), 0.0
    there = np.bincount(truth[truth >= 0], minlength=len(classes)) > 0
    ranked = np.where(there[:, None], own, -np.inf)
    order = np.sort(ranked, axis=0)
    best, second = order[-1], order[-2]
    # The best class's rival is the second best, every other class's rival is the best.
    rival = np.where(ranked == best[None], second[None], best[None])
    return np.asarray(np.where(there[:, None], own - np.maximum(rival, floor), -np.inf))


def propose(
    bench: PatchBench, truth: Int[np.ndarray, " n_rows"], classes: Classes, n: int, by: str = "attribution"
) -> dict[int, list[Proposed]]:
    """At most `n` features for each class present, best first; only those with a positive score."""
    table = scores(bench, truth, classes, by)
    means = class_means(bench, truth, len(classes))
    counts = np.bincount(truth[truth >= 0], minlength=len(classes))
    total = counts.sum()
    out = {}
    for c in classes.kept:
        if not counts[c]:
            continue
        best = np.argsort(-table[c], kind="stable")[:n]
        rows = []
        for f in (int(f) for f in best if table[c, f] > 0):
            a, b = bench.codes.indptr[f], bench.codes.indptr[f + 1]
            at, value = bench.codes.indices[a:b], bench.codes.data[a:b]
            known = truth[at] >= 0
            at, value = at[known], value[known]
            mine = truth[at] == c
            precision, recall = mine.sum() / max(len(at), 1), mine.sum() / counts[c]
            others = (means[:, f] @ counts - means[c, f] * counts[c]) / max(total - counts[c], 1)
            f1 = 2 * mine.sum() / max(len(at) + counts[c], 1)
            auroc = _auroc(value, mine, int(counts[c]), int(total))
            rows.append(Proposed(f, *(float(v) for v in (table[c, f], means[c, f], others, precision, recall, f1, auroc))))
        out[c] = rows
    return out


def _auroc(value: np.ndarray, mine: np.ndarray, n_class: int, n: int) -> float:
    """AUROC of a sparse score: activations on the patches where the feature fires, zero elsewhere."""
    if not 0 < n_class < n:
        return float("nan")
    from scipy.stats import rankdata

    silent = n - len(value)
    rank = silent + rankdata(value)
    total = rank[mine].sum() + (n_class - mine.sum()) * (silent + 1) / 2
    return float((total - n_class * (n_class + 1) / 2) / (n_class * (n - n_class)))
