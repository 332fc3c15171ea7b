"""What a plugin must keep to, as test classes to inherit from. Run them with pytest; it is not imported here.

from saev_core.testing import DatasetContract, ModelContract

class TestDinoV3(ModelContract):
    model = DinoV3                                  # the class, or what builds it: lambda cfg: ...
    config = DinoV3.Config(pretrained=False)        # optional; by default Config(pretrained=False)

class TestStripes(DatasetContract):
    dataset = Stripes
    config = Stripes.Config(root="tests/stripes")   # optional
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from saev_core.config import DatasetConfig, ModelConfig, PluginConfig
from saev_core.dataset import ImageDataset
from saev_core.errors import BadImageError, SaevError
from saev_core.model import VisionModel
from saev_core.types import Example, Site


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse coloured noise: a picture of any size that no two patches of are alike."""
    small = np.random.default_rng(seed).integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


class _Plugin:
    """What the contracts share: a class attribute that builds the object under test, which may be a plain function."""

    @classmethod
    def _factory(cls, name: str) -> Any:
        for klass in cls.__mro__:
            if name in vars(klass):
                made = vars(klass)[name]
                return made.__func__ if isinstance(made, staticmethod) else made
        raise NotImplementedError(f"set {cls.__name__}.{name} to the plugin's class.")


class ModelContract(_Plugin):
    """Tests of a `VisionModel`; random weights will do, so they need no network."""

    model: ClassVar[Callable[..., VisionModel]]
    """The model's class, or a function of one Config."""
    config: ClassVar[ModelConfig | None] = None
    """Its options; by default `Config(pretrained=False)`."""
    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((320, 240), (201, 333), (64, 64))
    """Width and height of the pictures that are tried."""
    atol: ClassVar[float] = 1e-4
    """Largest difference allowed between an image alone and in a batch, as a share of the largest activation."""

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


class DatasetContract(_Plugin):
    """Tests of an `ImageDataset`."""

    dataset: ClassVar[Callable[..., ImageDataset]]
    """The data set's class, or a function of one Config."""
    config: ClassVar[DatasetConfig | None] = None
    """Its options; by default `Config()`."""
    n: ClassVar[int] = 8
    """Images that are looked at: spread over the whole, first and last among them."""

    def make(self) -> ImageDataset:
        """A new instance; override it where the options need a temporary folder."""
        factory = self._factory("dataset")
        made: ImageDataset = factory(self.config or getattr(factory, "Config", DatasetConfig)())
        return made

    @cached_property
    def built(self) -> ImageDataset:
        """The data set under test."""
        made = self.make()
        assert isinstance(made, ImageDataset), f"{type(made).__name__} is not an ImageDataset"
        return made

    @cached_property
    def _indices(self) -> list[int]:
        return sorted({int(i) for i in np.linspace(0, len(self.built) - 1, self.n)})

    @cached_property
    def _examples(self) -> list[Example]:
        found = self._read(self.built, self._indices)
        assert found, "none of the images that were tried is readable"
        return found

    @staticmethod
    def _read(dataset: ImageDataset, indices: list[int]) -> list[Example]:
        """Examples at `indices`, in order; unreadable ones are left out, as the contract allows."""
        found = []
        if dataset.sequential:
            wanted = set(indices)
            every = enumerate(dataset.examples(0, max(wanted) + 1))
            return [item for i, item in every if i in wanted and isinstance(item, Example)]
        for index in indices:
            try:
                found.append(dataset[index])
            except BadImageError:
                continue
        return found

    def test_it_holds_images(self) -> None:
        assert len(self.built) > 0
        assert issubclass(getattr(type(self.built), "Config", type(None)), DatasetConfig), "the class needs a Config, a DatasetConfig"

    def test_an_image_carries_the_number_it_was_asked_by(self) -> None:
        readable = [example.index for example in self._examples]
        assert set(readable) <= set(self._indices)
        assert len(set(readable)) == len(readable)

    def test_images_are_rgb(self) -> None:
        for example in self._examples:
            assert isinstance(example.image, Image.Image)
            assert example.image.mode == "RGB", f"image {example.index} is {example.image.mode}"

    def test_labels_are_among_the_classes(self) -> None:
        for example in self._examples:
            if example.label is not None:
                assert self.built.classes is not None, "there are labels but no classes"
                assert 0 <= example.label < len(self.built.classes), f"image {example.index} has label {example.label}"

    def test_masks_cover_their_image_with_known_classes(self) -> None:
        for example in self._examples:
            if example.mask is not None:
                assert example.mask.shape == (example.image.height, example.image.width), f"image {example.index}"
                assert example.mask.dtype in (np.uint8, np.uint16)
                assert self.built.mask_classes is not None, "there are masks but no mask_classes"
                assert int(example.mask.max()) < len(self.built.mask_classes), f"image {example.index}"

    def test_another_instance_gives_the_same_images_and_identity(self) -> None:
        other = self.make()
        assert len(other) == len(self.built)
        assert other.identity() == self.built.identity()
        for a, b in zip(self._examples, self._read(other, self._indices), strict=True):
            _same(a, b)

    def test_four_threads_read_what_one_reads(self) -> None:
        if self.built.sequential:
            return
        with ThreadPoolExecutor(4) as pool:
            rounds = list(pool.map(lambda _: self._read(self.built, self._indices), range(4)))
        for examples in rounds:
            for a, b in zip(self._examples, examples, strict=True):
                _same(a, b)

    def test_examples_come_in_order(self) -> None:
        stop = min(len(self.built), 3)
        given = list(self.built.examples(0, stop))
        assert len(given) == stop, "an unreadable image must come as its error, in its place"
        assert [item.index for item in given if isinstance(item, Example)] == [
            i for i, item in enumerate(given) if isinstance(item, Example)
        ]

    def test_there_is_no_image_beyond_the_last(self) -> None:
        if self.built.sequential:
            return
        for index in (len(self.built), len(self.built) + 1000):
            try:
                self.built[index]
            except IndexError:
                continue
            raise AssertionError(f"there are {len(self.built)} images, and yet image {index}")

    def test_every_image_has_a_name(self) -> None:
        assert all(self.built.name(index) for index in self._indices)


def _same(a: Example, b: Example) -> None:
    assert a.index == b.index
    assert a.label == b.label
    assert np.array_equal(np.asarray(a.image), np.asarray(b.image)), f"image {a.index} differs"
    assert (a.mask is None) == (b.mask is None)
    assert a.mask is None or b.mask is None or np.array_equal(a.mask, b.mask), f"the mask of image {a.index} differs"


class ExecutorProtocol(Protocol):
    """What `ExecutorContract` tests."""

    def submit(self, argv: list[str], folder: Path) -> int: ...


class ExecutorContract(_Plugin):
    """Tests of an executor that runs where this process can see its result: locally, or on a shared disk."""

    executor: ClassVar[Callable[..., Any]]
    """The executor's class, or a function of one Config."""
    config: ClassVar[PluginConfig | None] = None
    """Its options; by default `Config()`."""

    def make(self) -> ExecutorProtocol:
        factory = self._factory("executor")
        made: ExecutorProtocol = factory(self.config or factory.Config())
        return made

    def test_a_command_that_works_gives_0(self, tmp_path: Path) -> None:
        assert self.make().submit(["saev", "--help"], tmp_path) == 0

    def test_a_command_that_is_not_there_gives_2(self, tmp_path: Path) -> None:
        assert self.make().submit(["saev", "no-such-command"], tmp_path) == 2

    def test_anything_but_saev_is_refused(self, tmp_path: Path) -> None:
        try:
            self.make().submit(["true"], tmp_path)
        except SaevError:
            return
        raise AssertionError("an executor runs saev commands; others must raise a SaevError")
