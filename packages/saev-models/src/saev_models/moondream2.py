"""Moondream2's vision tower, read from the checkpoint's safetensors without running the repository's code.

The tower is a SigLIP-so400m without its pooling head: 14 px patches of a 378 px image, 27 x 27 = 729 tokens, no CLS.
Two naming layouts exist: until 2024 `vision_encoder.encoder.model.visual.blocks.0.norm1`, as in timm;
since 2025 `model.vision.blocks.0.ln1`. The names of a compiled model contain `._orig_mod`, which is removed.
"""

from __future__ import annotations

import re
from math import isqrt
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from saev_core import Grid, ModelConfig, VisionModel
from saev_core.errors import ModelError
from saev_core.models.transform import HALF, ResizeCrop
from saev_models.hub import first_line, open_files, weight_files

_HEAD_WIDTH = 72
"""Width of an attention head in every release: 1152 / 16 in moondream2, 720 / 10 in the half-billion one."""
_SO400M = {"d_model": 1152, "d_ff": 4304, "n_layers": 27, "n_positions": 27 * 27, "patch_px": 14}
_LAYOUTS = {
    "model.vision.": Image.Resampling.LANCZOS,
    "vision.": Image.Resampling.LANCZOS,
    "vision_encoder.encoder.model.visual.": Image.Resampling.BICUBIC,
}
"""Prefix of the tower's weight names -> resize filter of that release."""
_RENAMED = (
    (r"^patch_embed\.(linear|proj)\.", "patch_emb."),
    (r"^pos_embed$", "pos_emb"),
    (r"^norm\.", "post_ln."),
    (r"^(blocks\.\d+)\.norm([12])\.", r"\1.ln\2."),
)
_TOWER = re.compile(r"(patch_emb|post_ln|blocks\.\d+)\..+|pos_emb")
"""Names of the tower's modules; others with the same prefix (`proj_mlp`, `attn_pool`) belong to the language model."""


class Moondream2Config(ModelConfig):
    """Options of `moondream2`."""

    checkpoint: str = "vikhyatk/moondream2"
    """A name on the hub, a local folder, or a .safetensors file."""
    revision: str = ""
    """Branch, tag or commit on the hub, such as 2025-01-09; empty: the newest."""
    resample: Literal["auto", "bicubic", "lanczos"] = "auto"
    """Resize filter; auto: that of the release, bicubic until 2024 and Lanczos since."""
    n_heads: int = Field(default=0, ge=0)
    """Attention heads, which the weights do not determine; 0: heads of width 72, as in every release."""


class Moondream2(VisionModel):
    """The vision tower of Moondream2, in float32: patches only, no prefix token."""

    Config = Moondream2Config

    def __init__(self, cfg: Moondream2Config) -> None:
        super().__init__()
        local = Path(cfg.checkpoint).expanduser().exists()
        if cfg.pretrained or local:
            weights, resample = read_tower(cfg)
            self.tower = Tower.shaped_like(weights, cfg.n_heads)
            if cfg.pretrained:
                self.tower.load_state_dict(weights)
        else:
            self.tower, resample = Tower(**_SO400M, n_heads=cfg.n_heads or 16), Image.Resampling.LANCZOS
        if cfg.resample != "auto":
            resample = Image.Resampling[cfg.resample.upper()]
        side, patch_px = isqrt(self.tower.n_positions), self.tower.patch_px
        # The whole image is squashed into a square, like the model's global crop.
        self.transform = ResizeCrop((side * patch_px, side * patch_px), None, HALF, HALF, int(resample))
        self.grid = Grid(side, side, patch_px, n_prefix=0)
        self.d_model, self.blocks = self.tower.d_model, self.tower.blocks

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch n_patches d_model"]:
        """Tokens after the final layer norm."""
        tokens: Tensor = self.tower(images)
        return tokens


class Attention(nn.Module):
    """Self-attention over all patches."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))  # [b, heads, n, d_head]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [b, n, d_model]
        out: Tensor = self.proj(mixed)
        return out


class MLP(nn.Module):
    """Two layers with tanh-approximated GELU, as in every release since March 2024."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_ff)
        self.fc2 = nn.Linear(d_ff, d_model)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """A pre-norm transformer block; layer norm's eps is torch's 1e-5, not timm's 1e-6."""

    def __init__(self, d_model: int, d_ff: int, n_heads: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(d_model)
        self.attn = Attention(d_model, n_heads)
        self.ln2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model, d_ff)

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))  # type: ignore[no-any-return]


class Tower(nn.Module):
    """Patch embedding, learned positions, blocks, final norm; named as in releases since 2025."""

    def __init__(self, *, d_model: int, d_ff: int, n_layers: int, n_positions: int, patch_px: int, n_heads: int) -> None:
        super().__init__()
        self.d_model, self.n_positions, self.patch_px = d_model, n_positions, patch_px
        self.patch_emb = nn.Linear(3 * patch_px * patch_px, d_model)
        self.pos_emb = nn.Parameter(torch.zeros(1, n_positions, d_model))
        self.blocks = nn.ModuleList(Block(d_model, d_ff, n_heads) for _ in range(n_layers))
        self.post_ln = nn.LayerNorm(d_model)

    @classmethod
    def shaped_like(cls, weights: dict[str, Tensor], n_heads: int = 0) -> Tower:
        """A randomly initialised tower whose parameters match `weights` exactly.

        Raises:
            ModelError: a weight is missing, unexpected or of the wrong shape.
        """
        n_layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        try:
            d_model, d_patch = weights["patch_emb.weight"].shape
            n_positions = weights["pos_emb"].shape[1]
            d_ff = weights["blocks.0.mlp.fc1.weight"].shape[0]
        except KeyError as error:
            raise ModelError(f"the checkpoint's vision tower lacks {error.args[0]}.") from None
        n_heads = n_heads or d_model // _HEAD_WIDTH
        if n_heads == 0 or d_model % n_heads:
            raise ModelError(f"the tower's width {d_model} is not divisible by the head width {_HEAD_WIDTH}; set model.n_heads.")
        patch_px = isqrt(d_patch // 3)
        if 3 * patch_px**2 != d_patch or isqrt(n_positions) ** 2 != n_positions:
            raise ModelError(f"{d_patch} inputs per patch and {n_positions} positions do not form a square grid of square RGB patches.")
        tower = cls(d_model=d_model, d_ff=d_ff, n_layers=n_layers, n_positions=n_positions, patch_px=patch_px, n_heads=n_heads)
        want = {name: tensor.shape for name, tensor in tower.state_dict().items()}
        have = {name: tensor.shape for name, tensor in weights.items()}
        if wrong := sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name)):
            raise ModelError(
                f"not the vision tower of moondream2: {len(wrong)} weights missing, unexpected or of the wrong shape, such as {wrong[0]}."
            )
        return tower

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch n_patches d_model"]:
        # A patch is one row of numbers in the order channel, row, column: the order of a convolution's weights.
        x = F.unfold(images, self.patch_px, stride=self.patch_px).transpose(1, 2)  # [b, n_patches, 3 * px * px]
        x = self.patch_emb(x) + self.pos_emb
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.post_ln(x)
        return out


def read_tower(cfg: Moondream2Config) -> tuple[dict[str, Tensor], Image.Resampling]:
    """The tower's weights in float32 under the names of `Tower`, and the resize filter of that release.

    Raises:
        ModelError: the checkpoint does not exist, or is of another model.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(cfg.checkpoint).expanduser()
    paths = [path] if path.is_file() else weight_files(open_files(cfg.checkpoint, cfg.revision), "model")
    weights: dict[str, Tensor] = {}
    resample = Image.Resampling.LANCZOS
    for file in paths:
        if file.suffix != ".safetensors":
            raise ModelError(f"{file}: only .safetensors is read.")
        try:
            with safe_open(file, framework="pt") as tensors:
                for stored in tensors.keys():  # noqa: SIM118  (not a dict)
                    name = stored.replace("._orig_mod", "")
                    if (start := next((start for start in _LAYOUTS if name.startswith(start)), None)) is None:
                        continue
                    name = _renamed(name.removeprefix(start))
                    if _TOWER.fullmatch(name):
                        resample = _LAYOUTS[start]
                        weights[name] = tensors.get_tensor(stored).float()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is not readable as safetensors ({first_line(error)}).") from None
    if not weights:
        raise ModelError(
            f"{cfg.checkpoint} has no vision tower of moondream2: no weight is named {' or '.join(f'{s}*' for s in _LAYOUTS)}."
        )
    if (conv := weights.get("patch_emb.weight")) is not None and conv.ndim == 4:
        weights["patch_emb.weight"] = conv.flatten(1)  # [d_model, 3 * px * px]
    return weights, resample


def _renamed(name: str) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return name
