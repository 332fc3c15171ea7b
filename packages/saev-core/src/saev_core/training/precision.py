"""Reduced precision for the matmuls of a step, and compiled losses."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from saev_core.sae.base import SAE
from saev_core.sae.scratch import Scratch
from saev_core.sae.step import Progress, Step

log = logging.getLogger(__name__)

Precision = Literal["float32", "tf32", "bf16"]


Loss = Callable[[Tensor, Progress], Step]
"""`SAE.loss` of one SAE."""


def compile_loss(sae: SAE, device: torch.device) -> Loss:
    """`sae.loss`, compiled on first use by autograd, which a variant with a hand-written gradient may never use on the CPU."""
    import torch._dynamo

    if device.type != "cuda" and (sae.selects or type(sae).backward is not SAE.backward):
        log.info("%s uses a hand-written gradient on the CPU; train.compile has no effect", type(sae).__name__)
    # Otherwise reading a metric in `loss` breaks its graph in two.
    torch._dynamo.config.capture_scalar_outputs = True
    # If a graph breaks anyway, tracing accesses gradients of non-leaf tensors and triggers this warning.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf", category=UserWarning)
    return torch.compile(sae.loss)


@contextmanager
def differentiating(sae: SAE, loss: Loss | None) -> Iterator[None]:
    """Replace `sae.loss` by `loss` inside the block; None: keep it."""
    if loss is None:
        yield
        return
    sae.loss = loss  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del sae.loss


@contextmanager
def precision(kind: Precision, device: torch.device, scratch: Scratch) -> Iterator[None]:
    """Run matmuls in reduced precision inside the block, if the device supports it; inputs and outputs stay float32."""
    if kind == "bf16" and device.type == "cuda":
        with torch.autocast("cuda", dtype=torch.bfloat16):
            yield
    elif kind == "bf16":
        scratch.bf16 = True
        try:
            yield
        finally:
            scratch.bf16 = False
    elif kind == "tf32" and device.type == "cuda":
        matmul = torch.backends.cuda.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            yield
        finally:
            matmul.fp32_precision = before
    else:
        yield
