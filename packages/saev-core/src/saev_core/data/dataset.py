"""`ImageDataset`: numbered images, optionally with labels and masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from saev_core.config.base import PluginConfig, PluginRef
from saev_core.errors import BadImageError, DatasetError
from saev_core.plugins.registry import find, resolve
from saev_core.support.digest import digest
from saev_core.types import Box, Example, Grid

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int8

    from saev_core.data.download import Archive


class DatasetConfig(PluginConfig):
    """Options common to all data sets; a plugin adds its own."""

    locations: ClassVar[tuple[str, ...]] = ("root",)
    """Options that locate the data but do not change it: excluded from the store's identity."""


class ImageDataset:
    """Base of every data set plugin: define `__init__(cfg)`, `__len__` and `__getitem__(index) -> Example`.

    `index` is an image's permanent number: a missing or unreadable image does not shift the others.
    `__getitem__` is called from several threads at once and raises `BadImageError` for an image it cannot read.
    """

    Config: ClassVar[type[DatasetConfig]] = DatasetConfig

    sources: ClassVar[Sequence[Archive]] = ()
    """Archives that `saev data download` fetches; they unpack into the folder named by the first of the config's `locations`."""
    whole: ClassVar[Mapping[str, Any]] = {}
    """Options that select all images, for a data set that is a subset by default."""

    classes: Sequence[str] | None = None
    """Names of the labels, by number; None without labels."""
    mask_classes: Sequence[str] | None = None
    """Names of the mask values, by number; None without masks."""
    sequential: bool = False
    """True for a stream that can only be read in order, through `examples`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example:
        raise NotImplementedError

    def examples(self, start: int, stop: int) -> Iterator[Example | BadImageError]:
        """Images `start` to `stop - 1` in order; an unreadable one is yielded as its error."""
        for index in range(start, stop):
            try:
                yield self[index]
            except BadImageError as error:
                yield error

    def name(self, index: int) -> str:
        """Human-readable name of image `index`: its path, if it has one."""
        return f"image {index}"

    def label(self, index: int) -> int | None:
        """The number of an image's class; None where it has none.

        The default opens the image. Override it where labels are known without.
        """
        return self[index].label

    def identity(self) -> str:
        """A digest that changes with the images; equal for a copy at another location.

        The default covers the number of images and the class names. Override it if more is known (file names).
        """
        return digest(len(self), list(self.classes or ()))


def load_dataset(ref: PluginRef | str) -> ImageDataset:
    """Build a data set: `load_dataset("image-folder:photos/")`.

    Raises:
        UnknownPluginError, PluginError, ConfigError: see `plugins.resolve`.
        DatasetError: it is missing, empty, gated or unreadable.
    """
    cls, cfg = resolve("dataset", ref)
    dataset = cls(cfg)
    if not isinstance(dataset, ImageDataset):
        raise DatasetError(f"dataset plugin {cls.__module__}.{cls.__qualname__} is not an ImageDataset.")
    if len(dataset) == 0:
        raise DatasetError(f"{ref if isinstance(ref, str) else ref.name}: the data set has no images.")
    return dataset


def knows_truth(ref: PluginRef) -> bool:
    """Whether data sets of a plugin are `KnownTruth`, told by the class: opens no data set."""
    return callable(getattr(find("dataset", ref.name).load(), "patch_factors", None))


@runtime_checkable
class KnownTruth(Protocol):
    """A data set whose ground truth is known for every patch, such as `shapes`."""

    factors: Sequence[str]
    """Names of the factor values, such as `colour=red`."""

    def patch_factors(self, index: int, grid: Grid, crop: Box) -> Int8[np.ndarray, "n_factors n_patches"]:
        """1 where a factor value is true of a patch, 0 where it is not, -1 where the patch is not counted."""
