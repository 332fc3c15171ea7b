"""Linear probes trained with AdamW: a sweep of learning rates and weight decays in one pass, and the train/test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.errors import ProbeError

BETAS, EPS = (0.9, 0.999), 1e-8
"""AdamW parameters, the defaults of torch."""
Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Epoch number -> batches of raw vectors `[n, d]` with targets: class numbers `[n]`, or class shares `[n, n_classes]`."""


class ProbeSetting(NamedTuple):
    """One point of a sweep."""

    lr: float
    weight_decay: float


class Fitted(NamedTuple):
    """One trained point of a sweep: weight and bias for raw activations, and the mean loss per epoch."""

    point: ProbeSetting
    weight: Float[Tensor, "n_classes d"]
    bias: Float[Tensor, " n_classes"]
    curve: tuple[float, ...]


class Scaling(NamedTuple):
    """Shift and scale per dimension that standardise vectors to mean 0 and variance 1."""

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]

    @classmethod
    def of(cls, batches: Iterable[Float[Tensor, "n d"]]) -> Scaling:
        """Measure streamed vectors in one pass, summed in float64 relative to the first batch's mean.

        Raises:
            ProbeError: there are no vectors, or one is not finite.
        """
        n, origin, total, squares = 0, torch.zeros(0), torch.zeros(0), torch.zeros(0)
        for x in batches:
            wide = x.double()
            if n == 0:
                origin = wide.mean(0)
                total, squares = torch.zeros_like(origin), torch.zeros_like(origin)
            wide = wide - origin
            n, total, squares = n + len(x), total + wide.sum(0), squares + wide.square().sum(0)
        if n == 0:
            raise ProbeError("nothing to train a probe on: no vector has a label.")
        if not torch.isfinite(squares).all():
            raise ProbeError("activations are not finite (NaN or infinite); record the store again, in float32 if they overflow float16.")
        mean = total / n
        std = (squares / n - mean.square()).clamp(min=0).sqrt()
        # A floor, so that dimensions with little variance do not amplify noise and constant ones do not divide by zero.
        floor = (1e-3 * std.square().mean().sqrt()).clamp(min=1e-12)
        return cls(origin + mean, 1 / std.maximum(floor))

    def fold(self, weight: Float[Tensor, "*p n_classes d"], bias: Float[Tensor, "*p n_classes"]) -> tuple[Tensor, Tensor]:
        """Convert weight and bias for standardised vectors to those for raw ones; computed in float64, returned in the input dtype."""
        raw = weight.double() * self.scale.double()
        return raw.to(weight.dtype), (bias.double() - raw @ self.mean.double()).to(bias.dtype)


def fit_probes(
    batches: Batches,
    d: int,
    n_classes: int,
    points: Sequence[ProbeSetting],
    *,
    epochs: int,
    scaling: Scaling | None = None,
    ignore: int | None = -1,
    anneal: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> list[Fitted]:
    """Fit one softmax regression per (learning rate, weight decay), all on the same batches in the same pass.

    The weights of all points form one matrix: a step is two matrix products for any number of points. They are initialised
    to zero, so the result depends only on the batches and their order. The loss is the mean cross-entropy over non-ignored
    targets; biases are not decayed.

    Args:
        scaling: standardisation of the vectors, by default measured in a separate pass (epoch 0); it is folded into the
            returned weights, which take RAW vectors.
        ignore: class number to ignore; rows of shares that are all zero are always ignored.
        anneal: decay the learning rate along half a cosine, per epoch.
        after_epoch: called with the epoch number after each epoch.

    Raises:
        ProbeError: nothing to train on, activations that are not finite, or a target outside the classes.

    Source: Loshchilov and Hutter 2017, Decoupled weight decay regularization. https://arxiv.org/abs/1711.05101
    """
    if n_classes < 2:
        raise ProbeError(f"a probe needs at least two classes, not {n_classes}; use a data set with two or more.")
    if scaling is None:
        scaling = Scaling.of(_counted(x, y, ignore)[0] for x, y in batches(0))
    p, where = len(points), torch.device(device)
    rate = torch.tensor([point.lr for point in points], dtype=dtype, device=where).repeat_interleave(n_classes)[:, None]  # [p * c, 1]
    decay = torch.tensor([point.weight_decay for point in points], dtype=dtype, device=where).repeat_interleave(n_classes)[:, None]
    # The bias is an extra column multiplied by ones: one product for both.
    theta = torch.zeros(p * n_classes, d + 1, dtype=dtype, device=where)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    mean, scale = scaling.mean.to(where, dtype), scaling.scale.to(where, dtype)
    curves: list[Tensor] = []
    step = 0
    for epoch in range(epochs):
        lr = rate * (0.5 * (1 + math.cos(math.pi * epoch / epochs)) if anneal else 1.0)
        shrink = 1 - lr * decay
        loss, n = torch.zeros(p, dtype=torch.float64, device=where), 0.0
        for x, y in batches(epoch):
            kept, shares = _targets(x, y, n_classes, ignore, where, dtype)
            if not len(kept):
                continue
            ones = kept.new_ones(len(kept), 1)
            xs = torch.cat([(kept - mean) * scale, ones], 1)  # [n, d + 1]
            logits = (xs @ theta.T).view(len(xs), p, n_classes)
            weight = shares.sum()
            log_p = logits.log_softmax(-1)
            loss -= torch.einsum("npc,nc->p", log_p, shares).double()
            n += float(weight)
            # Gradient of the cross-entropy with shares s that sum to |s|: |s| softmax - s.
            grad = (log_p.exp_() * shares.sum(1)[:, None, None]).sub_(shares[:, None]).div_(weight)
            grad = grad.view(len(xs), p * n_classes).T @ xs  # [p * c, d + 1]
            step += 1
            theta[:, :-1].mul_(shrink)
            first.lerp_(grad, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
            root = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPS)
            theta.sub_(first / root * (lr / (1 - BETAS[0] ** step)))
        if not n:
            raise ProbeError("nothing to train a probe on: no vector has a label.")
        if epoch == 0 and not torch.isfinite(loss).any():
            raise ProbeError("activations are not finite (NaN or infinite); record the store again, in float32 if they overflow float16.")
        curves.append(loss / n)
        after_epoch(epoch)
    stacked = theta.view(p, n_classes, d + 1)
    weights, biases = Scaling(mean, scale).fold(stacked[..., :-1], stacked[..., -1])
    curve = torch.stack(curves, 1).tolist() if curves else [[]] * p
    return [Fitted(*each) for each in zip(points, weights.unbind(), biases.unbind(), map(tuple, curve), strict=True)]


def predictions(fitted: Sequence[Fitted], x: Float[Tensor, "n d"]) -> Int[Tensor, "p n"]:
    """The class each probe predicts for raw vectors."""
    weight, bias = torch.stack([each.weight for each in fitted]), torch.stack([each.bias for each in fitted])
    return (x.to(weight.device, weight.dtype) @ weight.flatten(0, 1).T + bias.flatten()).view(len(x), *bias.shape).argmax(-1).T


def shuffled(x: Float[Tensor, "n d"], y: Tensor, batch_size: int, seed: int) -> Batches:
    """Batches of in-memory vectors, reshuffled every epoch; the order depends only on seed and epoch."""

    def epoch_of(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(np.random.RandomState((seed * 1_000_003 + epoch) % 2**32).permutation(len(x)))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            yield x[part], y[part]

    return epoch_of


def train_test_indices(
    labels: Int[np.ndarray, " n_images"] | int, share: float, seed: int, *, stratify: bool = True
) -> tuple[Int[np.ndarray, " n_train"], Int[np.ndarray, " n_val"]]:
    """Indices of training and validation images, ascending. Depends only on the arguments.

    Args:
        labels: label of every image, those below 0 go to neither side; or the number of images.
        stratify: split each class by the share; a class with a single image goes to training.

    Raises:
        ProbeError: no image has a label, or one side would be empty.
    """
    known = np.zeros(labels, np.int64) if isinstance(labels, int) else np.asarray(labels)
    # RandomState: numpy guarantees that its stream never changes.
    order = np.random.RandomState(seed % 2**32).permutation(len(known))
    order = order[known[order] >= 0]
    if not len(order):
        raise ProbeError("no image has a label; use a data set with labels, or record it again if they were added since.")
    groups = [order[known[order] == label] for label in np.unique(known[order])] if stratify else [order]
    val = np.concatenate([group[: min(max(round(len(group) * share), 1), len(group) - 1)] for group in groups])
    train = np.setdiff1d(order, val)
    if not len(train) or not len(val) or not 0 < share < 1:
        raise ProbeError(
            f"{len(order)} labelled images with a share of {share:g} leave none for training or validation; change --val-share."
        )
    return train, np.sort(val)


def _counted(x: Tensor, y: Tensor, ignore: int | None) -> tuple[Tensor, Tensor]:
    """The vectors with non-ignored targets, and their targets."""
    if not y.is_floating_point() and ignore is None:
        return x, y
    keep: Tensor = y.sum(1) > 0 if y.is_floating_point() else y.ne(ignore if ignore is not None else -1)
    return (x, y) if bool(keep.all()) else (x[keep], y[keep])


def _targets(
    x: Tensor, y: Tensor, n_classes: int, ignore: int | None, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n n_classes"]]:
    x, y = _counted(x, y, ignore)
    if y.is_floating_point():
        if y.shape[1] != n_classes:
            raise ProbeError(f"targets have shares of {y.shape[1]} classes, the probe has {n_classes}.")
        return x.to(device, dtype), y.to(device, dtype)
    if len(y) and not 0 <= (low := int(y.min())) <= (high := int(y.max())) < n_classes:
        raise ProbeError(f"label {high if low >= 0 else low} is outside the {n_classes} classes; correct the labels, or name all classes.")
    shares = torch.zeros(len(y), n_classes, dtype=dtype, device=device)
    return x.to(device, dtype), shares.scatter_(1, y.to(device, torch.int64)[:, None], 1)
