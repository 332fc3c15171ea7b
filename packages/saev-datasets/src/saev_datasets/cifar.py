"""CIFAR-10 and CIFAR-100, from the binary archives; the Python archives are pickles, which can run arbitrary code."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from saev_core import Archive, Example, ImageDataset
from saev_core.errors import DatasetError
from saev_core.support.digest import digest
from saev_datasets.files import FolderConfig, need_folder, read_lines

_PLACE = "https://www.cs.toronto.edu/~kriz"
_PIXELS = 3 * 32 * 32  # one plane each for red, green and blue


class Cifar10Config(FolderConfig):
    split: Literal["train", "test"] = "train"
    """50,000 training images, or 10,000 test images."""


class Cifar100Config(Cifar10Config):
    labels: Literal["fine", "coarse"] = "fine"
    """100 classes, or the 20 groups they belong to."""


class _Cifar(ImageDataset):
    def __init__(self, files: list[Path], before: int, column: int, names: Path) -> None:
        self._files = files
        # Memory-mapped instead of read, so that threads share the pages.
        self._parts = [_records(file, before) for file in files]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self._before, self._column = before, column
        self.classes = [line.strip() for line in read_lines(names)]
        for file, part in zip(files, self._parts, strict=True):
            if part[:, column].max() >= len(self.classes):
                raise DatasetError(f"{file} has the label {part[:, column].max()}, but {names.name} has only {len(self.classes)} names.")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, index - int(self._ends[part]) + len(self._parts[part])

    def __getitem__(self, index: int) -> Example:
        part, row = self._place(index)
        record = self._parts[part][row]
        pixels = record[self._before :].reshape(3, 32, 32).transpose(1, 2, 0)  # [32, 32, rgb]
        return Example(index, Image.fromarray(np.ascontiguousarray(pixels)), int(record[self._column]))

    def name(self, index: int) -> str:
        part, row = self._place(index)
        return f"{self._files[part]} image {row}"

    def identity(self) -> str:
        return self._identity

    @cached_property
    def _identity(self) -> str:
        return digest([_sha256(file) for file in self._files], self._column, list(self.classes or ()))


class Cifar10(_Cifar):
    """CIFAR-10: `data_batch_1.bin` to `data_batch_5.bin` in order, or `test_batch.bin`."""

    Config = Cifar10Config
    sources = (Archive(f"{_PLACE}/cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530", size=170_052_171),)

    def __init__(self, cfg: Cifar10Config) -> None:
        root = _folder(cfg.root, "cifar10", "batches.meta.txt", "cifar-10-batches")
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] if cfg.split == "train" else ["test_batch.bin"]
        super().__init__([root / name for name in names], 1, 0, root / "batches.meta.txt")


class Cifar100(_Cifar):
    """CIFAR-100: `train.bin` or `test.bin`."""

    Config = Cifar100Config
    sources = (Archive(f"{_PLACE}/cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8", size=168_513_733),)

    def __init__(self, cfg: Cifar100Config) -> None:
        root = _folder(cfg.root, "cifar100", "fine_label_names.txt", "cifar-100")
        # A record: coarse label, fine label, pixels.
        super().__init__([root / f"{cfg.split}.bin"], 2, int(cfg.labels == "fine"), root / f"{cfg.labels}_label_names.txt")


def _folder(root: Path | None, plugin: str, marker: str, stem: str) -> Path:
    root = need_folder(root, plugin)
    for folder in (root, root / f"{stem}-bin", root / f"{stem}-binary"):
        if (folder / marker).is_file():
            return folder
    number = plugin.removeprefix("cifar")
    wanted = f"the folder that cifar-{number}-binary.tar.gz unpacks to, or read it as huggingface:uoft-cs/{plugin}"
    if (root / f"{stem}-py").is_dir() or any((root / name).is_file() for name in ("batches.meta", "meta")):
        raise DatasetError(f"{root} has the pickled version of {plugin}, which can run arbitrary code when read; use {wanted}.")
    raise DatasetError(f"{root} has no {marker}; {plugin} needs {wanted}.")


def _records(file: Path, before: int) -> np.ndarray:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}; unpack the archive again.") from error
    if size == 0 or size % (before + _PIXELS):
        raise DatasetError(f"{file} is damaged: {size} bytes, not a multiple of {before + _PIXELS}; unpack the archive again.")
    return np.memmap(file, np.uint8, mode="r").reshape(-1, before + _PIXELS)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
