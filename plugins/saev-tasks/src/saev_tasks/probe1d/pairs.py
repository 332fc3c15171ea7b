"""Every pair of a feature and a class: the probe fitted on training units, with its and the feature's scores on validation units."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from saev_core.support.progress import Track, silent
from saev_core.support.threads import torch_threads
from saev_tasks.probe1d.gather import BLOCK, Gathered
from saev_tasks.probe1d.newton import RIDGE, Atoms, atoms_of, bias_only, fit, losses
from saev_tasks.shared.ranking import Members, rank

log = logging.getLogger(__name__)

Grid = Float[np.ndarray, "d_sae n_classes"]


@dataclass(frozen=True)
class Pairs:
    """float32 for every pair; NaN where undefined (the class is absent, the feature never fires)."""

    weight: Grid
    bias: Grid
    r_train: Grid
    """1 - L / L_bias-only on the training units."""
    r: Grid
    """The same on validation units, against always predicting the training share of the class."""
    ap_train: Grid
    ap: Grid
    auroc: Grid
    purity: Grid
    """Share of the class among the feature's k strongest validation units."""
    difference: Grid
    """Mean on the class minus mean elsewhere, over the standard deviation; training units."""

    @classmethod
    def empty(cls, d_sae: int, n_classes: int) -> Pairs:
        return cls(*(np.full((d_sae, n_classes), np.nan, np.float32) for _ in fields(cls)))

    def arrays(self) -> dict[str, Any]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def probe_pairs(train: Gathered, val: Gathered, *, k: int, most: int = 128, ridge: float = RIDGE, track: Track = silent) -> Pairs:
    """All pairs, block by block of features.

    Memory: 36 bytes per pair for the result, plus one block of `BLOCK` features of one side per torch thread.

    Args:
        k: number of strongest units for purity.
        most: atoms that a feature's values are rounded to, `newton.atoms_of`; affects only probes and R.
    """
    out = Pairs.empty(train.d_sae, train.n_classes)
    members, held = train.members(), val.members()
    size, held_size = members.size.astype(np.float64), held.size.astype(np.float64)
    base = bias_only(size, members.n_units, size, members.n_units)
    held_base = bias_only(held_size, held.n_units, size, members.n_units)

    def one(i: int) -> int:
        width, rows = train.width(i), slice(i * BLOCK, i * BLOCK + train.width(i))
        feature, unit, value = train.block(i)
        atoms, total = _rounded(feature, unit, value, members, width, most)
        fitted = fit(atoms, total, size, ridge)
        ranked = rank(feature, unit, value, members, width, k)
        out.weight[rows], out.bias[rows], out.ap_train[rows] = fitted.weight, fitted.bias, ranked.ap
        out.difference[rows] = _difference(feature, unit, value, members, width)
        feature, unit, value = val.block(i)
        atoms, total = _rounded(feature, unit, value, held, width, most)
        lost = losses(atoms, total, held_size, fitted.weight, fitted.bias)
        ranked = rank(feature, unit, value, held, width, k)
        out.ap[rows], out.auroc[rows], out.purity[rows] = ranked.ap, ranked.auroc, ranked.purity
        with np.errstate(divide="ignore", invalid="ignore"):
            out.r_train[rows] = 1 - fitted.loss / base
            out.r[rows] = np.where(held_size > 0, 1 - lost / held_base, np.nan)
        return fitted.n_unfinished

    unfinished, n_threads = 0, torch.get_num_threads()
    # Run blocks in parallel, each in one thread: the operations are too small to split, and torch's threads would spin idly.
    with ThreadPoolExecutor(n_threads, "saev-probe1d", initializer=torch_threads, initargs=(1,)) as pool:
        try:
            with track("probe", train.n_blocks, "blocks") as meter:
                for left in pool.map(one, range(train.n_blocks)):
                    unfinished += left
                    meter.update(1)
        finally:
            pool.shutdown(cancel_futures=True)
            torch_threads(n_threads)
    if unfinished:
        log.warning("%d of %d single-feature probes did not converge", unfinished, out.weight.size)
    return out


def best(score: Grid, n: int = 1) -> Int[np.ndarray, "n_classes n"]:
    """The `n` features with the highest score of each class, best first; NaN ranks lowest, and -1 fills a class where all are NaN."""
    order = np.argsort(np.where(np.isnan(score), np.inf, -score), axis=0, kind="stable")[:n].T
    return np.where(np.isnan(np.take_along_axis(score, order.T, 0)).T, -1, order)


def _rounded(feature: Any, unit: Any, value: Any, members: Members, width: int, most: int) -> tuple[Atoms, Grid]:
    """Atoms of a block's features, and the sum of the rounded values over each class."""
    atoms = atoms_of(feature, value, width, members.n_units, most)
    return atoms, _sums(feature, unit, atoms.value[feature, atoms.of_entry], members, width)


def _sums(feature: Any, unit: Any, value: Any, members: Members, width: int) -> Grid:
    place, klass = members.of(unit)
    cell = feature[place] * members.n_classes + klass
    return np.bincount(cell, weights=value[place], minlength=width * members.n_classes).reshape(width, members.n_classes)


def _difference(feature: Any, unit: Any, value: Any, members: Members, width: int) -> Grid:
    n, size = members.n_units, members.size.astype(np.float64)
    sums = _sums(feature, unit, value, members, width)
    total, squares = (np.bincount(feature, weights=value.astype(np.float64) ** power, minlength=width)[:, None] for power in (1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0))
        return np.asarray((sums / size - (total - sums) / (n - size)) / np.where(spread > 0, spread, np.nan))
