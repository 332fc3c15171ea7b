"""DINOv2 against transformers itself, from tiny checkpoints that transformers writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saev_core.config.base import PluginRef
from saev_core.errors import ModelError
from saev_core.models.base import load_model

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 70, "patch_size": 14}


def write(folder: Path, registers: bool = False, processor: bool = True) -> Path:
    """A tiny checkpoint, as its library writes it."""
    torch.manual_seed(0)
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**TINY, num_register_tokens=4)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**TINY))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    if processor:
        settings = {
            "image_processor_type": "BitImageProcessor",
            "do_resize": True, "size": {"shortest_edge": 64}, "resample": 3,
            "do_center_crop": True, "crop_size": {"height": 56, "width": 56},
            "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
            "do_convert_rgb": True,
        }  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8).repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("registers", [False, True])
def test_every_block_gives_the_library_s_hidden_states(tmp_path: Path, registers: bool):
    model = load_model(PluginRef(name="dinov2", options={"checkpoint": str(write(tmp_path, registers))}), "cpu")
    pixels = torch.stack([model.transform(picture(30, 20)), model.transform(picture(20, 30))])
    reference = transformers.AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        want = reference(pixels, output_hidden_states=True)
    assert model.grid.n_prefix == (5 if registers else 1)
    assert (model.grid.rows, model.grid.cols, model.grid.patch_px) == (4, 4, 14)
    recorded = model.record(pixels, [model.site(layer) for layer in range(3)])
    for layer in range(3):
        tokens = recorded[model.site(layer)]
        assert tokens.shape == (2, model.grid.n_tokens, model.d_model)
        # Tolerance zero: the same modules on the same pixels.
        torch.testing.assert_close(tokens, want.hidden_states[layer + 1], rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), want.last_hidden_state, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(30, 20), (21, 37), (40, 40), (17, 93)])
def test_the_transform_is_the_checkpoint_s_own_processor(tmp_path: Path, size: tuple[int, int]):
    model = load_model(PluginRef(name="dinov2", options={"checkpoint": str(write(tmp_path))}), "cpu")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = picture(*size)
    want = torch.as_tensor(processor(image, return_tensors="np")["pixel_values"][0])
    torch.testing.assert_close(model.transform(image), want, rtol=0, atol=1e-6)


def test_image_px_keeps_the_proportion_of_resize_and_crop(tmp_path: Path):
    options = {"checkpoint": str(write(tmp_path)), "image_px": 112}
    model = load_model(PluginRef(name="dinov2", options=options), "cpu")
    assert (model.transform.resize, model.transform.crop) == (128, (112, 112))
    assert model.grid.rows == 8
    with pytest.raises(ModelError, match=r"are not a multiple of the 14 px patches; set model.image_px"):
        load_model(PluginRef(name="dinov2", options={**options, "image_px": 100}), "cpu")


def test_without_a_preprocessor_224_px_are_seen(tmp_path: Path):
    model = load_model(PluginRef(name="dinov2", options={"checkpoint": str(write(tmp_path, processor=False))}), "cpu")
    assert (model.transform.resize, model.transform.crop) == (256, (224, 224))
    assert model.grid.n_patches == 256


def test_random_weights_need_no_weight_file(tmp_path: Path):
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert load_model(PluginRef(name="dinov2", options={"checkpoint": str(tmp_path), "pretrained": False}), "cpu").d_model == 32
    with pytest.raises(ModelError, match=r"has no model.safetensors or"):
        load_model(PluginRef(name="dinov2", options={"checkpoint": str(tmp_path)}), "cpu")


def test_damaged_or_foreign_weights_are_one_clear_line(tmp_path: Path):
    weights = write(tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"its weights cannot be loaded as Dinov2Model") as caught:
        load_model(f"dinov2:{tmp_path}", "cpu")
    assert "\n" not in str(caught.value)

    transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"model of type 'bert'"):
        load_model(f"dinov2:{tmp_path / 'bert'}", "cpu")
    (tmp_path / "bert" / "config.json").write_text((tmp_path / "config.json").read_text())
    with pytest.raises(ModelError, match=r"is not a checkpoint of Dinov2Model: .* weights missing"):
        load_model(f"dinov2:{tmp_path / 'bert'}", "cpu")
