"""`Shapes`: scenes drawn from a seed, with the ground truth of every object: a built-in data set with known answers.

A scene is one large object and one to three small ones on a muted background. Shape, colour, texture and place of
each are drawn independently; objects never touch. Hue, shade, tilt, texture phase and position inside a place vary,
and noise is added everywhere, so that no two patches of a kind are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int8, UInt8
from PIL import Image, ImageDraw
from pydantic import Field

from saev_core.data.dataset import DatasetConfig, ImageDataset
from saev_core.support.digest import digest
from saev_core.types import Box, Example, Grid

VERSION = 1
"""Part of the data set's identity; raise it whenever scenes change in appearance."""

Array = np.ndarray[Any, Any]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 132, 20),
    "yellow": (242, 214, 40),
    "green": (50, 165, 60),
    "cyan": (40, 200, 205),
    "blue": (45, 85, 215),
    "purple": (135, 55, 180),
    "pink": (245, 130, 185),
}
TEXTURES = ("plain", "stripes", "dots", "checker")
SIZES = ("small", "large")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")

_RADIUS = {"small": (0.125, 0.140), "large": (0.195, 0.215)}
"""Radius of the circle around an object, as a fraction of the image's side."""
_REACH = 0.065
"""Largest offset of an object's centre from the centre of its place, as a fraction of the image's side."""


def _regular(n: int, turn: float = 0.0, radius: float = 1.0) -> Array:
    angle = 2 * math.pi * np.arange(n) / n + turn
    return radius * np.stack([np.sin(angle), -np.cos(angle)], axis=1)  # [n, 2] x, y; first corner up


def _star() -> Array:
    points = _regular(10)
    points[1::2] *= 0.5
    return points


def _heart() -> Array:
    t = 2 * math.pi * np.arange(48) / 48
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2], axis=1) / 16.5


def _crescent() -> Array:
    outer = np.linspace(math.radians(50), math.radians(310), 40)
    inner = np.linspace(math.radians(310), math.radians(50), 40)
    a = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    tip = a[0]
    centre = 0.62
    radius = math.hypot(tip[0] - centre, tip[1])
    angle = np.linspace(math.atan2(-tip[1], tip[0] - centre), math.atan2(tip[1], tip[0] - centre) - 2 * math.pi, len(inner))
    b = np.stack([centre + radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    points: Array = np.concatenate([a, b]) + np.array([0.1, 0])
    return points


_CROSS = np.array([[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1], [-1, -1]]) / math.sqrt(
    10
)
_ARROW = np.array([[0, -1], [0.9, -0.1], [0.4, -0.1], [0.4, 0.9], [-0.4, 0.9], [-0.4, -0.1], [-0.9, -0.1]])

OUTLINES: dict[str, list[Array]] = {
    "circle": [_regular(48, radius=0.95)],
    "square": [_regular(4, math.pi / 4)],
    "triangle": [_regular(3) + np.array([0, 0.15])],
    "star": [_star()],
    "ring": [_regular(48), _regular(48, radius=0.5)],
    "cross": [_CROSS],
    "heart": [_heart()],
    "crescent": [_crescent()],
    "arrow": [_ARROW],
    "bar": [np.array([[-1, -0.4], [1, -0.4], [1, 0.4], [-1, 0.4]]) * 0.93],
}
"""Outline of each shape inside the unit circle; a second polygon is a hole."""
SHAPES = tuple(OUTLINES)

VALUES: dict[str, Sequence[str]] = {"shape": SHAPES, "colour": tuple(COLOURS), "texture": TEXTURES, "size": SIZES, "place": PLACES}
"""Every factor and its values."""


@dataclass(frozen=True)
class Thing:
    """One object: the value of each factor; its centre and radius in pixels, its tilt in radians."""

    shape: str
    colour: str
    texture: str
    size: str
    place: str
    x: float
    y: float
    radius: float
    tilt: float


@dataclass(frozen=True)
class Truth:
    """Ground truth of a scene: its objects, the large one first, and which one each pixel shows (0: none, i + 1: object i)."""

    things: tuple[Thing, ...]
    instances: UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class _Part:
    """Bounding box of an object in the image, and the fraction of each pixel there that it covers."""

    rows: slice
    cols: slice
    alpha: Array


class ShapesConfig(DatasetConfig):
    """Options of `shapes`."""

    main = "n"

    n: int = Field(default=3000, ge=1)
    """Number of scenes."""
    seed: int = Field(default=0, ge=0)
    """Seed of all scenes; scene i depends only on the seed, the size and i."""
    size: int = Field(default=192, ge=48, le=1024)
    """Side of the square images in pixels."""


class Shapes(ImageDataset):
    """Scenes drawn from a seed. The label is the shape of the large object; the mask gives each pixel's shape, 0 is background."""

    Config = ShapesConfig
    classes = SHAPES
    mask_classes = ("background", *SHAPES)
    factors: Sequence[str] = tuple(f"{factor}={value}" for factor, values in VALUES.items() for value in values)
    """Names of the rows of `patch_factors`."""

    def __init__(self, cfg: ShapesConfig | None = None) -> None:
        self.cfg = cfg or ShapesConfig()

    def __len__(self) -> int:
        return self.cfg.n

    def __getitem__(self, index: int) -> Example:
        rng, truth, alphas = self._scene(index)
        image = _paint(rng, truth, alphas)
        shape_of = np.array([0, *(SHAPES.index(thing.shape) + 1 for thing in truth.things)], np.uint8)
        return Example(index, Image.fromarray(image), SHAPES.index(truth.things[0].shape), shape_of[truth.instances])

    def name(self, index: int) -> str:
        return f"scene {index} of seed {self.cfg.seed}"

    def identity(self) -> str:
        return digest("shapes", VERSION, self.cfg.n, self.cfg.seed, self.cfg.size)

    def truth(self, index: int) -> Truth:
        """The objects of scene `index` and the pixels where each is visible."""
        return self._scene(index)[1]

    def patch_factors(self, index: int, grid: Grid, crop: Box) -> Int8[np.ndarray, "n_factors n_patches"]:
        """For each of `factors`, whether it is true of each patch: 1 yes, 0 no, -1 not counted.

        A patch shows an object if that object covers at least half of it, and background if objects cover at most an
        eighth of it. Patches in between are not counted: their value would depend on the choice of threshold, not on
        the image.

        Args:
            grid: the model's patches.
            crop: the part of the image that the grid covers.
        """
        truth = self.truth(index)
        share = _coverage(np.stack([truth.instances == i + 1 for i in range(len(truth.things))]), grid, crop)
        owner = np.where(share.max(0) >= 0.5, share.argmax(0), -1)
        rows = np.zeros((len(self.factors), grid.n_patches), np.int8)
        for i, thing in enumerate(truth.things):
            for factor in VALUES:
                rows[self.factors.index(f"{factor}={getattr(thing, factor)}"), owner == i] = 1
        rows[:, (owner < 0) & (share.sum(0) > 0.125)] = -1
        return rows

    def _scene(self, index: int) -> tuple[np.random.Generator, Truth, list[_Part]]:
        if not 0 <= index < self.cfg.n:
            raise IndexError(f"scene {index} of {self.cfg.n}")
        # PCG64's doubles are stable across numpy versions; its derived distributions need not be.
        rng = np.random.Generator(np.random.PCG64([self.cfg.seed, index]))
        truth, parts = _outline(_things(rng, self.cfg.size), self.cfg.size)
        return rng, truth, parts


def _coverage(regions: Array, grid: Grid, crop: Box) -> Array:
    """Fraction of each patch that each of `regions [n, height, width]` covers, `[n, n_patches]`; exact, including partial pixels."""
    _, height, width = regions.shape
    down = _overlap(np.linspace(crop.top, crop.bottom, grid.rows + 1), height)
    across = _overlap(np.linspace(crop.left, crop.right, grid.cols + 1), width)
    share: Array = (down @ regions.astype(np.float32) @ across.T).reshape(len(regions), grid.n_patches)
    return share


def _overlap(edges: Array, size: int) -> Array:
    """Share of each pixel of an axis in the interval between two neighbouring edges, `[n_edges - 1, size]`."""
    pixel = np.arange(size)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    share: Array = (np.maximum(shared, 0) / np.diff(edges)[:, None]).astype(np.float32)
    return share


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.random() * len(values))]


def _within(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _things(rng: np.random.Generator, size: int) -> tuple[Thing, ...]:
    """One large object, then one to three small ones, none touching another."""
    things: list[Thing] = []
    wanted = 2 + int(rng.random() * 3)
    for attempt in range(100):
        kind = "large" if not things else "small"
        radius = _within(rng, *_RADIUS[kind])
        place = int(rng.random() * 9)
        x, y = ((cell + 0.5) / 3 + _within(rng, -_REACH, _REACH) for cell in (place % 3, place // 3))
        margin = radius + 0.01
        x, y = min(max(x, margin), 1 - margin), min(max(y, margin), 1 - margin)
        free = all(math.hypot(x - t.x / size, y - t.y / size) > radius + t.radius / size + 0.02 for t in things)
        if free and all(t.place != PLACES[place] for t in things):
            shape, colour, texture = _pick(rng, SHAPES), _pick(rng, tuple(COLOURS)), _pick(rng, TEXTURES)
            things.append(Thing(shape, colour, texture, kind, PLACES[place], x * size, y * size, radius * size, _within(rng, -0.25, 0.25)))
        if len(things) == wanted or (attempt > 30 and len(things) > 1):
            break
    return tuple(things)


def _outline(things: tuple[Thing, ...], size: int) -> tuple[Truth, list[_Part]]:
    instances = np.zeros((size, size), np.uint8)
    parts = []
    for number, thing in enumerate(things, 1):
        left, top = (max(0, math.floor(c - thing.radius)) for c in (thing.x, thing.y))
        right, bottom = (min(size, math.ceil(c + thing.radius) + 1) for c in (thing.x, thing.y))
        part = _Part(slice(top, bottom), slice(left, right), _alpha(thing, left, top, right, bottom))
        instances[part.rows, part.cols][part.alpha >= 0.5] = number
        parts.append(part)
    return Truth(things, instances), parts


def _alpha(thing: Thing, left: int, top: int, right: int, bottom: int) -> Array:
    """Fraction of each pixel of a box that the object covers; drawn at twice the size and averaged."""
    turn = np.array([[math.cos(thing.tilt), math.sin(thing.tilt)], [-math.sin(thing.tilt), math.cos(thing.tilt)]])
    canvas = Image.new("L", (2 * (right - left), 2 * (bottom - top)))
    pen = ImageDraw.Draw(canvas)
    for fill, outline in zip((255, 0), OUTLINES[thing.shape], strict=False):
        points = (outline @ turn * thing.radius + np.array([thing.x - left, thing.y - top])) * 2 - 0.5
        pen.polygon([(float(x), float(y)) for x, y in points], fill=fill)
    fine = np.asarray(canvas, np.float32) / 255
    alpha: Array = fine.reshape(bottom - top, 2, right - left, 2).mean((1, 3))
    return alpha


def _paint(rng: np.random.Generator, truth: Truth, parts: list[_Part]) -> Array:
    size = len(truth.instances)
    picture = _background(rng, size)
    for thing, part in zip(truth.things, parts, strict=True):
        ground = picture[part.rows, part.cols]
        ground += part.alpha[..., None] * (_surface(rng, thing, part, size) - ground)
    noise = np.frombuffer(rng.bytes(size * size), np.uint8).reshape(size, size, 1).astype(np.float32)
    picture += (noise - 127.5) * (16 / 255)
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def _surface(rng: np.random.Generator, thing: Thing, part: _Part, size: int) -> Array:
    """The object's pixels over its box, `[h, w, 3]`: its colour, and a darker shade of it where the texture is dark."""
    shade = _within(rng, 0.88, 1.08)
    colour = np.array(COLOURS[thing.colour], np.float32) * shade + np.array([_within(rng, -12, 12) for _ in range(3)], np.float32)
    phase_x, phase_y = float(rng.random()), float(rng.random())
    if thing.texture == "plain":
        return np.broadcast_to(colour, (*part.alpha.shape, 3))
    period = size / 16
    x = (np.arange(part.cols.start, part.cols.stop, dtype=np.float32)[None, :] / period + phase_x) % 1
    y = (np.arange(part.rows.start, part.rows.stop, dtype=np.float32)[:, None] / period + phase_y) % 1
    if thing.texture == "stripes":
        dark = (y < 0.5) & (x < 2)
    elif thing.texture == "dots":
        dark = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.11
    else:
        dark = (x < 0.5) ^ (y < 0.5)
    painted: Array = np.where(dark[..., None], colour * 0.35, colour)
    return painted


def _background(rng: np.random.Generator, size: int) -> Array:
    """A muted background, `[size, size, 3]`: plain, a gradient, or soft waves."""
    kind = _pick(rng, ("plain", "slope", "waves"))
    grey = _within(rng, 70, 190)
    tint = np.array([_within(rng, -14, 14) for _ in range(3)], np.float32)
    angle, phase = _within(rng, 0, 2 * math.pi), _within(rng, 0, 2 * math.pi)
    wave = _within(rng, 2, 5)
    along = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    ramp = math.cos(angle) * along[None, :] + math.sin(angle) * along[:, None]
    if kind == "plain":
        ramp = np.zeros_like(ramp)
    elif kind == "slope":
        ramp = 50 * ramp
    else:
        ramp = 18 * np.sin(2 * math.pi * wave * ramp + phase)
    ground: Array = (grey + ramp)[..., None] + tint
    return ground.astype(np.float32)
