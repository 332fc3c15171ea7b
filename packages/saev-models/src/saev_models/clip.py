"""CLIP models through open_clip: the vision tower with the library's evaluation transform; the text tower is loaded on demand."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip  # type: ignore[import-untyped]
import torch
from jaxtyping import Float
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model  # type: ignore[import-untyped]
from open_clip.transform import PreprocessCfg, image_transform_v2  # type: ignore[import-untyped]
from pydantic import model_validator
from torch import Tensor, nn

from saev_core import Grid, ModelConfig, VisionModel
from saev_core.errors import ModelError
from saev_models.hub import OFFLINE, Repo, first_line, need, open_files, weight_files
from saev_models.quiet import no_root_logging
from saev_models.trim import Trim, pad

_STEMS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
"""Names of weight files in open_clip's repositories, in order of preference."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt")


class ClipConfig(ModelConfig):
    """Options of `clip`."""

    checkpoint: str = "ViT-B-32/openai"
    """ARCHITECTURE/TAG of open_clip, `hf-hub:owner/model`, a local folder, or ARCHITECTURE/PATH of a weight file."""
    weights: str = ""
    """A local file with the weights of the architecture `checkpoint`: .safetensors, or .pt/.bin with only tensors."""
    revision: str = ""
    """Branch, tag or commit of a `hf-hub:` name; empty: the newest."""
    quick_gelu: bool | None = None
    """Whether to use OpenAI's approximation of GELU; none: as the tag was trained, or as the architecture specifies."""

    @model_validator(mode="before")
    @classmethod
    def _split(cls, data: Any) -> Any:
        """ARCHITECTURE/PATH is ARCHITECTURE with weights from PATH."""
        if not isinstance(data, dict) or data.get("weights") or _in_folder(str(data.get("checkpoint", ""))):
            return data
        name, tail = split_name(str(data.get("checkpoint", "")))
        if tail and get_pretrained_cfg(name, tail) == {} and name in open_clip.list_models():
            return {**data, "checkpoint": name, "weights": tail}
        return data


class Clip(VisionModel):
    """The vision tower of a CLIP model: a CLS token, then patches. A timm tower (SigLIP, EVA) keeps its own prefix tokens."""

    Config: type[ModelConfig] = ClipConfig  # type: ignore[misc]

    def __init__(self, cfg: ClipConfig) -> None:
        super().__init__()
        self._cfg = cfg
        # Any: towers differ in structure, and nn.Module's attributes are untyped.
        self.visual = visual = build(cfg)
        preprocess = PreprocessCfg(**visual.preprocess_cfg)
        size: Any = preprocess.size
        self._height_px, self._width_px = map(int, (size, size) if isinstance(size, int) else size)
        transform = image_transform_v2(preprocess, is_train=False)
        self.eval()
        if isinstance(visual, open_clip.transformer.VisionTransformer):
            rows, cols = visual.grid_size
            self.grid = Grid(rows, cols, int(visual.patch_size[0]), n_prefix=1)
            self.d_model, self.blocks = int(visual.conv1.out_channels), visual.transformer.resblocks
        elif (parts := _timm_parts(visual, self._height_px, self._width_px)) is not None:
            self.grid, self.blocks = parts
            self.d_model = int(visual.trunk.embed_dim)
        elif cfg.blocks:
            # A placeholder of one cell, until load_model calls hook_blocks, which measures the grid.
            self.grid, self.blocks, self.d_model = Grid(1, 1, self._height_px), nn.ModuleList(), 0
        else:
            kind = type(getattr(visual, "trunk", visual)).__name__
            raise ModelError(
                f"{cfg.checkpoint}: its vision tower is a {kind}, not a transformer; name its blocks, --set 'model.blocks=layer?'."
            )
        exact = (self.grid.height_px, self.grid.width_px) == (self._height_px, self._width_px)
        self.transform = transform if exact else Trim(transform, self.grid.height_px, self.grid.width_px)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d_embed"]:
        """The image's embedding, not normalised."""
        embedding: Tensor = self.visual(pad(images, self._height_px, self._width_px))
        return embedding

    def encode_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d_text"]:
        """The image's embedding, not normalised."""
        return self(images)  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n d_text"]:
        """Embeddings of texts, not normalised. The text tower is loaded on first use.

        Raises:
            ModelError: the text tower or its tokenizer cannot be loaded.
        """
        if "_text" not in self.__dict__:
            # In __dict__, not a submodule: only the vision tower is part of the recorded or saved model.
            self.__dict__["_text"] = build_text(self._cfg)
        tower, tokenizer = self.__dict__["_text"]
        embedding: Tensor = tower.to(self.device).encode_text(tokenizer(list(texts)).to(self.device))
        return embedding

    @torch.no_grad()
    def project(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_text"]:
        """Final norm, pooling and projection of an image whose tokens are all `x`.

        Raises:
            ModelError: the tower is not a transformer, or the width of `x` differs from its tokens.
        """
        visual = self.visual
        trunk = getattr(visual, "trunk", None)
        width = visual.conv1.out_channels if isinstance(visual, open_clip.transformer.VisionTransformer) else getattr(trunk, "embed_dim", 0)
        if x.shape[1] != width or (trunk is not None and not hasattr(trunk, "forward_head")):
            raise ModelError(f"vectors of width {x.shape[1]} do not fit the head of {self._cfg.checkpoint}, whose tokens are {width} wide.")
        # One patch and all prefix tokens, because some towers average patches and others use the first token.
        tokens = x[:, None].expand(-1, self.grid.n_prefix + 1, -1)
        if trunk is not None:
            pooled: Tensor = visual.head(trunk.forward_head(trunk.norm(tokens)))
            return pooled
        pooled, _ = visual._pool(tokens)
        return pooled if visual.proj is None else pooled @ visual.proj


def _timm_parts(visual: Any, height_px: int, width_px: int) -> tuple[Grid, nn.ModuleList | nn.Sequential] | None:
    if not hasattr(visual, "trunk"):
        return None
    from saev_models.timm import vit_parts

    return vit_parts(visual.trunk, height_px, width_px)


def split_name(checkpoint: str) -> tuple[str, str]:
    """Architecture and the rest: the longest prefix, up to a slash, for which open_clip has a configuration.

    open_clip also accepts an architecture with a slash (`ViT-B/32`); it is treated as one name here.
    """
    parts = checkpoint.split("/")
    known = set(open_clip.list_models())
    for n in range(len(parts), 0, -1):
        if (name := "-".join(parts[:n])) in known:
            return name, "/".join(parts[n:])
    return parts[0], "/".join(parts[1:])


def _in_folder(checkpoint: str) -> bool:
    """Whether the checkpoint has its own open_clip_config.json: a repository or a local folder."""
    return checkpoint.startswith(("hf-hub:", "local-dir:")) or Path(checkpoint).expanduser().is_dir()


def build(cfg: ClipConfig) -> Any:
    """The vision tower with all weights loaded.

    Raises:
        ModelError: architecture or tag is unknown, or the weights are unavailable or belong to another model.
    """
    return _create(*_found(cfg)).visual


def build_text(cfg: ClipConfig) -> tuple[Any, Any]:
    """The same model without its vision tower, and its tokenizer.

    Raises:
        ModelError: as `build`, or the tokenizer cannot be loaded.
    """
    found = _found(cfg)
    model = _create(*found).eval().requires_grad_(False)
    model.visual = nn.Identity()
    if cfg.checkpoint.startswith("hf-hub:"):
        files = open_files(cfg.checkpoint, cfg.revision)
        for name in _TOKENIZER_FILES:
            files.find(name)
    try:
        with no_root_logging("open_clip"):
            return model, open_clip.get_tokenizer(found[0])
    except Exception as error:
        raise ModelError(f"{cfg.checkpoint}: its tokenizer cannot be loaded ({_complaint(error)}); {OFFLINE}") from error


def _found(cfg: ClipConfig) -> tuple[str, ClipConfig, dict[str, Any], Path | None]:
    """The arguments from which `_create` creates a model."""
    if _in_folder(cfg.checkpoint):
        files = open_files(cfg.checkpoint.removeprefix("local-dir:"), cfg.revision)
        source = f"local-dir:{need(files, 'open_clip_config.json').parent}"
        path = weight_files(files, *_STEMS)[0] if cfg.pretrained else None
        return source, cfg, {}, path

    name, tag = split_name(cfg.checkpoint)
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "write a name on the hub as hf-hub:owner/model."
        raise ModelError(f"open_clip has no architecture {name!r}; {hint}")
    tagged: dict[str, Any] = dict(get_pretrained_cfg(name, tag) or {}) if tag else {}
    path = None
    if cfg.pretrained and cfg.weights:
        path = Path(cfg.weights).expanduser()
        if not path.is_file():
            raise ModelError(f"{cfg.weights} is neither a file nor a tag of {name}; its tags are {_tags(name)}.")
    elif cfg.pretrained:
        if not tagged:
            raise ModelError(f"{cfg.checkpoint}: specify the weights as {name}/TAG or {name}/PATH; the tags are {_tags(name)}.")
        path = _download(f"{name}/{tag}", tagged)
    return name, cfg, tagged, path


def _tags(name: str) -> str:
    return ", ".join(list_pretrained_tags_by_model(name)) or "none"


def _download(name: str, tagged: dict[str, Any]) -> Path:
    repo, _, file = str(tagged.get("hf_hub", "")).rpartition("/")
    if not repo:
        raise ModelError(f"open_clip has {name} only at {tagged.get('url')}; download it and give its path as model.weights.")
    if file:
        return need(Repo(repo), str(Path(file).with_suffix(".safetensors")), file)
    return weight_files(Repo(repo), *_STEMS)[0]


def _create(source: str, cfg: ClipConfig, tagged: dict[str, Any], path: Path | None) -> Any:
    options: dict[str, Any] = {}
    # Use the activation the tag was trained with: open_clip only warns if it builds another one.
    quick_gelu = cfg.quick_gelu if cfg.quick_gelu is not None else tagged.get("quick_gelu")
    if quick_gelu is not None:
        options["quick_gelu"] = bool(quick_gelu)
    preprocess = {key: tagged[key] for key in ("mean", "std", "interpolation", "resize_mode") if tagged.get(key) is not None}
    try:
        with no_root_logging("open_clip"):
            model = open_clip.create_model(
                source, load_weights=False, pretrained_text=False, force_preprocess_cfg=preprocess or None, **options
            )
            if path is not None:
                open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as error:
        what = f"{path} cannot be loaded as" if path else "open_clip cannot create"
        raise ModelError(f"{what} {source.removeprefix('local-dir:')} ({_complaint(error)}).") from error
    return model


def _complaint(error: Exception) -> str:
    """The error as one line, including the second line of load_state_dict's message, which has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else first_line(error)
    return text if len(text) < 300 else f"{text[:300]} ..."


__all__ = ["Clip", "ClipConfig", "build", "split_name"]
