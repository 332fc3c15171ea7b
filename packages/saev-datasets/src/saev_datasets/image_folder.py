"""A folder of images, flat or with class folders."""

from __future__ import annotations

from saev_datasets.files import FileDataset, FolderConfig, first_folder, list_images, need_folder


class ImageFolderConfig(FolderConfig):
    pass


class ImageFolder(FileDataset):
    """Every image below a folder; its class is the first folder in its path, if any.

    Images are recognised by suffix, ignoring case; hidden files and folders are skipped, links followed.
    A folder without images is not a class; an image outside the class folders has no label. Images are numbered by
    class, then folder, then name, each compared by code point, as in torchvision's `ImageFolder`, never in
    file system order.
    """

    Config = ImageFolderConfig

    def __init__(self, cfg: ImageFolderConfig) -> None:
        root = need_folder(cfg.root, "image-folder")
        files = list_images(root)
        classes = sorted({first_folder(file) for file in files} - {""})
        number = {name: number for number, name in enumerate(classes)}
        labels = [number.get(first_folder(file), -1) for file in files]
        super().__init__(root, files, labels if classes else None, classes)
