"""`Probe`: a linear classifier of RAW activations that says where it was trained; and many of them, trained in one pass.

<folder>/probe.safetensors   `weight [n_classes, d]`, `bias [n_classes]`
<folder>/probe.json          classes, site, tokens, what the store said of itself, and how well it did
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from saev_core.checkpoint import sync, write_synced
from saev_core.errors import ProbeError

FORMAT = 1
"""Version of the layout; another one is refused."""

WEIGHTS, META = "probe.safetensors", "probe.json"

BETAS, EPS = (0.9, 0.999), 1e-8
"""Of AdamW, as torch has them by default."""

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Epoch number -> batches of raw vectors `[n, d]` with targets: class numbers `[n]`, or shares of every class `[n, n_classes]`."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear map from raw activations to class logits, and where it belongs."""

    weight: Float[Tensor, "n_classes d"]
    bias: Float[Tensor, " n_classes"]
    classes: list[str]
    site: str
    """Where in the model its activations were taken, as `str(Site)`."""
    tokens: str = "patches"
    """What it reads of an image: `cls`, `mean` (over the patches), `patches` (each on its own) or `token:N` (patch N)."""
    store: dict[str, Any] = field(default_factory=dict)
    """What the store said of itself: `fingerprint`, `model`, `dataset`, `transform`."""
    card: dict[str, Any] = field(default_factory=dict)
    """How it was trained and how well it does: solver, rates, split, accuracy."""

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.weight.shape[0] != len(self.classes) or self.bias.shape != (len(self.classes),):
            raise ProbeError(
                f"a probe of {len(self.classes)} classes needs weights [{len(self.classes)}, d] and as many biases, "
                f"not {list(self.weight.shape)} and {list(self.bias.shape)}."
            )

    @property
    def d(self) -> int:
        """Width of the activations it takes."""
        return int(self.weight.shape[1])

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n_classes"]:
        """Logits of raw activations.

        Raises:
            ProbeError: they are not `d` wide.
        """
        if x.shape[-1] != self.d:
            raise ProbeError(f"the probe takes activations {self.d} wide, these are {x.shape[-1]}; train a probe on this model and site.")
        return x.to(self.weight.device, self.weight.dtype) @ self.weight.T + self.bias

    def to(self, device: torch.device | str) -> Probe:
        return Probe(self.weight.to(device), self.bias.to(device), self.classes, self.site, self.tokens, self.store, self.card)

    def check(self, store: Any, *, site: str | None = None, classes: Sequence[str] | None = None) -> None:
        """Refuse a store, a site or a list of classes that this probe was not trained for.

        Args:
            store: an `ActivationStore`, or anything else with a `StoreMeta` as `meta`; other images are welcome.
            site: where the activations that it is to read were taken.
            classes: names of the classes, in the order of the labels.

        Raises:
            ProbeError: model, transform, width, site or classes differ; says which.
        """
        meta = store.meta
        for what in ("model", "transform"):
            if what in self.store and self.store[what] != (have := getattr(meta, what)):
                ours, theirs = (value.get("name", value) if isinstance(value, dict) else value for value in (self.store[what], have))
                raise ProbeError(f"the probe was trained on {what} {ours}, the store holds {theirs}; train a probe on this store.")
        if meta.d_model != self.d:
            raise ProbeError(f"the probe takes activations {self.d} wide, the store's are {meta.d_model}; train a probe on this store.")
        if site is not None and site != self.site:
            raise ProbeError(f"the probe was trained at {self.site}, not {site}; train one with --site {site.rpartition('.')[2]}.")
        if classes is not None and list(classes) != self.classes:
            raise ProbeError(
                f"the probe tells {_listed(self.classes)}, the data set has {_listed(classes)}; train a probe on these classes."
            )

    def save(self, folder: str | Path) -> Path:
        """Write the folder: it is there whole or not at all. Replaces a probe that is there already.

        Raises:
            ProbeError: it cannot be written, or the folder holds something else.
        """
        folder = Path(folder)
        weights = save({"weight": self.weight.detach().cpu().contiguous(), "bias": self.bias.detach().cpu().contiguous()})
        names = ("classes", "site", "tokens", "store", "card")
        meta = {"saev_probe": FORMAT, **{name: getattr(self, name) for name in names}, "sha256": hashlib.sha256(weights).hexdigest()}
        try:
            text = json.dumps(meta, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ProbeError(f"{folder}: the probe's description is not JSON ({error}); a card holds plain finite numbers.") from None
        try:
            _write(folder, {WEIGHTS: weights, META: text.encode()})
        except OSError as error:
            raise ProbeError(f"{folder} cannot be written: {error.strerror or error}; free space or choose another folder.") from None
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Probe:
        """The probe in a folder.

        Raises:
            ProbeError: there is none, it is damaged, or of another format version.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            weights = (folder / WEIGHTS).read_bytes()
        except OSError as error:
            raise ProbeError(f"{folder} is not a probe ({error.strerror or error}: {META}, {WEIGHTS}); train one first.") from None
        except ValueError as error:
            raise ProbeError(f"{folder / META} is damaged ({error}); train the probe again.") from None
        version = meta.get("saev_probe") if isinstance(meta, dict) else None
        if version != FORMAT:
            raise ProbeError(f"{folder} is of probe format {version}, this saev reads {FORMAT}; train the probe again.")
        if hashlib.sha256(weights).hexdigest() != meta.get("sha256"):
            raise ProbeError(f"{folder / WEIGHTS} is damaged (its checksum differs); train the probe again.")
        try:
            tensors = load(weights)
            made = cls(
                tensors["weight"],
                tensors["bias"],
                meta["classes"],
                meta["site"],
                meta["tokens"],
                meta.get("store", {}),
                meta.get("card", {}),
            )
        except (KeyError, SafetensorError) as error:
            raise ProbeError(f"{folder} is damaged ({error} is missing or wrong); train the probe again.") from None
        return made.to(device)


class Point(NamedTuple):
    """One setting of a sweep."""

    lr: float
    weight_decay: float


class Fitted(NamedTuple):
    """One trained point of a sweep: weight and bias for raw activations, and the mean loss of every epoch."""

    point: Point
    weight: Float[Tensor, "n_classes d"]
    bias: Float[Tensor, " n_classes"]
    curve: tuple[float, ...]


class Scaling(NamedTuple):
    """The shift and scale, per dimension, to mean 0 and variance 1."""

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]

    @classmethod
    def of(cls, batches: Iterable[Float[Tensor, "n d"]]) -> Scaling:
        """Of streamed vectors, in one pass, summed in float64 about the first batch's mean.

        Raises:
            ProbeError: there are none, or one is not finite.
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
            raise ProbeError("there is nothing to train a probe on: no vector has a label.")
        if not torch.isfinite(squares).all():
            raise ProbeError("activations are not finite (NaN or infinite); record the store again, in float32 if they overflow float16.")
        mean = total / n
        std = (squares / n - mean.square()).clamp(min=0).sqrt()
        # A floor: a dimension that hardly varies must not become all noise, nor a constant one a division by zero.
        floor = (1e-3 * std.square().mean().sqrt()).clamp(min=1e-12)
        return cls(origin + mean, 1 / std.maximum(floor))

    def fold(self, weight: Float[Tensor, "*p n_classes d"], bias: Float[Tensor, "*p n_classes"]) -> tuple[Tensor, Tensor]:
        """Weight and bias for raw vectors, of those for scaled ones; in float64, returned in their dtype."""
        raw = weight.double() * self.scale.double()
        return raw.to(weight.dtype), (bias.double() - raw @ self.mean.double()).to(bias.dtype)


def fit_probes(
    batches: Batches,
    d: int,
    n_classes: int,
    points: Sequence[Point],
    *,
    epochs: int,
    scaling: Scaling | None = None,
    ignore: int | None = -1,
    anneal: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> list[Fitted]:
    """Softmax regressions of every (learning rate, weight decay), all trained on the same batches in the same pass.

    The weights of all points lie in one matrix: a step is two matrix products, whatever the number of points. They begin
    at zero, so the result depends on the order of the batches alone. The loss is the mean cross-entropy over the targets
    that count; weight decay leaves the biases alone.

    Args:
        scaling: how vectors are brought to mean 0 and variance 1, by default measured in a pass of its own (epoch 0); it
            is folded into the answer, which takes RAW vectors.
        ignore: the class number that does not count; rows of shares that are all zero never count.
        anneal: let the learning rate fall along half a cosine, from epoch to epoch.
        after_epoch: is told the number of every epoch that ends.

    Raises:
        ProbeError: nothing to train on, activations that are not finite, or a target outside the classes.

    Source: Loshchilov and Hutter 2017, Decoupled weight decay regularization. https://arxiv.org/abs/1711.05101
    """
    if n_classes < 2:
        raise ProbeError(f"a probe tells classes apart, and there is {n_classes}; use a data set with two or more.")
    if scaling is None:
        scaling = Scaling.of(_counted(x, y, ignore)[0] for x, y in batches(0))
    p, where = len(points), torch.device(device)
    rate = torch.tensor([point.lr for point in points], dtype=dtype, device=where).repeat_interleave(n_classes)[:, None]  # [p * c, 1]
    decay = torch.tensor([point.weight_decay for point in points], dtype=dtype, device=where).repeat_interleave(n_classes)[:, None]
    # The bias is one more column, of a vector that is one there: one product for both.
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
            # Of the cross-entropy with shares s that sum to |s|: |s| softmax - s.
            grad = (log_p.exp_() * shares.sum(1)[:, None, None]).sub_(shares[:, None]).div_(weight)
            grad = grad.view(len(xs), p * n_classes).T @ xs  # [p * c, d + 1]
            step += 1
            theta[:, :-1].mul_(shrink)
            first.lerp_(grad, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
            root = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPS)
            theta.sub_(first / root * (lr / (1 - BETAS[0] ** step)))
        if not n:
            raise ProbeError("there is nothing to train a probe on: no vector has a label.")
        if epoch == 0 and not torch.isfinite(loss).any():
            raise ProbeError("activations are not finite (NaN or infinite); record the store again, in float32 if they overflow float16.")
        curves.append(loss / n)
        after_epoch(epoch)
    stacked = theta.view(p, n_classes, d + 1)
    weights, biases = Scaling(mean, scale).fold(stacked[..., :-1], stacked[..., -1])
    curve = torch.stack(curves, 1).tolist() if curves else [[]] * p
    return [Fitted(*each) for each in zip(points, weights.unbind(), biases.unbind(), map(tuple, curve), strict=True)]


def predictions(fitted: Sequence[Fitted], x: Float[Tensor, "n d"]) -> Int[Tensor, "p n"]:
    """The class that every one of several probes gives to raw vectors."""
    weight, bias = torch.stack([each.weight for each in fitted]), torch.stack([each.bias for each in fitted])
    return (x.to(weight.device, weight.dtype) @ weight.flatten(0, 1).T + bias.flatten()).view(len(x), *bias.shape).argmax(-1).T


def shuffled(x: Float[Tensor, "n d"], y: Tensor, batch_size: int, seed: int) -> Batches:
    """Vectors in memory as batches, in another order every epoch; the order depends on seed and epoch alone."""

    def epoch_of(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(np.random.RandomState((seed * 1_000_003 + epoch) % 2**32).permutation(len(x)))
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            yield x[part], y[part]

    return epoch_of


def split(
    labels: Int[np.ndarray, " n_images"] | int, share: float, seed: int, *, stratify: bool = True
) -> tuple[Int[np.ndarray, " n_train"], Int[np.ndarray, " n_val"]]:
    """Image numbers to train on and to validate on, ascending. Depends on the arguments alone.

    Args:
        labels: of all images, those below 0 go to neither side; or how many images there are.
        stratify: take the share of every class; one with a single image is trained on.

    Raises:
        ProbeError: no image has a label, or one side would be empty.
    """
    known = np.zeros(labels, np.int64) if isinstance(labels, int) else np.asarray(labels)
    # RandomState: numpy promises its stream will never change.
    order = np.random.RandomState(seed % 2**32).permutation(len(known))
    order = order[known[order] >= 0]
    if not len(order):
        raise ProbeError("no image has a label; use a data set with labels, or record it again if they were added since.")
    groups = [order[known[order] == label] for label in np.unique(known[order])] if stratify else [order]
    val = np.concatenate([group[: min(max(round(len(group) * share), 1), len(group) - 1)] for group in groups])
    train = np.setdiff1d(order, val)
    if not len(train) or not len(val) or not 0 < share < 1:
        raise ProbeError(
            f"{len(order)} labelled images and a share of {share:g} leave none to train on or to validate on; change --val-share."
        )
    return train, np.sort(val)


def _counted(x: Tensor, y: Tensor, ignore: int | None) -> tuple[Tensor, Tensor]:
    """The vectors whose target counts, and their targets."""
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
            raise ProbeError(f"targets share {y.shape[1]} classes out, the probe has {n_classes}.")
        return x.to(device, dtype), y.to(device, dtype)
    if len(y) and not 0 <= (low := int(y.min())) <= (high := int(y.max())) < n_classes:
        raise ProbeError(f"label {high if low >= 0 else low} is outside the {n_classes} classes; correct the labels, or name all classes.")
    shares = torch.zeros(len(y), n_classes, dtype=dtype, device=device)
    return x.to(device, dtype), shares.scatter_(1, y.to(device, torch.int64)[:, None], 1)


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """The files as a new folder, moved into place when they are safely on disk."""
    if folder.exists() and not (folder / META).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProbeError(f"{folder} holds something else than a probe; choose another folder.")
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}{end}") for end in (".new", ".old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for name, data in files.items():
            write_synced(new / name, data)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        sync(folder.parent)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
