"""Moondream2's tower in each layout of names, against timm's vision transformer with the same weights."""

from __future__ import annotations

import copy
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from saev_core.config.base import PluginRef
from saev_core.errors import ModelError
from saev_core.models.base import VisionModel, load_model
from saev_core.types import Grid

timm = pytest.importorskip("timm")

D, HEADS, FF, LAYERS, SIDE = 48, 4, 80, 3, 5


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=SIDE * 14, patch_size=14, embed_dim=D, depth=LAYERS, num_heads=HEADS, mlp_ratio=FF / D, num_classes=0,
        class_token=False, global_pool="", act_layer=partial(nn.GELU, approximate="tanh"), norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )  # fmt: skip
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit.eval().requires_grad_(False)


def named(vit: nn.Module, layout: str) -> dict[str, torch.Tensor]:
    """The weights of `vit` as a release of that layout has them, with a language model beside them."""
    names = {}
    for name, tensor in vit.state_dict().items():
        value = tensor.flatten(1) if name == "patch_embed.proj.weight" else tensor
        if layout == "2024":
            new = name.replace("patch_embed.proj", "patch_embed.linear")
            names[f"vision_encoder.encoder.model.visual.{new}"] = value
        elif layout == "2024 compiled":
            new = re.sub(r"^blocks\.(\d+)\.", r"blocks.\1._orig_mod.", name.replace("patch_embed.proj", "patch_embed.linear"))
            names[f"vision_encoder._orig_mod.encoder.model.visual.{new}"] = value
        elif layout == "timm":
            names[f"vision_encoder.encoder.model.visual.{name}"] = tensor
        else:
            new = name.replace("patch_embed.proj", "patch_emb").replace("pos_embed", "pos_emb")
            new = re.sub(r"^norm\.", "post_ln.", re.sub(r"\.norm([12])\.", r".ln\1.", new))
            names[("model.vision." if layout == "2025" else "vision.") + new] = value
    start = "model." if layout == "2025" else ""
    names[f"{start}vision.proj_mlp.fc1.weight" if layout.startswith("2025") else "vision_encoder.projection.mlp.fc1.weight"] = torch.zeros(
        8, 8
    )
    names[f"{start}text.blocks.0.ln.weight"] = torch.zeros(8)
    return {name: tensor.contiguous() for name, tensor in names.items()}


def load(checkpoint: Path, **options: object) -> VisionModel:
    return load_model(PluginRef(name="moondream2", options={"checkpoint": str(checkpoint), "n_heads": HEADS, **options}), "cpu")


def hand_hooked(vit: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handles = [block.register_forward_hook(lambda m, a, out: seen.append(out)) for block in vit.blocks]
    seen.append(vit(pixels))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("layout", ["2024", "2024 compiled", "timm", "2025", "2025 bare"])
def test_every_layout_gives_the_tokens_of_the_reference(tmp_path: Path, reference: nn.Module, layout: str):
    save_file(named(reference, layout), tmp_path / "model.safetensors")
    model = load(tmp_path)
    assert model.grid == Grid(SIDE, SIDE, 14, n_prefix=0)
    # In float64, where both agree to 1e-12; in float32 they differ by rounding, as a Linear over patches and a convolution do.
    pixels = torch.randn(2, 3, 70, 70, dtype=torch.float64)
    *blocks, final = hand_hooked(copy.deepcopy(reference).double(), pixels)
    model.double()
    recorded = model.record(pixels, [model.site(layer) for layer in range(LAYERS)])
    for layer, want in enumerate(blocks):
        torch.testing.assert_close(recorded[model.site(layer)], want, rtol=1e-12, atol=1e-12 * float(want.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), final, rtol=1e-12, atol=1e-12)
    assert model.transform.resample == (Image.Resampling.LANCZOS if layout.startswith("2025") else Image.Resampling.BICUBIC)
    assert model.transform(Image.new("RGB", (30, 200), "white")).unique().tolist() == [1.0]
    assert model.crop(300, 200) == (0, 0, 300, 200)


def test_shards_and_half_precision_and_a_lone_file(tmp_path: Path, reference: nn.Module):
    weights = {name: tensor.half() for name, tensor in named(reference, "2025").items()}
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, inside in shards.items():
        save_file({name: weights[name] for name in inside}, tmp_path / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(weights, tmp_path / "lone.safetensors")
    pixels = torch.randn(1, 3, 70, 70)
    sharded, lone = load(tmp_path), load(tmp_path / "lone.safetensors")
    assert next(sharded.parameters()).dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(sharded(pixels), lone(pixels))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model-00002-of-00002\.safetensors"):
        load(tmp_path)


def test_the_release_s_shape_is_27_by_27_patches_of_14_px():
    from saev_models.moondream2 import Moondream2, Moondream2Config

    with torch.device("meta"):
        model = Moondream2(Moondream2Config(pretrained=False))
    assert model.grid == Grid(27, 27, 14, n_prefix=0)
    assert (model.d_model, len(model.blocks), model.blocks[0].attn.n_heads) == (1152, 27, 16)
    assert model.transform.resize == (378, 378)


def test_wrong_files_are_one_clear_line(tmp_path: Path, reference: nn.Module):
    weights = named(reference, "2025")
    del weights["model.vision.blocks.1.mlp.fc2.bias"]
    save_file(weights, tmp_path / "holed.safetensors")
    with pytest.raises(ModelError, match=r"missing, unexpected or of the wrong shape, such as blocks\.1\.mlp\.fc2\.bias"):
        load(tmp_path / "holed.safetensors")
    save_file({"text.weight": torch.zeros(1)}, tmp_path / "text.safetensors")
    with pytest.raises(ModelError, match=r"has no vision tower of moondream2: no weight is named model\.vision\.\*"):
        load(tmp_path / "text.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "holed.safetensors").read_bytes()[:100])
    with pytest.raises(ModelError, match="is not readable as safetensors"):
        load(tmp_path / "cut.safetensors")
    save_file(named(reference, "2025"), tmp_path / "whole.safetensors")
    with pytest.raises(ModelError, match=r"set model\.n_heads"):
        load(tmp_path / "whole.safetensors", n_heads=0)
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"only \.safetensors is read"):
        load(tmp_path / "weights.pt")
