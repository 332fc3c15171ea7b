"""Propose the features that represent each class of images, on training images.

For feature f and class c, with z the feature's mean activation over the tokens of an image that the probe reads, w the probe's
rows and d the feature's direction in raw units:

    attribution   a(c, f) = mean over images of class c of  z_f <w_c - w_r, d_f>,  r the class with the largest other logit there:
                  what the feature adds to the margin by which the image is classified as c. The probe is linear and so is the decoder:
                  this is exactly what ablating f alone removes from that margin.
    score         a(c, f) - max over other classes c' of a(c', f), the latter at least 0:
                  what suppressing it takes from this class, minus what it takes from the class it harms most
    difference    mean over images of class c of z_f - the largest such mean of another class: the score if the probe reads a site
                  after the SAE's, or with --by difference

Source: direct logit attribution, Elhage et al. 2021, A mathematical framework for transformer circuits.
https://transformer-circuits.pub/2021/framework
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from saev_core.errors import ProbeError
from saev_tasks.classification.bench import ImageBench


@dataclass(frozen=True)
class Proposed:
    """A feature proposed for a class."""

    feature: int
    score: float
    mean: float
    """Mean activation over the class's images."""
    mean_others: float
    """Mean activation over all other images."""
    share: float
    """Share of the class's images on which it fires."""
    share_others: float


def scores(bench: ImageBench, n_classes: int, by: str) -> Float[np.ndarray, "n_classes d_sae"]:
    """The score of every feature for every class; -inf for classes without images.

    Raises:
        ProbeError: attribution is requested, but the probe does not read the SAE's site.
    """
    if by == "attribution" and not bench.readout.linear:
        raise ProbeError(
            f"attribution needs a probe at the SAE's {bench.readout.site}, this one reads {bench.readout.probe.site}; use --by difference."
        )
    z = bench.pooled
    if by == "attribution":
        logits, own = bench.before.clone(), torch.from_numpy(bench.labels.astype(np.int64))
        rival = logits.scatter_(1, own[:, None], -torch.inf).argmax(1).numpy()
        row, effect = np.repeat(np.arange(z.shape[0]), np.diff(z.indptr)), bench.effect()
        margin = effect[z.indices, bench.labels[row]] - effect[z.indices, rival[row]]
        table = by_class(csr_array((z.data * margin, z.indices, z.indptr), shape=z.shape), bench.labels, n_classes)
    else:
        table = by_class(z, bench.labels, n_classes)
    there = np.bincount(bench.labels, minlength=n_classes) > 0
    ranked = np.where(there[:, None], table, -np.inf)
    first = ranked.argmax(0)
    best, second = np.sort(ranked, axis=0)[[-1, -2]]
    # The best class's rival is the second best, every other class's is the best.
    rivals = np.where(np.arange(n_classes)[:, None] == first, second, best)
    return np.asarray(np.where(there[:, None], table - np.maximum(rivals, 0), -np.inf))


def by_class(values: csr_array, labels: Int[np.ndarray, " n"], n_classes: int) -> Float[np.ndarray, "n_classes d_sae"]:
    """Mean over the images of each class; 0 for classes without images."""
    counts = np.bincount(labels, minlength=n_classes)
    weight = csr_array((1 / counts[labels], (labels, np.arange(len(labels)))), shape=(n_classes, len(labels)))
    return np.asarray((weight @ values).toarray())


def propose(bench: ImageBench, n_classes: int, n: int, by: str = "attribution") -> dict[int, list[Proposed]]:
    """At most `n` features for each class present, best first; only those with a positive score."""
    table = scores(bench, n_classes, by)
    z = bench.pooled
    fires = csr_array(((z.data > 0).astype(np.float32), z.indices, z.indptr), shape=z.shape)
    means, shares = by_class(z, bench.labels, n_classes), by_class(fires, bench.labels, n_classes)
    counts = np.bincount(bench.labels, minlength=n_classes)
    total = counts.sum()
    out = {}
    for c in np.flatnonzero(counts).tolist():
        best = np.argsort(-table[c], kind="stable")[:n]
        rows = []
        for f in (int(f) for f in best if table[c, f] > 0):
            others = [float((one[:, f] @ counts - one[c, f] * counts[c]) / max(total - counts[c], 1)) for one in (means, shares)]
            rows.append(Proposed(f, float(table[c, f]), float(means[c, f]), others[0], float(shares[c, f]), others[1]))
        out[c] = rows
    return out
