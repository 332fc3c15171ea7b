"""One pass over a store: the classes of each unit, a patch or an image, and the features that fire on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saev_core import ActivationStore, Checkpoint, KnownTruth, StoredVectors, TaskContext
from saev_core.activations.store.meta import NO_CLASS
from saev_core.errors import CheckpointError, DatasetError, RunError
from saev_core.features.naming.concepts import Concepts, Labels, Masks, Truth
from saev_core.support.progress import Track, silent
from saev_tasks.probe1d.gather import Gathered
from saev_tasks.shared.peaks import peaks

Source = Literal["auto", "masks", "labels", "truth"]
Units = Literal["auto", "patches", "images"]
_BATCH_VECTORS = 8192


def concepts_of(cx: TaskContext, checkpoint: Checkpoint, source: Source) -> Concepts:
    """Ground truth of the run's data set: from `source`, or by default its masks, else its labels.

    Raises:
        RunError: it has none of that kind.
        DatasetError: a label or mask value is outside the class list.
    """
    store, patches = cx.store(), checkpoint.read.tokens == "patches"
    if source == "truth":
        dataset = cx.dataset()
        if not isinstance(dataset, KnownTruth) or not patches:
            raise RunError(
                f"{store.url}: the data set has no patch truth, or the SAE does not read patches; use --concepts masks or labels."
            )
        return Truth(dataset, store)
    if source in ("auto", "masks") and patches and store.mask is not None:
        mask_classes = cx.dataset().mask_classes
        known = store.mask[store.mask != NO_CLASS]
        _inside(int(known.max(initial=0)), mask_classes, "mask value")
        return Masks(store.mask, mask_classes)
    if source in ("auto", "labels") and (store.labels >= 0).any():
        classes = cx.dataset().classes
        _inside(int(store.labels.max()), classes, "label")
        return Labels(store.labels, classes)
    what = "neither masks nor labels" if source == "auto" else f"no {source}"
    raise RunError(f"{store.url} has {what} to probe for; record a data set that has, such as image-folder with one folder per class.")


def _inside(highest: int, classes: Sequence[str] | None, what: str) -> None:
    if classes is not None and highest >= len(classes):
        raise DatasetError(f"{what} {highest} is outside the data set's {len(classes)} classes; fix the class list and record again.")


@dataclass
class Side:
    """Units of one side of the split, and the raw vectors of some of them."""

    codes: Gathered
    share: float
    """Units whose raw vectors are kept."""
    rng: np.random.RandomState
    raw: list[Float[Tensor, "n d"]] = field(default_factory=list)
    true: list[Bool[np.ndarray, "n n_classes"]] = field(default_factory=list)

    def add(
        self,
        true: np.ndarray,
        row: np.ndarray,
        feature: np.ndarray,
        value: np.ndarray,
        x: Float[Tensor, "n d"],
        mine: Bool[np.ndarray, " n"],
    ) -> None:
        """Add the units in `mine` of a batch, and their entries."""
        keep = mine[row]
        number = np.cumsum(mine) - 1
        self.codes.add(true[mine], number[row[keep]], feature[keep], value[keep])
        drawn = np.flatnonzero(mine)
        drawn = drawn[self.rng.random_sample(len(drawn)) < self.share]
        if self.share > 0 and len(drawn):
            self.raw.append(x[torch.from_numpy(drawn)].clone())
            self.true.append(true[drawn])

    def dense(self) -> tuple[Float[Tensor, "n d"], Bool[np.ndarray, "n n_classes"]]:
        """The kept raw vectors and their classes."""
        return torch.cat(self.raw), np.concatenate(self.true)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.codes.close()


def sides(
    checkpoint: Checkpoint,
    concepts: Concepts,
    n: tuple[int, int],
    *,
    dense: int,
    memory: int,
    seed: int,
    folder: Path,
) -> tuple[Side, Side]:
    """Empty sides for `n` training and validation units, keeping raw vectors of about `dense` units each at most."""
    made = []
    for name, many in zip(("train", "val"), n, strict=True):
        codes = Gathered(checkpoint.sae.d_sae, len(concepts.names), folder / f".{name}", memory // 2)
        made.append(Side(codes, min(1.0, dense / max(many, 1)), np.random.RandomState(seed % 2**32)))
    return made[0], made[1]


def collect(
    checkpoint: Checkpoint,
    store: ActivationStore,
    concepts: Concepts,
    images: Sequence[Int[np.ndarray, " n"]],
    into: Sequence[Side],
    per_image: bool,
    ignore: Bool[np.ndarray, " n_classes"],
    *,
    track: Track = silent,
) -> None:
    """Fill both sides with the units of their images.

    Args:
        per_image: a unit is an image, a feature's value the maximum over its patches, a raw vector their mean, and a class is
            true of it if it is of any patch; otherwise a unit is a patch, and a label is true of all patches of its image.
        ignore: classes whose units are excluded.

    Raises:
        CheckpointError: the SAE reads vectors from several sites.
    """
    vectors = StoredVectors(store, checkpoint.read)
    if vectors.n_series > 1:
        raise CheckpointError(
            "the SAE reads vectors from all layers, and a probe needs one layer; use an SAE of one layer or of joined layers."
        )
    n_tokens = vectors.n_tokens
    with track("collect", sum(map(len, images)), "images") as meter:
        for side, mine in zip(into, images, strict=True):
            for index, x, _ in vectors.in_order(mine, max(1, _BATCH_VECTORS // n_tokens)):
                true: np.ndarray
                counts: np.ndarray
                true, counts = concepts.of(index)
                codes = checkpoint.codes(x)
                row, feature, value = (part.cpu().numpy() for part in (codes.rows, codes.feature, codes.value))
                if per_image:
                    row, feature, value = peaks(row // n_tokens, feature, value, checkpoint.sae.d_sae)
                    if concepts.per_patch:
                        # Ignored patches are dropped; an image counts if any of its patches does.
                        true = (true & counts[:, None]).reshape(len(index), -1, true.shape[1]).any(1)
                        counts = np.asarray(counts.reshape(len(index), -1).any(1))
                elif not concepts.per_patch:
                    true, counts = np.repeat(true, n_tokens, 0), np.repeat(counts, n_tokens)
                counts = counts & ~true[:, ignore].any(1)
                side.add(true & ~ignore, row, feature, value, x.mean(1) if per_image else x.flatten(0, 1), counts)
                meter.update(len(index))
