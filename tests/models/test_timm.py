"""timm models against timm itself, from tiny checkpoints that timm writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saev_core.config.base import PluginRef
from saev_core.errors import ModelError
from saev_core.models.base import VisionModel, load_model
from saev_core.types import Grid

timm = pytest.importorskip("timm")
models = pytest.importorskip("timm.models")


def write(name: str, path: Path, **options: object) -> torch.nn.Module:
    """A timm model with random weights, its state dict at `path`."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(model.state_dict(), path)
    return model.eval()


def load(checkpoint: str, **options: object) -> VisionModel:
    return load_model(PluginRef(name="timm", options={"checkpoint": checkpoint, **options}), "cpu")


def hand_hooked(trunk: torch.nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handles = [block.register_forward_hook(lambda m, a, out: seen.append(out)) for block in trunk.blocks]
    with torch.no_grad():
        trunk(pixels)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "px", "grid"),
    [
        ("test_vit", 0, Grid(10, 10, 16, 1)),  # CLS
        ("test_vit3", 0, Grid(10, 10, 16, 1)),
        ("eva02_tiny_patch14_224", 42, Grid(3, 3, 14, 1)),
    ],
)
def test_every_block_gives_what_a_hand_placed_hook_sees(tmp_path: Path, name: str, px: int, grid: Grid):
    reference = write(name, tmp_path / "w.pt", num_classes=10, **({"img_size": px} if px else {}))
    model = load(f"{name}/{tmp_path / 'w.pt'}", image_px=px)
    assert model.grid == grid
    pixels = torch.randn(2, 3, model.grid.height_px, model.grid.width_px)
    for layer, want in enumerate(hand_hooked(reference, pixels)):
        torch.testing.assert_close(model.record(pixels, [model.site(layer)])[model.site(layer)], want, rtol=0, atol=0)


@pytest.mark.slow
def test_dinov3_has_a_cls_token_and_registers():
    model = load("vit_small_patch16_dinov3", pretrained=False, image_px=64)
    assert model.grid == Grid(4, 4, 16, n_prefix=5)
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.record(pixels, [model.site(-1)])[model.site(-1)], hand_hooked(model.trunk, pixels)[-1])


def test_pixels_that_no_patch_covers_are_trimmed_and_change_nothing():
    model = load("vit_tiny_patch16_224", pretrained=False, image_px=40)
    assert model.grid == Grid(2, 2, 16, 1)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8))
    pixels = model.transform(image)
    assert pixels.shape == (3, 32, 32)
    whole = model.transform.transform(image)[None]
    assert whole.shape == (1, 3, 40, 40)
    want = hand_hooked(model.trunk, whole)[5]
    torch.testing.assert_close(model.record(pixels[None], [model.site(5)])[model.site(5)], want, rtol=0, atol=0)


def test_the_transform_is_timm_s_own_and_its_name_holds_no_address():
    model = load("test_vit", pretrained=False)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 170, 3), np.uint8))
    own = timm.data.create_transform(**timm.data.resolve_model_data_config(model.trunk))
    assert torch.equal(model.transform(image), own(image))
    assert " at 0x" not in repr(model.transform)


def test_a_folder_as_timm_writes_it(tmp_path: Path):
    reference = write("test_vit", tmp_path / "w.pt", num_classes=7)
    models.save_for_hf(reference, tmp_path / "folder", safe_serialization=True)
    model = load(str(tmp_path / "folder"))
    pixels = torch.randn(1, 3, 160, 160)
    assert torch.equal(model.record(pixels, [model.site(1)])[model.site(1)], hand_hooked(reference, pixels)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pattern", "rows"),
    [("test_convnext", "stages.*", 5), ("test_resnet", "layer?", 5), ("swin_tiny_patch4_window7_224", "layers.*", 2)],
)
def test_other_networks_are_recorded_through_a_glob(name: str, pattern: str, rows: int):
    options = {"image_px": 56} if name.startswith("swin") else {}
    model = load(name, pretrained=False, blocks=pattern, **options)
    side = model.transform(Image.new("RGB", (300, 300))).shape[1]
    assert (model.grid.rows, model.grid.cols, model.grid.n_prefix) == (rows, rows, 0)
    assert len(model.hooked) == 4
    pixels = torch.randn(2, 3, side, side)
    tokens = model.record(pixels, [model.site(-1)])[model.site(-1)]
    assert tokens.shape == (2, rows * rows, model.d_model)
    with torch.no_grad():
        last = [*model.trunk.forward_intermediates(pixels, indices=1, intermediates_only=True)][-1]  # [b, c, h, w]
    assert last.shape[1:] == (model.d_model, rows, rows)
    torch.testing.assert_close(tokens, last.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="choose modules of one size"):
        model.record(pixels, [model.site(0)])


def test_a_network_without_blocks_says_how_to_name_them():
    with pytest.raises(ModelError, match=r"is a ResNet.*model\.blocks=.*it has .*layer1, layer2"):
        load("test_resnet", pretrained=False)


def test_unknown_names_and_tags_name_the_nearest():
    with pytest.raises(ModelError, match="did you mean vit_tiny_patch16_224"):
        load("vit_tinny_patch16_224")
    with pytest.raises(ModelError, match=r"it has vit_tiny_patch16_224\.augreg"):
        load("vit_tiny_patch16_224.nonsense")
    with pytest.raises(ModelError, match="no such file"):
        load("test_vit/absent.pt")


def test_weights_of_another_model_are_refused(tmp_path: Path):
    write("test_vit2", tmp_path / "other.pt", num_classes=0)
    with pytest.raises(ModelError, match="cannot be loaded as test_vit"):
        load(f"test_vit/{tmp_path / 'other.pt'}")
    state = torch.load(tmp_path / "other.pt", weights_only=True)
    del state["blocks.1.mlp.fc1.weight"]
    torch.save(state, tmp_path / "holed.pt")
    with pytest.raises(ModelError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        load(f"test_vit2/{tmp_path / 'holed.pt'}")


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_file_that_carries_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="not a readable weight file"):
        load(f"test_vit/{tmp_path / 'evil.pt'}")
    assert "never run" not in capsys.readouterr().out
