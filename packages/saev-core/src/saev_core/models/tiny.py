"""`Tiny`: a small ViT trained on `shapes` and shipped with the package, so that everything works offline.

`scripts/train_tiny.py` trains its weights, `tiny.safetensors` beside this file.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from torch import Tensor, nn

from saev_core.errors import ModelError
from saev_core.models.base import ModelConfig, VisionModel
from saev_core.models.transform import HALF, ResizeCrop
from saev_core.types import Grid

FACTORS = {"shape": 10, "colour": 8, "texture": 4, "size": 2, "place": 9}
"""Factors of `shapes` that the model was trained to predict for each patch, and the number of values of each."""

IMAGE_PX, PATCH_PX, D_MODEL, N_HEADS, N_BLOCKS = 96, 8, 128, 4, 4


class TinyConfig(ModelConfig):
    """Options of `tiny`."""

    seed: int = 0
    """Seed of the random weights with `pretrained = false`."""


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(D_MODEL)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(D_MODEL)
        self.mlp = nn.Sequential(nn.Linear(D_MODEL, 4 * D_MODEL), nn.GELU(), nn.Linear(4 * D_MODEL, D_MODEL))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D_MODEL, 3 * D_MODEL)
        self.proj = nn.Linear(D_MODEL, D_MODEL)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = self.qkv(x).unflatten(2, (3, N_HEADS, -1)).permute(2, 0, 3, 1, 4)  # each [b, heads, n, d / heads]
        # Written out: torch's fused attention trains four times slower in bfloat16 on a CPU.
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1)  # [b, heads, n, n]
        out: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class Tiny(VisionModel):
    """A ViT of 96 px, 12 x 12 patches, CLS token, 4 pre-norm blocks of width 128, behind a convolutional stem.

    `forward` returns the last block's tokens; `heads` predicts the factors of `shapes` from them.
    """

    Config = TinyConfig

    def __init__(self, cfg: TinyConfig | None = None) -> None:
        super().__init__()
        cfg = cfg or TinyConfig()
        self.grid = Grid(IMAGE_PX // PATCH_PX, IMAGE_PX // PATCH_PX, PATCH_PX, n_prefix=1)
        self.d_model = D_MODEL
        # Convolutions before the patches: plain 8 px patches learn far more slowly from so few images.
        # Source: Xiao et al. 2021, Early convolutions help transformers see better. https://arxiv.org/abs/2106.14881
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.GELU(), nn.Conv2d(64, D_MODEL, 2, 2))
        )
        self.cls = nn.Parameter(torch.zeros(1, 1, D_MODEL))
        self.position = nn.Parameter(torch.zeros(1, self.grid.n_tokens, D_MODEL))
        self.blocks = nn.ModuleList(Block() for _ in range(N_BLOCKS))
        self.norm = nn.LayerNorm(D_MODEL)
        # One more value than the factor has: the last one means that the patch shows no object.
        self.read = nn.ModuleDict({factor: nn.Linear(D_MODEL, n + 1) for factor, n in FACTORS.items()})
        self.read_label = nn.Linear(D_MODEL, FACTORS["shape"])
        self.transform = ResizeCrop(IMAGE_PX, (IMAGE_PX, IMAGE_PX), HALF, HALF)
        if cfg.pretrained:
            self._load(cfg.checkpoint)
        else:
            self.reset(cfg.seed)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x

    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """The tokens that enter the first block."""
        patches = self.stem(images).flatten(2).transpose(1, 2)  # [b, 144, d]
        return torch.cat([self.cls.expand(len(patches), -1, -1), patches], 1) + self.position

    def heads(self, tokens: Float[Tensor, "b n d"], noise: float = 0.0) -> dict[str, Tensor]:
        """Logits from the last block's tokens: per factor `[b, n_patches, n_values + 1]`, and `label [b, 10]` from the CLS token.

        Args:
            noise: standard deviation of the noise added to the normalised tokens in training.
        """
        x = self.norm(tokens)
        if noise:
            x = x + noise * torch.randn_like(x)
        logits = {factor: read(x[:, 1:]) for factor, read in self.read.items()}
        return {**logits, "label": self.read_label(x[:, 0])}

    def reset(self, seed: int) -> None:
        """Random weights drawn from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                std = 0.02 if name in ("cls", "position") else fan_in**-0.5
                nn.init.trunc_normal_(parameter, std=std, generator=generator)
            else:
                nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)

    def _load(self, checkpoint: str) -> None:
        from pathlib import Path

        source = Path(checkpoint) if checkpoint else files("saev_core.models") / "tiny.safetensors"
        try:
            weights: dict[str, Any] = load_bytes(source.read_bytes())
            self.load_state_dict({name: value.float() for name, value in weights.items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            why = str(error).splitlines()[0]
            raise ModelError(f"{source} does not hold weights of tiny ({why}); omit model.options.checkpoint for ours.") from None
