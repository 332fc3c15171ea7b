"""The loader: in order, in place, in bounded memory, and gone when it is closed."""

from __future__ import annotations

import errno
import importlib.util
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saev_core.activations.recording.load_images import load, n_threads
from saev_core.activations.store.meta import NO_CLASS
from saev_core.errors import BadImageError, DatasetError, ModelError
from saev_core.types import Example

spec = importlib.util.spec_from_file_location("recorder", Path(__file__).parents[1] / "recorder.py")
assert spec is not None
assert spec.loader is not None
recorder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recorder)
Pictures, Stream, Toy = recorder.Pictures, recorder.Stream, recorder.Toy


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("n_workers", [0, 1, 4])
def test_images_come_in_order_whoever_is_slow(n_workers: int) -> None:
    class Uneven(Pictures):  # type: ignore[misc,valid-type]
        def __getitem__(self, index: int) -> Example:
            time.sleep(0.004 * (index % 3 == 0))
            return super().__getitem__(index)

    model, pictures = Toy(), Uneven(20)
    loaded = list(load(pictures, model, [(2, 9), (12, 20)], n_workers=n_workers))
    assert [each.index for each in loaded] == [*range(2, 9), *range(12, 20)]
    for each in loaded:
        example = pictures[each.index]
        assert each.pixels is not None
        assert torch.equal(each.pixels, model.transform(example.image))
        assert (each.label, each.size, each.crop) == (example.label, example.image.size, model.crop(*example.image.size))


def test_only_so_many_images_are_held() -> None:
    pictures = Pictures(400)
    with closing(load(pictures, Toy(), [(0, 400)], n_workers=2, lookahead=8)) as images:
        for _ in range(5):
            next(images)
        time.sleep(0.1)
        assert len(pictures.read) <= 5 + 8 + 3  # taken, queued, and in the hands of the one who queues


def test_a_bad_image_keeps_its_place() -> None:
    loaded = list(load(Pictures(10, bad=(0, 4)), Toy(), [(0, 10)]))
    assert [each.index for each in loaded] == list(range(10))
    assert [each.index for each in loaded if each.bad is not None] == [0, 4]
    assert loaded[4].bad is not None
    assert (loaded[4].bad.path, loaded[4].pixels) == ("pictures/004.png", None)


DAMAGE = [OSError("image file is truncated"), SyntaxError("broken PNG"), ValueError("bad"), Image.DecompressionBombError("big")]


@pytest.mark.parametrize("error", DAMAGE)
def test_what_decoders_raise_is_the_images_fault(error: Exception) -> None:
    class Broken(Pictures):  # type: ignore[misc,valid-type]
        def __getitem__(self, index: int) -> Example:
            if index == 1:
                raise error
            return super().__getitem__(index)

    _, bad, _ = load(Broken(3), Toy(), [(0, 3)])
    assert bad.bad is not None
    assert bad.bad.why == f"{type(error).__name__}: {error}"


def test_what_is_the_machines_fault_stops() -> None:
    class Starved(Pictures):  # type: ignore[misc,valid-type]
        def __getitem__(self, index: int) -> Example:
            raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(DatasetError, match="Too many open files; use fewer threads"):
        list(load(Starved(3), Toy(), [(0, 3)]))


def test_an_error_in_the_data_sets_own_code_is_not_hidden() -> None:
    class Wrong(Pictures):  # type: ignore[misc,valid-type]
        def __getitem__(self, index: int) -> Example:
            raise KeyError("no such column")

    with pytest.raises(KeyError):
        list(load(Wrong(3), Toy(), [(0, 3)]))


def test_a_picture_that_the_transform_cannot_bear_is_missing() -> None:
    model = Toy()
    plain = model.transform

    def delicate(image: Image.Image) -> torch.Tensor:
        if image.size == (33, 57):
            raise IndexError("too narrow")
        return plain(image)

    model.transform = delicate
    loaded = list(load(Pictures(4), model, [(0, 4)]))
    assert loaded[1].bad is not None
    assert "the model's transform fails on its 33 x 57 px: IndexError" in loaded[1].bad.why
    assert sum(each.bad is not None for each in loaded) == 1


def test_a_shifted_number_is_refused() -> None:
    class Shifted(Pictures):  # type: ignore[misc,valid-type]
        def __getitem__(self, index: int) -> Example:
            return super().__getitem__(index + 1)

    with pytest.raises(DatasetError, match="image 0 of the data set has index 1"):
        list(load(Shifted(5), Toy(), [(0, 3)]))


def test_pictures_that_are_not_rgb_are_refused() -> None:
    class Grey(Pictures):  # type: ignore[misc,valid-type]
        def __getitem__(self, index: int) -> Example:
            return Example(index, Image.new("L", (20, 12)))

    with pytest.raises(DatasetError, match="mode L; convert it to RGB"):
        list(load(Grey(3), Toy(), [(0, 3)]))


def test_a_mask_of_another_size_is_refused_and_one_that_is_lacking_is_no_class() -> None:
    class Masked(Pictures):  # type: ignore[misc,valid-type]
        def __getitem__(self, index: int) -> Example:
            return Example(index, Image.new("RGB", (20, 12)), mask=None if index == 0 else np.zeros((12, 21), np.uint8))

    (first,) = load(Masked(3), Toy(), [(0, 1)])
    assert first.mask is not None
    assert (first.mask == NO_CLASS).all()
    assert first.mask.shape == (15,)
    with pytest.raises(DatasetError, match="the mask is 21 x 12 px, the image 20 x 12 px"):
        list(load(Masked(3), Toy(), [(1, 2)]))


def test_a_transform_that_gives_no_picture_is_refused() -> None:
    model = Toy()
    plain = model.transform
    model.transform = lambda image: plain(image)[None]
    with pytest.raises(ModelError, match=r"expected \[3, h, w\]"):
        list(load(Pictures(2), model, [(0, 1)]))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_stream_is_opened_once_for_each_span(n_workers: int) -> None:
    stream = Stream(20, bad=(6,))
    loaded = list(load(stream, Toy(), [(3, 8), (12, 20)], n_workers=n_workers))
    assert stream.opened == [(3, 8), (12, 20)]
    assert [each.index for each in loaded] == [*range(3, 8), *range(12, 20)]
    assert [each.index for each in loaded if each.bad] == [6]


def test_a_stream_that_ends_early_says_so() -> None:
    class Short(Stream):  # type: ignore[misc,valid-type]
        def examples(self, start: int, stop: int) -> Iterator[Example | BadImageError]:
            yield from super().examples(start, 7)

    with pytest.raises(DatasetError, match="the data set reports 20 images, but its stream ended after 7"):
        list(load(Short(20), Toy(), [(0, 20)]))


def test_a_stream_out_of_order_says_so() -> None:
    class Mixed(Stream):  # type: ignore[misc,valid-type]
        def examples(self, start: int, stop: int) -> Iterator[Example | BadImageError]:
            yield from reversed(list(super().examples(start, stop)))

    with pytest.raises(DatasetError, match="returned image 4 where 0 was expected"):
        list(load(Mixed(5), Toy(), [(0, 5)]))


def test_an_endless_stream_is_cut_and_closed() -> None:
    closed = []

    class Endless(Stream):  # type: ignore[misc,valid-type]
        def examples(self, start: int, stop: int) -> Iterator[Example | BadImageError]:
            try:
                yield from super().examples(start, 10**6)
            finally:
                closed.append(True)

    assert len(list(load(Endless(5), Toy(), [(0, 5)]))) == 5
    assert closed == [True]


def test_abandoned_half_way_everything_ends() -> None:
    images = load(Pictures(1000, pause=0.001), Toy(), [(0, 1000)], n_workers=3)
    for _ in range(3):
        next(images)
    images.close()


def test_the_callers_torch_threads_stay() -> None:
    found: list[int] = []

    def use() -> None:
        torch.set_num_threads(2)
        with closing(load(Pictures(8), Toy(), [(0, 8)], n_workers=2)) as images:
            for _ in images:
                found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    before = torch.get_num_threads()
    thread = threading.Thread(target=use)  # a new one, whose number torch has not settled yet
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert found == [2] * 9


def test_one_thread_per_core_at_most_sixteen() -> None:
    assert 1 <= n_threads() <= 16
    assert n_threads(0) == 0
    assert n_threads(33) == 33
