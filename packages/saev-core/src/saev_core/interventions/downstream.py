"""`Downstream`: re-run only the part of a model after a site on the same images; for sliders and control experiments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saev_core.errors import ModelError, ShapeError
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.edit import Edits, by_row
from saev_core.interventions.steering import eagerly, edits_by_site, steering
from saev_core.models.base import VisionModel
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.codes import Codes
from saev_core.types import Site

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_GUARD = threading.Lock()


@dataclass(frozen=True, eq=False)
class Downstream:
    """The blocks after a site, with everything up to the site cached: `downstream(edits)` returns the output of the whole model, bit
    for bit, at the cost of those blocks.

    Create one with `Downstream.of`. Blocks up to the site return their cached output; only the patch embedding before the first
    block re-runs, which is cheap. The site's tokens are encoded once for all edits of the same patches, and once for all
    variants of one image. Memory: the output of every block up to the site.
    """

    model: VisionModel
    site: Site
    images: Float[Tensor, "batch 3 h w"]
    said: tuple[tuple[nn.Module, Any], ...]
    """Modules that are not re-run, and their cached outputs."""
    known: dict[Any, Codes] = field(default_factory=dict, repr=False)
    """Codes of the site's tokens, cached between calls."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: VisionModel, images: Float[Tensor, "batch 3 h w"], site: Site | str) -> Downstream:
        """Run the model once and cache its blocks up to `site`.

        Raises:
            ModelError: the site does not exist, or does not run.
        """
        site = Site.parse(site) if isinstance(site, str) else site
        site = model.site(site.layer, site.stream)
        modules = [*model.hooked[: site.layer], model._module(site)]
        said: dict[nn.Module, Any] = {}

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            said[module] = _each(output, torch.clone)

        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            with eagerly():
                model(images)
        finally:
            for handle in handles:
                handle.remove()
        if any(module not in said for module in modules):
            raise ModelError(f"{site}: not every block up to it ran in the forward pass of {type(model).__name__}; check model.blocks.")
        return cls(model, site, images, tuple((module, said[module]) for module in modules))

    @classmethod
    def blank(cls, model: VisionModel, site: Site | str) -> Downstream:
        """For a black image, to be given tokens with `on`: correct for models whose later blocks see only the site's tokens, such as
        plain vision transformers.

        Raises:
            ModelError: as `of`.
        """
        return cls.of(model, torch.zeros(1, 3, model.grid.height_px, model.grid.width_px, device=model.device), site)

    @property
    def tokens(self) -> Float[Tensor, "batch n_tokens d_model"]:
        """The output tokens of the site, unedited."""
        return self.model.tokens(self.said[-1][1])

    def on(self, tokens: Float[Tensor, "batch n_tokens d_model"]) -> Downstream:
        """The same with other tokens at the site, for example recorded ones, of any number of images.

        Raises:
            ShapeError: their shape does not match the site.
        """
        have = self.tokens
        if tokens.shape[1:] != have.shape[1:]:
            raise ShapeError(f"{self.site} has tokens of shape {list(have.shape[1:])}, not {list(tokens.shape[1:])}.")
        like = self if len(tokens) == len(have) else self.first(0).times(len(tokens))
        module, output = like.said[-1]
        put = self.model.put_tokens(output, tokens.to(have))
        return replace(like, said=(*like.said[:-1], (module, put)), known={})

    def first(self, row: int) -> Downstream:
        """Restricted to one image of the batch."""
        n = len(self.images)
        return self._rows(lambda x: x[row : row + 1] if x.ndim and len(x) == n else x)

    def times(self, n: int) -> Downstream:
        """One image repeated `n` times, so that each copy can have its own edits.

        Raises:
            ShapeError: there are several images.
        """
        if len(self.images) != 1:
            raise ShapeError(f"{len(self.images)} images cannot be repeated; choose one with first(row) first.")
        return self._rows(lambda x: x.expand(n, *x.shape[1:]) if x.ndim and len(x) == 1 else x)

    def _rows(self, pick: Any) -> Downstream:
        said = tuple((module, _each(output, pick)) for module, output in self.said)
        return replace(self, images=pick(self.images), said=said, known={})

    @torch.no_grad()
    def __call__(
        self,
        edits: Edits = (),
        checkpoints: Mapping[str, Checkpoint] | Checkpoint | None = None,
        *,
        ask: Callable[[Tensor], Any] | None = None,
    ) -> Any:
        """The output of `model(images)` under edits at the site or after it. For one image, several lists of edits give one output each.

        Args:
            ask: called with the images instead of the model; must run the model, such as `model.encode_images`.

        Raises:
            SteerError, ModelError: as `steering`, or an edit is before the site.
        """
        return self._with(edits, checkpoints, lambda downstream: (ask or downstream.model)(downstream.images))

    def record(
        self, sites: Iterable[Site], edits: Edits = (), checkpoints: Mapping[str, Checkpoint] | Checkpoint | None = None
    ) -> dict[Site, Float[Tensor, "batch n_tokens d_model"]]:
        """The result of `model.record(images, sites)` under the edits, for sites not before this one.

        Raises:
            SteerError, ModelError: as `__call__`.
        """
        wanted = list(sites)
        for site in wanted:
            self._not_before(site)
        found: dict[Site, Tensor] = self._with(edits, checkpoints, lambda downstream: downstream.model.record(downstream.images, wanted))
        return found

    def _not_before(self, site: Site) -> None:
        inside = site.layer == self.site.layer and site != self.site and self.site.stream == "resid"
        if site.layer < self.site.layer or inside:
            raise ModelError(f"{site} is before {self.site}, where the model resumes; start at an earlier site.")

    def _with(self, edits: Edits, checkpoints: Mapping[str, Checkpoint] | Checkpoint | None, ask: Any) -> Any:
        rows = by_row(edits)
        for edit in (edit for row in rows for edit in row):
            self._not_before(Site.parse(edit.site))
        plan = edits_by_site(self.model, rows, checkpoints)
        mine, made = plan.pop(self.site, ([[]] * len(rows), None))
        # Not in a hook: the site's tokens are always the same, so they are encoded once.
        x = self.tokens
        edited = apply_edits(x, mine, made, n_prefix=self.model.grid.n_prefix, known=self.known)
        here = self if edited is x else self.on(edited)
        later = [[edit for edit in row if Site.parse(edit.site) != self.site] for row in rows]
        with _answering(here), steering(here.model, later, checkpoints):
            return ask(here)


def resume_from(
    model: VisionModel,
    site: Site | str,
    tokens: Float[Tensor, "batch n_tokens d_model"],
    images: Float[Tensor, "batch 3 h w"] | None = None,
) -> Any:
    """The output of `model(images)` with these tokens at the site; runs only the blocks after it.

    For repeated calls, keep a `Downstream` and use `downstream.on(tokens)()`, which never re-runs the first blocks.

    Args:
        images: the images of the tokens; by default a black one, which is correct for models whose later blocks see only the
            site's tokens, such as plain vision transformers.

    Raises:
        ShapeError: the shape of the tokens does not match the site.
        ModelError: as `Downstream.of`.
    """
    downstream = Downstream.blank(model, site) if images is None else Downstream.of(model, images, site)
    return downstream.on(tokens)()


def _each(output: Any, change: Any) -> Any:
    """The same structure with `change` applied to every tensor."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, (tuple, list)):
        items = [_each(item, change) for item in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    if isinstance(output, dict):
        return {key: _each(value, change) for key, value in output.items()}
    return output


@contextmanager
def _answering(downstream: Downstream) -> Iterator[None]:
    """Cached modules return their output without running. One thread at a time; other threads running the whole model are unaffected."""
    with _GUARD:
        lock = _LOCKS.setdefault(downstream.model, threading.RLock())
    owner = threading.get_ident()

    def short(module: nn.Module, output: Any) -> Any:
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != owner:
                return own(*args, **kwargs)
            # clone: a model that adds in place must not modify the cache.
            return _each(output, torch.clone)

        return forward

    with lock, eagerly():
        before = [(module, module.__dict__.get("forward")) for module, _ in downstream.said]
        try:
            for module, output in downstream.said:
                module.__dict__["forward"] = short(module, output)
            yield
        finally:
            for module, own in before:
                if own is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = own


__all__ = ["Downstream", "resume_from"]
