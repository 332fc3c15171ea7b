"""`EditedPicture`: a probe's predictions for a run's pictures, with and without edits of an SAE's features.

Everything that does not depend on a slider is computed once per picture: its recorded vectors, their codes, the unedited
logits. If the probe reads the SAE's site, logits are linear in a strength on either side of 0, and the page gets the slopes
to follow a slider without the server. Opens no image file. Independent of gradio.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import RLock

import numpy as np
import torch
from jaxtyping import Float, Int, UInt16
from torch import Tensor

from saev_core import Codes, Edit, Probe, apply_edits
from saev_core.errors import ProbeError, RunError
from saev_core.tasks.fit_probes import train_test_indices
from saev_core.tasks.viewer_tab import SAEView
from saev_tasks.shared.readout import Readout

log = logging.getLogger(__name__)

N_PICTURES_KEPT = 16
"""Number of cached pictures, with their vectors and codes."""


@dataclass(frozen=True)
class Picture:
    """One picture, ready to be edited."""

    image: int
    x: Float[Tensor, "n_tokens d_model"]
    """Vectors at the SAE's site, prefix tokens first."""
    codes: Codes
    """Codes of every token; of the mean only, if the SAE reads the mean over patches."""
    before: Float[Tensor, "*rows n_classes"]
    """Logits without edits: of the picture, or in segmentation of every patch."""


class EditedPicture:
    """A run's probe and one of its SAEs.

    Raises:
        ProbeError: there is no probe, or it was trained on different activations.
        SteerError, StoreError: as `Readout`.
    """

    def __init__(self, view: SAEView, task: str) -> None:
        """
        Args:
            view: the viewer's SAE.
            task: `classification` or `semseg`: the task that trained the probe.
        """
        self.view, self.library, self.task = view, view.library, task
        self.store = self.library.store
        self.probe = Probe.load(self.library.run.path / "tasks" / task / "probe")
        self.probe.check(self.store)
        self.checkpoint = view.checkpoint
        self.readout = Readout(self.probe, self.checkpoint, self.store, lambda: self.library.model)
        self._lock = RLock()
        self._pictures: OrderedDict[int, Picture] = OrderedDict()
        self._speak: dict[tuple[int, int], list[int]] = {}

    @cached_property
    def heldout(self) -> Int[np.ndarray, " n"]:
        """Pictures that the probe was not trained on, ascending; all if its split is unknown."""
        card, n_images = self.probe.card, self.library.n_images
        said = {**card, **(card.get("split") or {})}
        if said.get("val"):  # validated on another run
            return np.arange(n_images)
        there = self.store.done(self.readout.target if self.readout.target in self.store.sites else self.readout.site)
        labels = np.where(there == 1, self.library.labels if self.task == "classification" else 0, -1)
        try:
            return train_test_indices(labels, float(said["val_share"]), int(said["seed"]), stratify=self.task == "classification")[1]
        except (KeyError, TypeError, ValueError, ProbeError) as error:
            log.info("the probe's training split is unknown (%s)", error)
            return np.arange(n_images)

    @cached_property
    def kept(self) -> Int[Tensor, " n"]:
        """Classes that the probe may predict: all but those ignored in training."""
        names, ignored = self.probe.classes, [str(one) for one in self.probe.card.get("ignore") or ()]
        return torch.tensor([c for c, name in enumerate(names) if name not in ignored and str(c) not in ignored])

    @cached_property
    def masks(self) -> UInt16[np.ndarray, "n_images n_patches"] | None:
        """The class of every patch, if the pictures have masks."""
        found: np.ndarray | None = self.store.mask
        return found

    def picture(self, image: int) -> Picture:
        """The picture, cached or prepared now.

        Raises:
            RunError: it was not recorded.
            StoreError: its recorded activations are damaged or not finite.
        """
        with self._lock:
            if image not in self._pictures:
                self._pictures[image] = self._made(image)
                while len(self._pictures) > N_PICTURES_KEPT:
                    self._pictures.popitem(last=False)
            self._pictures.move_to_end(image)
            return self._pictures[image]

    @torch.no_grad()
    def _made(self, image: int) -> Picture:
        if self.store.done(self.readout.site)[image] != 1:
            raise RunError(f"Picture {image} was not recorded because it could not be read.")
        x = self.readout.tokens([image])[0].to(self.checkpoint.sae.W_dec.device, torch.float32)
        return Picture(image, x, self.readout.codes(x[None]), self.readout.logits(x[None])[0])

    def edits(self, pairs: Sequence[tuple[int, float]], where: Sequence[int] | None = None) -> list[Edit]:
        """Edits from (feature, strength) pairs as in `State`: below 0 scaled down, above 0 added to.

        Raises:
            SteerError: a feature to add never fires, so it has no largest value.
        """
        return [self._edit(feature, strength, where) for feature, strength in pairs if strength != 0]

    def _edit(self, feature: int, strength: float, where: Sequence[int] | None = None) -> Edit:
        peak = float(self.view.index.max[feature])
        if strength < 0:
            return self.readout.edit(peak, feature, 1 + strength, "scale", where)
        return self.readout.edit(peak, feature, strength, "add", where)

    @torch.no_grad()
    def after(self, picture: Picture, edits: Sequence[Edit]) -> Float[Tensor, "*rows n_classes"]:
        """Logits with edits; exactly `before` if no edit has an effect."""
        known = None if self.checkpoint.read.tokens == "mean" else picture.codes
        x = apply_edits(picture.x, list(edits), self.checkpoint, n_prefix=self.readout.n_prefix, codes=known)
        return picture.before if x is picture.x else self.readout.logits(x[None])[0]

    def values(self, picture: Picture, feature: int) -> Float[Tensor, " n_tokens"]:
        """A feature's value on every token of the picture."""
        out = torch.zeros(len(picture.codes))
        here = picture.codes.feature == feature
        out[picture.codes.rows[here].cpu()] = picture.codes.value[here].float().cpu()
        return out.expand(len(picture.x)) if self.checkpoint.read.tokens == "mean" else out

    def line(self, picture: Picture, feature: int) -> tuple[float, float, Float[Tensor, " n_classes"]]:
        """The change in a picture's logits with strength s, if the probe reads the SAE's site: `effect` times `up` s for
        s > 0, and times `down` s below. Same as `Edit.activation`, which is linear in s on either side of 0.
        """
        off = self._edit(feature, -1.0)
        added = replace(off, mode="add", strength=1.0)  # a feature that never fires has unit 0, and adds nothing
        f = self.values(picture, feature)
        chosen = off.chosen(len(picture.x), self.readout.n_prefix)
        up, down = (
            self.readout.pool(((edit.activation(f) - f) * chosen)[None, :, None], self.readout.n_prefix).item() for edit in (added, off)
        )
        return up, -down, self.probe.weight @ off.direction.float()

    @cached_property
    def _mean_row(self) -> Float[Tensor, " d_model"]:
        return torch.as_tensor(self.probe.weight.mean(0))

    def push(self, label: int) -> Float[np.ndarray, " d_sae"]:
        """How much one unit of each feature raises a class over the mean of all; for a probe at a later site, by the direct path only."""
        return np.asarray((self.readout.directions @ (self.probe.weight[label] - self._mean_row)).cpu())

    def features_for(self, label: int, n: int, picture: Picture | None = None) -> list[int]:
        """Features that support a class, strongest first: those the task proposed, or else those that fire on its pictures and push
        the probe towards it.

        In segmentation, if the class is predicted on the picture: those that push its own patches towards it.
        """
        if picture is not None and self.task == "semseg":
            gain = self._here(label, picture)
            if gain is not None:
                return _best(gain, n)
        if (label, n) not in self._speak:
            self._speak[label, n] = self._everywhere(label, n)
        return self._speak[label, n]

    def _everywhere(self, label: int, n: int) -> list[int]:
        index, push = self.view.index, self.push(label)
        told = self.library.run.result(self.task).get("propose") or {}
        if told.get("sae") == self.view.name and (proposed := (told.get("classes") or {}).get(self.probe.classes[label])):
            # Proposed on training pictures by the task itself.
            return [int(row["feature"]) for row in proposed[:n] if int(row["feature"]) < index.d_sae]
        if self.task == "classification" and index.has_labels and self.probe.classes == self.library.classes:
            weight = np.zeros(len(push))
            for feature, share in index.with_label(label):
                if share.lift > 1:
                    weight[feature] = share.of_label * index.mean[feature]
            if found := _best(push * weight, n):
                return found
        return _best(np.where(index.max > 0, push * index.max, 0), n)

    @torch.no_grad()
    def _here(self, label: int, picture: Picture) -> Float[np.ndarray, " d_sae"] | None:
        """What each feature adds to the margin over the runner-up on patches predicted as `label`; None if there are none."""
        logits = picture.before[:, self.kept]
        mine = (self.kept[logits.argmax(1)] == label).nonzero().view(-1)
        if not len(mine) or len(self.kept) < 2:
            return None
        rival = self.kept[logits[mine].topk(2).indices[:, 1]]
        margin = torch.zeros(len(picture.x), self.probe.d)
        margin[self.readout.n_prefix + mine] = self.probe.weight[label] - self.probe.weight[rival]
        rows, feature, value = picture.codes.rows.cpu(), picture.codes.feature.cpu(), picture.codes.value.float().cpu()
        here = torch.isin(rows, self.readout.n_prefix + mine)
        gain = value[here] * (margin[rows[here]] * self.readout.directions[feature[here]]).sum(1)
        return np.bincount(feature[here].numpy(), gain.numpy(), picture.codes.d_sae)


def _best(score: Float[np.ndarray, " d_sae"], n: int) -> list[int]:
    """The features with the largest scores above 0, best first."""
    order = np.argsort(-score, kind="stable")[:n]
    return [int(feature) for feature in order if score[feature] > 0]


__all__ = ["EditedPicture", "Picture"]
