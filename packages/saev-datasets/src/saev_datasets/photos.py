"""Photographs without a download: those bundled with scikit-image, scikit-learn and matplotlib, cut into tiles."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from pydantic import Field

from saev_core import DatasetConfig, Example, ImageDataset, open_rgb
from saev_core.data.decode import SUFFIXES
from saev_core.errors import DatasetError
from saev_core.support.digest import digest

# Only photographs: drawings, plots and icons are excluded, as is the stereo counterpart of motorcycle_left,
# whose tiles would be near-duplicates.
_SHIPPED = {
    "scikit-image": (
        "skimage",
        "data",
        "astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png gravel.png hubble_deep_field.jpg "
        "ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg text.png",
    ),
    "scikit-learn": ("sklearn", "datasets/images", "china.jpg flower.jpg"),
    "matplotlib": ("matplotlib", "mpl-data/sample_data", "grace_hopper.jpg"),
}
_LONGEST_PX = 640  # larger images are downscaled: retina.jpg alone would otherwise provide a quarter of all tiles
_ASPECTS = (1.0, 4 / 3, 3 / 4)
_FLAT = 6.0  # standard deviation of luminance, of 255: below it a tile shows only background


class PhotosConfig(DatasetConfig):
    locations = ("extra",)

    n: int = Field(default=0, ge=0)
    """Number of tiles; 0: all."""
    seed: int = 0
    """Seed of the cuts and of the order of the tiles."""
    min_px: int = Field(default=56, ge=16)
    """Minimum side of a piece, in pixels; its tile may be slightly smaller."""
    max_px: int = Field(default=256, ge=16)
    """Maximum short side of a piece, in pixels."""
    whole: float = Field(default=0.12, ge=0, le=1)
    """Probability that a piece that could be cut further stays whole; larger values give fewer, larger tiles."""
    extra: Path | None = None
    """A folder of further images to cut."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of one photograph, in pixels after downscaling to at most 640 px."""

    picture: int
    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.width, self.top + self.height


class Photos(ImageDataset):
    """Tiles of photographs: fur, text, coins, bricks, sky, faces. A tile's label is the photograph it was cut from.

    A photograph is repeatedly split in two at seeded positions, which leaves pieces of all sizes; each piece gives one
    tile of 1:1, 4:3 or 3:4. No two tiles share a pixel, at any scale. The order interleaves the photographs evenly, and
    the first tiles do not depend on `n`.
    """

    Config = PhotosConfig

    def __init__(self, cfg: PhotosConfig) -> None:
        if cfg.max_px < cfg.min_px:
            raise DatasetError(f"dataset.options.max_px {cfg.max_px} is below min_px {cfg.min_px}; raise it.")
        self.files = _shipped() + _extra(cfg.extra)
        self.classes = [file.stem for file in self.files]
        self._pictures = [_load(file) for file in self.files]
        ranked = []
        for number, (file, picture) in enumerate(zip(self.files, self._pictures, strict=True)):
            rng = Random(f"{cfg.seed} {file.name}")
            pieces = _cut(rng, (0, 0, picture.width, picture.height), cfg)
            tiles = [Tile(number, *_fit(piece)) for piece in pieces]
            tiles = [tile for tile in tiles if _luminance_std(picture.crop(tile.box)) >= _FLAT]
            tiles.sort(key=lambda tile: (rng.random(), tile.box))
            # The k-th of a photograph's m tiles is at about k / m of the order, so every stretch contains all photographs.
            ranked += [((k + rng.random()) / len(tiles), tile) for k, tile in enumerate(tiles)]
        ranked.sort(key=lambda pair: (pair[0], pair[1].picture))
        self.tiles = [tile for _, tile in ranked][: cfg.n or None]

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Example:
        if index < 0:
            raise IndexError(index)
        tile = self.tiles[index]
        return Example(index, self._pictures[tile.picture].crop(tile.box), label=tile.picture)

    def name(self, index: int) -> str:
        tile = self.tiles[index]
        return f"{self.files[tile.picture].name} at {tile.left},{tile.top} ({tile.width} x {tile.height})"

    def identity(self) -> str:
        contents = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in self.files]
        return digest(contents, [[tile.picture, *tile.box] for tile in self.tiles])


def _shipped() -> list[Path]:
    files, missing = [], []
    for dist, (package, folder, names) in _SHIPPED.items():
        # find_spec does not import a top-level package; only its folder is needed.
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            missing.append(dist)
            continue
        root = Path(spec.submodule_search_locations[0]) / folder
        files += [root / name for name in names.split() if (root / name).is_file()]
    if missing:
        raise DatasetError(f'photos needs {" and ".join(missing)}; pip install "saev-datasets[photos]".')
    return files


def _extra(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise DatasetError(f"dataset.options.extra {folder} is not a folder.")
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))


def _load(file: Path) -> Image.Image:
    picture = open_rgb(file)
    if max(picture.size) > _LONGEST_PX:
        scale = _LONGEST_PX / max(picture.size)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    return picture


def _cut(rng: Random, piece: tuple[int, int, int, int], cfg: PhotosConfig, depth: int = 0) -> list[tuple[int, int, int, int]]:
    """Non-overlapping pieces `(left, top, width, height)` that cover a piece, none with a side below `min_px`."""
    left, top, width, height = piece
    if min(width, height) < cfg.min_px:
        return []
    small_enough = min(width, height) <= cfg.max_px and max(width, height) <= 2 * min(width, height)
    # depth: without a minimum, a photograph could give only one or two tiles, and some seeds of the demo would have no cat.
    if max(width, height) < 2 * cfg.min_px or (depth >= 2 and small_enough and rng.random() < cfg.whole):
        return [piece]
    side = max(width, height)
    at = min(max(round(side * (0.4 + 0.2 * rng.random())), cfg.min_px), side - cfg.min_px)
    if width >= height:
        halves = (left, top, at, height), (left + at, top, width - at, height)
    else:
        halves = (left, top, width, at), (left, top + at, width, height - at)
    return _cut(rng, halves[0], cfg, depth + 1) + _cut(rng, halves[1], cfg, depth + 1)


def _fit(piece: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The largest centred rectangle of 1:1, 4:3 or 3:4 in a piece."""
    left, top, width, height = piece
    sizes = [(min(width, int(height * aspect)), min(height, int(width / aspect))) for aspect in _ASPECTS]
    w, h = max(sizes, key=lambda size: size[0] * size[1])
    return left + (width - w) // 2, top + (height - h) // 2, w, h


def _luminance_std(image: Image.Image) -> float:
    return float(np.asarray(image.convert("L"), dtype=np.float32).std())
