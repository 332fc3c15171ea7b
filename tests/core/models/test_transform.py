"""`ResizeCrop` against torchvision's own resize and crop of a PIL image."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saev_core.models.transform import HALF, IMAGENET_MEAN, IMAGENET_STD, ResizeCrop

v1 = pytest.importorskip("torchvision.transforms")


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(8, 40))
def test_it_gives_torchvision_s_pixels_for_any_size(width: int, height: int, resize: int, crop: int):
    own = ResizeCrop(resize, (crop, crop))
    theirs = v1.Compose(
        [
            v1.Resize(resize, interpolation=v1.InterpolationMode.BICUBIC),
            v1.CenterCrop(crop),
            v1.ToTensor(),
            v1.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    # 1e-6: divided by 255 there, multiplied with 1 / 255 here.
    torch.testing.assert_close(own(picture(width, height)), theirs(picture(width, height)), rtol=0, atol=2e-6)


def test_a_fixed_size_ignores_the_proportions():
    pixels = ResizeCrop((20, 30), None, HALF, HALF)(picture(91, 17))
    assert pixels.shape == (3, 20, 30)
    assert pixels.is_contiguous()
    assert float(pixels.min()) >= -1
    assert float(pixels.max()) <= 1


def test_an_odd_margin_is_rounded_as_torchvision_or_as_transformers_does():
    column = Image.fromarray(np.arange(13, dtype=np.uint8)[None, :, None].repeat(10, 0).repeat(3, 2) * 10)
    starts = {}
    for floor in (False, True):
        cut = ResizeCrop(None, (10, 10), (0, 0, 0), (1, 1, 1), scale=0.1, floor=floor)(column)
        starts[floor] = round(float(cut[0, 0, 0]))
    assert starts == {False: 2, True: 1}  # a margin of 3: round(1.5) = 2, 3 // 2 = 1


def test_other_modes_become_rgb():
    grey = Image.new("L", (40, 40), 255)
    assert ResizeCrop(16, (16, 16), HALF, HALF)(grey).unique().tolist() == [1.0]


def test_its_name_says_all_and_it_travels_to_another_process():
    transform = ResizeCrop(32, (28, 28))
    assert repr(transform).startswith("ResizeCrop(resize=32, crop=(28, 28), mean=(0.485, 0.456, 0.406)")
    assert pickle.loads(pickle.dumps(transform)) == transform
