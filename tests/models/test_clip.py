"""CLIP against open_clip itself, from tiny checkpoints that open_clip's models write."""

from __future__ import annotations

import json
import logging
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

open_clip = pytest.importorskip("open_clip")
clip = pytest.importorskip("saev_models.clip")

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
VIT = {"embed_dim": 24, "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16}, "text_cfg": TEXT}
RESNET = {"embed_dim": 24, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}, "text_cfg": TEXT}


@pytest.fixture(scope="module", autouse=True)
def _architectures(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "saev-tiny-vit.json").write_text(json.dumps(VIT))
    (folder / "saev-tiny-rn.json").write_text(json.dumps(RESNET))
    open_clip.add_model_config(folder)


def write(path: Path, name: str = "saev-tiny-vit", **options: object) -> torch.nn.Module:
    """A tiny model with random weights, its state dict at `path`."""
    torch.manual_seed(0)
    with clip.no_root_logging("open_clip"):
        model = open_clip.create_model(name, load_weights=False, **options)
    for parameter in model.parameters():
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.2)
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    else:
        torch.save(model.state_dict(), path)
    # As load_model does: torch picks another attention kernel, which rounds otherwise, where weights may want gradients.
    return model.eval().requires_grad_(False)


def load(checkpoint: str, **options: object) -> VisionModel:
    return load_model(PluginRef(name="clip", options={"checkpoint": checkpoint, **options}), "cpu")


def hand_hooked(visual: torch.nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handles = [block.register_forward_hook(lambda m, a, out: seen.append(out)) for block in visual.transformer.resblocks]
    with torch.no_grad():
        visual(pixels)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_every_block_gives_what_a_hand_placed_hook_sees(tmp_path: Path, ending: str):
    reference = write(tmp_path / f"w.{ending}")
    model = load(f"saev-tiny-vit/{tmp_path}/w.{ending}")
    assert model.grid == Grid(4, 4, 16, n_prefix=1)
    assert model.d_model == 64
    pixels = torch.randn(2, 3, 64, 64)
    wanted = hand_hooked(reference.visual, pixels)
    recorded = model.record(pixels, [model.site(layer) for layer in range(3)])
    for layer, want in enumerate(wanted):
        torch.testing.assert_close(recorded[model.site(layer)], want, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), reference.encode_image(pixels), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(64, 64), (90, 130), (131, 70)])
def test_the_transform_is_the_library_s_own(tmp_path: Path, size: tuple[int, int]):
    write(tmp_path / "w.pt")
    model = load("saev-tiny-vit", weights=str(tmp_path / "w.pt"))
    with clip.no_root_logging("open_clip"):
        _, _, own = open_clip.create_model_and_transforms("saev-tiny-vit", pretrained=str(tmp_path / "w.pt"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8))
    torch.testing.assert_close(model.transform(image), own(image), rtol=0, atol=0)


def test_weights_of_a_tag_get_the_activation_they_were_trained_with():
    """open_clip itself only warns that ViT-B-32 has GELU and the tag openai was trained with another."""
    kinds = {}
    for tag in ("openai", "laion2b_s34b_b79k"):
        tagged = open_clip.pretrained.get_pretrained_cfg("ViT-B-32", tag)
        visual = clip._create("saev-tiny-vit", clip.ClipConfig(), dict(tagged), None)
        kinds[tag] = type(visual.transformer.resblocks[0].mlp.gelu).__name__
    assert kinds == {"openai": "QuickGELU", "laion2b_s34b_b79k": "GELU"}


def test_an_architecture_may_be_spelt_with_a_slash():
    assert clip.split_name("ViT-B/32/openai") == ("ViT-B-32", "openai")
    assert clip.split_name("RN50") == ("RN50", "")


def test_a_path_behind_the_architecture_becomes_the_option_weights(tmp_path: Path):
    cfg = clip.ClipConfig(checkpoint=f"saev-tiny-vit/{tmp_path}/w.pt")
    assert (cfg.checkpoint, cfg.weights) == ("saev-tiny-vit", f"{tmp_path}/w.pt")
    assert clip.ClipConfig(checkpoint="ViT-B-32/openai").weights == ""


def test_a_folder_as_open_clip_writes_it(tmp_path: Path):
    reference = write(tmp_path / "open_clip_model.safetensors")
    mean = [0.5, 0.4, 0.3]
    settings = {"model_cfg": VIT, "preprocess_cfg": {"mean": mean, "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    model = load(str(tmp_path))
    pixels = model.transform(Image.new("RGB", (100, 300)))[None]
    torch.testing.assert_close(pixels[0, :, 0, 0], -torch.tensor(mean) / 0.5)
    assert torch.equal(model.record(pixels, [model.site(-1)])[model.site(-1)], hand_hooked(reference.visual, pixels)[-1])
    assert model.crop(100, 300) == (0, 0, 100, 300)


def test_a_resnet_is_recorded_through_a_glob(tmp_path: Path):
    write(tmp_path / "w.pt", "saev-tiny-rn")
    with pytest.raises(ModelError, match="vision tower is a ModifiedResNet, not a transformer"):
        load(f"saev-tiny-rn/{tmp_path}/w.pt")
    model = load(f"saev-tiny-rn/{tmp_path}/w.pt", blocks="layer?")
    assert (len(model.hooked), model.grid, model.d_model) == (4, Grid(2, 2, 32), 256)


def test_unknown_architectures_tags_and_files_are_one_clear_line(tmp_path: Path):
    with pytest.raises(ModelError, match=r"did you mean .*ViT-B-32"):
        load("ViT-B-31/openai")
    with pytest.raises(ModelError, match=r"nonsense is neither a file nor a tag of ViT-B-32; its tags are .*openai"):
        load("ViT-B-32/nonsense")
    with pytest.raises(ModelError, match="specify the weights as ViT-B-32/TAG"):
        load("ViT-B-32")
    with pytest.raises(ModelError, match=r"has no open_clip_config\.json"):
        load(str(tmp_path))


def test_weights_of_another_architecture_are_refused(tmp_path: Path):
    write(tmp_path / "w.pt", "saev-tiny-rn")
    with pytest.raises(ModelError, match="cannot be loaded as saev-tiny-vit") as caught:
        load(f"saev-tiny-vit/{tmp_path}/w.pt")
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_file_that_carries_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot be loaded as saev-tiny-vit"):
        load(f"saev-tiny-vit/{tmp_path}/evil.pt")
    assert "never run" not in capsys.readouterr().out


def test_loading_leaves_the_root_logger_alone(tmp_path: Path):
    write(tmp_path / "w.pt")
    before = (list(logging.getLogger().handlers), list(logging.getLogger().filters))
    load(f"saev-tiny-vit/{tmp_path}/w.pt")
    assert (logging.getLogger().handlers, logging.getLogger().filters) == before


WORDS = {**TEXT, "vocab_size": 49408}


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_text_images_and_tokens_meet_in_one_space(tmp_path: Path, pool: str):
    vision = {**VIT["vision_cfg"], "pool_type": pool}
    settings = {"model_cfg": {**VIT, "vision_cfg": vision, "text_cfg": WORDS}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    with clip.no_root_logging("open_clip"):
        reference = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False).eval().requires_grad_(False)
    save_file({key: value.contiguous() for key, value in reference.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    model = load(str(tmp_path))
    assert isinstance(model, TextSpace)
    held = set(model.state_dict())
    texts = ["a photo of a dog", "zebra stripes"]
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=8)(texts)
    torch.testing.assert_close(model.encode_text(texts), reference.encode_text(tokens), rtol=0, atol=0)
    assert set(model.state_dict()) == held  # the text tower is beside the model, not part of it
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_images(pixels), reference.encode_image(pixels), rtol=0, atol=0)

    # An image whose tokens are all alike after the last block has the embedding that `project` gives them.
    token = torch.randn(3, 64)
    handle = reference.visual.transformer.resblocks[-1].register_forward_hook(lambda m, a, out: token[:, None].expand_as(out))
    want = reference.encode_image(torch.randn(3, 3, 64, 64))
    handle.remove()
    torch.testing.assert_close(model.project(token), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="vectors of width 63 do not fit the head"):
        model.project(token[:, :63])


def test_a_tokenizer_that_is_not_there_is_one_clear_line(tmp_path: Path):
    text = {**WORDS, "hf_tokenizer_name": "nobody/nothing"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**VIT, "text_cfg": text}, "preprocess_cfg": {}}))
    with pytest.raises(ModelError, match=r"its tokenizer cannot be loaded \(.*; download it elsewhere") as caught:
        load(str(tmp_path), pretrained=False).encode_text(["a dog"])
    assert "\n" not in str(caught.value)
