"""DINOv2 through `transformers`, with and without registers."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from saev_core import Grid, ModelConfig, VisionModel
from saev_core.errors import ModelError
from saev_core.models.transform import ResizeCrop
from saev_models.hub import need, open_files, read_json, weight_files
from saev_models.pretrained import load, pixels_of, read_transform

_KINDS: dict[str, tuple[Any, Any]] = {
    "dinov2": (Dinov2Config, Dinov2Model),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
}
_RESIZE, _CROP = 256, 224
"""The authors' evaluation transform."""


class DinoV2Config(ModelConfig):
    """Options of `dinov2`."""

    checkpoint: str = "facebook/dinov2-base"
    """A name on the hub, such as `facebook/dinov2-with-registers-base`, or a local folder with config.json and weights."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty: the newest."""
    image_px: int = Field(default=0, ge=0)
    """Side of the square input in pixels, a multiple of the patch size; 0: the size of the checkpoint's preprocessor, or 224."""


class DinoV2(VisionModel):
    """DINOv2: a CLS token, then registers if the checkpoint has them, then patches."""

    Config = DinoV2Config

    def __init__(self, cfg: DinoV2Config) -> None:
        super().__init__()
        files = open_files(cfg.checkpoint, cfg.revision)
        settings = read_json(need(files, "config.json"))
        kind = settings.get("model_type", "")
        if kind not in _KINDS:
            raise ModelError(f"{files} has a model of type {kind!r}, not dinov2 or dinov2_with_registers; try the plugin timm or siglip.")
        config_class, model_class = _KINDS[kind]
        config = config_class.from_dict(settings)
        self.vit = load(model_class, weight_files(files)[0].parent, config, str(files)) if cfg.pretrained else model_class(config)

        self.transform = read_transform(files, ResizeCrop(_RESIZE, (_CROP, _CROP)), cfg.image_px)
        height, width = pixels_of(self.transform, str(files))
        patch_px = int(config.patch_size)
        if height % patch_px or width % patch_px:
            raise ModelError(f"{files}: {height} x {width} pixels are not a multiple of the {patch_px} px patches; set model.image_px.")
        n_registers = int(getattr(config, "num_register_tokens", 0))
        self.grid = Grid(height // patch_px, width // patch_px, patch_px, n_prefix=1 + n_registers)
        self.d_model, self.blocks = int(config.hidden_size), self.vit.encoder.layer

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch n_tokens d_model"]:
        """Tokens after the final layer norm."""
        tokens: Tensor = self.vit(images).last_hidden_state
        return tokens
