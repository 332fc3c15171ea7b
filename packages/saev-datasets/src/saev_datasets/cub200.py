"""Caltech-UCSD Birds 200 (2011), from its image folder and lists."""

from __future__ import annotations

from typing import ClassVar, Literal

from saev_core import Archive
from saev_core.errors import DatasetError
from saev_datasets.files import FileDataset, FolderConfig, read_table, unpacked


class Cub200Config(FolderConfig):
    split: Literal["train", "test", "all"] = "train"
    """5,994 training images, 5,794 test images, or both."""


class Cub200(FileDataset):
    """`CUB_200_2011`: birds of 200 species, in the order of `images.txt` within the split."""

    Config = Cub200Config
    sources = (
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "md5:97eceeb196236b17998738112f37df78",
            size=1_150_585_339,
        ),
    )
    whole: ClassVar = {"split": "all"}

    def __init__(self, cfg: Cub200Config) -> None:
        root = unpacked(cfg.root, "cub200", "images.txt", "CUB_200_2011", archive="CUB_200_2011.tgz")
        paths = {key: path.strip() for key, path in read_table(root / "images.txt", 2)}
        species, training = dict(read_table(root / "image_class_labels.txt", 2)), dict(read_table(root / "train_test_split.txt", 2))
        names = {key: name.strip() for key, name in read_table(root / "classes.txt", 2)}
        number = {key: number for number, key in enumerate(names)}
        wanted = {"train": ("1",), "test": ("0",), "all": ("0", "1")}[cfg.split]
        keys = [key for key in paths if training.get(key, "").strip() in wanted]
        if lost := next((key for key in keys if species.get(key, "").strip() not in number), None):
            raise DatasetError(f"{root / 'image_class_labels.txt'}: image {lost} has no class of classes.txt; unpack the archive again.")
        # 001.Black_footed_Albatross
        classes = [name.split(".", 1)[-1].replace("_", " ") for name in names.values()]
        super().__init__(root / "images", [paths[key] for key in keys], [number[species[key].strip()] for key in keys], classes)
