"""dictionary_learning, through its trainers' `update`."""

from __future__ import annotations

from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from torch import Tensor

from peers import Peer, Work


class Adapter(Peer):
    """Options: `dead_after`, tokens without an activation after which a feature is dead (its default: 10,000,000)."""

    variants = ("topk", "batchtopk", "relu")

    def __init__(self, variant: str, work: Work, *, dead_after: int = 0) -> None:
        warm = min(1000, work.n_steps // 10)  # its default of 1,000 steps could take up a whole short run
        common: dict[str, Any] = {
            "steps": work.n_steps,
            "activation_dim": work.d_in,
            "dict_size": work.d_sae,
            "layer": 0,
            "lm_name": "none",
            "warmup_steps": warm,
            "decay_start": max(warm + 1, int(0.8 * work.n_steps)),
            "seed": work.seed,
            "device": work.device,
        }
        if variant == "relu":
            penalty = 0.1 if work.l1 is None else work.l1
            sparse = min(2000, work.n_steps // 5)
            common["decay_start"] = max(common["decay_start"], sparse + 1)
            rate = 1e-3 if work.lr is None else work.lr
            self.trainer: Any = StandardTrainer(lr=rate, l1_penalty=penalty, sparsity_warmup_steps=sparse, **common)
            self.note = f"Adam, lr {rate:g}, warm-up {warm}, decay over the last fifth, l1 {penalty:g} (warm-up {sparse}), no clipping"
        else:
            start = min(1000, work.n_steps // 2)
            kind = TopKTrainer if variant == "topk" else BatchTopKTrainer
            self.trainer = kind(k=work.k, lr=work.lr, threshold_start_step=start, **common)
            if dead_after:
                self.trainer.dead_feature_threshold = dead_after
            self.note = f"Adam, lr {self.trainer.lr:.2g}, warm-up {warm}, decay over the last fifth, AuxK 1/32, gradient norm clipped at 1"
        self.model = self.trainer.ae
        self.variant, self.done = variant, 0

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.done, x)
        self.done += 1

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        # TopK also uses k at inference, as in its own evaluation.
        codes: Tensor = self.model.encode(x)
        return codes

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        made: Tensor = self.model.decode(self.encode(x))
        return made

    @property
    def bias(self) -> Tensor:
        found: Tensor = self.model.encoder.bias.data
        return found

    @torch.no_grad()
    def silence(self, n: int) -> None:
        if self.variant == "relu":
            raise NotImplementedError
        self.model.encoder.weight[:n] *= 0.02
        self.trainer.num_tokens_since_fired[:n] = 10 * self.trainer.dead_feature_threshold
