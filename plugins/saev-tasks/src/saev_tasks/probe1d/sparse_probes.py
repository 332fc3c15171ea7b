"""One-against-rest logistic probes on a few features, and on all raw dimensions: how many features a concept needs.

Source: Gurnee et al. 2023, Finding Neurons in a Haystack: Case Studies with Sparse Probing, https://arxiv.org/abs/2305.01610: features are
chosen by the difference of their means, then a logistic regression is fitted on those only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RIDGE = 1e-3
"""Weight of `|w|^2 / 2` in the summed loss of a sparse probe, with features scaled to root mean square 1 where they fire."""
DENSE_RIDGE = 1.0
"""The same for the dense probe on standardised dimensions: scikit-learn's default, C = 1."""
_STEPS = 60

Columns = Mapping[int, tuple[Int[np.ndarray, " nnz"], Float[np.ndarray, " nnz"]]]
"""Units and non-zero values of each feature."""


@dataclass(frozen=True)
class SparseProbe:
    """`sigmoid(sum_i weight_i x_i + bias)` over a few features, in the units of their activations."""

    features: tuple[int, ...]
    weight: Float[np.ndarray, " k"]
    bias: float

    def scores(self, columns: Columns, n_units: int) -> Float[np.ndarray, " n_units"]:
        """Logits of all units."""
        out = np.full(n_units, self.bias)
        for feature, weight in zip(self.features, self.weight, strict=True):
            unit, value = columns[feature]
            out[unit] += weight * value
        return out


def fit_sparse(features: Sequence[int], columns: Columns, true: Bool[np.ndarray, " n_units"], ridge: float = RIDGE) -> SparseProbe:
    """Fit a logistic probe on some features, by Newton's method in float64 with step halving if the loss would rise.

    Units on which none of them fires are identical and handled as one. Memory: 8 bytes per feature and unit on which
    any of them fires, twice.
    """
    chosen = tuple(int(feature) for feature in features)
    rows = np.unique(np.concatenate([columns[feature][0] for feature in chosen])) if chosen else np.zeros(0, np.int64)
    x = np.zeros((len(rows) + 1, len(chosen) + 1))
    scale = np.ones(len(chosen))
    for i, feature in enumerate(chosen):
        unit, value = columns[feature]
        scale[i] = np.sqrt(np.mean(np.square(value, dtype=np.float64))) if len(value) else 1.0
        x[np.searchsorted(rows, unit), i] = value / scale[i]
    x[:, -1] = 1
    n = np.ones(len(x))
    n[-1] = len(true) - len(rows)
    hits = np.append(true[rows].astype(np.float64), true.sum() - true[rows].sum())
    share = np.clip(hits.sum() / n.sum(), 1e-12, 1 - 1e-12)
    theta = np.append(np.zeros(len(chosen)), np.log(share / (1 - share)))
    penalty = np.append(np.full(len(chosen), ridge), 1e-12)

    def loss(at: np.ndarray) -> float:
        z = x @ at
        return float((n * np.logaddexp(0, z)).sum() - hits @ z + 0.5 * (penalty * at**2).sum())

    now = loss(theta)
    for _ in range(_STEPS):
        prob = 0.5 * (1 + np.tanh(0.5 * (x @ theta)))
        gradient = x.T @ (n * prob - hits) + penalty * theta
        bend = (x * (n * prob * (1 - prob))[:, None]).T @ x + np.diag(penalty + 1e-9)
        step = -np.linalg.solve(bend, gradient)
        gain = -float(gradient @ step)
        if gain <= 1e-9 * max(now, 1e-3):
            break
        length = 1.0
        while (trial := loss(theta + length * step)) > now - 1e-4 * length * gain and length > 1e-6:
            length /= 2
        theta, now = theta + length * step, trial
    return SparseProbe(chosen, theta[:-1] / scale, float(theta[-1]))


@dataclass(frozen=True)
class DenseProbe:
    """One-against-rest probes of all classes on raw vectors."""

    weight: Float[Tensor, "d n_classes"]
    bias: Float[Tensor, " n_classes"]

    def scores(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n n_classes"]:
        """Logits."""
        return x @ self.weight + self.bias


def fit_dense(x: Float[Tensor, "n d"], true: Bool[Tensor, "n n_classes"], ridge: float = DENSE_RIDGE, steps: int = 200) -> DenseProbe:
    """Logistic probes on raw vectors, all classes at once, by L-BFGS on standardised dimensions."""
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    z, y = (x - mean) / std, true.to(x.dtype)
    share = y.mean(0).clamp(1 / (2 * len(y)), 1 - 1 / (2 * len(y)))
    weight = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.logit(share).clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.addmm(bias, z, weight)
        loss = (torch.nn.functional.softplus(logits) - y * logits).sum() / len(z) + 0.5 * ridge * weight.square().sum() / len(z)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    scaled = weight.detach() / std[:, None]
    return DenseProbe(scaled, bias.detach() - mean @ scaled)


@dataclass(frozen=True)
class Judged:
    """Scores of logits on validation units."""

    accuracy: float
    """At probability 0.5."""
    f1: float
    """At the best threshold on training units."""
    auroc: float
    ap: float


def judge(
    train_scores: Float[np.ndarray, " n"], train_true: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " m"], true: Bool[np.ndarray, " m"]
) -> Judged:
    """Score logits on validation units; NaN if all of these are of the class, or none."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, threshold = precision_recall_curve(train_true, train_scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    said = scores >= threshold[int(f1[:-1].argmax())]
    n_right = int((said & true).sum())
    both = bool(true.any()) and not bool(true.all())
    return Judged(
        accuracy=float(((scores > 0) == true).mean()),
        f1=2 * n_right / max(int(said.sum()) + int(true.sum()), 1) if true.any() else float("nan"),
        auroc=float(roc_auc_score(true, scores)) if both else float("nan"),
        ap=float(average_precision_score(true, scores)) if true.any() else float("nan"),
    )
