"""Caltech 101, from its folder of category folders."""

from __future__ import annotations

from saev_core import Archive
from saev_core.errors import DatasetError
from saev_datasets.files import FileDataset, FolderConfig, first_folder, list_images, unpacked


class Caltech101Config(FolderConfig):
    background: bool = False
    """Include the clutter of `BACKGROUND_Google` as a separate class."""


class Caltech101(FileDataset):
    """`101_ObjectCategories`: 8,677 images of 101 categories, numbered in code point order (capitals first)."""

    Config = Caltech101Config
    sources = (
        Archive(
            "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            "md5:3138e1922a9193bfa496528edbbc45d0",
            size=137_414_764,
            inner=("caltech-101/101_ObjectCategories.tar.gz",),
        ),
    )

    def __init__(self, cfg: Caltech101Config) -> None:
        below = (".", "caltech-101", "caltech101")
        root = unpacked(cfg.root, "caltech101", "101_ObjectCategories", *below, archive="caltech-101.zip") / "101_ObjectCategories"
        files = [file for file in list_images(root) if first_folder(file) not in (("",) if cfg.background else ("", "BACKGROUND_Google"))]
        if not files:
            raise DatasetError(f"{root} has no category folder with images; unpack the archive again.")
        classes = sorted({first_folder(file) for file in files})
        number = {name: number for number, name in enumerate(classes)}
        super().__init__(root, files, [number[first_folder(file)] for file in files], classes)
