"""`Weights`: the part of an SAE that kernels, initialisation and revival of dead features use."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from saev_core.sae.codes import Codes
from saev_core.sae.config import SAEConfig
from saev_core.sae.scratch import Scratch


class Weights(Protocol):
    """The tensors of an SAE, its encoding and decoding, and working buffers. Implemented by every `SAE`."""

    @property
    def cfg(self) -> SAEConfig: ...
    @property
    def d_in(self) -> int: ...
    @property
    def d_sae(self) -> int: ...
    @property
    def tied(self) -> bool:
        """Whether the dictionary alone encodes, without `W_enc` and `b_enc`."""

    @property
    def W_enc(self) -> Tensor:
        """`[d_out, d_sae]`."""

    @property
    def b_enc(self) -> Tensor:
        """`[d_sae]`."""

    @property
    def W_dec(self) -> Tensor:
        """`[d_sae, d_out]`."""

    @property
    def b_dec(self) -> Tensor:
        """`[d_out]`."""

    @property
    def scratch(self) -> Scratch: ...

    def split(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_out"], Float[Tensor, "*batch d_out"]]:
        """Encoder input and decoding target of `x`."""

    def bypass(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
        """Output of a skip connection past the features; None: no skip connection."""

    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        """Sparse feature activations."""

    def decode(self, z: Tensor | Codes) -> Float[Tensor, "*batch d_out"]:
        """Reconstruct from codes."""
