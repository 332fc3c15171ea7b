"""Fashion-MNIST, from its idx files, optionally compressed."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from saev_core import Archive, Example, ImageDataset
from saev_core.errors import DatasetError
from saev_core.support.digest import digest
from saev_datasets.files import FolderConfig, need_folder

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder installed by the Debian package dataset-fashion-mnist."""
_PLACE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_BELOW = ("", "raw", "FashionMNIST/raw", "fashion-mnist")


class FashionMnistConfig(FolderConfig):
    root: Path | None = None
    """Folder with `train-images-idx3-ubyte.gz` and the three other files; default: that of Debian's dataset-fashion-mnist."""
    split: Literal["train", "test"] = "train"
    """60,000 training images, or 10,000 test images."""


class FashionMnist(ImageDataset):
    """28 x 28 images of clothes, 0 is black; grey is converted to RGB."""

    Config = FashionMnistConfig
    sources = (
        Archive(f"{_PLACE}/train-images-idx3-ubyte.gz", "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d", size=26_421_880),
        Archive(f"{_PLACE}/train-labels-idx1-ubyte.gz", "md5:25c81989df183df01b3e8a0aad5dffbe", size=29_515),
        Archive(f"{_PLACE}/t10k-images-idx3-ubyte.gz", "md5:bef4ecab320f06d8554ea6380940ec79", size=4_422_102),
        Archive(f"{_PLACE}/t10k-labels-idx1-ubyte.gz", "md5:bb300cfdad3c16e7a12a480ee83cd310", size=5_148),
    )
    classes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

    def __init__(self, cfg: FashionMnistConfig) -> None:
        if cfg.root is None and not _DEBIAN.is_dir():
            raise DatasetError("fashion-mnist needs a folder: --dataset fashion-mnist:FOLDER, or apt install dataset-fashion-mnist.")
        root = need_folder(cfg.root or _DEBIAN, "fashion-mnist")
        stem = "train" if cfg.split == "train" else "t10k"
        self._file = _find(root, f"{stem}-images-idx3-ubyte")
        self._images = read_idx(self._file)
        self._labels = read_idx(_find(root, f"{stem}-labels-idx1-ubyte"))
        if self._images.ndim != 3 or self._labels.shape != self._images.shape[:1] or (len(self._labels) and self._labels.max() > 9):
            raise DatasetError(f"{self._file} {self._images.shape} and its labels {self._labels.shape} do not match.")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Example(index, Image.fromarray(self._images[index]).convert("RGB"), int(self._labels[index]))

    def name(self, index: int) -> str:
        return f"{self._file} image {index}"

    def identity(self) -> str:
        return digest(hashlib.sha256(self._images.tobytes()).hexdigest(), hashlib.sha256(self._labels.tobytes()).hexdigest())


def read_idx(file: Path) -> np.ndarray:
    """An idx file of bytes as an array; `.gz` is decompressed.

    Raises:
        DatasetError: the file is unreadable, truncated, or not idx.
    """
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{file} cannot be read ({error}); download it again.") from error
    # Two zeros, the type (8: unsigned byte), the number of axes, then each axis's size, big-endian.
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise DatasetError(f"{file} is not an idx file of bytes; download it again.")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(shape, dtype=np.int64):
        raise DatasetError(f"{file} declares {' x '.join(map(str, shape))} bytes but has {values.size}; download it again.")
    return values.reshape(shape)


def _find(root: Path, name: str) -> Path:
    for folder in _BELOW:
        for suffix in ("", ".gz"):
            if (file := root / folder / f"{name}{suffix}").is_file():
                return file
    raise DatasetError(f"{root} has no {name}.gz; fashion-mnist needs the four idx files.")
