"""Shared code of data sets whose images are files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from pydantic import Field

from saev_core import DatasetConfig, Example, ImageDataset, open_rgb
from saev_core.data.decode import SUFFIXES
from saev_core.errors import DatasetError
from saev_core.support.digest import digest


class FolderConfig(DatasetConfig):
    main = "root"

    root: Path | None = Field(default=None)
    """Folder with the unpacked archive of the data set."""


class FileDataset(ImageDataset):
    """Images given by file names, optionally with labels.

    Args:
        root: folder that the names are relative to.
        files: one per image, in index order; parts joined by `/`.
        labels: one per image; -1: unknown.
        classes: names of the labels.
    """

    def __init__(self, root: Path, files: Sequence[str], labels: Sequence[int] | None = None, classes: Sequence[str] | None = None) -> None:
        self.root, self.files, self.labels = root, files, labels
        self.classes = list(classes) if classes else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        if index < 0:
            raise IndexError(index)
        return Example(index, open_rgb(self.root / self.files[index]), self.label(index))

    def label(self, index: int) -> int | None:
        return self.labels[index] if self.labels is not None and self.labels[index] >= 0 else None

    def name(self, index: int) -> str:
        return str(self.root / self.files[index])

    def identity(self) -> str:
        return self._identity

    @cached_property
    def _identity(self) -> str:
        # Sizes too, to distinguish two folders that both contain 0001.jpg to 1000.jpg.
        files = [[file, _size(self.root / file)] for file in self.files]
        return digest(files, list(self.labels or ()), list(self.classes or ()))


def need_folder(root: Path | None, plugin: str) -> Path:
    """`root`, checked to be a readable, non-empty folder.

    Raises:
        DatasetError: it is not; the message says what to do.
    """
    if root is None:
        raise DatasetError(f"{plugin} needs a folder: --dataset {plugin}:FOLDER.")
    root = root.expanduser()
    try:
        with os.scandir(root) as entries:
            empty = next(entries, None) is None
    except FileNotFoundError as error:
        raise DatasetError(f"{root} does not exist; give the folder with the images.") from error
    except NotADirectoryError as error:
        raise DatasetError(f"{root} is not a folder; give the folder with the images.") from error
    except OSError as error:
        raise DatasetError(f"{root} cannot be read: {error.strerror}; check its permissions.") from error
    if empty:
        raise DatasetError(f"{root} is empty; give the folder with the images.")
    return root


def unpacked(root: Path | None, plugin: str, marker: str, *below: str, archive: str) -> Path:
    """The folder that contains `marker`: `root` itself, or the first of the folders `below` it that does.

    Raises:
        DatasetError: none does.
    """
    root = need_folder(root, plugin)
    for folder in ("", *below):
        if (root / folder / marker).exists():
            return root / folder
    raise DatasetError(f"{root} has no {marker}; {plugin} needs the folder that {archive} unpacks to.")


def read_lines(file: Path) -> list[str]:
    """The non-blank lines of a text file of a data set.

    Raises:
        DatasetError: the file is missing or not text.
    """
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}; unpack the archive again.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not text; unpack the archive again.") from error


def read_table(file: Path, columns: int) -> list[list[str]]:
    """The lines of a text file, each split at white space into `columns` fields; the last contains the rest.

    Raises:
        DatasetError: the file is missing, or a line has fewer fields.
    """
    rows = [line.split(maxsplit=columns - 1) for line in read_lines(file)]
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise DatasetError(f"{file} line {number} has {len(row)} fields, not {columns}; unpack the archive again.")
    return rows


def list_images(root: Path) -> list[str]:
    """Images below `root`, relative to it, sorted by first folder, then folder, then name, each compared by code point.

    Images are recognised by suffix, ignoring case; hidden files and folders are skipped, links followed.

    Raises:
        DatasetError: a folder cannot be read, or there is no image.
    """
    # str instead of Path, because there may be a million.
    files = list(_walk(root, "", frozenset()))
    if not files:
        raise DatasetError(f"{root} has no images (looked for {', '.join(sorted(SUFFIXES))}).")
    return sorted(files, key=_rank)


def first_folder(file: str) -> str:
    """The first folder in a file's path; "" if there is none."""
    head, slash, _ = file.partition("/")
    return head if slash else ""


def _rank(file: str) -> tuple[str, str, str]:
    folder, _, name = file.rpartition("/")
    return first_folder(file), folder, name


def _walk(root: Path, at: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    try:
        stat = (root / at).stat()
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            return  # a link to a parent folder
        with os.scandir(root / at) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DatasetError(f"{root / at} cannot be read: {error.strerror}; check its permissions.") from error
    for name, is_folder in listed:
        if is_folder:
            yield from _walk(root, f"{at}{name}/", above | {here})
        elif os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122
            yield at + name


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1  # a broken link: recorded as missing
