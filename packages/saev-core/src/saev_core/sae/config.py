"""`SAEConfig`: the options that every SAE variant has."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from saev_core.config.base import PluginConfig
from saev_core.config.words import Auto, Off
from saev_core.errors import ConfigError

VECTORS_PER_FEATURE = 128
"""Training vectors of one pass that each feature gets at least, where the width is chosen automatically. At 80 (1,536
features on 549 photographs) a third of the features fired on more than 1 % of patches, at 130 the kinds came apart."""
WIDTH_STEP = 64
"""Automatic widths are multiples of this."""


class SAEConfig(PluginConfig):
    """Options every SAE has; `d_in` comes from the store."""

    at_most_width: ClassVar[tuple[str, ...]] = ()
    """Options that must not exceed the number of features: lowered with it where an SAE of fewer features is made of one."""

    d_in: int = Field(default=0, ge=0)
    """Width of the activations; filled in from the store."""
    n_sites: int = Field(default=1, ge=1)
    """Sites joined in each vector; filled in from `read.layer`."""
    d_sae: Auto[PositiveInt] = "auto"
    """Number of features; `auto`: `expansion` per dimension, but at most one for each 128 training vectors of a pass."""
    expansion: int = Field(default=16, ge=1)
    """Features per dimension of one site, used where `d_sae` is `auto`."""
    data_init: bool = True
    """Start decoder rows from training vectors; false: from random directions."""
    normalize_w_dec: bool = True
    """Keep decoder rows at length 1."""
    remove_parallel_grads: bool = True
    """Take out the part of the decoder's gradient that only changes its rows' lengths."""
    ghost: float = Field(default=0.0, ge=0)
    """Weight of ghost gradients, which revive dead features; 1 as published, 0: none."""
    resample_every: Off[PositiveInt] = None
    """Steps between resamplings of dead features, in the first four fifths of the run, or `none`."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the variant's own schedules: how the weight of sparsity rises, how k falls."""

    def sized(self, d_in: int, n_vectors: int = 0) -> Self:
        """This configuration for inputs of width `d_in`, with `d_sae` settled.

        Args:
            n_vectors: training vectors of one pass, where they are known. Few of them bound a width that nobody
                named (`VECTORS_PER_FEATURE`): a feature that has little to be learned from dies or memorises.

        Raises:
            ConfigError: it already names another width.
        """
        if self.d_in not in (0, d_in):
            raise ConfigError(f"sae.d_in is {self.d_in}, but the activations are {d_in} wide; leave sae.d_in out.")
        if d_in % self.n_sites:
            raise ConfigError(f"sae.n_sites is {self.n_sites}, but the activations are {d_in} wide; leave sae.n_sites out.")
        d_sae = self.d_sae
        if d_sae == "auto":
            d_sae = self.expansion * d_in // self.n_sites
            if n_vectors:
                affordable = n_vectors // VECTORS_PER_FEATURE // WIDTH_STEP * WIDTH_STEP
                d_sae = min(d_sae, max(affordable, WIDTH_STEP))
        return type(self).model_validate({**self.model_dump(), "d_in": d_in, "d_sae": d_sae})


def k_of_width(d_sae: int) -> int:
    """Active features per vector where nobody names a number: one in 64, from 8 to 32."""
    return min(max(d_sae // 64, 8), 32, d_sae)
