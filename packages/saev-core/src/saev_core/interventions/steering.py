"""`Edit` and `steering`: edit features inside a running model; what the SAE does not explain is unchanged."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from saev_core.errors import ModelError, SteerError
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.edit import MODES, Edit, Edits, Mode, _fits, by_row, writes_where_it_reads
from saev_core.models.base import VisionModel
from saev_core.sae.checkpoint import Checkpoint
from saev_core.types import Site


@contextmanager
def steering(model: VisionModel, edits: Edits, checkpoints: Mapping[str, Checkpoint] | Checkpoint | None = None) -> Iterator[None]:
    """Inside the context, `model(images)` and `model.record(images, sites)` run with the edits; everything after a site sees them.

    Edits at several sites are applied in the order of the forward pass: features of a later site are computed from the edited
    activations that reach it. Hooks are always removed, even after an exception. Affects only the thread that entered it, so
    a model can be shared. Compiled functions run eagerly inside, since a compiled graph ignores hooks added later.

    Args:
        edits: a list for all images, or one list per image of the batch.
        checkpoints: the SAE of each site where an edit needs activations (all but `add`); a single one is used for its own site.

    Raises:
        SteerError: as `apply_edits`, or a checkpoint is missing, from another site, or does not write where it reads.
        ModelError: a site does not exist, did not run, or its output cannot be edited.
    """
    root: VisionModel = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    plan = edits_by_site(root, by_row(edits), checkpoints)
    owner, ran, finished = threading.get_ident(), dict.fromkeys(plan, 0), 0

    def write(site: Site) -> Callable[..., Any]:
        rows, checkpoint = plan[site]

        def hook(module: Any, args: Any, output: Any) -> Any:
            if threading.get_ident() != owner:
                return None
            ran[site] += 1
            x = root.tokens(output)
            if x.shape[1] != root.grid.n_tokens:
                raise SteerError(f"{site} has {x.shape[1]} tokens, the model's grid has {root.grid.n_tokens}; edit a site of that size.")
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
    """Run compiled functions eagerly. A graph compiled before a hook was added would silently ignore it."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def edits_by_site(
    model: VisionModel, rows: list[list[Edit]], checkpoints: Mapping[str, Checkpoint] | Checkpoint | None
) -> dict[Site, tuple[list[list[Edit]], Checkpoint | None]]:
    """For each site with a non-neutral edit, its edits, row by row, and its SAE.

    Raises:
        SteerError, ModelError: whatever can be detected before the model runs; see `steering`.
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


__all__ = ["MODES", "Edit", "Edits", "Mode", "apply_edits", "by_row", "eagerly", "edits_by_site", "steering", "writes_where_it_reads"]
