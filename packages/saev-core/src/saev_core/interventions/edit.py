"""`Edit`: one change of one feature's activation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saev_core.errors import SteerError
from saev_core.sae.checkpoint import Checkpoint
from saev_core.types import Site

Mode: TypeAlias = Literal["add", "set", "scale", "ablate"]
MODES: tuple[Mode, ...] = ("add", "set", "scale", "ablate")


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of one feature: its activation f becomes f', and the activations x become x + (f' - f) direction.

    `add`: f' = f + strength x unit. `set`: f' = strength x unit. `scale`: f' = strength x f. `ablate`: f' = 0, for any
    strength. For an SAE's feature, use `Edit.of`; any other direction, such as a row of a probe, can be used directly, with `add`.

    Raises:
        SteerError: the mode is unknown, a number is not finite, or `set`, `scale` or `ablate` has no feature.
    """

    site: str
    """The site, as `str(Site)`."""
    direction: Float[Tensor, " d_model"]
    """The vector added per unit of activation, in raw units: a row of W_dec divided by the norm's scale."""
    strength: float
    """In units of the feature's largest activation (`add`, `set`), or a factor (`scale`)."""
    mode: Mode = "add"
    where: Sequence[int] | None = None
    """Patch numbers, not counting prefix tokens; None: every patch."""
    feature: int | None = None
    """The feature whose activation is f; f is computed when the edit is applied."""
    unit: float = 1.0
    """The feature's largest activation."""
    prefix: bool | Sequence[int] = False
    """Whether to edit prefix tokens (CLS, registers) too, or the numbers of those to edit."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SteerError(f"unknown mode {self.mode!r}; use one of {', '.join(MODES)}.")
        if self.direction.ndim != 1 or not bool(torch.isfinite(self.direction).all()):
            raise SteerError(f"an edit's direction must be a finite vector; this one is {list(self.direction.shape)}, or has NaN.")
        if not (math.isfinite(self.strength) and math.isfinite(self.unit)):
            raise SteerError(f"strength {self.strength} in units of {self.unit}: both must be finite.")
        if self.feature is None and self.mode != "add":
            raise SteerError(f"{self.mode} needs the activation of a feature; create the edit with Edit.of, or use mode add.")
        for name in ("where", "prefix"):
            value = getattr(self, name)
            if isinstance(value, bool) or value is None:
                continue
            numbers = tuple(int(number) for number in value)
            if any(number < 0 for number in numbers):
                raise SteerError(f"{name} contains {min(numbers)}: tokens are numbered from 0.")
            object.__setattr__(self, name, numbers)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        peak: Sequence[float] | np.ndarray | Tensor | float,
        feature: int,
        strength: float = 1.0,
        mode: Mode = "add",
        where: Sequence[int] | None = None,
        *,
        prefix: bool | Sequence[int] | None = None,
        site: str = "",
    ) -> Edit:
        """An edit of an SAE's feature.

        Args:
            peak: the largest activation of every feature (`FeatureIndex.max`), or of this one.
            prefix: None: the CLS token if the SAE was trained on it, else no prefix token.
            site: the site to edit, for an SAE trained on several sites separately.

        Raises:
            SteerError: the feature does not exist, never fires and so has no unit, or this SAE does not write where it reads.
        """
        writes_where_it_reads(checkpoint)
        sae = checkpoint.sae.frozen()
        if not 0 <= feature < sae.d_sae:
            raise SteerError(f"feature {feature}: this SAE has features 0 to {sae.d_sae - 1}.")
        unit = _unit(peak, feature, sae.d_sae)
        if unit <= 0 and mode in ("add", "set") and strength != 0:
            raise SteerError(f"feature {feature} never fires, so strength has no unit; pass a largest activation as peak.")
        with torch.no_grad():
            direction = sae.W_dec[feature].detach() / checkpoint.norm.factor
        cls_alone = checkpoint.read.tokens == "cls"
        if prefix is None:
            prefix = (0,) if cls_alone else False
        where = () if cls_alone and where is None else where
        edit = cls(site or checkpoint.site, direction.clone(), float(strength), mode, where, feature, unit, prefix)
        _fits(checkpoint, edit.site)
        return edit

    def activation(self, f: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """f': the edited activation of the feature, on the edited tokens."""
        match self.mode:
            case "add":
                return f + self.strength * self.unit
            case "set":
                return torch.full_like(f, self.strength * self.unit)
            case "scale":
                return f * self.strength
            case "ablate":
                return torch.zeros_like(f)

    def along(self, direction: Float[Tensor, " d_model"]) -> Edit:
        """The same change of the same feature's activation, but along another direction: a control."""
        return replace(self, direction=direction)

    @property
    def neutral(self) -> bool:
        """Whether it never changes anything."""
        nowhere = self.where == () and not self.prefix
        return nowhere or (self.mode == "add" and self.strength * self.unit == 0) or (self.mode == "scale" and self.strength == 1)

    def chosen(self, n_tokens: int, n_prefix: int, device: torch.device | str = "cpu") -> Bool[Tensor, " n_tokens"]:
        """Mask of the tokens it edits, prefix tokens first.

        Raises:
            SteerError: a patch or prefix token does not exist.
        """
        mask = torch.zeros(n_tokens, dtype=torch.bool)
        for name, value, first, stop in (("patch", self.where, n_prefix, n_tokens), ("prefix token", self.prefix, 0, n_prefix)):
            if value is None or value is True:
                mask[first:stop] = True
            elif value is not False:
                numbers = cast(tuple[int, ...], value)
                if numbers and max(numbers) >= stop - first:
                    raise SteerError(f"{name} {max(numbers)}: there are {stop - first} of them at {self.site}, numbered from 0.")
                mask[[first + number for number in numbers]] = True
        return mask.to(device)


Edits: TypeAlias = Sequence[Edit] | Sequence[Sequence[Edit]]
"""Edits for all images, or one list per image of a batch."""


def _unit(peak: Sequence[float] | np.ndarray | Tensor | float, feature: int, d_sae: int) -> float:
    if isinstance(peak, int | float):
        return float(peak)
    if len(peak) != d_sae:
        raise SteerError(f"peak has {len(peak)} features, the SAE has {d_sae}; use the index of this SAE.")
    return float(peak[feature])


def writes_where_it_reads(checkpoint: Checkpoint) -> None:
    """Raise SteerError if an edit of features cannot be written back to the site they were read from."""
    sae, read = checkpoint.sae, checkpoint.read
    if sae.d_out != sae.d_in:
        raise SteerError(f"the SAE of {checkpoint.site} predicts one site from another, so edits cannot be written back; use an SAE.")
    if read.n_sites > 1:
        raise SteerError(f"the SAE reads {checkpoint.site} jointly, so edits cannot be written to one site; use an SAE of one site.")
    if read.layer == "mean":
        raise SteerError("the SAE reads the mean over blocks, so edits cannot be written to one block; use an SAE of one site.")


def _fits(checkpoint: Checkpoint, site: str) -> None:
    selection = checkpoint.selection
    if selection.layers == "all" and site == str(selection):
        raise SteerError(f"the SAE was trained on several sites ({site}); select one, as in Edit.of(..., site='resid.3').")
    if not selection.includes(Site.parse(site)):
        raise SteerError(f"the edit is at {site}, the SAE was trained at {checkpoint.site}; pass the checkpoint of that site.")


def by_row(edits: Edits) -> list[list[Edit]]:
    """Normalise edits to one list for all images, or one list per image.

    Raises:
        SteerError: edits and lists of them are mixed.
    """
    items: list[Any] = list(edits)
    if all(isinstance(item, Edit) for item in items):
        return [items]
    if any(isinstance(item, Edit) for item in items):
        raise SteerError("edits must be a list of Edit, or one such list per image of the batch, not both.")
    return [list(item) for item in items]
