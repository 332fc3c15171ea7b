"""Linear classifiers for whole images: an AdamW sweep in one pass, and scikit-learn's logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.support.progress import Track, silent
from saev_core.tasks.fit_probes import ProbeSetting, Scaling, fit_probes, shuffled

NEVER = -1e4
"""Bias of a class without training images."""
_AT_ONCE = 2**24
"""Maximum number of logits held at once."""


@dataclass(frozen=True)
class Candidate:
    """One trained classifier on raw vectors."""

    solver: str
    weight: Float[Tensor, "n_classes d"]
    bias: Float[Tensor, " n_classes"]
    lr: float | None = None
    weight_decay: float | None = None
    c: float | None = None
    converged: bool | None = None


def by_adamw(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    n_classes: int,
    points: Sequence[ProbeSetting],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    scaling: Scaling,
    device: torch.device | str = "cpu",
    track: Track = silent,
) -> list[Candidate]:
    """One candidate per setting, all trained in one pass."""
    with track("train", epochs, "epochs") as meter:
        fitted = fit_probes(
            shuffled(x, y, batch_size, seed), x.shape[1], n_classes, points, epochs=epochs, scaling=scaling, device=device,
            after_epoch=lambda epoch: meter.update(1),
        )  # fmt: skip
    return [Candidate("adamw", one.weight.cpu(), one.bias.cpu(), one.point.lr, one.point.weight_decay) for one in fitted]


def by_logistic(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], n_classes: int, cs: Sequence[float], *, scaling: Scaling, track: Track = silent
) -> list[Candidate]:
    """One candidate per C, by scikit-learn's L-BFGS on the same scaled vectors.

    Source: Pedregosa et al. 2011, Scikit-learn. https://jmlr.org/papers/v12/pedregosa11a.html
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scaled = ((x - scaling.mean) * scaling.scale).float().numpy()
    found = []
    with track("logistic regression", len(cs), "points") as meter:
        for c in cs:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", ConvergenceWarning)
                model = LogisticRegression(C=c, max_iter=1000).fit(scaled, y.numpy())
            rows, biases = torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()
            if len(rows) == 1:  # for two classes it returns only the difference
                rows, biases = torch.cat([-rows / 2, rows / 2]), torch.cat([-biases / 2, biases / 2])
            weight, bias = torch.zeros(n_classes, x.shape[1], dtype=torch.float64), torch.full((n_classes,), NEVER, dtype=torch.float64)
            seen = torch.from_numpy(model.classes_).long()
            weight[seen], bias[seen] = rows, biases
            weight, bias = scaling.fold(weight, bias)
            converged = not any(issubclass(each.category, ConvergenceWarning) for each in said)
            found.append(Candidate("logistic", weight.float(), bias.float(), c=c, converged=converged))
            meter.update(1)
    return found


def accuracy_and_loss(found: Sequence[Candidate], x: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> list[tuple[float, float]]:
    """Accuracy and mean cross-entropy of every candidate, on raw vectors."""
    weight, bias = torch.stack([one.weight for one in found]), torch.stack([one.bias for one in found])
    right, loss = torch.zeros(len(found), dtype=torch.float64), torch.zeros(len(found), dtype=torch.float64)
    step = max(1, _AT_ONCE // bias.numel())
    for start in range(0, len(x), step):
        logits = (x[start : start + step].float() @ weight.flatten(0, 1).T + bias.flatten()).view(-1, *bias.shape)  # [b, p, c]
        mine = y[start : start + step]
        right += (logits.argmax(-1) == mine[:, None]).sum(0)
        loss -= logits.log_softmax(-1).gather(-1, mine[:, None, None].expand(-1, len(found), 1)).squeeze(-1).double().sum(0)
    return [(float(a), float(b)) for a, b in zip(right / len(x), loss / len(x), strict=True)]


def best_of(judged: Sequence[tuple[float, float]]) -> int:
    """Index of the candidate with the highest accuracy; ties go to the lowest loss, then to the first."""
    return min(range(len(judged)), key=lambda i: (-judged[i][0], judged[i][1] if np.isfinite(judged[i][1]) else np.inf, i))
