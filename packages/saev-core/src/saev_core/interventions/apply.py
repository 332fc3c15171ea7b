"""`apply_edits`: apply edits to the activations at a site; unedited activations stay bit-identical."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saev_core.errors import SteerError
from saev_core.interventions.edit import Edit, Edits, by_row
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.codes import Codes

N_CODES_KEPT = 16
"""Maximum number of patch selections whose codes a `known` dictionary caches."""


@torch.no_grad()
def _activations(
    x: Float[Tensor, "batch n_tokens d_model"],
    needing: Sequence[Edit],
    checkpoint: Checkpoint,
    n_prefix: int,
    codes: Codes | None,
    known: dict[Any, Codes],
) -> dict[int, Float[Tensor, "batch n_tokens"]]:
    """The activation of every feature that an edit needs; computed only on the selected tokens, 0 elsewhere."""
    batch, n, d = x.shape
    if d != checkpoint.sae.d_in:
        raise SteerError(f"{needing[0].site} is {d} wide, the SAE takes {checkpoint.sae.d_in}; use an SAE of this model.")
    features = sorted({cast(int, edit.feature) for edit in needing})
    if features[-1] >= checkpoint.sae.d_sae or features[0] < 0:
        raise SteerError(f"feature {features[-1]}: this SAE has features 0 to {checkpoint.sae.d_sae - 1}.")
    pooled = checkpoint.read.tokens == "mean"
    chosen = torch.stack([edit.chosen(n, n_prefix) for edit in needing]).any(0).nonzero().view(-1).to(x.device)
    if codes is None:
        spots = 1 if pooled else len(chosen)
        key = (checkpoint.sae, *chosen.tolist())
        if (codes := known.get(key)) is None:
            if len(known) >= N_CODES_KEPT:
                known.clear()
            # A mean is one vector for all tokens; otherwise the edits select the tokens, whatever the SAE was trained on.
            codes = known[key] = checkpoint.codes(checkpoint.selection.of_site(x, n_prefix) if pooled else x[:, chosen])
    else:
        chosen, spots = torch.arange(n, device=x.device), n
        if len(codes) != batch * n or pooled:
            raise SteerError(f"codes of {len(codes)} vectors for {batch * n} tokens; omit codes.")
    column = torch.full((checkpoint.sae.d_sae,), -1, device=codes.feature.device)
    column[features] = torch.arange(len(features), device=column.device)
    at = column[codes.feature]
    keep = at >= 0
    found = codes.value.new_zeros(batch * spots, len(features))
    found[codes.rows[keep], at[keep]] = codes.value[keep]
    found = found.view(batch, spots, -1).to(x.device)
    full = found.new_zeros(batch, n, len(features))
    full[:, chosen] = found  # for means, one vector is broadcast to all tokens
    return {feature: full[..., i] for i, feature in enumerate(features)}


def _delta(
    edits: Sequence[Edit], f: Mapping[int, Tensor], shape: tuple[int, int], n_prefix: int, like: Tensor
) -> tuple[Float[Tensor, "batch n d_model"], Bool[Tensor, "batch n"]]:
    """(f' - f) W_dec, and a mask of where f' differs from f."""
    now = dict(f)
    changes: list[Tensor] = []
    # Sorted, so that the order of edits of different features does not affect a single bit.
    ordered = sorted(edits, key=lambda edit: -1 if edit.feature is None else edit.feature)
    for edit in ordered:
        mask = edit.chosen(shape[1], n_prefix, like.device)
        change = torch.full(shape, edit.strength * edit.unit, dtype=like.dtype, device=like.device)
        if edit.feature in now:
            before = now[edit.feature].to(like)
            after = edit.activation(before)
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
    """x' = x + (f' - f) W_dec, in raw units. Unedited activations stay bit-identical; if nothing changes, `x` itself is returned.

    Several edits of one feature are applied in sequence; those of different features are independent. Gradients flow
    through x as if f were constant.

    Args:
        edits: a list for all images, or one list per image of the batch. For ONE image (`[1, n_tokens, d_model]`), several
            lists make as many variants.
        checkpoint: the SAE; required for `set`, `scale` and `ablate`, which need activations.
        n_prefix: number of prefix tokens at the start of `x`.
        codes: codes of all tokens of `x`, row by row, if known; by default computed where needed.
        known: cache of codes between calls; reuse a dictionary only for the same `x`.

    Raises:
        SteerError: an edit needs the SAE and none is given, names a patch that does not exist, has another width or site, or
            the activations are not finite.
    """
    rows = by_row(edits)
    acting = [[edit for edit in row if not edit.neutral] for row in rows]
    flat = [edit for row in acting for edit in row]
    batch = x.reshape(-1, *x.shape[-2:])
    variants = len(rows) if len(batch) == 1 and x.ndim == 3 else 1
    if len(rows) not in (1, len(batch) * variants):
        raise SteerError(f"edits for {len(rows)} images, the batch has {len(batch)}; pass one list of edits per image.")
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


def _check(edit: Edit, x: Tensor, n_prefix: int, checkpoint: Checkpoint | None) -> None:
    if len(edit.direction) != x.shape[2]:
        raise SteerError(f"the edit's direction is {len(edit.direction)} wide, {edit.site} is {x.shape[2]}; use an edit for this model.")
    if edit.mode == "add":
        return
    if checkpoint is None:
        raise SteerError(f"{edit.mode} of feature {edit.feature} at {edit.site} needs its activation; pass that site's checkpoint.")
    if checkpoint.read.tokens == "mean" and edit.where is not None:
        raise SteerError("the SAE reads the mean over all patches, so its features have no location; omit where.")
