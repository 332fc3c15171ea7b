"""`DatasetContract`: tests that every data set plugin must pass."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import ClassVar

import numpy as np
from PIL import Image

from saev_core.data.dataset import DatasetConfig, ImageDataset
from saev_core.errors import BadImageError
from saev_core.testing.model_contract import _Plugin
from saev_core.types import Example


class DatasetContract(_Plugin):
    """Tests of an `ImageDataset`."""

    dataset: ClassVar[Callable[..., ImageDataset]]
    """The data set's class, or a function that takes its Config."""
    config: ClassVar[DatasetConfig | None] = None
    """Its options; by default `Config()`."""
    n: ClassVar[int] = 8
    """Number of images tested, spread over the data set and including the first and last."""

    def make(self) -> ImageDataset:
        """A new instance; override it if the options need a temporary folder."""
        factory = self._factory("dataset")
        made: ImageDataset = factory(self.config or getattr(factory, "Config", DatasetConfig)())
        return made

    @cached_property
    def built(self) -> ImageDataset:
        """The data set under test."""
        made = self.make()
        assert isinstance(made, ImageDataset), f"{type(made).__name__} is not an ImageDataset"
        return made

    @cached_property
    def _indices(self) -> list[int]:
        return sorted({int(i) for i in np.linspace(0, len(self.built) - 1, self.n)})

    @cached_property
    def _examples(self) -> list[Example]:
        found = self._read(self.built, self._indices)
        assert found, "none of the tested images is readable"
        return found

    @staticmethod
    def _read(dataset: ImageDataset, indices: list[int]) -> list[Example]:
        """Examples at `indices`, in order; unreadable ones are skipped, as the contract allows."""
        found = []
        if dataset.sequential:
            wanted = set(indices)
            every = enumerate(dataset.examples(0, max(wanted) + 1))
            return [item for i, item in every if i in wanted and isinstance(item, Example)]
        for index in indices:
            try:
                found.append(dataset[index])
            except BadImageError:
                continue
        return found

    def test_it_holds_images(self) -> None:
        assert len(self.built) > 0
        assert issubclass(getattr(type(self.built), "Config", type(None)), DatasetConfig), "the class needs a Config, a DatasetConfig"

    def test_an_image_carries_the_number_it_was_asked_by(self) -> None:
        readable = [example.index for example in self._examples]
        assert set(readable) <= set(self._indices)
        assert len(set(readable)) == len(readable)

    def test_images_are_rgb(self) -> None:
        for example in self._examples:
            assert isinstance(example.image, Image.Image)
            assert example.image.mode == "RGB", f"image {example.index} is {example.image.mode}"

    def test_labels_are_among_the_classes(self) -> None:
        for example in self._examples:
            if example.label is not None:
                assert self.built.classes is not None, "there are labels but no classes"
                assert 0 <= example.label < len(self.built.classes), f"image {example.index} has label {example.label}"

    def test_the_label_of_an_image_is_that_of_its_example(self) -> None:
        if self.built.sequential:
            return
        for example in self._examples:
            assert self.built.label(example.index) == example.label, f"image {example.index}"

    def test_masks_cover_their_image_with_known_classes(self) -> None:
        for example in self._examples:
            if example.mask is not None:
                assert example.mask.shape == (example.image.height, example.image.width), f"image {example.index}"
                assert example.mask.dtype in (np.uint8, np.uint16)
                assert self.built.mask_classes is not None, "there are masks but no mask_classes"
                assert int(example.mask.max()) < len(self.built.mask_classes), f"image {example.index}"

    def test_another_instance_gives_the_same_images_and_identity(self) -> None:
        other = self.make()
        assert len(other) == len(self.built)
        assert other.identity() == self.built.identity()
        for a, b in zip(self._examples, self._read(other, self._indices), strict=True):
            _same(a, b)

    def test_four_threads_read_what_one_reads(self) -> None:
        if self.built.sequential:
            return
        with ThreadPoolExecutor(4) as pool:
            rounds = list(pool.map(lambda _: self._read(self.built, self._indices), range(4)))
        for examples in rounds:
            for a, b in zip(self._examples, examples, strict=True):
                _same(a, b)

    def test_examples_come_in_order(self) -> None:
        stop = min(len(self.built), 3)
        given = list(self.built.examples(0, stop))
        assert len(given) == stop, "an unreadable image must be yielded as its error, in its place"
        assert [item.index for item in given if isinstance(item, Example)] == [
            i for i, item in enumerate(given) if isinstance(item, Example)
        ]

    def test_there_is_no_image_beyond_the_last(self) -> None:
        if self.built.sequential:
            return
        for index in (len(self.built), len(self.built) + 1000):
            try:
                self.built[index]
            except IndexError:
                continue
            raise AssertionError(f"the length is {len(self.built)}, but image {index} exists")

    def test_every_image_has_a_name(self) -> None:
        assert all(self.built.name(index) for index in self._indices)


def _same(a: Example, b: Example) -> None:
    assert a.index == b.index
    assert a.label == b.label
    assert np.array_equal(np.asarray(a.image), np.asarray(b.image)), f"image {a.index} differs"
    assert (a.mask is None) == (b.mask is None)
    assert a.mask is None or b.mask is None or np.array_equal(a.mask, b.mask), f"the mask of image {a.index} differs"
