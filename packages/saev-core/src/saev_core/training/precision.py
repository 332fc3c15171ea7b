"""TODO."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from saev_core.sae.base import SAE
from saev_core.sae.kernels import Workspace

log = logging.getLogger(__name__)

Precision = Literal["float32", "tf32", "bf16"]


def compile_loss(sae: SAE, device: torch.device) -> None:
    """Compile `loss` when it is first differentiated, which on the CPU a variant with a gradient of its own may never be."""
    import torch._dynamo

    if device.type != "cuda" and (sae.selects or type(sae).backward is not SAE.backward):
        log.info("%s has a gradient of its own on the CPU; train.compile does nothing for it there", type(sae).__name__)
    # Else the metric that `loss` reads out cuts its graph in two.
    torch._dynamo.config.capture_scalar_outputs = True
    # Where a graph is cut all the same, its tracing looks at gradients that it must not look at, and warns of itself.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf", category=UserWarning)
    sae.compiled = torch.compile(sae.loss)


@contextmanager
def precision(kind: Precision, device: torch.device, work: Workspace) -> Iterator[None]:
    """Matmuls in less than float32 inside, where the device has them; what they read and write stays float32."""
    if kind == "bf16" and device.type == "cuda":
        with torch.autocast("cuda", dtype=torch.bfloat16):
            yield
    elif kind == "bf16":
        work.bf16 = True
        try:
            yield
        finally:
            work.bf16 = False
    elif kind == "tf32" and device.type == "cuda":
        matmul = torch.backends.cuda.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            yield
        finally:
            matmul.fp32_precision = before
    else:
        yield
