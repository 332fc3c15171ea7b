"""`VisionModel`: what leaves a block is what is recorded, and a model is left as it was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saev_core.errors import DeviceError, ModelError
from saev_core.models.base import VisionModel, select_modules
from saev_core.models.transform import ResizeCrop
from saev_core.support.devices import pick_device
from saev_core.types import Grid, Site


class Mlp(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


class Block(nn.Module):
    """A residual block that counts its calls; `wrap` gives its output another form."""

    def __init__(self, d: int, wrap: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(d), Mlp(d)
        self.wrap, self.n_calls = wrap, 0

    def forward(self, x: Any) -> Any:
        self.n_calls += 1
        while isinstance(x, tuple):
            x = x[0]
        return self.wrap(x + self.mlp(self.norm(x)))


class Toy(VisionModel):
    """Patches of 4 x 4 pixels, one prefix token, blocks of residual MLPs."""

    def __init__(self, n_blocks: int = 4, wrap: Callable[[Tensor], Any] = lambda x: x, spoil: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.grid, self.d_model = Grid(3, 5, patch_px=4, n_prefix=1), 8
        self.transform = ResizeCrop((12, 20), None)
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.cls = nn.Parameter(torch.randn(8))
        self.blocks = nn.ModuleList(Block(8, wrap) for _ in range(n_blocks))
        self.spoil = spoil

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Any:
        x = self.embed(images).flatten(2).transpose(1, 2)  # [b, rows * cols, d_model]
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
            if self.spoil:
                x.mul_(0)
        return x


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))


def by_hand(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """The module's output in an undisturbed forward pass, from a hook of our own."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


def test_what_is_recorded_is_what_leaves_the_block(images: Tensor) -> None:
    model = Toy()
    got = model.record(images, [model.site(i) for i in range(4)])
    assert list(got) == [Site(i) for i in range(4)]
    for layer in range(4):
        assert torch.equal(got[Site(layer)], by_hand(model, model.blocks[layer], images))
        assert got[Site(layer)].shape == (2, 16, 8)


def test_stopping_early_changes_nothing_and_saves_the_later_blocks(images: Tensor) -> None:
    model = Toy()
    full = model.record(images, [Site(1), Site(3)])[Site(1)]
    calls = [block.n_calls for block in model.blocks]
    early = model.record(images, [Site(1)])[Site(1)]
    assert torch.equal(early, full)
    assert [block.n_calls - before for block, before in zip(model.blocks, calls, strict=True)] == [1, 1, 0, 0]


def test_the_order_in_which_layers_are_asked_for_cannot_mislabel_them(images: Tensor) -> None:
    model = Toy()
    forward, backward = (model.record(images, [Site(i) for i in order]) for order in ((0, 2), (2, 0, 2)))
    assert all(torch.equal(forward[site], backward[site]) for site in (Site(0), Site(2)))


def test_negative_layers_are_the_same_sites() -> None:
    model = Toy()
    assert [model.site(i) for i in (-1, -4)] == [Site(3), Site(0)]
    assert str(model.site(-1, "mlp.fc1")) == "mlp.fc1.3"


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_is_not_there_is_an_error_that_says_which_are(layer: int) -> None:
    with pytest.raises(ModelError, match=r"blocks 0 to 3 \(or -4 to -1\)"):
        Toy().site(layer)


def test_an_unknown_stream_names_what_the_block_has() -> None:
    with pytest.raises(ModelError, match="norm, mlp"):
        Toy().site(0, "attn")


def test_streams_are_modules_inside_the_block(images: Tensor) -> None:
    model = Toy()
    sites = [model.site(2, "mlp"), model.site(2, "mlp.fc1"), model.site(2)]
    got = model.record(images, sites)
    assert torch.equal(got[sites[0]], by_hand(model, model.blocks[2].mlp, images))
    assert got[sites[1]].shape == (2, 16, 16)
    assert torch.equal(got[sites[2]], by_hand(model, model.blocks[2], images))


def test_recording_leaves_no_hook_behind(images: Tensor) -> None:
    model = Toy()
    model.record(images, [Site(0), Site(3)])
    assert n_hooks(model) == 0


def test_recording_leaves_no_hook_behind_when_the_forward_pass_fails() -> None:
    model = Toy()
    with pytest.raises(RuntimeError):
        model.record(torch.randn(1, 5, 12, 20), [Site(0), Site(3)])
    assert n_hooks(model) == 0


def test_recording_leaves_no_hook_behind_when_the_output_is_not_tokens(images: Tensor) -> None:
    model = Toy(wrap=lambda x: {"x": x})
    with pytest.raises(ModelError, match="a block returned dict"):
        model.record(images, [Site(0)])
    assert n_hooks(model) == 0


def test_a_block_that_does_not_run_is_named(images: Tensor) -> None:
    model = Toy()
    model.blocks.append(Block(8))
    model.forward = lambda images, run=model.blocks[:4], embed=model.embed: [b(embed(images).flatten(2).transpose(1, 2)) for b in run]  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"resid\.4 did not run"):
        model.record(images, [Site(0), Site(4)])
    assert n_hooks(model) == 0


def test_an_in_place_operation_after_the_block_does_not_reach_what_was_recorded(images: Tensor) -> None:
    clean, spoiled = Toy(), Toy(spoil=True)
    got = spoiled.record(images, [Site(0), Site(3)])
    assert torch.equal(got[Site(0)], clean.record(images, [Site(0)])[Site(0)])


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: ((x, x * 2), x * 3)])
def test_of_a_tuple_the_first_is_taken(images: Tensor, wrap: Callable[[Tensor], Any]) -> None:
    assert torch.equal(Toy(wrap=wrap).record(images, [Site(2)])[Site(2)], Toy().record(images, [Site(2)])[Site(2)])


def test_feature_maps_become_tokens_row_by_row() -> None:
    model = Toy()
    maps = torch.arange(2 * 6 * 3 * 3.0).reshape(2, 6, 3, 3)  # [b, c, h, w]
    tokens = model.tokens(maps)
    assert tokens.shape == (2, 9, 6)
    assert torch.equal(tokens[1, 5], maps[1, :, 1, 2])
    assert torch.equal(model.tokens(maps.permute(0, 2, 3, 1)), tokens)


@pytest.mark.parametrize("output", [torch.zeros(2, 8), None, torch.zeros(1, 2, 3, 4, 5)])
def test_what_is_not_tokens_is_refused(output: Any) -> None:
    with pytest.raises(ModelError, match=r"check model\.blocks"):
        Toy().tokens(output)


def test_a_glob_chooses_other_blocks_in_numeric_order() -> None:
    model = Toy(n_blocks=12)
    wanted = [block.mlp for block in model.blocks]
    model.hook_blocks("blocks.*.mlp")
    assert list(model.hooked) == wanted
    assert (model.grid, model.d_model) == (Grid(3, 5, 4, 1), 8)


def test_the_chosen_blocks_are_recorded(images: Tensor) -> None:
    model, plain = Toy(n_blocks=11), Toy(n_blocks=11)
    model.hook_blocks("*.mlp.fc1")
    assert model.d_model == 16
    for layer in (1, 2, 10):
        assert torch.equal(model.record(images, [Site(layer)])[Site(layer)], by_hand(plain, plain.blocks[layer].mlp.fc1, images))


def test_a_glob_that_matches_nothing_names_the_top_modules() -> None:
    with pytest.raises(ModelError, match="embed, blocks"):
        Toy().hook_blocks("layers.*")


def test_a_glob_that_matches_in_two_places_asks_for_more() -> None:
    two = nn.ModuleDict({side: nn.ModuleDict({"layers": nn.ModuleList([nn.Identity()])}) for side in ("vision", "text")})
    with pytest.raises(ModelError, match=r"vision and text; give a longer pattern"):
        select_modules(two, "layers.*")
    assert select_modules(two, "vision.layers.*") == ["vision.layers.0"]


def test_a_glob_finds_the_outermost_of_nested_matches() -> None:
    inner = nn.ModuleDict({"layers": nn.ModuleList(nn.Identity() for _ in range(2))})
    model = nn.ModuleDict({"layers": nn.ModuleList([inner, nn.ModuleDict({"layers": nn.ModuleList([nn.Identity()])})])})
    assert select_modules(model, "layers.*") == ["layers.0", "layers.1"]


class ConvNet(VisionModel):
    """A convolutional net from timm, as the timm plugin hooks it."""

    def __init__(self, name: str, size: int = 64) -> None:
        super().__init__()
        timm = pytest.importorskip("timm")
        torch.manual_seed(0)
        self.net = timm.create_model(name, pretrained=False, num_classes=0).eval()
        self.transform = ResizeCrop(size, (size, size))
        self.grid, self.d_model, self.blocks = Grid(1, 1, size), 1, []

    def forward(self, images: Tensor) -> Any:
        return self.net(images)


@pytest.mark.parametrize(
    ("name", "pattern", "grid", "d_model", "n_blocks"),
    [
        ("resnet10t", "layer3.*", Grid(4, 4, 16), 256, 1),
        ("resnet18", "layer2.*", Grid(8, 8, 8), 128, 2),
        ("convnext_atto", "stages.2.blocks.*", Grid(4, 4, 16), 160, 6),
    ],
)
def test_any_network_with_blocks_can_be_hooked(name: str, pattern: str, grid: Grid, d_model: int, n_blocks: int) -> None:
    model = ConvNet(name)
    model.hook_blocks(pattern)
    assert (model.grid, model.d_model, len(model.hooked)) == (grid, d_model, n_blocks)
    images = torch.randn(2, 3, 64, 64)
    site = model.site(-1)
    tokens = model.record(images, [site])[site]
    maps = by_hand(model, model.net.get_submodule(pattern.replace("*", str(n_blocks - 1))), images)  # [b, c, h, w]
    assert torch.equal(tokens, maps.flatten(2).transpose(1, 2))
    assert n_hooks(model) == 0


def test_absent_devices_are_refused_with_advice() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(DeviceError, match="use --device auto or cpu"):
        pick_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="--device cuda: not available here"):
            pick_device("cuda")
