"""Sample images that show no concept from a data set into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saev_core import BadImageError, ImageDataset
from saev_core.activations.recording.load_images import read
from saev_core.errors import DatasetError
from saev_core.support.files import new_folder
from saev_core.support.progress import Track, silent


def sample(
    dataset: ImageDataset,
    folder: Path,
    n: int,
    *,
    classes: Sequence[str] = (),
    skip: Sequence[str] = (),
    seed: int = 42,
    track: Track = silent,
) -> list[str]:
    """Sample `n` images into a new folder as `<number>.png`; returns their names in the data set, in sampling order.

    Deterministic; a larger `n` extends the same sample. Unreadable images are skipped.

    Args:
        classes: sample only from these; if empty, from all.
        skip: images to exclude, by number, name or name suffix, such as those that do show a concept.

    Raises:
        DatasetError: too few images, no such class, the data set is a stream, or the folder exists or cannot be written.
    """
    known = list(dataset.classes or [])
    if unknown := [name for name in classes if name not in known]:
        raise DatasetError(f"no class named {unknown[0]!r}; the data set has {', '.join(known[:20]) or 'no classes'}.")
    if dataset.sequential:
        raise DatasetError("this data set can only be read in order, and sampling needs random access; sample from another one.")
    if folder.exists():
        raise DatasetError(f"{folder} already exists; delete it, or choose another folder with --to.")
    wanted = {known.index(name) for name in classes}
    names: list[str] = []
    try:
        with new_folder(folder) as new:
            with track("negatives", n, "images") as meter:
                for index in np.random.RandomState(seed % 2**32).permutation(len(dataset)):
                    if len(names) == n:
                        break
                    if _skipped(int(index), dataset.name(int(index)), skip):
                        continue
                    try:
                        example = read(dataset, int(index))
                    except BadImageError:
                        continue
                    if wanted and example.label not in wanted:
                        continue
                    example.image.save(new / f"{int(index):08d}.png")
                    names.append(dataset.name(int(index)))
                    meter.update(1)
            if len(names) < n:
                raise DatasetError(
                    f"only {len(names)} of {n} negatives could be sampled; request fewer with --n-images, or allow more --classes."
                )
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written ({error.strerror or error}); choose another folder with --to.") from None
    return names


def _skipped(index: int, name: str, skip: Sequence[str]) -> bool:
    return any(each in (str(index), name) or name.endswith("/" + each) for each in skip)
