"""SigLIP against transformers and open_clip themselves, from tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from saev_core.config.base import PluginRef
from saev_core.errors import ModelError
from saev_core.models.base import TextSpace, VisionModel, load_model
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


def open_clip_folder(folder: Path, trunk: str, vocab_size: int = 64) -> torch.nn.Module:
    """A tiny model with a timm tower, as open_clip's repositories hold SigLIP."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 160, "timm_model_name": trunk, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "none"}
    text = {"context_length": 8, "vocab_size": vocab_size, "width": 32, "heads": 2, "layers": 1}
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


def with_tokenizer(folder: Path) -> Path:
    """A tokenizer of whole words beside a checkpoint, as the hub has one."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<unk>", "</s>", "a", "photo", "of", "dog", "zebra"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_text_and_images_are_embedded_as_transformers_does(tmp_path: Path):
    model = load(with_tokenizer(write(tmp_path)))
    assert isinstance(model, TextSpace)
    reference = transformers.SiglipModel.from_pretrained(tmp_path).eval()
    ids = torch.full((2, 64), 1)
    ids[0, :4] = torch.tensor([2, 3, 4, 5])
    ids[1, :1] = 6
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        text, image = reference.text_model(input_ids=ids).pooler_output, reference.vision_model(pixel_values=pixels).pooler_output
        torch.testing.assert_close(model.encode_text(["a photo of dog", "zebra"]), text, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.encode_images(pixels), image, rtol=1e-5, atol=1e-5)
    token = torch.randn(3, 32)
    handle = reference.vision_model.encoder.layers[-1].register_forward_hook(
        lambda m, a, out: token[:, None].expand(3, 16, 32) if isinstance(out, torch.Tensor) else (token[:, None].expand(3, 16, 32),)
    )
    with torch.no_grad():
        want = reference.vision_model(pixel_values=torch.randn(3, 3, 64, 64)).pooler_output
    handle.remove()
    torch.testing.assert_close(model.project(token), want, rtol=1e-4, atol=1e-4)


def test_a_vision_tower_alone_has_no_text(tmp_path: Path):
    transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has only a vision tower"):
        load(tmp_path).encode_text(["a dog"])


def test_open_clip_s_siglip_embeds_text_too(tmp_path: Path):
    reference = open_clip_folder(tmp_path, "test_vit_relpos", vocab_size=49408)
    model = load(tmp_path)
    open_clip = pytest.importorskip("open_clip")
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=8)(["a dog"])
    torch.testing.assert_close(model.encode_text(["a dog"]), reference.encode_text(tokens), rtol=0, atol=0)
    token = torch.randn(3, model.d_model)
    handle = reference.visual.trunk.blocks[-1].register_forward_hook(lambda m, a, out: token[:, None].expand_as(out))
    want = reference.encode_image(torch.randn(3, 3, 160, 160))
    handle.remove()
    torch.testing.assert_close(model.project(token), want, rtol=1e-5, atol=1e-5)
