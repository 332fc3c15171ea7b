"""Decode and transform images in threads, ahead of their use, in the data set's order and in bounded memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt16
from PIL import Image
from torch import Tensor

from saev_core.activations.store.meta import NO_CLASS
from saev_core.data.dataset import ImageDataset
from saev_core.errors import BadImageError, DatasetError, ModelError, SaevError
from saev_core.models.base import VisionModel
from saev_core.models.crop import patch_labels
from saev_core.support.threads import read_ahead, torch_threads
from saev_core.types import Box, Example

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """One image, ready for the model, or the error that prevented it (`bad`; all other fields are then empty)."""

    index: int
    pixels: Float[Tensor, "3 h w"] | None = None
    label: int = -1
    size: tuple[int, int] = (0, 0)
    """Width and height of the original."""
    crop: Box = field(default_factory=lambda: Box(0, 0, 0, 0))
    """The part of the original that the model sees, in original pixels."""
    mask: UInt16[np.ndarray, " n_patches"] | None = None
    bad: BadImageError | None = None


def n_threads(n_workers: int = -1) -> int:
    """`n_workers`, or, if that is -1, one thread per available core, at most 16."""
    if n_workers >= 0:
        return n_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


def load(
    dataset: ImageDataset, model: VisionModel, spans: Iterable[tuple[int, int]], *, n_workers: int = -1, lookahead: int = 64
) -> Generator[Loaded]:
    """The images `start` to `stop - 1` of each span, in order; at most about `lookahead` are in memory at once.

    Reading, `model.transform`, the crop and the mask's patches run in `n_workers` threads (0: in the caller's).
    A sequential data set is read by one more thread. Close or exhaust the iterator to end the threads.

    Raises:
        DatasetError: the data set ends early, returns another image than requested, or a mask of the wrong size.
        ModelError: the model's transform is not a resize and crop, or does not return `[3, h, w]`.
    """
    n_workers = n_threads(n_workers)
    if n_workers == 0:
        for item in _source(dataset, spans):
            yield _prepare(dataset, model, item)
        return
    n_torch = torch.get_num_threads()
    # One torch thread in each: a decoding thread with its own thread team would stall the forward pass.
    with ThreadPoolExecutor(n_workers, "saev-load", initializer=torch_threads, initargs=(1,)) as pool:

        def submitted() -> Iterator[Future[Loaded]]:
            for item in _source(dataset, spans):
                yield pool.submit(_prepare, dataset, model, item)

        with closing(read_ahead(submitted(), max(lookahead, n_workers))) as futures:
            try:
                for future in futures:
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                torch_threads(n_torch)


def _source(dataset: ImageDataset, spans: Iterable[tuple[int, int]]) -> Iterator[int | Example | Loaded]:
    """A worker's input: an image number or, for a stream, the example itself."""
    for start, stop in spans:
        if not dataset.sequential:
            yield from range(start, stop)
            continue
        index = start
        with closing(_generator(dataset.examples(start, stop))) as examples:
            for item in examples:
                if index >= stop:
                    break
                if isinstance(item, BadImageError):
                    yield Loaded(index, bad=item)
                elif item.index != index:
                    raise DatasetError(
                        f"the data set returned image {item.index} where {index} was expected; its examples() must be in order."
                    )
                else:
                    yield item
                index += 1
        if index < stop:
            raise DatasetError(f"the data set reports {len(dataset)} images, but its stream ended after {index}.")


def _generator(items: Iterator[T]) -> Generator[T]:
    """`items` as a generator that can be closed, whatever kind of iterator a plugin returns."""
    yield from items


def _prepare(dataset: ImageDataset, model: VisionModel, item: int | Example | Loaded) -> Loaded:
    if isinstance(item, Loaded):
        return item
    index = item if isinstance(item, int) else item.index
    try:
        example = read(dataset, item) if isinstance(item, int) else _decoded(dataset, item)
        pixels = _pixels(dataset, model, example)
    except BadImageError as error:
        return Loaded(index, bad=error)
    image, mask = example.image, example.mask
    crop = model.crop(*image.size)
    patches = None
    if dataset.mask_classes is not None:
        if mask is None:
            patches = np.full(model.grid.n_patches, NO_CLASS, np.uint16)
        elif mask.shape != (image.height, image.width):
            raise DatasetError(
                f"{dataset.name(index)}: the mask is {mask.shape[1]} x {mask.shape[0]} px, the image {image.width} x {image.height} px."
            )
        else:
            patches = patch_labels(mask, crop, model.grid)
    return Loaded(index, pixels, -1 if example.label is None else int(example.label), image.size, crop, patches)


def _pixels(dataset: ImageDataset, model: VisionModel, example: Example) -> Float[Tensor, "3 h w"]:
    try:
        pixels = torch.as_tensor(model.transform(example.image))
    except SaevError:
        raise
    except Exception as error:  # some transforms fail on images of 1 x 1 or 1,000,000 x 1 pixels
        why = f"the model's transform fails on its {example.image.width} x {example.image.height} px: {type(error).__name__}: {error}"
        raise BadImageError(dataset.name(example.index), why.splitlines()[0]) from error
    if pixels.ndim != 3:
        raise ModelError(f"the model's transform returns {tuple(pixels.shape)} for {dataset.name(example.index)}; expected [3, h, w].")
    return pixels


def read(dataset: ImageDataset, index: int) -> Example:
    """Image `index`, decoded.

    Raises:
        BadImageError: it cannot be read; decoding errors of Pillow and of the file system count too, since a plugin
            need not wrap them.
        DatasetError: it has another number than requested.
    """
    try:
        example = dataset[index]
    except Exception as error:
        raise _bad(dataset, index, error) from error
    if example.index != index:
        raise DatasetError(f"image {index} of the data set has index {example.index}; numbers must not shift.")
    return _decoded(dataset, example)


def _decoded(dataset: ImageDataset, example: Example) -> Example:
    try:
        example.image.load()
    except Exception as error:
        example.image.close()
        raise _bad(dataset, example.index, error) from error
    if example.image.mode != "RGB":
        raise DatasetError(f"{dataset.name(example.index)}: the data set gave an image of mode {example.image.mode}; convert it to RGB.")
    if 0 in example.image.size:
        raise BadImageError(dataset.name(example.index), "it has no pixels")
    return example


# What Pillow's decoders, numpy and the file system raise for a damaged image; they have no common base class.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, Image.DecompressionBombError, Image.DecompressionBombWarning)
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of the machine, not of the image."""


def _bad(dataset: ImageDataset, index: int, error: Exception) -> Exception:
    """`error` as a `BadImageError`, if the image is at fault."""
    if isinstance(error, SaevError) or not isinstance(error, _DAMAGE):
        return error
    if isinstance(error, OSError) and error.errno in _OURS:
        return DatasetError(f"{dataset.name(index)}: {error.strerror}; use fewer threads (record.n_workers) or raise the limit.")
    return BadImageError(dataset.name(index), f"{type(error).__name__}: {error}".splitlines()[0])
