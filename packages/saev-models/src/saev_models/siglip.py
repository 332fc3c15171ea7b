"""SigLIP's vision tower (no CLS token), through `transformers` or, for its names, open_clip; the text tower is loaded on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saev_core import Grid, ModelConfig, VisionModel
from saev_core.errors import ModelError
from saev_core.models.transform import HALF, ResizeCrop
from saev_models.hub import need, open_files, read_json, weight_files
from saev_models.pretrained import load, pixels_of, read_transform
from saev_models.trim import Trim, pad


class SiglipConfig(ModelConfig):
    """Options of `siglip`."""

    checkpoint: str = "google/siglip-base-patch16-224"
    """A transformers name (`google/siglip2-base-patch16-256`) or folder; or open_clip's `ViT-B-16-SigLIP/webli`, `hf-hub:owner/model`."""
    weights: str = ""
    """A local weight file, if `checkpoint` is an open_clip architecture."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty: the newest."""


class Siglip(VisionModel):
    """SigLIP and SigLIP 2 with fixed input size: patches only, no prefix token."""

    Config = SiglipConfig

    def __init__(self, cfg: SiglipConfig) -> None:
        super().__init__()
        self._cfg = cfg
        self._by_open_clip = _is_open_clip(cfg)
        if self._by_open_clip:
            self._build_open_clip(cfg)
        else:
            self._build_transformers(cfg)

    def _build_open_clip(self, cfg: SiglipConfig) -> None:
        try:
            from saev_models.clip import Clip, ClipConfig
        except ImportError as error:
            raise ModelError(f'{cfg.checkpoint} is an open_clip name: pip install "saev-models[clip]" ({error}).') from None
        tower = Clip(ClipConfig.model_validate({key: value for key, value in cfg.model_dump().items() if value != ""}))
        if tower.grid.n_prefix:
            raise ModelError(f"{cfg.checkpoint} has a CLS token, SigLIP has none; use --model clip:{cfg.checkpoint}.")
        self.tower: Any = tower
        self.grid, self.d_model, self.blocks, self.transform = tower.grid, tower.d_model, tower.blocks, tower.transform
        self._size = (self.grid.height_px, self.grid.width_px)

    def _build_transformers(self, cfg: SiglipConfig) -> None:
        try:
            from transformers import SiglipVisionConfig, SiglipVisionModel
        except ImportError as error:
            raise ModelError(f'siglip reads {cfg.checkpoint} through transformers: pip install "saev-models[siglip]" ({error}).') from None

        files = open_files(cfg.checkpoint, cfg.revision)
        settings = read_json(need(files, "config.json"))
        kind = settings.get("model_type", "")
        if kind not in ("siglip", "siglip_vision_model"):
            raise ModelError(f"{files} has a model of type {kind!r}, not siglip; SigLIP of variable size (naflex) is not supported.")
        config = SiglipVisionConfig.from_dict(settings["vision_config"] if kind == "siglip" else settings)
        folder = weight_files(files)[0].parent if cfg.pretrained else Path()
        self.tower = load(SiglipVisionModel, folder, config, str(files)) if cfg.pretrained else SiglipVisionModel(config)

        size, patch_px = _side(config.image_size), _side(config.patch_size)
        transform = read_transform(files, ResizeCrop((size, size), None, HALF, HALF))
        if pixels_of(transform, str(files)) != (size, size):
            raise ModelError(
                f"{files}: its preprocessor outputs {pixels_of(transform, str(files))} pixels, but its positions are for {size} x {size}."
            )
        self._size = (size, size)
        self.grid = Grid(size // patch_px, size // patch_px, patch_px, n_prefix=0)
        exact = self.grid.height_px == size
        self.transform = transform if exact else Trim(transform, self.grid.height_px, self.grid.width_px)
        # transformers 4 nests the tower one level deeper.
        self.d_model, self.blocks = int(config.hidden_size), getattr(self.tower, "vision_model", self.tower).encoder.layers

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """Tokens after the final layer norm (transformers), or the image's embedding (open_clip)."""
        output = self.tower(pad(images, *self._size))
        tokens: Tensor = output if isinstance(output, Tensor) else output.last_hidden_state
        return tokens

    def encode_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d_text"]:
        """The image's embedding, not normalised.

        Raises:
            ModelError: the checkpoint has no pooling head.
        """
        output = self.tower(pad(images, *self._size))
        embedding: Tensor | None = output if isinstance(output, Tensor) else output.pooler_output
        if embedding is None:
            raise ModelError(f"{self._cfg.checkpoint} has no pooling head, so its images have no embedding to compare with text.")
        return embedding

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n d_text"]:
        """Embeddings of texts, not normalised. The text tower is loaded on first use.

        Raises:
            ModelError: the text tower or its tokenizer cannot be loaded.
        """
        if self._by_open_clip:
            return self.tower.encode_text(texts)  # type: ignore[no-any-return]
        if "_text" not in self.__dict__:
            self.__dict__["_text"] = _build_text(self._cfg)
        tower, tokenizer = self.__dict__["_text"]
        ids = torch.tensor([line.ids for line in tokenizer.encode_batch(list(texts))], device=self.device)
        embedding: Tensor = tower.to(self.device)(input_ids=ids).pooler_output
        return embedding

    @torch.no_grad()
    def project(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_text"]:
        """Final norm and pooling head of an image whose tokens are all `x`.

        Raises:
            ModelError: the width of `x` differs from the model's tokens, or there is no head.
        """
        if self._by_open_clip:
            return self.tower.project(x)  # type: ignore[no-any-return]
        tower = getattr(self.tower, "vision_model", self.tower)
        if getattr(tower, "head", None) is None or x.shape[1] != tower.config.hidden_size:
            raise ModelError(f"vectors of width {x.shape[1]} do not fit the head of {self._cfg.checkpoint}.")
        pooled: Tensor = tower.head(tower.post_layernorm(x[:, None]))
        return pooled


def _build_text(cfg: SiglipConfig) -> tuple[Any, Any]:
    """Text tower and tokenizer of a `transformers` checkpoint.

    Raises:
        ModelError: the checkpoint has no text tower or no tokenizer.
    """
    from tokenizers import Tokenizer  # a part of transformers
    from transformers import SiglipTextConfig, SiglipTextModel

    files = open_files(cfg.checkpoint, cfg.revision)
    settings = read_json(need(files, "config.json"))
    if "text_config" not in settings:
        raise ModelError(f"{files} has only a vision tower; to name features from text, use a checkpoint with both towers.")
    config = SiglipTextConfig.from_dict(settings["text_config"])
    folder = weight_files(files)[0].parent if cfg.pretrained else Path()
    tower: Any = load(SiglipTextModel, folder, config, str(files)) if cfg.pretrained else SiglipTextModel(config)
    tokenizer = Tokenizer.from_file(str(need(files, "tokenizer.json")))
    length = int(config.max_position_embeddings)
    # Always pad to the full length: the text tower reads the last position, and was trained that way.
    pad_id = int(config.pad_token_id or 0)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=tokenizer.id_to_token(pad_id) or "<pad>")
    return tower.eval().requires_grad_(False), tokenizer


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])


def _is_open_clip(cfg: SiglipConfig) -> bool:
    """Whether the checkpoint is in open_clip's format; queries the library only if the name could be one of its own."""
    name = cfg.checkpoint
    folder = Path(name).expanduser()
    if folder.is_dir():
        return (folder / "open_clip_config.json").is_file()
    return bool(cfg.weights) or name.startswith(("hf-hub:", "local-dir:", "ViT-"))
