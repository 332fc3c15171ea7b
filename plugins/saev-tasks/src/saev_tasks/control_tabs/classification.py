"""Classification: choose a picture, edit its features, watch the predicted classes change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from saev_tasks.control_tabs.edited_picture import EditedPicture, Picture
from saev_tasks.control_tabs.requests import Answer, Pane, pack
from saev_tasks.control_tabs.state import State


class Classification(Pane):
    """Answers the tab's requests."""

    task = "classification"
    train = "saev task classification train {run}"

    def among(self, edited: EditedPicture) -> list[list[Any]]:
        """Classes of held-out pictures, sorted by name."""
        labels, counts = np.unique(edited.library.labels[edited.heldout], return_counts=True)
        names = edited.probe.classes
        found = [[int(label), names[label], int(n)] for label, n in zip(labels, counts, strict=True) if 0 <= label < len(names)]
        return sorted(found, key=lambda one: str(one[1]).lower())

    def of_class(self, edited: EditedPicture, label: int) -> np.ndarray[Any, Any]:
        """Held-out pictures with a label."""
        held = edited.heldout
        return held if label < 0 else held[edited.library.labels[held] == label]

    def shown(self, edited: EditedPicture, picture: Picture) -> Answer:
        """Logits, the picture's class, and the class the probe most confuses it with."""
        logits = picture.before.cpu().numpy()
        order = np.argsort(-logits, kind="stable")
        label = int(edited.library.labels[picture.image])
        mine = label if 0 <= label < len(order) else int(order[0])
        return {"before": pack(logits.astype("<f4")), "truth": label, "mine": mine, "other": next(int(c) for c in order if c != mine)}

    def row(self, edited: EditedPicture, picture: Picture, feature: int) -> Answer:
        """Also the slopes if logits are linear in a strength, so that the page can follow a slider without the server."""
        row = super().row(edited, picture, feature)
        if edited.readout.linear:
            up, down, effect = edited.line(picture, feature)
            row |= {"up": up, "down": down, "effect": pack(effect.cpu().numpy().astype("<f4"))}
        return row

    def changed(self, edited: EditedPicture, picture: Picture, state: State) -> Answer:
        """Exact logits after the edits."""
        return {"after": pack(edited.after(picture, edited.edits(state.edits)).cpu().numpy().astype("<f4"))}

    def start(self, edited: EditedPicture, asked: Mapping[str, Any]) -> Answer:
        """Also the probe's accuracy."""
        accuracy = edited.probe.card.get("accuracy")
        told = super().start(edited, asked)
        if isinstance(accuracy, int | float):
            told["about"] += f" Its accuracy on held-out pictures is {100 * accuracy:.0f} %."
        return told
