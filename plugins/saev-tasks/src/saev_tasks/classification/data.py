"""The training and validation images of a classification probe, with their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from saev_core import ActivationStore, Probe, Run, Site, TaskContext
from saev_core.errors import ProbeError
from saev_core.tasks.fit_probes import train_test_indices
from saev_tasks.shared.pooling import parse_tokens


@dataclass(frozen=True)
class LabelPart:
    """Labelled images of a store: the training part, or the validation part."""

    store: ActivationStore
    images: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]

    def some(self, n: int, seed: int) -> LabelPart:
        """A random sample of at most `n`, ascending; 0: all."""
        if not n or n >= len(self.images):
            return self
        keep = np.sort(np.random.RandomState(seed % 2**32).permutation(len(self.images))[:n])
        return LabelPart(self.store, self.images[keep], self.labels[keep])

    @property
    def targets(self) -> torch.Tensor:
        return torch.from_numpy(self.labels.astype(np.int64))


@dataclass(frozen=True)
class LabelData:
    """The classes of a run's images, and the training and validation images."""

    classes: list[str]
    train: LabelPart
    val: LabelPart
    cx: TaskContext
    """Context of the validation images: another run's if one was named."""

    @classmethod
    def of(cls, cx: TaskContext, site: Site, told: Mapping[str, Any]) -> LabelData:
        """From a training configuration or a probe's card: `val_share`, `seed`, `val`, `val_dataset`.

        Raises:
            ProbeError: no image has a label, a label is out of range, or all images are of one class; or the
                run to validate on has different classes.
        """
        store = cx.store()
        names = cx.dataset().classes
        labels = labels_of(store, site, names)
        classes = list(names) if names is not None else [str(i) for i in range(int(labels.max()) + 1)]
        if len(seen := np.unique(labels[labels >= 0])) < 2:
            raise ProbeError(
                f"a probe needs at least two classes, and all images of {store.url} are of one ({classes[int(seen[0])]}); record others."
            )
        if told.get("val"):
            other = TaskContext(Run.open(told["val"]), cx.name, device=str(cx.device), dataset=told.get("val_dataset", ""))
            if (theirs := list(other.dataset().classes or ())) != classes:
                raise ProbeError(
                    f"{told['val']} has {len(theirs)} classes, not the same {len(classes)} as {cx.run.path}; "
                    "validate on another split of the same data set."
                )
            val_labels = labels_of(other.store(), site, theirs)
            val = np.flatnonzero(val_labels >= 0)
            here = np.flatnonzero(labels >= 0)
            return cls(classes, LabelPart(store, here, labels[here]), LabelPart(other.store(), val, val_labels[val]), other)
        train, val = train_test_indices(labels, told["val_share"], told["seed"])
        return cls(classes, LabelPart(store, train, labels[train]), LabelPart(store, val, labels[val]), cx)


def labels_of(store: ActivationStore, site: Site, classes: Any) -> Int[np.ndarray, " n_images"]:
    """The class of each image recorded at a site, -1 for others.

    Raises:
        ProbeError: none has a label, or one is out of range.
    """
    labels = np.where(store.done(site) == 1, store.labels, -1)
    if not (labels >= 0).any():
        raise ProbeError(
            f"no image of {store.url} has a label; classification needs a labelled data set, like image-folder with one folder per class."
        )
    if classes is not None and (label := int(labels.max())) >= len(classes):
        raise ProbeError(
            f"{store.url}: image {int(labels.argmax())} has label {label}, outside the {len(classes)} classes of the data set; "
            "fix the labels and record again."
        )
    return np.asarray(labels)


def load_classifier(cx: TaskContext) -> tuple[Probe, LabelData]:
    """The trained probe of a run, checked against the store, and its images.

    Raises:
        ProbeError: there is none, or it was trained on a different model, width, site or list of classes.
    """
    folder = cx.folder("probe")
    if not folder.exists():
        raise ProbeError(f"{cx.run.path} has no classification probe; train one with saev task {cx.name} train {cx.run.path}.")
    probe = Probe.load(folder)
    try:
        pool = parse_tokens(probe.tokens)
    except ValueError:
        raise ProbeError(
            f"{folder} reads {probe.tokens}, not whole images; train one with saev task {cx.name} train {cx.run.path}."
        ) from None
    if "val_share" not in probe.card:
        raise ProbeError(f"{folder} does not record its training split; train one with saev task {cx.name} train {cx.run.path}.")
    site, store = Site.parse(probe.site), cx.store()
    if site not in store.sites:
        raise ProbeError(f"the probe reads {site}, the store holds {', '.join(map(str, store.sites))}; train a probe on this store.")
    probe.check(store, site=str(site))
    data = LabelData.of(cx, site, probe.card)
    probe.check(data.val.store, classes=data.classes)
    pool.check(store)
    return probe, data
