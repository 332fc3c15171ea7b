"""Every data set keeps to the contract that a stranger's plugin is held to."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from saev_core.testing import DatasetContract
from saev_datasets.ade20k import Ade20k, Ade20kConfig
from saev_datasets.cifar import Cifar10, Cifar10Config
from saev_datasets.fashion_mnist import FashionMnist, FashionMnistConfig
from saev_datasets.huggingface import HuggingFace, HuggingFaceConfig
from saev_datasets.image_folder import ImageFolder, ImageFolderConfig
from saev_datasets.imagenette import Imagenette, ImagenetteConfig
from saev_datasets.photos import Photos, PhotosConfig

RNG = np.random.default_rng(0)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


class OnDisk(DatasetContract):
    """A data set whose files are written before its tests; pytest does not collect it by this name."""

    config_class: ClassVar[Any]

    @staticmethod
    def write(root: Path) -> None:
        raise NotImplementedError

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def files(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        root = tmp_path_factory.mktemp("data")
        cls.write(root)
        where = "name" if "name" in cls.config_class.model_fields else "root"
        cls.config = cls.config_class(**{where: str(root)})


class TestPhotos(DatasetContract):
    dataset = Photos
    config = PhotosConfig(n=60)


class TestImageFolder(OnDisk):
    dataset = ImageFolder
    config_class = ImageFolderConfig

    @staticmethod
    def write(root: Path) -> None:
        for name in ("a/1.png", "a/2.jpg", "b/1.webp", "b/2.gif"):
            (root / name).parent.mkdir(exist_ok=True)
            noise(20, 30).save(root / name)
        (root / "b/broken.png").write_bytes(b"\x89PNG")


class TestAde20k(OnDisk):
    dataset = Ade20k
    config_class = Ade20kConfig

    @staticmethod
    def write(root: Path) -> None:
        for kind in ("images", "annotations"):
            (root / kind / "training").mkdir(parents=True)
        for i in range(3):
            noise(12, 16).save(root / f"images/training/ADE_train_{i}.jpg")
            Image.fromarray(RNG.integers(0, 151, (12, 16), dtype=np.uint8)).save(root / f"annotations/training/ADE_train_{i}.png")
        (root / "sceneCategories.txt").write_text("ADE_train_0 sea\nADE_train_1 lake\n")


class TestCifar10(OnDisk):
    dataset = Cifar10
    config_class = Cifar10Config

    @staticmethod
    def write(root: Path) -> None:
        (root / "batches.meta.txt").write_text("\n".join("abcdefghij"))
        for i in range(1, 6):
            records = RNG.integers(0, 10, (2, 3073), dtype=np.uint8)
            (root / f"data_batch_{i}.bin").write_bytes(records.tobytes())


class TestFashionMnist(OnDisk):
    dataset = FashionMnist
    config_class = FashionMnistConfig

    @staticmethod
    def write(root: Path) -> None:
        for name, shape in (("train-images-idx3-ubyte.gz", (9, 28, 28)), ("train-labels-idx1-ubyte.gz", (9,))):
            head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            (root / name).write_bytes(gzip.compress(head + RNG.integers(0, 10, shape, dtype=np.uint8).tobytes()))


def rows() -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "seg": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"image": [noise(9, 9) for _ in range(5)], "seg": [Image.new("L", (9, 9), 3)] * 5, "label": [0, 1, 1, 0, 1]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.slow
class TestHuggingFace(OnDisk):
    config_class = HuggingFaceConfig

    @staticmethod
    def write(root: Path) -> None:
        rows().save_to_disk(root)

    @staticmethod
    def dataset(cfg: HuggingFaceConfig) -> HuggingFace:
        return HuggingFace(cfg.model_copy(update={"mask": "seg", "n_mask_classes": 4}))


@pytest.mark.slow
class TestHuggingFaceStream(OnDisk):
    config_class = HuggingFaceConfig

    @staticmethod
    def write(root: Path) -> None:
        rows().to_parquet(root / "train.parquet")

    @staticmethod
    def dataset(cfg: HuggingFaceConfig) -> HuggingFace:
        return HuggingFace(cfg.model_copy(update={"streaming": True, "n": 5}))


class TestImagenette(OnDisk):
    dataset = Imagenette
    config_class = ImagenetteConfig

    @staticmethod
    def write(root: Path) -> None:
        for name in ("train/n01440764/a.JPEG", "train/n03888257/b.JPEG", "val/n03888257/c.JPEG"):
            (root / "imagenette2-160" / name).parent.mkdir(parents=True, exist_ok=True)
            noise(20, 30).save(root / "imagenette2-160" / name)
