"""ADE20K in the layout of the scene-parsing challenge: scene labels, and masks of 150 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from saev_core import Archive, BadImageError, Example, open_rgb
from saev_core.data.decode import open_mask
from saev_datasets.files import FileDataset, FolderConfig, list_images, read_lines, read_table, unpacked


class Ade20kConfig(FolderConfig):
    split: Literal["training", "validation"] = "training"
    """20,210 training images, or 2,000 validation images."""


class Ade20k(FileDataset):
    """`ADEChallengeData2016`: image, scene label, mask.

    Mask values: 0 is everything outside the 150 classes, 1 to 150 are the classes of `objectInfo150.txt`. An image's scene
    is looked up by the image's own name, so a validation image never gets a training image's scene; scene numbers
    are shared between both splits.
    """

    Config = Ade20kConfig
    # The authors publish no checksum; this one is used by other libraries that download the same file.
    sources = (
        Archive(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            size=967_382_037,
        ),
    )

    def __init__(self, cfg: Ade20kConfig) -> None:
        root = unpacked(cfg.root, "ade20k", f"images/{cfg.split}", "ADEChallengeData2016", archive="ADEChallengeData2016.zip")
        folder = root / "images" / cfg.split
        self._masks = root / "annotations" / cfg.split
        files = list_images(folder)
        scenes: dict[str, str] = {}
        if (root / "sceneCategories.txt").is_file():
            scenes = {name: scene.strip() for name, scene in read_table(root / "sceneCategories.txt", 2)}
        classes = sorted(set(scenes.values()))
        number = {scene: number for number, scene in enumerate(classes)}
        labels = [number[scenes[_stem(file)]] if _stem(file) in scenes else -1 for file in files]
        super().__init__(folder, files, labels if classes else None, classes)
        if self._masks.is_dir():
            self.mask_classes = _mask_classes(root / "objectInfo150.txt")

    def __getitem__(self, index: int) -> Example:
        if index < 0:
            raise IndexError(index)
        file = self.files[index]
        image = open_rgb(self.root / file)
        if self.mask_classes is None:
            return Example(index, image, self.label(index))
        path = (self._masks / file).with_suffix(".png")
        mask = open_mask(path)
        if mask.shape != (image.height, image.width):
            raise BadImageError(str(path), f"a mask of {mask.shape[1]} x {mask.shape[0]} px for an image of {image.width} x {image.height}")
        return Example(index, image, self.label(index), mask)


def _stem(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0]


def _mask_classes(file: Path) -> list[str]:
    if not file.is_file():
        return ["other", *(f"class {number}" for number in range(1, 151))]
    # Columns Idx, Ratio, Train, Val, Name, separated by tabs; the first line is the header.
    return ["other", *(line.split("\t")[-1].strip() for line in read_lines(file)[1:])]
