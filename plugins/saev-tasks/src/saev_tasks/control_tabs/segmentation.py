"""Segmentation: mark patches of a picture, change features there, watch the predicted classes of its pixels move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from saev_tasks.control_tabs.edited_picture import Desk, Scene
from saev_tasks.control_tabs.requests import Answer, Pane, pack
from saev_tasks.control_tabs.state import State
from saev_tasks.semseg.panels import palette
from saev_tasks.semseg.scores import predict
from saev_tasks.shared.patch_vectors import Classes

MAX_IMAGES_BY_CLASS = 100_000
"""Above so many pictures they cannot be chosen by class: every one's patches would have to be looked at."""


class Segmentation(Pane):
    """What the tab's page asks."""

    task = "semseg"
    train = "saev task semseg train {run}"

    def start(self, desk: Desk, asked: Mapping[str, Any]) -> Answer:
        """Also the patches, and a colour for each class: those of the task's figures."""
        grid = desk.store.grid
        miou = (desk.probe.card.get("val_scores") or {}).get("miou")
        told = super().start(desk, asked)
        if isinstance(miou, int | float):
            told["about"] += f" Its mean IoU on held-out pictures is {miou:.2f} (1 is perfect)."
        return told | {"rows": grid.rows, "cols": grid.cols, "colours": palette(desk.probe.n_classes).tolist()}

    def among(self, desk: Desk) -> list[list[Any]]:
        """Classes by how many held-out pictures have a patch of them."""
        if desk.masks is None or desk.library.n_images > MAX_IMAGES_BY_CLASS:
            return []
        names = desk.probe.classes
        counts = [int((desk.masks[desk.heldout] == label).any(1).sum()) for label in range(len(names))]
        found = [[label, names[label], n] for label, n in enumerate(counts) if n]
        return sorted(found, key=lambda one: str(one[1]).lower())

    def of_class(self, desk: Desk, label: int) -> Int[np.ndarray, " n"]:
        """Held-out pictures with a patch of a class."""
        held = desk.heldout
        return held if label < 0 or desk.masks is None else held[(desk.masks[held] == label).any(1)]

    def shown(self, desk: Desk, scene: Scene) -> Answer:
        """The class of every pixel; the two that cover most of the picture, the background last."""
        said = labels(desk, scene.before)
        counts = np.bincount(said.reshape(-1), minlength=desk.probe.n_classes).astype(float)
        rank = np.lexsort((-scene.before.mean(0).cpu().numpy(), -counts))
        order = [int(c) for c in rank if c != 0] + [0]
        return {"before": pack(_small(said)), "height": said.shape[0], "width": said.shape[1], "mine": order[0], "other": order[1]}

    def changed(self, desk: Desk, scene: Scene, state: State) -> Answer:
        """The class of every pixel after the edits."""
        return {"after": pack(_small(labels(desk, desk.after(scene, desk.edits(state.edits, state.where)))))}


def labels(desk: Desk, logits: Float[Tensor, "n_patches n_classes"]) -> Int[np.ndarray, "height width"]:
    """The class of each pixel that the model saw, as the task `semseg` tells it; never an ignored one."""
    some, kept = logits.float(), desk.kept
    best = np.unique(some[:, kept].argmax(1).cpu().numpy())
    winners = some[:, kept[best]]
    # A class that another one beats on every patch cannot win between them: leaving those out is most of the work.
    hopeless = (winners[:, :, None] > some[:, None, kept]).all(0).any(0)
    left = kept[~hopeless]
    names = [desk.probe.classes[int(c)] for c in left]
    said = predict(some[None][..., left], desk.store.grid, Classes(names))[0]
    return np.asarray(left[said].cpu())


def _small(said: Int[np.ndarray, "height width"]) -> np.ndarray[Any, Any]:
    """Class numbers in two bytes each."""
    return said.astype("<u2")
