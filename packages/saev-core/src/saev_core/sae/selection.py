"""`Selection`: which vectors of a model's tokens an SAE reads: the sites, the tokens, and how sites are combined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.config.stages import ReadConfig
from saev_core.errors import ConfigError
from saev_core.types import Grid, Site

Tokens: TypeAlias = Literal["patches", "cls", "mean"]
Layers: TypeAlias = Literal["one", "joined", "mean", "all"]


@dataclass(frozen=True)
class Selection:
    """The vectors a `ReadConfig` selects from the tokens at a model's sites, as one or more series.

    A series is normally one site. `layers="all"` gives a series per site; `joined` a single one whose vectors concatenate the
    same token at each site in the order of the blocks; `mean` a single one averaged over the sites. An image has
    `n_tokens(grid)` vectors in a series: its patches, or one (the CLS token, or the mean over patches).

    Independent of stores and models, so that a checkpoint, a store, a live model, the viewer and the tasks share it.
    """

    sites: tuple[Site, ...]
    """In the order of the blocks. Empty if all recorded sites are selected but not known yet; see `among`."""
    stream: str = "resid"
    tokens: Tokens = "patches"
    layers: Layers = "one"
    clamp: float | None = None
    """Clip vectors to [-clamp, clamp]; None: do not clip."""

    @classmethod
    def of(cls, read: ReadConfig, resolve: Callable[[int, str], Site], recorded: Iterable[Site] = ()) -> Selection:
        """The selection made by `read`.

        Args:
            resolve: returns the site of a block (negative: from the end) and a stream: `ActivationStore.resolve`,
                `VisionModel.site`.
            recorded: available sites; used only for `layer="all"` and `"mean"`.

        Raises:
            ConfigError: a block is listed twice.
            StoreError, ModelError: as `resolve`.
        """
        if isinstance(read.layer, str):
            return cls((), read.stream, read.tokens, read.layer, read.clamp).among(recorded)
        blocks = read.layer if isinstance(read.layer, tuple) else (read.layer,)
        sites = [resolve(block, read.stream) for block in blocks]
        if len(set(sites)) < len(sites):
            raise ConfigError(f"read.layer lists a block twice ({', '.join(map(str, sites))}); join different blocks.")
        return cls(tuple(sorted(sites)), read.stream, read.tokens, "joined" if len(sites) > 1 else "one", read.clamp)

    @classmethod
    def named(cls, name: str, read: ReadConfig) -> Selection:
        """Rebuild the selection of `read` whose `str` is `name`; see `Checkpoint.selection`.

        Raises:
            UsageError: `name` is not a valid name of one or more sites.
        """
        stream, _, blocks = name.rpartition(".")
        if isinstance(read.layer, str):
            return cls((), read.stream, read.tokens, read.layer, read.clamp)
        sites = tuple(Site.parse(f"{stream}.{block}") for block in blocks.split("+"))
        return cls(sites, sites[0].stream, read.tokens, "joined" if len(sites) > 1 else "one", read.clamp)

    def among(self, recorded: Iterable[Site]) -> Selection:
        """The selection with `all` or `mean` resolved to the sites of its stream among `recorded`."""
        if self.layers not in ("all", "mean"):
            return self
        return replace(self, sites=tuple(sorted({site for site in recorded if site.stream == self.stream})))

    def __str__(self) -> str:
        """`resid.10`; `resid.6+10` joined; `resid.all` or `resid.mean` otherwise."""
        blocks = self.layers if self.layers in ("all", "mean") else "+".join(str(site.layer) for site in self.sites)
        return f"{self.stream}.{blocks}"

    @property
    def series(self) -> list[tuple[Site, ...]]:
        """The sites of each series."""
        return [(site,) for site in self.sites] if self.layers == "all" else [self.sites]

    @property
    def n_joined(self) -> int:
        """Number of sites joined in each vector."""
        return len(self.sites) if self.layers == "joined" else 1

    @property
    def averages(self) -> bool:
        """Whether vectors are means, and therefore float32 regardless of the precision of the tokens."""
        return self.tokens == "mean" or (self.layers == "mean" and len(self.sites) > 1)

    def n_tokens(self, grid: Grid) -> int:
        """Vectors per image in a series."""
        return grid.n_patches if self.tokens == "patches" else 1

    def includes(self, site: Site) -> bool:
        """Whether it selects vectors of this site alone, neither joined nor averaged with other sites."""
        if self.layers == "all":
            return site in self.sites if self.sites else site.stream == self.stream
        return self.sites == (site,)

    def at(self, site: Site) -> Site:
        """The site it reads; `site` if it reads several separately."""
        return site if self.layers == "all" else self.sites[0]

    def of_site(self, x: Float[Tensor, "batch n_tokens d"], n_prefix: int) -> Float[Tensor, "batch n d"]:
        """The selected tokens of one site, not clamped; float32 if averaged, otherwise in the precision of `x`.

        Args:
            n_prefix: number of tokens before the patches: CLS first, then registers.
        """
        match self.tokens:
            case "patches":
                return x[:, n_prefix:]
            case "cls":
                return x[:, :1]
            case "mean":
                return x[:, n_prefix:].float().mean(1, keepdim=True)

    def of_tokens(self, x: Mapping[Site, Float[Tensor, "batch n_tokens d"]], n_prefix: int) -> list[Float[Tensor, "batch n d_model"]]:
        """The vectors of a batch of images, one tensor per series, from the tokens of a forward pass at each site.

        Raw and not clamped: `Checkpoint` clamps its inputs, and `clamped` is used for training.
        """
        return [self._combined([self.of_site(x[site], n_prefix) for site in sites]) for sites in self.series]

    def _combined(self, parts: Sequence[Float[Tensor, "batch n d"]]) -> Float[Tensor, "batch n d_model"]:
        if len(parts) == 1:
            return parts[0]
        if self.layers == "joined":
            return torch.cat(list(parts), 2)
        total = parts[0].float()
        for x in parts[1:]:
            total = total + x
        return total / len(parts)

    def clamped(self, x: Float[Tensor, "*batch d_model"], out: Tensor | None = None) -> Float[Tensor, "*batch d_model"]:
        """Clip `x` to the clamp; returns `x` itself if there is none.

        Args:
            out: output tensor; pass `x` to clip in place.
        """
        return x if self.clamp is None else torch.clamp(x, -self.clamp, self.clamp, out=out)
