"""ImageNet-1k, from the hub, its local cache, or the folders of the original archives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from saev_core import BadImageError, Example, ImageDataset
from saev_core.errors import DatasetError
from saev_datasets.files import FileDataset, first_folder, list_images, need_folder, read_lines, read_table
from saev_datasets.huggingface import HuggingFace, HuggingFaceConfig

_WNID = re.compile(r"n\d{8}")
_SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_BELOW = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC", "ILSVRC2012")


class ImageNetConfig(HuggingFaceConfig):
    name: str = "ILSVRC/imagenet-1k"
    """A data set's name on the hub, or a local folder: parquet, `save_to_disk`, or the original's `train/n01440764/*.JPEG`."""
    split: str = "train"
    """`train`, `validation` or `test`."""


class ImageNet(ImageDataset):
    """ImageNet-1k. For every source, class numbers follow the sorted WordNet ids.

    Supported folder layouts: the unpacked archives, torchvision's (`train/`, `val/` with class folders), and
    the challenge's download (`ILSVRC/Data/CLS-LOC/`, labels of the flat validation folder in
    `LOC_val_solution.csv`, names in `LOC_synset_mapping.txt`).
    """

    Config = ImageNetConfig

    def __init__(self, cfg: ImageNetConfig) -> None:
        self._data: ImageDataset = _folders(cfg) or HuggingFace(cfg)
        self.classes: Sequence[str] | None = self._data.classes
        self.sequential: bool = self._data.sequential

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        return self._data[index]

    def examples(self, start: int, stop: int) -> Iterator[Example | BadImageError]:
        return self._data.examples(start, stop)

    def name(self, index: int) -> str:
        return self._data.name(index)

    def identity(self) -> str:
        return self._data.identity()


def _folders(cfg: ImageNetConfig) -> FileDataset | None:
    """The data set of a folder in the original layout; None if the name is not such a folder."""
    root = Path(cfg.name).expanduser()
    if not root.exists():
        return None
    need_folder(root, "imagenet")
    if cfg.split not in _SPLITS:
        raise DatasetError(f"imagenet has no split {cfg.split!r}; it has {', '.join(_SPLITS)}.")
    if any(_WNID.fullmatch(entry.name) for entry in root.iterdir()):
        return _split(root, root, cfg)
    for below in _BELOW:
        for name in _SPLITS[cfg.split]:
            folder = root / below / name
            if folder.is_dir() and (below or any(entry.suffix == ".JPEG" or entry.is_dir() for entry in folder.iterdir())):
                return _split(root, folder, cfg)
    return None


def _split(root: Path, folder: Path, cfg: ImageNetConfig) -> FileDataset:
    files = list_images(folder)
    ids, names = _classes(root, folder, files)
    number = {wnid: number for number, wnid in enumerate(ids)}
    by_file = _solution(root, files) if cfg.split == "validation" else {}
    labels = [number.get(first_folder(file) or by_file.get(file.rpartition(".")[0], ""), -1) for file in files]
    n = cfg.n or len(files)
    known = any(label >= 0 for label in labels)
    return FileDataset(folder, files[:n], labels[:n] if known else None, names if known else None)


def _classes(root: Path, folder: Path, files: list[str]) -> tuple[list[str], list[str]]:
    """Sorted WordNet ids and their names."""
    if mapping := _beside(root, "LOC_synset_mapping.txt"):
        rows = sorted(read_table(mapping, 2))
        return [row[0] for row in rows], [row[1].split(",")[0] for row in rows]
    ids = {first_folder(file) for file in files} - {""}
    if not ids and (folder.parent / "train").is_dir():
        ids = {entry.name for entry in (folder.parent / "train").iterdir() if _WNID.fullmatch(entry.name)}
    return sorted(ids), sorted(ids)


def _solution(root: Path, files: list[str]) -> dict[str, str]:
    """WordNet id by file stem, for validation images in a flat folder."""
    table = _beside(root, "LOC_val_solution.csv")
    if table is None or all(first_folder(file) for file in files):
        return {}
    # ImageId,PredictionString: ILSVRC2012_val_00048981,n03995372 85 1 499 272
    pairs = (line.split(",", 1) for line in read_lines(table)[1:])
    return {stem: rest.split()[0] for stem, rest in pairs}


def _beside(root: Path, name: str) -> Path | None:
    return next((folder / name for folder in (root, root.parent) if (folder / name).is_file()), None)
