"""overcomplete, through `train_sae` on one batch at a time, monitoring off."""

from __future__ import annotations

from typing import Any

import torch
from overcomplete.sae import SAE, BatchTopKSAE, TopKSAE
from overcomplete.sae.losses import mse_l1, top_k_auxiliary_loss
from overcomplete.sae.optimizer import CosineScheduler
from overcomplete.sae.train import train_sae, train_sae_amp
from torch import Tensor

from peers import Peer, Work


def _plain(x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
    return (x - x_hat).square().mean()


class Adapter(Peer):
    """Options.

    `auxiliary`: whether TopK and BatchTopK train with its loss for dead codes (its examples differ in this).
    `amp`: its float16 training for CUDA.
    """

    variants = ("topk", "batchtopk", "relu")

    def __init__(self, variant: str, work: Work, *, auxiliary: bool = False, amp: bool = False) -> None:
        shape: dict[str, Any] = {"input_shape": work.d_in, "nb_concepts": work.d_sae, "device": work.device}
        if variant == "topk":
            self.model = TopKSAE(top_k=work.k, **shape)
        elif variant == "batchtopk":
            self.model = BatchTopKSAE(top_k=work.k * work.batch_size, **shape)
        else:
            self.model = SAE(**shape)
        self.model.to(work.device)
        rate = 5e-4 if work.lr is None else work.lr
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=rate)
        self.scheduler = CosineScheduler(self.optimizer, rate, rate / 100, work.n_steps + 1)
        self.device, self.train = work.device, train_sae_amp if amp else train_sae
        if variant == "relu":
            penalty = 1e-4 if work.l1 is None else work.l1

            def criterion(*terms: Tensor) -> Tensor:
                # Its l1 sums over the batch; use the mean per vector, so that the coefficient does not depend on the batch size.
                loss: Tensor = mse_l1(*terms, penalty=penalty / len(terms[0]))
                return loss

            self.criterion: Any = criterion
            self.note = f"Adam, lr {rate:g}, cosine, l1 {penalty:g} on the sum of a vector's codes, gradient norm clipped at 1"
        else:
            self.criterion = top_k_auxiliary_loss if auxiliary else _plain
            loss = "its auxiliary loss" if auxiliary else "mean squared error"
            self.note = f"Adam, lr {rate:g}, cosine, {loss}, gradient norm clipped at 1, monitoring off"

    def step(self, x: Tensor) -> None:
        self.train(self.model, [x], self.criterion, self.optimizer, self.scheduler, nb_epochs=1, monitoring=0, device=self.device)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        self.model.eval()
        codes: Tensor = self.model.encode(x)[1]
        return codes

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        codes = self.encode(x)
        made: Tensor = self.model.decode(codes)
        return made

    @property
    def bias(self) -> Tensor:
        found: Tensor = self.model.encoder.final_block[0].bias.data
        return found
