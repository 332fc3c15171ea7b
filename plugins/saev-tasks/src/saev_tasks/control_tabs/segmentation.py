"""Segmentation: mark patches of a picture, edit features there, watch the predicted classes of its pixels change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from saev_tasks.control_tabs.edited_picture import EditedPicture, Picture
from saev_tasks.control_tabs.requests import Answer, Pane, pack
from saev_tasks.control_tabs.state import State
from saev_tasks.semseg.panels import palette
from saev_tasks.semseg.scores import predict
from saev_tasks.shared.patch_vectors import Classes

MAX_IMAGES_BY_CLASS = 100_000
"""Maximum number of pictures for choosing by class, which scans the patches of all."""


class Segmentation(Pane):
    """Answers the tab's requests."""

    task = "semseg"
    train = "saev task semseg train {run}"

    def start(self, edited: EditedPicture, asked: Mapping[str, Any]) -> Answer:
        """Also the patch grid, and a colour per class, as in the task's figures."""
        grid = edited.store.grid
        miou = (edited.probe.card.get("val_scores") or {}).get("miou")
        told = super().start(edited, asked)
        if isinstance(miou, int | float):
            told["about"] += f" Its mean IoU on held-out pictures is {miou:.2f} (1 is perfect)."
        return told | {"rows": grid.rows, "cols": grid.cols, "colours": palette(edited.probe.n_classes).tolist()}

    def among(self, edited: EditedPicture) -> list[list[Any]]:
        """Classes, with the number of held-out pictures that have a patch of each."""
        if edited.masks is None or edited.library.n_images > MAX_IMAGES_BY_CLASS:
            return []
        names = edited.probe.classes
        counts = [int((edited.masks[edited.heldout] == label).any(1).sum()) for label in range(len(names))]
        found = [[label, names[label], n] for label, n in enumerate(counts) if n]
        return sorted(found, key=lambda one: str(one[1]).lower())

    def of_class(self, edited: EditedPicture, label: int) -> Int[np.ndarray, " n"]:
        """Held-out pictures with a patch of a class."""
        held = edited.heldout
        return held if label < 0 or edited.masks is None else held[(edited.masks[held] == label).any(1)]

    def shown(self, edited: EditedPicture, picture: Picture) -> Answer:
        """The class of every pixel; the two that cover most of the picture, the background last."""
        said = labels(edited, picture.before)
        counts = np.bincount(said.reshape(-1), minlength=edited.probe.n_classes).astype(float)
        rank = np.lexsort((-picture.before.mean(0).cpu().numpy(), -counts))
        order = [int(c) for c in rank if c != 0] + [0]
        return {"before": pack(_small(said)), "height": said.shape[0], "width": said.shape[1], "mine": order[0], "other": order[1]}

    def changed(self, edited: EditedPicture, picture: Picture, state: State) -> Answer:
        """The class of every pixel after the edits."""
        return {"after": pack(_small(labels(edited, edited.after(picture, edited.edits(state.edits, state.where)))))}


def labels(edited: EditedPicture, logits: Float[Tensor, "n_patches n_classes"]) -> Int[np.ndarray, "height width"]:
    """The class of each pixel that the model saw, as predicted by the task `semseg`; never an ignored one."""
    some, kept = logits.float(), edited.kept
    best = np.unique(some[:, kept].argmax(1).cpu().numpy())
    winners = some[:, kept[best]]
    # A class beaten by another one on every patch cannot win in between: dropping these saves most of the work.
    hopeless = (winners[:, :, None] > some[:, None, kept]).all(0).any(0)
    left = kept[~hopeless]
    names = [edited.probe.classes[int(c)] for c in left]
    said = predict(some[None][..., left], edited.store.grid, Classes(names))[0]
    return np.asarray(left[said].cpu())


def _small(said: Int[np.ndarray, "height width"]) -> np.ndarray[Any, Any]:
    """Class numbers in two bytes each."""
    return said.astype("<u2")
