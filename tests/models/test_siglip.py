"""SigLIP against transformers and open_clip themselves, from tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from saev_core.config import PluginRef
from saev_core.errors import ModelError
from saev_core.model import VisionModel, load_model
from saev_core.types import Grid

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64, "patch_size": 16}


def write(folder: Path, **options: int) -> Path:
    """A tiny checkpoint with both towers, as the hub has them."""
    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 64}
    config = transformers.SiglipConfig(vision_config={**TINY, **options}, text_config=text)
    model = transformers.SiglipModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    size = TINY["image_size"]
    settings = {
        "image_processor_type": "SiglipImageProcessor", "do_resize": True, "size": {"height": size, "width": size}, "resample": 3,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def load(checkpoint: Path | str, **options: object) -> VisionModel:
    return load_model(PluginRef(name="siglip", options={"checkpoint": str(checkpoint), **options}), "cpu")


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), np.uint8))


@pytest.mark.parametrize("patch_px", [16, 14])  # 14: four patches a side and 8 pixels that none covers
def test_every_block_gives_the_library_s_hidden_states(tmp_path: Path, patch_px: int):
    model = load(write(tmp_path, patch_size=patch_px))
    assert model.grid == Grid(4, 4, patch_px, n_prefix=0)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    own = torch.as_tensor(processor(picture(), return_tensors="np")["pixel_values"])
    pixels = model.transform(picture())[None]
    torch.testing.assert_close(pixels, own[:, :, : 4 * patch_px, : 4 * patch_px], rtol=0, atol=1e-6)
    with torch.no_grad():
        want = transformers.SiglipVisionModel.from_pretrained(tmp_path)(own, output_hidden_states=True)
    recorded = model.record(pixels, [model.site(layer) for layer in range(3)])
    for layer in range(3):
        # 1e-5: the processor's pixels differ from ours in the last bit.
        torch.testing.assert_close(recorded[model.site(layer)], want.hidden_states[layer + 1], rtol=1e-5, atol=1e-5)
    assert model.crop(400, 400) == pytest.approx((0, 0, 4 * patch_px / 64 * 400, 4 * patch_px / 64 * 400), abs=2)


def test_a_tower_saved_alone_loads_too(tmp_path: Path):
    tower = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY))
    tower.save_pretrained(tmp_path)
    model = load(tmp_path)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = tower.eval()(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model.record(pixels, [model.site(-1)])[model.site(-1)], want, rtol=0, atol=0)


def open_clip_folder(folder: Path, trunk: str) -> torch.nn.Module:
    """A tiny model with a timm tower, as open_clip's repositories hold SigLIP."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 160, "timm_model_name": trunk, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "none"}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval().requires_grad_(False)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return model


@pytest.mark.parametrize(("plugin", "trunk", "n_prefix"), [("siglip", "test_vit_relpos", 0), ("clip", "test_vit", 1)])
def test_open_clip_s_timm_towers_give_what_a_hand_placed_hook_sees(tmp_path: Path, plugin: str, trunk: str, n_prefix: int):
    reference = open_clip_folder(tmp_path, trunk)
    model = load_model(PluginRef(name=plugin, options={"checkpoint": str(tmp_path)}), "cpu")
    assert model.grid == Grid(10, 10, 16, n_prefix)
    pixels = model.transform(picture())[None]
    seen: list[torch.Tensor] = []
    handle = reference.visual.trunk.blocks[-1].register_forward_hook(lambda m, a, out: seen.append(out))
    embedding = reference.encode_image(pixels)
    handle.remove()
    torch.testing.assert_close(model.record(pixels, [model.site(-1)])[model.site(-1)], seen[0], rtol=0, atol=0)
    torch.testing.assert_close(model(pixels), embedding, rtol=0, atol=0)


def test_a_tower_with_a_cls_token_is_no_siglip(tmp_path: Path):
    open_clip_folder(tmp_path, "test_vit")
    with pytest.raises(ModelError, match="has a CLS token, SigLIP has none; use --model clip:"):
        load(tmp_path)


def test_another_model_is_refused(tmp_path: Path):
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "siglip2"}))
    with pytest.raises(ModelError, match="naflex"):
        load(tmp_path)
