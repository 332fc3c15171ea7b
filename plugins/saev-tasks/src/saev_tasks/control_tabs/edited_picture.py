"""`Desk`: a probe and an SAE with a picture before them: what the probe says of it, and what it says when features change.

Everything that does not depend on a slider is worked out once a picture: its vectors, which are the recorded ones, and their
codes. Where the probe reads the very site of the SAE, an edit changes its logits by a line, so that a page can work out itself
what a slider does; where it reads a later one, only the blocks in between run again. No picture is opened. Knows no gradio.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt16
from torch import Tensor

from saev_core.errors import ProbeError, RunError, StoreError
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.downstream import Rest
from saev_core.interventions.edit import Edit, writes_where_it_reads
from saev_core.sae.codes import Codes
from saev_core.tasks.fit_probes import split
from saev_core.tasks.probe import Probe
from saev_core.tasks.viewer_tab import SAEView
from saev_core.types import Site

log = logging.getLogger(__name__)

KEEP = 16
"""Pictures that are kept ready, with their vectors and codes."""


@dataclass
class Scene:
    """One picture, ready to be edited."""

    image: int
    x: Float[Tensor, "n_tokens d_model"]
    """Vectors at the SAE's site, prefix tokens first."""
    codes: Codes
    """Of every token; where the SAE reads the mean over patches, of that mean alone."""
    before: Float[Tensor, "*rows n_classes"] = field(default_factory=lambda: torch.zeros(0))
    """Logits without edits: of the picture, or for segmentation of every patch."""


class Desk:
    """A run's probe and one of its SAEs.

    Raises:
        ProbeError: there is no probe, it is of other activations, or an edit at the SAE's site cannot reach it.
        SteerError: this SAE's features cannot be changed in the model.
    """

    def __init__(self, view: SAEView, task: str) -> None:
        """
        Args:
            view: the SAE, as the viewer holds it.
            task: `classification` or `semseg`: whose probe.
        """
        self.view, self.library, self.task = view, view.library, task
        self.store = self.library.store
        self.probe = Probe.load(self.library.run.path / "tasks" / task / "probe")
        self.probe.check(self.store)
        self.checkpoint = view.checkpoint
        writes_where_it_reads(self.checkpoint)
        self.target = Site.parse(self.probe.site)
        self.site = self.target if self.checkpoint.read.layer == "all" else Site.parse(self.checkpoint.site)
        if self.target.layer < self.site.layer:
            raise ProbeError(
                f"The probe reads block {self.target.layer} of the model and this SAE works at block {self.site.layer}, which comes later: "
                f"no change there can reach the probe. Train one with --site {self.site.layer}, or choose another SAE."
            )
        self.linear = self.site == self.target
        if task == "semseg" and self.checkpoint.read.tokens != "patches":
            raise ProbeError(
                "This SAE reads the picture as a whole, so it cannot change single patches; choose one that was trained on patches."
            )
        reads, pool = self.checkpoint.read.tokens, self.probe.tokens
        if self.linear and reads != "patches" and (reads == "cls") != (pool == "cls"):
            raise ProbeError(
                f"This SAE reads the {reads} of a picture and the probe its {pool}, at the same block: no change can reach it. "
                f"Train a probe with --tokens {reads}, or at a later block."
            )
        self.n_prefix: int = self.store.grid.n_prefix
        # At its own site a CLS token hears nothing of the patches: there the edit is made on the token itself.
        self.prefix = True if self.linear and self.probe.tokens == "cls" else None
        self._lock = RLock()
        self._scenes: OrderedDict[int, Scene] = OrderedDict()
        self._speak: dict[tuple[int, int], list[int]] = {}

    @cached_property
    def heldout(self) -> Int[np.ndarray, " n"]:
        """Pictures that the probe was not trained on, ascending; all of them where it does not say."""
        card, n_images = self.probe.card, self.library.n_images
        said = {**card, **(card.get("split") or {})}
        if said.get("val"):  # validated on another run
            return np.arange(n_images)
        there = self.store.done(self.target if self.target in self.store.sites else self.site)
        labels = np.where(there == 1, self.library.labels if self.task == "classification" else 0, -1)
        try:
            return split(labels, float(said["val_share"]), int(said["seed"]), stratify=self.task == "classification")[1]
        except (KeyError, TypeError, ValueError, ProbeError) as error:
            log.info("the probe does not say on which pictures it was trained (%s)", error)
            return np.arange(n_images)

    @cached_property
    def kept(self) -> Int[Tensor, " n"]:
        """Classes that the probe may tell: not those that were ignored when it was trained."""
        names, ignored = self.probe.classes, [str(one) for one in self.probe.card.get("ignore") or ()]
        return torch.tensor([c for c, name in enumerate(names) if name not in ignored and str(c) not in ignored])

    @cached_property
    def masks(self) -> UInt16[np.ndarray, "n_images n_patches"] | None:
        """The class of every patch, where the pictures have masks."""
        found: np.ndarray | None = self.store.mask
        return found

    def scene(self, image: int) -> Scene:
        """The picture, from what is kept or made ready now.

        Raises:
            RunError: it was not recorded.
            StoreError: what was recorded is damaged, or not finite.
        """
        with self._lock:
            if image not in self._scenes:
                self._scenes[image] = self._made(image)
                while len(self._scenes) > KEEP:
                    self._scenes.popitem(last=False)
            self._scenes.move_to_end(image)
            return self._scenes[image]

    @torch.no_grad()
    def _made(self, image: int) -> Scene:
        if self.store.done(self.site)[image] != 1:
            raise RunError(f"Picture {image} was not recorded: it could not be read.")
        parts: list[Literal["prefix", "patches"]] = ["prefix", "patches"] if self.n_prefix else ["patches"]
        x = torch.cat([torch.from_numpy(self.store.read(self.site, [image], part)[0]) for part in parts])
        x = x.to(self.checkpoint.sae.W_dec.device, torch.float32)
        if not bool(torch.isfinite(x).all()):
            raise StoreError(f"What was recorded of picture {image} is not finite (NaN or infinite); record it again, in float32.")
        read = self.checkpoint.read
        vectors = x[self.n_prefix :].mean(0, keepdim=True) if read.tokens == "mean" else x
        codes = self.checkpoint.codes(vectors if read.clamp is None else vectors.clamp(-read.clamp, read.clamp))
        scene = Scene(image, x, codes)
        scene.before = self._said(x)
        return scene

    @cached_property
    def _rest(self) -> Rest:
        """The model from the SAE's site on. It begins with recorded vectors, so that any picture will do."""
        return Rest.blank(self.library.model, self.site)

    def _said(self, x: Float[Tensor, "n_tokens d_model"]) -> Float[Tensor, "*rows n_classes"]:
        """What the probe says if these vectors leave the SAE's site."""
        if self.linear:
            return self._logits(x)
        with self._lock:
            rest = self._rest
        seen = rest.on(x[None].to(rest.images.device)).record([self.target])[self.target][0]
        return self._logits(seen)

    def _logits(self, x: Float[Tensor, "n_tokens d_model"]) -> Float[Tensor, "*rows n_classes"]:
        """What the probe says of the vectors at its site."""
        patches, tokens = x[self.n_prefix :], self.probe.tokens
        if self.task == "semseg":
            return self.probe(patches.float())
        if tokens == "cls":
            return self.probe(x[0].float())
        if tokens.startswith("token:"):
            return self.probe(patches[int(tokens.partition(":")[2])].float())
        return self.probe(patches.float().mean(0))

    def edits(self, pairs: Sequence[tuple[int, float]], where: Sequence[int] | None = None) -> list[Edit]:
        """Edits of (feature, strength) as `State` has them: below 0 scaled down, above 0 added to.

        Raises:
            SteerError: such a feature never fires, so that there is no largest value to add.
        """
        return [self._edit(feature, strength, where) for feature, strength in pairs if strength != 0]

    def _edit(self, feature: int, strength: float, where: Sequence[int] | None = None) -> Edit:
        given: dict[str, Any] = {"where": where, "prefix": self.prefix, "site": str(self.site)}
        unit = float(self.view.index.max[feature])
        if strength < 0:
            return Edit.of(self.checkpoint, unit, feature, 1 + strength, "scale", **given)
        return Edit.of(self.checkpoint, unit, feature, strength, "add", **given)

    @torch.no_grad()
    def after(self, scene: Scene, edits: Sequence[Edit]) -> Float[Tensor, "*rows n_classes"]:
        """Logits with edits; without any that changes something the very ones of before."""
        known = None if self.checkpoint.read.tokens == "mean" else scene.codes
        x = apply_edits(scene.x, list(edits), self.checkpoint, n_prefix=self.n_prefix, codes=known)
        if x is scene.x:
            return scene.before
        return self._said(x)

    def values(self, scene: Scene, feature: int) -> Float[Tensor, " n_tokens"]:
        """A feature's value on every token of the picture."""
        out = torch.zeros(len(scene.codes))
        here = scene.codes.feature == feature
        out[scene.codes.rows[here].cpu()] = scene.codes.value[here].float().cpu()
        return out.expand(len(scene.x)) if self.checkpoint.read.tokens == "mean" else out

    def line(self, scene: Scene, feature: int) -> tuple[float, float, Float[Tensor, " n_classes"]]:
        """How the picture's logits move with a strength s at the probe's own site: by `effect` times `up` s for s > 0, `down` s below."""
        edit = self._edit(feature, -0.5)
        value, chosen = self.values(scene, feature), edit.chosen(len(scene.x), self.n_prefix).float()
        tokens, n = self.probe.tokens, self.n_prefix
        if tokens == "cls":
            up, down = chosen[0], value[0] * chosen[0]
        elif tokens.startswith("token:"):
            at = n + int(tokens.partition(":")[2])
            up, down = chosen[at], value[at] * chosen[at]
        else:
            up, down = chosen[n:].mean(), (value * chosen)[n:].mean()
        effect: Tensor = self.probe.weight @ edit.direction.float()
        return float(up) * float(self.view.index.max[feature]), float(down), effect

    @cached_property
    def _directions(self) -> Float[Tensor, "d_sae d_model"]:
        """What one unit of each feature's activation adds, raw units."""
        return torch.as_tensor(self.checkpoint.sae.frozen().W_dec.detach() / self.checkpoint.norm.factor).float()

    @cached_property
    def _mean_row(self) -> Float[Tensor, " d_model"]:
        return torch.as_tensor(self.probe.weight.mean(0))

    def push(self, label: int) -> Float[np.ndarray, " d_sae"]:
        """How far one unit of each feature raises a class over the mean of all; where the probe reads a later site, on the direct way."""
        return np.asarray((self._directions @ (self.probe.weight[label] - self._mean_row)).cpu())

    def features_for(self, label: int, n: int, scene: Scene | None = None) -> list[int]:
        """Features that speak for a class, the weightiest first: what the task proposed, or else those that fire on its pictures and push
        the probe towards it.

        Segmentation, where the class is seen on the picture: those that push its own patches towards it.
        """
        if scene is not None and self.task == "semseg":
            gain = self._here(label, scene)
            if gain is not None:
                return _best(gain, n)
        if (label, n) not in self._speak:
            self._speak[label, n] = self._everywhere(label, n)
        return self._speak[label, n]

    def _everywhere(self, label: int, n: int) -> list[int]:
        index, push = self.view.index, self.push(label)
        told = self.library.run.result(self.task).get("propose") or {}
        if told.get("sae") == self.view.name and (proposed := (told.get("classes") or {}).get(self.probe.classes[label])):
            # Found on training pictures by the task itself.
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
    def _here(self, label: int, scene: Scene) -> Float[np.ndarray, " d_sae"] | None:
        """What each feature adds to the margin, over the next best class, by which patches are told as `label`; None if none is."""
        logits = scene.before[:, self.kept]
        mine = (self.kept[logits.argmax(1)] == label).nonzero().view(-1)
        if not len(mine) or len(self.kept) < 2:
            return None
        rival = self.kept[logits[mine].topk(2).indices[:, 1]]
        margin = torch.zeros(len(scene.x), self.probe.d)
        margin[self.n_prefix + mine] = self.probe.weight[label] - self.probe.weight[rival]
        rows, feature, value = scene.codes.rows.cpu(), scene.codes.feature.cpu(), scene.codes.value.float().cpu()
        here = torch.isin(rows, self.n_prefix + mine)
        gain = value[here] * (margin[rows[here]] * self._directions[feature[here]]).sum(1)
        return np.bincount(feature[here].numpy(), gain.numpy(), scene.codes.d_sae)


def _best(score: Float[np.ndarray, " d_sae"], n: int) -> list[int]:
    """The features of the largest scores above 0, best first."""
    order = np.argsort(-score, kind="stable")[:n]
    return [int(feature) for feature in order if score[feature] > 0]


__all__ = ["KEEP", "Desk", "Scene"]
