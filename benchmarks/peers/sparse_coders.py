"""sparsify: its sparse coder, loss, optimisers and projections, in the order in which its trainer calls them.

Its trainer hooks a transformer's modules; here the vectors are given, so its operations on each batch are called directly.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import torch
from torch import Tensor

from peers import Peer, Work

if not torch.cuda.is_available():
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # its Triton decoder does not support CPUs
with contextlib.redirect_stdout(io.StringIO()):  # it prints its choice of decoder on import
    from schedulefree import ScheduleFreeWrapper
    from sparsify import SparseCoder, SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from transformers import get_linear_schedule_with_warmup

DEAD_AFTER = 10_000_000


class Adapter(Peer):
    """Options: `auxk`, coefficient of AuxK (its default: 0), `dead_after` in tokens, `optimizer` `signum` (its default) or `adam`."""

    variants = ("topk",)

    def __init__(self, variant: str, work: Work, *, auxk: float = 0.0, dead_after: int = DEAD_AFTER, optimizer: str = "signum") -> None:
        self.model = SparseCoder(work.d_in, SparseCoderConfig(num_latents=work.d_sae, k=work.k), device=work.device, dtype=torch.float32)
        scale = (work.d_sae / 2**14) ** 0.5
        self.schedule: Any = None
        if optimizer == "adam":
            rate = 2e-4 / scale if work.lr is None else work.lr
            self.optimizer: Any = torch.optim.Adam(self.model.parameters(), lr=rate)
            warm: Any = get_linear_schedule_with_warmup
            self.schedule = warm(self.optimizer, min(1000, work.n_steps // 10), work.n_steps)
        else:
            rate = 5e-3 / scale if work.lr is None else work.lr
            self.optimizer = ScheduleFreeWrapper(SignSGD(self.model.parameters(), lr=rate), momentum=0.95)
            self.optimizer.train()
        self.averaged = optimizer != "adam"
        self.since_fired = torch.zeros(work.d_sae, device=work.device, dtype=torch.long)
        self.auxk, self.dead_after, self.fresh = auxk, dead_after, True
        self.note = f"{optimizer}{' under schedule-free' if self.averaged else ''}, lr {rate:.2g}, AuxK {auxk:.3g}, no clipping"

    def step(self, x: Tensor) -> None:
        model = self.model
        if self.fresh:
            model.b_dec.data = x.mean(0)
            self.fresh = False
        model.set_decoder_norm_to_unit_norm()
        dead = self.since_fired > self.dead_after if self.auxk else None
        out = model(x, dead_mask=dead)
        (out.fvu + self.auxk * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        model.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.schedule is not None:
            self.schedule.step()
        self.since_fired += len(x)
        self.since_fired[out.latent_indices.flatten()] = 0

    @contextlib.contextmanager
    def _averaged(self) -> Any:
        """Switch to schedule-free's averaged weights, which it stores separately during training."""
        if self.averaged:
            self.optimizer.eval()
        try:
            yield
        finally:
            if self.averaged:
                self.optimizer.train()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        with self._averaged():
            value, index, _ = self.model.encode(x)
        dense: Tensor = value.new_zeros(len(x), self.model.num_latents).scatter_(1, index, value)
        return dense

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        with self._averaged():
            value, index, _ = self.model.encode(x)
            made: Tensor = self.model.decode(value, index)
        return made

    @property
    def bias(self) -> Tensor:
        found: Tensor = self.model.encoder.bias.data
        return found

    @torch.no_grad()
    def silence(self, n: int) -> None:
        if not self.auxk:
            raise NotImplementedError
        self.model.encoder.weight[:n] *= 0.02
        self.since_fired[:n] = 10 * self.dead_after
