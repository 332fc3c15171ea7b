"""Edits and `Downstream` in small random models of every family: what is written back is read again by what follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saev_core import Edit, Norm, steering
from saev_core.config.base import PluginRef
from saev_core.config.stages import ReadConfig
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.downstream import Downstream, resume_from
from saev_core.models.base import VisionModel, load_model
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.types import Grid

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
VIT = {"embed_dim": 24, "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16}, "text_cfg": TEXT}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def load(name: str, **options: object) -> VisionModel:
    torch.manual_seed(0)
    return load_model(PluginRef(name=name, options=options), "cpu")


def vit(_: Path) -> VisionModel:
    return load("timm", checkpoint="test_vit", pretrained=False)


def registers_and_rotary(_: Path) -> VisionModel:
    return load("timm", checkpoint="vit_small_patch16_dinov3", pretrained=False, image_px=64)


def convnext(_: Path) -> VisionModel:
    return load("timm", checkpoint="test_convnext", pretrained=False, blocks="stages.2.blocks.*")


def resnet(_: Path) -> VisionModel:
    return load("timm", checkpoint="test_resnet", pretrained=False, blocks="layer?")


def swin(_: Path) -> VisionModel:
    return load("timm", checkpoint="swin_tiny_patch4_window7_224", pretrained=False, image_px=56, blocks="layers.2.blocks.*")


def clip(folder: Path) -> VisionModel:
    pytest.importorskip("open_clip")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": VIT, "preprocess_cfg": {}}))
    return load("clip", checkpoint=str(folder), pretrained=False)


def dinov2(folder: Path) -> VisionModel:
    settings = {
        **SMALL,
        "model_type": "dinov2_with_registers",
        "mlp_ratio": 2,
        "image_size": 56,
        "patch_size": 14,
        "num_register_tokens": 4,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return load("dinov2", checkpoint=str(folder), pretrained=False, image_px=56)


def siglip(folder: Path) -> VisionModel:
    settings = {**SMALL, "model_type": "siglip_vision_model", "intermediate_size": 64, "image_size": 64, "patch_size": 16}
    (folder / "config.json").write_text(json.dumps(settings))
    return load("siglip", checkpoint=str(folder), pretrained=False)


def moondream2(_: Path) -> VisionModel:
    from saev_models.moondream2 import Moondream2, Tower

    # Filled by hand: without weights to be measured it would be the whole tower, 400 million of them.
    torch.manual_seed(0)
    made = Moondream2.__new__(Moondream2)
    VisionModel.__init__(made)
    made.tower = Tower(d_model=48, d_ff=80, n_layers=3, n_positions=25, patch_px=14, n_heads=4)
    made.grid, made.d_model, made.blocks = Grid(5, 5, 14), 48, made.tower.blocks
    return made.eval().requires_grad_(False)


def first(output: Any) -> torch.Tensor:
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


SLOW = pytest.mark.slow
FAMILIES = [vit, clip, dinov2, siglip, moondream2, convnext, resnet, *(pytest.param(f, marks=SLOW) for f in (registers_and_rotary, swin))]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_steered_and_goes_on_from_a_site(family: Callable[[Path], VisionModel], tmp_path: Path):
    pytest.importorskip("saev_models")
    model = family(tmp_path)
    last = model.site(-1)
    # Where blocks differ in size, as those of a ResNet do, the last one's grid is the model's.
    site = last if family is resnet else model.site(-2)
    pixels = torch.randn(2, 3, model.grid.height_px, model.grid.width_px)
    with torch.no_grad():
        base = first(model(pixels))
    recorded = model.record(pixels, [site, last])
    x, n_prefix = recorded[site], model.grid.n_prefix
    vectors = x[:, n_prefix:].reshape(-1, model.d_model)
    sae = make_sae(PluginRef(name="topk", options={"d_sae": 32, "k": 6}), model.d_model)
    norm = Norm.of(vectors)
    sae.initialise(norm(vectors), torch.Generator().manual_seed(0))
    made = Checkpoint(sae.requires_grad_(False), norm, ref_of(sae), str(site), ReadConfig(layer=site.layer))
    features = made.codes(vectors).counts().topk(3).indices.tolist()
    edits = [Edit.of(made, 3.0, j, 0.5, mode) for j, mode in zip(features, ("set", "ablate", "add"), strict=True)]  # type: ignore[arg-type]
    with torch.no_grad(), steering(model, edits, made):
        seen = model.record(pixels, [site, last])
        out = first(model(pixels))
    assert torch.equal(seen[site], apply_edits(x, edits, made, n_prefix=n_prefix))
    assert torch.equal(seen[site][:, :n_prefix], x[:, :n_prefix])
    assert not torch.equal(seen[last], recorded[last])
    assert not torch.equal(out, base)

    downstream = Downstream.of(model, pixels, site)
    assert torch.equal(first(downstream()), base)
    assert torch.equal(first(downstream(edits, made)), out)
    assert torch.equal(downstream.record([last], edits, made)[last], seen[last])
    torch.testing.assert_close(first(resume_from(model, site, x)), base, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(first(model(pixels)), base)
    assert not any(m._forward_hooks or "forward" in m.__dict__ for m in model.modules())
