"""One plugin of each kind. Of the saev packages, they import only saev_core."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
from PIL import Image
from pydantic import Field
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor

from saev_core import (
    SAE,
    Config,
    DatasetConfig,
    Example,
    Grid,
    ImageDataset,
    ModelConfig,
    PluginConfig,
    Progress,
    Run,
    SAEConfig,
    Task,
    TaskContext,
    VisionModel,
    hookimpl,
    verb,
)

# --8<-- [start:model]


class DinoV3Config(ModelConfig):
    checkpoint: str = "vit_small_patch16_dinov3.lvd1689m"
    """A timm model name."""


class DinoV3(VisionModel):
    Config = DinoV3Config

    vit: Any

    def __init__(self, cfg: DinoV3Config) -> None:
        super().__init__()
        self.vit = timm.create_model(cfg.checkpoint, pretrained=cfg.pretrained, num_classes=0)
        self.transform = create_transform(**resolve_model_data_config(self.vit))
        embed = self.vit.patch_embed
        rows, cols = embed.grid_size
        self.grid = Grid(rows, cols, patch_px=embed.patch_size[0], n_prefix=self.vit.num_prefix_tokens)
        self.d_model, self.blocks = self.vit.embed_dim, self.vit.blocks

    def forward(self, images: Tensor) -> Any:
        return self.vit.forward_features(images)


# --8<-- [end:model]
# --8<-- [start:dataset]


class StripesConfig(DatasetConfig):
    n: int = Field(default=64, ge=1)
    """Number of images."""
    width_px: int = Field(default=8, ge=2)
    """Width of a stripe and the following gap, in pixels."""


class Stripes(ImageDataset):
    Config = StripesConfig
    classes = ("horizontal", "vertical")

    def __init__(self, cfg: StripesConfig) -> None:
        self.cfg = cfg

    def __len__(self) -> int:
        return self.cfg.n

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        rng = np.random.default_rng(index)
        line = (np.arange(96) + rng.integers(self.cfg.width_px)) % self.cfg.width_px < self.cfg.width_px // 2
        pixels = np.full((96, 96, 3), 40, np.uint8)
        label = index % 2
        pixels[:, line] = rng.integers(100, 256, 3)
        return Example(index, Image.fromarray(pixels if label else pixels.swapaxes(0, 1).copy()), label=label)


# --8<-- [end:dataset]
# --8<-- [start:sae]


class LassoConfig(SAEConfig):
    sparsity: float = Field(default=1.0, ge=0)
    """Coefficient of the penalty on the sum of a vector's feature activations."""


class Lasso(SAE):
    Config = LassoConfig
    cfg: LassoConfig

    def encode(self, x: Tensor) -> Tensor:
        return self.pre(x).relu()

    def penalty(self, z: Any, progress: Progress) -> Any:
        return self.cfg.sparsity * progress.warmup(progress.n_steps // 10) * z.sum(-1).mean()


# --8<-- [end:sae]
# --8<-- [start:tracker]


class BestConfig(PluginConfig):
    metric: str = "nmse"
    """Training metric whose minimum is recorded."""


class Best:
    Config = BestConfig

    def __init__(self, cfg: BestConfig) -> None:
        self.cfg, self.best = cfg, dict[str, float]()

    @hookimpl
    def stepped(self, name: str, metrics: Mapping[str, float]) -> None:
        if self.cfg.metric in metrics:
            self.best[name] = min(metrics[self.cfg.metric], self.best.get(name, float("inf")))

    @hookimpl
    def run_ended(self, run: Run) -> None:
        Path(run.path, "best.json").write_text(json.dumps(self.best))


# --8<-- [end:tracker]
# --8<-- [start:task]


class TellConfig(Config):
    n: int = Field(default=3, ge=1)
    """Features per class."""
    least: float = Field(default=0.1, ge=0, le=1)
    """Minimum share of a class's images on which a feature must fire."""
    sae: str = ""
    """Name of the SAE; empty: the best."""


class Classes(Task):
    """Features associated with each class."""

    @verb
    def tell(self, cx: TaskContext, cfg: TellConfig) -> Mapping[str, Any]:
        """List, for every class, the features that fire more on its images than on others, with lift, and save them."""
        index, names = cx.index(cfg.sae), cx.dataset().classes or []
        found = {}
        for label, name in enumerate(names):
            going = [(feature, share) for feature, share in index.with_label(label) if share.of_label >= cfg.least]
            found[name] = [{"feature": f, "lift": share.lift, "of_class": share.of_label} for f, share in going[: cfg.n]]
        cx.table(
            [(name, row["feature"], f"{row['lift']:.2f}") for name, rows in found.items() for row in rows], ["class", "feature", "lift"]
        )
        cx.run.write_result(cx.name, {"classes": found})
        return {"classes": found}


# --8<-- [end:task]
