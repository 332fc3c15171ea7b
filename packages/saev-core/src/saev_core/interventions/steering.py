"""`Edit` and `steering`: change features inside a running model; what the SAE does not explain stays as it is."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saev_core.checkpoint import Checkpoint
from saev_core.codes import Codes
from saev_core.errors import ModelError, SteerError
from saev_core.features import FeatureIndex
from saev_core.model import VisionModel
from saev_core.types import Site

Mode: TypeAlias = Literal["add", "set", "scale", "ablate"]
MODES: tuple[Mode, ...] = ("add", "set", "scale", "ablate")
KEEP = 16
"""Choices of patches of which a `known` dictionary keeps the codes."""


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of one feature: its activation f becomes f', and the activations x become x + (f' - f) direction.

    `add`: f' = f + strength x unit. `set`: f' = strength x unit. `scale`: f' = strength x f. `ablate`: f' = 0, whatever the
    strength. Make one of an SAE's feature with `Edit.of`; of any other direction, such as a probe's row, as it is, with `add`.

    Raises:
        SteerError: the mode is unknown, a number is not finite, or `set`, `scale` or `ablate` has no feature.
    """

    site: str
    """Where in the model, as `str(Site)`."""
    direction: Float[Tensor, " d_model"]
    """What one unit of activation adds, in raw units: a row of W_dec over the norm's scale."""
    strength: float
    """In units of the feature's largest activation (`add`, `set`), or a factor (`scale`)."""
    mode: Mode = "add"
    where: Sequence[int] | None = None
    """Patch numbers, which do not count prefix tokens; None: every patch."""
    feature: int | None = None
    """Whose activation f is; it is computed on the spot."""
    unit: float = 1.0
    """The feature's largest activation."""
    prefix: bool | Sequence[int] = False
    """Whether prefix tokens (CLS, registers) are changed too, or numbers of those that are."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SteerError(f"mode {self.mode!r}: an edit can {', '.join(MODES)}.")
        if self.direction.ndim != 1 or not bool(torch.isfinite(self.direction).all()):
            raise SteerError(f"an edit's direction is one vector of finite numbers; this one is {list(self.direction.shape)}, or has NaN.")
        if not (math.isfinite(self.strength) and math.isfinite(self.unit)):
            raise SteerError(f"strength {self.strength} in units of {self.unit}: an edit's numbers are finite.")
        if self.feature is None and self.mode != "add":
            raise SteerError(f"{self.mode} needs the activation of a feature; make the edit with Edit.of, or add the direction.")
        for name in ("where", "prefix"):
            value = getattr(self, name)
            if isinstance(value, bool) or value is None:
                continue
            numbers = tuple(int(number) for number in value)
            if any(number < 0 for number in numbers):
                raise SteerError(f"{name} has {min(numbers)}: tokens are numbered from 0.")
            object.__setattr__(self, name, numbers)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        peak: FeatureIndex | Sequence[float] | Tensor | float | Any,
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
            peak: the feature index, the largest activation of every feature, or that of this one.
            prefix: None: the CLS token where that is what the SAE was trained on, else no prefix token.
            site: which one, for an SAE that was trained on several, one by one.

        Raises:
            SteerError: no such feature, it never fires and so has no unit, or this SAE does not write where it reads.
        """
        writes_where_it_reads(checkpoint)
        sae = checkpoint.sae.frozen()
        if not 0 <= feature < sae.d_sae:
            raise SteerError(f"feature {feature}: this SAE has features 0 to {sae.d_sae - 1}.")
        unit = _unit(peak, feature, sae.d_sae)
        if unit <= 0 and mode in ("add", "set") and strength != 0:
            raise SteerError(f"feature {feature} never fires, so there is no largest activation to measure strength in; give one as peak.")
        with torch.no_grad():
            direction = sae.W_dec[feature].detach() / checkpoint.norm.factor
        cls_alone = checkpoint.read.tokens == "cls"
        if prefix is None:
            prefix = (0,) if cls_alone else False
        where = () if cls_alone and where is None else where
        edit = cls(site or checkpoint.site, direction.clone(), float(strength), mode, where, feature, unit, prefix)
        _fits(checkpoint, edit.site)
        return edit

    def along(self, direction: Float[Tensor, " d_model"]) -> Edit:
        """The same change of the same feature's activation, but moving along another direction: a control."""
        return replace(self, direction=direction)

    @property
    def neutral(self) -> bool:
        """Whether it changes nothing, wherever it is applied."""
        nowhere = self.where == () and not self.prefix
        return nowhere or (self.mode == "add" and self.strength * self.unit == 0) or (self.mode == "scale" and self.strength == 1)

    def chosen(self, n_tokens: int, n_prefix: int, device: torch.device | str = "cpu") -> Bool[Tensor, " n_tokens"]:
        """Which tokens it changes, prefix tokens first.

        Raises:
            SteerError: there is no such patch or prefix token.
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
"""Edits of every image, or for each image of a batch its own."""


def _unit(peak: Any, feature: int, d_sae: int) -> float:
    values = peak.max if isinstance(peak, FeatureIndex) else peak
    if isinstance(values, int | float):
        return float(values)
    if len(values) != d_sae:
        raise SteerError(f"the largest activations of {len(values)} features were given, the SAE has {d_sae}; take the index of this SAE.")
    return float(values[feature])


def writes_where_it_reads(checkpoint: Checkpoint) -> None:
    """Raises SteerError where a change of features cannot be written back to the one place that they were read from."""
    sae, read = checkpoint.sae, checkpoint.read
    if sae.d_out != sae.d_in:
        raise SteerError(f"the SAE of {checkpoint.site} predicts one site from another, so it cannot be written back; steer an SAE.")
    if read.n_sites > 1:
        raise SteerError(f"the SAE reads {checkpoint.site} at once, so no one site has its features; steer an SAE of one site.")
    if read.layer == "mean":
        raise SteerError("the SAE reads the mean over blocks, which no block has; steer an SAE of one site.")


def _fits(checkpoint: Checkpoint, site: str) -> None:
    place = Site.parse(site) if not site.endswith(".all") else None
    if place is None:
        raise SteerError(f"the SAE was trained on several sites ({site}); say at which one, as Edit.of(..., site='resid.3').")
    if checkpoint.site != site and not (checkpoint.read.layer == "all" and checkpoint.read.stream == place.stream):
        raise SteerError(f"the edit is at {site}, the SAE is of {checkpoint.site}; give the checkpoint of that site.")


@torch.no_grad()
def _activations(
    x: Float[Tensor, "batch n_tokens d_model"],
    needing: Sequence[Edit],
    checkpoint: Checkpoint,
    n_prefix: int,
    codes: Codes | None,
    known: dict[Any, Codes],
) -> dict[int, Float[Tensor, "batch n_tokens"]]:
    """Of every feature whose activation an edit needs, that activation; computed on the chosen tokens alone, 0 elsewhere."""
    batch, n, d = x.shape
    if d != checkpoint.sae.d_in:
        raise SteerError(f"{needing[0].site} is {d} wide, the SAE takes {checkpoint.sae.d_in}; it is another model's.")
    features = sorted({cast(int, edit.feature) for edit in needing})
    if features[-1] >= checkpoint.sae.d_sae or features[0] < 0:
        raise SteerError(f"feature {features[-1]}: this SAE has features 0 to {checkpoint.sae.d_sae - 1}.")
    pooled = checkpoint.read.tokens == "mean"
    chosen = torch.stack([edit.chosen(n, n_prefix) for edit in needing]).any(0).nonzero().view(-1).to(x.device)
    if codes is None:
        spots = 1 if pooled else len(chosen)
        key = (checkpoint.sae, *chosen.tolist())
        if (codes := known.get(key)) is None:
            vectors = x[:, n_prefix:].float().mean(1) if pooled else x[:, chosen].reshape(-1, d).float()
            clamp = checkpoint.read.clamp
            if len(known) >= KEEP:
                known.clear()
            codes = known[key] = checkpoint.codes(vectors if clamp is None else vectors.clamp(-clamp, clamp))
    else:
        chosen, spots = torch.arange(n, device=x.device), n
        if len(codes) != batch * n or pooled:
            raise SteerError(f"codes of {len(codes)} vectors for {batch * n} tokens; leave codes out.")
    column = torch.full((checkpoint.sae.d_sae,), -1, device=codes.feature.device)
    column[features] = torch.arange(len(features), device=column.device)
    at = column[codes.feature]
    keep = at >= 0
    found = codes.value.new_zeros(batch * spots, len(features))
    found[codes.rows[keep], at[keep]] = codes.value[keep]
    found = found.view(batch, spots, -1).to(x.device)
    full = found.new_zeros(batch, n, len(features))
    full[:, chosen] = found  # one spot, where vectors are means, goes to all
    return {feature: full[..., i] for i, feature in enumerate(features)}


def _delta(
    edits: Sequence[Edit], f: Mapping[int, Tensor], shape: tuple[int, int], n_prefix: int, like: Tensor
) -> tuple[Float[Tensor, "batch n d_model"], Bool[Tensor, "batch n"]]:
    """(f' - f) W_dec, and where f' is another number than f."""
    now = dict(f)
    changes: list[Tensor] = []
    # Sorted: the order of edits of different features decides not even the last bit.
    ordered = sorted(edits, key=lambda edit: -1 if edit.feature is None else edit.feature)
    for edit in ordered:
        mask = edit.chosen(shape[1], n_prefix, like.device)
        change = torch.full(shape, edit.strength * edit.unit, dtype=like.dtype, device=like.device)
        if edit.feature in now:
            before = now[edit.feature].to(like)
            after = {"add": before + change, "set": change, "scale": before * edit.strength, "ablate": torch.zeros_like(before)}[edit.mode]
            now[edit.feature] = torch.where(mask, after, before)
            change = change if edit.mode == "add" else after - before
        change = change * mask  # [batch, n]
        changes.append(change)
    change = torch.stack(changes, -1)  # [batch, n, n_edits]
    directions = torch.stack([edit.direction.to(like) for edit in ordered])
    return change @ directions, (change != 0).any(-1)


def apply_edits(
    x: Float[Tensor, "*batch n_tokens d_model"],
    edits: Edits,
    checkpoint: Checkpoint | None = None,
    *,
    n_prefix: int = 0,
    codes: Codes | None = None,
    known: dict[Any, Codes] | None = None,
) -> Float[Tensor, "*batch n_tokens d_model"]:
    """x' = x + (f' - f) W_dec, in raw units. What no edit changes keeps its bits; if that is all, `x` itself is the answer.

    Several edits of one feature act one after the other; those of different features do not see each other. Gradients go
    through x as if f were constant.

    Args:
        edits: of every image, or where the elements are sequences, one of them for each image of the batch. Of ONE image
            (`[1, n_tokens, d_model]`) several make as many variants.
        checkpoint: the SAE; needed for `set`, `scale` and `ablate`, which need activations.
        n_prefix: prefix tokens that `x` begins with.
        codes: of all tokens of `x`, row by row, where they are known already; none: computed where they are needed.
        known: keeps codes from one call to the next; pass the same dictionary for the same `x` only.

    Raises:
        SteerError: an edit needs the SAE and there is none, names a patch that is not there, is of another width or site, or the
            activations are not finite.
    """
    rows = by_row(edits)
    acting = [[edit for edit in row if not edit.neutral] for row in rows]
    flat = [edit for row in acting for edit in row]
    batch = x.reshape(-1, *x.shape[-2:])
    variants = len(rows) if len(batch) == 1 and x.ndim == 3 else 1
    if len(rows) not in (1, len(batch) * variants):
        raise SteerError(f"edits for {len(rows)} images, the batch has {len(batch)}; give one list of edits for each.")
    if not flat:
        return x if variants == 1 else x.expand(variants, -1, -1)
    for edit in flat:
        _check(edit, batch, n_prefix, checkpoint)
    if not bool(torch.isfinite(batch).all()):
        raise SteerError(f"the activations at {flat[0].site} are not finite; check the image, the model's weights and its precision.")
    kind = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        needing = [edit for edit in flat if edit.mode != "add"]
        known = {} if known is None else known
        f = _activations(batch, needing, cast(Checkpoint, checkpoint), n_prefix, codes, known) if needing else {}
        like, n = batch.new_empty(0, dtype=kind), batch.shape[1]
        if variants > 1:
            batch, f = batch.expand(variants, -1, -1), {feature: values.expand(variants, -1) for feature, values in f.items()}
        if len(rows) == 1:
            delta, changed = _delta(acting[0], f, (len(batch), n), n_prefix, like)
        else:
            delta, changed = like.new_zeros(batch.shape), torch.zeros(batch.shape[:2], dtype=torch.bool, device=x.device)
            for i, row in enumerate(acting):
                if row:
                    some = {feature: values[i : i + 1] for feature, values in f.items()}
                    delta[i : i + 1], changed[i : i + 1] = _delta(row, some, (1, n), n_prefix, like)
        if not bool(changed.any()):
            return x if variants == 1 else batch
        edited = torch.where(changed[..., None], (batch.to(kind) + delta).to(x.dtype), batch)
        return edited if variants > 1 else edited.view(x.shape)


def by_row(edits: Edits) -> list[list[Edit]]:
    """One list of edits for all images, or one for each.

    Raises:
        SteerError: edits and lists of them are mixed.
    """
    items: list[Any] = list(edits)
    if all(isinstance(item, Edit) for item in items):
        return [items]
    if any(isinstance(item, Edit) for item in items):
        raise SteerError("edits are a list of Edit, or for each image of the batch such a list, not both.")
    return [list(item) for item in items]


def _check(edit: Edit, x: Tensor, n_prefix: int, checkpoint: Checkpoint | None) -> None:
    if len(edit.direction) != x.shape[2]:
        raise SteerError(f"the edit's direction is {len(edit.direction)} wide, {edit.site} is {x.shape[2]}; it is another model's.")
    if edit.mode == "add":
        return
    if checkpoint is None:
        raise SteerError(f"{edit.mode} of feature {edit.feature} at {edit.site} needs its activation; pass that site's checkpoint.")
    if checkpoint.read.tokens == "mean" and edit.where is not None:
        raise SteerError("the SAE reads the mean over all patches, so its features are not on one; leave where out.")


@contextmanager
def steering(model: VisionModel, edits: Edits, checkpoints: Mapping[str, Checkpoint] | Checkpoint | None = None) -> Iterator[None]:
    """Inside, `model(images)` and `model.record(images, sites)` run with the edits; all that comes after a site sees them.

    Edits at several sites act as the pass reaches them: the features of a later site are those of what arrives there. No hook
    is left behind, also after an exception. Acts in the thread that entered it alone, so that a model may be shared. What
    torch.compile made runs eagerly inside, since a compiled graph does not see hooks that came after it.

    Args:
        edits: of every image, or where the elements are sequences, one of them for each image of the batch.
        checkpoints: the SAE of each site at which an edit needs activations (all but `add`); one alone serves its own site.

    Raises:
        SteerError: as `apply_edits`, or a checkpoint is missing, of another site, or does not write where it reads.
        ModelError: there is no such site, it did not run, or its output cannot be written.
    """
    root: VisionModel = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    plan = planned(root, by_row(edits), checkpoints)
    owner, ran, finished = threading.get_ident(), dict.fromkeys(plan, 0), 0

    def write(site: Site) -> Callable[..., Any]:
        rows, checkpoint = plan[site]

        def hook(module: Any, args: Any, output: Any) -> Any:
            if threading.get_ident() != owner:
                return None
            ran[site] += 1
            x = root.tokens(output)
            if x.shape[1] != root.grid.n_tokens:
                raise SteerError(f"{site} gives {x.shape[1]} tokens, the model's grid has {root.grid.n_tokens}; steer a site of that size.")
            edited = apply_edits(x, rows, checkpoint, n_prefix=root.grid.n_prefix)
            return None if edited is x else root.put_tokens(output, edited)

        return hook

    def count(*_: Any) -> None:
        nonlocal finished
        finished += threading.get_ident() == owner

    with ExitStack() as stack:
        for site in plan:
            stack.callback(root._module(site).register_forward_hook(write(site)).remove)
        if plan:
            stack.callback(root.register_forward_hook(count).remove)
            stack.enter_context(eagerly())
        yield
        if finished and (missed := [str(site) for site, n in ran.items() if n == 0]):
            raise ModelError(f"{', '.join(missed)} did not run in the forward pass of {type(root).__name__}; check model.blocks.")


@contextmanager
def eagerly() -> Iterator[None]:
    """Compiled functions run as written. A graph that was compiled before a hook came would pass it by in silence."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def planned(
    model: VisionModel, rows: list[list[Edit]], checkpoints: Mapping[str, Checkpoint] | Checkpoint | None
) -> dict[Site, tuple[list[list[Edit]], Checkpoint | None]]:
    """For each site at which something changes its edits, row by row, and its SAE.

    Raises:
        SteerError, ModelError: all that can be said before the model runs; see `steering`.
    """
    plan: dict[Site, tuple[list[list[Edit]], Checkpoint | None]] = {}
    for name in dict.fromkeys(edit.site for row in rows for edit in row):
        place = Site.parse(name)
        site = model.site(place.layer, place.stream)
        here = [[edit for edit in row if edit.site == name] for row in rows]
        checkpoint = checkpoints if isinstance(checkpoints, Checkpoint) else (checkpoints or {}).get(name)
        if all(edit.mode == "add" for row in here for edit in row):
            checkpoint = None
        if checkpoint is not None:
            writes_where_it_reads(checkpoint)
            _fits(checkpoint, name)
        for edit in (edit for row in here for edit in row):
            edit.chosen(model.grid.n_tokens, model.grid.n_prefix)
            if edit.mode != "add" and checkpoint is None:
                raise SteerError(
                    f"{edit.mode} of feature {edit.feature} at {name} needs its activation; pass checkpoints={{{name!r}: checkpoint}}."
                )
        if any(not edit.neutral for row in here for edit in row):
            plan[site] = here, checkpoint
    return plan


__all__ = ["MODES", "Edit", "Edits", "Mode", "apply_edits", "by_row", "eagerly", "planned", "steering", "writes_where_it_reads"]
