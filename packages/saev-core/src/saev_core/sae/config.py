"""`SAEConfig`: the options shared by all SAE variants."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from saev_core.config.base import PluginConfig
from saev_core.config.words import Auto, Off
from saev_core.errors import ConfigError

VECTORS_PER_FEATURE = 128
"""Minimum training vectors of one epoch per feature, if the width is chosen automatically. At 80 (1,536 features on 549
photographs) a third of the features fired on more than 1 % of patches, at 130 the categories separated."""
WIDTH_STEP = 64
"""Automatic widths are rounded to multiples of this."""


class SAEConfig(PluginConfig):
    """Options of every SAE; `d_in` is set from the store."""

    at_most_width: ClassVar[tuple[str, ...]] = ()
    """Options that must not exceed the number of features: lowered when an SAE with fewer features is derived from another."""

    d_in: int = Field(default=0, ge=0)
    """Width of the activations; set from the store."""
    n_sites: int = Field(default=1, ge=1)
    """Number of sites joined in each vector; set from `read.layer`."""
    d_sae: Auto[PositiveInt] = "auto"
    """Number of features; `auto`: `expansion` per dimension, but at most one per 128 training vectors of an epoch."""
    expansion: int = Field(default=16, ge=1)
    """Features per dimension of one site, used if `d_sae` is `auto`."""
    data_init: bool = True
    """Initialise decoder rows from training vectors; false: from random directions."""
    normalize_w_dec: bool = True
    """Keep decoder rows at length 1."""
    remove_parallel_grads: bool = True
    """Remove the component of the decoder's gradient that only changes the norms of its rows."""
    ghost: float = Field(default=0.0, ge=0)
    """Weight of ghost gradients, which revive dead features; 1: as published, 0: off."""
    resample_every: Off[PositiveInt] = None
    """Steps between resampling of dead features, during the first four fifths of the run; `none`: do not resample."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the variant's schedules: the warm-up of the sparsity weight and the decrease of k."""

    def sized(self, d_in: int, n_vectors: int = 0) -> Self:
        """This configuration for inputs of width `d_in`, with `d_sae` resolved.

        Args:
            n_vectors: training vectors of one epoch, if known. They limit an automatic width
                (`VECTORS_PER_FEATURE`): a feature with few training vectors dies or memorises.

        Raises:
            ConfigError: it already sets another width.
        """
        if self.d_in not in (0, d_in):
            raise ConfigError(f"sae.d_in is {self.d_in}, but the activations have width {d_in}; leave sae.d_in out.")
        if d_in % self.n_sites:
            raise ConfigError(f"sae.n_sites is {self.n_sites}, but the activations have width {d_in}; leave sae.n_sites out.")
        d_sae = self.d_sae
        if d_sae == "auto":
            d_sae = self.expansion * d_in // self.n_sites
            if n_vectors:
                affordable = n_vectors // VECTORS_PER_FEATURE // WIDTH_STEP * WIDTH_STEP
                d_sae = min(d_sae, max(affordable, WIDTH_STEP))
        return type(self).model_validate({**self.model_dump(), "d_in": d_in, "d_sae": d_sae})


def k_of_width(d_sae: int) -> int:
    """The default number of active features per vector: one in 64, from 8 to 32."""
    return min(max(d_sae // 64, 8), 32, d_sae)
