"""Classification: choose a picture, change its features, watch the predicted classes move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from saev_tasks.control_tabs.edited_picture import Desk, Scene
from saev_tasks.control_tabs.requests import Answer, Pane, pack
from saev_tasks.control_tabs.state import State


class Classification(Pane):
    """What the tab's page asks."""

    task = "classification"
    train = "saev task classification train {run}"

    def among(self, desk: Desk) -> list[list[Any]]:
        """Classes of held-out pictures, by name."""
        labels, counts = np.unique(desk.library.labels[desk.heldout], return_counts=True)
        names = desk.probe.classes
        found = [[int(label), names[label], int(n)] for label, n in zip(labels, counts, strict=True) if 0 <= label < len(names)]
        return sorted(found, key=lambda one: str(one[1]).lower())

    def of_class(self, desk: Desk, label: int) -> np.ndarray[Any, Any]:
        """Held-out pictures with a label."""
        held = desk.heldout
        return held if label < 0 else held[desk.library.labels[held] == label]

    def shown(self, desk: Desk, scene: Scene) -> Answer:
        """Logits, the picture's class, and the class that the probe confuses it with most."""
        logits = scene.before.cpu().numpy()
        order = np.argsort(-logits, kind="stable")
        label = int(desk.library.labels[scene.image])
        mine = label if 0 <= label < len(order) else int(order[0])
        return {"before": pack(logits.astype("<f4")), "truth": label, "mine": mine, "other": next(int(c) for c in order if c != mine)}

    def row(self, desk: Desk, scene: Scene, feature: int) -> Answer:
        """Also, where logits are linear in a strength, how they move, so that the page needs nobody while a slider slides."""
        row = super().row(desk, scene, feature)
        if desk.linear:
            up, down, effect = desk.line(scene, feature)
            row |= {"up": up, "down": down, "effect": pack(effect.cpu().numpy().astype("<f4"))}
        return row

    def changed(self, desk: Desk, scene: Scene, state: State) -> Answer:
        """Logits after the edits, exactly."""
        return {"after": pack(desk.after(scene, desk.edits(state.edits)).cpu().numpy().astype("<f4"))}

    def start(self, desk: Desk, asked: Mapping[str, Any]) -> Answer:
        """Also how often the probe is right."""
        accuracy = desk.probe.card.get("accuracy")
        told = super().start(desk, asked)
        if isinstance(accuracy, int | float):
            told["about"] += f" It is right on {100 * accuracy:.0f} % of held-out pictures."
        return told
