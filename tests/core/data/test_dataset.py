"""`ImageDataset`: labels, and whether a data set knows what its pictures show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saev_core.config.base import PluginRef
from saev_core.data.dataset import ImageDataset, KnownTruth, knows_truth, load_dataset
from saev_core.data.decode import open_rgb
from saev_core.data.split_folders import write_split
from saev_core.errors import UnknownPluginError
from saev_core.types import Example


class Files(ImageDataset):
    """Four image files with labels; says nothing of labels but in its examples."""

    classes = ("even", "odd")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for index in range(4):
            Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(self.name(index))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Example:
        return Example(index, open_rgb(Path(self.name(index))), label=index % 2)

    def name(self, index: int) -> str:
        return str(self.folder / f"{index}.png")


def test_a_label_is_that_of_the_example_unless_a_data_set_knows_it_without(tmp_path: Path) -> None:
    dataset = Files(tmp_path)
    assert [dataset.label(index) for index in range(4)] == [0, 1, 0, 1]
    assert write_split(dataset, tmp_path / "split", 0.5, 0) == {"train": 2, "test": 2}
    assert {path.parent.name for path in (tmp_path / "split" / "train").rglob("*.png")} == {"even", "odd"}


def test_whether_a_plugin_knows_the_truth_is_told_by_its_class() -> None:
    assert knows_truth(PluginRef(name="shapes"))
    assert isinstance(load_dataset("shapes:2"), KnownTruth)
    with pytest.raises(UnknownPluginError):
        knows_truth(PluginRef(name="no-such-data-set"))
