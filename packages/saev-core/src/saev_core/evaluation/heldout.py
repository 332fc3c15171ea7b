"""`Heldout`: evaluates SAEs during training."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.activations.sources.base import ActivationSource
from saev_core.config.stages import EvaluateConfig, TrainConfig
from saev_core.errors import TrainError
from saev_core.evaluation.measure import Tally
from saev_core.sae.base import SAE
from saev_core.sae.norm import Norm


class Heldout:
    """A fixed sample of held-out vectors on which SAEs are evaluated repeatedly during training."""

    def __init__(self, raw: Float[Tensor, "n d_in"], norm: Norm, batch_size: int) -> None:
        self.raw, self.norm, self.batch_size = raw, norm, batch_size

    @classmethod
    def of(cls, source: ActivationSource, cfg: TrainConfig, device: torch.device) -> Heldout:
        """`cfg.evaluate_vectors` vectors of `source`, read once for all SAEs that share a pass.

        Raises:
            TrainError: the source has no held-out images.
        """
        raw = source.heldout_sample(cfg.evaluate_vectors, cfg.seed).to(device)
        if len(raw) == 0:
            raise TrainError("train.evaluate_every needs held-out images, but there are none; set read.heldout above 0.")
        return cls(raw, source.norm.to(device), cfg.batch_size)

    @torch.no_grad()
    def card(self, sae: SAE) -> dict[str, Any]:
        """The evaluation card of an SAE in its current state and inference form; does not modify it."""
        frozen = sae.frozen()
        tally = Tally.of(sae, self.raw.device)
        for raw in torch.split(self.raw, self.batch_size):
            tally.answer(frozen, self.norm(raw))
        return {**tally.result(EvaluateConfig()).card, "images": "heldout"}
