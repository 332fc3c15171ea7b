"""Proposed names of features, each with a score on images that had no part in choosing it, and the right to have none.

A name is chosen on training images and scored on held-out ones: the AUROC with which what the name says (the concept is there,
or how similar the image is to the text) predicts which of them fire the feature. Below a threshold a feature stays unnamed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16
from scipy.sparse import csr_array

from saev_core.auroc import Agreement
from saev_core.errors import CheckpointError, RunError
from saev_core.progress import Track, silent
from saev_core.recovery import KnownTruth
from saev_core.run import write_json
from saev_core.source import ordered, split

if TYPE_CHECKING:
    from saev_core.checkpoint import Checkpoint
    from saev_core.codes import Codes
    from saev_core.config import IndexConfig
    from saev_core.dataset import ImageDataset
    from saev_core.features import FeatureIndex
    from saev_core.store import ActivationStore

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the file of names; another one is refused."""
NO_CLASS = 65535
"""Mask value of a patch whose image has no mask."""
_BATCH_VECTORS = 8192

Source = Literal["text", "truth", "masks", "labels"]
SOURCES: dict[str, str] = {
    "text": "a vocabulary, through the model's text side",
    "truth": "what the data set knows of every patch",
    "masks": "the classes in the data set's masks",
    "labels": "the labels of the images",
}


@dataclass(frozen=True)
class Name:
    """A proposed name."""

    name: str
    score: float
    """AUROC on held-out images."""
    n_positive: int
    """Held-out images that fire the feature."""
    runner_up: str
    """The concept that came second on training images; empty where there is none."""


@dataclass(frozen=True)
class Names:
    """The names of one SAE's features, and what they rest on."""

    source: Source
    checkpoint: str
    """Fingerprint of the SAE."""
    threshold: float
    min_positive: int
    names: dict[int, Name]
    n_features: int
    """Features in all."""
    n_alive: int
    """Features that fire on an image that was looked at."""
    n_few: int
    """Features of these that fire on too few held-out images, or on all but too few: nothing can be said of them."""
    n_train: int
    n_heldout: int
    vocabulary: str = ""
    """sha256 of the vocabulary's file; empty where there is none."""
    about: dict[str, Any] = field(default_factory=dict)
    """What else was noted of how they were made."""

    def save(self, path: Path) -> Path:
        """Write the file as a whole: a reader finds the old names or the new ones."""
        data = asdict(self) | {"saev_names": FORMAT, "names": {str(feature): asdict(name) for feature, name in sorted(self.names.items())}}
        write_json(path, data)
        return path

    @classmethod
    def load(cls, path: Path) -> Names:
        """The names in a file.

        Raises:
            RunError: there is none, or it is of another format.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("saev_names") != FORMAT:
                raise RunError(f"{path} was written by another version; make it again with saev index RUN --names.")
            return cls(**{**data, "names": {int(feature): Name(**name) for feature, name in data["names"].items()}})
        except FileNotFoundError:
            raise RunError(f"{path}: no names were made; make them with saev index RUN --names.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} cannot be read ({error}); make it again with saev index RUN --names, or delete it.") from None

    def told(self) -> str:
        """One line for a person."""
        n_below = self.n_alive - self.n_few - len(self.names)
        return (
            f"{len(self.names):,} of {self.n_alive:,} features that fire have a name, from {SOURCES[self.source]}; {n_below:,} stay "
            f"unnamed below AUROC {self.threshold:g}, {self.n_few:,} fire on too few or too many of {self.n_heldout:,} held-out images"
        )


@dataclass(frozen=True)
class Division:
    """The images that names are made from: chosen on `train`, scored on `heldout`; numbers ascending."""

    train: Int[np.ndarray, " n_train"]
    heldout: Int[np.ndarray, " n_heldout"]
    pool: Bool[np.ndarray, " n_images"]
    """All images that may be chosen on."""


def divide(usable: Bool[np.ndarray, " n_images"], heldout: Bool[np.ndarray, " n_images"], n: int) -> Division:
    """At most `n` images, a third of them held out; the same for the same arguments.

    Raises:
        CheckpointError: no image is left on one side.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    order = rng.permutation(len(usable))
    held = order[usable[order] & heldout[order]][: max(1, n // 3)]
    train = order[usable[order] & ~heldout[order]][: max(1, n - n // 3)]
    if not len(held) or not len(train):
        raise CheckpointError("names are scored on held-out images, and there are none; train with read.heldout=0.1.")
    return Division(np.sort(train), np.sort(held), usable & ~heldout)


def division_of(checkpoint: Checkpoint, store: ActivationStore, n: int) -> Division:
    """`divide` for the images that a checkpoint's reading can use.

    Raises:
        CheckpointError: no image is held out.
    """
    from saev_core.reading import Reading

    read = checkpoint.read
    usable = np.asarray(Reading(store, read).usable.all(0))
    return divide(usable, split(store.n_images, read.heldout, read.split_seed), n)


def fires_from(index: FeatureIndex, share: float) -> Float[np.ndarray, " d_sae"]:
    """The value from which each feature counts as firing: `share` of its 99th percentile.

    Sparse codes have a long tail of small values, and a name is for what a feature is about, not for where it flickers. On `shapes`
    a half brought the names that are right from 55 to 78 in a hundred.
    """
    return np.asarray(np.maximum(share * index.percentile(99.0), np.finfo(np.float32).tiny), np.float32)


def firing(
    checkpoint: Checkpoint,
    store: ActivationStore,
    images: Int[np.ndarray, " n"],
    least: Float[np.ndarray, " d_sae"],
    *,
    per_patch: bool,
    track: Track = silent,
) -> Generator[tuple[Int[np.ndarray, " batch"], csr_array]]:
    """Which features fire, and how strongly, on each image, or each patch, of a batch: `(image numbers, [units, d_sae])`.

    Args:
        least: the value from which a feature fires, `fires_from`.

    Of a reading with several series an image's value is the largest of them, and a patch comes once per series.
    """
    from saev_core.reading import Reading

    n_series, d_sae = Reading(store, checkpoint.read).n_series, checkpoint.sae.d_sae
    device = checkpoint.sae.W_dec.device
    batch = max(1, _BATCH_VECTORS // store.grid.n_patches)
    peak: np.ndarray | None = None
    series = 0
    with track("names", len(images), "images") as meter:
        for index, x in ordered(store, checkpoint.read, images, batch):
            codes = checkpoint.codes(x.flatten(0, 1).to(device))
            row, feature, value = _entries(codes, least)
            if per_patch:
                yield index, csr_array((value, (row, feature)), shape=(x.shape[0] * x.shape[1], d_sae))
            else:
                peak = np.zeros((len(index), d_sae), np.float32) if peak is None else peak
                np.maximum.at(peak, (row // x.shape[1], feature), value)
            series += 1
            if series == n_series:
                if peak is not None:
                    yield index, csr_array(peak)
                peak, series = None, 0
                meter.update(len(index))


def _entries(codes: Codes, least: Float[np.ndarray, " d_sae"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, feature and value of what is strong enough."""
    row, feature, value = (part.cpu().numpy() for part in (codes.rows, codes.feature, codes.value))
    active = value >= least[feature]
    return row[active], feature[active], value[active]


class Concepts(Protocol):
    """Yes-or-no concepts of images, or of their patches."""

    names: list[str]
    per_patch: bool

    def of(self, images: Int[np.ndarray, " b"]) -> tuple[Bool[np.ndarray, "n n_concepts"], Bool[np.ndarray, " n"]]:
        """What is true of each image, or of each patch, and which of them count."""
        ...


class Labels:
    """An image's label, true of the whole image."""

    per_patch = False

    def __init__(self, labels: Int[np.ndarray, " n_images"], classes: Sequence[str] | None) -> None:
        n = max(int(labels.max(initial=-1)) + 1, 0)
        self._labels = labels
        self.names = [classes[i] if classes is not None and i < len(classes) else f"label {i}" for i in range(n)]

    def of(self, images: Int[np.ndarray, " b"]) -> tuple[Bool[np.ndarray, "b n_concepts"], Bool[np.ndarray, " b"]]:
        label = self._labels[images]
        return np.asarray(label[:, None] == np.arange(len(self.names))), np.asarray(label >= 0)


class Masks:
    """The class that most of a patch belongs to, true of the patch."""

    per_patch = True

    def __init__(self, mask: UInt16[np.ndarray, "n_images n_patches"], classes: Sequence[str] | None) -> None:
        self._mask = mask
        known = mask[mask != NO_CLASS]
        n = int(known.max()) + 1 if len(known) else 0
        self.names = [classes[i] if classes is not None and i < len(classes) else f"class {i}" for i in range(n)]

    def of(self, images: Int[np.ndarray, " b"]) -> tuple[Bool[np.ndarray, "n n_concepts"], Bool[np.ndarray, " n"]]:
        classes = self._mask[images].reshape(-1)  # [b * patches]
        return np.asarray(classes[:, None] == np.arange(len(self.names))), np.asarray(classes != NO_CLASS)


class Truth:
    """What a data set knows of every patch, such as `colour: red`."""

    per_patch = True

    def __init__(self, dataset: KnownTruth, store: ActivationStore) -> None:
        self._dataset, self._store = dataset, store
        self.names = [factor.replace("=", ": ", 1) for factor in dataset.factors]

    def of(self, images: Int[np.ndarray, " b"]) -> tuple[Bool[np.ndarray, "n n_concepts"], Bool[np.ndarray, " n"]]:
        grid = self._store.grid
        truth = np.stack([self._dataset.patch_factors(int(i), grid, self._store.crop(int(i))) for i in images])
        flat = truth.swapaxes(1, 2).reshape(-1, len(self.names))  # [b * patches, n_factors]
        return flat == 1, np.asarray((flat >= 0).all(1))


def known_concepts(source: str | None, checkpoint: Checkpoint, store: ActivationStore, dataset: Callable[[], ImageDataset]) -> Concepts:
    """What the data set knows that names can be made from: of `source`, or where it is None of the best one there is.

    Raises:
        RunError: there is nothing to name by.
    """
    patches, labels = checkpoint.read.tokens == "patches", store.labels
    wanted: Sequence[str] = ("truth", "masks", "labels") if source is None else (source,)
    for one in wanted:
        if one == "truth" and patches and isinstance(dataset(), KnownTruth):
            data: Any = dataset()
            return Truth(data, store)
        if one == "masks" and patches and store.mask is not None:
            return Masks(store.mask, dataset().mask_classes)
        if one == "labels" and (labels >= 0).any():
            return Labels(labels, dataset().classes)
    lacks = f"no {source}" if source else "neither labels nor masks"
    raise RunError(
        f"there is nothing to name features by: {store.url} has {lacks}, and the model has no text side or --names no vocabulary; "
        "use a model such as clip with --names, or a data set with labels."
    )


def names_from(
    checkpoint: Checkpoint, store: ActivationStore, index: FeatureIndex, concepts: Concepts, cfg: IndexConfig, *, track: Track = silent
) -> Names:
    """Names from yes-or-no concepts: on training images the most specific of those with the best AUROC, scored on held-out ones.

    Raises:
        CheckpointError: no image is held out.
    """
    parts, least = division_of(checkpoint, store, cfg.names_images), fires_from(index, cfg.names_fires)
    d_sae = checkpoint.sae.d_sae
    tallies = [Agreement(len(concepts.names), d_sae) for _ in range(2)]
    per_image = store.grid.n_patches if concepts.per_patch else 1
    for tally, images in zip(tallies, (parts.train, parts.heldout), strict=True):
        for numbers, fires in firing(checkpoint, store, images, least, per_patch=concepts.per_patch, track=track):
            true, counts = concepts.of(numbers)
            n_series = fires.shape[0] // len(counts)
            counts, owner = np.tile(counts, n_series), np.tile(np.repeat(numbers, per_image), n_series)
            tally.add(np.tile(true, (n_series, 1))[counts], csr_array(fires[counts]), owner[counts])
    train, held = tallies
    choice, _ = train.best(2)
    scores = held.of(choice)
    few = train.fires == 0
    silent_ones = held.n - held.fires if concepts.per_patch else held.n_images - held.images
    few |= (held.images < cfg.names_positive) | (silent_ones < cfg.names_positive)
    source: Source = "truth" if isinstance(concepts, Truth) else "masks" if isinstance(concepts, Masks) else "labels"
    alive = (train.fires > 0) | (held.fires > 0)
    runner = choice[:, 1] if choice.shape[1] > 1 else np.full(d_sae, -1)
    names = chosen(concepts.names, choice[:, 0], runner, scores[:, 0], held.images, few, cfg.names_threshold)
    return Names(
        source, checkpoint.fingerprint, cfg.names_threshold, cfg.names_positive, names, d_sae, int(alive.sum()), int((alive & few).sum()),
        len(parts.train), len(parts.heldout), about={"unit": "patch" if concepts.per_patch else "image", "n_concepts": len(concepts.names)},
    )  # fmt: skip


def chosen(
    concepts: Sequence[str],
    best: Int[np.ndarray, " d_sae"],
    runner_up: Int[np.ndarray, " d_sae"],
    score: Float[np.ndarray, " d_sae"],
    n_positive: Int[np.ndarray, " d_sae"],
    few: Bool[np.ndarray, " d_sae"],
    threshold: float,
) -> dict[int, Name]:
    """The names that are good enough; -1 stands for no concept."""
    named = np.flatnonzero(~few & (best >= 0) & (score >= threshold))
    return {
        int(f): Name(concepts[best[f]], round(float(score[f]), 4), int(n_positive[f]), concepts[runner_up[f]] if runner_up[f] >= 0 else "")
        for f in named
    }


def judge(names: Names, tells: Sequence[tuple[int, str, float]], telling: float = 0.6) -> dict[str, Any]:
    """How often the names are right, where the truth is known.

    A name is right if it is the value that the feature tells best (largest F1 on patches, `Recovery.tells`), said alone (`red`) or
    with its factor (`colour: red`). `precision` is the share of names that are right. A feature that tells no value with an F1 of
    `telling` or more may be about two at once (red circles), where a right name counts as wrong; so of those that do, `found` is the
    share that got the right name, `silent` the share that got none, and `precision_telling` the share of their names that is right.
    """
    truth = {feature: (value, f1) for feature, value, f1 in tells}
    right = {f for f, name in names.names.items() if f in truth and name.name in (truth[f][0], truth[f][0].partition(": ")[2])}
    clear = {f for f, (_, f1) in truth.items() if f1 >= telling}
    n_clear_named = len(clear & names.names.keys())
    return {
        "source": names.source,
        "threshold": names.threshold,
        "n_alive": names.n_alive,
        "n_named": len(names.names),
        "n_unnamed": names.n_alive - len(names.names),
        "n_right": len(right),
        "precision": len(right) / len(names.names) if names.names else None,
        "n_telling": len(clear),
        "found": len(right & clear) / len(clear) if clear else None,
        "silent": 1 - n_clear_named / len(clear) if clear else None,
        "precision_telling": len(right & clear) / n_clear_named if n_clear_named else None,
        "wrong": [
            {"feature": f, "name": names.names[f].name, "score": names.names[f].score, "truth": truth[f][0] if f in truth else "",
             "f1": round(truth[f][1], 4) if f in truth else 0.0}
            for f in sorted(names.names.keys() - right)
        ],
    }  # fmt: skip


__all__ = [
    "FORMAT", "SOURCES", "Concepts", "Division", "Labels", "Masks", "Name", "Names", "Truth",
    "chosen", "divide", "division_of", "fires_from", "firing", "judge", "known_concepts", "names_from",
]  # fmt: skip
