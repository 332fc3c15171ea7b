"""`VisionModel`: any torch module with blocks, its image transform, and hooks on the output of each block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from saev_core.config.base import PluginConfig, PluginRef
from saev_core.errors import ModelError
from saev_core.models.crop import Geometry
from saev_core.plugins.registry import resolve
from saev_core.support.devices import pick_device
from saev_core.types import Box, Grid, Site


class ModelConfig(PluginConfig):
    """Options common to all models; a plugin adds its own."""

    main = "checkpoint"

    checkpoint: str = ""
    """Which weights: a hub name, or a local file or folder."""
    pretrained: bool = True
    """Load pretrained weights; false gives random ones, for tests."""
    blocks: str = ""
    """Dotted glob of modules to hook instead of the model's own blocks, such as `layers.*`."""


@runtime_checkable
class TextSpace(Protocol):
    """What a model with a joint image-text space, such as CLIP, offers besides `forward`."""

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n d_text"]:
        """Embeddings of texts, not normalised.

        Raises:
            ModelError: the checkpoint has no text encoder.
        """
        ...

    def encode_images(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch d_text"]:
        """Embeddings of images, not normalised."""
        ...

    def project(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_text"]:
        """The model's head, everything after its last block, applied to single tokens of the residual stream, as if each were the
        whole image."""
        ...


class _Enough(Exception):
    """Raised by the last hook to skip the remaining blocks."""


class VisionModel(nn.Module):
    """Base of every model plugin: set `transform`, `grid`, `d_model` and `blocks` in `__init__`, and define `forward`.

    Nothing else is assumed: neither a CLS token, a square grid, a fixed image size nor a particular width.
    """

    Config: ClassVar[type[ModelConfig]] = ModelConfig

    transform: Callable[[Image.Image], Tensor]
    """PIL RGB -> pixels `[3, h, w]`; a deterministic resize and crop."""
    grid: Grid
    d_model: int
    blocks: Sequence[nn.Module] | nn.ModuleList | nn.Sequential
    """The modules whose outputs are recorded, in execution order."""
    channels_last: bool | None = None
    """Whether feature maps are `[b, h, w, c]`; None: inferred from a shape whose middle axes are equal."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def hooked(self) -> Sequence[nn.Module] | nn.ModuleList | nn.Sequential:
        """The modules that are recorded: the model's own `blocks`, or those selected by `hook_blocks`."""
        chosen: Sequence[nn.Module] | None = self.__dict__.get("_hooked")
        return self.blocks if chosen is None else chosen

    def site(self, layer: int, stream: str = "resid") -> Site:
        """The site of a block; -1 is the last one.

        Raises:
            ModelError: there is no such block, or it has no such stream.
        """
        n = len(self.hooked)
        if not -n <= layer < n:
            raise ModelError(f"layer {layer}: {type(self).__name__} has blocks 0 to {n - 1} (or -{n} to -1).")
        site = Site(layer % n, stream)
        self._module(site)
        return site

    def _module(self, site: Site) -> nn.Module:
        block = self.hooked[site.layer]
        if site.stream == "resid":
            return block
        try:
            return block.get_submodule(site.stream)
        except AttributeError:
            inside = ", ".join(name for name, _ in block.named_children())
            raise ModelError(f"stream {site.stream!r}: block {site.layer} has no such module; it has {inside}.") from None

    def tokens(self, output: Any) -> Float[Tensor, "batch n_tokens d_model"]:
        """A block's raw output as tokens. Handles tuples (takes the first element) and feature maps `[b, c, h, w]`
        or `[b, h, w, c]`; override it for anything else.

        Raises:
            ModelError: the output is not a batch of tokens or a feature map.
        """
        while isinstance(output, (tuple, list)):
            output = output[0]
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"a block returned {shape}; only tokens [b, n, d] or maps [b, c, h, w] can be recorded: check model.blocks.")
        if output.ndim == 3:
            return output
        return output.flatten(1, 2) if self._channels_last(output) else output.flatten(2).transpose(1, 2)  # [b, h * w, c]

    def put_tokens(self, output: Any, tokens: Float[Tensor, "batch n_tokens d_model"]) -> Any:
        """The inverse of `tokens`: an output of the same structure as `output`, with its tokens replaced.

        Raises:
            ModelError: the model overrides `tokens` but not `put_tokens`.
        """
        cls = type(self)
        if cls.tokens is not VisionModel.tokens and cls.put_tokens is VisionModel.put_tokens:
            raise ModelError(f"{cls.__name__} overrides `tokens`; to steer it, override `put_tokens` too.")
        if isinstance(output, (tuple, list)):
            items = [self.put_tokens(output[0], tokens), *output[1:]]
            return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
        if output.ndim == 3:
            return tokens
        flat = tokens if self._channels_last(output) else tokens.transpose(1, 2)  # [b, h * w, c] or [b, c, h * w]
        # Keep the strides too: a convolution rounds differently in another memory format.
        return torch.empty_like(output).copy_(flat.reshape(output.shape))

    def _channels_last(self, output: Tensor) -> bool:
        return output.shape[1] == output.shape[2] != output.shape[3] if self.channels_last is None else self.channels_last

    @torch.no_grad()
    def record(self, images: Float[Tensor, "batch 3 h w"], sites: Iterable[Site]) -> dict[Site, Float[Tensor, "batch n_tokens d_model"]]:
        """The output of each site in one forward pass, which stops after the last of them. All hooks are removed.

        Raises:
            ModelError: a site does not run in the forward pass, or its output is not tokens.
        """
        wanted = list(dict.fromkeys(sites))
        seen: dict[Site, Tensor] = {}

        def hook(site: Site) -> Callable[..., None]:
            def keep(module: nn.Module, args: Any, output: Any) -> None:
                # clone: later in-place operations of the model must not change what was recorded.
                seen[site] = self.tokens(output).detach().clone()
                if len(seen) == len(wanted):
                    raise _Enough

            return keep

        handles = [self._module(site).register_forward_hook(hook(site)) for site in wanted]
        try:
            self(images)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if missing := [str(site) for site in wanted if site not in seen]:
            raise ModelError(f"{', '.join(missing)} did not run in the forward pass of {type(self).__name__}; check model.blocks.")
        for site, tokens in seen.items():
            if tokens.shape[1] != self.grid.n_tokens or (site.stream == "resid" and tokens.shape[2] != self.d_model):
                raise ModelError(
                    f"{site} gives {tokens.shape[1]} tokens of width {tokens.shape[2]}, the model's grid has {self.grid.n_tokens} of width "
                    f"{self.d_model}; choose modules of one size with model.blocks (its last match decides)."
                )
        return seen

    def crop(self, width: int, height: int) -> Box:
        """The part of a `width` x `height` original that the model sees, in original pixels; see `Geometry`."""
        if "_geometry" not in self.__dict__:
            self.__dict__["_geometry"] = Geometry(self.transform)
        geometry: Geometry = self.__dict__["_geometry"]
        return geometry.crop(width, height)

    def hook_blocks(self, pattern: str) -> None:
        """Hook the modules that match a dotted glob instead of the model's own blocks.

        The pattern may omit leading names: `layers.*` finds `encoder.layers.0`, `encoder.layers.1`, ...
        `grid` and `d_model` are set from the last match's output.

        Raises:
            ModelError: nothing matches, or the matches lie in two places.
        """
        names = select_modules(self, pattern)
        modules = dict(self.named_modules())
        # Does not replace `blocks`: the model's own forward may iterate over it.
        self.__dict__["_hooked"] = [modules[name] for name in names]
        pixels = self.transform(Image.new("RGB", (self.grid.width_px, self.grid.height_px)))[None].to(self.device)
        outputs: list[Tensor] = []
        handle = self.hooked[-1].register_forward_hook(lambda m, a, out: outputs.append(_first(out)))
        try:
            with torch.no_grad():
                self(pixels)
        finally:
            handle.remove()
        if not outputs:
            raise ModelError(f"{names[-1]} did not run in the forward pass of {type(self).__name__}; check model.blocks.")
        tokens = self.tokens(outputs[-1])
        self.d_model = tokens.shape[2]
        if outputs[-1].ndim == 4:
            rows, cols = outputs[-1].shape[1:3] if self._channels_last(outputs[-1]) else outputs[-1].shape[2:4]
            self.grid = Grid(rows, cols, pixels.shape[2] // rows)
        elif tokens.shape[1] != self.grid.n_tokens:
            raise ModelError(f"{pattern}: {names[-1]} gives {tokens.shape[1]} tokens, but the model's grid has {self.grid.n_tokens}.")


def _first(output: Any) -> Tensor:
    while isinstance(output, (tuple, list)):
        output = output[0]
    assert isinstance(output, Tensor)
    return output


def select_modules(model: nn.Module, pattern: str) -> list[str]:
    """Names of the modules that match a dotted glob, numbers sorted numerically; see `VisionModel.hook_blocks`.

    Raises:
        ModelError: nothing matches, or the matches lie in two places.
    """
    parts = pattern.split(".")
    by_prefix: dict[tuple[str, ...], list[str]] = {}
    for name, _ in model.named_modules():
        segments = name.split(".")
        tail = segments[-len(parts) :]
        if name and len(tail) == len(parts) and all(map(fnmatchcase, tail, parts)):
            by_prefix.setdefault(tuple(segments[: -len(parts)]), []).append(name)
    if not by_prefix:
        raise ModelError(f"model.blocks={pattern!r} matches no module; the top ones are {', '.join(n for n, _ in model.named_children())}.")
    depth = min(map(len, by_prefix))
    places = [prefix for prefix in by_prefix if len(prefix) == depth]
    if len(places) > 1:
        raise ModelError(
            f"model.blocks={pattern!r} matches in {' and '.join('.'.join(p) or 'the root' for p in places)}; give a longer pattern."
        )
    return sorted(by_prefix[places[0]], key=lambda name: [int(s) if s.isdigit() else -1 for s in re.split(r"(\d+)", name)])


def load_model(ref: PluginRef | str, device: str = "auto") -> VisionModel:
    """Build a model in evaluation mode, on its device: `load_model("clip:ViT-B-32/openai")`.

    Raises:
        UnknownPluginError, PluginError, ConfigError: see `plugins.resolve`.
        ModelError: its weights cannot be loaded.
        DeviceError: the device is not available.
    """
    where = pick_device(device)
    cls, cfg = resolve("model", ref)
    model = cls(cfg)
    if not isinstance(model, VisionModel):
        raise ModelError(f"model plugin {cls.__module__}.{cls.__qualname__} is not a VisionModel.")
    model.eval().requires_grad_(False).to(where)
    if cfg.blocks:
        model.hook_blocks(cfg.blocks)
    return model
