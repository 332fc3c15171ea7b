"""Rows of the table of steps: the work of each, its contestants, and the targets for ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peers
import torch
from torch import Tensor

from saev_core.config.stages import TrainConfig
from saev_core.sae.base import SAE
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.sae.scratch import Scratch
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.training.schedule import Schedule
from saev_core.training.train import SAETrainer, TrainSpec
from saev_saes.batchtopk import BatchTopK, BatchTopKConfig

ENCODE, FIVE, ADAM, OURS = "one encode matmul", "five matmuls", "fused Adam alone", "ours"
NAMES = {"topk": "TopK", "batchtopk": "BatchTopK", "relu": "ReLU"}
SCHEDULE = Schedule(n_steps=1_000_000, n_warmup=0, n_decay=0, dead_after=10_000_000)
STILL = 1e-8
"""A learning rate so small that weights, and with them densities, stay constant while measuring."""
SPARSE = 2.17
"""Standard deviations to lower an encoder's bias by, so that 1.5 % of normally distributed values stay above zero."""


@dataclass(frozen=True)
class Size:
    d: int
    width: int
    batch: int
    k: int


@dataclass(frozen=True)
class Aim:
    """Target: `least` times as fast as each of `over`, or at most `most` times as slow."""

    over: tuple[str, ...]
    """Names; empty: every peer of the row."""
    least: float = 0.0
    most: float = 0.0

    def __str__(self) -> str:
        whom = ", ".join(self.over) or "every peer"
        return f"{self.least:g}x {whom}" if self.least else f"at most {self.most:g}x {whom}"


@dataclass(frozen=True)
class Row:
    what: str
    variant: str
    size: Size
    aims: tuple[Aim, ...]
    floors: tuple[str, ...] = ()
    saes: int = 1
    dead: bool = False
    """A tenth of the features is dead, and AuxK trains them."""
    sparse: bool = False
    """Biases are lowered until 1.5 % of the pre-activations are positive."""
    only: tuple[str, ...] = ()
    """Peers of this row; empty: all that have the variant."""

    def who(self) -> list[str]:
        """Ours first, then peers, then floors."""
        rivals = [name for name in peers.available() if self.variant in peers.variants(name) and (not self.only or name in self.only)]
        return [OURS, *rivals, *self.floors]


def rows(full: Size, many: Size) -> dict[str, Row]:
    """The rows of the table, by short name.

    Args:
        many: size of each of four SAEs on one stream.
    """
    four = "topk" if "topk" in _variants("saev") else "relu"
    others = ("saev", "sae_lens", "dictionary_learning", "overcomplete")
    return {
        "topk": Row("TopK step", "topk", full, (Aim(others, 4), Aim(("sparsify",), 1.5), Aim((ENCODE,), most=1.8)), (ENCODE, ADAM)),
        "batchtopk": Row("BatchTopK step", "batchtopk", full, (Aim((), 4), Aim((ENCODE,), most=2.0)), (ENCODE,)),
        "relu": Row("ReLU step, dense", "relu", full, (Aim((), 1.4), Aim((FIVE,), most=1.1)), (FIVE,)),
        "relu-sparse": Row("ReLU step below 2 % density", "relu", full, (Aim((), 3),), (ENCODE,), sparse=True),
        "auxk": Row(
            *("TopK with 10 % dead under AuxK", "topk", full, (Aim(("sparsify",), 1.6),), (ENCODE,)),
            dead=True,
            only=("sparsify", "saev", "sae_lens", "dictionary_learning"),
        ),
        "four": Row(
            f"four {'TopK' if four == 'topk' else 'ReLU'} SAEs, one stream", four, many, (Aim(("saev",), 2.5),), saes=4, only=("saev",)
        ),
    }


def _variants(name: str) -> tuple[str, ...]:
    return peers.variants(name) if name in peers.available() else ("topk",)


def vectors(size: Size) -> Tensor:
    return torch.randn(size.batch, size.d, generator=torch.Generator().manual_seed(9))


def make(row: Row, who: str, x: Tensor) -> Callable[[], object]:
    """A function that runs one step of a row, to be called repeatedly; its setup is done here."""
    if who in (ENCODE, FIVE, ADAM):
        return _floor(row.size, who, x)
    if who == OURS:
        jobs = [ours(row, seed) for seed in range(row.saes)]
        scratch = Scratch()
        for job in jobs:
            job.use_scratch(scratch)
        return lambda: [job.step(x, 1) for job in jobs][-1] and None
    rivals = [rival(row, who, seed, x) for seed in range(row.saes)]
    if row.saes > 1:
        from peers.original import Original, step_all

        saes = [each for each in rivals if isinstance(each, Original)]
        return lambda: step_all(saes, x)
    return lambda: rivals[0].step(x)


def _floor(size: Size, who: str, x: Tensor) -> Callable[[], object]:
    W = torch.randn(size.d, size.width, generator=torch.Generator().manual_seed(0))
    if who == ADAM:
        parameters = [
            torch.randn(shape, requires_grad=True) for shape in ((size.d, size.width), (size.width, size.d), (size.width,), (size.d,))
        ]
        for p in parameters:
            p.grad = torch.randn_like(p)
        return torch.optim.Adam(parameters, lr=STILL, fused=True).step
    pre = torch.empty(size.batch, size.width)
    if who == ENCODE:
        return lambda: torch.mm(x, W, out=pre) is None
    back, weights = torch.empty(size.batch, size.d), torch.empty(size.width, size.d)

    def five() -> None:
        for _ in range(2):
            torch.mm(x, W, out=pre)
            torch.mm(pre.T, x, out=weights)
        torch.mm(pre, W.T, out=back)

    return five


def trainee(variant: str, size: Size, seed: int = 0) -> TrainSpec:
    generator = torch.Generator().manual_seed(seed)
    shape: dict[str, Any] = {"d_in": size.d, "d_sae": size.width}
    if variant == "relu":
        sae: SAE = ReLU(ReLUConfig(**shape, sparsity_coeff=1e-3), generator)
    elif variant == "batchtopk":
        sae = BatchTopK(BatchTopKConfig(**shape, k=size.k), generator)
    else:
        sae = TopK(TopKConfig(**shape, k=size.k), generator)
    return TrainSpec(f"t{seed}", sae)


@torch.no_grad()
def ours(row: Row, seed: int, device: str = "cpu", **options: Any) -> SAETrainer:
    """Our SAE of a row, ready to step.

    Args:
        options: of `TrainConfig`.
    """
    made = trainee(row.variant, row.size, seed)
    job = SAETrainer(made, TrainConfig(batch_size=row.size.batch, lr=STILL, **options), SCHEDULE, torch.device(device))
    if row.sparse:
        made.sae.b_enc.sub_(SPARSE)  # its encoder's columns have length 1 here, so pre-activations have variance 1
    if row.dead:
        n = row.size.width // 10
        made.sae.W_enc[:, :n] *= 0.02
        job.fired_at[:n] = -SCHEDULE.dead_after
    return job


def rival(row: Row, who: str, seed: int, x: Tensor, device: str = "cpu", **options: Any) -> peers.Peer:
    """Another library's SAE of a row, ready to step.

    Args:
        x: vectors used to set the density.
        options: of its adapter.
    """
    size = row.size
    if row.dead and who == "sparsify":
        options["auxk"] = 1 / 32
    shape = {"d_in": size.d, "d_sae": size.width, "k": size.k, "batch_size": size.batch, "n_steps": SCHEDULE.n_steps}
    peer = peers.build(who, row.variant, **shape, lr=STILL, l1=1e-6, seed=seed, device=device, **options)  # type: ignore[arg-type]
    if row.sparse:
        # Initial pre-activations are positive half of the time: a half-normal, whose mean gives the standard deviation.
        spread = float(peer.encode(x[:256]).mean()) * (2 * torch.pi) ** 0.5
        peer.bias.fill_(-SPARSE * spread)
    if row.dead:
        peer.silence(size.width // 10)
    return peer
