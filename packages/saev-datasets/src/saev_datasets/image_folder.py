"""A folder of images: class folders, or flat."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from saev_core.config import DatasetConfig
from saev_core.dataset import ImageDataset, digest
from saev_core.errors import DatasetError
from saev_core.images import SUFFIXES, open_rgb
from saev_core.types import Example


class ImageFolderConfig(DatasetConfig):
    root: Path = Path()
    """A folder with one sub-folder per class, or with the images themselves."""


class ImageFolder(ImageDataset):
    """Every image below a folder; its class is the first folder on its way, if there is any.

    What counts is the file name's ending, in whatever case; hidden files and folders are skipped, links followed.
    A folder without an image is not a class. Images are numbered by class, then folder, then name, each compared by
    code point, as torchvision's `ImageFolder` does: never in the order of the file system.
    """

    Config = ImageFolderConfig

    def __init__(self, cfg: ImageFolderConfig) -> None:
        if not cfg.root.parts:
            raise DatasetError("image-folder needs a folder: --dataset image-folder:FOLDER.")
        self.root = cfg.root
        self.files = list_images(cfg.root)
        classes = sorted({file.parts[0] for file in self.files if len(file.parts) > 1})
        self.classes = classes or None
        self._number = {name: number for number, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        file = self.files[index]
        label = self._number[file.parts[0]] if len(file.parts) > 1 else None
        return Example(index, open_rgb(self.root / file), label)

    def name(self, index: int) -> str:
        return str(self.root / self.files[index])

    def identity(self) -> str:
        return self._identity

    @cached_property
    def _identity(self) -> str:
        # Sizes too: two folders of 0001.jpg to 1000.jpg are not one data set.
        return digest([[file.as_posix(), _size(self.root / file)] for file in self.files])


def list_images(root: Path) -> list[Path]:
    """Images below `root`, relative to it, in the order that `ImageFolder` states.

    Raises:
        DatasetError: it is missing, is not a folder, cannot be read, or holds no image.
    """
    if not root.exists():
        raise DatasetError(f"{root} does not exist; name a folder of images.")
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; name the folder that holds the images.")
    files = list(_walk(root, Path(), frozenset()))
    if not files:
        raise DatasetError(f"{root} holds no image (looked for {', '.join(sorted(SUFFIXES))}).")
    return sorted(files, key=lambda file: (file.parts[0] if len(file.parts) > 1 else "", file.parent.as_posix(), file.name))


def _walk(root: Path, at: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    try:
        stat = (root / at).stat()
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            return  # a link to a folder above
        with os.scandir(root / at) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DatasetError(f"{root / at} cannot be read: {error.strerror}; check its permissions.") from error
    for name, is_folder in listed:
        if is_folder:
            yield from _walk(root, at / name, above | {here})
        elif os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122 - a Path for each of a million files is slow
            yield at / name


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1  # a broken link: recorded as missing
