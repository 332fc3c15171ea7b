"""Every family keeps the contract of a model, with tiny random weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from saev_core.models.base import ModelConfig, VisionModel
from saev_core.testing import ModelContract

clip = pytest.importorskip("saev_models.clip")
dinov2 = pytest.importorskip("saev_models.dinov2")
focus = pytest.importorskip("saev_dinov2_focus")
moondream2 = pytest.importorskip("saev_models.moondream2")
siglip = pytest.importorskip("saev_models.siglip")
timm = pytest.importorskip("saev_models.timm")

LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
DINOV2 = {"model_type": "dinov2_with_registers", **LAYERS, "mlp_ratio": 2, "image_size": 70, "patch_size": 14, "num_register_tokens": 4}
SIGLIP = {"model_type": "siglip_vision_model", **LAYERS, "intermediate_size": 64, "image_size": 60, "patch_size": 14}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
CLIP = {"embed_dim": 24, "vision_cfg": {"image_size": 70, "layers": 2, "width": 64, "patch_size": 16}, "text_cfg": TEXT}


def build(cls: type[VisionModel]):
    """A function that builds each configuration once, since a contract asks anew in every test."""
    return functools.cache(cls)


@pytest.fixture(scope="module", autouse=True)
def _checkpoints(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, settings in {"dinov2": DINOV2, "siglip": SIGLIP}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(settings))
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    tower = moondream2.Tower(d_model=144, d_ff=64, n_layers=2, n_positions=25, patch_px=14, n_heads=2)
    (folder / "moondream2").mkdir()
    weights = {f"model.vision.{name}": tensor for name, tensor in tower.state_dict().items()}
    save_file(weights, folder / "moondream2" / "model.safetensors")

    TestClip.config = clip.ClipConfig(checkpoint=str(folder / "clip"), pretrained=False)
    TestDinoV2.config = dinov2.DinoV2Config(checkpoint=str(folder / "dinov2"), pretrained=False, image_px=70)
    TestSiglip.config = siglip.SiglipConfig(checkpoint=str(folder / "siglip"), pretrained=False)
    TestMoondream2.config = moondream2.Moondream2Config(checkpoint=str(folder / "moondream2"))


class TestClip(ModelContract):
    """70 px under 16 px patches: six rows and columns of pixels belong to none."""

    config: ModelConfig
    model = build(clip.Clip)


class TestDinoV2(ModelContract):
    config: ModelConfig
    model = build(dinov2.DinoV2)


class TestSiglip(ModelContract):
    config: ModelConfig
    model = build(siglip.Siglip)


class TestMoondream2(ModelContract):
    config: ModelConfig
    model = build(moondream2.Moondream2)


class TestTimm(ModelContract):
    config = timm.TimmConfig(checkpoint="test_vit", pretrained=False)
    model = build(timm.Timm)


class TestDinoV2Focus(ModelContract):
    config = focus.DinoV2FocusConfig(pretrained=False, image_px=112)
    model = build(focus.DinoV2Focus)


def test_every_option_says_what_it_is():
    """The first option is the main one, and each has a line of its own."""
    for kind in (
        clip.ClipConfig,
        dinov2.DinoV2Config,
        siglip.SiglipConfig,
        moondream2.Moondream2Config,
        timm.TimmConfig,
        focus.DinoV2FocusConfig,
    ):
        assert kind.main_option() == "checkpoint"
        assert all(field.description for field in kind.model_fields.values()), kind
        assert isinstance(kind().checkpoint, str)


def test_a_readme_names_every_plugin():
    import tomllib

    package = Path(__file__).parents[2] / "packages" / "saev-models"
    readme = (package / "README.md").read_text()
    for name in tomllib.loads((package / "pyproject.toml").read_text())["project"]["entry-points"]["saev.models"]:
        assert f"| `{name}` |" in readme
