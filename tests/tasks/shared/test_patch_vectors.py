"""Masks mapped to the model's pixels and patches, and training batches from a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saev_core.activations.store.store import ActivationStore
from saev_core.data.dataset import ImageDataset
from saev_core.errors import DatasetError, StoreError, UsageError
from saev_core.models.crop import patch_labels
from saev_core.testing.stores_in_memory import store_of
from saev_core.types import Box, Example, Grid, Site
from saev_tasks.shared import patch_vectors as vectors
from saev_tasks.shared.patch_vectors import NO_CLASS, Classes, Truth, mixed, patch_shares, pixel_labels, stored

SITE = Site(0)


class Painted(ImageDataset):
    """Images with given masks."""

    def __init__(
        self, masks: Sequence[np.ndarray | None], names: Sequence[str] | None = ("a", "b", "c"), size: tuple[int, int] = (8, 4)
    ) -> None:
        self.masks, self.mask_classes, self.size = masks, names, size

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Example:
        return Example(index, Image.new("RGB", self.size), 0, self.masks[index])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))
def test_the_most_frequent_pixel_of_a_patch_is_its_recorded_class(seed: int, rows: int, cols: int, px: int) -> None:
    rng = np.random.RandomState(seed)
    height, width = rng.randint(3, 40, 2)
    grid = Grid(rows, cols, px)
    left, top = rng.uniform(0, width / 2), rng.uniform(0, height / 2)
    crop = Box(left, top, rng.uniform(left + 1, width), rng.uniform(top + 1, height))
    mask = rng.randint(0, 4, (height, width)).astype(np.uint8)
    pixels = pixel_labels(mask, crop, grid)
    shares = patch_shares(pixels, grid, 4)
    assert (shares.argmax(-1) == patch_labels(mask, crop, grid)).all()
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)


def test_shares_are_those_of_a_plain_count() -> None:
    grid, rng = Grid(2, 3, 4), np.random.RandomState(0)
    pixels = rng.choice([0, 1, 2, NO_CLASS], (5, 8, 12)).astype(np.uint16)
    shares = patch_shares(pixels, grid, 3)
    for n in range(5):
        for patch in range(6):
            row, col = divmod(patch, 3)
            tile = pixels[n, row * 4 : row * 4 + 4, col * 4 : col * 4 + 4]
            assert shares[n, patch].tolist() == pytest.approx([(tile == c).mean() for c in range(3)])


def test_pixels_outside_the_picture_show_no_class() -> None:
    pixels = pixel_labels(np.ones((4, 8), np.uint8), Box(-8, 0, 8, 4), Grid(1, 4, 4))
    assert (pixels[:, :6] == NO_CLASS).all()
    assert (pixels[:, 8:] == 1).all()


def test_classes_are_ignored_by_name_by_number_and_beyond_the_list() -> None:
    classes = Classes.of(["other", "wall", "sky"], ("other", "255"))
    assert classes.kept == [1, 2]
    assert classes.clean(np.array([0, 1, 2, 255, NO_CLASS], np.uint16), "x").tolist() == [NO_CLASS, 1, 2, NO_CLASS, NO_CLASS]


def test_what_cannot_be_segmented_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no masks"):
        Classes.of(None)
    with pytest.raises(DatasetError, match="of 2 1 remains"):
        Classes.of(["a", "b"], ["b"])
    with pytest.raises(UsageError, match="no such class; there are a, b"):
        Classes.of(["a", "b"], ["d"])
    store = store_of(tmp_path / "s", {SITE: torch.zeros(4, 2, 3)}, rows=1, patch_px=4)
    good = np.zeros((4, 8), np.uint8)
    truth = Truth(Painted([good, np.zeros((4, 4), np.uint8), good + 7, None]), store, Classes.of(["a", "b", "c"]))
    truth._crops[:] = (0, 0, 8, 4)
    assert (truth.image(0) == 0).all()
    with pytest.raises(DatasetError, match="image 1: the mask is 4 x 4, the image 8 x 4"):
        truth.image(1)
    with pytest.raises(DatasetError, match="image 2: mask value 7 is outside the 3 classes; fix the masks, or pass --ignore 7"):
        truth.pixels([0, 2])
    assert (truth.image(3) == NO_CLASS).all()
    with pytest.raises(StoreError, match="recorded from a data set without masks"):
        truth.patches(np.arange(2))


def test_activations_that_are_not_finite_are_refused_with_their_image(tmp_path: Path) -> None:
    url = tmp_path / "s"
    store_of(url, {SITE: torch.randn(12, 2, 3)}, dtype="float32")
    array = zarr.open_group(url, mode="r+")["resid.0/patches"]
    assert isinstance(array, zarr.Array)
    array[5, 1] = np.nan
    with pytest.raises(StoreError, match=r"resid\.0 of image 5 is not finite \(NaN or infinite\); re-record it"):
        list(stored(ActivationStore.open(url), SITE, np.arange(12)))


def test_every_patch_comes_once_an_epoch_in_another_order_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(20 * 3, dtype=torch.float32).view(20, 3, 1).repeat(1, 1, 2)
    store = store_of(tmp_path / "s", {SITE: x}, dtype="float32")
    images = np.array([0, 1, 2, 5, 6, 9, 12, 13, 14, 19])

    def take(places: np.ndarray, x: torch.Tensor, rng: np.random.RandomState) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(0, 1), torch.from_numpy(images[places]).repeat_interleave(3)

    want = sorted(x[images].flatten(0, 1)[:, 0].tolist())
    for limit in (2**30, 5 * 3 * 2 * 4):
        monkeypatch.setattr(vectors, "BUFFER_BYTES", limit)
        batches = mixed(store, SITE, images, take, 7, seed=3)
        orders = []
        for epoch in (0, 1, 0):
            got = list(batches(epoch))
            vectors_, owners = torch.cat([v for v, _ in got]), torch.cat([y for _, y in got])
            assert sorted(vectors_[:, 0].tolist()) == want
            assert (vectors_[:, 0].long() // 3 == owners).all()
            orders.append(vectors_[:, 0].tolist())
        assert orders[0] == orders[2] != orders[1]
