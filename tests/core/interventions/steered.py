"""What the tests of edits share: a small model, an SAE of its tokens, and an edit's definition in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from saev_core import Edit, Norm
from saev_core.config.base import PluginRef
from saev_core.config.stages import ReadConfig
from saev_core.interventions.apply import apply_edits
from saev_core.models.tiny import Tiny
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint, ref_of

PEAK = 4.0


@cache
def tiny() -> Tiny:
    return Tiny().eval().requires_grad_(False)


@cache
def images() -> Tensor:
    return torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@cache
def tokens(layer: int = 2) -> Tensor:
    model = tiny()
    return model.record(images(), [model.site(layer)])[model.site(layer)]


def fit(x: Tensor, layer: int = 2, sae: str = "topk", n_sites: int = 1, options: dict[str, Any] | None = None, **read: Any) -> Checkpoint:
    """An SAE with data-initialised weights on the vectors `x [n, d]`."""
    norm = Norm.of(x, n_sites)
    made = make_sae(PluginRef(name=sae, options=options or {"d_sae": 64, "k": 12}), x.shape[1], n_sites=n_sites)
    made.initialise(norm(x), torch.Generator().manual_seed(0))
    site = f"resid.{layer}"
    return Checkpoint(made.requires_grad_(False), norm, ref_of(made), site, ReadConfig.model_validate({"layer": layer, **read}))


@cache
def checkpoint(layer: int = 2) -> Checkpoint:
    return fit(tokens(layer)[:, 1:].reshape(-1, 128), layer)


def edit(feature: int = 3, strength: float = 0.5, mode: str = "add", where: Any = None, **more: Any) -> Edit:
    return Edit.of(checkpoint(), PEAK, feature, strength, mode, where, **more)  # type: ignore[arg-type]


def busy(n: int = 4, made: Checkpoint | None = None, x: Tensor | None = None) -> list[int]:
    """The features that fire most."""
    made = made or checkpoint()
    codes = made.codes((tokens()[:, 1:] if x is None else x).reshape(-1, made.sae.d_in))
    return codes.counts().topk(n).indices.tolist()


def apply(x: Tensor, edits: Any, **more: Any) -> Tensor:
    return apply_edits(x, edits, checkpoint(), n_prefix=1, **more)


def reference(x: Tensor, edits: list[Edit], made: Checkpoint, n_prefix: int = 1) -> Tensor:
    """The definition, token by token, in float64: x + (f' - f) W_dec / scale."""
    out = x.double().clone()
    dense = made.codes(x.reshape(-1, x.shape[-1])).dense().double().view(*x.shape[:2], -1)
    W = made.sae.frozen().W_dec.double() / made.norm.factor
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            f = dense[b, t].clone()
            for one in edits:
                if t < n_prefix or (one.where is not None and t - n_prefix not in one.where):
                    continue
                j = one.feature
                assert j is not None
                f[j] = {
                    "add": f[j] + one.strength * one.unit,
                    "set": one.strength * one.unit,
                    "scale": one.strength * float(f[j]),
                    "ablate": 0.0,
                }[one.mode]
            out[b, t] += (f - dense[b, t]) @ W
    return out


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.modules())
