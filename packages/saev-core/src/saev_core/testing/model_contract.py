"""`ModelContract`: tests that every model plugin must pass. Inherit from it and run pytest, which is not imported here.

from saev_core.testing import DatasetContract, ModelContract

class TestDinoV3(ModelContract):
    model = DinoV3                                  # the class, or a function that builds it: lambda cfg: ...
    config = DinoV3.Config(pretrained=False)        # optional; by default Config(pretrained=False)

class TestStripes(DatasetContract):
    dataset = Stripes
    config = Stripes.Config(root="tests/stripes")   # optional
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from saev_core.models.base import ModelConfig, VisionModel
from saev_core.types import Site


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse coloured noise: an image of any size in which no two patches are alike."""
    small = np.random.default_rng(seed).integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


class _Plugin:
    """Shared by all contracts: a class attribute, possibly a plain function, that builds the object under test."""

    @classmethod
    def _factory(cls, name: str) -> Any:
        for klass in cls.__mro__:
            if name in vars(klass):
                made = vars(klass)[name]
                return made.__func__ if isinstance(made, staticmethod) else made
        raise NotImplementedError(f"set {cls.__name__}.{name} to the plugin's class.")


class ModelContract(_Plugin):
    """Tests of a `VisionModel`; they work with random weights, so they need no network."""

    model: ClassVar[Callable[..., VisionModel]]
    """The model's class, or a function that takes its Config."""
    config: ClassVar[ModelConfig | None] = None
    """Its options; by default `Config(pretrained=False)`."""
    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((320, 240), (201, 333), (64, 64))
    """Width and height of the test images."""
    atol: ClassVar[float] = 1e-4
    """Largest difference allowed between an image alone and in a batch, as a fraction of the largest activation."""

    @cached_property
    def built(self) -> VisionModel:
        """The model under test."""
        factory = self._factory("model")
        config = self.config or getattr(factory, "Config", ModelConfig)(pretrained=False)
        made: VisionModel = factory(config)
        assert isinstance(made, VisionModel), f"{type(made).__name__} is not a VisionModel"
        return made.eval().requires_grad_(False)

    def _pixels(self, n: int = 2) -> Tensor:
        width, height = self.sizes[0]
        pixels = torch.stack([self.built.transform(picture(width, height, seed)) for seed in range(n)])
        return pixels.to(self.built.device)

    def _sites(self) -> list[Site]:
        return [self.built.site(layer) for layer in range(len(self.built.blocks))]

    def _close(self, a: Tensor, b: Tensor) -> None:
        worst = float((a.float() - b.float()).abs().max())
        assert worst <= self.atol * max(1.0, float(b.float().abs().max())), f"they differ by {worst:.3g}"

    def test_is_a_vision_model_with_all_it_needs(self) -> None:
        assert self.built.d_model > 0
        assert len(self.built.blocks) > 0
        assert self.built.grid.n_patches > 0
        assert issubclass(getattr(type(self.built), "Config", type(None)), ModelConfig), "the class needs a Config, a ModelConfig"

    def test_transform_gives_pixels_of_one_shape_for_any_picture(self) -> None:
        shapes = set()
        for width, height in self.sizes:
            pixels = self.built.transform(picture(width, height))
            assert isinstance(pixels, Tensor)
            assert pixels.is_floating_point()
            assert pixels.ndim == 3
            assert len(pixels) == 3
            assert torch.isfinite(pixels).all()
            shapes.add(tuple(pixels.shape))
        grid = self.built.grid
        assert shapes == {(3, grid.height_px, grid.width_px)}, f"grid says {grid.height_px} x {grid.width_px} px, transform gives {shapes}"

    def test_transform_is_deterministic(self) -> None:
        width, height = self.sizes[0]
        assert torch.equal(self.built.transform(picture(width, height)), self.built.transform(picture(width, height)))

    def test_every_block_gives_as_many_tokens_as_the_grid_says(self) -> None:
        recorded = self.built.record(self._pixels(), self._sites())
        for site, tokens in recorded.items():
            assert tuple(tokens.shape) == (2, self.built.grid.n_tokens, self.built.d_model), str(site)
            assert torch.isfinite(tokens).all(), str(site)

    def test_tokens_can_be_written_back_for_steering(self) -> None:
        def double(module: nn.Module, args: Any, output: Any) -> Any:
            twice = 2 * self.built.tokens(output)
            put = self.built.put_tokens(output, twice)
            assert type(put) is type(output)
            assert torch.equal(self.built.tokens(put), twice)
            return put

        pixels, last = self._pixels(), self._sites()[-1]
        before = self.built.record(pixels, [last])[last]
        handle = self.built.blocks[last.layer].register_forward_hook(double)
        try:
            after = self.built.record(pixels, [last])[last]
        finally:
            handle.remove()
        self._close(after, 2 * before)

    def test_recorded_equals_a_hand_placed_hook_on_the_whole_forward(self) -> None:
        pixels = self._pixels()
        by_hand: dict[Site, Tensor] = {}

        def keep(site: Site) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, args, output: by_hand.__setitem__(site, self.built.tokens(output).clone())

        handles = [self.built.blocks[site.layer].register_forward_hook(keep(site)) for site in self._sites()]
        try:
            with torch.no_grad():
                self.built(pixels)
        finally:
            for handle in handles:
                handle.remove()
        for site, tokens in self.built.record(pixels, self._sites()).items():
            assert torch.equal(tokens, by_hand[site]), str(site)

    def test_an_image_alone_gives_what_it_gives_in_a_batch(self) -> None:
        pixels, site = self._pixels(3), self.built.site(-1)
        together = self.built.record(pixels, [site])[site]
        self._close(self.built.record(pixels[1:2], [site])[site], together[1:2])

    def test_recording_twice_gives_the_same(self) -> None:
        pixels, site = self._pixels(), self.built.site(-1)
        assert torch.equal(self.built.record(pixels, [site])[site], self.built.record(pixels, [site])[site])

    def test_different_pictures_give_different_tokens(self) -> None:
        site = self.built.site(-1)
        first, second = self.built.record(self._pixels(), [site])[site]
        assert not torch.allclose(first, second)

    def test_recording_leaves_no_hook_and_no_gradient_behind(self) -> None:
        before = [len(module._forward_hooks) for module in self.built.modules()]
        recorded = self.built.record(self._pixels(1), self._sites())
        assert [len(module._forward_hooks) for module in self.built.modules()] == before
        assert not any(tokens.requires_grad for tokens in recorded.values())

    def test_negative_layers_are_the_same_sites(self) -> None:
        n = len(self.built.blocks)
        assert [self.built.site(layer - n) for layer in range(n)] == self._sites()

    def test_evaluation_mode_holds_for_every_module(self) -> None:
        assert not any(module.training for module in self.built.modules()), "a module stays in training mode after .eval()"

    def test_where_its_patches_lie_is_found_for_any_picture(self) -> None:
        for width, height in self.sizes:
            crop = self.built.crop(width, height)
            assert -1 <= crop.left < crop.right <= width + 1, f"{width} x {height}: {crop}"
            assert -1 <= crop.top < crop.bottom <= height + 1, f"{width} x {height}: {crop}"

    def test_a_bright_spot_lies_where_its_crop_says(self) -> None:
        grid = self.built.grid
        for width, height in self.sizes:
            crop = self.built.crop(width, height)
            box = grid.box(grid.n_patches // 2 + grid.cols // 2, crop)
            canvas = np.zeros((height, width, 3), np.uint8)
            canvas[
                round(box.top) : max(round(box.bottom), round(box.top) + 1), round(box.left) : max(round(box.right), round(box.left) + 1)
            ] = 255
            pixels = self.built.transform(Image.fromarray(canvas)) - self.built.transform(Image.new("RGB", (width, height)))
            light = grid.to_map(_patch_sums(pixels.abs().sum(0), grid.rows, grid.cols).flatten())
            assert int(light.argmax()) == grid.n_patches // 2 + grid.cols // 2, f"{width} x {height}: crop {crop} is off"


def _patch_sums(values: Tensor, rows: int, cols: int) -> Tensor:
    height, width = values.shape
    return values.reshape(rows, height // rows, cols, width // cols).sum((1, 3))  # [rows, cols]
