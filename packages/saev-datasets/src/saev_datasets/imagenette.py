"""Imagenette: ten easy classes of ImageNet, from its folder."""

from __future__ import annotations

from typing import Literal

from saev_core import Archive
from saev_core.errors import DatasetError
from saev_datasets.files import FileDataset, FolderConfig, first_folder, list_images, unpacked

_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class ImagenetteConfig(FolderConfig):
    split: Literal["train", "validation"] = "train"
    """9,469 training images, or 3,925 validation images."""


class Imagenette(FileDataset):
    """`imagenette2-320` (or `imagenette2`, `imagenette2-160`): `train` and `val`, each with ten folders named by WordNet id."""

    Config = ImagenetteConfig
    sources = (
        Archive(
            "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
            "md5:3df6f0d01a2c9592104656642f5e78a3",
            size=341_663_724,
        ),
    )

    def __init__(self, cfg: ImagenetteConfig) -> None:
        part = "train" if cfg.split == "train" else "val"
        below = ("imagenette2-320", "imagenette2", "imagenette2-160")
        root = unpacked(cfg.root, "imagenette", part, *below, archive="imagenette2-320.tgz") / part
        files, number = list_images(root), {wnid: number for number, wnid in enumerate(_NAMES)}
        if strange := next((file for file in files if first_folder(file) not in number), None):
            raise DatasetError(f"{root / strange} is in none of Imagenette's ten folders; use image-folder:{root} to read any tree.")
        super().__init__(root, files, [number[first_folder(file)] for file in files], list(_NAMES.values()))
