"""The original saev: version 0.1.0 from the package registry (ReLU), or a checkout of its repository given by `SAEV_HEAD`."""

from __future__ import annotations

import importlib
import logging
import math
import multiprocessing.queues
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peers import Peer, Work


def head_folder() -> str:
    """The `src` folder of the checkout in `SAEV_HEAD`; empty if it is not set."""
    root = os.environ.get("SAEV_HEAD", "")
    if not root:
        return ""
    folder = Path(root) / "src"
    if not (folder / "saev").is_dir():
        raise SystemExit(f"SAEV_HEAD is {root}, which has no src/saev; set it to a checkout of the original's repository.")
    return str(folder)


def head_module(name: str) -> Any:
    """A module of the checkout."""
    if (folder := head_folder()) not in sys.path:
        sys.path.insert(0, folder)
    # Its code is for Python 3.12, where this class can be subscripted in annotations.
    if not hasattr(multiprocessing.queues.Queue, "__class_getitem__"):
        multiprocessing.queues.Queue.__class_getitem__ = classmethod(lambda cls, item: cls)  # type: ignore[attr-defined]
    return quiet(name)


def quiet(name: str) -> Any:
    """Import a module without the global logging configuration that it sets up."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    found = importlib.import_module(name)
    root.setLevel(level)
    root.handlers[:] = handlers
    return found


class Original(Peer):
    """Shared code of both versions: a step in three parts, because the loop runs each part for all SAEs before the next."""

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        raise NotImplementedError

    def finish(self) -> None:
        """The part after the backward pass."""
        raise NotImplementedError

    def step(self, x: Tensor) -> None:
        step_all([self], x)

    @property
    def bias(self) -> Tensor:
        found: Tensor = self.model.b_enc.data
        return found


def step_all(peers: Sequence[Original], x: Tensor) -> None:
    """One step of the original's loop over SAEs on one batch."""
    for peer in peers:
        peer.model.normalize_w_dec()
    for loss in [peer.forward(x) for peer in peers]:
        loss.backward()  # type: ignore[no-untyped-call]
    for peer in peers:
        peer.finish()


class Released(Original):
    """0.1.0: ReLU and L1; its loop steps every SAE with one fused Adam, without clipping."""

    variants = ("relu",)

    def __init__(self, variant: str, work: Work) -> None:
        config, nn, training = (quiet(f"saev.{name}") for name in ("config", "nn", "training"))
        if work.d_sae % work.d_in:
            raise ValueError(f"saev 0.1.0 needs a width that is a multiple of the input's; {work.d_sae} is not a multiple of {work.d_in}.")
        coefficient = 4e-4 if work.l1 is None else work.l1
        rate = 4e-4 if work.lr is None else work.lr
        cfg = config.SparseAutoencoder(
            d_vit=work.d_in,
            exp_factor=work.d_sae // work.d_in,
            sparsity_coeff=coefficient,
            n_reinit_samples=0 if work.sample is None else len(work.sample),
            seed=work.seed,
        )
        self.model = nn.SparseAutoencoder(cfg)
        if work.sample is not None:
            self.model.init_b_dec(work.sample.cpu())
        self.model.train().to(work.device)
        self.optimizer = torch.optim.Adam([{"params": self.model.parameters(), "lr": 0.0}], fused=True)
        self.schedule = training.Warmup(0.0, rate, min(500, max(1, work.n_steps // 10)))
        self.note = f"0.1.0: fused Adam, lr {rate:g}, warm-up {self.schedule.n_steps}, l1 {coefficient:g}, no clipping, no decay"

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.model(x)[2].loss
        return loss

    def finish(self) -> None:
        self.model.remove_parallel_grads()
        self.optimizer.step()
        self.optimizer.param_groups[0]["lr"] = self.schedule.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        codes: Tensor = self.model(x)[1]
        return codes

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        made: Tensor = self.model(x)[0]
        return made


class _Sample:
    """The loader interface that its data initialisation needs."""

    def __init__(self, x: Tensor, batch_size: int) -> None:
        self.x, self.batch_size, self.n_samples, self.drop_last = x, batch_size, len(x), False

    def __len__(self) -> int:
        return math.ceil(self.n_samples / self.batch_size)

    def __iter__(self) -> Any:
        return ({"act": each} for each in torch.split(self.x.cpu(), self.batch_size))


class Head(Original):
    """Options: `n_prefixes`, prefixes of its Matryoshka loss (its default: 10; 1, the default here, is the plain variant)."""

    variants = ("topk", "batchtopk", "relu")

    def __init__(self, variant: str, work: Work, *, n_prefixes: int = 1, dead_after: int = 10_000_000) -> None:
        modeling, objectives = head_module("saev.nn.modeling"), head_module("saev.nn.objectives")
        scheduling = head_module("saev.utils.scheduling")
        kinds: dict[str, Any] = {
            "topk": lambda: modeling.TopK(top_k=work.k),
            "batchtopk": lambda: modeling.BatchTopK(top_k=work.k),
            "relu": lambda: modeling.Relu(sparsity=modeling.L1Sparsity(coeff=4e-4 if work.l1 is None else work.l1)),
        }
        cfg = modeling.SparseAutoencoderConfig(d_model=work.d_in, d_sae=work.d_sae, activation=kinds[variant]())
        objective = objectives.Matryoshka(n_prefixes=n_prefixes, dead_threshold_tokens=dead_after)
        began = "not initialised from data"
        if work.sample is not None and len(work.sample) >= work.d_sae:
            train = head_module("saev.framework.train")
            saes, made, _ = train.make_saes([(cfg, objective)], _Sample(work.sample, work.batch_size))
            self.model, self.objective = saes[0], made[0]
            began = "initialised from data"
        else:
            self.model, self.objective = modeling.SparseAutoencoder(cfg), objectives.get_objective(objective)
        self.model.train().to(work.device)
        self.objective.train().to(work.device)
        rate = 4e-4 if work.lr is None else work.lr
        self.optimizer = torch.optim.Adam([{"params": self.model.parameters(), "lr": 0.0}], fused=True)
        warm = min(500, work.n_steps // 10)
        self.schedule = scheduling.WarmupCosine(0.0, warm, rate, work.n_steps, 0.0)
        self.note = f"head: fused Adam, lr {rate:g}, warm-up {warm}, cosine, clipped at 1, {n_prefixes} prefix(es), {began}"
        self.variant = variant

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.objective(self.model, x)[0].loss
        return loss

    def finish(self) -> None:
        self.model.remove_parallel_grads()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=1.0)
        self.optimizer.step()
        self.optimizer.param_groups[0]["lr"] = self.schedule.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        self.model.eval()
        codes: Tensor = self.model.encode(x).f_x
        self.model.train()
        return codes

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        made: Tensor = self.model.decode(self.encode(x))[:, -1]
        return made

    @torch.no_grad()
    def silence(self, n: int) -> None:
        if self.variant == "relu":
            raise NotImplementedError
        self.model.W_enc[:, :n] *= 0.02
        since = torch.zeros(self.model.cfg.d_sae, dtype=torch.int64, device=self.model.W_enc.device)
        since[:n] = 10 * self.objective.cfg.dead_threshold_tokens
        self.objective.toks_since_active = since


Adapter: type[Peer] = Head if head_folder() else Released
