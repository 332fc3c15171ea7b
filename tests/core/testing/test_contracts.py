"""The contracts hold for what we ship, and catch what they are there to catch."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import saev_core.testing
from saev_core.data.dataset import DatasetConfig, ImageDataset
from saev_core.data.shapes import ShapesConfig
from saev_core.models.base import ModelConfig, VisionModel
from saev_core.runs.hooks import hookimpl
from saev_core.runs.metrics_log import JsonLines
from saev_core.testing import DatasetContract, ModelContract, Shapes, Tiny, TrackerContract
from saev_core.testing.model_contract import picture
from saev_core.types import Example, Grid


class TestTiny(ModelContract):
    model = Tiny


class TestShapes(DatasetContract):
    dataset = Shapes
    config = ShapesConfig(n=40)


class TestJsonLines(TrackerContract):
    tracker = JsonLines


def test_every_exported_name_resolves() -> None:
    for name in saev_core.testing.__all__:
        assert getattr(saev_core.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        saev_core.testing.Nothing  # noqa: B018


class Wide(VisionModel):
    """Two linear blocks over 3 x 5 patches of a model that is neither square nor has a CLS token."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.grid = Grid(3, 5, 8)
        self.d_model = 192
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(192, 192) for _ in range(2))
        self.transform = self._transform

    def _transform(self, image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize((40, 24)), np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x


class TestWide(ModelContract):
    model = Wide


class Forgetful(Wide):
    """Looks at the whole batch, and claims a CLS token it has not."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images - images.mean(0))


def contract(kind: type, **attributes: Any) -> Any:
    return type("Contract", (kind,), attributes)()


def test_model_contract_catches_a_model_that_mixes_a_batch() -> None:
    with pytest.raises(AssertionError, match="differ by"):
        contract(ModelContract, model=Forgetful).test_an_image_alone_gives_what_it_gives_in_a_batch()


def test_model_contract_catches_a_wrong_token_count() -> None:
    class Miscounts(Wide):
        def __init__(self, cfg: ModelConfig) -> None:
            super().__init__(cfg)
            self.grid = Grid(3, 5, 8, n_prefix=1)

    with pytest.raises((AssertionError, saev_core.SaevError)):
        contract(ModelContract, model=Miscounts).test_every_block_gives_as_many_tokens_as_the_grid_says()


def test_model_contract_catches_a_crop_that_is_off() -> None:
    class Mirrors(Wide):
        def _transform(self, image: Image.Image) -> torch.Tensor:
            return super()._transform(image).roll(8, 2)

    with pytest.raises((AssertionError, saev_core.SaevError)):
        contract(ModelContract, model=Mirrors).test_a_bright_spot_lies_where_its_crop_says()


class Shifts(ImageDataset):
    """Gives every image the number of the one before it, a label without classes, and an image beyond the end."""

    def __init__(self, cfg: DatasetConfig) -> None:
        self.cfg = cfg

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Example:
        return Example(index - 1, picture(20, 30), label=3, mask=np.zeros((20, 30), np.uint8))


@pytest.mark.parametrize(
    "test",
    [
        "test_an_image_carries_the_number_it_was_asked_by",
        "test_labels_are_among_the_classes",
        "test_masks_cover_their_image_with_known_classes",
        "test_there_is_no_image_beyond_the_last",
    ],
)
def test_dataset_contract_catches(test: str) -> None:
    with pytest.raises(AssertionError):
        getattr(contract(DatasetContract, dataset=Shifts), test)()


class Raises:
    """A tracker that fails half way."""

    Config = JsonLines.Config

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    @hookimpl
    def stepped(self, step: int) -> None:
        raise OSError("no network")


def test_tracker_contract_catches_a_hook_that_raises(tmp_path: Any) -> None:
    with pytest.raises(AssertionError, match="a hook raised"):
        contract(TrackerContract, tracker=Raises).test_it_follows_a_run_to_its_end(tmp_path)
