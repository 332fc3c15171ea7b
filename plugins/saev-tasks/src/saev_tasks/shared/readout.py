"""`Readout`: a linear probe's logits for recorded images, with and without edits at an SAE's site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core import ActivationStore, Checkpoint, Codes, Downstream, Edit, Probe, Site, VisionModel, apply_edits
from saev_core.errors import SteerError, StoreError
from saev_core.interventions.edit import writes_where_it_reads
from saev_tasks.shared.pooling import pool_of


class Readout:
    """A probe, an SAE at or before the probe's site, and the store they read.

    If the probe reads the SAE's site, recorded activations are edited and read directly. If it reads a later site, the blocks in
    between run on the edited recorded tokens, so no image file is opened.
    """

    def __init__(
        self,
        probe: Probe,
        checkpoint: Checkpoint,
        store: ActivationStore,
        model: Callable[[], VisionModel] | None = None,
        prefix: bool = False,
    ) -> None:
        """
        Args:
            model: loads the store's model; called on first use, and only for a probe after the SAE's site.
            prefix: edit prefix tokens too.

        Raises:
            SteerError: this SAE's features cannot be written back, or its edits cannot reach the probe.
            StoreError: the store lacks the SAE's site.
        """
        writes_where_it_reads(checkpoint)
        self.probe, self.pool, self.checkpoint, self.store = probe, pool_of(probe), checkpoint, store
        self.n_prefix, self.n_tokens = store.grid.n_prefix, store.grid.n_tokens
        self.target = Site.parse(probe.site)
        # An SAE of all sites edits the site that the probe reads.
        self.site = self.target if checkpoint.read.layer == "all" else Site.parse(checkpoint.site)
        self.linear = self.target == self.site
        """Whether the probe reads the SAE's site, so that its logits are linear in what an edit adds."""
        self._model, self._lock = model, Lock()
        self._refuse_what_cannot_reach()
        if self.site not in store.sites:
            raise StoreError(f"{store.url} lacks {self.site}, the SAE's site; record it with --record-layers={self.site.layer}.")
        if not self.linear and self._model is None:
            raise SteerError(f"the probe reads {self.target}, after the SAE's {self.site}: the rest of the model must run; pass `model`.")
        # The CLS token does not depend on the patches at its own site, so the token itself is edited.
        on_cls = self.linear and self.pool.kind == "cls" and checkpoint.read.tokens == "patches"
        self.prefix: bool | None = True if prefix or on_cls else None

    def _refuse_what_cannot_reach(self) -> None:
        reads = self.checkpoint.read.tokens
        if self.target < self.site:
            raise SteerError(
                f"the probe reads {self.target}, before the SAE's {self.site}, so no edit there can reach the probe; "
                f"train one with --site {self.site.layer} or later, or choose another SAE."
            )
        if self.pool.kind == "patches" and reads != "patches":
            raise SteerError(
                f"the SAE reads the {reads} of an image and the probe each patch, so no single patch can be changed; "
                "choose an SAE of patches."
            )
        if self.linear and reads != "patches" and (reads == "cls") != (self.pool.kind == "cls"):
            raise SteerError(
                f"the SAE reads the {reads} of an image and the probe its {self.pool}, at the same site: no edit reaches it; "
                f"train a probe with --tokens {reads}, or at a later site."
            )

    @cached_property
    def edited(self) -> list[int]:
        """Indices of the tokens that an edit without `where` changes, prefix tokens first."""
        if self.checkpoint.read.tokens == "cls":
            return [0]
        return list(range(0 if self.prefix else self.n_prefix, self.n_tokens))

    @cached_property
    def directions(self) -> Float[Tensor, "d_sae d_model"]:
        """What one unit of each feature adds to raw activations, on the CPU."""
        return (self.checkpoint.sae.frozen().W_dec.detach() / self.checkpoint.norm.factor).cpu()

    def tokens(self, images: Sequence[int] | Int[np.ndarray, " b"]) -> Float[Tensor, "b n_tokens d_model"]:
        """Recorded tokens at the SAE's site, prefix tokens first, in the store's precision.

        Raises:
            StoreError: a chunk is damaged, or a value is not finite.
        """
        parts: list[Any] = ["prefix", "patches"] if self.n_prefix else ["patches"]
        x = torch.cat([torch.from_numpy(self.store.read(self.site, images, part)) for part in parts], 1)
        if not torch.isfinite(x).all():
            bad = images[int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])]
            raise StoreError(f"{self.store.url}: {self.site} of image {bad} is not finite (NaN or infinite); re-record it in float32.")
        return x

    def codes(self, tokens: Float[Tensor, "b n_tokens d_model"], at: Sequence[int] | slice = slice(None)) -> Codes:
        """Features of tokens, image by image; if the SAE reads the mean over patches, one row per image.

        Args:
            at: token indices, prefix tokens first; default: all.
        """
        pooled = self.checkpoint.read.tokens == "mean"
        x = tokens[:, self.n_prefix :].float().mean(1) if pooled else tokens[:, at].flatten(0, 1).float()
        clamp = self.checkpoint.read.clamp
        return self.checkpoint.codes(x if clamp is None else x.clamp(-clamp, clamp))

    @torch.no_grad()
    def logits(self, tokens: Float[Tensor, "b n_tokens d_model"]) -> Float[Tensor, "b *n_patches n_classes"]:
        """The probe's logits, on the CPU, given these tokens at the SAE's site; one row per patch for a patch probe."""
        x = tokens.float()
        if not self.linear:
            downstream = self._downstream()
            x = downstream.on(x.to(downstream.images.device)).record([self.target])[self.target].float()
        return self.probe(self.pool(x, self.n_prefix)).cpu()

    def _downstream(self) -> Downstream:
        with self._lock:
            return self._blank

    @cached_property
    def _blank(self) -> Downstream:
        assert self._model is not None
        return Downstream.blank(self._model(), self.site)

    def edit(self, peak: Any, feature: int, strength: float, mode: Any, where: Sequence[int] | None = None) -> Edit:
        """An edit of a feature at the SAE's site; see `Edit.of`."""
        where = tuple(where) if where else None
        return Edit.of(self.checkpoint, peak, feature, strength, mode, where, prefix=self.prefix, site=str(self.site))

    def under(
        self, image: int, edits: Sequence[Edit]
    ) -> tuple[Float[Tensor, "*n_patches n_classes"], Float[Tensor, "*n_patches n_classes"]]:
        """Logits of an image before and after the edits."""
        x = self.tokens(np.array([image])).float()
        changed = apply_edits(x, list(edits), self.checkpoint, n_prefix=self.n_prefix)
        before = self.logits(x)[0]
        return before, before if changed is x else self.logits(changed)[0]
