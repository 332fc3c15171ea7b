"""One image, safely: every mode comes out as upright 8-bit RGB, every unreadable one as a BadImageError that names it."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from saev_core.data.decode import open_mask, open_rgb
from saev_core.errors import BadImageError


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(data: bytes) -> tuple[int, ...]:
    image = open_rgb(data)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))  # type: ignore[return-value]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_of_the_same_colour(mode: str) -> None:
    grey = np.full((5, 7, 3), 255 if mode == "1" else 153, np.uint8)  # 153 is in the web palette
    numbers = {"I;16": np.uint16(153 * 257), "I": np.int32(153 * 257), "F": np.float32(153 / 255)}
    image = Image.fromarray(np.full((5, 7), numbers[mode])) if mode in numbers else Image.fromarray(grey).convert(mode)
    assert image.mode == mode
    out = open_rgb(encode(image, {"P": "GIF", "YCbCr": "JPEG"}.get(mode, "TIFF")))
    assert out.mode == "RGB"
    assert out.size == (7, 5)
    assert np.abs(np.asarray(out).astype(int) - grey).max() <= 1


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None, :]
    out = np.asarray(open_rgb(encode(Image.fromarray(ramp))))[0, :, 0]
    assert np.array_equal(out, np.arange(256))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (2, 2), 0)
        image.putpalette([10, 20, 30] * 256)
        data = encode(image, transparency=0)
    else:
        data = encode(Image.new(mode, (2, 2), (10, 0) if mode == "LA" else (10, 20, 30, 0)))
    assert pixel(data) == (255, 255, 255)


def test_a_colour_key_is_transparency_too() -> None:
    info = PngImagePlugin.PngInfo()
    data = encode(Image.new("RGB", (2, 2), (1, 2, 3)), pnginfo=info, transparency=(1, 2, 3))
    assert pixel(data) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).convert("RGB")
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(open_rgb(encode(stored, exif=exif.tobytes()))), np.asarray(upright))


def test_broken_exif_does_not_lose_the_picture() -> None:
    data = encode(Image.new("RGB", (8, 8), "red"), "PNG", exif=b"Exif\0\0nonsense")
    assert pixel(data) == (255, 0, 0)


def test_a_jpeg_has_the_pixels_that_pillow_decodes_in_full() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", quality=90)
    assert np.array_equal(np.asarray(open_rgb(data)), np.asarray(Image.open(io.BytesIO(data))))


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixel(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, part: float) -> None:
    data = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    file = tmp_path / "cut.img"
    file.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(BadImageError, match=r"cut\.img") as caught:
        open_rgb(file)
    assert caught.value.path == str(file)
    assert "\n" not in str(caught.value)


def test_damaged_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"):
        good = np.frombuffer(encode(picture, kind), np.uint8)
        for _ in range(40):
            bad = good.copy()
            bad[rng.integers(0, min(len(bad), 400), 6)] = rng.integers(0, 256, 6)
            try:
                assert open_rgb(bad.tobytes(), "damaged").mode == "RGB"
            except BadImageError as error:
                assert error.path == "damaged"  # noqa: PT017 - either outcome is right, nothing else is


def test_text_a_folder_and_nothing_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("hello")
    for file in (tmp_path / "notes.jpg", tmp_path, tmp_path / "absent.png"):
        with pytest.raises(BadImageError, match=file.name):
            open_rgb(file)


def test_a_postscript_file_is_not_handed_to_another_program() -> None:
    with pytest.raises(BadImageError):
        open_rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "evil.eps")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("L", (200, 100)))
    for limit in (15_000, 5_000):  # Pillow only warns below twice the limit, and raises beyond
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(BadImageError, match=r"bomb\.png"):
            open_rgb(data, "bomb.png")


def test_threads_decode_at_once_to_the_same_pixels() -> None:
    data = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8)), "JPEG")
    want = np.asarray(open_rgb(data))
    gate = threading.Barrier(8)

    def work(_: int) -> bool:
        gate.wait()
        return all(np.array_equal(np.asarray(open_rgb(data)), want) for _ in range(10))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_mask_keeps_its_numbers_whatever_its_mode() -> None:
    numbers = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(numbers).convert("P")
    palette = Image.fromarray(numbers, "L")
    indexed = Image.new("P", (4, 3))
    indexed.putdata(numbers.ravel().tolist())
    indexed.putpalette([7, 7, 7] * 256)
    for image in (palette, indexed):
        got = open_mask(encode(image))
        assert got.dtype == np.uint8
        assert np.array_equal(got, numbers)
    wide = numbers.astype(np.uint16) * 1000
    got = open_mask(encode(Image.fromarray(wide)))
    assert got.dtype == np.uint16
    assert np.array_equal(got, wide)


def test_a_coloured_mask_is_refused() -> None:
    with pytest.raises(BadImageError, match="one channel"):
        open_mask(encode(Image.new("RGB", (3, 3))), "seg.png")
