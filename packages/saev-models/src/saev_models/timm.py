"""Any vision transformer of timm, including DINOv3 and EVA, and other networks through `model.blocks`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from saev_core import Grid, ModelConfig, VisionModel
from saev_core.errors import ModelError
from saev_models.hub import Repo, first_line, need, open_files, read_json, weight_files
from saev_models.trim import Trim, pad


class TimmConfig(ModelConfig):
    """Options of `timm`."""

    checkpoint: str = "vit_base_patch16_224"
    """A timm model (`vit_small_patch16_dinov3.lvd1689m`), `hf-hub:owner/model`, a local folder, or MODEL/PATH of a weight file."""
    weights: str = ""
    """A local file with the weights of the timm model `checkpoint`: .safetensors, or .pt/.pth with only tensors."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty: the newest."""
    image_px: int = Field(default=0, ge=0)
    """Side of the square input in pixels; 0: the size the weights were trained at. timm interpolates positions."""

    @model_validator(mode="before")
    @classmethod
    def _split(cls, data: Any) -> Any:
        """MODEL/PATH is MODEL with weights from PATH."""
        name, _, path = str(data.get("checkpoint", "")).partition("/") if isinstance(data, dict) else ("", "", "")
        if path and not data.get("weights") and timm.is_model(name):
            return {**data, "checkpoint": name, "weights": path}
        return data


class Timm(VisionModel):
    """A timm model with its own transform: prefix tokens (CLS, registers), then patches."""

    Config = TimmConfig

    def __init__(self, cfg: TimmConfig) -> None:
        super().__init__()
        self.trunk = build(cfg)
        data: dict[str, Any] = resolve_model_data_config(self.trunk)  # type: ignore[no-untyped-call]
        if cfg.image_px:
            data["input_size"] = (3, cfg.image_px, cfg.image_px)
        self._height_px, self._width_px = data["input_size"][1:]
        transform = create_transform(**data)
        self.channels_last = {"NHWC": True, "NCHW": False}.get(str(getattr(self.trunk, "output_fmt", "")))
        self.d_model = int(getattr(self.trunk, "num_features", 0))
        parts = vit_parts(self.trunk, self._height_px, self._width_px)
        if parts is not None:
            self.grid, self.blocks = parts
            exact = (self.grid.height_px, self.grid.width_px) == (self._height_px, self._width_px)
            self.transform = transform if exact else Trim(transform, self.grid.height_px, self.grid.width_px)
            self.eval()
            check_grid(self, cfg.checkpoint)
        elif cfg.blocks:
            # A placeholder of one cell, until load_model calls hook_blocks, which measures the grid.
            self.grid, self.blocks, self.transform = Grid(1, 1, self._height_px), nn.ModuleList(), transform
        else:
            inside = ", ".join(name for name, child in self.trunk.named_children() if any(child.children()))
            raise ModelError(
                f"{cfg.checkpoint} is a {type(self.trunk).__name__}, not a plain vision transformer: "
                f"name its blocks, such as --set 'model.blocks=stages.2.blocks.*' (it has {inside})."
            )

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """timm's `forward_features`: tokens after the final norm, or the last feature map."""
        features: Tensor = self.trunk.forward_features(pad(images, self._height_px, self._width_px))
        return features


def build(cfg: TimmConfig) -> Any:
    """The timm model without its classifier, with all weights loaded.

    Raises:
        ModelError: the model is unknown, or its weights are unavailable or belong to another model.
    """
    name = cfg.checkpoint.removeprefix("timm/")
    options = {"img_size": cfg.image_px} if cfg.image_px else {}
    if not timm.is_model(name):
        return _from_folder(cfg, options)
    if not cfg.pretrained:
        return _create(name, num_classes=0, **options)
    if cfg.weights:
        path = Path(cfg.weights).expanduser()
        if not path.is_file():
            raise ModelError(f"{path}: no such file; model.weights takes a weight file of {name}.")
    else:
        path = _download(name, cfg.revision)
    return _load(name, path, options)


def _from_folder(cfg: TimmConfig, options: dict[str, Any]) -> Any:
    """A folder or repository in timm's format: config.json names the architecture."""
    name = cfg.checkpoint.removeprefix("local-dir:")
    if "/" not in name and not Path(name).expanduser().exists():
        near = difflib.get_close_matches(_bare(name), timm.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()."
        raise ModelError(f"timm has no model {name!r}; {hint}")
    files = open_files(name, cfg.revision)
    settings = read_json(need(files, "config.json"))
    architecture = str(settings.get("architecture", ""))
    if not timm.is_model(architecture):
        raise ModelError(f"{files}: the architecture {architecture!r} in its config.json is unknown to timm {timm.__version__}.")
    source = f"local-dir:{need(files, 'config.json').parent}"
    if not cfg.pretrained:
        return _create(source, num_classes=0, **options)
    (path,) = weight_files(files, "model", "pytorch_model")
    return _load(source, path, options)


def _download(name: str, revision: str) -> Path:
    try:
        cfg = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # the tag after the dot is unknown
        cfg = None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise ModelError(
            f"timm has no weights {name!r}; it has {', '.join(timm.list_pretrained(f'{_bare(name)}*')) or 'none of this model'}."
        )
    if not cfg.hf_hub_id:
        raise ModelError(f"timm has {name} only at {cfg.url}; download it and give its path as model.weights.")
    repo = Repo(str(cfg.hf_hub_id), revision)
    if cfg.hf_hub_filename:
        return need(repo, str(Path(cfg.hf_hub_filename).with_suffix(".safetensors")), cfg.hf_hub_filename)
    return weight_files(repo)[0]


def _load(name: str, path: Path, options: dict[str, Any]) -> Any:
    """`name` with the weights of `path`, none missing or unexpected.

    timm tolerates missing weights if the classifier's size differs from the checkpoint's. So the model is created
    with the file's classifier, loaded strictly, and the classifier is removed afterwards.
    """
    overlay: dict[str, Any] = {"file": str(path), "source": "timm", "custom_load": path.suffix == ".npz"}
    failure: Exception | None = None
    for n_classes in _n_classes(name, path):
        try:
            trunk = _create(
                name, pretrained=True, num_classes=n_classes, pretrained_cfg_overlay={**overlay, "num_classes": n_classes}, **options
            )
        except Exception as error:  # noqa: BLE001  (readers raise arbitrary exceptions on damaged files)
            failure = failure or error
        else:
            trunk.reset_classifier(0)
            return trunk
    assert failure is not None
    raise ModelError(f"{path} cannot be loaded as {name.removeprefix('local-dir:')} ({_missing(failure)}).") from failure


def _n_classes(name: str, path: Path) -> list[int]:
    """Possible classifier sizes: the file's own, and the one registered in timm (its converters may add it)."""
    known = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    classifier = known.classifier if known else read_json(path.parent / "config.json").get("pretrained_cfg", {}).get("classifier")
    own = 0
    if path.suffix != ".npz":
        try:
            state = timm.models.load_state_dict(str(path), weights_only=True)
        except Exception as error:
            raise ModelError(f"{path} is not a readable weight file ({first_line(error)}).") from error
        own = len(state.get(f"{classifier}.bias", state.get(f"{classifier}.weight", ())))
    return list(dict.fromkeys([own, int(known.num_classes) if known else own]))


def _missing(error: Exception) -> str:
    """The cause in load_state_dict's message, which is on its second line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(error).__name__
    return text if len(text) < 300 else f"{text[:300]} ..."


def _create(name: str, **options: Any) -> Any:
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "img_size" not in options or "img_size" not in str(error):
            raise
        # A convolutional network accepts any size and has no such argument.
        return timm.create_model(name, **{key: value for key, value in options.items() if key != "img_size"})


def _bare(name: str) -> str:
    return name.partition(".")[0]


def vit_parts(trunk: Any, height_px: int, width_px: int) -> tuple[Grid, nn.ModuleList | nn.Sequential] | None:
    """Token geometry and blocks of a timm vision transformer with this input size; None if `trunk` is not one."""
    embed = getattr(trunk, "patch_embed", None)
    n_prefix, blocks = getattr(trunk, "num_prefix_tokens", None), getattr(trunk, "blocks", None)
    if n_prefix is None or not isinstance(blocks, nn.ModuleList | nn.Sequential) or not hasattr(embed, "patch_size"):
        return None
    patch_height, patch_width = embed.patch_size  # type: ignore[union-attr]
    if patch_height != patch_width:
        return None
    return Grid(height_px // patch_height, width_px // patch_width, patch_height, int(n_prefix)), blocks


@torch.no_grad()
def check_grid(model: VisionModel, name: str) -> None:
    """Run the first block on zeros to check its output shape.

    Raises:
        ModelError: the output does not match the grid.
    """
    tokens = model.record(torch.zeros(1, 3, model.grid.height_px, model.grid.width_px), [model.site(0)])[model.site(0)]
    if tokens.shape[1:] != (model.grid.n_tokens, model.d_model):
        want = (model.grid.n_tokens, model.d_model)
        raise ModelError(f"{name}: its first block gives {tuple(tokens.shape[1:])}, expected {want}; name the modules with model.blocks.")
