"""Single-feature logistic probes, `P(y | x) = sigmoid(w x + b)`, for all pairs of a feature and a class at once, by Newton's method.

A feature's values are rounded to a few atoms, so its distribution is a short list of values and counts that all classes
share; each class enters through only two numbers, its size `P` and the sum `S` of the values on it:

    L(w, b) = sum_a n_a log(1 + exp(w x_a + b)) - w S - b P

These are the sufficient statistics of logistic regression: no counts per atom and class are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

RIDGE = 1e-3
"""Weight of `(w scale)^2 / 2` in the summed loss, `scale` being the root mean square of the feature's non-zero values. It gives a
separable pair, whose `w` would otherwise diverge, a finite optimum; for others it changes R in the fourth digit."""
TOLERANCE = 1e-9
"""Convergence threshold: Newton's estimate of the remaining decrease, as a share of the loss."""
MAX_STEPS = 60
_CELLS = 1 << 16
"""Pairs times atoms processed at once: half a megabyte per array, to fit the cache."""


@dataclass(frozen=True)
class Atoms:
    """The values of some features, rounded: `value [n_features, n_atoms]` with `count`; column 0 is the value 0 (not firing)."""

    value: Float[np.ndarray, "n_features n_atoms"]
    count: Float[np.ndarray, "n_features n_atoms"]
    of_entry: Int[np.ndarray, " nnz"]
    """Column of each entry."""


def atoms_of(feature: Int[np.ndarray, " nnz"], value: Float[np.ndarray, " nnz"], n_features: int, n_units: int, most: int) -> Atoms:
    """Quantise each feature's values to at most `most` atoms, each the mean of adjacent values; exact for up to `most` entries.

    Atom density follows the cube root of the value density (Panter and Dite 1951), which minimises the mean squared
    rounding error. Means are preserved exactly, so the error in the loss is of second order.

    Args:
        feature, value: sorted by feature, then by descending value.
        n_units: total number of units, most of them zero.
    """
    n_entries = np.bincount(feature, minlength=n_features)
    start = np.cumsum(n_entries) - n_entries
    place = np.arange(len(feature)) - start[feature]
    width = int(min(most, n_entries.max(initial=0))) + 1
    gap = np.zeros(len(value))
    gap[1:] = np.where(feature[1:] == feature[:-1], (value[:-1].astype(np.float64) - value[1:]).clip(0) ** (2 / 3), 0)
    along = np.cumsum(gap)
    along -= along[start[feature]] if len(along) else 0
    length = np.zeros(n_features)
    np.maximum.at(length, feature, along)
    share = along / np.maximum(length[feature], np.finfo(np.float64).tiny)
    column = 1 + np.where(n_entries[feature] <= most, place, np.minimum((share * most).astype(np.int64), most - 1))
    cell = feature * width + column
    count = np.bincount(cell, minlength=n_features * width).astype(np.float64)
    total = np.bincount(cell, weights=value, minlength=n_features * width)
    count, mean = count.reshape(n_features, width), (total / np.maximum(count, 1)).reshape(n_features, width)
    count[:, 0] = n_units - n_entries
    return Atoms(mean, count, column)


@dataclass(frozen=True)
class Fitted:
    """`weight`, `bias` and the summed loss of each pair; NaN if a class has no units or all of them, or a feature never fires."""

    weight: Float[np.ndarray, "n_features n_classes"]
    bias: Float[np.ndarray, "n_features n_classes"]
    loss: Float[np.ndarray, "n_features n_classes"]
    n_unfinished: int
    """Pairs that had not converged after the last step."""


def fit(
    atoms: Atoms, total: Float[np.ndarray, "n_features n_classes"], size: Float[np.ndarray, " n_classes"], ridge: float = RIDGE
) -> Fitted:
    """Fit the probe of every pair.

    Newton's method with step halving if the loss would rise, starting from the probe on whether the feature fires,
    which has a closed form. float64. Memory: 5 MB plus the result.

    Args:
        total: sum of the rounded values over each class.
        size: number of units of each class.
    """
    n_features, n_classes = total.shape
    n = atoms.count.sum(1)  # [n_features]
    fires = n - atoms.count[:, 0]
    scale = np.sqrt((atoms.count * atoms.value**2).sum(1) / np.maximum(fires, 1))
    usable = ((fires > 0) & (scale > 0))[:, None] & ((size > 0) & (size < n[:, None]))
    out = [np.full((n_features, n_classes), np.nan) for _ in range(3)]
    pairs_f, pairs_c = usable.nonzero()
    step = max(1, _CELLS // atoms.value.shape[1])
    unfinished = 0
    for start in range(0, len(pairs_f), step):
        f, c = pairs_f[start : start + step], pairs_c[start : start + step]
        # Features are contiguous: take only their rows.
        first, last = int(f[0]), int(f[-1]) + 1
        x = torch.from_numpy(atoms.value[first:last] / np.where(scale > 0, scale, 1)[first:last, None])
        w, b, loss, left = _newton(
            x,
            torch.from_numpy(atoms.count[first:last]),
            torch.from_numpy(f - first),
            torch.from_numpy(total[f, c] / scale[f]),
            torch.from_numpy(size[c].astype(np.float64)),
            ridge,
        )
        out[0][f, c], out[1][f, c], out[2][f, c] = w.numpy() / scale[f], b.numpy(), loss.numpy()
        unfinished += left
    return Fitted(out[0], out[1], out[2], unfinished)


def losses(
    atoms: Atoms,
    total: Float[np.ndarray, "n_features n_classes"],
    size: Float[np.ndarray, " n_classes"],
    weight: Float[np.ndarray, "n_features n_classes"],
    bias: Float[np.ndarray, "n_features n_classes"],
) -> Float[np.ndarray, "n_features n_classes"]:
    """The summed loss of given probes on other units; NaN where a probe is NaN."""
    out = np.full(total.shape, np.nan)
    pairs_f, pairs_c = np.isfinite(weight).nonzero()
    step = max(1, _CELLS // atoms.value.shape[1])
    for start in range(0, len(pairs_f), step):
        f, c = pairs_f[start : start + step], pairs_c[start : start + step]
        x, n = torch.from_numpy(atoms.value[f]), torch.from_numpy(atoms.count[f])
        w, b = torch.from_numpy(weight[f, c]), torch.from_numpy(bias[f, c])
        z = torch.addcmul(b[:, None], w[:, None], x)
        soft = (n * torch.nn.functional.softplus(z, threshold=40)).sum(1)
        out[f, c] = (soft - w * torch.from_numpy(total[f, c]) - b * torch.from_numpy(size[c].astype(np.float64))).numpy()
    return out


def bias_only(size: Float[np.ndarray, "*n"], n: float, train_size: Float[np.ndarray, "*n"], train_n: float) -> Float[np.ndarray, "*n"]:
    """The summed loss on `n` units, `size` of them of the class, of a probe that always predicts the training share."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = train_size / train_n
        return np.asarray(-(size * np.log(share) + (n - size) * np.log1p(-share)))


def _newton(
    x: Float[Tensor, "m a"],
    n: Float[Tensor, "m a"],
    f: Int[Tensor, " p"],
    total: Float[Tensor, " p"],
    size: Float[Tensor, " p"],
    ridge: float,
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"], Float[Tensor, " p"], int]:
    """Weights, biases, losses without the ridge, and the number of unconverged pairs."""
    w, b = _start(x, n, f, total, size)
    answer = [torch.empty_like(w) for _ in range(3)]
    at = torch.arange(len(w))
    state = _measure(x[f], n[f], w, b, total, size, ridge)
    dw, db, gain = _direction(state)
    length = torch.ones_like(w)
    for _ in range(MAX_STEPS):
        done = gain <= TOLERANCE * state[0].clamp_min(1e-3)
        if bool(done.any()):
            for place, value in enumerate((w, b, state[0] - 0.5 * ridge * w**2)):
                answer[place][at[done]] = value[done]
            keep = ~done
            at, f, w, b, total, size, dw, db, gain, length = (t[keep] for t in (at, f, w, b, total, size, dw, db, gain, length))
            state = tuple(t[keep] for t in state)
            if not len(at):
                break
        trial_w, trial_b = w + length * dw, b + length * db
        trial = _measure(x[f], n[f], trial_w, trial_b, total, size, ridge)
        # Armijo: at least a ten-thousandth of the predicted decrease, else halve the step. The slack is for rounding.
        fine = trial[0] <= state[0] - 1e-4 * length * gain + 1e-12 * state[0].abs()
        w, b = torch.where(fine, trial_w, w), torch.where(fine, trial_b, b)
        state = tuple(torch.where(fine, new, old) for new, old in zip(trial, state, strict=True))
        new_dw, new_db, new_gain = _direction(state)
        dw, db, gain = torch.where(fine, new_dw, dw), torch.where(fine, new_db, db), torch.where(fine, new_gain, gain)
        length = torch.where(fine, torch.ones_like(length), length / 2)
    for place, value in enumerate((w, b, state[0] - 0.5 * ridge * w**2)):
        answer[place][at] = value
    return answer[0], answer[1], answer[2], len(at)


def _start(
    x: Float[Tensor, "m a"], n: Float[Tensor, "m a"], f: Int[Tensor, " p"], total: Float[Tensor, " p"], size: Float[Tensor, " p"]
) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
    """The probe on whether the feature fires, with half a unit added to each of the four counts."""
    silent, fires = n[:, 0][f], n[:, 1:].sum(1)[f]
    mean = ((n * x).sum(1) / n[:, 1:].sum(1).clamp_min(1))[f]
    mean = torch.where(mean.abs() < 1e-3, 1e-3, mean)  # for a feature with values of both signs
    hits = (total / mean).clamp(min=torch.zeros_like(size), max=torch.minimum(size, fires))
    miss = (size - hits).clamp(max=silent)
    b = torch.log((miss + 0.5) / (silent - miss + 0.5))
    w = (torch.log((hits + 0.5) / (fires - hits + 0.5)) - b) / mean
    return w.clamp(-20, 20), b


State = tuple[Tensor, ...]
"""Loss, gradient in w and b, second derivatives ww, wb, bb; `[p]` each."""


def _measure(
    x: Float[Tensor, "p a"],
    n: Float[Tensor, "p a"],
    w: Float[Tensor, " p"],
    b: Float[Tensor, " p"],
    total: Tensor,
    size: Tensor,
    ridge: float,
) -> State:
    z = torch.addcmul(b[:, None], w[:, None], x)
    prob = z.sigmoid()
    # log(1 + e^z) = max(z, 0) - log(the larger of p and 1 - p): torch's softplus is not vectorised.
    far = (1 - prob).maximum(prob).log_()
    soft = z.clamp_min_(0).sub_(far).mul_(n)
    weighted = n * prob
    bend = torch.addcmul(weighted, weighted, prob, value=-1)
    loss = soft.sum(1) - w * total - b * size + 0.5 * ridge * w**2
    slope_b, bend_b = weighted.sum(1) - size, bend.sum(1)
    slope_w = weighted.mul_(x).sum(1) - total + ridge * w
    bend_wb = bend.mul_(x).sum(1)
    return loss, slope_w, slope_b, bend.mul_(x).sum(1) + ridge, bend_wb, bend_b


def _direction(state: State) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's step and twice its predicted decrease."""
    _, gw, gb, ww, wb, bb = state
    # Damp the diagonal: if all probabilities are numerically 0 or 1, the curvature vanishes.
    ww, bb = ww * (1 + 1e-12) + 1e-12, bb * (1 + 1e-12) + 1e-12
    det = (ww * bb - wb * wb).clamp_min(1e-300)
    dw, db = (wb * gb - bb * gw) / det, (wb * gw - ww * gb) / det
    # Limit each step to ten nats at a typical value.
    shrink = (10 / torch.maximum(dw.abs(), db.abs()).clamp_min(10)).clamp(max=1)
    dw, db = dw * shrink, db * shrink
    return dw, db, -(dw * gw + db * gb)
