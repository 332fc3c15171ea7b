"""photos: real photographs without a download, in tiles no two of which share a pixel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saev_core.data.dataset import load_dataset
from saev_core.errors import ConfigError, DatasetError
from saev_datasets.photos import Photos, PhotosConfig


@pytest.fixture(scope="module")
def photos() -> Photos:
    data = load_dataset("photos")
    assert isinstance(data, Photos)
    return data


def test_there_are_several_hundred_tiles_of_twenty_pictures(photos: Photos) -> None:
    assert len(photos) >= 450
    assert photos.classes is not None
    counts = Counter(photos.classes[tile.picture] for tile in photos.tiles)
    assert len(counts) == len(photos.classes) == 20
    assert max(counts.values()) < len(photos) / 8
    assert min(counts[name] for name in ("chelsea", "coins", "text", "page")) >= 10


def test_no_two_tiles_share_a_pixel(photos: Photos) -> None:
    for number, picture in enumerate(photos._pictures):
        covered = np.zeros((picture.height, picture.width), np.uint8)
        for tile in photos.tiles:
            if tile.picture == number:
                left, top, right, bottom = tile.box
                assert left >= 0
                assert top >= 0
                assert right <= picture.width
                assert bottom <= picture.height
                covered[top:bottom, left:right] += 1
        assert covered.max() == 1


def test_scales_and_shapes_vary(photos: Photos) -> None:
    short = np.array([min(tile.width, tile.height) for tile in photos.tiles])
    assert short.min() >= 40
    assert short.max() >= 3 * np.median(short)
    shapes = [tile.width / tile.height for tile in photos.tiles]
    for aspect in (1, 4 / 3, 3 / 4):
        assert np.mean(np.abs(np.log(shapes) - np.log(aspect)) < 0.05) > 0.1


def test_an_example_is_the_tile_in_rgb_with_its_picture_as_label(photos: Photos) -> None:
    for index in range(0, len(photos), 37):
        example, tile = photos[index], photos.tiles[index]
        assert (example.index, example.label, example.image.mode) == (index, tile.picture, "RGB")
        assert example.image.size == (tile.width, tile.height)
        assert np.asarray(example.image.convert("L"), np.float32).std() >= 6
        assert photos.classes is not None
        assert photos.classes[tile.picture] in photos.name(index)


def test_the_seed_settles_everything(photos: Photos) -> None:
    again, other = Photos(PhotosConfig()), Photos(PhotosConfig(seed=1))
    assert again.tiles == photos.tiles
    assert again.identity() == photos.identity()
    assert other.tiles != photos.tiles
    assert other.identity() != photos.identity()


def test_fewer_tiles_are_the_first_of_all_and_still_mixed(photos: Photos) -> None:
    some = load_dataset("photos:100")
    assert isinstance(some, Photos)
    assert some.tiles == photos.tiles[:100]
    assert len({tile.picture for tile in some.tiles}) == 20


def test_further_pictures_join_without_moving_the_cuts_of_the_others(photos: Photos, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    more = Photos(PhotosConfig(extra=tmp_path))
    assert more.classes is not None
    assert more.classes[-1] == "noise"
    assert {tile for tile in more.tiles if tile.picture < 20} == set(photos.tiles)
    assert sum(tile.picture == 20 for tile in more.tiles) > 3
    assert more.identity() != photos.identity()


def test_options_out_of_range_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n"):
        load_dataset("photos:-3")
    with pytest.raises(DatasetError, match="max_px"):
        Photos(PhotosConfig(min_px=100, max_px=50))
    with pytest.raises(DatasetError, match="absent"):
        Photos(PhotosConfig(extra=tmp_path / "absent"))
