"""`saev plugins new`: scaffold a plugin that installs and runs as it is."""

from __future__ import annotations

import re
from pathlib import Path

from saev_core.errors import UsageError
from saev_core.plugins.registry import GROUPS

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "saev-{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["saev-core>=0.1,<0.2"]

[project.entry-points."{group}"]
{name} = "{module}:{klass}"

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""

_MODEL = '''\
"""The saev model plugin `{name}`."""

import torch
from saev_core import Grid, ModelConfig, VisionModel
from torch import nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import pil_to_tensor


class {klass}Config(ModelConfig):
    size_px: int = 64
    """Side of the model's input images in pixels, a multiple of 16."""


class {klass}(VisionModel):
    Config = {klass}Config

    def __init__(self, cfg: {klass}Config) -> None:
        super().__init__()
        # Replace everything from here on with your own model: its patches, blocks and transform.
        side = cfg.size_px // 16
        self.grid = Grid(side, side, patch_px=16, n_prefix=0)
        self.d_model = 32
        self.embed = nn.Conv2d(3, self.d_model, 16, stride=16)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(self.d_model, 4, 64, batch_first=True, norm_first=True) for _ in range(2))
        self.size_px = cfg.size_px

    def transform(self, image):
        pixels = pil_to_tensor(image).float() / 255
        return interpolate(pixels[None], (self.size_px, self.size_px), mode="bilinear", antialias=True)[0]

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)  # [b, n_patches, d_model]
        for block in self.blocks:
            x = block(x)
        return x
'''

_DATASET = '''\
"""The saev data set plugin `{name}`."""

import numpy as np
from PIL import Image
from saev_core import DatasetConfig, Example, ImageDataset


class {klass}Config(DatasetConfig):
    n: int = 100
    """Number of images."""


class {klass}(ImageDataset):
    Config = {klass}Config
    classes = ["horizontal", "vertical"]

    def __init__(self, cfg: {klass}Config) -> None:
        self.cfg = cfg

    def __len__(self) -> int:
        return self.cfg.n

    def __getitem__(self, index: int) -> Example:
        # `index` is the image's permanent number. Raise saev_core.errors.BadImageError for one that cannot be read.
        if not 0 <= index < len(self):
            raise IndexError(f"image {{index}} of {{len(self)}}")
        pixels = np.zeros((64, 64, 3), np.uint8)
        if index % 2:
            pixels[:, index % 8 :: 8] = 255
        else:
            pixels[index % 8 :: 8] = 255
        return Example(index, Image.fromarray(pixels), label=index % 2)
'''

_SAE = '''\
"""The saev SAE plugin `{name}`."""

from saev_core import SAE, SAEConfig


class {klass}Config(SAEConfig):
    sparsity: float = 1.0
    """Weight of the L1 penalty."""


class {klass}(SAE):
    Config = {klass}Config

    def encode(self, x):
        return self.pre(x).relu()

    def penalty(self, z, progress):
        return self.cfg.sparsity * progress.warmup(100) * z.sum(-1).mean()
'''

_TASK = '''\
"""The saev task plugin `{name}`."""

from pydantic import Field
from saev_core import Task, TaskContext, verb
from saev_core import Config


class {klass}Config(Config):
    n: int = Field(default=5, ge=1)
    """Features in the table."""
    sae: str = ""
    """SAE to use; empty: the best."""


class {klass}(Task):
    """Show the strongest features of a run."""

    @verb
    def strongest(self, cx: TaskContext, cfg: {klass}Config):
        """The features with the largest activations, and the image of each one's maximum."""
        index = cx.index(cfg.sae)
        chosen = index.max.argsort()[::-1][: cfg.n].tolist()
        rows = [{{"feature": f, "max": index.max[f], "image": index.top_index[f, 0]}} for f in chosen]
        cx.table([row.values() for row in rows], ["feature", "max", "image"])
        return {{"features": rows}}
'''

_TEST = """\
from saev_core.testing import {contract}
from {module} import {klass}


class Test{klass}({contract}):
    {kind} = {klass}
"""

_TEMPLATES = {
    "model": (_MODEL, "ModelContract"),
    "dataset": (_DATASET, "DatasetContract"),
    "sae": (_SAE, "SAEContract"),
    "task": (_TASK, "TaskContract"),
}


def new(name: str, kind: str, folder: str) -> Path:
    """Create the folder `saev-<name>` and print the next steps.

    Raises:
        UsageError: the name or kind is invalid, or the folder exists.
    """
    if kind not in _TEMPLATES:
        raise UsageError(f"--kind {kind} is unknown; choose one of {', '.join(_TEMPLATES)}.")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise UsageError(f"{name!r} is not a valid plugin name; use lower-case letters, digits and hyphens.")
    path = Path(folder) / f"saev-{name}"
    module = f"saev_{name.replace('-', '_')}"
    source, contract = _TEMPLATES[kind]
    words = {
        "name": name,
        "module": module,
        "klass": name.title().replace("-", ""),
        "kind": kind,
        "group": GROUPS[kind],
        "contract": contract,
    }
    try:
        path.mkdir(parents=True)
        for file, text in {"pyproject.toml": _PROJECT, f"{module}.py": source, f"test_{module}.py": _TEST}.items():
            (path / file).write_text(text.format(**words), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; choose another name, or another folder with --in.") from None
    use = f"saev task {name}" if kind == "task" else f"saev run --{kind} {name}"
    print(f"created {path}. Next: pip install -e {path}; {use}")
    return path
