"""`Pane`: requests from a control tab's page and their answers: plain JSON, including errors. Independent of gradio."""

from __future__ import annotations

import base64
import logging
import random
from collections.abc import Mapping
from threading import RLock
from typing import Any

import numpy as np

from saev_core import SaevError, TabHost
from saev_core.errors import UsageError
from saev_core.tasks.viewer_tab import RunLibrary, SAEView
from saev_tasks.control_tabs.edited_picture import EditedPicture, Picture
from saev_tasks.control_tabs.state import State

log = logging.getLogger(__name__)

N_FEATURES = 6
"""Number of features listed for a class."""
N_TOP = 4
"""Number of top pictures shown for each feature."""

Answer = dict[str, Any]


class Pane:
    """Answers a page's requests; subclasses define a picture's predictions and how edits change them.

    A request is `{"what": name of a public method, "sae": ..., and more}`; the answer to a failed one is `{"error": why}`.
    """

    task = ""
    asks: tuple[str, ...] = ("start", "picture", "step", "features", "find", "after")
    train = ""
    """The command that trains the probe; `{run}` is the run's path."""

    def __init__(self, host: TabHost) -> None:
        self.host = host
        self._edited: dict[str, tuple[float, EditedPicture]] = {}
        self._lock = RLock()

    def __call__(self, asked: Mapping[str, Any]) -> Answer:
        """Answer a request of the page."""
        try:
            what = str(asked.get("what", ""))
            if what not in self.asks:
                raise UsageError(f"Unknown request {what!r}.")
            view = self.host.view(str(asked.get("sae") or self.host.first))
            probe = view.library.run.path / "tasks" / self.task / "probe" / "probe.json"
            if not probe.exists():
                return {"missing": True, "command": self.train.format(run=view.library.run.path)}
            with self._lock:
                made, edited = self._edited.get(view.key, (-1.0, None))
                if edited is None or made != probe.stat().st_mtime:  # retrained while the page was open
                    edited = EditedPicture(view, self.task)
                    self._edited[view.key] = probe.stat().st_mtime, edited
            answer: Answer = getattr(self, what)(edited, asked)
            return answer
        except SaevError as error:
            return {"error": str(error)}
        except Exception as error:
            log.exception("the %s tab failed", self.task)
            return {"error": f"{type(error).__name__}: {error}"}

    def start(self, edited: EditedPicture, asked: Mapping[str, Any]) -> Answer:
        """Data shared by all pictures: classes, held-out pictures, the probe's site."""
        return {
            "classes": edited.probe.classes,
            "among": self.among(edited),
            "n_images": edited.library.n_images,
            "n_heldout": len(edited.heldout),
            "heldout": len(edited.heldout) < edited.library.n_images,
            "linear": edited.readout.linear,
            "about": about(edited),
            "no_pictures": edited.library.no_pictures,
            "first": int(edited.heldout[0]),
        }

    def picture(self, edited: EditedPicture, asked: Mapping[str, Any]) -> Answer:
        """A picture, the probe's predictions for it, and the features that can be edited on it."""
        state = self.state(edited, asked)
        picture = edited.picture(state.image)
        library = edited.library
        width, height = library.size(state.image)
        shown = self.shown(edited, picture)
        mine = self._class(edited, asked.get("mine"), shown["mine"])
        other = self._class(edited, asked.get("other"), shown["other"])
        at = int(np.searchsorted(edited.heldout, state.image))
        held = at < len(edited.heldout) and int(edited.heldout[at]) == state.image
        lists = [edited.features_for(label, N_FEATURES, picture) for label in (mine, other)]
        wanted = [feature for feature, _ in state.edits] + [int(feature) for feature in asked.get("extra") or ()]
        d_sae = edited.view.index.d_sae
        extra = [feature for feature in dict.fromkeys(wanted) if 0 <= feature < d_sae and feature not in lists[0] + lists[1]]
        return {
            **shown,
            "image": state.image,
            "src": library.src(state.image, 448),
            "label": library.label(state.image),
            "place": f"{at + 1} of {len(edited.heldout)} held-out pictures" if held else "the probe was trained on this picture",
            "held": held,
            "size": [width, height],
            "box": relative(edited, state.image),
            "mine": mine,
            "other": other,
            "lists": [[self.row(edited, picture, feature) for feature in features] for features in lists],
            "extra": [self.row(edited, picture, feature) for feature in extra],
        }

    def step(self, edited: EditedPicture, asked: Mapping[str, Any]) -> Answer:
        """The number of the next, previous or a random held-out picture; optionally of one class."""
        found = self.of_class(edited, int(asked.get("among", -1)))
        if not len(found):
            raise UsageError("No held-out picture is of that class.")
        image, by = int(asked.get("image", 0)), int(asked.get("by", 1))
        if by == 0:
            others = found[found != image]
            return {"image": int(random.choice(others if len(others) else found))}
        at = int(np.searchsorted(found, image, side="right" if by > 0 else "left"))
        return {"image": int(found[(at if by > 0 else at - 1) % len(found)])}

    def features(self, edited: EditedPicture, asked: Mapping[str, Any]) -> Answer:
        """The features that support a class."""
        picture = edited.picture(self.state(edited, asked).image)
        label = self._class(edited, asked.get("label"), 0)
        return {"label": label, "rows": [self.row(edited, picture, feature) for feature in edited.features_for(label, N_FEATURES, picture)]}

    def find(self, edited: EditedPicture, asked: Mapping[str, Any]) -> Answer:
        """One feature by its number, or those whose name or label contains the words."""
        text, names = str(asked.get("text", "")).strip().lstrip("#"), edited.view.names
        picture = edited.picture(self.state(edited, asked).image)
        if text.isdecimal():
            State.of({"edits": [[int(text), 0]]}, n_images=1, d_sae=edited.view.index.d_sae, n_patches=1)
            found = [int(text)]
        else:
            words = text.lower().split()
            named = [feature for feature, name in enumerate(names) if words and all(word in name.lower() for word in words)]
            found = sorted(named, key=lambda feature: -float(edited.view.index.max[feature]))[:3]
        if not found:
            raise UsageError(f"No feature name contains {text!r}; enter a number, or search in the Features tab.")
        return {"rows": [self.row(edited, picture, feature) for feature in found]}

    def after(self, edited: EditedPicture, asked: Mapping[str, Any]) -> Answer:
        """The probe's predictions with edits."""
        state = self.state(edited, asked)
        picture = edited.picture(state.image)
        return self.changed(edited, picture, state)

    def state(self, edited: EditedPicture, asked: Mapping[str, Any]) -> State:
        index = edited.view.index
        return State.of(asked, n_images=edited.library.n_images, d_sae=index.d_sae, n_patches=edited.store.grid.n_patches)

    def row(self, edited: EditedPicture, picture: Picture, feature: int) -> Answer:
        """A feature for the page: its name, its top pictures, and its strength on this picture."""
        view = edited.view
        most = float(view.index.max[feature])
        values = edited.values(picture, feature)
        name = view.names[feature] or _labelled(view, feature)
        top = [
            {
                "image": one.index,
                "src": view.library.src(one.index, 96),
                "map": self.host.map_url(view.key, feature, one.index) if view.index.grid.n_patches > 1 else "",
                "box": relative(edited, one.index),
                "ratio": _ratio(view.library, one.index),
            }
            for one in view.index.top(feature, N_TOP)
        ]
        return {"feature": feature, "name": name, "here": float(values.max()) / most if most else 0.0, "dead": most <= 0, "top": top}

    def _class(self, edited: EditedPicture, given: Any, otherwise: int) -> int:
        """A class number from the page, checked."""
        if given is None or given == "" or int(given) < 0:
            return otherwise
        if not 0 <= int(given) < edited.probe.n_classes:
            raise UsageError(f"There is no class {given}; the probe has {edited.probe.n_classes} classes.")
        return int(given)

    def among(self, edited: EditedPicture) -> list[list[Any]]:
        """Classes to choose pictures by: number, name, count of held-out pictures."""
        return []

    def of_class(self, edited: EditedPicture, label: int) -> np.ndarray[Any, Any]:
        """Held-out pictures of a class; below 0: all."""
        return edited.heldout

    def shown(self, edited: EditedPicture, picture: Picture) -> Answer:
        """The probe's predictions for the picture, and the two classes whose features are listed first."""
        raise NotImplementedError

    def changed(self, edited: EditedPicture, picture: Picture, state: State) -> Answer:
        """Predictions with edits."""
        raise NotImplementedError


def about(edited: EditedPicture) -> str:
    """A sentence on where the probe reads and where features are edited."""
    where = f"at block {edited.readout.target.layer} of the model"
    what = {"cls": "the model's summary of the picture (CLS token)", "mean": "the mean over all patches", "patches": "every patch"}
    reads = what.get(edited.probe.tokens, f"one patch ({edited.probe.tokens})")
    way = (
        "features are edited at the same site."
        if edited.readout.linear
        else f"features are edited at block {edited.readout.site.layer}, and the rest of the model runs from there."
    )
    return f"The probe, a linear classifier, reads {reads} {where}; {way}"


def pack(array: np.ndarray[Any, Any]) -> str:
    """Bytes of an array for JSON, little-endian."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def relative(edited: EditedPicture, image: int) -> list[float]:
    """The part of a picture that the model saw: left, top, width and height in percent."""
    width, height = edited.library.size(image)
    crop = edited.library.crop(image)
    sides = crop.left / width, crop.top / height, (crop.right - crop.left) / width, (crop.bottom - crop.top) / height
    return [round(100 * side, 3) for side in sides]


def _ratio(library: RunLibrary, image: int) -> float:
    width, height = library.size(image)
    return round(width / height, 3)


def _labelled(view: SAEView, feature: int) -> str:
    label = view.common_label(feature)
    return f"mostly {label}" if label else ""
