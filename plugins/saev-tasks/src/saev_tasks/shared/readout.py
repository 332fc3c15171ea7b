"""`Readout`: what a probe of whole images says where the activations at an SAE's site are edited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.activations.store.store import ActivationStore
from saev_core.errors import SteerError, StoreError
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.downstream import Rest
from saev_core.interventions.edit import Edit, writes_where_it_reads
from saev_core.models.base import VisionModel
from saev_core.sae.checkpoint import Checkpoint
from saev_core.tasks.probe import Probe
from saev_core.types import Site
from saev_tasks.shared.pooling import Pool


class Readout:
    """What a probe says of an image whose activations at the SAE's site are edited.

    Where the probe reads that very site, what was recorded is edited and read. Where it sits later, the rest of the model runs
    on the edited tokens; it starts from what was recorded, so no picture is opened.
    """

    def __init__(
        self,
        probe: Probe,
        pool: Pool,
        checkpoint: Checkpoint,
        store: ActivationStore,
        model: VisionModel | None = None,
        prefix: bool = False,
    ) -> None:
        """
        Args:
            model: the store's, for a probe that sits later than the SAE.
            prefix: edit prefix tokens too.

        Raises:
            SteerError: this SAE's features cannot be written back, or what it changes cannot reach the probe.
            StoreError: the store lacks the SAE's site.
        """
        writes_where_it_reads(checkpoint)
        reads = checkpoint.read.tokens
        self.probe, self.pool, self.checkpoint, self.store = probe, pool, checkpoint, store
        self.target = Site.parse(probe.site)
        self.site = checkpoint.selection.at(self.target)
        if self.site not in store.sites:
            raise StoreError(f"{store.url} lacks {self.site}, where the SAE works; record it with --layers={self.site.layer}.")
        if self.target < self.site:
            raise SteerError(f"the probe reads {probe.site}, before the SAE's {self.site}: no edit reaches it; train one there or later.")
        self.n_prefix, self.n_tokens = store.grid.n_prefix, store.grid.n_tokens
        self.linear = self.target == self.site
        # At its own site a CLS token hears nothing of the patches: there the edit is made on the token itself.
        self.prefix: bool | None = True if prefix or (self.linear and pool.kind == "cls" and reads == "patches") else None
        if self.linear and (reads == "cls") != (pool.kind == "cls") and reads != "patches":
            raise SteerError(
                f"the SAE reads the {reads} of an image and the probe its {pool}, at the same site: no edit reaches it; "
                f"train a probe with --tokens {reads}, or at a later site."
            )
        self._rest: Rest | None = None
        if not self.linear:
            if model is None:
                raise SteerError(f"the probe reads {probe.site}, after the SAE's {self.site}: the rest of the model must run; give it.")
            self._rest = Rest.blank(model, self.site)

    @property
    def edited(self) -> list[int]:
        """Numbers of the tokens that edits change if nothing is said of where, prefix tokens first."""
        if self.checkpoint.read.tokens == "cls":
            return [0]
        return list(range(0 if self.prefix else self.n_prefix, self.n_tokens))

    def tokens(self, images: Int[np.ndarray, " b"]) -> Float[Tensor, "b n_tokens d_model"]:
        """What was recorded at the SAE's site, prefix tokens first, as it is stored.

        Raises:
            StoreError: a chunk is damaged, or a number is not finite.
        """
        parts: list[Any] = ["prefix", "patches"] if self.n_prefix else ["patches"]
        x = torch.cat([torch.from_numpy(self.store.read(self.site, images, part)) for part in parts], 1)
        if not torch.isfinite(x).all():
            bad = images[int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])]
            raise StoreError(f"{self.store.url}: {self.site} of image {bad} is not finite (NaN or infinite); record it again, in float32.")
        return x

    @torch.no_grad()
    def logits(self, tokens: Float[Tensor, "b n_tokens d_model"]) -> Float[Tensor, "b n_classes"]:
        """What the probe says if these tokens leave the SAE's site."""
        x = tokens.float()
        if self._rest is None:
            return self.probe(self.pool(x, self.n_prefix)).cpu()
        seen = self._rest.on(x.to(self._rest.images.device)).record([self.target])[self.target]
        return self.probe(self.pool(seen.float(), self.n_prefix)).cpu()

    def edit(self, peak: Any, feature: int, strength: float, mode: Any, where: Sequence[int] = ()) -> Edit:
        """An edit of a feature; see `Edit.of`."""
        return Edit.of(self.checkpoint, peak, feature, strength, mode, tuple(where) or None, prefix=self.prefix, site=str(self.site))

    def under(self, image: int, edits: Sequence[Edit]) -> tuple[Float[Tensor, " n_classes"], Float[Tensor, " n_classes"]]:
        """Logits of an image before and after."""
        x = self.tokens(np.array([image])).float()
        changed = apply_edits(x, list(edits), self.checkpoint, n_prefix=self.n_prefix)
        before = self.logits(x)[0]
        return before, before if changed is x else self.logits(changed)[0]
