"""The training and validation images of a segmentation probe, with their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from saev_core import Probe, Run, Site, TaskContext
from saev_core.errors import ProbeError
from saev_core.tasks.fit_probes import train_test_indices
from saev_tasks.shared.patch_vectors import Classes, Truth, recorded


@dataclass(frozen=True)
class MaskPart:
    """Images of one store."""

    truth: Truth
    images: Int[np.ndarray, " n"]

    def some(self, n: int, seed: int) -> MaskPart:
        """A random sample of at most `n`; 0: all."""
        if not 0 < n < len(self.images):
            return self
        return MaskPart(self.truth, np.sort(np.random.RandomState(seed % 2**32).permutation(self.images)[:n]))


@dataclass(frozen=True)
class MaskData:
    """Disjoint training and validation images."""

    classes: Classes
    train: MaskPart
    val: MaskPart

    @classmethod
    def of(cls, cx: TaskContext, site: Site, told: Mapping[str, Any]) -> MaskData:
        """The split described by `told`, in the form stored in a probe's card: `val_share`, `seed`, `ignore`, `val`, `val_dataset`.

        Raises:
            DatasetError: the data set has no masks, or its classes differ from the validation run's.
            StoreError: the site is not recorded.
            ProbeError: a side would be empty.
        """
        store, dataset = cx.store(), cx.dataset()
        classes = Classes.of(dataset.mask_classes, told["ignore"])
        there = recorded(store, site)
        train = Truth(dataset, store, classes)
        if told["val"]:
            other = TaskContext(Run.open(told["val"]), cx.name, device=str(cx.device), dataset=told["val_dataset"])
            if (names := list(other.dataset().mask_classes or ())) != classes.names:
                raise ProbeError(
                    f"{told['val']} has {len(names)} mask classes, not the same {len(classes)} as {cx.run.path}; "
                    "validate on another split of the same data set."
                )
            val = Truth(other.dataset(), other.store(), classes)
            return cls(classes, MaskPart(train, there), MaskPart(val, recorded(other.store(), site)))
        known = np.full(store.n_images, -1)
        known[there] = 0
        mine, theirs = train_test_indices(known, told["val_share"], told["seed"], stratify=False)
        return cls(classes, MaskPart(train, mine), MaskPart(train, theirs))


def load_segmenter(cx: TaskContext) -> tuple[Probe, MaskData]:
    """The trained probe of a run, checked against the store, and its images.

    Raises:
        ProbeError: there is none, or it was trained on a different model, width, site or list of classes.
    """
    folder = cx.folder("probe")
    if not folder.exists():
        raise ProbeError(f"{cx.run.path} has no segmentation probe; train one with saev task {cx.name} train {cx.run.path}.")
    probe = Probe.load(folder, cx.device)
    if "val_share" not in probe.card or probe.tokens != "patches":
        raise ProbeError(f"{folder} is not a segmentation probe; train one with saev task {cx.name} train {cx.run.path}.")
    site = Site.parse(probe.site)
    store = cx.store()
    if site not in store.sites:
        raise ProbeError(f"the probe reads {site}, the store holds {', '.join(map(str, store.sites))}; train a probe on this store.")
    data = MaskData.of(cx, site, probe.card)
    for part in (data.train, data.val):
        probe.check(part.truth.store, site=str(site), classes=data.classes.names)
    return probe, data
