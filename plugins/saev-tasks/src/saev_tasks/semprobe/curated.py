"""Images for semprobe: curated ones in folders, or the run's own labelled data set."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from saev_core import Box, Checkpoint, Example, ImageDataset, ImageVectors, LiveSource, StoredVectors, TaskContext, open_rgb
from saev_core.data.decode import SUFFIXES
from saev_core.errors import CheckpointError, DatasetError, RunError
from saev_core.support.digest import digest

NEGATIVES = "negatives"
"""Name of the folder of images that show no concept."""


class Folders(ImageDataset):
    """One folder per concept with images below it; the label is the folder's number."""

    def __init__(self, folders: Sequence[tuple[str, Path]]) -> None:
        self.classes = [name for name, _ in folders]
        self._files = [(path, label) for label, (_, folder) in enumerate(folders) for path in _pictures(folder)]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        return Example(index, open_rgb(path), label)

    def name(self, index: int) -> str:
        return str(self._files[index][0])

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        return np.array([label for _, label in self._files], np.int64)

    def identity(self) -> str:
        return digest([path.name for path, _ in self._files], list(self.classes or ()))


def _pictures(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


@dataclass(frozen=True)
class Curated:
    """Images, the concepts each shows, and which of them are negatives."""

    concepts: list[str]
    images: Int[np.ndarray, " n"]
    """Their numbers in `dataset`."""
    true: Bool[np.ndarray, "n n_concepts"]
    negative: Bool[np.ndarray, " n"]
    dataset: ImageDataset
    source: ImageVectors
    """Source of their activations."""

    def picture(self, place: int) -> tuple[Image.Image, str]:
        """One image, as upright RGB, and its name."""
        index = int(self.images[place])
        return self.dataset[index].image, self.dataset.name(index)

    def activations(
        self, batch: int = 16, places: Sequence[int] | None = None
    ) -> Generator[tuple[Int[np.ndarray, " b"], Float[Tensor, "b n_tokens d"], list[Box]]]:
        """Indices of images, their raw vectors, and the crop the model saw; unreadable ones are skipped.

        Raises:
            CheckpointError: the SAE reads vectors from several layers.
        """
        chosen = self.images if places is None else self.images[np.asarray(places, np.int64)]
        where = {int(index): place for place, index in enumerate(self.images)}
        for index, x, crop in self.source.in_order(chosen, batch):
            yield np.array([where[int(i)] for i in index]), x, [crop(int(i)) for i in index]


def from_folders(cx: TaskContext, checkpoint: Checkpoint, positives: str, negatives: str) -> Curated:
    """Images in folders, preprocessed by the run's model as in recording.

    Args:
        positives: a folder with one subfolder per concept; a subfolder `negatives` holds images that show none.
        negatives: another folder of images that show no concept; empty: none.

    Raises:
        DatasetError: a folder is missing, or there are no positives.
    """
    root = Path(positives).expanduser()
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; --positives needs one with a subfolder of images per concept.")
    folders = [(each.name, each) for each in sorted(root.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    inside = [each for each in folders if each[0] == NEGATIVES]
    folders = [each for each in folders if each[0] != NEGATIVES]
    if not folders:
        raise DatasetError(f"{root} holds no positive examples: create one subfolder of images per concept in it.")
    for name, folder in folders:
        if not _pictures(folder):
            raise DatasetError(f"{folder} holds no images: there are no positive examples of {name!r}; add some, or remove the folder.")
    against = [path for _, path in inside] + ([Path(negatives).expanduser()] if negatives else [])
    for folder in against:
        if not folder.is_dir() or not _pictures(folder):
            raise DatasetError(f"{folder} holds no images; sample negatives with saev task semprobe negatives {cx.run.path}.")
    # Do not count the folder twice if it is inside positives and also given.
    unique = {folder.resolve(): folder for folder in against}
    dataset = Folders([*folders, *((NEGATIVES, folder) for folder in unique.values())])
    read = checkpoint.read.model_copy(update={"labels": None, "heldout": 0.0})
    _one_series(read.layer)
    record = cx.run.config.record.model_copy(update={"n_images": "all", "part": "1/1", "on_bad_image": "missing"})
    source = LiveSource(cx.model(), dataset, record, read, model_ref={"name": cx.run.config.model.name}, dataset_ref={"name": str(root)})
    labels, n = dataset.labels, len(folders)
    return Curated([name for name, _ in folders], np.arange(len(dataset)), labels[:, None] == np.arange(n), labels >= n, dataset, source)


def _one_series(layer: object) -> None:
    if layer == "all":
        raise CheckpointError("the SAE reads vectors from all layers, and a detector needs one layer; use an SAE of one layer.")


def from_labels(cx: TaskContext, checkpoint: Checkpoint, classes: Sequence[str], per_class: int, n_negatives: int, seed: int) -> Curated:
    """Recorded images of the run's own data set, with its classes as concepts.

    Args:
        classes: concepts; if empty, all. Otherwise images of other classes are negatives, at most `n_negatives`.
        per_class: maximum number of images per concept, sampled with `seed`.

    Raises:
        RunError: the images have no labels, or all have the same.
        DatasetError: no such class, or no image of it.
    """
    store, dataset = cx.store(), cx.dataset()
    _one_series(checkpoint.read.layer)
    vectors = StoredVectors(store, checkpoint.read)
    labels = np.where(vectors.usable.all(0), store.labels, -1)
    known = list(dataset.classes or [])
    if not (labels >= 0).any():
        raise RunError(f"the images of {cx.run.path} have no labels; curate images, one folder per concept, and pass --positives FOLDER.")
    if len(np.unique(labels[labels >= 0])) < 2:
        raise RunError(f"all images of {cx.run.path} have one label, so there are no negatives; pass --positives FOLDER, or another run.")
    if unknown := [name for name in classes if name not in known]:
        raise DatasetError(f"no class named {unknown[0]!r}; the data set has {', '.join(known[:20])}.")
    wanted = list(classes) or known
    rng = np.random.RandomState(seed % 2**32)

    def draw(mask: np.ndarray, n: int) -> np.ndarray:
        found = np.flatnonzero(mask)
        return np.sort(rng.permutation(found)[:n])

    numbers = [known.index(name) for name in wanted]
    drawn = [draw(labels == number, per_class) for number in numbers]
    for name, mine in zip(wanted, drawn, strict=True):
        if not len(mine):
            raise DatasetError(f"no recorded image is of class {name!r}, so there are no positive examples; choose other --classes.")
    others = draw((labels >= 0) & ~np.isin(labels, numbers), n_negatives)
    images = np.concatenate([*drawn, others])
    label = labels[images]
    return Curated(wanted, images, label[:, None] == np.array(numbers), ~np.isin(label, numbers), dataset, vectors)
