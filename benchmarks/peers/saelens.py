"""SAELens, through its public `SAETrainer.step`."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from peers import Peer, Work

L1 = 5.0
"""The coefficient in its training tutorial, which also has the warm-up of a twentieth and the decay over the last fifth."""


class Adapter(Peer):
    """Options: `dead_steps`, steps without an activation after which a feature is dead (its default: 1,000)."""

    variants = ("topk", "batchtopk", "relu")

    def __init__(self, variant: str, work: Work, *, dead_steps: int = 1000, autocast: bool = False) -> None:
        shape: dict[str, Any] = {"d_in": work.d_in, "d_sae": work.d_sae, "device": work.device, "dtype": "float32"}
        if variant == "topk":
            self.model = TopKTrainingSAE(TopKTrainingSAEConfig(k=work.k, **shape))
        elif variant == "batchtopk":
            self.model = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(k=float(work.k), **shape))
        else:
            coefficient = L1 if work.l1 is None else work.l1
            warm = work.n_steps // 20
            self.model = StandardTrainingSAE(StandardTrainingSAEConfig(l1_coefficient=coefficient, l1_warm_up_steps=warm, **shape))
        cfg = SAETrainerConfig(
            total_training_samples=work.n_steps * work.batch_size,
            train_batch_size_samples=work.batch_size,
            lr=3e-4 if work.lr is None else work.lr,
            lr_decay_steps=work.n_steps // 5,
            device=work.device,
            dead_feature_window=dead_steps,
            autocast=autocast,
        )
        if cfg.lr_end is None:
            cfg.lr_end = cfg.lr / 10
        self.trainer = SAETrainer(cfg, self.model, data_provider=iter(()))
        loss = f"l1 {self.model.cfg.l1_coefficient:g}, warm-up {work.n_steps // 20}" if variant == "relu" else "its auxiliary loss"
        self.note = f"Adam, lr {cfg.lr:g}, linear decay over the last fifth, {loss}, gradient norm clipped at 1"

    def step(self, x: Tensor) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        self.model.eval()
        if not isinstance(self.model, BatchTopKTrainingSAE):
            plain: Tensor = self.model.encode(x)
            return plain
        # Saved and used as a JumpReLU with the running threshold; the training form depends on the whole batch.
        _, pre = self.model.encode_with_hidden_pre(x)
        jumping: Tensor = pre.relu() * (pre > self.model.topk_threshold)
        return jumping

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        made: Tensor = self.model.decode(self.encode(x))
        return made

    @property
    def bias(self) -> Tensor:
        found: Tensor = self.model.b_enc.data
        return found

    @torch.no_grad()
    def silence(self, n: int) -> None:
        self.model.W_enc[:, :n] *= 0.02
        self.trainer.n_forward_passes_since_fired[:n] = 10 * self.trainer.cfg.dead_feature_window
