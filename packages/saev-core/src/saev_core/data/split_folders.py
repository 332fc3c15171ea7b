"""`write_split`: write a data set of image files as two trees of class folders, train and test, split at random."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
from jaxtyping import Int

from saev_core.data.dataset import ImageDataset
from saev_core.errors import DatasetError
from saev_core.support.files import new_folder


def divide(labels: Int[np.ndarray, " n"], share: float, seed: int) -> tuple[Int[np.ndarray, " n_train"], Int[np.ndarray, " n_test"]]:
    """Image numbers for training and testing: a random `share` of every class, and the rest; at least one each.

    Split by class, because both trees need the same classes: a class missing from one would shift the numbers after it.

    Raises:
        DatasetError: a class has fewer than two images.
    """
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(labels):
        images = rng.permutation(np.flatnonzero(labels == label))
        if len(images) < 2:
            raise DatasetError(f"class {label} has only one image; a split needs at least two.")
        n = min(max(round(share * len(images)), 1), len(images) - 1)
        train.append(images[:n])
        test.append(images[n:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def write_split(dataset: ImageDataset, folder: str | Path, share: float, seed: int) -> dict[str, int]:
    """Write `folder/train` and `folder/test`, each a tree that `image-folder` reads; hard links where the disk supports them, else copies.

    Returns:
        Number of images in each.

    Raises:
        DatasetError: the images are not files, or have no classes, or a class has only one; or the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    if dataset.classes is None:
        raise DatasetError("the data set has no classes, so it cannot be split into class folders.")
    files = [Path(dataset.name(index)) for index in range(len(dataset))]
    if missing := next((file for file in files if not file.is_file()), None):
        raise DatasetError(f"{missing} is not an image file; only data sets of image files can be split.")
    labels = np.array([-1 if (label := dataset.label(index)) is None else label for index in range(len(dataset))])
    if (labels < 0).any():
        raise DatasetError(f"{files[int(np.flatnonzero(labels < 0)[0])]} has no class.")
    names = [folder_name(name) for name in dataset.classes]
    if len(set(names)) < len(names):
        names = [f"{number:03d}-{name}" for number, name in enumerate(names)]
    parts = dict(zip(("train", "test"), divide(labels, share, seed), strict=True))
    try:
        with new_folder(folder) as new:
            for part, images in parts.items():
                for index in images:
                    _place(files[index], new / part / names[labels[index]], index)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written ({error.strerror or error}).") from None
    return {part: len(images) for part, images in parts.items()}


def folder_name(name: str) -> str:
    """A class's name as a valid folder name."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]', "-", name).strip(" .") or "class"


def _place(file: Path, folder: Path, index: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file.name
    if target.exists():  # two folders of the data set have files of the same name
        target = folder / f"{file.stem}-{index}{file.suffix}"
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copyfile(file, target)


__all__ = ["divide", "folder_name", "write_split"]
