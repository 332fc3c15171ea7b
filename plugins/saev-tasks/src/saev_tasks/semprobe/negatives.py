"""Pictures of no concept, drawn from a data set into a folder."""

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
    """Draw `n` images into a new folder as `<number>.png`; what they are called in the data set, in the order drawn.

    The same for the same arguments; more images are the same ones and others. Unreadable ones are passed over.

    Args:
        classes: draw from these alone; none: from all.
        skip: images to leave out, by number, name or the end of a name, such as those that show a concept after all.

    Raises:
        DatasetError: there are too few, no such class, the data set is a stream, or the folder is there or cannot be written.
    """
    known = list(dataset.classes or [])
    if unknown := [name for name in classes if name not in known]:
        raise DatasetError(f"no class is called {unknown[0]!r}; the data set has {', '.join(known[:20]) or 'no classes'}.")
    if dataset.sequential:
        raise DatasetError("this data set can only be read in order, and a sample needs any image; draw from another one.")
    if folder.exists():
        raise DatasetError(f"{folder} is there already; delete it, or choose another folder with --to.")
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
                    f"only {len(names)} of {n} negatives could be drawn; ask for fewer with --n-images, or of more --classes."
                )
    except OSError as error:
        raise DatasetError(f"{folder} cannot be written ({error.strerror or error}); choose another folder with --to.") from None
    return names


def _skipped(index: int, name: str, skip: Sequence[str]) -> bool:
    return any(each in (str(index), name) or name.endswith("/" + each) for each in skip)
